"""SQL that counts what became of the impressions and actions of a partition."""

from __future__ import annotations

from widedeep.data.join.history_sql import of_kinds
from widedeep.data.join.plan import JoinPlan

__all__ = ["part_counts"]


def part_counts(plan: JoinPlan, part: int) -> str:
    """Return SQL of one row of counts for a partition of the users.

    The columns are ``impressions``, ``open_windows``, ``actions``, and for each label, by its
    number: ``relevant_<n>`` (actions of its kinds), ``orphaned_<n>`` (with no impression of the
    item by the user before them) and ``late_<n>`` (with one, but the window had passed).
    """
    closed = plan.log_end_us - plan.window_us
    shown = (
        f"SELECT COUNT(*) AS impressions, COUNT(CASE WHEN wd_time > {closed} THEN 1 END) "
        f"AS open_windows FROM wd_impressions WHERE wd_part = {part}"
    )
    taken = f"SELECT COUNT(*) AS actions FROM wd_actions WHERE wd_part = {part}"
    tables = [f"({shown}) AS s", f"({taken}) AS t"]
    for number, label in enumerate(plan.config.labels):
        kinds = of_kinds(plan, label.kinds)
        over = "OVER (PARTITION BY wd_user, wd_item ORDER BY wd_time RANGE BETWEEN"
        stream = (
            "SELECT i.wd_user, i.wd_item, i.wd_time, CAST(1 AS BIGINT) AS wd_imp "
            f"FROM wd_impressions AS i SEMI JOIN (SELECT wd_user, wd_item FROM wd_actions "
            f"WHERE wd_part = {part} AND {kinds}) AS a ON i.wd_user = a.wd_user "
            f"AND i.wd_item = a.wd_item WHERE i.wd_part = {part} UNION ALL "
            "SELECT wd_user, wd_item, wd_time, CAST(NULL AS BIGINT) AS wd_imp FROM wd_actions "
            f"WHERE wd_part = {part} AND {kinds}"
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
    return f"SELECT * FROM {' CROSS JOIN '.join(tables)}"
