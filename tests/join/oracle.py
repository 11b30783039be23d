"""The join said again in plain Python, one row at a time, with none of the join's own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Row = dict[str, Any]
SECOND = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """What the oracle computes: times are in microseconds."""

    labels: tuple[tuple[str, tuple[str, ...], int, bool], ...]
    touch: str
    log_end: int
    history: tuple[Row, ...] = ()
    action_delay: int = 0
    impression_delay: int = 0


def log_end(impressions: Sequence[Row], actions: Sequence[Row]) -> int:
    """Return where both logs reach; in so few events none is a stray."""
    assert max(len(impressions), len(actions)) < 20
    return min(max(row["event_time"] for row in log) for log in (impressions, actions))


def order(row: Row) -> tuple[Any, ...]:
    return row["event_time"], row["request_id"], row["position"], row["item_id"]


def expected(
    impressions: Sequence[Row],
    actions: Sequence[Row],
    wanted: Wanted,
    users: Sequence[Row] = (),
    items: Sequence[Row] = (),
) -> list[Row]:
    """Return every example whose windows have closed, in order."""
    longest = max(window for _, _, window, _ in wanted.labels)
    found = []
    for row in sorted(impressions, key=order):
        if row["event_time"] > wanted.log_end - longest:
            continue
        example = dict(row)
        for name, kinds, window, is_value in wanted.labels:
            credited = [
                action
                for action in actions
                if action["kind"] in kinds and gets_credit(row, action, impressions, window, wanted)
            ]
            total = sum((Fraction(action["value"]) for action in credited), Fraction(0))
            example[name] = float(total) if is_value else int(bool(credited))
        for feature in wanted.history:
            example[feature["name"]] = history(feature, row, impressions, actions, wanted)
        example["age"] = version(users, "user_id", row, "age")
        example["brand"] = version(items, "item_id", row, "brand")
        found.append(example)
    return found


def gets_credit(
    row: Row, action: Row, impressions: Sequence[Row], window: int, wanted: Wanted
) -> bool:
    def reaches(shown: Row) -> bool:
        same = shown["user_id"] == action["user_id"] and shown["item_id"] == action["item_id"]
        return same and 0 <= action["event_time"] - shown["event_time"] <= window

    if not reaches(row):
        return False
    touched = sorted((shown for shown in impressions if reaches(shown)), key=order)
    if wanted.touch == "all":
        return True
    return touched[-1 if wanted.touch == "last" else 0] is row


def history(
    feature: Row, row: Row, impressions: Sequence[Row], actions: Sequence[Row], wanted: Wanted
) -> Any:
    keys = {"user": ["user_id"], "item": ["item_id"], "pair": ["user_id", "item_id"]}
    now = row["event_time"]

    def counted(events: Sequence[Row], delay: int, kinds: Sequence[str]) -> list[Row]:
        return [
            event
            for event in events
            if all(event[key] == row[key] for key in keys[feature["by"]])
            and event["event_time"] < now - delay
            and (feature.get("window") is None or event["event_time"] >= now - feature["window"])
            and (not kinds or event["kind"] in kinds)
        ]

    taken = counted(actions, wanted.action_delay, feature.get("kinds", ()))
    shown = counted(impressions, wanted.impression_delay, ())
    events = shown if feature.get("of") == "impressions" else taken
    if feature["feature"] == "last":
        newest = sorted(events, key=lambda event: (event["event_time"], event["item_id"]))[::-1]
        return [event["item_id"] for event in newest[: feature["k"]]]
    if feature["feature"] == "count":
        return len(events)
    if feature["feature"] == "since":
        times = [event["event_time"] for event in events]
        return (now - max(times)) / SECOND if times else None
    weight = feature["strength"]
    return (len(taken) + feature["prior"] * weight) / (len(shown) + weight)


def version(versions: Sequence[Row], key: str, row: Row, column: str) -> Any:
    valid = [
        some
        for some in versions
        if some[key] == row[key] and some["valid_from"] <= row["event_time"]
    ]
    return max(valid, key=lambda some: some["valid_from"])[column] if valid else None
