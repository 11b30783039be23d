"""The sample depends on seed and row numbers alone, and is uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.data.row_sample import RowSample, sampled_rows
from widedeep.errors import ConfigError


def sampled(n_rows: int, size: int, seed: int, cuts: list[int]) -> list[int]:
    sample = RowSample(seed, size)
    edges = sorted({0, n_rows, *(cut % (n_rows + 1) for cut in cuts)})
    for start, stop in zip(edges, [*edges[1:], n_rows], strict=True):
        sample.add(np.arange(start, stop, dtype=np.float64))
    return [int(row) for row in sample.values()]


@given(
    n_rows=st.integers(0, 300),
    size=st.integers(1, 60),
    seed=st.integers(0, 2**64 - 1),
    cuts=st.lists(st.integers(0, 300), max_size=9),
)
def test_cuts_do_not_change_the_sample(n_rows: int, size: int, seed: int, cuts: list[int]) -> None:
    rows = sampled(n_rows, size, seed, cuts)
    assert rows == sampled(n_rows, size, seed, [])
    assert rows == sorted(set(rows))
    assert len(rows) == min(n_rows, size)
    if n_rows <= size:
        assert rows == list(range(n_rows))


def test_a_smaller_sample_lies_within_a_larger_one() -> None:
    assert set(sampled(500, 20, 3, [])) < set(sampled(500, 50, 3, []))


def test_samples_of_different_seeds_differ_and_are_uniform() -> None:
    samples = [sampled(100, 30, seed, [37]) for seed in range(1000)]
    assert len({tuple(rows) for rows in samples}) == 1000
    counts = np.bincount(np.concatenate(samples), minlength=100)
    # Each row is drawn 300 times on average with a standard deviation of 14.5.
    assert np.abs(counts - 300).max() < 73
    together = np.zeros((100, 100))
    for rows in samples:
        together[np.ix_(rows, rows)] += 1
    neighbours = np.diag(together, 1)
    # Two rows meet 88 times on average, with a standard deviation of 9.
    assert np.abs(neighbours - 87.9).max() < 45


def test_numbers_out_of_range() -> None:
    with pytest.raises(ConfigError, match="size: got 0"):
        RowSample(0, 0)
    with pytest.raises(ConfigError, match="seed: got -1"):
        RowSample(-1, 5)


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows_known_beforehand_are_those_that_hash_lowest(ranks: int) -> None:
    rows, size = 1_000, 100
    values = np.arange(rows) * 2.0
    plain = RowSample(3, size)
    plain.add(values)
    parts = []
    for rank in range(ranks):
        first, stop = rows * rank // ranks, rows * (rank + 1) // ranks
        known = RowSample(3, size, first, sampled_rows(rows, size, 3))
        for start in range(first, stop, 70):
            known.add(values[start : min(start + 70, stop)])
        parts.append(known.values())
    np.testing.assert_array_equal(np.concatenate(parts), plain.values())
