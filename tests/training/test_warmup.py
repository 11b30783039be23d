"""The rows that a bundle keeps to be warmed and proved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.cli.export import export_checkpoint
from widedeep.errors import BundleError

ROWS: list[dict[str, Any]] = [
    {"job": "abc"[i % 3], "age": float(i), "code": b"x", "y": i % 2, "w": 1.0} for i in range(100)
]
SPEC = wd.FeatureSpec(
    label="y", weight="w", features=[*wd.categorical("job", "code"), *wd.numeric("age")]
)
SCHEMA = wd.fit_schema(SPEC, ROWS)


def trained(rows: list[dict[str, Any]] = ROWS, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(SCHEMA, hidden_units=[4], embedding_dim=2)
    trainer = wd.Trainer(model, batch_size=16, progress=False, **options)
    trainer.fit(rows, epochs=2)
    return trainer


def test_a_bundle_keeps_storable_training_rows_with_their_scores(tmp_path: Path) -> None:
    trainer = trained(ROWS)
    bundle = trainer.export(tmp_path / "b")
    rows = bundle.warmup.rows
    assert len(rows) == 8 and len({row["age"] for row in rows}) == 8
    for row in rows:
        assert row == {**{k: ROWS[int(row["age"])][k] for k in ("job", "age")}, "code": "x"}
    assert np.array_equal(bundle.warmup.scores[""], bundle.score(rows))
    np.testing.assert_allclose(bundle.score(rows), trainer.predict(rows), atol=1e-6)


def test_the_rows_are_those_of_the_seed() -> None:
    assert trained(seed=1).state.warmup.rows == trained(seed=1).state.warmup.rows
    assert trained(seed=1).state.warmup.rows != trained(seed=2).state.warmup.rows


def test_validation_and_scoring_leave_the_rows_alone() -> None:
    trainer = trained()
    before = trainer.state.warmup.rows
    trainer.evaluate(ROWS[50:])
    trainer.predict(ROWS[50:])
    assert trainer.state.warmup.rows is before
    trainer.fit(ROWS[:4])
    assert {row["age"] for row in trainer.state.warmup.rows} == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_rows_of_any_arrow_type_are_kept(kind: pa.DataType) -> None:
    table = pa.table({"job": ["a", "b"], "age": [1.0, 2.0], "code": ["x", "x"], "y": [0, 1]})
    plain = pa.array(["a", "b"])
    jobs = plain.dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(["a", "b"], kind)
    table = table.set_column(0, "job", jobs).append_column("w", pa.array([1.0, 1.0]))
    trainer = wd.Trainer(wd.WideDeep(SCHEMA, hidden_units=[4]), progress=False)
    trainer.fit(table)
    assert trainer.state.warmup.rows == table.select(["job", "age", "code"]).to_pylist()


def test_none_is_stored_where_none_is_wanted_and_the_given_ones_where_they_are(
    tmp_path: Path,
) -> None:
    trainer = trained()
    assert trainer.export(tmp_path / "none", warmup=False).warmup.rows == []
    given = [{"job": "a", "age": 1.0, "code": "x"}] * 20
    assert trainer.export(tmp_path / "given", warmup=given).warmup.rows == given
    for wrong in ("row", [1], 8):
        with pytest.raises(BundleError, match=r"got warmup=.*expected a list of rows .*, True .*"):
            trainer.export(tmp_path / "wrong", warmup=wrong)  # type: ignore[arg-type]


def test_a_checkpoint_keeps_the_rows(tmp_path: Path) -> None:
    trainer = trained(checkpoints=tmp_path / "run")
    bundle, _ = export_checkpoint(tmp_path / "run", tmp_path / "b")
    assert bundle.warmup.rows == trainer.state.warmup.rows
    resumed = wd.Trainer(
        wd.WideDeep(SCHEMA, hidden_units=[4], embedding_dim=2),
        batch_size=16,
        checkpoints=tmp_path / "run",
        progress=False,
    )
    resumed.fit(ROWS, epochs=3, resume=True)
    assert resumed.state.warmup.rows == trainer.state.warmup.rows
