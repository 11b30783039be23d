"""Sums are exact: equal to those of fractions, whatever the order and the pieces."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from widedeep.features.numbers import ExactSum

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


def test_many_magnitudes() -> None:
    values_B = np.ldexp(1.0 + np.arange(4_000) / 4_000, np.arange(4_000) // 2 - 1_000)
    total = ExactSum()
    total.add(values_B)
    total.add(values_B[::-1].copy())
    assert total.value == 2 * sum(map(Fraction, values_B))
