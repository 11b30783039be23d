"""Configuration of a join: frozen dataclasses, read from TOML."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from widedeep.errors import ConfigError, nearest, show_value
from widedeep.join.times import MICROSECONDS, duration_us, moment_us, offset_us
from widedeep.options import (
    check_table,
    check_types,
    read_section,
    read_tables,
    resolve_paths,
    unknown_section,
)
from widedeep.remote import check_local

Key = str | int
HistoryValue = int | float | None | list[Key]


@dataclass(frozen=True, kw_only=True)
class History:
    """A feature computed from what happened strictly before an impression.

    An event at time e counts for an impression at time t if e < t - delay, where delay is the
    ``availability_delay`` of the event's log, and e >= t - window if there is a window. So neither
    the impression itself, nor an action on it, nor anything at the same microsecond can enter.

    Args:
        name: Name of the column.
        feature: ``"last"``: the user's last ``k`` items, newest first (of several at one time the
            greatest item id first). ``"count"``: of events. ``"since"``: seconds since the last
            event, null if there is none. ``"rate"``: (actions + prior * strength) / (impressions +
            strength).
        by: The impression's ``"user"``, its ``"item"`` or the ``"pair"``, whose events count.
        of: What is listed, counted or timed: ``"actions"`` or ``"impressions"``.
        kinds: Kinds of actions that count; empty: all.
        window: How far back events count; None: without end.
        k: Items in the list of ``"last"``.
        prior: Value of ``"rate"`` where nothing was seen.
        strength: Impressions that the prior of ``"rate"`` weighs.

    Example:
        >>> History(name="item_ctr", feature="rate", by="item", window="7d", prior=0.02).window
        '7d'
    """

    name: str
    feature: Literal["last", "count", "since", "rate"]
    by: Literal["user", "item", "pair"] = "user"
    of: Literal["actions", "impressions"] = "actions"
    kinds: tuple[str, ...] = ()
    window: str | float | datetime.timedelta | None = None
    k: int = 10
    prior: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        where = f"history {show_value(self.name)}"
        check_types(self, where)
        if self.window is not None and self.window_us == 0:
            raise ConfigError(f"{where}: got a window of 0, expected more")
        if self.feature == "last" and (self.by != "user" or self.window is not None or self.k < 1):
            raise ConfigError(
                f"{where}: 'last' lists items of the user (by = 'user'), without a window, with "
                f"k of at least 1; got by = {self.by!r}, window = {self.window!r}, k = {self.k}"
            )
        if self.feature == "rate" and (self.of != "actions" or self.strength <= 0):
            raise ConfigError(
                f"{where}: 'rate' is actions per impression with strength > 0; got "
                f"of = {self.of!r}, strength = {self.strength}"
            )
        if not (math.isfinite(self.prior) and math.isfinite(self.strength)):
            raise ConfigError(
                f"{where}: got prior = {self.prior}, strength = {self.strength}, expected finite "
                "numbers"
            )
        if self.kinds and self.of == "impressions":
            raise ConfigError(f"{where}: impressions have no kinds; got kinds = {self.kinds}")

    @property
    def window_us(self) -> int | None:
        """The window in microseconds, or None."""
        if self.window is None:
            return None
        return duration_us(self.window, f"history {self.name!r}: window")

    @property
    def needs_impressions(self) -> bool:
        """True if impressions are counted."""
        return self.of == "impressions" or self.feature == "rate"


@dataclass(frozen=True)
class _Stream:
    """The events that one count looks at: of a log, by a scope, of kinds."""

    by: str
    of: str
    kinds: tuple[str, ...]


class HistoryState:
    """Computes history features event by event, with the definitions that the join uses.

    A server keeps one and calls :meth:`observe_action` and :meth:`observe_impression` as events
    come, in any order, and :meth:`features` for a candidate.

    Args:
        history: The definitions.
        action_delay: ``availability_delay`` of the actions log.
        impression_delay: ``availability_delay`` of the impressions log.

    Example:
        >>> state = HistoryState([History(name="clicks", feature="count")])
        >>> state.observe_action("ann", "lamp", 1_000_000)
        >>> state.features("ann", "vase", 1_000_000), state.features("ann", "vase", 1_000_001)
        ({'clicks': 0}, {'clicks': 1})
    """

    def __init__(
        self,
        history: Sequence[History],
        *,
        action_delay: str | float = 0,
        impression_delay: str | float = 0,
    ) -> None:
        self._history = tuple(history)
        self._delay_us = {
            "actions": duration_us(action_delay, "action_delay"),
            "impressions": duration_us(impression_delay, "impression_delay"),
        }
        self._times: dict[_Stream, dict[object, _Times]] = {
            stream: {} for feature in self._history for stream in _streams(feature)
        }
        self._items: dict[_Stream, dict[Key, list[tuple[int, Key]]]] = {
            _streams(feature)[0]: {} for feature in self._history if feature.feature == "last"
        }

    @classmethod
    def of_definitions(cls, definitions: Mapping[str, Mapping[str, Any]]) -> HistoryState:
        """Return a state that computes the columns that a schema or bundle lists.

        Args:
            definitions: ``schema.history`` or ``bundle.history``.

        Raises:
            ConfigError: If the definitions do not come from one join.
        """
        delays = {(d["action_delay"], d["impression_delay"]) for d in definitions.values()}
        if len(delays) > 1:
            raise ConfigError(f"history: got several delays of the logs: {sorted(delays)}")
        field_names = {entry.name for entry in fields(History)}
        history = [
            History(**{key: definition[key] for key in definition if key in field_names})
            for definition in definitions.values()
        ]
        action_delay, impression_delay = delays.pop() if delays else (0, 0)
        return cls(history, action_delay=action_delay, impression_delay=impression_delay)

    def observe_action(self, user: Key, item: Key, time_us: int, kind: str = "action") -> None:
        """Take in an action.

        Args:
            user: The user's id.
            item: The item's id.
            time_us: Its event time in microseconds since 1970.
            kind: Its kind.
        """
        self._observe("actions", user, item, time_us, kind)

    def observe_impression(self, user: Key, item: Key, time_us: int) -> None:
        """Take in an impression; the arguments are those of :meth:`observe_action`."""
        self._observe("impressions", user, item, time_us, None)

    def _observe(self, of: str, user: Key, item: Key, time_us: int, kind: str | None) -> None:
        for stream, by_key in self._times.items():
            if stream.of == of and (not stream.kinds or kind in stream.kinds):
                times = by_key.setdefault(_key(stream.by, user, item), _Times())
                insort(times.kept, time_us)
        for stream, by_user in self._items.items():
            if stream.of == of and (not stream.kinds or kind in stream.kinds):
                insort(by_user.setdefault(user, []), (time_us, item))

    def features(self, user: Key, item: Key, time_us: int) -> dict[str, HistoryValue]:
        """Return every feature for an impression.

        Args:
            user: The user's id.
            item: The candidate's id.
            time_us: When it is shown, in microseconds since 1970.

        Returns:
            Feature name to value: a list, an integer, a number of seconds or None, or a rate.
        """
        return {
            feature.name: self._value(feature, user, item, time_us) for feature in self._history
        }

    def _value(self, feature: History, user: Key, item: Key, time_us: int) -> HistoryValue:
        streams = _streams(feature)
        if feature.feature == "last":
            return self._last(feature, streams[0], user, time_us)
        event_times = [self._seen(stream, _key(stream.by, user, item)) for stream in streams]
        ends = [time_us - self._delay_us[stream.of] for stream in streams]
        start = None if feature.window_us is None else time_us - feature.window_us
        if feature.feature == "since":
            last = event_times[0].last_before(ends[0], start)
            return None if last is None else (time_us - last) / MICROSECONDS
        counts = [times.count(start, end) for times, end in zip(event_times, ends, strict=True)]
        if feature.feature == "count":
            return counts[0]
        weight = feature.strength
        return (counts[0] + feature.prior * weight) / (counts[1] + weight)

    def _last(self, feature: History, stream: _Stream, user: Key, time_us: int) -> list[Key]:
        events = self._items[stream].get(user, [])
        end = bisect_left(events, time_us - self._delay_us[stream.of], key=lambda event: event[0])
        return [item for _, item in reversed(events[max(0, end - feature.k) : end])]

    def _seen(self, stream: _Stream, key: object) -> _Times:
        return self._times[stream].get(key) or _Times()

    def forget(self, before_us: int) -> None:
        """Drop what no feature at ``before_us`` or later needs; features from then on stay exact.

        Args:
            before_us: No feature is asked for an earlier time any more, and no event with an
                earlier time comes any more.
        """
        for stream, by_key in self._times.items():
            windows = [f.window_us for f in self._history if stream in _streams(f)]
            longest = max((w for w in windows if w is not None), default=0)
            cut = before_us - max(longest, self._delay_us[stream.of])
            for times in by_key.values():
                times.forget(cut)
        for stream, by_user in self._items.items():
            most = max(f.k for f in self._history if _streams(f)[0] == stream)
            cut = before_us - self._delay_us[stream.of]
            for events in by_user.values():
                end = bisect_left(events, cut, key=lambda event: event[0])
                del events[: max(0, end - most)]


class _Times:
    """Event times in order; the oldest may be forgotten but for their number and the last."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.forgotten = 0
        self.last_forgotten: int | None = None

    def count(self, start: int | None, end: int) -> int:
        """Count events in [start, end); start None: from the beginning."""
        low = -self.forgotten if start is None else bisect_left(self.kept, start)
        return max(0, bisect_left(self.kept, end) - low)

    def last_before(self, end: int, start: int | None) -> int | None:
        """Return the time of the last event in [start, end)."""
        index = bisect_left(self.kept, end)
        last = self.kept[index - 1] if index else self.last_forgotten
        return None if last is None or (start is not None and last < start) else last

    def forget(self, cut: int) -> None:
        """Forget events before ``cut``."""
        end = bisect_left(self.kept, cut)
        if end:
            self.forgotten += end
            self.last_forgotten = self.kept[end - 1]
            del self.kept[:end]


def _streams(feature: History) -> tuple[_Stream, ...]:
    first = _Stream(feature.by, feature.of, feature.kinds)
    if feature.feature == "rate":
        return first, _Stream(feature.by, "impressions", ())
    return (first,)


def _key(by: str, user: Key, item: Key) -> object:
    return user if by == "user" else item if by == "item" else (user, item)


def check_delays(history: Iterable[History], delay_us: dict[str, int]) -> None:
    """Raise ConfigError where a window ends before its log's events become available."""
    for feature in history:
        logs = {feature.of} | ({"impressions"} if feature.needs_impressions else set())
        for of in sorted(logs):
            if feature.window_us is not None and feature.window_us <= delay_us[of]:
                raise ConfigError(
                    f"history {feature.name!r}: got window = {feature.window!r}, which is not "
                    f"longer than the availability_delay of the {of}, so nothing could ever enter "
                    "it; lengthen the window"
                )


Duration = str | float | datetime.timedelta
Moment = str | datetime.date
TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
SPLITS = ("train", "valid", "test")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class JoinInput:
    """Where the rows of an input are, and how its times are written.

    Args:
        path: A path, a glob, a list of them (Parquet or CSV); or, in Python, a data frame or an
            Arrow table. With ``engine="spark"`` also Parquet behind URLs, which Spark opens
            (``"s3a://bucket/log/"``, ``"hdfs:///log/*.parquet"``).
        table: Table in the DuckDB file ``path``; with ``engine="spark"`` and no ``path`` a table of
            Spark's catalogue, such as ``"lake.shop.impressions"``.
        time_unit: Unit of integer times; ``"auto"`` infers it from their range.
        timezone: Zone of times without one: ``"UTC"`` or an offset such as ``"+02:00"``; None: UTC,
            with a note.
        availability_delay: How long after its time an event may first enter a history, or a version
            may first be used.
        null_values: Words that stand for a missing value in CSV files, such as ``["NA", "?"]``.
    """

    path: Any = None
    table: str | None = None
    time_unit: TimeUnit = "auto"
    timezone: str | None = None
    availability_delay: Duration = "0s"
    null_values: tuple[str, ...] = ()

    section: ClassVar[str]

    def __post_init__(self) -> None:
        check_types(self, self.section)
        has_path = self.path is not None and not (isinstance(self.path, str) and not self.path)
        _check(
            has_path or self.table is not None,
            f"{self.section}: got neither 'path' nor 'table'; give a path (or, with engine = "
            "'spark', a table of Spark's catalogue)",
        )
        duration_us(self.availability_delay, f"{self.section}: availability_delay")
        if self.timezone is not None:
            offset_us(self.timezone, f"{self.section}: timezone")


@dataclass(frozen=True, kw_only=True)
class ImpressionLog(JoinInput):
    """Where the impressions are, and which of their columns mean what.

    Args:
        path: This and further fields are those of :class:`JoinInput`.
        request: Column with the id of the request; None: a user's impressions at one time are a
            request.
        user: Column with the user's id, text or integer.
        item: Column with the item's id, text or integer.
        position: Column with the place in the list, if it was logged.
        time: Column with the event time: a timestamp, a date, ISO 8601 text, or seconds,
            milliseconds, microseconds or nanoseconds since 1970.
        columns: The context and served feature columns to keep; None keeps all.
    """

    request: str | None = "request_id"
    user: str = "user_id"
    item: str = "item_id"
    position: str | None = None
    time: str = "event_time"
    columns: tuple[str, ...] | None = None

    section: ClassVar[str] = "[impressions]"


@dataclass(frozen=True, kw_only=True)
class ActionLog(JoinInput):
    """Where the actions are, and which of their columns mean what.

    Args:
        path: This and further fields are those of :class:`JoinInput`.
        user: Column with the user's id.
        item: Column with the item's id.
        time: Column with the event time.
        kind: Column with the kind of action; None: all are of the kind ``"action"``.
        value: Column with a number (a price, a duration), for labels with ``value = true``.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "event_time"
    kind: str | None = None
    value: str | None = None

    section: ClassVar[str] = "[actions]"


@dataclass(frozen=True, kw_only=True)
class Attributes(JoinInput):
    """Where the attributes of users or items are; each row is a version of one of them.

    Args:
        path: This and further fields are those of :class:`JoinInput`.
        key: Column with the user's or item's id.
        valid_from: Column with the time from which a version is valid; None: one version each,
            valid always.
        columns: The columns to join; None takes all.
    """

    key: str
    valid_from: str | None = None
    columns: tuple[str, ...] | None = None

    section: ClassVar[str] = "attributes"


@dataclass(frozen=True, kw_only=True)
class Label:
    """A column derived from the actions that follow an impression.

    Args:
        name: Name of the column.
        kinds: Kinds of actions that count; empty: all.
        window: How long after the impression an action still counts, its end included.
        value: False: 1 if there is such an action, else 0. True: the sum of the actions' values,
            added without rounding, so that no order of adding can change it. A null value adds 0.
    """

    name: str = "label"
    kinds: tuple[str, ...] = ()
    window: Duration = "1d"
    value: bool = False

    def __post_init__(self) -> None:
        check_types(self, f"label {show_value(self.name)}")
        _check(bool(self.name), "[[labels]]: got an empty name")
        duration_us(self.window, f"label {self.name!r}: window")

    @property
    def window_us(self) -> int:
        """The window in microseconds."""
        return duration_us(self.window)


def _texts(moments: Sequence[Moment]) -> list[str]:
    return [str(moment) for moment in moments]


@dataclass(frozen=True, kw_only=True)
class Split:
    """How examples are divided into train, valid and test. No request is in two of them.

    Args:
        by: ``"time"`` of the request, ``"user"``, ``"both"`` (a row is kept if its time and its
            user fall in the same part, and else left out and counted), or ``"none"``: all train.
        fractions: Shares of train, valid and test, in time order; they add to 1.
        boundaries: Times at which valid and test begin, in place of fractions of the time: text, or
            TOML's dates and times; UTC where they name no zone.
    """

    by: Literal["time", "user", "both", "none"] = "time"
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    boundaries: tuple[Moment, ...] | None = None

    def __post_init__(self) -> None:
        check_types(self, "[split]")
        _check(
            len(self.fractions) == 3
            and all(fraction >= 0 for fraction in self.fractions)
            and abs(sum(self.fractions) - 1) < 1e-9
            and self.fractions[0] > 0,
            f"[split]: got fractions = {list(self.fractions)!r}, expected three shares (train > 0, "
            "valid, test) that add to 1",
        )
        if self.boundaries is None:
            return
        _check(
            self.by in ("time", "both") and len(self.boundaries) == 2,
            f"[split]: got boundaries = {_texts(self.boundaries)} with by = {self.by!r}, expected "
            "two times (valid begins, test begins) with by = 'time' or 'both'",
        )
        first, second = self.boundaries_us or (0, 0)
        _check(first <= second, f"[split]: got boundaries out of order: {_texts(self.boundaries)}")

    @property
    def boundaries_us(self) -> tuple[int, int] | None:
        """The boundaries in microseconds."""
        if self.boundaries is None:
            return None
        first, second = (moment_us(text, "[split]: boundaries") for text in self.boundaries)
        return first, second


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """How negatives are thinned out, or drawn where the log has positives only.

    Args:
        rate: Share of the negatives kept, 0 < rate <= 1; those kept get ``weight = 1 / rate``.
        by: ``"impression"`` keeps each negative by itself; ``"request"`` keeps or drops whole
            requests without a positive.
        splits: The splits that are thinned out.
        per_positive: Without an impressions log: negatives drawn for each positive.
        draw: ``"popularity"`` draws an item as often as it was acted on before that time;
            ``"uniform"`` draws from all items acted on before that time.
    """

    rate: float = 1.0
    by: Literal["impression", "request"] = "impression"
    splits: tuple[str, ...] = ("train",)
    per_positive: int = 0
    draw: Literal["popularity", "uniform"] = "popularity"

    def __post_init__(self) -> None:
        check_types(self, "[negatives]")
        _check(0 < self.rate <= 1, f"[negatives]: got rate = {self.rate}, expected 0 < rate <= 1")
        _check(
            self.per_positive >= 0,
            f"[negatives]: got per_positive = {self.per_positive}, expected 0 or more",
        )
        for name in self.splits:
            _check(
                name in SPLITS,
                f"[negatives]: got the unknown split {name!r}; {nearest(name, SPLITS)}",
            )


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """Everything a join needs, as one value.

    Args:
        output: The folder that is made.
        actions: The actions log.
        impressions: The impressions log; None draws negatives for each action instead.
        user_attributes: Versions of users' attributes.
        item_attributes: Versions of items' attributes.
        labels: At least one.
        history: The features computed from earlier events.
        split: How examples are split into train, valid and test.
        negatives: How negatives are sampled or drawn.
        touch: The impression that gets the credit where several precede an action: the ``"last"``,
            the ``"first"`` within the window, or ``"all"`` of them.
        open_windows: Impressions so young that their window had not closed when the log ended are
            left out (``"drop"``) or kept (``"keep"``), and counted.
        log_end: When both logs end; None: at the last impression or the last action, whichever is
            earlier, but for strays. Text, or TOML's dates and times; UTC where no zone is named.
        duplicates: Impressions with the same request, item and position are an ``"error"``, or the
            first is kept (``"drop"``).
        null_keys: Rows without a user, item, time or request are an ``"error"`` or left out
            (``"drop"``), and counted.
        seed: Seed of all random draws.
        engine: ``"duckdb"`` (in this process) or ``"spark"``.
        memory_limit: DuckDB's memory limit, such as ``"1GB"``; it spills beyond. None: 80 % of RAM.
        spill_folder: Folder that DuckDB spills to; None: beside the output.
        threads: DuckDB's threads; None: one per core.
        spark_master: Where Spark runs: ``"local[2]"`` or a cluster's URL; None: the session's that
            runs in this process, else ``spark-submit``'s or ``spark-defaults.conf``'s, else all
            cores of this machine. A session that runs keeps its settings: the join has its own.
        spark_options: Further settings of the Spark session.
        partition_rows: Impressions a pass over a partition of the users, about. Examples are in the
            order of these partitions, then of time, on either engine.
        shard_rows: Rows a file, at most.
    """

    output: str
    actions: ActionLog
    impressions: ImpressionLog | None = None
    user_attributes: Attributes | None = None
    item_attributes: Attributes | None = None
    labels: tuple[Label, ...] = (Label(),)
    history: tuple[History, ...] = ()
    split: Split = field(default_factory=Split)
    negatives: Negatives = field(default_factory=Negatives)
    touch: Literal["last", "first", "all"] = "last"
    open_windows: Literal["drop", "keep"] = "drop"
    log_end: Moment | None = None
    duplicates: Literal["error", "drop"] = "error"
    null_keys: Literal["error", "drop"] = "error"
    seed: int = 0
    engine: Literal["duckdb", "spark"] = "duckdb"
    memory_limit: str | None = None
    spill_folder: str | None = None
    threads: int | None = None
    spark_master: str | None = None
    spark_options: Mapping[str, str] = field(default_factory=dict)
    partition_rows: int = 1_000_000
    shard_rows: int = 1_000_000

    def __post_init__(self) -> None:
        check_types(self, "[join]")
        _check(self.output != "", "got output = '', expected a folder")
        check_local(self.output, "[join] output")
        check_local(self.spill_folder or "", "[join] spill_folder")
        _check(len(self.labels) > 0, "got no [[labels]], expected at least one")
        _check_unique([label.name for label in self.labels], "[[labels]]")
        _check_unique([feature.name for feature in self.history], "[[history]]")
        for name in ("partition_rows", "shard_rows"):
            _check(getattr(self, name) >= 1, f"got {name} = {getattr(self, name)}, expected >= 1")
        _check(
            self.threads is None or self.threads >= 1,
            f"got threads = {self.threads}, expected at least 1",
        )
        if self.log_end is not None:
            moment_us(self.log_end, "log_end")
        if any(label.value for label in self.labels) and self.actions.value is None:
            raise ConfigError(
                "a label has value = true, but [actions] names no value column; set "
                "actions.value = 'COLUMN'"
            )
        self._check_kinds()
        self._check_positives_only()

    def _check_kinds(self) -> None:
        """Without a column of kinds every action is an ``"action"``, and no other kind occurs."""
        if self.actions.kind is not None:
            return
        kinds_by_name = [(label.name, label.kinds) for label in self.labels]
        kinds_by_name += [(feature.name, feature.kinds) for feature in self.history]
        for name, kinds in kinds_by_name:
            if kinds and "action" not in kinds:
                raise ConfigError(
                    f"{name!r} asks for kinds = {list(kinds)}, but [actions] names no column of "
                    "kinds; set actions.kind = 'COLUMN', or leave kinds out"
                )

    def _check_positives_only(self) -> None:
        if self.impressions is not None:
            _check(
                self.negatives.per_positive == 0,
                "[negatives]: per_positive draws negatives for a log of positives only; leave it "
                "out, or leave [impressions] out",
            )
            return
        _check(
            self.negatives.per_positive > 0,
            "got no [impressions]; name the log, or set negatives.per_positive to draw negatives "
            "for each action",
        )
        for feature in self.history:
            _check(
                not feature.needs_impressions,
                f"history {feature.name!r} counts impressions, but there is no [impressions]",
            )

    def to_table(self) -> dict[str, Any]:
        """Return the configuration as nested tables of plain values, defaults included."""
        return {key: _plain(value) for key, value in _fields(self).items()}


def _fields(value: Any) -> dict[str, Any]:
    return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, list) and value and not isinstance(value[0], (str, int, float)):
        return "in memory: rows"
    if dataclasses.is_dataclass(value):
        return {key: _plain(inner) for key, inner in _fields(value).items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value / datetime.timedelta(seconds=1)
    return f"in memory: {type(value).__name__}"


def _check_unique(names: list[str], where: str) -> None:
    for name in names:
        _check(names.count(name) == 1, f"{where}: got the name {name!r} twice")


_SECTIONS: dict[str, type[Any]] = {
    "impressions": ImpressionLog,
    "actions": ActionLog,
    "user_attributes": Attributes,
    "item_attributes": Attributes,
    "split": Split,
    "negatives": Negatives,
}
_LISTS: dict[str, type[Any]] = {"labels": Label, "history": History}
_INPUTS = ("impressions", "actions", "user_attributes", "item_attributes")
_PLACES = ("join.output", "join.spill_folder", *(f"{name}.path" for name in _INPUTS))


def load_join_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> JoinConfig:
    """Read a join's TOML file. Relative paths in it are relative to its folder.

    Args:
        path: The file, with the tables ``[join]``, ``[impressions]``, ``[actions]``,
            ``[user_attributes]``, ``[item_attributes]``, ``[[labels]]``, ``[[history]]``,
            ``[split]`` and ``[negatives]``.
        overrides: ``"split.by=user"`` and the like; the value is read as TOML, or as text if it is
            none. Paths in them are relative to the working folder.

    Raises:
        ConfigError: For a missing or broken file, an unknown section or key (with the nearest), or
            a bad value.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "join.toml"
        >>> _ = path.write_text('''
        ... join.output = "examples"
        ... impressions.path = "impressions/*.parquet"
        ... actions = { path = "actions.parquet", kind = "kind" }
        ... labels = [{ name = "label", kinds = ["click"], window = "1d" }]
        ... ''')
        >>> load_join_config(path).labels[0].window_us
        86400000000
    """
    tables = read_tables(path, overrides, places=_PLACES)
    return join_config_from_tables(tables, folder=Path(path).parent, origin=str(path))


def is_join(tables: Mapping[str, Any]) -> bool:
    """Tell whether the tables of a TOML file configure a join, and not a run."""
    return "features" not in tables and bool({"join", "actions", "impressions"} & set(tables))


def join_config_from_tables(
    tables: Mapping[str, Any], *, folder: Path | None = None, origin: str = "config"
) -> JoinConfig:
    """Build a join's configuration from nested tables, as :func:`load_join_config` reads them."""
    sections = ("join", *_SECTIONS, *_LISTS)
    for name in tables:
        wrong = unknown_section(name, tables[name], sections)
        _check(name in sections, f"{origin}: {wrong}")
        if name not in _LISTS:
            check_table(tables[name], name, origin)
    values: dict[str, Any] = dict(tables.get("join", {}))
    for name, kind in _SECTIONS.items():
        if name in tables:
            table = dict(tables[name])
            if folder is not None and "path" in table:
                table["path"] = resolve_paths(table["path"], folder)
            _need(table, kind, f"{origin}: [{name}]")
            values[name] = read_section(kind, table, f"{origin}: [{name}]")
    for name, kind in _LISTS.items():
        if name in tables:
            values[name] = _entries(tables[name], kind, f"{origin}: [[{name}]]")
    _need(values, JoinConfig, f"{origin}: [join]")
    if folder is not None:
        for key in values.keys() & {"output", "spill_folder"}:
            values[key] = resolve_paths(values[key], folder)
    config: JoinConfig = read_section(JoinConfig, values, f"{origin}: [join]")
    return config


def _entries(entries: Any, kind: type[Any], where: str) -> list[Any]:
    listed = isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)
    _check(listed, f"{where}: got {show_value(entries)}, expected a list of tables")
    return [read_section(kind, _need(entry, kind, where), where) for entry in entries]


def _need(table: Any, kind: type[Any], origin: str) -> Any:
    for entry in dataclasses.fields(kind):
        required = (
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        )
        if required and entry.name not in table:
            raise ConfigError(f"{origin}: needs {entry.name!r}, which is not there")
    return table
