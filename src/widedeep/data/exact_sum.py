"""Sums of float64 numbers without rounding: the same whatever their order and their pieces."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_MANTISSA_BITS = 53
_HALF_BITS = 26
# No float64 has a bit below 2**-1074: with this shift every sum is an integer.
_SHIFT = 1074
_DENSE_CELLS = 1 << 22


class ExactSum:
    """A sum of float64 numbers without rounding, so that it does not depend on their order."""

    def __init__(self) -> None:
        self._scaled = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add finite numbers, fewer than 2**26 at a time."""
        if len(values):
            self._scaled += sum(part for _, part in _parts(values, None))

    @property
    def value(self) -> Fraction:
        """The sum."""
        return Fraction(self._scaled, 1 << _SHIFT)


class ExactSums:
    """Sums of float64 numbers by group, each without rounding."""

    def __init__(self) -> None:
        self._scaled: dict[int, int] = {}

    def add(
        self, keys: list[int], group_B: NDArray[np.int64], values_B: NDArray[np.float64]
    ) -> None:
        """Add finite numbers, fewer than 2**26 at a time."""
        if not len(values_B):
            return
        for group, part in _parts(values_B, group_B):
            key = keys[group]
            self._scaled[key] = self._scaled.get(key, 0) + part

    def value(self, key: int) -> Fraction:
        """Return a group's sum, 0 of one without numbers."""
        return Fraction(self._scaled.get(key, 0), 1 << _SHIFT)

    def drop(self, key: int) -> None:
        """Forget a group."""
        self._scaled.pop(key, None)


def _parts(
    values_B: NDArray[np.float64], group_B: NDArray[np.int64] | None
) -> Iterator[tuple[int, int]]:
    """Yield groups and integers: what each exponent's numbers add to the group, times 2**1074."""
    fractions, exponents = np.frexp(values_B)
    mantissas = np.ldexp(fractions, _MANTISSA_BITS).astype(np.int64)
    lowest = int(exponents.min())
    span = int(exponents.max()) - lowest + 1
    cells = (exponents - lowest).astype(np.int64)
    n_cells = span
    if group_B is not None:
        cells += group_B * span
        n_cells *= int(group_B.max()) + 1
    occupied = None
    if n_cells > _DENSE_CELLS:
        occupied, cells = np.unique(cells, return_inverse=True)
    high = mantissas >> _HALF_BITS
    low = mantissas - (high << _HALF_BITS)
    # Sums of up to 2**26 numbers of 27 bits are exact in float64.
    high_sums, low_sums = np.bincount(cells, high), np.bincount(cells, low)
    for at in np.flatnonzero((high_sums != 0) | (low_sums != 0)).tolist():
        group, place = divmod(at if occupied is None else int(occupied[at]), span)
        whole = (int(high_sums[at]) << _HALF_BITS) + int(low_sums[at])
        shift = lowest + place - _MANTISSA_BITS + _SHIFT
        yield group, whole << shift if shift >= 0 else whole >> -shift
