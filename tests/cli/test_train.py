"""A run from its configuration to its bundle, stopped and taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.ads import ads_table, write_ads
from widedeep.cli.export import export_checkpoint
from widedeep.cli.prepare import prepare_schema
from widedeep.cli.run_training import (
    make_trainer,
    train_run,
)
from widedeep.cli.runs import RunDirectory, training_data
from widedeep.config import load_config
from widedeep.data.sources import open_source
from widedeep.errors import BundleError, CheckpointError, ConfigError, DataError, WideDeepError
from widedeep.models.heads import Regression
from widedeep.schema import Schema
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.config import RunConfig


@pytest.fixture
def ads(tmp_path: Path) -> Path:
    return write_ads(tmp_path)


def config(folder: Path, *overrides: str) -> RunConfig:
    return load_config(folder / "ads.toml", overrides)


def quietly(folder: Path, *overrides: str, resume: bool = False, name: str = "run") -> Any:
    directory = RunDirectory(folder / name)
    return train_run(config(folder, *overrides), directory, resume=resume, progress=False)


def weights(bundle: Path) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in wd.Bundle.load(bundle).weights.items()}


def test_a_run_leaves_everything_in_its_folder(ads_run: Path) -> None:
    run = ads_run / "run"
    directory = RunDirectory(run)
    assert directory.state == "finished"
    assert load_config(directory.config).spec == config(ads_run).spec
    assert load_config(directory.config).data.train == str(ads_run / "train.parquet")
    schema = Schema.load(directory.schema)
    metrics = json.loads(directory.metrics.read_text())
    assert metrics["schema"] == schema.fingerprint
    assert metrics["test"]["rows"] == 200
    assert metrics["test"]["auc"] > 0.6
    history = json.loads(directory.history.read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    best = min(history, key=lambda row: row["valid/log_loss"])
    assert best["valid/auc"] == metrics["valid"]["auc"]
    bundle = wd.Bundle.load(directory.bundle)
    assert bundle.metrics["auc"] == metrics["test"]["auc"]
    assert len(bundle.warmup.rows) == 8
    assert bundle.config["train"]["epochs"] == 2


def test_validation_rows_are_not_trained_on(ads: Path) -> None:
    train, valid = training_data(config(ads))
    with open_source(train) as one, open_source(valid) as two:
        assert one.num_rows + two.num_rows == 600
        assert 80 < two.num_rows < 160
        kept = one.num_rows
    run = quietly(ads)
    assert run.schema.rows == kept
    assert run.rows == 2 * kept
    assert run.metrics["valid"]["rows"] == 600 - kept


def test_named_validation_data_is_used_whole(ads: Path) -> None:
    run = quietly(ads, f"data.valid='{ads}/test.parquet'")
    assert run.schema.rows == 600
    assert run.metrics["valid"]["rows"] == 200
    assert run.metrics["valid"] == run.metrics["test"]


def test_early_stopping_keeps_the_best(ads: Path) -> None:
    # A rate far too high: later epochs are worse.
    settings = ("train.epochs=12", "train.patience=2", "train.deep.lr=0.5", "train.batch_size=16")
    run = quietly(ads, *settings)
    losses = [row["valid/log_loss"] for row in run.history]
    assert len(losses) < 12
    assert run.metrics["valid"]["log_loss"] == min(losses)
    directory = RunDirectory(ads / "run")
    again, _ = export_checkpoint(directory.path, ads / "again")
    assert again.metrics["log_loss"] == min(losses)
    for name, array in weights(directory.bundle).items():
        assert (weights(ads / "again")[name] == array).all()


def test_going_on_equals_a_run_that_never_stopped(ads: Path) -> None:
    # At constant rates: with an end to decay towards, a longer run is another one.
    quietly(ads, "train.epochs=3", name="whole")
    quietly(ads, "train.epochs=1", name="parts")
    assert not (weights(ads / "parts" / "bundle")["bias"] == 0).all()
    quietly(ads, "train.epochs=3", name="parts", resume=True)
    whole, parts = weights(ads / "whole" / "bundle"), weights(ads / "parts" / "bundle")
    assert {name: (whole[name] == parts[name]).all() for name in whole} == dict.fromkeys(
        whole, True
    )


def test_the_prepared_schema_is_taken(ads: Path) -> None:
    directory = RunDirectory(ads / "run")
    schema = prepare_schema(config(ads), directory)
    assert directory.state == "new"
    modified = directory.schema.stat().st_mtime_ns
    run = train_run(config(ads), directory, progress=False)
    assert run.schema == schema
    assert directory.schema.stat().st_mtime_ns == modified


@pytest.mark.parametrize("change", ["data", "features", "share"])
def test_a_schema_of_other_data_or_features_is_not_taken(ads: Path, change: str) -> None:
    directory = RunDirectory(ads / "run")
    schema = prepare_schema(config(ads), directory)
    overrides = {"features": ["features.numeric=['age']"], "share": ["data.valid_fraction=0.3"]}
    if change == "data":
        pq.write_table(ads_table(700, 3), ads / "train.parquet")
    run = quietly(ads, *overrides.get(change, []))
    assert run.schema != schema
    assert Schema.load(directory.schema) == run.schema


def test_resuming_another_run_is_refused(ads: Path) -> None:
    quietly(ads)
    with pytest.raises(ConfigError, match=r"train\.batch_size = 64, now it is 32; go on with the"):
        quietly(ads, "train.batch_size=32", resume=True)
    with pytest.raises(ConfigError, match=r"features\.numeric = \['age', 'price'\], now"):
        quietly(ads, "features.numeric=['age']", resume=True)


def test_resuming_on_changed_data_is_refused(ads: Path) -> None:
    quietly(ads)
    directory = RunDirectory(ads / "run")
    schema, before = Schema.load(directory.schema), directory.metrics.read_text()
    pq.write_table(ads_table(650, 9), ads / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet.*in the interrupted run; resume with the"):
        quietly(ads, "train.epochs=3", resume=True)
    assert Schema.load(directory.schema) == schema
    assert (directory.state, directory.metrics.read_text()) == ("finished", before)


@pytest.mark.parametrize(
    "mistake", ["data.label='clikc'", "train.wide.lrr=1", "data.train='no.parquet'"]
)
def test_a_mistake_costs_no_earlier_run(ads: Path, mistake: str) -> None:
    quietly(ads)
    with pytest.raises(WideDeepError):
        train_run(config(ads, mistake), RunDirectory(ads / "run"), force=True, progress=False)
    assert wd.Bundle.load(ads / "run" / "bundle").metrics
    quietly(ads, "train.epochs=3", resume=True)


def test_what_stands_in_the_way_is_told(ads: Path) -> None:
    directory = RunDirectory(ads / "run")
    directory.check_free()
    quietly(ads)
    with pytest.raises(
        ConfigError, match=r"holds a finished run; --resume .* --force .* --out DIR"
    ):
        directory.check_free()
    directory.metrics.unlink()
    with pytest.raises(ConfigError, match=r"stopped at step 16; --resume goes on"):
        directory.check_free()
    (directory.path / "notes.txt").write_text("mine")
    directory.clear()
    directory.check_free()
    assert sorted(place.name for place in directory.path.iterdir()) == [
        "inputs.json",
        "notes.txt",
        "schema.safetensors",
    ]


def test_patience_without_validation_data(ads: Path) -> None:
    with pytest.raises(ConfigError, match=r"patience = 2 under \[train\] without validation data"):
        quietly(ads, "train.patience=2", "data.valid_fraction=0.0")
    with pytest.raises(
        ConfigError, match=r"got early_stopping = true under .* drop early_stopping"
    ):
        quietly(ads, "train.early_stopping=true", "data.valid_fraction=0.0")
    with pytest.raises(ConfigError, match="got patience = 2 and early_stopping = false; drop one"):
        config(ads, "train.patience=2", "train.early_stopping=false")
    assert not (ads / "run").exists()


def test_training_to_the_end(ads: Path) -> None:
    settings = ("train.epochs=12", "train.deep.lr=0.5", "train.batch_size=16")
    run = quietly(ads, *settings, "train.early_stopping=false")
    assert [row["epoch"] for row in run.history] == list(range(1, 13))
    assert run.metrics["valid"]["auc"] == run.history[-1]["valid/auc"]


def test_no_training_data(ads: Path) -> None:
    text = (ads / "ads.toml").read_text().replace('train = "train.parquet"\n', "")
    (ads / "ads.toml").write_text(text)
    with pytest.raises(ConfigError, match=r'no training data; write train = "FILE" under \[data\]'):
        quietly(ads)


def test_no_label_is_told_before_the_schema_is_fitted(ads: Path) -> None:
    text = (ads / "ads.toml").read_text()
    (ads / "ads.toml").write_text(text.replace('label = "click"\n', ""))
    for fit in (quietly, lambda ads: prepare_schema(config(ads), RunDirectory(ads / "run"))):
        with pytest.raises(ConfigError, match=r'no label to learn; write label = "COLUMN" under'):
            fit(ads)
    assert not (ads / "run" / "schema.safetensors").exists()


def test_an_unknown_optimizer_names_its_place(ads: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[train\] deep: got optimizer='adagard'; did you mean"):
        quietly(ads, "train.deep.optimizer='adagard'")
    # Told before the schema is fitted, which may take long.
    assert not (ads / "run" / "schema.safetensors").exists()


def test_every_option_of_the_configuration_reaches_the_trainer(ads: Path) -> None:
    overrides = [
        *("train.epochs=4", "train.batch_size=7", "train.shuffle=false", "train.seed=5"),
        *("train.grad_scale=0.5", "train.loss_reduction='sum'", "train.clip_norm=1.0"),
        *("train.schedule='cosine'", "train.warmup_steps=3", "train.patience=4", "train.threads=1"),
        *("train.monitor='auc'", "train.eval_every=9", "train.pool_rows=99"),
        *("train.stop_at.auc=0.99", "train.checkpoint_seconds=60"),
        "train.schedules.dense={ name = 'plateau', patience = 2 }",
        "train.dense={ optimizer = 'adam', lr = 0.01 }",
    ]
    wanted = config(ads, *overrides)
    schema = prepare_schema(wanted, RunDirectory(ads / "run"))
    found = make_trainer(schema, wanted, progress=False).config
    for name in wanted.train.__dataclass_fields__:
        if name in ("wide", "deep", "dense"):
            assert found.__getattribute__(name).items() >= getattr(wanted.train, name).items()
        else:
            assert getattr(found, name) == getattr(wanted.train, name), name


def test_a_run_of_the_command_line_ends_at_its_target(ads: Path) -> None:
    plateau = "train.schedules.dense={ name = 'plateau', patience = 1 }"
    options = ("train.epochs=50", "train.checkpoint_seconds=1e-6", plateau)
    short = quietly(ads, "train.stop_at.log_loss=10", "train.eval_seconds=1e-6", *options)
    assert short.steps == 1
    further = quietly(ads, "train.stop_at.auc=0.65", *options, resume=True)
    assert 1 < further.steps < 400, further.history
    assert further.metrics["valid"]["auc"] == further.history[-1]["valid/auc"] >= 0.65
    for name, override in (("stop_at", "train.stop_at.auc=0.9"), ("the schedule", plateau)):
        with pytest.raises(ConfigError, match=f"got {name}.* without validation data"):
            quietly(ads, "data.valid_fraction=0", override, name="other")
    assert not (ads / "other").exists(), "told before the schema is fitted"


def test_any_checkpoint_can_be_exported(ads_run: Path, tmp_path: Path) -> None:
    places = sorted((ads_run / "run" / "checkpoints").glob("step-*"))
    assert len(places) == 2
    kept = CheckpointDirectory(ads_run / "run" / "checkpoints").best()
    (other,) = [place for place in places if place != kept]
    first, used = export_checkpoint(other, tmp_path / "first")
    assert used == other
    last, used = export_checkpoint(ads_run / "run", tmp_path / "last")
    assert used == kept
    rows = pq.read_table(ads_run / "test.parquet")
    scores = wd.Bundle.load(ads_run / "run" / "bundle").score(rows)
    assert (last.score(rows) == scores).all()
    assert not (first.score(rows) == scores).all()


def test_a_bundle_is_not_replaced_unasked(ads_run: Path, tmp_path: Path) -> None:
    export_checkpoint(ads_run / "run", tmp_path / "b")
    with pytest.raises(BundleError, match=r"already exists; choose another, or .* --force"):
        export_checkpoint(ads_run / "run", tmp_path / "b")
    export_checkpoint(ads_run / "run", tmp_path / "b", overwrite=True)


def test_no_checkpoint_to_export(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got no checkpoint, expected a run's folder"):
        export_checkpoint(tmp_path, tmp_path / "b")


def test_a_head_given_as_an_object_is_exported_as_what_it_is(ads: Path) -> None:
    schema = wd.fit_schema(config(ads).spec, ads / "train.parquet")
    model = wd.WideDeep(schema, hidden_units=[4], head=Regression())
    trainer = wd.Trainer(model, checkpoints=ads / "c", progress=False)
    trainer.fit(ads / "train.parquet")
    bundle, _ = export_checkpoint(ads / "c", ads / "b")
    assert bundle.model.heads[0].kind == "regression"


def test_the_items_of_a_configuration_have_vectors_in_its_bundle(ads: Path) -> None:
    items = pa.table({"ad": [f"ad {n}" for n in range(6)]})
    pq.write_table(items, ads / "items.parquet")
    overrides = (
        'features.item=["ad"]',
        'features.crossed=[["job", "tags"]]',
        'model.deep=[{ name = "two_tower", item = "ad", hidden_units = [4], dim = 3 }]',
        f"data.items={ads / 'items.parquet'}",
    )
    quietly(ads, *overrides)
    bundle = wd.Bundle.load(ads / "run" / "bundle")
    assert bundle.items is not None
    assert list(bundle.items.rows) == items["ad"].to_pylist()
    assert (bundle.items.vectors_ND == bundle.item_vectors(items)).all()
    pq.write_table(items.slice(0, 2), ads / "fewer.parquet")
    fewer, _ = export_checkpoint(ads / "run", ads / "b", items=str(ads / "fewer.parquet"))
    assert fewer.items is not None
    assert list(fewer.items.rows) == ["ad 0", "ad 1"]
    # Said before training: a run that was there stays.
    pq.write_table(pa.table({"add": ["ad 1"]}), ads / "items.parquet")
    with pytest.raises(DataError, match="'ad'"):
        train_run(config(ads, *overrides), RunDirectory(ads / "run"), force=True, progress=False)
    plain = f"data.items={ads / 'fewer.parquet'}"
    with pytest.raises(BundleError, match="without two towers"):
        train_run(config(ads, plain), RunDirectory(ads / "run"), force=True, progress=False)
    assert wd.Bundle.load(ads / "run" / "bundle").items is not None
