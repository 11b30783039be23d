"""Learning-rate factors are those of their formulas, and go on where a run stopped."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import widedeep as wd
from tests.training.test_trainer import (
    assert_same_bits,
    make_spec,
    make_table,
    make_trainer,
    state_of,
)
from widedeep.errors import CheckpointError, ConfigError
from widedeep.optim import Optimizer
from widedeep.options import as_table
from widedeep.training.config import TrainConfig
from widedeep.training.schedules import (
    Exponential,
    Plateau,
    RateSchedules,
    Step,
    make_schedule,
)


def rate_factor(
    schedule: Any, step: int, total: int | None, warmup_steps: int = 0, decay_fraction: float = 0.2
) -> float:
    config = TrainConfig(schedule=schedule, decay_fraction=decay_fraction)
    schedules = RateSchedules(config.part_schedules(), warmup_steps=warmup_steps)
    wide, deep, dense = schedules.rates_of(1, step, total or 0)[0]
    assert wide == deep == dense
    return wide


def test_constant_stays_at_one_after_the_warmup() -> None:
    assert [rate_factor("constant", step, 8) for step in range(10)] == [1.0] * 10
    rise = [rate_factor("constant", step, 8, warmup_steps=4) for step in range(6)]
    assert rise == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("total", [1, 3, 10])
def test_linear_is_the_share_that_is_left(total: int) -> None:
    found = [rate_factor("linear", step, total) for step in range(total)]
    assert found == pytest.approx([(total - step) / total for step in range(total)])
    assert min(found) > 0, "the last step still learns"


def test_cosine_is_half_a_wave() -> None:
    for step in range(10):
        want = 0.5 * (1 + math.cos(math.pi * step / 10))
        assert rate_factor("cosine", step, 10) == pytest.approx(want)
    assert rate_factor("cosine", 5, 10) == pytest.approx(0.5)


def test_wsd_is_constant_and_then_linear() -> None:
    factors = [rate_factor("wsd", step, 20) for step in range(22)]
    assert factors == pytest.approx([1.0] * 17 + [0.75, 0.5, 0.25, 0.0, 0.0])
    for schedule in ("wsd", {"name": "wsd", "decay_fraction": 0.9}):
        assert rate_factor(schedule, 5, 10, decay_fraction=0.9) == pytest.approx(5 / 9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd", "polynomial"])
def test_a_decay_falls_to_zero_and_stays_there(schedule: str) -> None:
    factors = [rate_factor(schedule, step, 20) for step in range(25)]
    assert factors[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
    assert factors[20:] == pytest.approx([0.0] * 5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warmup_multiplies_the_decay(schedule: Literal["linear", "cosine"]) -> None:
    for step in range(8):
        plain = rate_factor(schedule, step, 8)
        rise = rate_factor("constant", step, 8, warmup_steps=3)
        assert rate_factor(schedule, step, 8, warmup_steps=3) == pytest.approx(plain * rise)


@pytest.mark.parametrize("total", [None, 0])
def test_a_run_without_an_end_does_not_decay(total: int | None) -> None:
    assert rate_factor("linear", 1000, total) == rate_factor("cosine", 1000, total) == 1.0


TORCH: list[tuple[dict[str, Any], Any]] = [
    (
        {"name": "exponential", "decay_steps": 1, "decay_rate": 0.9},
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    ),
    (
        {"name": "exponential", "decay_steps": 7, "decay_rate": 0.5, "staircase": True},
        lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    ),
    (
        {"name": "polynomial", "decay_steps": 20, "power": 2.5},
        lambda o: lr_scheduler.PolynomialLR(o, 20, 2.5),
    ),
    (
        {"name": "linear", "decay_steps": 15, "end": 0.25},
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, 15),
    ),
    (
        {"name": "step", "boundaries": [3, 11, 12], "factors": [1.0, 0.3, 0.09, 0.027]},
        lambda o: lr_scheduler.MultiStepLR(o, [3, 11, 12], 0.3),
    ),
    (
        {"name": "cosine", "decay_steps": 29, "end": 0.1},
        lambda o: lr_scheduler.CosineAnnealingLR(o, 29, 0.1),
    ),
]


@pytest.mark.parametrize(("table", "oracle"), TORCH)
def test_factors_are_those_of_torch(table: dict[str, Any], oracle: Any) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = oracle(optimizer)
    for step in range(30):
        want = optimizer.param_groups[0]["lr"]
        assert rate_factor(table, step, 1000) == pytest.approx(want, rel=1e-9), step
        optimizer.step()
        scheduler.step()


def test_factors_are_those_of_tensorflow() -> None:
    """Values of tf.compat.v1.train.*_decay of TensorFlow 2.15 at a rate of 1, float32."""
    inverse = {"name": "inverse_time", "decay_steps": 10, "decay_rate": 0.5}
    found = [rate_factor(inverse, step, None) for step in (0, 7, 10, 25)]
    assert found == pytest.approx([1.0, 0.74074072, 0.66666669, 0.44444445])
    found = [rate_factor({**inverse, "staircase": True}, step, None) for step in (0, 7, 10, 25)]
    assert found == pytest.approx([1.0, 1.0, 0.66666669, 0.5])
    polynomial = {"name": "polynomial", "decay_steps": 10, "end": 0.1, "power": 2.0}
    found = [rate_factor(polynomial, step, None) for step in (0, 4, 10, 15)]
    assert found == pytest.approx([1.0, 0.424, 0.1, 0.1])
    found = [rate_factor({**polynomial, "cycle": True}, step, None) for step in (0, 4, 10, 15)]
    assert found == pytest.approx([1.0, 0.424, 0.1, 0.15625])


def test_decays_without_steps_last_as_long_as_the_run() -> None:
    assert rate_factor("exponential", 50, 50) == pytest.approx(0.1)
    assert rate_factor("inverse_time", 50, 50) == pytest.approx(0.5)


@given(
    values=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    patience=st.integers(1, 3),
    cooldown=st.integers(0, 3),
    min_delta=st.sampled_from([0.0, 1.5]),
)
def test_a_plateau_falls_when_that_of_torch_does(
    values: list[int], patience: int, cooldown: int, min_delta: float
) -> None:
    plateau = Plateau(
        factor=0.5, patience=patience, cooldown=cooldown, min_delta=min_delta, end=0.1
    )
    schedules = RateSchedules({"wide": plateau, "deep": plateau})
    schedules.begin("log_loss")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, cooldown=cooldown,
        threshold=min_delta, threshold_mode="abs", min_lr=0.1,
    )  # fmt: skip
    for value in values:
        before = schedules.rates_of(1, 0, 1)[0][0]
        lines = schedules.update({"log_loss": float(value)})
        oracle.step(float(value))
        wide, deep, dense = schedules.rates_of(1, 0, 1)[0]
        assert wide == deep == optimizer.param_groups[0]["lr"]
        assert dense == 1.0
        assert len(lines) == (wide < before), "each fall is told, once"


def test_a_plateau_waits_for_a_metric_that_is_defined() -> None:
    schedules = RateSchedules({"dense": Plateau(monitor="auc")})
    schedules.begin("log_loss")
    for value in (math.nan, math.nan, 0.6, 0.7):
        assert not schedules.update({"auc": value})
    assert schedules.update({"auc": math.nan}) == ["auc improves no more: the rates of dense x 0.5"]


@pytest.mark.parametrize("part", ["wide", "deep", "dense"])
def test_a_part_has_a_schedule_of_its_own(part: str) -> None:
    """Its rate is 0 from step 3 on: its weights stay as they are, all others move."""
    schema = wd.fit_schema(make_spec(), make_table())
    off = {part: {"name": "step", "boundaries": [3], "factors": [1.0, 0.0]}}

    def train(steps: int, **options: Any) -> dict[str, np.ndarray]:
        sgd = wd.SGD(lr=0.1)
        trainer = make_trainer(schema, wide=sgd, deep=sgd, dense=sgd, **options)
        trainer.fit(make_table(), steps=steps)
        return state_of(trainer)

    short, long = train(3), train(6, schedules=off)
    prefix = {"wide": "wide/", "deep": "deep/", "dense": "module/"}[part]
    still = {name for name in short if short[name].tobytes() == long[name].tobytes()}
    assert {name for name in short if name.startswith(prefix)} <= still
    assert not {n for n in still if n.endswith("weight") and not n.startswith(prefix)}


def halves(step: int) -> float:
    return 0.5 ** (step // 4)


SCHEDULES: dict[str, dict[str, Any]] = {
    "by part": {
        "schedule": halves,
        "schedules": {
            "wide": {"name": "plateau", "patience": 1, "min_delta": 0.05, "cooldown": 1},
            "dense": {"name": "exponential", "decay_steps": 3, "decay_rate": 0.7},
        },
    },
    "torch": {
        "dense": lambda p: _with_scheduler(
            p,
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.MultiStepLR(o, [3, 8])],
                milestones=[4],
            ),
        )
    },
    "torch one cycle": {
        "dense": lambda p: _with_scheduler(
            p, lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=40), momentum=0.9
        )
    },
    "torch plateau": {
        "dense": lambda p: _with_scheduler(
            p, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.05)
        )
    },
}


def _with_scheduler(parameters: Any, make: Any, momentum: float = 0.0) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=momentum)
    return optimizer, make(optimizer)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_where_the_run_stopped(tmp_path: Path, name: str) -> None:
    schema, valid = wd.fit_schema(make_spec(), make_table()), make_table(rows=200, seed=1)

    def fit(folder: str | None, *, steps: int | None = None) -> wd.Trainer:
        checkpoints = None if folder is None else tmp_path / folder
        trainer = make_trainer(schema, checkpoints=checkpoints, **SCHEDULES[name])
        trainer.fit(
            make_table(), epochs=2, steps=steps, valid=valid, eval_every=2, early_stopping=False,
            resume=steps is None and folder is not None,
        )  # fmt: skip
        return trainer

    whole = fit(None)
    if name == "by part":
        assert whole.state.schedules.falls["wide"].factor < 1
    for stop in (4, 14):
        fit(f"run{stop}", steps=stop)
        again = fit(f"run{stop}")
        assert again.position.step == 20
        assert_same_bits(state_of(again), state_of(whole))
        assert again.state.schedules.dump() == whole.state.schedules.dump()


def test_a_tail_goes_on_with_the_scheduler_of_its_best_model(tmp_path: Path) -> None:
    """As marked in memory and as read from the checkpoint, after the best model's evaluation."""
    schema, valid = wd.fit_schema(make_spec(), make_table()), make_table(rows=300, seed=5)

    def dense(parameters: Any) -> Any:
        return _with_scheduler(
            parameters,
            lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
        )

    def fit(**options: Any) -> wd.Trainer:
        trainer = make_trainer(
            schema, deep=wd.SGD(lr=1.0), batch_size=32, schedule="wsd", dense=dense, **options
        )
        trainer.fit(
            make_table(rows=300), epochs=20, valid=valid, early_stopping=2,
            resume="callbacks" not in options and "checkpoints" in options,
        )  # fmt: skip
        return trainer

    class Stop:
        def on_evaluate(self, figures: dict[str, Any]) -> bool:
            return figures["step"] == stop

    whole = fit()
    assert whole.position.tail_steps > 0
    stop = whole.position.tail_start - 10  # between the best model and the tail
    fit(checkpoints=tmp_path, callbacks=[Stop()])
    assert_same_bits(state_of(fit(checkpoints=tmp_path)), state_of(whole))


def test_a_scheduler_of_torch_decides_the_dense_rates_alone() -> None:
    schema = wd.fit_schema(make_spec(), make_table())

    def fit(**options: Any) -> dict[str, np.ndarray]:
        trainer = make_trainer(schema, rates={"towers.*": 0.5}, **options)
        trainer.fit(make_table(), epochs=2)
        return state_of(trainer)

    def with_lambda(parameters: Any) -> Any:
        return _with_scheduler(parameters, lambda o: lr_scheduler.LambdaLR(o, halves))

    theirs = fit(dense=with_lambda, schedules={"wide": halves, "deep": halves}, schedule="linear")
    ours = fit(dense=lambda p: torch.optim.SGD(p, lr=0.05), schedule=halves)
    theirs.pop("optimizer/scheduler")
    assert_same_bits(theirs, ours)


def test_a_stream_counts_the_steps_of_all_shards() -> None:
    seen: list[int] = []

    def record(step: int) -> float:
        seen.append(step)
        return 1.0

    schema = wd.fit_schema(make_spec(), make_table())
    trainer = make_trainer(schema, schedule=record, schedules={"wide": "plateau", "deep": "wsd"})
    trainer.fit_stream((f"shard {i}", make_table(rows=100, seed=i)) for i in range(3))
    assert seen == list(range(6))
    assert trainer.state.schedules.rates_of(1, 3, 4, before=0).tolist() == [[1.0, 1.0, 1.0]]


def test_a_checkpoint_records_what_a_function_is_called(tmp_path: Path) -> None:
    schema = wd.fit_schema(make_spec(), make_table())
    trainer = make_trainer(schema, schedule=halves, checkpoints=tmp_path)
    trainer.fit(make_table(), steps=3)
    train = trainer.state.config_tables()["train"]
    assert train["schedule"] == "function tests.training.test_schedules.halves"
    again = make_trainer(schema, schedule=train["schedule"])
    with pytest.raises(ConfigError, match=r"record of a function; give the function itself"):
        again.fit(make_table())
    warm = make_trainer(schema)
    warm.warm_start(tmp_path)
    np.testing.assert_allclose(warm.logits(make_table()), trainer.logits(make_table()), atol=1e-6)


def not_a_scheduler(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=1.0), 3


def of_another(parameters: Any) -> Any:
    one, two = (torch.optim.SGD(list(parameters), lr=1.0) for _ in range(2))
    return one, lr_scheduler.StepLR(two, 3)


class Opaque(lr_scheduler.StepLR):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "path": Path("x")}


def opaque(parameters: Any) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    return optimizer, Opaque(optimizer, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, r"\[train\] schedule: got name='cosin'; did you mean 'cosine'\?"),
        ({"schedule": 3}, r"got schedule = 3 \(int\), expected text or a table or a function"),
        ({"schedules": {"hidden": "wsd"}}, r"schedules: got the part 'hidden'; did you"),
        (
            {"schedules": {"wide": {"name": "exponential", "decay_step": 3}}},
            r"schedules.wide: 'exponential': got the unknown key 'decay_step'; did you mean",
        ),
        ({"schedule": {"name": "linear", "decay_steps": 0}}, r"'linear': got decay_steps=0"),
        ({"schedule": {"name": "linear", "end": 2}}, r"got end=2, expected 0 <= end <= 1"),
        ({"schedule": {"name": "exponential", "decay_rate": 0}}, r"got decay_rate=0, expected"),
        ({"schedule": "step"}, r"'step': got boundaries=\[\], expected ascending steps"),
        (
            {"schedule": {"name": "step", "boundaries": [5], "factors": [1.0]}},
            r"got factors=\[1.0\], expected 2 numbers >= 0, one more than boundaries",
        ),
        ({"schedule": {"name": "plateau", "factor": 1.5}}, r"got factor=1.5, expected 0 <"),
        ({"schedule": "plateau"}, r"'plateau' without validation data .*valid_fraction"),
        ({"schedule": lambda step: "x"}, r"got 'x' from its function at step 0, expected the"),
        ({"dense": not_a_scheduler}, r"expected a torch.optim.Optimizer, or a pair of it and a"),
        ({"dense": of_another}, r"a scheduler of another optimizer"),
        ({"dense": opaque}, r"the scheduler Opaque, whose state holds more than plain values"),
        (
            {"dense": SCHEDULES["torch plateau"]["dense"]},
            r"got ReduceLROnPlateau without validation data",
        ),
        (
            {"dense": SCHEDULES["torch"]["dense"], "schedules": {"dense": "wsd"}},
            r"got schedules of the dense part, and a scheduler of torch's",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_learned(
    options: dict[str, Any], message: str
) -> None:
    schema = wd.fit_schema(make_spec(), make_table())
    with pytest.raises(ConfigError, match=message):
        make_trainer(schema, **options).fit(make_table())


def test_a_metric_of_the_other_direction_is_refused() -> None:
    schema, dense = wd.fit_schema(make_spec(), make_table()), SCHEDULES["torch plateau"]["dense"]
    trainer = make_trainer(schema, dense=dense, monitor="auc")
    with pytest.raises(ConfigError, match=r"mode='min'\) where .* 'auc'; make it with mode='max'"):
        trainer.fit(make_table(), valid=make_table())
    trainer = make_trainer(schema, schedule={"name": "plateau", "monitor": "acu"})
    with pytest.raises(ConfigError, match=r"with the metric 'acu', which was not evaluated; did"):
        trainer.fit(make_table(), valid=make_table())


def test_a_checkpoint_with_a_scheduler_asks_for_it(tmp_path: Path) -> None:
    schema = wd.fit_schema(make_spec(), make_table())
    make_trainer(schema, checkpoints=tmp_path, **SCHEDULES["torch"]).fit(make_table(), steps=3)
    without = make_trainer(
        schema, checkpoints=tmp_path, dense=lambda p: torch.optim.SGD(p, lr=0.05)
    )
    with pytest.raises(CheckpointError, match="a run with a scheduler of torch's for the dense"):
        without.fit(make_table(), resume=True)


@pytest.mark.parametrize("wide", [wd.FTRL(lr=0.1, l1=0.0), wd.Adagrad(lr=0.1)])
def test_a_decay_takes_back_nothing(wide: Optimizer) -> None:
    """FTRL's weights are proportional to its rate: decaying it would end with weights of 0."""
    rows = [{"job": job, "click": int(job == "a")} for job in "ab" * 64]
    spec = wd.FeatureSpec(label="click", features=wd.categorical("job"), deep=[])
    model = wd.WideDeep(wd.fit_schema(spec, rows))
    trainer = wd.Trainer(model, wide=wide, batch_size=8, schedule="linear", progress=False)
    trainer.fit(rows, epochs=10)
    of_a, of_b = trainer.predict([{"job": "a"}, {"job": "b"}])
    assert of_a > 0.6 > 0.4 > of_b


def test_a_table_becomes_the_schedule_it_names() -> None:
    assert make_schedule({"name": "plateau", "patience": 3}) == Plateau(patience=3)


def test_a_schedule_is_recorded_as_its_table() -> None:
    schedules = {
        "wide": Exponential(decay_rate=0.5),
        "dense": Step(boundaries=(3,), factors=(1, 0)),
    }
    config = TrainConfig(schedule=Plateau(patience=3), schedules=schedules)
    assert config.part_schedules() == {**schedules, "deep": Plateau(patience=3)}
    table = as_table(config)
    assert table["schedules"]["wide"] == {
        "name": "exponential", "decay_rate": 0.5, "staircase": False,
    }  # fmt: skip
    again = TrainConfig(schedule=table["schedule"], schedules=table["schedules"])
    assert again.part_schedules() == config.part_schedules()
