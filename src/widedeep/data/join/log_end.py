"""How far logs reach, where one of them is silent, and which events are strays.

Events are counted in bins of time. A few events far from all others are strays: they do not decide
where a log begins or ends. A stretch in which one log has next to no events, although the other's
say that there should be many, is a silence: nothing was observed there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_BINS_BITS = 12
_FEWEST = 20
"""In fewer events none is a stray: there is nothing to compare it with."""
_STRAY_FRACTION, _MOST_STRAYS = 50, 1_000
"""Strays are at most one event in 50, and at most 1,000."""
_THINNER = 10
"""A stretch is silent where there is less than a tenth of the events that are expected."""
_LEAST_STRAY, _LEAST_SILENCE = 10.0, 30.0
"""Events that must be missing beyond a stray, or in a silence."""
_LONGER, _FARTHER = 3, 5
"""How much longer than a log's longest pause a stretch without events, or a stray's gap, is."""
_SPANS = 100
"""A stray's gap is at least this part of the log's span."""


class Bin(NamedTuple):
    """One log in one bin of time: how many events, the first and the last of them."""

    number: int
    events: int
    first_us: int
    last_us: int


@dataclass(frozen=True)
class Grid:
    """Bins of equal width, a power of two, over a range of time; 4,096 at most."""

    low_us: int  # Where the first begins
    high_us: int  # The last time in the last one

    @property
    def shift(self) -> int:
        """The logarithm of the width."""
        return max(0, (self.high_us - self.low_us + 1).bit_length() - _BINS_BITS)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where a log begins and ends, but for its strays."""

    first_us: int  # The first event that is no stray
    last_us: int  # The last one


def reach(bins: Sequence[Bin]) -> Reach:
    """Return how far a log reaches."""
    turned = [Bin(-b.number, b.events, -b.last_us, -b.first_us) for b in reversed(bins)]
    return Reach(first_us=-_end(turned), last_us=_end(bins))


def _core(bins: Sequence[Bin]) -> tuple[float, int] | None:
    """Return the density and the longest pause of a log without its ends; None of too few."""
    total = sum(some.events for some in bins)
    if total < _FEWEST:
        return None
    low, high = _trimmed(bins), len(bins) - _trimmed(bins[::-1])
    core = bins[low:high]
    if not core or core[-1].last_us == core[0].first_us:
        return None
    pause = max((b.first_us - a.last_us for a, b in itertools.pairwise(core)), default=0)
    count = sum(some.events for some in core)
    return count / (core[-1].last_us - core[0].first_us), pause


def _most_strays(bins: Sequence[Bin]) -> int:
    return max(1, min(sum(some.events for some in bins) // _STRAY_FRACTION, _MOST_STRAYS))


def _trimmed(bins: Sequence[Bin]) -> int:
    """Return how many bins at the beginning hold no more events than may be strays."""
    most, count = _most_strays(bins), 0
    for number, some in enumerate(bins):
        count += some.events
        if count > most:
            return number
    return len(bins)


def _end(bins: Sequence[Bin]) -> int:
    """Return the last time that is no stray's."""
    end, core = bins[-1].last_us, _core(bins)
    if core is None:
        return end
    density, _ = core
    first = _trimmed(bins)
    span = bins[len(bins) - 1 - _trimmed(bins[::-1])].last_us - bins[first].first_us
    least = max(_LEAST_STRAY / density, span / _SPANS)
    pauses = itertools.accumulate(
        (b.first_us - a.last_us for a, b in itertools.pairwise(bins[first:])), max
    )
    tail, most = 0, _most_strays(bins)
    inner = [0, *pauses]
    for number in range(len(bins) - 1, first, -1):
        tail += bins[number].events
        if tail > most:
            break
        gap = bins[number].first_us - bins[number - 1].last_us
        pause = inner[number - 1 - first]
        if gap >= max(least, _FARTHER * pause):
            end = bins[number - 1].last_us
    return end


def stops_before(bins: Sequence[Bin], end_us: int) -> bool:
    """Tell whether a log that comes steadily is silent long before a time."""
    core = _core(bins)
    if core is None:
        return False
    density, pause = core
    length = end_us - _end(bins)
    return density * length >= _LEAST_SILENCE and length >= _LONGER * pause


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A stretch of time in which a log has next to no events, although the other one has."""

    first: int  # Number of its first bin
    last: int  # Of its last
    begins: bool  # True if nothing comes before it
    ends: bool  # True if nothing comes after it
    shown: int  # Events of the other log in it
    count: int  # Events of this log in it
    expected: int  # Events of this log that the other one's would bring elsewhere


def silences(of: Sequence[Bin], beside: Sequence[Bin]) -> list[Silence]:
    """Return where a log is silent within another's range, in order of time."""
    first, last = beside[0].number, beside[-1].number
    taken: Mapping[int, int] = {b.number: b.events for b in of if first <= b.number <= last}
    shown: Mapping[int, int] = {b.number: b.events for b in beside}
    numbers = sorted({*taken, *shown})
    if not taken:
        return []
    rate = sum(taken.values()) / sum(shown.values())
    # Evidence is counted in events of the rarer log: one action may bring a hundred impressions.
    scale = min(1.0, 1 / rate)
    missing = [scale * (rate * shown.get(n, 0) - _THINNER * taken.get(n, 0)) for n in numbers]
    found = []
    for low, high in _worst(missing, 0, len(numbers)):
        inside = numbers[low:high]
        found.append(
            Silence(
                first=inside[0],
                last=inside[-1],
                begins=not any(taken.get(n) for n in numbers[:low]),
                ends=not any(taken.get(n) for n in numbers[high:]),
                shown=sum(shown.get(n, 0) for n in inside),
                count=sum(taken.get(n, 0) for n in inside),
                expected=round(rate * sum(shown.get(n, 0) for n in inside)),
            )
        )
    return found


def _worst(missing: Sequence[float], low: int, high: int) -> list[tuple[int, int]]:
    """Return the stretches that miss most: the worst of all, then those before and after it."""
    best, stretch, total, start = _LEAST_SILENCE, None, 0.0, low
    for number in range(low, high):
        if total <= 0:
            total, start = 0.0, number
        total += missing[number]
        if total >= best:
            best, stretch = total, (start, number + 1)
    if stretch is None:
        return []
    before, after = _worst(missing, low, stretch[0]), _worst(missing, stretch[1], high)
    return [*before, stretch, *after]


def zoomed(low: int, high: int, read: Callable[[Grid], list[list[Bin]]]) -> list[list[Bin]]:
    """Return the bins of several logs on a grid that fits them without their strays."""
    while True:
        logs = read(Grid(low, high))
        ends = [reach(bins) for bins in logs]
        first, last = min(end.first_us for end in ends), max(end.last_us for end in ends)
        if (last - first) * 8 >= high - low:
            return logs
        low, high = first, last
