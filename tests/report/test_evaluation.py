"""A bundle's metrics are those of the trainer that wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.cli.runs import load_bundle
from widedeep.errors import BundleError, DataError
from widedeep.evaluation.bundle_metrics import evaluate_bundle


def close(one: dict[str, float], other: dict[str, float]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], abs=2e-6, nan_ok=True), name


def test_it_equals_the_trainer(ads_run: Path) -> None:
    written = json.loads((ads_run / "run" / "metrics.json").read_text())
    found = evaluate_bundle(load_bundle(ads_run / "run"), ads_run / "test.parquet")
    close(found, written["test"])


@pytest.mark.parametrize("kind", ["multiclass", "regression", "binary"])
def test_every_head(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    label = {
        "multiclass": ["abc"[int(i)] for i in np.clip(x + 1, 0, 2)],
        "regression": 3 * x + rng.normal(size=300),
        "binary": (x > 0.2).astype(np.int64),
    }[kind]
    rows = pa.table({"x": x, "y": label, "w": rng.uniform(0, 2, 300), "g": [0, 1, 2] * 100})
    spec = wd.FeatureSpec(label="y", weight="w", group="g", features=wd.numeric("x"))
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4], head=kind)
    trainer = wd.Trainer(model, batch_size=32, progress=False)
    trainer.fit(rows, epochs=2)
    close(evaluate_bundle(trainer.export(tmp_path / "b"), rows), trainer.evaluate(rows))


def test_several_heads(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    rows = pa.table({"x": x, "click": x > 0, "buy": x > 1})
    spec = wd.FeatureSpec(label=["click", "buy"], features=wd.numeric("x"))
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
    trainer = wd.Trainer(model, batch_size=32, progress=False)
    trainer.fit(rows)
    found = evaluate_bundle(trainer.export(tmp_path / "b"), rows)
    assert {"click/auc", "buy/auc"} < found.keys()
    metrics = trainer.evaluate(rows)
    # The heads' weights in the sum are the trainer's; a bundle knows none.
    assert metrics.pop("loss") == metrics["click/log_loss"] + metrics["buy/log_loss"]
    close(found, metrics)


def test_calibrated_scores_are_what_is_judged(ads_run: Path, tmp_path: Path) -> None:
    rows = pq.read_table(ads_run / "train.parquet")
    schema = wd.Schema.load(ads_run / "run" / "schema.safetensors")
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[4]), batch_size=32, progress=False)
    trainer.fit(rows, epochs=3)
    halved = trainer.export(tmp_path / "halved", negative_rate=0.25)
    found = evaluate_bundle(halved, rows)
    # Undoing kept negatives lowers every probability, and leaves their order.
    assert found["prediction_mean"] < 0.7 * trainer.evaluate(rows)["prediction_mean"]
    assert found["auc"] == pytest.approx(trainer.evaluate(rows)["auc"], abs=1e-9)


def test_bad_data(ads_run: Path, tmp_path: Path) -> None:
    bundle = load_bundle(ads_run / "run")
    rows = pq.read_table(ads_run / "test.parquet")
    with pytest.raises(DataError, match=r"no column 'click'"):
        evaluate_bundle(bundle, rows.drop_columns(["click"]))
    with pytest.raises(DataError, match=r"got no rows to evaluate"):
        evaluate_bundle(bundle, rows.slice(0, 0))


def test_where_the_bundle_is(ads_run: Path, tmp_path: Path) -> None:
    run = ads_run / "run"
    assert load_bundle(run).path == load_bundle(run / "bundle").path == run / "bundle"
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(BundleError, match=r"checkpoints without a bundle; write one: widedeep exp"):
        load_bundle(tmp_path / "run")
    with pytest.raises(BundleError, match=r"expected a bundle|no bundle"):
        load_bundle(tmp_path)
