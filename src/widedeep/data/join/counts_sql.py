"""SQL that counts what became of the impressions and actions of a partition."""

from __future__ import annotations

from widedeep.data.join.history_sql import of_kinds
from widedeep.data.join.plan import JoinPlan, in_part
from widedeep.data.join.times import duration_us


def part_counts(plan: JoinPlan, part: int | None) -> str:
    """Return SQL of one row of counts for a partition of the users, or for all."""
    closed = plan.log_end_us - plan.window_us
    shown = (
        f"SELECT COUNT(*) AS impressions, COUNT(CASE WHEN wd_time > {closed} THEN 1 END) "
        f"AS open_windows FROM wd_impressions WHERE {in_part(part)}"
    )
    taken = f"SELECT COUNT(*) AS actions FROM wd_actions WHERE {in_part(part)}"
    tables = [f"({shown}) AS s", f"({taken}) AS t"]
    for number, label in enumerate(plan.config.labels):
        kinds = of_kinds(plan, label.kinds)
        over = "OVER (PARTITION BY wd_user, wd_item ORDER BY wd_time RANGE BETWEEN"
        stream = (
            "SELECT i.wd_user, i.wd_item, i.wd_time, CAST(1 AS BIGINT) AS wd_imp "
            f"FROM wd_impressions AS i SEMI JOIN (SELECT wd_user, wd_item FROM wd_actions "
            f"WHERE {in_part(part)} AND {kinds}) AS a ON i.wd_user = a.wd_user "
            f"AND i.wd_item = a.wd_item WHERE {in_part(part, 'i.wd_part')} UNION ALL "
            "SELECT wd_user, wd_item, wd_time, CAST(NULL AS BIGINT) AS wd_imp FROM wd_actions "
            f"WHERE {in_part(part)} AND {kinds}"
        )
        windows = (
            f"COUNT(wd_imp) {over} UNBOUNDED PRECEDING AND CURRENT ROW) AS wd_before, "
            f"COUNT(wd_imp) {over} {label.window_us} PRECEDING AND CURRENT ROW) AS wd_within"
        )
        tables.append(
            f"(SELECT COUNT(*) AS relevant_{number}, "
            f"COUNT(CASE WHEN wd_before = 0 THEN 1 END) AS orphaned_{number}, "
            f"COUNT(CASE WHEN wd_before > 0 AND wd_within = 0 THEN 1 END) AS late_{number} "
            f"FROM (SELECT wd_imp, {windows} FROM ({stream}) AS wd_s) AS wd_c "
            f"WHERE wd_imp IS NULL) AS l{number}"
        )
    for of, source, attributes in (
        ("user", plan.user_attributes, plan.config.user_attributes),
        ("item", plan.item_attributes, plan.config.item_attributes),
    ):
        if source is not None and attributes is not None:
            delay = duration_us(attributes.availability_delay)
            tables.append(f"({_attribute_hits(of, part, delay)}) AS {of[0]}h")
    return f"SELECT * FROM {' CROSS JOIN '.join(tables)}"


def _attribute_hits(of: str, part: int | None, delay_us: int) -> str:
    """Return SQL that counts the impressions at which a user or item had attributes."""
    own = f" WHERE {in_part(part)}" if of == "user" else ""
    return (
        f"SELECT COUNT(CASE WHEN v.wd_first + {delay_us} <= i.wd_time THEN 1 END) AS {of}_hits "
        f"FROM wd_impressions AS i LEFT JOIN (SELECT wd_{of}, MIN(wd_time) AS wd_first "
        f"FROM wd_{of}_versions{own} GROUP BY wd_{of}) AS v ON i.wd_{of} = v.wd_{of} "
        f"WHERE {in_part(part, 'i.wd_part')}"
    )
