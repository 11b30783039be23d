"""Where the log ends, and which stretches were not observed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from widedeep.errors import nearest
from widedeep.join.config import JoinConfig
from widedeep.join.engines import Engine
from widedeep.join.plan import SqlInput, literal
from widedeep.join.sql import all_keys, selected
from widedeep.join.times import PLAUSIBLE_US, moment_text, moment_us, names_zone

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
    last: int  # Number of its last bin
    begins: bool  # True if nothing comes before it
    ends: bool  # True if nothing comes after it
    other_count: int  # Events of the other log in it
    count: int  # Events of this log in it
    expected: int  # Events of this log that the other one's would bring elsewhere


def silences(of: Sequence[Bin], other: Sequence[Bin]) -> list[Silence]:
    """Return where a log is silent within another's range, in order of time."""
    first, last = other[0].number, other[-1].number
    own_events: Mapping[int, int] = {b.number: b.events for b in of if first <= b.number <= last}
    other_events: Mapping[int, int] = {b.number: b.events for b in other}
    numbers = sorted({*own_events, *other_events})
    if not own_events:
        return []
    rate = sum(own_events.values()) / sum(other_events.values())
    # Evidence is counted in events of the rarer log: one action may bring a hundred impressions.
    scale = min(1.0, 1 / rate)
    missing = [
        scale * (rate * other_events.get(n, 0) - _THINNER * own_events.get(n, 0)) for n in numbers
    ]
    silent = []
    for low, high in _worst(missing, 0, len(numbers)):
        inside = numbers[low:high]
        silent.append(
            Silence(
                first=inside[0],
                last=inside[-1],
                begins=not any(own_events.get(n) for n in numbers[:low]),
                ends=not any(own_events.get(n) for n in numbers[high:]),
                other_count=sum(other_events.get(n, 0) for n in inside),
                count=sum(own_events.get(n, 0) for n in inside),
                expected=round(rate * sum(other_events.get(n, 0) for n in inside)),
            )
        )
    return silent


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


_TRACKED_KINDS = 20
_SHOWN = 5
_LAG = 0.25
"""Actions spread evenly over their window are a tenth of the later ones for less than this."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How far the logs reach."""

    log_end_us: int  # When both have ended
    reach: Mapping[str, Reach]  # Reach of each log by its name
    notes: tuple[str, ...]  # What a person should know


@dataclass
class LogCoverage:
    """Finds where the log ends: where both logs reach, unless the configuration says when."""

    engine: Engine
    config: JoinConfig
    sources: Mapping[str, SqlInput]
    ranges: Mapping[str, tuple[int, int]]
    notes: list[str] = field(default_factory=list)

    def result(self) -> Coverage:
        """Return how far the logs reach, and what a person should know of them."""
        logs = [name for name in ("impressions", "actions") if name in self.sources]
        kinds = self._kinds()
        ends = [self.ranges[name] for name in logs]
        bins = dict(
            zip(
                [*logs, *kinds],
                zoomed(
                    min(low for low, _ in ends),
                    max(high for _, high in ends),
                    lambda grid: self._read(grid, logs, kinds),
                ),
                strict=True,
            )
        )
        reaches = {name: reach(bins[name]) for name in logs}
        for name in logs:
            self._note_strays(name, reaches[name])
            self._note_implausible(name, reaches[name])
            bins[name] = [
                some
                for some in bins[name]
                if some.last_us >= reaches[name].first_us and some.first_us <= reaches[name].last_us
            ]
        last = {name: reaches[name].last_us for name in logs}
        if "impressions" in bins:
            last |= self._note_silences(bins, kinds)
        self._note_attributes(last[logs[0]])
        return Coverage(
            log_end_us=self._log_end(last), reach=reaches, notes=tuple(dict.fromkeys(self.notes))
        )

    def _kinds(self) -> list[str]:
        """Return the kinds of actions that labels and history features count and that occur."""
        if "wd_kind" not in self.sources["actions"].key:
            return []
        users = [(label.name, label.kinds) for label in self.config.labels]
        users += [(feature.name, feature.kinds) for feature in self.config.history]
        declared = sorted({kind for _, kinds in users for kind in kinds})
        rows = f"({selected(self.sources['actions'])}) AS wd_l"
        common = self._kind_counts(f"{rows} WHERE wd_kind IS NOT NULL")
        nulls = self._count("actions", "wd_kind IS NULL")
        if nulls:
            self.notes.append(
                f"actions: {nulls:,} have no kind ({self.config.actions.kind!r} is null); no label "
                "or history feature that names kinds counts them"
            )
        listed = ", ".join(literal(kind) for kind in declared)
        present = self._kind_counts(f"{rows} WHERE wd_kind IN ({listed})") if declared else []
        for name, kinds in users:
            for kind in kinds:
                if kind not in present:
                    self.notes.append(
                        f"{name!r} counts actions of kind {kind!r}, and there is none; "
                        f"{nearest(kind, common)}"
                    )
        all_count = any(not label.kinds for label in self.config.labels)
        return list(dict.fromkeys([*present, *(common if all_count else [])]))

    def _kind_counts(self, rows: str) -> list[str]:
        """Return kinds, the most frequent ones first."""
        counted = self.engine.rows(
            f"SELECT wd_kind, COUNT(*) AS n FROM {rows} GROUP BY wd_kind "
            f"ORDER BY n DESC, wd_kind LIMIT {_TRACKED_KINDS}"
        )
        return [str(row["wd_kind"]) for row in counted]

    def _read(self, grid: Grid, logs: Sequence[str], kinds: Sequence[str]) -> list[list[Bin]]:
        """Count the events of the logs on a grid, and of the actions each kind."""
        whole = [self._bins(self.sources[name], grid, "NULL") for name in logs[:-1]]
        kind = "NULL"
        if kinds:
            listed = ", ".join(literal(kind) for kind in kinds)
            kind = f"CASE WHEN wd_kind IN ({listed}) THEN wd_kind END"
        by_kind = self._bins(self.sources["actions"], grid, kind)
        whole.append(by_kind)
        return [
            *(_merged(bins) for bins in whole),
            *([some for name, some in by_kind if name == kind] for kind in kinds),
        ]

    def _bins(self, source: SqlInput, grid: Grid, kind: str) -> list[tuple[str | None, Bin]]:
        rows = self.engine.rows(
            f"SELECT wd_of, wd_bin, COUNT(*) AS n, MIN(wd_time) AS low, MAX(wd_time) AS high FROM "
            f"(SELECT wd_time, CAST({kind} AS VARCHAR) AS wd_of, "
            f"(wd_time - CAST({grid.low_us} AS BIGINT)) >> {grid.shift} AS wd_bin FROM "
            f"({selected(source)} WHERE {all_keys(source)}) AS wd_l "
            f"WHERE wd_time >= {grid.low_us} AND wd_time <= {grid.high_us}) AS wd_m "
            "GROUP BY wd_of, wd_bin ORDER BY wd_bin, wd_of"
        )
        return [
            (row["wd_of"], Bin(*(int(row[name]) for name in ("wd_bin", "n", "low", "high"))))
            for row in rows
        ]

    def _note_strays(self, name: str, log_reach: Reach) -> None:
        first, last = self.ranges[name]
        for side, outside, end in (
            ("last", last > log_reach.last_us, last),
            ("first", first < log_reach.first_us, first),
        ):
            if not outside:
                continue
            bound = log_reach.last_us if side == "last" else log_reach.first_us
            count = self._count(name, f"wd_time {'>' if side == 'last' else '<'} {bound}")
            self.notes.append(
                f"{name}: {count:,} of the events lie far from all others, the {side} one at "
                f"{moment_text(end)}; they do not decide that the log "
                f"{'ends' if side == 'last' else 'begins'} at {moment_text(bound)}: correct their "
                "times, or set log_end if they are right"
            )

    def _note_implausible(self, name: str, log_reach: Reach) -> None:
        log = self.config.impressions if name == "impressions" else self.config.actions
        assert log is not None
        low, high = PLAUSIBLE_US
        if log.time_unit == "auto" and not low <= log_reach.first_us <= log_reach.last_us < high:
            self.notes.append(
                f"{name}: column {log.time!r} has times from {moment_text(log_reach.first_us)} to "
                f"{moment_text(log_reach.last_us)}: were they written in another unit?"
            )

    def _count(self, name: str, condition: str) -> int:
        source = self.sources[name]
        rows = f"({selected(source)} WHERE {all_keys(source)}) AS wd_l"
        return int(self.engine.rows(f"SELECT COUNT(*) AS n FROM {rows} WHERE {condition}")[0]["n"])

    def _note_silences(self, bins: Mapping[str, list[Bin]], kinds: Sequence[str]) -> dict[str, int]:
        """Say where a log is silent; return the ends of those that stop before the other."""
        ends: dict[str, int] = {}
        begins = bins["impressions"][0].first_us
        whole = silences(bins["actions"], bins["impressions"])
        whole = self._unexplained(whole, bins["actions"], begins)
        for name, other, silent in (
            ("actions", "impressions", whole),
            ("impressions", "actions", silences(bins["impressions"], bins["actions"])),
        ):
            for some in silent:
                before = [b.last_us for b in bins[name] if b.number < some.first]
                if some.ends and before:
                    ends[name] = max(before)
            listed = [self._silence(name, other, bins[name], some) for some in silent]
            self.notes += listed[:_SHOWN] + listed[_SHOWN:][-1:]
            if len(listed) > _SHOWN + 1:
                self.notes.append(f"{name}: {len(listed) - _SHOWN - 1} more such stretches")
        for kind in kinds:
            silent = silences(bins[kind], bins["impressions"])
            for some in self._unexplained(silent, bins[kind], begins):
                if not any(a.first <= some.last and some.first <= a.last for a in whole):
                    name = f"actions of kind {kind!r}"
                    self.notes.append(self._silence(name, "impressions", bins[kind], some))
        return ends

    def _unexplained(
        self, silent: Sequence[Silence], bins: Sequence[Bin], begins: int
    ) -> list[Silence]:
        """Leave out a beginning in which actions are few because they come after impressions."""
        window = max(label.window_us for label in self.config.labels)
        return [
            some
            for some in silent
            if not some.begins
            or min(b.first_us for b in bins if b.number > some.last) - begins > window * _LAG
        ]

    def _silence(self, name: str, other: str, bins: Sequence[Bin], some: Silence) -> str:
        before = [b.last_us for b in bins if b.number < some.first]
        after = [b.first_us for b in bins if b.number > some.last]
        if some.ends and before:
            when = f"after {moment_text(max(before))}"
        elif some.begins and after:
            when = f"before {moment_text(min(after))}"
        else:
            when = f"between {moment_text(max(before))} and {moment_text(min(after))}"
        count = f"{some.count:,}" if some.count else "none"
        if name == "impressions" and some.ends and before:
            effect = (
                "the log is taken to end there; if nothing was shown later, set log_end to the "
                "end of the actions, so that windows that have closed by then are kept"
            )
        elif name == "impressions":
            effect = "actions there find no impression"
        elif some.ends and name == "actions":
            includes_open = self.config.open_windows == "keep" or self.config.log_end is not None
            effect = (
                "labels there are 0 because nothing was observed"
                if includes_open
                else "impressions whose windows reach beyond are left out"
            )
        else:
            effect = "labels are 0 and histories empty there because nothing was observed"
        return (
            f"{name}: {count} {when}, where about {some.expected:,} would belong to the "
            f"{some.other_count:,} {other} of that time; is a part of the log missing? {effect}"
        )

    def _note_attributes(self, end_us: int) -> None:
        for of in ("user", "item"):
            name = f"{of}_attributes"
            if name not in self.sources or not self._is_dated(of):
                continue
            low, high = self.ranges[name]
            bins = _merged(self._bins(self.sources[name], Grid(low, high), "NULL"))
            if stops_before(bins, end_us):
                self.notes.append(
                    f"{name}: the last version is valid from {moment_text(high)}, long before the "
                    f"log's end at {moment_text(end_us)}, and versions came steadily before; is a "
                    "part of them missing?"
                )

    def _is_dated(self, of: str) -> bool:
        source = self.config.user_attributes if of == "user" else self.config.item_attributes
        return source is not None and source.valid_from is not None

    def _log_end(self, last: Mapping[str, int]) -> int:
        end = self.config.log_end
        moments = [("[split] boundaries", moment) for moment in self.config.split.boundaries or ()]
        if end is not None:
            moments.append(("log_end", end))
        for where, moment in moments:
            if not names_zone(moment):
                self.notes.append(f"{where}: {str(moment)!r} names no zone and is read as UTC")
        if end is None:
            return min(last.values())
        end_us = moment_us(end, "log_end")
        for name, reached in last.items():
            if end_us > reached:
                self.notes.append(
                    f"log_end: {moment_text(end_us)} is later than the {name} reach "
                    f"({moment_text(reached)}); windows after that were not observed"
                )
        return end_us


def _merged(bins: Sequence[tuple[str | None, Bin]]) -> list[Bin]:
    """Return the bins of all kinds together."""
    merged: list[Bin] = []
    for _, some in bins:
        if merged and merged[-1].number == some.number:
            last = merged.pop()
            some = Bin(
                some.number,
                last.events + some.events,
                min(last.first_us, some.first_us),
                max(last.last_us, some.last_us),
            )
        merged.append(some)
    return merged
