"""A training step stays in few rooms: the tool that traces one counts the files it enters."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_a_step_enters_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("trace_step")
    calls = tool.trace_training_step()
    files = {Path(code.co_filename).relative_to(tool.PACKAGE).as_posix() for code in calls}
    assert {"training/step.py", "models/wide_deep.py", "tables/embedding_table.py"} <= files
    assert len(files) <= 14, sorted(files)
    report = tool.report(calls, functions=True)
    assert "    StepProgram.run x 1" in report
    assert report.splitlines()[-1].startswith(f"{len(files)} files, ")
