"""The moments of a training, and the callbacks that act on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.callbacks.jobs import ROWS, make_trainer
from widedeep.callbacks import (
    Callback,
    CSVLog,
    LambdaCallback,
    MLflow,
    ModelCheckpoint,
    OptunaPruning,
    TensorBoard,
    WandB,
)
from widedeep.errors import ConfigError


class Told(Callback):
    def __init__(self) -> None:
        self.moments: list[Any] = []

    def on_begin(self, trainer: Any) -> None:
        self.moments.append(("begin", trainer.position.step))

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.moments.append(metrics["step"])

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        self.moments.append(("evaluate", metrics["step"]))

    def on_end(self, metrics: dict[str, Any]) -> None:
        self.moments.append("end")

    def on_fail(self, error: BaseException) -> None:
        self.moments.append(type(error).__name__)

    def on_export(self, bundle: wd.Bundle) -> None:
        self.moments.append(bundle.path.name)


def test_every_moment_is_told_in_its_order(tmp_path: Path) -> None:
    told = Told()
    trainer = make_trainer(tmp_path / "checkpoints", callbacks=[told])
    trainer.fit(ROWS, epochs=1, valid=ROWS)
    trainer.export(tmp_path / "bundle")
    assert told.moments == [("begin", 0), 1, 2, 3, 4, ("evaluate", 4), "end", "bundle"]
    resumed = Told()
    trainer = make_trainer(tmp_path / "checkpoints", callbacks=[resumed])
    trainer.fit(ROWS, epochs=2, valid=ROWS, resume=True)
    assert resumed.moments[:2] == [("begin", 4), 5]


def test_a_training_that_fails_is_told_to_all_and_raised() -> None:
    def fail(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    def fail_again(error: BaseException) -> None:
        raise OSError("away")

    told = Told()
    callbacks = [told, LambdaCallback(on_step=fail), LambdaCallback(on_fail=fail_again)]
    with pytest.raises(KeyboardInterrupt) as raised:
        make_trainer(callbacks=callbacks).fit(ROWS)
    assert told.moments[-1] == "KeyboardInterrupt"
    assert "away" in raised.value.__notes__[0]


def test_a_stream_counts_its_steps_and_tells_its_shards() -> None:
    told = Told()
    make_trainer(callbacks=[told]).fit_stream([("a", ROWS), ("b", ROWS)])
    assert told.moments == [
        *(("begin", 0), 1, 2, 3, 4, ("evaluate", 4), 5, 6, 7, 8, ("evaluate", 8), "end")
    ]


def test_stop_training_ends_each_training_anew() -> None:
    class Stop(Callback):
        def on_evaluate(self, metrics: dict[str, Any]) -> None:
            self.stop_training = metrics["step"] >= 8

    trainer = make_trainer(callbacks=[Stop()])
    for _ in range(2):
        trainer.fit(ROWS, epochs=5, valid=ROWS)
        assert trainer.position.step == 8


def test_steps_are_told_at_an_interval() -> None:
    steps: list[int] = []
    callback = LambdaCallback(on_step=lambda row: steps.append(row["step"]), step_interval=3)
    make_trainer(callbacks=[callback]).fit(ROWS, epochs=2)
    assert steps == [3, 6]


def test_a_model_checkpoint_is_the_best_bundle_and_one_for_each_step(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="log_loss")
    each = ModelCheckpoint(tmp_path / "step-{step}", best_only=False)
    trainer = make_trainer(callbacks=[best, each])
    history = trainer.fit(ROWS, epochs=3, valid=ROWS, early_stopping=False)
    losses = history.column("valid/log_loss")
    assert best.best == min(losses)
    assert wd.Bundle.load(tmp_path / "best").metrics["log_loss"] == min(losses)
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-4", "step-8", "step-12"}
    np.testing.assert_allclose(
        wd.Bundle.load(tmp_path / "step-12").score(ROWS), trainer.predict(ROWS), rtol=1e-6
    )


def test_optuna_prunes_a_training() -> None:
    optuna = pytest.importorskip("optuna")

    class AtTheSecond(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return len(trial.intermediate_values) == 2

    def objective(trial: Any) -> float:
        trainer = make_trainer(callbacks=[OptunaPruning(trial, "auc")])
        return float(trainer.fit(ROWS, epochs=5, valid=ROWS)[-1]["valid/auc"])

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=AtTheSecond())
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state.name == "PRUNED"
    assert list(trial.intermediate_values) == [4, 8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Callback(), "got none of the methods"),
        (lambda: LambdaCallback(), "got none of the methods"),
        (lambda: LambdaCallback(on_step=3), "got on_step=3, expected a method"),  # type: ignore[arg-type]
        (lambda: LambdaCallback(on_step=print, step_interval=0), "step_interval=0"),
        (lambda: TensorBoard(every=0), "every=0, expected"),
        (lambda: CSVLog(3), "got path = 3"),  # type: ignore[arg-type]
        (lambda: MLflow(tags=["a"]), "got tags"),  # type: ignore[arg-type]
        (lambda: ModelCheckpoint("bundles/{auc}"), "expected no braces but {step}"),
        (lambda: make_trainer(log=["tensorbord"]), "did you mean 'tensorboard'"),
        (lambda: make_trainer(log=[{"dir": "x"}]), "got kind = None"),
        (lambda: make_trainer(log=[{"kind": "csv", "pth": "x"}]), "'pth'; did you mean 'path'"),
        (lambda: make_trainer(log=[{"kind": "csv", "path": 3}]).fit(ROWS), "got path = 3"),
        (lambda: make_trainer(log="csv"), "got log = 'csv', expected a list"),
    ],
)
def test_a_wrong_option_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wd.Trainer(make_trainer().model, callbacks=[make()])


def test_a_mode_of_wandb_that_is_none_is_refused() -> None:
    pytest.importorskip("wandb")
    with pytest.raises(ConfigError, match="mode='away', expected one of"):
        WandB(mode="away")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda monitor: ModelCheckpoint("best", monitor=monitor),
        lambda monitor: OptunaPruning(None, monitor),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_monitor_is_told_before_the_first_step(make: Any) -> None:
    trainer = make_trainer(callbacks=[make("acu")])
    with pytest.raises(ConfigError, match=r"got monitor='acu', .* did you mean 'auc'"):
        trainer.fit(ROWS, valid=ROWS)
    trainer = make_trainer(callbacks=[make("label_mean")])
    with pytest.raises(ConfigError, match="got monitor='label_mean', which is no measure"):
        trainer.fit(ROWS, valid=ROWS)
    for fit in (lambda: trainer.fit(ROWS), lambda: trainer.fit_stream([("a", ROWS)])):
        with pytest.raises(ConfigError, match="got no validation data to look at"):
            fit()
    assert trainer.position.updates == 0


@pytest.mark.parametrize("package", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_names_its_extra_before_training(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    trainer = make_trainer(log=[package])  # a run's checkpoint is read without it
    with pytest.raises(ConfigError, match=rf"pip install 'widedeep\[{package}\]'"):
        trainer.fit("no/such/file.parquet")
