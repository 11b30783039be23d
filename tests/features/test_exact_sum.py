"""Sums are exact: equal to those of fractions, whatever the order and the pieces."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from widedeep.features.numbers import ExactSum, ExactSums

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE), st.integers(0, 5))
def test_sums_are_exact_whatever_the_pieces(values: list[float], cut: int) -> None:
    total = ExactSum()
    total.add(np.array(values[:cut], np.float64))
    total.add(np.array(values[cut:], np.float64))
    assert total.value == sum(map(Fraction, values))


@given(st.lists(FINITE, min_size=1))
def test_sums_do_not_depend_on_the_order(values: list[float]) -> None:
    one, other = ExactSum(), ExactSum()
    one.add(np.array(values))
    other.add(np.array(sorted(values)))
    assert one.value == other.value


@given(st.lists(st.tuples(st.integers(0, 3000), FINITE)), st.integers(0, 5))
def test_sums_by_group_are_those_of_each_group(rows: list[tuple[int, float]], cut: int) -> None:
    totals = ExactSums()
    for piece in (rows[:cut], rows[cut:]):
        keys, group_B = np.unique([key for key, _ in piece], return_inverse=True)
        totals.add(keys.tolist(), group_B, np.array([value for _, value in piece], np.float64))
    for key in {key for key, _ in rows}:
        assert totals.value(key) == sum(Fraction(value) for other, value in rows if other == key)


def test_many_groups_of_many_magnitudes() -> None:
    """More cells than are counted densely: 4,000 groups times 2,000 exponents."""
    keys = list(range(4_000))
    values_B = np.ldexp(1.0 + np.arange(4_000) / 4_000, np.arange(4_000) // 2 - 1_000)
    totals = ExactSums()
    totals.add(keys, np.arange(4_000), values_B)
    totals.add(keys, np.arange(4_000)[::-1].copy(), values_B[::-1].copy())
    assert [totals.value(key) for key in keys] == [2 * Fraction(value) for value in values_B]
    totals.drop(3)
    assert totals.value(3) == 0
