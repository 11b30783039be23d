"""A report beside another model: compared by name, or not and told why."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.bundle import Bundle
from widedeep.errors import SchemaError
from widedeep.publish import publish
from widedeep.report import make_report

ROWS = pa.table(
    {
        "job": ["cook", "nurse", "smith", "cook"] * 200,
        "y": ["no", "yes", "no", "no", "yes"] * 160,
        "kind": ["a", "b", "c", "b"] * 200,
    }
)


def made(path: Path, label: str, classes: list[str] | None = None) -> Bundle:
    spec = wd.FeatureSpec(label=label, features=wd.categorical("job"), label_vocabulary=classes)
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, ROWS), hidden_units=[2]), progress=False)
    trainer.fit(ROWS)
    return trainer.export(path)


def test_the_version_before_predicts_something_else(tmp_path: Path) -> None:
    """Nobody asked for that comparison: the report is made without it."""
    publish(made(tmp_path / "1", "y", ["no", "yes"]).path, tmp_path / "m", force=True, reason="1")
    turned = made(tmp_path / "2", "y", ["yes", "no"])
    report = make_report(turned, data=ROWS, models=tmp_path / "m")
    assert report.against is None
    (note,) = [note for note in report.notes if "Not compared with version 1" in note]
    assert "'yes', 'no' (in this order)" in note
    with pytest.raises(SchemaError, match="in this order"):
        make_report(turned, data=ROWS, against=tmp_path / "1")


def test_labels_that_a_model_does_not_know(tmp_path: Path) -> None:
    rows = ROWS.set_column(2, "kind", pa.array(["a", "b", "c", "d"] * 200))
    report = make_report(made(tmp_path / "1", "kind"), data=rows)
    assert report.data is not None and report.data["rows"] == 600
    assert any("200 rows hold 'd' (200)" in note for note in report.notes)
