"""What can only be checked once the impressions are in one form."""

from __future__ import annotations

from typing import Any

from widedeep.data.join.engine import Engine
from widedeep.data.join.plan import JoinPlan, in_part
from widedeep.errors import DataError

_SHOWN = 3


def check_staged(engine: Engine, plan: JoinPlan) -> None:
    """Refuse duplicate impressions, requests of two users, and two versions at one time."""
    if plan.impressions is not None:
        _check_duplicates(engine, plan)
        _check_requests(engine)
    for of in ("user", "item"):
        if (plan.user_attributes if of == "user" else plan.item_attributes) is not None:
            _check_versions(engine, of)


def _check_duplicates(engine: Engine, plan: JoinPlan) -> None:
    keys = "wd_request, wd_item" + (", wd_position" if plan.has_position else "")
    found: list[dict[str, Any]] = []
    for part in plan.passes:
        found += engine.rows(
            f"SELECT {keys}, COUNT(*) AS n FROM wd_impressions WHERE {in_part(part)} "
            f"GROUP BY {keys} HAVING COUNT(*) > 1 ORDER BY wd_request, wd_item LIMIT {_SHOWN}"
        )
    if found:
        shown = "; ".join(
            ", ".join(f"{name.removeprefix('wd_')} {row[name]!r}" for name in keys.split(", "))
            + f" ({row['n']} times)"
            for row in found[:_SHOWN]
        )
        raise DataError(
            f"impressions: got duplicates with the same {keys.replace('wd_', '')}: {shown}; "
            "correct the log, or set duplicates = 'drop' to keep the first of each"
        )


def _check_requests(engine: Engine) -> None:
    found = engine.rows(
        "SELECT wd_request FROM wd_impressions GROUP BY wd_request "
        f"HAVING MIN(wd_user) <> MAX(wd_user) ORDER BY wd_request LIMIT {_SHOWN}"
    )
    if found:
        shown = ", ".join(repr(row["wd_request"]) for row in found)
        raise DataError(
            f"impressions: got requests with more than one user: {shown}; a request belongs to one "
            "user (leave 'request' out to make one of a user's impressions at one time)"
        )


def _check_versions(engine: Engine, of: str) -> None:
    found = engine.rows(
        f"SELECT wd_{of}, wd_time, COUNT(*) AS n FROM wd_{of}_versions GROUP BY wd_{of}, wd_time "
        f"HAVING COUNT(*) > 1 ORDER BY wd_{of}, wd_time LIMIT {_SHOWN}"
    )
    if found:
        shown = ", ".join(f"{row[f'wd_{of}']!r} ({row['n']} rows)" for row in found)
        raise DataError(
            f"{of}_attributes: got several versions that begin at one time: {shown}; keep one, or "
            "name the column of their times with valid_from"
        )
