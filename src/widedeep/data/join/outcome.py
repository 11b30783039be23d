"""What the counts of a join say about its inputs: labels, splits and attributes that look wrong."""

from __future__ import annotations

from collections.abc import Mapping

from widedeep.data.join.config import JoinConfig
from widedeep.data.join.engine import Engine

_LOST_MUCH = 0.5
_EXPECTED = 10
_SHOWN = 3


def outcome_notes(
    config: JoinConfig,
    counts: Mapping[str, int],
    splits: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Return what a person should know of a join's examples, or of a sample of them."""
    notes = []
    for number, label in enumerate(config.labels):
        if not any(sums.get(label.name) for sums in splits.values()):
            notes.append(f"label {label.name!r} is 0 in all examples: check its kinds and window")
        else:
            notes += _empty_splits(label.name, splits)
        actions = max(1, counts[f"relevant_{number}"])
        for kind, told in (
            ("orphaned", "had no impression of the item before them"),
            ("late", "came after the window"),
        ):
            fraction = counts[f"{kind}_{number}"] / actions
            if fraction > _LOST_MUCH:
                notes.append(f"label {label.name!r}: {fraction:.0%} of its actions {told}")
    for of in ("user", "item"):
        if f"{of}_hits" in counts:
            fraction = counts[f"{of}_hits"] / max(1, counts["impressions"])
            if fraction < 1 - _LOST_MUCH:
                notes.append(f"{of}_attributes: {fraction:.0%} of the impressions find a version")
    return notes


def _empty_splits(label: str, splits: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a note for each split without the label where the others' rate says there are many."""
    filled = {name: sums for name, sums in splits.items() if sums.get(label)}
    rows = sum(sums["rows"] for sums in filled.values())
    rate = sum(abs(sums[label]) for sums in filled.values()) / max(1, rows)
    return [
        f"label {label!r} is 0 in all {int(sums['rows']):,} examples of {name}, and {rate:.4g} on "
        "average in the other splits: does the log of actions reach that far?"
        for name, sums in splits.items()
        if name not in filled and rate * sums["rows"] >= _EXPECTED
    ]


def match_notes(engine: Engine, config: JoinConfig, counts: Mapping[str, int]) -> list[str]:
    """Return a note with ids of both logs for each label whose actions had no impression."""
    labels = [
        label.name
        for number, label in enumerate(config.labels)
        if counts[f"relevant_{number}"]
        and counts[f"relevant_{number}"] == counts[f"orphaned_{number}"]
    ]
    if not labels:
        return []
    shown = "; ".join(
        f"{of} ids such as {_ids(engine, of, 'wd_impressions')} in the impressions and "
        f"{_ids(engine, of, 'wd_actions')} in the actions"
        for of in ("user", "item")
    )
    return [
        f"no action of label {', '.join(map(repr, labels))} follows an impression of its user and "
        f"item ({shown}): check that both logs write ids and times alike"
    ]


def _ids(engine: Engine, of: str, view: str) -> str:
    rows = engine.rows(
        f"SELECT wd_{of} AS wd_id FROM {view} GROUP BY wd_{of} ORDER BY wd_{of} LIMIT {_SHOWN}"
    )
    return ", ".join(repr(row["wd_id"]) for row in rows)
