"""Gains on held rows: against plain loops, and what noise gains."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from widedeep.data.infer import (
    Cells,
    HeldOutGains,
    Targets,
    bin_cells,
    list_cells,
    pair_cells,
    value_cells,
)


def test_cells_of_values() -> None:
    cells = value_cells(pa.chunked_array([["b", None], ["a", "b"]]))
    assert cells.codes_N.tolist() == [1, 0, 2, 1]
    assert cells.size == 3


def test_cells_of_numbers() -> None:
    few = bin_cells(np.array([3.0, np.nan, 1.0, 3.0]), 4)
    assert (few.codes_N.tolist(), few.size) == ([2, 0, 1, 2], 3)
    many = bin_cells(np.append(np.arange(1000.0), np.nan), 10)
    assert many.size == 11
    assert np.bincount(many.codes_N).tolist() == [1, *[100] * 10]


def test_cells_of_pairs_are_one_to_one_while_they_are_few() -> None:
    rng = np.random.default_rng(0)
    one = Cells(rng.integers(0, 30, 1000), 30)
    other = Cells(rng.integers(0, 40, 1000), 40)
    pairs = pair_cells(one, other)
    distinct = {*zip(one.codes_N.tolist(), other.codes_N.tolist(), strict=True)}
    assert len(np.unique(pairs.codes_N)) == len(distinct)
    large = pair_cells(Cells(one.codes_N * 40_000, 1_200_000), Cells(other.codes_N, 40))
    assert large.codes_N.max() < large.size <= 1 << 18
    assert len(np.unique(large.codes_N)) > 0.98 * len(distinct)


def test_cells_of_lists_are_those_of_their_values() -> None:
    lists = [["b", "a"], None, [], ["b", None, "b"]]
    cells = list_cells(pa.chunked_array([lists[:1], lists[1:]], pa.list_(pa.string())))
    assert cells.row_N is not None
    assert (cells.codes_N.tolist(), cells.row_N.tolist()) == ([1, 2, 1, 0, 1], [0, 0, 3, 3, 3])
    plain = Cells(np.array([4, 3, 2, 1]), 5)
    for pairs in (pair_cells(cells, plain), pair_cells(plain, cells)):
        assert pairs.row_N is cells.row_N
        assert len(np.unique(pairs.codes_N)) == 4
    assert pair_cells(cells, plain).codes_N.tolist() == [9, 14, 6, 1, 6]


def test_a_row_gains_by_the_steps_of_all_its_values() -> None:
    """Each value's step is learned from its rows' gradients, its curvature times their lengths."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(1, 6, n).tolist() for n in rng.integers(0, 4, 400)]
    y = np.array([rng.random() < 0.1 + 0.1 * max(values, default=0) for values in lists], float)
    gains, rows = HeldOutGains(Targets(y[:, None], "log"), seed=3), range(len(lists))
    half = gains._half_B
    expected = np.zeros(len(lists))
    for learned in (0, 1):
        mean = y[half == learned].mean()
        second = mean * (1 - mean)
        steps = []
        for code in range(6):
            mine = [row for row in rows if half[row] == learned for v in lists[row] if v == code]
            curve = sum(second * len(lists[row]) for row in mine)
            steps.append(-sum(mean - y[row] for row in mine) / (curve + 10.0))
        for row in rows:
            if half[row] != learned:
                step = sum(steps[v] for v in lists[row])
                expected[row] = -step * (mean - y[row] + 0.5 * second * step)
    row_N = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
    cells = Cells(np.array([v for values in lists for v in values]), 6, row_N)
    np.testing.assert_allclose(gains.row_gains(cells), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["log", "squared"])
def test_the_gain_is_that_of_a_step_from_the_other_half(loss: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, 500)
    y = (rng.random(500) < 0.2 + 0.1 * codes).astype(float)
    gains = HeldOutGains(Targets(y[:, None], loss), seed=3)  # type: ignore[arg-type]
    half = gains._half_B
    expected = np.zeros(500)
    for learned in (0, 1):
        mean = y[half == learned].mean()
        second = mean * (1 - mean) if loss == "log" else 1.0
        for code in range(5):
            mine = (codes == code) & (half == learned)
            step = -(mean - y[mine]).sum() / (second * mine.sum() + 10.0)
            held = (codes == code) & (half != learned)
            prior = y[half != 1 - learned].mean()
            gradient = prior - y[held]
            curve = prior * (1 - prior) if loss == "log" else 1.0
            expected[held] = -step * (gradient + 0.5 * curve * step)
    np.testing.assert_allclose(gains.row_gains(Cells(codes, 5)), expected, rtol=1e-9)


def test_what_was_learned_gains_no_more_and_the_loss_falls() -> None:
    rng = np.random.default_rng(0)
    cells = Cells(rng.integers(0, 5, 4000), 5)
    y = (rng.random(4000) < 0.1 + 0.2 * cells.codes_N).astype(float)
    gains = HeldOutGains(Targets(y[:, None], "log"))
    before, gain = gains.loss, gains.gain(cells)
    gains.learn([cells], passes=4, shrinkage=1.0)
    assert gains.gain(cells).z < 1
    assert before - gains.loss == pytest.approx(gain.total, rel=0.2)


def test_noise_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(20_000) < 0.3).astype(float)
    gains = HeldOutGains(Targets(y[:, None], "log"))
    zs = [gains.gain(Cells(rng.integers(0, n, 20_000), n)).z for n in (2, 50, 1000) * 10]
    assert max(zs) < 4
