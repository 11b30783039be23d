"""SQL of history features and attribute versions: running windows over united event streams.

There is no as-of join. The moments that are asked about and the events are put into one stream, a
window over it counts what lies before each moment, and what is numbered by such a count is fetched
with an equi-join. Times are integers, so "strictly before" is the frame that ends 1 earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

from widedeep.data.join.history import History
from widedeep.data.join.plan import JoinPlan, literal
from widedeep.data.join.times import duration_us

KEYS = {"user": ("wd_user",), "item": ("wd_item",), "pair": ("wd_user", "wd_item")}


def of_kinds(plan: JoinPlan, kinds: Sequence[str]) -> str:
    """Return the condition that an action is of one of the kinds; none given: of any."""
    if not kinds:
        return "TRUE"
    if "wd_kind" not in plan.actions.key:
        return "TRUE" if "action" in kinds else "FALSE"
    return f"wd_kind IN ({', '.join(literal(kind) for kind in kinds)})"


def side(
    plan: JoinPlan, scope: str, imp: str, act: str, versions: str | None, beside: str | None = None
) -> str | None:
    """Return SQL of a scope's features at each moment of its impressions."""
    features = plan.history_by(scope)
    if not features and versions is None:
        return None
    kinds = _kinds_of(features)
    keys = ", ".join(KEYS[scope])
    told = ", ".join([*KEYS[scope], *([beside] if beside else [])])
    over = f"PARTITION BY {keys} ORDER BY wd_time RANGE BETWEEN"
    windows = [
        f"{sql} AS {name}"
        for name, feature in features
        for sql in [_feature(plan, feature, kinds, over)]
    ]
    dated = False
    if versions is not None:
        attributes = plan.config.user_attributes if scope == "user" else plan.config.item_attributes
        assert attributes is not None
        end = _end(duration_us(attributes.availability_delay))
        valid = f"COUNT(wd_v) OVER ({over} UNBOUNDED PRECEDING AND {end})"
        dated = attributes.valid_from is not None
        # Without times there is one version, and it is always valid.
        windows.append(f"{valid if dated else 'CAST(1 AS BIGINT)'} AS wd_version")
    stream = _stream(plan, scope, imp, act, versions if dated else None, kinds, beside)
    names = ", ".join([*(name for name, _ in features), *(["wd_version"] if versions else [])])
    return (
        f"SELECT {told}, wd_time, {names} FROM (SELECT {told}, wd_time, wd_asked, "
        f"{', '.join(windows)} FROM ({stream}) AS wd_s) AS wd_w WHERE wd_asked = 1"
    )


def _kinds_of(features: Sequence[tuple[str, History]]) -> dict[tuple[str, ...], str]:
    """Return an event column for each set of kinds of actions that is counted."""
    sets = dict.fromkeys(f.kinds for _, f in features if f.of == "actions")
    return {kinds: f"wd_e{number}" for number, kinds in enumerate(sets)}


def _stream(
    plan: JoinPlan,
    scope: str,
    imp: str,
    act: str,
    versions: str | None,
    kinds: dict[tuple[str, ...], str],
    beside: str | None,
) -> str:
    keys = ", ".join(KEYS[scope])
    null = "CAST(NULL AS BIGINT)"

    def row(asked: int, shown: str, events: list[str], version: str) -> str:
        columns = [f"CAST({asked} AS BIGINT) AS wd_asked", f"{shown} AS wd_shown"]
        columns += [f"{sql} AS {name}" for sql, name in zip(events, kinds.values(), strict=True)]
        if beside:
            columns.append(beside if asked else f"{null} AS {beside}")
        return f"SELECT {keys}, wd_time, {', '.join(columns)}, {version} AS wd_v"

    nothing = [null] * len(kinds)
    moments = f"{keys}, wd_time{f', {beside}' if beside else ''}"
    parts = [f"{row(1, 'COUNT(*)', nothing, null)} FROM {imp} GROUP BY {moments}"]
    if kinds:
        events = [
            f"CASE WHEN {of_kinds(plan, some)} THEN CAST(1 AS BIGINT) ELSE {null} END"
            for some in kinds
        ]
        parts.append(f"{row(0, null, events, null)} FROM {act}")
    if versions is not None:
        parts.append(f"{row(0, null, nothing, 'CAST(1 AS BIGINT)')} FROM {versions}")
    return " UNION ALL ".join(parts)


def _end(delay_us: int) -> str:
    return f"{delay_us} PRECEDING" if delay_us else "CURRENT ROW"


def _feature(plan: JoinPlan, feature: History, kinds: dict[tuple[str, ...], str], over: str) -> str:
    start = "UNBOUNDED" if feature.window_us is None else str(feature.window_us)

    def frame(of: str) -> str:
        return f"OVER ({over} {start} PRECEDING AND {plan.delay_us[of] + 1} PRECEDING)"

    shown = f"COALESCE(CAST(SUM(wd_shown) {frame('impressions')} AS BIGINT), 0)"
    event = kinds[feature.kinds] if feature.of == "actions" else "wd_shown"
    if feature.feature == "since":
        last = f"MAX(CASE WHEN {event} IS NOT NULL THEN wd_time END) {frame(feature.of)}"
        return f"CAST(wd_time - {last} AS DOUBLE) / CAST(1000000 AS DOUBLE)"
    count = shown if feature.of == "impressions" else f"COUNT({event}) {frame('actions')}"
    if feature.feature != "rate":
        return count
    weight, prior = repr(float(feature.strength)), repr(feature.prior * feature.strength)
    return (
        f"(CAST({count} AS DOUBLE) + CAST({prior} AS DOUBLE)) / "
        f"(CAST({shown} AS DOUBLE) + CAST({weight} AS DOUBLE))"
    )


def last_items(plan: JoinPlan, feature: History, imp: str, act: str) -> str:
    """Return SQL of a user's last items at each event: ``wd_user, wd_number, wd_items``."""
    log = imp if feature.of == "impressions" else act
    condition = "TRUE" if feature.of == "impressions" else of_kinds(plan, feature.kinds)
    return (
        "SELECT wd_user, wd_number, ARRAY_AGG(wd_item) OVER (PARTITION BY wd_user "
        f"ORDER BY wd_number DESC ROWS BETWEEN CURRENT ROW AND {feature.k - 1} FOLLOWING) "
        "AS wd_items FROM (SELECT wd_user, wd_item, ROW_NUMBER() OVER (PARTITION BY wd_user "
        f"ORDER BY wd_time, wd_item) AS wd_number FROM {log} WHERE {condition}) AS wd_l"
    )
