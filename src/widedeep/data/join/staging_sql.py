"""SQL that brings the inputs into one form: named keys, int64 microseconds, user partitions."""

from __future__ import annotations

from widedeep.data.join.mixing import PRIME, mixed
from widedeep.data.join.plan import LIMB_BITS, JoinPlan, Source, ValueScale, double, literal

SALT_PARTITION = 1
SALT_DRAW = 4
SALT_POSITIVE = 5
SPARE_TRIES = 4
"""Draws beyond those wanted: a draw of a taken item, or of one drawn before, is rejected."""
_POSITIVES = 1 << 40
"""More than there are positives: try * this + positive orders by try, then by positive."""


def selected(source: Source) -> str:
    """Return SQL of an input's keys and columns under their inner names."""
    columns = [f"{sql} AS {name}" for name, sql in source.key.items()]
    columns += [f"{column.sql} AS {column.inner}" for column in source.carried]
    return f"SELECT {', '.join(columns)} FROM {source.view}"


def _names(source: Source) -> str:
    return ", ".join([*source.key, *(column.inner for column in source.carried)])


def _partitioned(plan: JoinPlan, select: str, names: str, of: str, part: str) -> str:
    """Add the column ``part``: the partition of the id ``of``."""
    if plan.partitions == 1:
        return f"SELECT {names}, CAST(0 AS BIGINT) AS {part} FROM ({select}) AS wd_p"
    hashed = mixed(f"({select}) AS wd_p", [plan.id_integer(of)], SALT_PARTITION, "wd_h")
    return f"SELECT {names}, wd_h % {plan.partitions} AS {part} FROM ({hashed}) AS wd_q"


def stage_impressions(plan: JoinPlan) -> str:
    """Return SQL of the impressions with all keys, each once, with user and item partitions."""
    source = plan.impressions
    assert source is not None
    names = _names(source)
    kept = f"{selected(source)} WHERE {all_keys(source)}"
    if plan.config.duplicates == "drop":
        position = ", wd_position" if plan.has_position else ""
        order = ", ".join(["wd_time", "wd_user", *(column.inner for column in source.carried)])
        kept = (
            f"SELECT {names} FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY wd_request, wd_item"
            f"{position} ORDER BY {order}) AS wd_copy FROM ({kept}) AS wd_c) AS wd_d "
            "WHERE wd_copy = 1"
        )
    return _both_partitions(plan, kept, names)


def _both_partitions(plan: JoinPlan, select: str, names: str) -> str:
    by_user = _partitioned(plan, select, names, "user", "wd_part")
    return _partitioned(plan, by_user, f"{names}, wd_part", "item", "wd_item_part")


def all_keys(source: Source) -> str:
    """Return the condition that a row has all keys."""
    keys = [sql for name, sql in source.key.items() if name in _NEVER_NULL]
    return " AND ".join(f"({sql}) IS NOT NULL" for sql in keys)


_NEVER_NULL = ("wd_request", "wd_user", "wd_item", "wd_time", "wd_key")


def stage_actions(plan: JoinPlan) -> str:
    """Return SQL of the actions with all keys, with user and item partitions."""
    source = plan.actions
    kept = f"{selected(source)} WHERE {all_keys(source)}"
    names = [name for name in source.key if name != "wd_value"]
    if plan.value_scale is not None:
        kept = _limbs(plan.value_scale, kept)
        names += plan.value_scale.columns
    return _both_partitions(plan, kept, ", ".join(names))


def _limbs(scale: ValueScale, select: str) -> str:
    """Add the limbs of ``wd_value``: each step is exact, for it moves or cuts off bits."""
    select = (
        f"SELECT *, COALESCE(wd_value, {double(0)}) * {double(2.0**scale.shift)} AS wd_r0 "
        f"FROM ({select}) AS wd_v"
    )
    for index, limb in enumerate(scale.columns):
        rest = f"wd_r{index}"
        whole = f"CASE WHEN {rest} < 0 THEN -FLOOR(-{rest}) ELSE FLOOR({rest}) END"
        select = (
            f"SELECT *, CAST({whole} AS BIGINT) AS {limb}, "
            f"({rest} - {whole}) * {double(2.0**LIMB_BITS)} AS wd_r{index + 1} "
            f"FROM ({select}) AS wd_v"
        )
    return select


def stage_versions(plan: JoinPlan, of: str) -> str:
    """Return SQL of the versions of users' or items' attributes, numbered for each of them."""
    source = plan.user_attributes if of == "user" else plan.item_attributes
    assert source is not None
    numbered = (
        f"SELECT {_names(source)}, ROW_NUMBER() OVER (PARTITION BY wd_{of} ORDER BY wd_time) "
        f"AS wd_version FROM ({selected(source)} WHERE {all_keys(source)}) AS wd_v"
    )
    return _partitioned(plan, numbered, f"{_names(source)}, wd_version", of, "wd_part")


def stage_positives(plan: JoinPlan) -> str:
    """Return SQL that makes impressions of a log of positives: the items taken and those drawn."""
    draws = plan.config.negatives.per_positive
    request = "CAST(wd_user AS VARCHAR) || '@' || CAST(wd_time AS VARCHAR)"
    tries = " UNION ALL ".join(
        f"SELECT CAST({number} AS BIGINT) AS wd_try" for number in range(draws + SPARE_TRIES)
    )
    ids = [plan.id_integer("user"), plan.id_integer("item"), "wd_time"]
    hashed = mixed("positives", ids, SALT_POSITIVE + plan.config.seed * 31, "wd_s")
    tried = (
        "SELECT p.wd_user, p.wd_time, p.wd_p, p.wd_before, p.wd_s, t.wd_try "
        f"FROM ({hashed}) AS p CROSS JOIN tries AS t WHERE p.wd_before > 0"
    )
    high = mixed(f"({tried}) AS wd_d", ["wd_s", "wd_try"], SALT_DRAW, "wd_h")
    both = mixed(f"({high}) AS wd_d", ["wd_s", "wd_try"], SALT_DRAW + 7_919, "wd_g")
    log = f"wd_actions{_where_kinds(plan)}"
    select = f"""
WITH taken AS (
  SELECT DISTINCT wd_user, wd_item, wd_time FROM {log}
), pool AS ({_pool(plan)}
), moments AS (
  SELECT wd_time, MAX(wd_last) AS wd_last FROM (
    SELECT wd_time, MAX(wd_n) AS wd_last FROM pool GROUP BY wd_time
    UNION ALL SELECT DISTINCT wd_time, CAST(0 AS BIGINT) AS wd_last FROM taken
  ) AS wd_m GROUP BY wd_time
), before AS (
  SELECT wd_time, COALESCE(MAX(wd_last) OVER (
    ORDER BY wd_time ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS wd_before
  FROM moments
), positives AS (
  SELECT a.wd_user, a.wd_item, a.wd_time, b.wd_before,
    ROW_NUMBER() OVER (ORDER BY a.wd_time, a.wd_user, a.wd_item) AS wd_p
  FROM taken AS a JOIN before AS b ON a.wd_time = b.wd_time
), tries AS ({tries}
), drawn AS (
  SELECT d.wd_user, d.wd_time, p.wd_item, MIN(d.wd_try * {_POSITIVES} + d.wd_p) AS wd_first
  FROM (
    SELECT wd_user, wd_time, wd_p, wd_try,
      (wd_h * CAST({PRIME} AS BIGINT) + wd_g) % wd_before + 1 AS wd_n FROM ({both}) AS wd_e
  ) AS d JOIN pool AS p ON d.wd_n = p.wd_n
  GROUP BY d.wd_user, d.wd_time, p.wd_item
), free AS (
  SELECT d.* FROM drawn AS d ANTI JOIN taken AS a ON d.wd_user = a.wd_user
    AND d.wd_item = a.wd_item AND a.wd_time >= d.wd_time
    AND a.wd_time <= d.wd_time + {plan.window_us}
), ranked AS (
  SELECT wd_user, wd_item, wd_time, ROW_NUMBER() OVER (
    PARTITION BY wd_first % {_POSITIVES} ORDER BY wd_first) AS wd_rank
  FROM free
)
SELECT DISTINCT {request} AS wd_request, wd_user, wd_item, wd_time FROM (
  SELECT wd_user, wd_item, wd_time FROM taken
  UNION ALL SELECT wd_user, wd_item, wd_time FROM ranked WHERE wd_rank <= {draws}
) AS wd_u"""
    return _both_partitions(plan, select, "wd_request, wd_user, wd_item, wd_time")


def _where_kinds(plan: JoinPlan) -> str:
    """Return the condition that an action is of a label's kind, where labels name kinds."""
    if "wd_kind" not in plan.actions.key or any(not label.kinds for label in plan.config.labels):
        return ""
    kinds = sorted({kind for label in plan.config.labels for kind in label.kinds})
    return f" WHERE wd_kind IN ({', '.join(literal(kind) for kind in kinds)})"


def _pool(plan: JoinPlan) -> str:
    """Return SQL of the numbered items that are drawn from, in order of time."""
    log = f"wd_actions{_where_kinds(plan)}"
    if plan.config.negatives.draw == "popularity":
        source = log
    else:
        source = f"(SELECT wd_item, MIN(wd_time) AS wd_time FROM {log} GROUP BY wd_item) AS wd_f"
    return (
        "\n  SELECT wd_item, wd_time, ROW_NUMBER() OVER (ORDER BY wd_time, wd_item) AS wd_n "
        f"FROM {source}"
    )
