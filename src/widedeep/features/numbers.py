"""Exact sums, the summary of a column of numbers, and cut points by its sorted sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.kernels import sorted_numbers, sum_numbers

# No float64 has a bit below 2**-1074: with this shift every sum is an integer.
_SHIFT = 1074
_HALF_BITS = 26


class ExactSum:
    """A sum of float64 numbers without rounding, so that it does not depend on their order."""

    def __init__(self) -> None:
        self._scaled = 0  # The sum, times 2**1074

    def add(self, values: NDArray[np.float64]) -> tuple[int, float, float]:
        """Add the numbers that are no NaN; return how many, the smallest and the largest."""
        count, minimum, maximum, cells = sum_numbers(np.ascontiguousarray(values))
        for exponent, high, low in cells:
            self._scaled += ((high << _HALF_BITS) + low) << (exponent + _SHIFT)
        return count, minimum, maximum

    def __iadd__(self, other: ExactSum) -> ExactSum:
        self._scaled += other._scaled
        return self

    def to_json(self) -> str:
        """Return the sum as text for :meth:`of_json`."""
        return hex(self._scaled)

    @classmethod
    def of_json(cls, text: str) -> ExactSum:
        """Return the sum that :meth:`to_json` wrote."""
        total = cls()
        total._scaled = int(text, 16)
        return total

    @property
    def value(self) -> Fraction:
        """The sum."""
        return Fraction(self._scaled, 1 << _SHIFT)


# Squares of larger numbers leave float64.
LARGEST_SCALED = 1e150
_SPLITTER = 2.0**27 + 1.0
_LEAST_BIN_ROWS = 3


class NumberSummary:
    """Count, range, sums and a sorted sample of one component of a numeric column."""

    def __init__(self, scaled_by: Sequence[str]) -> None:
        self.count = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._sum = ExactSum()
        self._moments = {
            transform: (ExactSum(), ExactSum())
            for transform in ("standard", "log1p")
            if transform in scaled_by
        }
        self.sample = np.empty(0)

    def add(self, values: NDArray[np.float64]) -> int:
        """Add rows; NaN stands for a null. Return how many are none."""
        count, minimum, maximum = self._sum.add(values)
        if not count:
            return 0
        self.count += count
        self.minimum = min(self.minimum, minimum)
        self.maximum = max(self.maximum, maximum)
        values = values[~np.isnan(values)] if self._moments and count < len(values) else values
        for transform, (first, second) in self._moments.items():
            if transform == "standard" and not self._is_scalable:
                continue
            scaled = signed_log(values) if transform == "log1p" else values
            first.add(scaled)
            squares, errors = _exact_squares(scaled)
            second.add(squares)
            second.add(errors)
        return count

    def to_json(self) -> dict[str, Any]:
        """Return count, range and sums, without the sample, for :meth:`include`."""
        moments = {name: [s.to_json() for s in both] for name, both in self._moments.items()}
        facts = {"count": self.count, "minimum": self.minimum, "maximum": self.maximum}
        return {**facts, "sum": self._sum.to_json(), "moments": moments}

    def include(self, other: Mapping[str, Any]) -> None:
        """Add the rows that another summary of the same column saw, as it wrote itself."""
        self.count += other["count"]
        self.minimum = min(self.minimum, other["minimum"])
        self.maximum = max(self.maximum, other["maximum"])
        self._sum += ExactSum.of_json(other["sum"])
        for name, (first, second) in self._moments.items():
            first += ExactSum.of_json(other["moments"][name][0])
            second += ExactSum.of_json(other["moments"][name][1])

    @property
    def _is_scalable(self) -> bool:
        return max(-self.minimum, self.maximum) <= LARGEST_SCALED

    @property
    def mean(self) -> float:
        """Mean of the values, NaN if there are none."""
        return float(self._sum.value / self.count) if self.count else math.nan

    def moments(self, transform: str) -> tuple[float, float]:
        """Return mean and standard deviation of the values, or of their logarithms."""
        if not self.count:
            return 0.0, 0.0
        first, second = (total.value / self.count for total in self._moments[transform])
        return float(first), math.sqrt(max(second - first * first, Fraction(0)))

    def keep_sample(self, values: NDArray[np.float64]) -> None:
        """Take the rows that quantiles are learned from; NaN stands for a null."""
        self.sample = sorted_numbers(np.ascontiguousarray(values, np.float64))


def signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sign(x) log(1 + |x|)."""
    return np.copysign(np.log1p(np.abs(values)), values)


def _exact_squares(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return squares and their rounding errors (Dekker 1971): their sum is exact."""
    squares = values * values
    spread = values * _SPLITTER
    high = spread - (spread - values)
    low = values - high
    return squares, ((high * high - squares) + 2.0 * high * low) + low * low


def quantile_cuts(ordered: NDArray[np.float64], buckets: int) -> NDArray[np.float64]:
    """Return the boundaries between buckets of equal mass, closed on the left."""
    if not len(ordered):
        return np.empty(0)
    places = np.arange(1, buckets) * len(ordered) // buckets
    cuts = np.unique(ordered[places])
    return np.asarray(cuts[cuts > ordered[0]])


def bin_cuts(ordered: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return the boundaries of at most ``bins`` bins by value, midway between two values."""
    values, counts = np.unique(ordered, return_counts=True)  # (U,) each
    if len(values) <= bins:
        lasts = _merge_small(counts)
    else:
        lasts = _fill_bins(counts, max(min(bins, len(ordered) // _LEAST_BIN_ROWS), 1))
    low, high = values[lasts], values[lasts + 1]
    middle = low + (high / 2 - low / 2)
    # Requests may bring narrower numbers: a cut is one that float32 tells from the value below.
    with np.errstate(over="ignore"):
        is_between = middle.astype(np.float32) > low.astype(np.float32)
    return np.where(is_between, middle, high)


def bin_medians(ordered: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return the lower median of each bin of :func:`bin_cuts`, strictly increasing."""
    if not len(ordered):
        return np.empty(0)
    inner = np.searchsorted(ordered, bin_cuts(ordered, bins), side="left")
    edges = np.concatenate([[0], inner, [len(ordered)]])  # (bins + 1,) rows below each bin
    return np.asarray(ordered[(edges[:-1] + edges[1:] - 1) // 2])


def _merge_small(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last value of each bin but the highest, where values have bins of their own."""
    lasts, rows = [], 0
    remaining = int(counts.sum())
    for position, count in enumerate(counts.tolist()[:-1]):
        rows += count
        remaining -= count
        if rows >= _LEAST_BIN_ROWS and remaining >= _LEAST_BIN_ROWS:
            lasts.append(position)
            rows = 0
    return np.array(lasts, np.int64)


def _fill_bins(counts: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Return the last value of each bin but the highest, where bins hold several values."""
    cumulative = np.concatenate([[0], np.cumsum(counts)])  # (U + 1,) rows below each value
    total = int(cumulative[-1])
    is_heavy = counts * bins >= total
    heavy = np.append(np.flatnonzero(is_heavy), len(counts))  # ascending, with an end mark
    light_rows, light_bins = int(counts[~is_heavy].sum()), bins - int(is_heavy.sum())
    lasts: list[int] = []
    start = 0
    while len(lasts) < bins - 1:
        target = max(light_rows / light_bins, _LEAST_BIN_ROWS) if light_bins > 0 else math.inf
        next_heavy = int(heavy[np.searchsorted(heavy, start)])
        below = cumulative[next_heavy] - cumulative[start]
        last = int(np.searchsorted(cumulative, cumulative[start] + target)) - 1
        if last >= next_heavy:
            alone = below >= max(target / 2, _LEAST_BIN_ROWS)
            last = next_heavy - 1 if alone else next_heavy
        if last >= len(counts) - 1 or total - cumulative[last + 1] < _LEAST_BIN_ROWS:
            break
        lasts.append(last)
        light_rows -= int(counts[start : last + 1][~is_heavy[start : last + 1]].sum())
        light_bins -= not is_heavy[last]
        start = last + 1
    return np.array(lasts, np.int64)


def quantiles(ordered: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return quantiles at equal distances, the smallest and largest value among them."""
    if not len(ordered):
        return np.empty(0)
    places = np.arange(count) * (len(ordered) - 1) // (count - 1)
    return np.unique(ordered[places])
