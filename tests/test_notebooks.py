"""The notebooks of the documents run from first to last cell, and say what they said."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
NAMES = ("first_model", "logs_to_ranker", "import_estimator")
MOST_SECONDS = 180  # of the three together, on two cores


def outputs(notebook: Any) -> str:
    parts = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(part.get("text") or part.get("data", {})) for part in parts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebooks_run() -> None:
    seconds, texts = 0.0, {}
    for name in NAMES:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}
        )
        started = time.perf_counter()
        client.execute()
        seconds += time.perf_counter() - started
        texts[name] = outputs(notebook)
    assert seconds < MOST_SECONDS

    first, logs, imported = (texts[name] for name in NAMES)
    assert "epoch 3" in first
    auc = re.search(r"AUC (0\.\d+)", first)
    assert auc is not None and float(auc[1]) > 0.92
    for text in (first, logs, imported):
        assert text.count("<iframe sandbox") >= 1
    assert len(re.findall(r"'app\d{4}'", logs)) >= 5 and "'model_version': '1'" in logs
    difference = re.search(r"probabilities: (\S+)", imported)
    assert difference is not None and float(difference[1]) < 1e-6


def test_what_is_shown_in_the_documents_was_run() -> None:
    for name in NAMES:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
        assert "/tmp" not in outputs(notebook)
