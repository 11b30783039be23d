"""What is left open is chosen by rows, passes and quality, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.ads import TOML, ads_table
from tests.command_line import Run
from widedeep.config import load_config
from widedeep.errors import ConfigError
from widedeep.training.config import RunConfig, TrainConfig
from widedeep.training.defaults import (
    BEST_MEMBERS,
    at_quality,
    auto_epochs,
    embeddings_optimizer,
)

SPEC = wd.FeatureSpec(label="y", features=wd.categorical("job"))
NOISY = wd.FeatureSpec(label="y", features=wd.categorical(*(f"c{i}" for i in range(16))))


def noisy_rows(count: int, seed: int = 0) -> pa.Table:
    """Sixteen columns of twenty values, of which one tells the label."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 20, (count, 16))
    y = rng.random(count) < np.where(codes[:, 0] < 5, 0.5, 0.2)
    columns = {f"c{i}": [f"v{code}" for code in column] for i, column in enumerate(codes.T)}
    return pa.table({**columns, "y": y.astype(np.int8)})


def run_config(quality: str, **model: Any) -> RunConfig:
    from widedeep.models.config import ModelConfig

    train = TrainConfig(quality=quality)  # type: ignore[arg-type]
    return RunConfig(spec=SPEC, model=ModelConfig(**model), train=train)


def test_best_makes_an_ensemble_of_the_standard_tower() -> None:
    model = at_quality(run_config("best", hidden_units=(8, 4), dropout=0.1)).model
    assert model.hidden_units == ()
    (table,) = model.deep
    assert (table["name"], table["members"]) == ("ensemble", BEST_MEMBERS)
    assert table["of"]["hidden_units"] == [8, 4] and table["of"]["dropout"] == 0.1


def test_best_makes_an_ensemble_of_each_tower_that_is_none() -> None:
    config = at_quality(run_config("best", deep=["dcn_v2", {"name": "tabm", "members": 4}]))
    assert [table["name"] for table in config.model.deep] == ["ensemble", "tabm"]
    assert config.model.deep[0]["of"]["name"] == "dcn_v2"
    assert at_quality(config) == config  # once is enough


@pytest.mark.parametrize("quality", ["fast", "good"])
def test_other_qualities_leave_the_model_alone(quality: str) -> None:
    config = run_config(quality)
    assert at_quality(config) is config


def test_a_wide_model_has_no_members() -> None:
    assert at_quality(run_config("best", hidden_units=())).model.deep == ()
    wide = RunConfig(spec=SPEC.replace(wide=["job"], deep=[]), train=TrainConfig(quality="best"))
    assert at_quality(wide) is wide


def test_best_leaves_two_towers_alone() -> None:
    two = {"name": "two_tower", "item": "job"}
    towers = at_quality(run_config("best", deep=["mlp", two])).model.deep
    assert towers[0]["name"] == "ensemble" and towers[1]["name"] == "two_tower"


def test_fast_takes_a_quarter_of_the_steps() -> None:
    def steps(quality: Any) -> int:
        return auto_epochs(25_600, 256, early_stopping=True, quality=quality) * 100

    assert (steps("fast"), steps("good"), steps("best")) == (1000, 4000, 4000)


@pytest.mark.parametrize(
    ("epochs", "batch_size", "l2"),
    [(1, 16, 0.025), (1, 512, 0.025), (2, 512, 0.3), (9, 256, 0.3), (9, 64, 0.075), (9, 16, 0.025)],
)
def test_embeddings_decay_where_rows_come_again(epochs: int, batch_size: int, l2: float) -> None:
    assert embeddings_optimizer(epochs, batch_size).l2 == pytest.approx(l2)
    rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(1024)]
    model = wd.WideDeep(wd.fit_schema(SPEC, rows), hidden_units=[2], embedding_dim=2)
    trainer = wd.Trainer(model, batch_size=batch_size, threads=1, progress=False)
    trainer.fit(rows, epochs=epochs)
    assert trainer.config.deep is not None and trainer.step.deep.l2 == pytest.approx(l2)
    assert trainer.config.deep["l2"] == pytest.approx(l2)


def test_the_embeddings_optimizer_that_is_given_stays() -> None:
    rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
    model = wd.WideDeep(wd.fit_schema(SPEC, rows), hidden_units=[2], embedding_dim=2)
    trainer = wd.Trainer(model, deep=wd.Adagrad(l2=0.01), threads=1, progress=False)
    trainer.fit(rows, epochs=3)
    assert trainer.step.deep == wd.Adagrad(l2=0.01)


def test_train_quality_best_goes_the_whole_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(ads_table(240, 1), "train.parquet", row_group_size=80)
    pq.write_table(ads_table(120, 2), "test.parquet")
    Path("run.toml").write_text(TOML)
    assert run("train", "run.toml", "--quality", "best", "--out", "whole").code == 0
    bundle = wd.Bundle.load("whole/bundle")
    assert bundle.manifest.engine == "graph"
    assert load_config("whole/config.toml").train.quality == "best"
    assert "tower ensemble" in run("inspect", "whole/bundle").out
    # Parted and resumed it is the same model; a run's own quality holds where it is resumed.
    options = ("--quality", "best", "--out", "parts")
    assert run("train", "run.toml", *options, "--set", "train.epochs=1").code == 0
    assert run("train", "run.toml", *options, "--resume").code == 0
    rows = ads_table(20, 3).to_pylist()
    assert wd.Bundle.load("parts/bundle").score(rows).tolist() == bundle.score(rows).tolist()
    exported = run("export", "whole", "-o", "again", "--json")
    assert exported.code == 0, exported.err
    assert wd.Bundle.load("again").score(rows).tolist() == bundle.score(rows).tolist()
    assert json.loads(exported.out)


def test_an_unknown_quality_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TOML)
    refused = run("train", tmp_path / "run.toml", "--quality", "perfect")
    assert refused.code == 2 and "best" in refused.err
    refused = run("train", tmp_path / "run.toml", "--set", "train.quality=perfect")
    assert refused.code == 2 and "expected 'fast' or 'good' or 'best'" in refused.err


@pytest.mark.slow
def test_an_estimator_at_its_best_is_an_ensemble() -> None:
    pd, estimators = pytest.importorskip("pandas"), pytest.importorskip("widedeep.estimators")
    X = pd.DataFrame({"job": ["a", "b", "a", "c"] * 32, "age": range(128)})
    y = [int(job == "b") for job in X["job"]]
    options = {"hidden_units": (4,), "embedding_dim": 2, "threads": 1}
    best = estimators.WideDeepClassifier(quality="best", **options).fit(X, y)
    assert list(best.model_.towers) == ["ensemble"] and best.candidates_
    assert best.score(X, y) == 1.0
    fast = estimators.WideDeepClassifier(quality="fast", **options).fit(X, y)
    assert list(fast.model_.towers) == ["mlp"] and not fast.candidates_
    with pytest.raises(ConfigError, match="quality='perfect', expected 'fast', 'good' or 'best'"):
        estimators.WideDeepClassifier(quality="perfect").fit(X, y)


@pytest.mark.parametrize(
    ("name", "rate"), [("fm", 0.02), ("deep_fm", 0.02), ("ifm", 0.02), ("ffm", 0.05)]
)
def test_towers_of_products_learn_their_embeddings_slowly(name: str, rate: float) -> None:
    schema = wd.fit_schema(NOISY, noisy_rows(64))
    for deep in (name, [name, "lr"], {"name": "ensemble", "of": name}):
        trainer = wd.Trainer(wd.WideDeep(schema, deep=deep), progress=False)
        assert trainer.config.deep is not None and trainer.config.deep["lr"] == rate
    trainer.fit(noisy_rows(64), epochs=2)
    assert isinstance(trainer.step.deep, wd.Adagrad) and trainer.step.deep.lr == rate
    assert wd.Trainer(wd.WideDeep(schema), progress=False).step.deep == embeddings_optimizer()


@pytest.mark.parametrize("name", ["fm", "deep_fm", "ifm", "ffm"])
def test_products_of_many_fields_do_not_run_away(name: str) -> None:
    rows, test = noisy_rows(6000), noisy_rows(2000, seed=1)
    schema = wd.fit_schema(NOISY, rows)
    losses = []
    for deep in ((), name):
        model = wd.WideDeep(schema, deep=deep, hidden_units=(), embedding_dim=8)
        trainer = wd.Trainer(model, batch_size=256, threads=1, progress=False)
        trainer.fit(rows)
        losses.append(trainer.evaluate(test)["log_loss"])
    alone, both = losses
    assert both < alone + 0.01  # 0.08 to 0.2 more at the rate of other towers
