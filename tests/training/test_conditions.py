"""When a run evaluates, saves and ends: at a metric's value, by the clock, by a callback."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import widedeep as wd
from tests.training.test_trainer import (
    assert_same_bits,
    make_spec,
    make_table,
    make_trainer,
    state_of,
)
from widedeep.errors import ConfigError
from widedeep.training.config import TrainConfig
from widedeep.training.early_stopping import reached


@pytest.fixture(scope="module")
def schema() -> wd.Schema:
    return wd.fit_schema(make_spec(), make_table())


@pytest.fixture(scope="module")
def valid() -> pa.Table:
    return make_table(rows=200, seed=1)


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def best_step(folder: Path) -> int:
    step: int = json.loads((folder / "best.json").read_text())["step"]
    return step


@pytest.mark.parametrize("early_stopping", [False, 2])
def test_a_run_ends_at_the_value_of_a_metric(
    schema: wd.Schema, valid: pa.Table, tmp_path: Path, early_stopping: Any
) -> None:
    """The model that has reached it is the one that is kept, also where another had less loss."""

    def fit(stop_at: dict[str, float], folder: str, *, resume: bool = False) -> wd.Trainer:
        trainer = make_trainer(schema, stop_at=stop_at, checkpoints=tmp_path / folder)
        options = {"epochs": 6, "eval_every": 3, "early_stopping": early_stopping}
        trainer.fit(make_table(), valid=valid, resume=resume, **options)  # type: ignore[arg-type]
        return trainer

    whole = fit({}, "whole")
    aucs = whole.history.column("valid/auc")
    target = max(aucs[:6])
    first = aucs.index(target)
    trainer = fit({"auc": target}, "run")
    assert trainer.history.column("valid/auc") == aucs[: first + 1]
    assert trainer.position.step == trainer.history[-1]["step"]
    assert trainer.evaluate(valid)["auc"] == target == trainer.valid_metrics["auc"]
    assert best_step(tmp_path / "run") == max(saved_steps(tmp_path / "run"))
    again = fit({"auc": target}, "run", resume=True)
    assert again.position == trainer.position, "a run that has reached it is done"
    assert_same_bits(state_of(again), state_of(trainer))
    if early_stopping is False:
        further = fit({}, "run", resume=True)
        assert_same_bits(state_of(further), state_of(whole))


def test_all_targets_count_each_in_its_direction() -> None:
    assert reached({"auc": 0.9, "log_loss": 0.3}, {"auc": 0.9, "log_loss": 0.29})
    assert not reached({"auc": 0.9, "log_loss": 0.3}, {"auc": 0.95, "log_loss": 0.31})
    assert reached({"calibration": 0.9}, {"calibration": 1.05})
    assert not reached({"calibration": 0.9}, {"calibration": 1.2})
    assert not reached({"auc": 0.5}, {"auc": float("nan")})
    assert not reached({}, {"auc": 1.0})


def test_a_second_fit_learns_although_the_first_reached_its_target(
    schema: wd.Schema, valid: pa.Table
) -> None:
    trainer = make_trainer(schema, stop_at={"auc": 0.1})
    for fits in (1, 2):
        trainer.fit(make_table(), epochs=3, valid=valid)
        assert trainer.position.step == 10
        assert trainer.position.updates == 10 * fits
    rows = trainer.fit_stream([("a", make_table()), ("b", make_table())])
    assert rows[-1]["step"] == 10 + 20, "targets are those of a fit"


class StopAt:
    def __init__(self, step: int, moment: str = "step") -> None:
        setattr(self, f"on_{moment}", lambda figures: figures["step"] >= step)


def test_a_callback_ends_the_run_and_a_resumed_one_goes_on(
    schema: wd.Schema, valid: pa.Table, tmp_path: Path
) -> None:
    def fit(*, resume: bool = False, **options: Any) -> wd.Trainer:
        trainer = make_trainer(schema, **options)
        trainer.fit(make_table(), epochs=2, valid=valid, early_stopping=False, resume=resume)
        return trainer

    whole = fit()
    for moment, end in (("step", 7), ("evaluate", 10)):
        folder = tmp_path / moment
        stopped = fit(checkpoints=folder, callbacks=[StopAt(7, moment)])
        assert stopped.position.step == end
        assert stopped.history[-1]["step"] == end, "the last model is evaluated"
        assert saved_steps(folder)[-1] == end
        assert_same_bits(state_of(fit(checkpoints=folder, resume=True)), state_of(whole))


def test_a_callback_that_stops_gets_the_best_model_and_no_tail(
    schema: wd.Schema, valid: pa.Table
) -> None:
    """On rows of chance, most learning rates make the validation worse from the first epoch on."""
    trainer = make_trainer(
        schema, deep=wd.SGD(lr=1.0), schedule="wsd", callbacks=[StopAt(35, "evaluate")]
    )
    history = trainer.fit(make_table(rows=300), epochs=40, valid=valid, early_stopping=5)
    losses = history.column("valid/log_loss")
    assert losses[-1] > min(losses)
    assert trainer.position.tail_steps == 0
    assert trainer.evaluate(valid)["log_loss"] == min(losses)


def test_a_callback_ends_a_stream_after_its_shard(schema: wd.Schema) -> None:
    trainer = make_trainer(schema, callbacks=[StopAt(2)])
    history = trainer.fit_stream((f"shard {i}", make_table(rows=300, seed=i)) for i in range(3))
    assert history.column("shard") == ["shard 0"]
    assert trainer.position.rows == 300


class Clock:
    """Goes on by a second a step, and by nothing else."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def on_step(self, figures: dict[str, Any]) -> None:
        self.seconds += 1


def test_evaluations_by_the_clock(
    schema: wd.Schema, valid: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(seconds: float) -> list[int]:
        monkeypatch.setattr(time, "perf_counter", clock := Clock())
        trainer = make_trainer(schema, eval_seconds=seconds, callbacks=[clock])
        history = trainer.fit(make_table(), epochs=2, valid=valid, early_stopping=False)
        assert trainer.config.eval_seconds == seconds
        column: list[int] = history.column("step")
        return column

    assert steps(1e-9) == list(range(1, 21))
    assert steps(1e6) == [20], "not even the end of an epoch"
    assert steps(6) == [6, 12, 18, 20]


def test_a_fit_that_says_its_steps_evaluates_by_them(schema: wd.Schema, valid: pa.Table) -> None:
    trainer = make_trainer(schema, eval_seconds=1e6)
    history = trainer.fit(make_table(), valid=valid, eval_every=4, early_stopping=False)
    assert history.column("step") == [4, 8, 10]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"checkpoint_seconds": 1e-9}, list(range(1, 11))),
        ({"checkpoint_seconds": 1e6}, [10]),
        ({"checkpoint_every": 4}, [4, 8, 10]),
        ({}, [10]),
    ],
)
def test_checkpoints_by_the_clock_or_by_steps(
    schema: wd.Schema, tmp_path: Path, options: dict[str, Any], steps: list[int]
) -> None:
    trainer = make_trainer(schema, checkpoints=tmp_path, keep_last=20, **options)
    trainer.fit(make_table())
    assert saved_steps(tmp_path) == steps


def test_a_plateau_that_early_stopping_leaves_no_time_is_told(
    schema: wd.Schema, valid: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = {"name": "plateau", "patience": 2}
    trainer = make_trainer(schema, schedules={"dense": schedule}, patience=2, progress=True)
    trainer.fit(make_table(rows=64), epochs=2, valid=valid)
    assert (
        "plateau of dense waits for 2 evaluations, early stopping for 2" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_at": {"auc": "high"}}, r"got stop_at = .*, expected a table"),
        ({"eval_seconds": 0}, r"got eval_seconds=0, expected a number > 0"),
        ({"checkpoint_seconds": -1.0}, r"got checkpoint_seconds=-1.0, expected a number > 0"),
        (
            {"eval_seconds": 60.0, "eval_every": 5},
            r"got eval_every = 5 and eval_seconds = 60; drop one",
        ),
        ({"checkpoint_seconds": 9.5, "checkpoint_every": 5}, r"checkpoint_every = 5 and .*9.5"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_targets_that_cannot_be_reached_are_refused(schema: wd.Schema, valid: pa.Table) -> None:
    with pytest.raises(ConfigError, match="got stop_at without validation data to look at"):
        make_trainer(schema, stop_at={"auc": 0.9}).fit(make_table(), early_stopping=False)
    for metric, why in (("acu", "was not evaluated; did you mean 'auc'"), ("rows", "is no meas")):
        with pytest.raises(
            ConfigError, match=f"got stop_at with the metric '{metric}', which {why}"
        ):
            make_trainer(schema, stop_at={metric: 0.9}).fit(make_table(), valid=valid)
