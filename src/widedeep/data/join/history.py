"""History features: what they mean, and how a server computes them event by event."""

from __future__ import annotations

import datetime
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from widedeep.config import check_types
from widedeep.data.join.times import MICROSECONDS, duration_us
from widedeep.errors import ConfigError, show_value

__all__ = ["History", "HistoryState"]

Key = str | int
HistoryValue = int | float | None | list[Key]


@dataclass(frozen=True, kw_only=True)
class History:
    """A feature computed from what happened strictly before an impression.

    An event at time e counts for an impression at time t if e < t - delay, where delay is the
    ``availability_delay`` of the event's log, and e >= t - window if there is a window. So neither
    the impression itself, nor an action on it, nor anything at the same microsecond can enter.

    Args:
        name: Of the column.
        feature: ``"last"``: the user's last ``k`` items, newest first (of several at one time the
            greatest item id first). ``"count"``: of events. ``"since"``: seconds since the last
            event, null if there is none. ``"rate"``: (actions + prior * strength) / (impressions +
            strength).
        by: Whose events: of the impression's ``"user"``, its ``"item"``, or the ``"pair"``.
        of: What is listed, counted or timed: ``"actions"`` or ``"impressions"``.
        kinds: Kinds of actions that count; empty: all.
        window: How far back events count; None: without end.
        k: Items in the list of ``"last"``.
        prior: Of ``"rate"``: its value where nothing was seen.
        strength: Of ``"rate"``: the impressions that the prior weighs.

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
        known = {entry.name for entry in fields(History)}
        history = [
            History(**{key: told[key] for key in told if key in known})
            for told in definitions.values()
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
        found = [self._seen(stream, _key(stream.by, user, item)) for stream in streams]
        ends = [time_us - self._delay_us[stream.of] for stream in streams]
        start = None if feature.window_us is None else time_us - feature.window_us
        if feature.feature == "since":
            last = found[0].last_before(ends[0], start)
            return None if last is None else (time_us - last) / MICROSECONDS
        counts = [times.count(start, end) for times, end in zip(found, ends, strict=True)]
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
        at = bisect_left(self.kept, end)
        last = self.kept[at - 1] if at else self.last_forgotten
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
