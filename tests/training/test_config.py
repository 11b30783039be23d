"""Learning-rate factors are those of their formulas, also at the ends of a run."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import pytest

import widedeep as wd
from widedeep.optim import Optimizer
from widedeep.training.config import TrainConfig


def rate_factor(
    schedule: Any, step: int, total: int | None, warmup_steps: int = 0, decay_fraction: float = 0.2
) -> float:
    config = TrainConfig(
        schedule=schedule, warmup_steps=warmup_steps, decay_fraction=decay_fraction
    )
    return config.rate_factor(step, total)


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
    assert rate_factor("wsd", 5, 10, decay_fraction=0.9) == pytest.approx(5 / 9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_a_decay_falls_to_zero_and_stays_there(
    schedule: Literal["linear", "cosine", "wsd"],
) -> None:
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
