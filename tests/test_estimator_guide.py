"""The guide from `tf.estimator`: its commands run, and give TensorFlow's answers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_line import Run
from tests.oracles.models import unpack_model
from widedeep.bundle import Bundle

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "estimator.md"


def rows_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch, each column a single value."""
    columns = {name: feature["rows"] for name, feature in batch["features"].items()}
    return [
        {**{name: values[row][0] for name, values in columns.items()}, "label": label[0]}
        for row, label in enumerate(batch["labels"])
    ]


def test_the_guides_commands_carry_a_model_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = unpack_model("census", tmp_path)
    (tmp_path / "saved_model").rename(tmp_path / "export")
    (tmp_path / "checkpoint").rename(tmp_path / "model_dir")
    first = rows_of(answers["batches"][0])
    pq.write_table(pa.Table.from_pylist(first), tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *words = shlex.split(line)
        code, _, error = run(*words)
        assert (program, code) == ("widedeep", 0), (line, error)

    bundle = Bundle.load("runs/census/bundle")
    assert bundle.compat == "tensorflow"
    predictions = bundle.predictions(rows_of(answers["rows"]))
    expected = answers["predictions"]
    assert predictions.keys() == expected.keys()
    for name in ("logits", "logistic", "probabilities"):
        np.testing.assert_allclose(predictions[name], expected[name], rtol=1e-5, atol=1e-6)
    for name in ("class_ids", "classes", "all_class_ids", "all_classes"):
        assert predictions[name].tolist() == expected[name]

    code, text, _ = run("evaluate", "runs/census", "rows.parquet", "--json")
    metrics, theirs = json.loads(text)["metrics"], answers["metrics"]
    assert theirs.keys() - metrics.keys() == {"global_step"}
    for name in theirs.keys() - {"global_step", "auc_precision_recall"}:  # interpolated there
        assert metrics[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert Bundle.load("bundles/census").predictions(first).keys() == predictions.keys()
