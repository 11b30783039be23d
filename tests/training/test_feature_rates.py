"""The wide features' own learning rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.errors import CheckpointError
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.feature_rates import HIGHEST, LOWEST, FeatureRates

ROWS = 24_000
FEATURES = ("says_much", "says_nothing", "says_nothing_either")


def make_log(seed: int) -> pa.Table:
    """One field of 2,000 values decides; two of 2,000 have nothing to do with the label."""
    truth = np.random.default_rng(0).normal(size=2_000)
    rng = np.random.default_rng(seed)
    codes = rng.integers(2_000, size=(3, ROWS))
    labels = rng.random(ROWS) < 1 / (1 + np.exp(-1.5 * truth[codes[0]]))
    return pa.table({"y": labels.astype(np.int8), **dict(zip(FEATURES, codes, strict=True))})


def train(log: pa.Table, adapt: float, batch_size: int = 256, epochs: int = 1) -> wd.Trainer:
    spec = wd.FeatureSpec(label="y", deep=[], features=wd.categorical(*FEATURES))
    model = wd.WideDeep(wd.fit_schema(spec, log))
    trainer = wd.Trainer(
        model, wide=wd.FTRL(adapt=adapt), batch_size=batch_size, progress=False, threads=1,
        schedule="constant",
    )  # fmt: skip
    trainer.fit(log, epochs=epochs)
    return trainer


def factors_of(trainer: wd.Trainer) -> dict[str, float]:
    assert trainer.step.feature_rates is not None
    assert trainer.model.wide_table is not None
    names = trainer.model.wide_table.sizes
    return dict(zip(names, trainer.step.feature_rates.factors.tolist(), strict=True))


@pytest.mark.parametrize("batch_size", [64, 1024])
def test_features_that_say_nothing_learn_slowly_and_the_loss_falls(batch_size: int) -> None:
    log, unseen = make_log(1), make_log(2)
    alike, apart = train(log, 0.0, batch_size), train(log, 0.2, batch_size)
    factors = factors_of(apart)
    assert factors["says_much"] > 1.5
    assert max(factors["says_nothing"], factors["says_nothing_either"]) < 0.5
    assert alike.step.feature_rates is None
    before, after = alike.evaluate(unseen), apart.evaluate(unseen)
    assert after["log_loss"] < before["log_loss"] - 0.005
    assert after["auc"] > before["auc"] + 0.005


def test_a_second_pass_over_the_same_rows_leaves_the_factors() -> None:
    log = make_log(6).slice(0, 4_000)
    once = train(log, 0.2)
    assert factors_of(train(log, 0.2, epochs=2)) == factors_of(once)
    before = factors_of(once)
    once.fit(make_log(7).slice(0, 4_000))
    assert factors_of(once) != before


def test_factors_stay_within_their_bounds() -> None:
    rates, starts = FeatureRates(2, step=1.0), np.array([0, 1, 2])
    for _ in range(50):
        rates.learn(torch.tensor([-1.0, 1.0]), starts)
    np.testing.assert_allclose(rates.factors, [HIGHEST, LOWEST], rtol=1e-6)


def test_an_untouched_feature_and_one_of_zero_weights_keep_their_rate() -> None:
    rates = FeatureRates(4, step=0.3)
    rates.learn(torch.tensor([0.5, 0.0, 0.0]), np.array([0, 1, 1, 3, 3]))
    assert rates.factors[0] == pytest.approx(np.exp(-0.3))
    assert rates.factors[1:].tolist() == [1.0, 1.0, 1.0]
    rates.learn(torch.empty(0), np.zeros(5, np.int64))
    assert rates.factors[0] == pytest.approx(np.exp(-0.3))


def test_the_unit_of_the_loss_does_not_matter() -> None:
    small, large = FeatureRates(1, step=0.1), FeatureRates(1, step=0.1)
    for seed in range(5):
        products = torch.randn(7, generator=torch.Generator().manual_seed(seed))
        small.learn(products, np.array([0, 7]))
        large.learn(products * 1024, np.array([0, 7]))
    np.testing.assert_allclose(small.factors, large.factors, rtol=1e-6)


def test_rows_of_a_device_find_their_feature() -> None:
    trainer = train(make_log(3).slice(0, 512), 0.2)
    table, schema = trainer.model.wide_table, trainer.model.schema
    assert table is not None
    batch = Transform(schema)(make_log(4).slice(0, 64))
    starts = table.group(batch, schema.slots).occurrences.table_starts
    table._on_device = True
    ascending = table.group(batch, schema.slots)
    rows = ascending.rows
    np.testing.assert_array_equal(ascending.occurrences.table_starts, starts)
    features = np.searchsorted(np.cumsum(list(table.sizes.values())), rows.numpy(), side="right")
    np.testing.assert_array_equal(np.repeat(np.arange(3), np.diff(starts)), features)


def test_a_checkpoint_carries_the_factors(tmp_path: Path) -> None:
    log = make_log(5)
    trainer = train(log, 0.2)
    trainer.directory = CheckpointDirectory(tmp_path)
    path = trainer.save_checkpoint()
    other = wd.Trainer(wd.WideDeep(trainer.model.schema), progress=False, threads=1)
    other.load_parameters(path)
    assert factors_of(other) == factors_of(trainer) != dict.fromkeys(FEATURES, 1.0)


def test_factors_of_another_number_of_features_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rates"):
        FeatureRates(2, step=0.1).load_tensors({"log_rates": np.zeros(3), "evidence": np.zeros(3)})
