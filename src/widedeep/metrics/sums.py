"""Sums over a stream of rows that do not depend on how the stream was cut into updates."""

from __future__ import annotations

import copy
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from widedeep.metrics.rows import Rows

BLOCK_ROWS = 65_536


class CompensatedSum:
    """A vector of running sums in float64 that carries its own rounding errors."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size)
        self._lost = np.zeros(size)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add one number to each sum."""
        total = self._sum + values
        from_sum = (self._sum - total) + values
        from_value = (values - total) + self._sum
        self._lost += np.where(np.abs(self._sum) >= np.abs(values), from_sum, from_value)
        self._sum = total

    def values(self) -> NDArray[np.float64]:
        """Return the sums."""
        return self._sum + self._lost


class Totals(Protocol):
    """What is kept of the rows seen: it takes a block of them at a time."""

    def add(self, block: Rows) -> None:
        """Take a block of rows into account."""


T = TypeVar("T", bound=Totals)


class FixedBlocks(Generic[T]):
    """Cut a stream into blocks of fixed size before it is summed."""

    def __init__(self, totals: T, dtype: np.dtype[Any], block_rows: int = BLOCK_ROWS) -> None:
        self._totals = totals
        self._block: Rows = np.empty(block_rows, dtype=dtype)
        self._filled = 0

    def append(self, rows: Rows) -> None:
        """Add rows to the end of the stream."""
        start = 0
        while start < len(rows):
            stop = min(start + len(self._block) - self._filled, len(rows))
            self._block[self._filled : self._filled + stop - start] = rows[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == len(self._block):
                self._totals.add(self._block)
                self._filled = 0

    def totals(self) -> T:
        """Return the totals of all rows so far; the stream may go on afterwards."""
        totals = copy.deepcopy(self._totals)
        if self._filled:
            totals.add(self._block[: self._filled])
        return totals


class Numbers:
    """Metrics by name, with the reason for each that is NaN or leaves something out."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    def put(self, name: str, value: float) -> None:
        """Record a number."""
        self.values[name] = float(value)

    def undefined(self, names: list[str], reason: str) -> None:
        """Record NaN under each name, and why."""
        for name in names:
            self.values[name] = float("nan")
            self.reasons[name] = reason

    def ratio(self, name: str, numerator: float, denominator: float, reason: str) -> None:
        """Record a ratio, or NaN with the reason where the denominator is zero."""
        if denominator == 0:
            self.undefined([name], reason)
        else:
            self.put(name, numerator / denominator)

    def merge(self, other: Numbers) -> None:
        """Take over the numbers and reasons of another part."""
        self.values |= other.values
        self.reasons |= other.reasons
