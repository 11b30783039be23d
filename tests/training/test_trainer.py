import contextlib
import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.errors import CheckpointError, ConfigError, DataError, WideDeepError
from widedeep.models.heads import Binary, Regression
from widedeep.optim import RMSProp, describe_optimizer
from widedeep.training.checkpoint import as_arrays
from widedeep.training.config import TrainConfig
from widedeep.training.early_stopping import EarlyStopping

ROWS = 600


def make_table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    job, city, age = rng.integers(0, 8, rows), rng.integers(0, 30, rows), rng.normal(size=rows)
    chance = 1 / (1 + np.exp(-(0.8 * (job - 4) + 0.5 * age + (city % 3 - 1))))
    return pa.table(
        {
            "job": [f"job {value}" for value in job],
            "city": [f"city {value}" if value else None for value in city],
            "age": age,
            "user": rng.integers(0, 40, rows),
            "y": (rng.random(rows) < chance).astype(np.int8),
        }
    )


def make_spec(**options: Any) -> wd.FeatureSpec:
    return wd.FeatureSpec(
        label="y",
        features=[wd.numeric("age"), wd.categorical("job", "city"), wd.crossed("job", "city")],
        **options,
    )


@pytest.fixture(scope="module")
def schema() -> wd.Schema:
    return wd.fit_schema(make_spec(), make_table())


def make_trainer(schema: wd.Schema, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(schema, hidden_units=[16, 8], embedding_dim=4)
    settings: dict[str, Any]
    settings = {"batch_size": 64, "pool_rows": 150, "threads": 1, "progress": False}
    settings |= {"schedule": "constant"}  # a run of fewer steps is the beginning of a longer one
    return wd.Trainer(model, **{**settings, **options})


def state_of(trainer: wd.Trainer) -> dict[str, np.ndarray]:
    return {
        name: value.copy() for name, value in as_arrays(trainer.state.checkpoint().tensors).items()
    }


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


def test_learns_and_reports(schema: wd.Schema) -> None:
    trainer = make_trainer(schema)
    valid = make_table(seed=1)
    history = trainer.fit(make_table(), epochs=8, valid=valid, early_stopping=False)
    assert len(history) == 8
    assert history[-1]["loss"] < history[0]["loss"]
    metrics = trainer.evaluate(make_table(seed=1))
    assert metrics["auc"] > 0.75
    assert metrics["auc"] == history[-1]["valid/auc"]
    assert metrics["rows"] == ROWS
    assert "valid/auc" in repr(history)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_and_threads_give_the_same_bits(schema: wd.Schema, threads: int) -> None:
    states = []
    for _ in range(2):
        trainer = make_trainer(schema, threads=threads)
        trainer.fit(make_table(), epochs=2)
        states.append(state_of(trainer))
    assert_same_bits(*states)


def test_another_seed_reads_in_another_order(schema: wd.Schema) -> None:
    one, two = make_trainer(schema, seed=1), make_trainer(schema, seed=2)
    one.fit(make_table())
    two.fit(make_table())
    assert not np.array_equal(one.logits(make_table()), two.logits(make_table()))


def test_resume_at_every_batch_equals_the_uninterrupted_run(
    schema: wd.Schema, tmp_path: Path
) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(make_table(), path, row_group_size=100)
    whole = make_trainer(schema)
    whole.fit(path, epochs=2)
    wanted = state_of(whole)
    assert whole.position.step == 20
    for stop in range(1, 20):
        first = make_trainer(schema, checkpoints=tmp_path / f"run{stop}")
        first.fit(path, epochs=2, steps=stop)
        second = make_trainer(schema, checkpoints=tmp_path / f"run{stop}")
        second.fit(path, epochs=2, resume=True)
        assert second.position.step == 20
        assert_same_bits(state_of(second), wanted)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd momentum"])
def test_resume_with_a_torch_optimizer(schema: wd.Schema, tmp_path: Path, optimizer: str) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        if optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=1e-2)
        return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)

    whole = make_trainer(schema, dense=make)
    whole.fit(make_table(), epochs=2)
    make_trainer(schema, dense=make, checkpoints=tmp_path).fit(make_table(), epochs=2, steps=7)
    again = make_trainer(schema, dense=make, checkpoints=tmp_path)
    again.fit(make_table(), epochs=2, resume=True)
    assert_same_bits(state_of(again), state_of(whole))


def test_resume_with_dropout_and_batch_norm(schema: wd.Schema, tmp_path: Path) -> None:
    def make(**options: Any) -> wd.Trainer:
        model = wd.WideDeep(
            schema,
            hidden_units=[16, 8],
            embedding_dim=4,
            dropout=0.2,
            batch_norm=True,
            activation="tanh",
        )
        options |= {"batch_size": 64, "schedule": "constant"}
        return wd.Trainer(model, progress=False, threads=1, **options)

    whole = make()
    whole.fit(make_table(), epochs=2)
    make(checkpoints=tmp_path).fit(make_table(), epochs=2, steps=6)
    again = make(checkpoints=tmp_path)
    again.fit(make_table(), epochs=2, resume=True)
    assert_same_bits(state_of(again), state_of(whole))


def test_resume_refuses_changed_inputs(schema: wd.Schema, tmp_path: Path) -> None:
    make_trainer(schema, checkpoints=tmp_path).fit(make_table(), steps=3)
    with pytest.raises(DataError, match="in the interrupted run"):
        make_trainer(schema, checkpoints=tmp_path).fit(make_table(rows=ROWS - 1), resume=True)


def change_state(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads((checkpoint / "state.json").read_text())
    change(stored["state"])
    (checkpoint / "state.json").write_text(json.dumps(stored))


def test_resume_refuses_a_position_in_another_order(schema: wd.Schema, tmp_path: Path) -> None:
    trainer = make_trainer(schema, checkpoints=tmp_path, checkpoint_every=1)
    trainer.fit(make_table(), steps=2)
    for option, value in (("batch_size", 32), ("seed", 5), ("shuffle", False), ("pool_rows", 9)):
        other = make_trainer(schema, checkpoints=tmp_path, **{option: value})
        with pytest.raises(CheckpointError, match=rf"step 2 lies within an epoch with {option} ="):
            other.fit(make_table(), resume=True)
    change_state(tmp_path / "step-0000000002", lambda state: state.pop("order"))
    with pytest.raises(CheckpointError, match=r"a release of widedeep that read rows in another"):
        make_trainer(schema, checkpoints=tmp_path).fit(make_table(), resume=True)


def test_an_epoch_may_begin_in_another_order(schema: wd.Schema, tmp_path: Path) -> None:
    make_trainer(schema, checkpoints=tmp_path).fit(make_table(), epochs=1)
    (latest,) = tmp_path.glob("step-*")
    change_state(latest, lambda state: state.pop("order"))
    again = make_trainer(schema, checkpoints=tmp_path, pool_rows=9)
    again.fit(make_table(), epochs=2, resume=True)
    assert again.position.epoch == 2


def test_row_groups_too_large_to_mix_are_told(
    schema: wd.Schema,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(make_table(), tmp_path / "t.parquet", row_group_size=ROWS // 8)
    for pool_rows, told in ((ROWS // 8, True), (ROWS, False)):
        trainer = make_trainer(schema, pool_rows=pool_rows, progress=True)
        trainer.fit(tmp_path / "t.parquet", epochs=1)
        assert ("mixed over 6 of 8 at a time" in capsys.readouterr().err) == told
        assert trainer.position.rows == ROWS


def test_resume_refuses_another_schema(schema: wd.Schema, tmp_path: Path) -> None:
    make_trainer(schema, checkpoints=tmp_path).fit(make_table(), steps=3)
    other = wd.fit_schema(make_spec(), make_table(seed=3))
    with pytest.raises(CheckpointError, match="a checkpoint of another schema"):
        make_trainer(other, checkpoints=tmp_path).fit(make_table(), resume=True)
    with pytest.raises(CheckpointError, match="without checkpoints"):
        make_trainer(schema).fit(make_table(), resume=True)


def test_early_stopping_goes_back_to_the_best_model(schema: wd.Schema) -> None:
    table, valid = make_table(rows=150), make_table(rows=300, seed=5)
    trainer = make_trainer(schema, wide=wd.FTRL(lr=1.0), batch_size=16)
    stopping = EarlyStopping("log_loss", patience=3)
    history = trainer.fit(table, epochs=60, valid=valid, early_stopping=stopping)
    assert len(history) < 60
    losses = history.column("valid/log_loss")
    assert trainer.evaluate(valid)["log_loss"] == min(losses) == stopping.best
    assert losses[-1] > min(losses)


def test_the_best_model_is_restored_after_a_resume(schema: wd.Schema, tmp_path: Path) -> None:
    table, valid = make_table(rows=150), make_table(rows=300, seed=5)
    options: dict[str, Any] = {"wide": wd.FTRL(lr=1.0), "batch_size": 16}
    whole = make_trainer(schema, **options)
    whole.fit(table, epochs=40, valid=valid, early_stopping=3)
    best = EarlyStopping(patience=3)
    first = make_trainer(schema, checkpoints=tmp_path, **options)
    first.fit(table, epochs=2, valid=valid, early_stopping=best)
    again = make_trainer(schema, checkpoints=tmp_path, **options)
    again.fit(table, epochs=40, valid=valid, early_stopping=3, resume=True)
    assert again.evaluate(valid) == whole.evaluate(valid)


def test_fit_goes_back_to_the_best_model_by_itself(schema: wd.Schema) -> None:
    table, valid = make_table(rows=150), make_table(rows=300, seed=5)
    trainer = make_trainer(schema, wide=wd.FTRL(lr=1.0), batch_size=16)
    history = trainer.fit(table, epochs=60, valid=valid)
    losses = history.column("valid/log_loss")
    assert len(history) < 60
    assert trainer.evaluate(valid)["log_loss"] == min(losses) < losses[-1]
    assert (trainer.config.early_stopping, trainer.config.patience) == (True, 2)
    assert trainer.config.monitor == "log_loss"
    (warning,) = history.warnings
    assert "rose from" in warning and warning.endswith("the best model is kept")


def test_fit_trains_to_the_end_where_it_is_told_to_and_warns(schema: wd.Schema) -> None:
    table, valid = make_table(rows=150), make_table(rows=300, seed=5)
    trainer = make_trainer(schema, wide=wd.FTRL(lr=1.0), batch_size=16)
    history = trainer.fit(table, epochs=12, valid=valid, early_stopping=False)
    assert len(history) == 12
    assert trainer.evaluate(valid)["log_loss"] == history[-1]["valid/log_loss"]
    (warning,) = history.warnings
    assert warning.endswith("or leave early_stopping on, which keeps the best model")
    assert f"warning: {warning}" in repr(history)


def test_one_evaluation_stops_nothing(schema: wd.Schema) -> None:
    trainer = make_trainer(schema)
    trainer.fit(make_table(), valid=make_table(seed=1))
    assert trainer.config.early_stopping is False
    trainer.fit(make_table(), valid=make_table(seed=1), eval_every=9)
    assert trainer.config.early_stopping is True


def test_several_heads_are_stopped_by_the_sum_of_their_losses() -> None:
    table = make_table()
    table = table.append_column("spent", pa.array(np.arange(ROWS) % 3, pa.float64()))
    spec = make_spec().replace(label={"click": "y", "spent": "spent"})
    heads = {
        "click": Binary(name="click"),
        "spent": Regression(name="spent", loss_weight=0.5),
    }
    model = wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[4], head=heads)
    trainer = wd.Trainer(model, batch_size=64, progress=False)
    trainer.fit(table, epochs=2, valid=table)
    assert trainer.config.monitor == "loss"
    metrics = trainer.evaluate(table)
    total = metrics["click/log_loss"] + 0.5 * metrics["spent/mse"]
    assert metrics["loss"] == pytest.approx(total, rel=1e-12)


def test_numbers_stand_where_auto_was_and_stay_in_a_resumed_run(
    schema: wd.Schema, tmp_path: Path
) -> None:
    valid = make_table(seed=1)
    trainer = make_trainer(schema, batch_size="auto", checkpoints=tmp_path)
    assert trainer.config.batch_size == "auto"
    trainer.fit(make_table(), epochs="auto", steps=3, valid=valid)
    assert (trainer.config.batch_size, trainer.config.epochs) == (16, 100)
    # As a version with other rules would have resolved it.
    (checkpoint,) = tmp_path.glob("step-*")
    state = json.loads((checkpoint / "state.json").read_text())
    state["state"]["config"]["train"] |= {"batch_size": 32, "epochs": 2}
    (checkpoint / "state.json").write_text(json.dumps(state))
    again = make_trainer(schema, batch_size="auto", checkpoints=tmp_path)
    again.fit(make_table(), epochs="auto", valid=valid, resume=True)
    assert (again.config.batch_size, again.config.epochs) == (32, 2)


def test_auto_is_said(schema: wd.Schema, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(schema, batch_size="auto", progress=True)
    trainer.fit(make_table(), epochs="auto", steps=1)
    said = capsys.readouterr().err
    assert "auto: batches of 16 rows and 20 epochs for 600 rows\n" in said


class InterruptAt:
    """Presses Ctrl-C in a step, as a user would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, figures: dict[str, Any]) -> None:
        if figures["step"] == self.step:
            signal.raise_signal(signal.SIGINT)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-2)


@pytest.mark.parametrize("dense", [None, adamw])
def test_rates_decay_from_the_best_model_and_resume_at_every_step(
    schema: wd.Schema, tmp_path: Path, dense: Any
) -> None:
    table, valid = make_table(rows=300), make_table(rows=300, seed=5)
    options: dict[str, Any] = {"batch_size": 32, "schedule": "wsd", "dense": dense}

    def train(**more: Any) -> wd.Trainer:
        trainer = make_trainer(schema, deep=wd.SGD(lr=1.0), **options, **more)
        resume = "callbacks" not in more and "checkpoints" in more
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit(table, epochs=20, valid=valid, early_stopping=1, resume=resume)
        return trainer

    whole = train()
    steps, losses = whole.history.column("step"), whole.history.column("valid/log_loss")
    stopped = next(i for i in range(1, len(losses)) if losses[i] > min(losses[:i]))
    best, tail = steps[stopped - 1], steps[-1] - steps[stopped]
    assert tail == round(best / 4)
    assert whole.position.tail_steps == tail and whole.position.tail_start == steps[stopped]
    assert whole.evaluate(valid)["log_loss"] == min(losses)
    if dense is None:
        assert losses[-1] == min(losses), "the decayed model is better here"
    kept = state_of(whole)
    for stop in range(1, steps[-1], 1 if dense is None else 4):
        folder = tmp_path / f"run{stop}"
        assert train(checkpoints=folder, callbacks=[InterruptAt(stop)]).position.step == stop
        again = train(checkpoints=folder)
        assert again.position == whole.position
        assert_same_bits(state_of(again), kept)


def test_a_run_that_stopped_early_says_how_it_goes_on(
    schema: wd.Schema, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, valid = make_table(rows=300), make_table(rows=300, seed=5)

    def train(epochs: int, early_stopping: Any) -> wd.Trainer:
        trainer = make_trainer(
            schema,
            deep=wd.SGD(lr=1.0),
            batch_size=32,
            schedule="wsd",
            checkpoints=tmp_path,
            progress=True,
        )
        capsys.readouterr()
        trainer.fit(table, epochs=epochs, valid=valid, early_stopping=early_stopping, resume=True)
        return trainer

    stopped = train(20, 1)
    assert stopped.position.tail_steps > 0
    ended = stopped.position.step
    again = train(20, 1)
    assert again.position.step == ended
    assert f"nothing is left to learn after {ended} steps" in capsys.readouterr().err
    assert train(30, False).position.step == 30 * 10
    assert train(30, False).position.step == 30 * 10
    assert "all epochs were; give more of them" in capsys.readouterr().err
    assert train(31, False).position.step == 31 * 10


def test_a_tail_that_makes_nothing_better_is_thrown_away(schema: wd.Schema) -> None:
    table, valid = make_table(rows=150), make_table(rows=300, seed=5)
    best = make_trainer(schema, wide=wd.FTRL(lr=5.0), batch_size=16)
    best.fit(table, epochs=60, valid=valid, early_stopping=1)
    with_tail = make_trainer(schema, wide=wd.FTRL(lr=5.0), batch_size=16, schedule="wsd")
    history = with_tail.fit(
        table, epochs=60, valid=valid, early_stopping=wd.EarlyStopping(patience=1, min_delta=1.0)
    )
    assert with_tail.position.tail_steps == round(10 / 4)
    assert with_tail.evaluate(valid)["log_loss"] == history[0]["valid/log_loss"]


def test_a_run_that_decayed_to_its_end_has_no_tail(schema: wd.Schema) -> None:
    trainer = make_trainer(schema, schedule="wsd", decay_fraction=0.5)
    history = trainer.fit(make_table(), epochs=2, valid=make_table(seed=1))
    assert history.column("step") == [10, 20]
    assert trainer.position.tail_steps == 0


def test_a_checkpoint_keeps_its_optimizers_where_none_are_given(
    schema: wd.Schema, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = wd.Adagrad()  # of both parts, before embeddings had an optimizer of their own
    whole = make_trainer(schema, deep=old)
    whole.fit(make_table(), epochs=2)
    make_trainer(schema, deep=old, checkpoints=tmp_path).fit(make_table(), epochs=2, steps=7)
    (checkpoint,) = tmp_path.glob("step-*")
    state = json.loads((checkpoint / "state.json").read_text())
    for part in ("deep", "dense"):
        del state["state"]["config"]["train"][part]["l2"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    again = make_trainer(schema, checkpoints=tmp_path, progress=True)
    assert again.step.deep != old
    again.fit(make_table(), epochs=2, resume=True)
    assert again.step.deep == again.step.dense.optimizer == old
    assert again.config.deep == whole.config.deep
    assert "optimizers of the checkpoint: deep: Adagrad(lr=0.02" in capsys.readouterr().err
    assert_same_bits(state_of(again), state_of(whole))
    own = make_trainer(schema, checkpoints=tmp_path, deep=wd.Adagrad(lr=0.5))
    own.fit(make_table(), epochs=2, resume=True)
    assert own.step.deep == wd.Adagrad(lr=0.5)


def test_embeddings_have_an_optimizer_of_their_own(schema: wd.Schema) -> None:
    trainer = make_trainer(schema)
    assert trainer.step.deep == wd.Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025)
    assert trainer.step.dense.optimizer == wd.Adagrad(lr=0.02, initial_accumulator=1e-6)
    both = make_trainer(schema, deep=wd.SGD(lr=0.5))
    assert both.step.deep == both.step.dense.optimizer == wd.SGD(lr=0.5)
    dense = make_trainer(schema, dense=wd.Adam())
    assert (dense.step.deep, dense.step.dense.optimizer) == (trainer.step.deep, wd.Adam())


def test_optimizers_may_be_names_and_tables(schema: wd.Schema) -> None:
    rmsprop = {"optimizer": "rmsprop", "lr": 0.01}
    trainer = make_trainer(schema, wide={"lr": 0.5}, deep=rmsprop, dense="adam")
    assert trainer.step.wide == wd.FTRL(lr=0.5)
    assert trainer.step.deep == RMSProp(lr=0.01)
    assert trainer.step.dense.optimizer == wd.Adam()
    assert trainer.config.deep == describe_optimizer(RMSProp(lr=0.01))
    both = make_trainer(schema, deep="rmsprop")
    assert both.step.deep == both.step.dense.optimizer == RMSProp()
    assert TrainConfig(dense="sgd").dense == {"optimizer": "sgd"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_other_optimizers_learn_and_resume(
    schema: wd.Schema, tmp_path: Path, momentum: float
) -> None:
    options: dict[str, Any] = {
        "wide": {"optimizer": "sgd", "lr": 0.1, "momentum": momentum},
        "deep": {"optimizer": "rmsprop", "lr": 0.01, "momentum": momentum, "centered": True},
    }
    whole = make_trainer(schema, **options)
    history = whole.fit(make_table(), epochs=2)
    losses = history.column("loss")
    assert losses[-1] < losses[0]
    make_trainer(schema, checkpoints=tmp_path, **options).fit(make_table(), epochs=2, steps=7)
    again = make_trainer(schema, checkpoints=tmp_path, **options)
    again.fit(make_table(), epochs=2, resume=True)
    assert_same_bits(state_of(again), state_of(whole))


def test_a_resumed_run_counts_the_evaluation_it_begins_with(
    schema: wd.Schema, tmp_path: Path
) -> None:
    table, valid = make_table(rows=150), make_table(rows=300, seed=5)
    options: dict[str, Any] = {"wide": wd.FTRL(lr=5.0), "batch_size": 16, "checkpoints": tmp_path}
    first = make_trainer(schema, **options)
    first.fit(table, epochs=2, valid=valid, early_stopping=False)
    best = first.evaluate(valid)
    again = make_trainer(schema, **options)
    history = again.fit(table, epochs=40, valid=valid, resume=True)
    assert min(history.column("valid/log_loss")) == best["log_loss"]
    assert len(history) == 4
    assert again.evaluate(valid) == best
    assert again.directory is not None and again.directory.best() == tmp_path / "step-0000000020"


def test_weights_count_like_repeated_rows(schema: wd.Schema) -> None:
    table = make_table(rows=40)
    weighted = table.append_column("w", pa.array(np.full(40, 2.0)))
    doubled = pa.concat_tables([table, table])
    results = []
    for data, spec, batch in ((weighted, make_spec(weight="w"), 40), (doubled, make_spec(), 80)):
        model = wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[8], embedding_dim=4)
        trainer = wd.Trainer(
            model, batch_size=batch, shuffle=False, loss_reduction="sum", progress=False,
            wide=wd.FTRL(), deep=wd.Adagrad(),
        )  # fmt: skip
        trainer.fit(data, epochs=3)
        results.append(trainer.logits(table))
    np.testing.assert_allclose(results[0], results[1], atol=2e-5)


def test_untouched_rows_keep_their_bits(schema: wd.Schema) -> None:
    trainer = make_trainer(schema)
    before = state_of(trainer)
    table = make_table().filter(pa.compute.equal(make_table()["job"], "job 3"))
    trainer.fit(table)
    after = state_of(trainer)
    changed = np.flatnonzero(
        (before["deep/4/job.weight"] != after["deep/4/job.weight"]).any(axis=1)
    )
    names = [schema.describe_id("job", int(row)) for row in changed]
    assert names == ["job 3"]


def test_gradient_clipping_bounds_the_step(schema: wd.Schema) -> None:
    trainer = make_trainer(schema, clip_norm=1e-3, deep=wd.SGD(lr=1.0), wide=wd.SGD(lr=1e-6))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit(make_table(), steps=1)
    moved = sum(
        float((p.detach() - before[name]).square().sum())
        for name, p in trainer.model.named_parameters()
    )
    assert moved**0.5 <= 1e-3 * 1.001


def test_callbacks_see_every_step(schema: wd.Schema) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.ended = False

        def on_step(self, figures: dict[str, Any]) -> None:
            self.steps.append(figures["step"])

        def on_evaluate(self, figures: dict[str, Any]) -> None:
            assert "loss" in figures

        def on_end(self, figures: dict[str, Any]) -> None:
            self.ended = True

    recorder = Recorder()
    make_trainer(schema, callbacks=[recorder]).fit(make_table())
    assert recorder.steps == list(range(1, 11))
    assert recorder.ended


@pytest.mark.parametrize("name", ["forward", "deep_logits", "wide_logits", "gather"])
def test_a_model_that_computes_something_else_is_refused(schema: wd.Schema, name: str) -> None:
    # Training and predicting would go on without it, and say nothing.
    def zero(self: wd.WideDeep, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(1, 1)

    changed = type("Changed", (wd.WideDeep,), {name: zero})
    with pytest.raises(ConfigError, match=f"Changed.{name} of your own.* would not call"):
        wd.Trainer(changed(schema))
    patched = wd.WideDeep(schema)
    patched.__dict__[name] = zero
    with pytest.raises(ConfigError, match=f"WideDeep.{name} of your own"):
        wd.Trainer(patched)


def test_a_hook_on_the_model_is_refused_and_one_on_a_tower_is_called(schema: wd.Schema) -> None:
    model = wd.WideDeep(schema)
    calls: list[int] = []
    model.towers["mlp"].register_forward_hook(lambda *_: calls.append(1))
    wd.Trainer(model, progress=False).fit(make_table(), epochs=1)
    assert calls
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="got a hook on the model"):
        wd.Trainer(model)


def test_counts_may_be_numpys(schema: wd.Schema) -> None:
    trainer = wd.Trainer(wd.WideDeep(schema), progress=False)
    trainer.fit(make_table(), epochs=np.int64(1), steps=np.int32(3))
    assert trainer.position.step == 3


def test_a_frame_of_no_rows_is_refused(schema: wd.Schema) -> None:
    trainer = make_trainer(schema)
    with pytest.raises(DataError, match="training data without rows"):
        trainer.fit(make_table().slice(0, 0))
    with pytest.raises(DataError, match="data to evaluate without rows"):
        trainer.evaluate(make_table().slice(0, 0))


def test_one_class_only_trains_and_has_no_auc(schema: wd.Schema) -> None:
    table = make_table().set_column(4, "y", pa.array(np.ones(ROWS, np.int8)))
    trainer = make_trainer(schema)
    trainer.fit(table)
    assert np.isnan(trainer.evaluate(table)["auc"])


def test_a_label_out_of_range_names_the_head(schema: wd.Schema) -> None:
    table = make_table().set_column(4, "y", pa.array(np.full(ROWS, 7, np.int8)))
    with pytest.raises(WideDeepError, match="expected 0 to 1 for a binary head"):
        make_trainer(schema).fit(table)


def test_a_reader_that_can_be_read_once_trains_many_epochs(schema: wd.Schema) -> None:
    table = make_table()
    once = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=100))
    trainer = make_trainer(schema)
    trainer.fit(once, epochs=3)
    assert trainer.position.rows == 3 * ROWS


SCRIPT = """
    import sys, time
    import pyarrow.parquet as pq
    import widedeep as wd

    class Slow:
        def on_step(self, figures):
            time.sleep(0.01)
            print(figures["step"], flush=True)
        def on_evaluate(self, figures): pass
        def on_end(self, figures): pass

    schema = wd.Schema.load(sys.argv[1])
    model = wd.WideDeep(schema, hidden_units=[16, 8], embedding_dim=4)
    trainer = wd.Trainer(model, batch_size=64, pool_rows=150, threads=1, progress=len(sys.argv) > 4,
                         checkpoints=sys.argv[3], checkpoint_every=1, callbacks=[Slow()])
    trainer.fit(sys.argv[2], epochs=50)
"""


def start(tmp_path: Path, schema: wd.Schema, *more: str) -> subprocess.Popen[str]:
    schema.save(tmp_path / "schema.safetensors")
    pq.write_table(make_table(), tmp_path / "train.parquet", row_group_size=100)
    arguments = [str(tmp_path / name) for name in ("schema.safetensors", "train.parquet", "run")]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments, *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_a_killed_run_can_be_resumed(schema: wd.Schema, tmp_path: Path) -> None:
    process = start(tmp_path, schema)
    rng = np.random.default_rng(os.getpid())
    wait_for_step(process, 12)
    time.sleep(float(rng.uniform(0, 0.05)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = make_trainer(schema, checkpoints=tmp_path / "run")
    again.fit(tmp_path / "train.parquet", epochs=3, resume=True)
    whole = make_trainer(schema)
    whole.fit(tmp_path / "train.parquet", epochs=3)
    assert_same_bits(state_of(again), state_of(whole))


def test_ctrl_c_saves_and_says_how_to_go_on(schema: wd.Schema, tmp_path: Path) -> None:
    process = start(tmp_path, schema, "progress")
    wait_for_step(process, 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "interrupted; saved" in errors
    assert "resume=True" in errors
    assert make_trainer(schema, checkpoints=tmp_path / "run").directory.latest() is not None


def test_a_second_fit_goes_on_learning(schema: wd.Schema) -> None:
    trainer = make_trainer(schema, deep=wd.Adam(lr=1e-2))
    trainer.fit(make_table())
    before = trainer.logits(make_table())
    history = trainer.fit(make_table(seed=1), epochs=2)
    assert trainer.position.updates == 30
    assert len(history) == 3
    assert not np.array_equal(trainer.logits(make_table()), before)


def test_encoded_rows_change_no_bit(schema: wd.Schema, tmp_path: Path) -> None:
    path, cache = tmp_path / "rows.parquet", tmp_path / "encoded"
    pq.write_table(make_table(), path, row_group_size=70)
    plain = make_trainer(schema)
    plain.fit(path, epochs=3)
    for _ in range(2):  # written, then found
        kept = make_trainer(schema)
        kept.fit(path, epochs=3, cache=cache)
        assert_same_bits(state_of(kept), state_of(plain))
        assert kept.state.warmup.rows == plain.state.warmup.rows != []
    stopped = make_trainer(schema, checkpoints=tmp_path / "run")
    stopped.fit(path, epochs=3, steps=13, cache=cache)
    resumed = make_trainer(schema, checkpoints=tmp_path / "run")
    resumed.fit(path, epochs=3, resume=True, cache=cache)
    assert_same_bits(state_of(resumed), state_of(plain))


def test_encoded_rows_are_read_instead_of_the_raw_ones(
    schema: wd.Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "rows.parquet", tmp_path / "encoded"
    pq.write_table(make_table(), path, row_group_size=70)
    make_trainer(schema).fit(path, cache=cache)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a raw row was encoded")

    monkeypatch.setattr(Transform, "__call__", refuse)
    monkeypatch.setattr(Transform, "pack", refuse)
    assert make_trainer(schema).fit(path, cache=cache)[-1]["rows"] == ROWS
    with pytest.raises(AssertionError, match="a raw row was encoded"):
        make_trainer(schema).fit(path)


def test_a_bundle_keeps_the_metrics_of_its_own_model(schema: wd.Schema, tmp_path: Path) -> None:
    train, valid = make_table(), make_table(300, seed=1)
    trainer = make_trainer(schema)
    trainer.fit(train, epochs=6, valid=valid, early_stopping=EarlyStopping("auc", patience=1))

    def kept(name: str, made: wd.Trainer = trainer) -> float | None:
        found = made.export(tmp_path / name, overwrite=True).metrics.get("log_loss")
        return None if found is None else float(found)

    assert kept("best") == pytest.approx(trainer.evaluate(valid)["log_loss"])
    trainer.fit(train)
    assert kept("moved") is None
    trainer.fit(train, valid=valid)
    assert kept("again") == pytest.approx(trainer.evaluate(valid)["log_loss"])
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(state)
    assert kept("loaded") is None
    stored = make_trainer(schema, checkpoints=tmp_path / "c")
    stored.fit(train, epochs=2, valid=valid)
    assert stored.directory is not None
    latest = stored.directory.latest()
    assert latest is not None
    other = make_trainer(schema)
    other.load_checkpoint(latest)
    assert kept("checkpoint", other) == pytest.approx(stored.evaluate(valid)["log_loss"])
    other.load_parameters(latest)
    assert kept("parameters", other) is None


def test_a_configuration_and_its_fields_by_keyword_are_the_same(schema: wd.Schema) -> None:
    options: dict[str, Any] = {
        "batch_size": 32,
        "grad_scale": 0.5,
        "loss_reduction": "sum",
        "clip_norm": 1.0,
        "schedule": "cosine",
        "warmup_steps": 3,
        "seed": 5,
        "pool_rows": 200,
        "threads": 1,
    }
    trainers = []
    for config, keywords in (
        (TrainConfig(**options, epochs=2, wide={"optimizer": "ftrl", "lr": 0.05}), {}),
        (None, options | {"epochs": 2, "wide": wd.FTRL(lr=0.05)}),
        (TrainConfig(epochs=9, seed=7), options | {"epochs": 2, "wide": wd.FTRL(lr=0.05)}),
    ):
        model = wd.WideDeep(schema, hidden_units=[8, 4], seed=3)
        trainer = wd.Trainer(model, config, progress=False, **keywords)
        trainer.fit(make_table())
        trainers.append(trainer)
    first, *others = trainers
    assert first.position.epoch == 2
    for trainer in others:
        assert trainer.config == first.config
        assert_same_bits(state_of(trainer), state_of(first))


def test_an_unknown_option_is_refused_with_the_nearest(schema: wd.Schema) -> None:
    with pytest.raises(TypeError, match=r"'bach_size'; did you mean 'batch_size'"):
        wd.Trainer(wd.WideDeep(schema), bach_size=3)


def test_the_signature_tells_every_field_of_the_configuration() -> None:
    parameters = inspect.signature(wd.Trainer).parameters
    fields = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert fields.keys() <= parameters.keys()
    assert parameters["pool_rows"].default == fields["pool_rows"]
    assert parameters["model"].default is inspect.Parameter.empty
