"""SQL of a join: staged logs, history features, labelled examples, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from widedeep.join.config import History, Label
from widedeep.join.plan import (
    LIMB_BITS,
    PRIME,
    JoinPlan,
    PassThroughColumn,
    SqlInput,
    ValueScale,
    double,
    in_partition,
    literal,
    quoted,
    sql_hash,
)
from widedeep.join.times import duration_us

SALT_PARTITION = 1
SALT_DRAW = 4
SALT_POSITIVE = 5
SPARE_TRIES = 4
"""Draws beyond those wanted: a draw of a taken item, or of one drawn before, is rejected."""
_POSITIVES = 1 << 40
"""More than there are positives: try * this + positive orders by try, then by positive."""


def selected(source: SqlInput) -> str:
    """Return SQL of an input's keys and columns under their inner names."""
    columns = [f"{sql} AS {name}" for name, sql in source.key.items()]
    columns += [f"{column.sql} AS {column.inner}" for column in source.pass_through]
    return f"SELECT {', '.join(columns)} FROM {source.view}"


def _names(source: SqlInput) -> str:
    return ", ".join([*source.key, *(column.inner for column in source.pass_through)])


def _partitioned(plan: JoinPlan, select: str, names: str, of: str, column: str) -> str:
    """Add the column ``part``: the partition of the id ``of``."""
    if plan.partitions == 1:
        return f"SELECT {names}, CAST(0 AS BIGINT) AS {column} FROM ({select}) AS wd_p"
    hashed = sql_hash(f"({select}) AS wd_p", [plan.id_integer(of)], SALT_PARTITION, "wd_h")
    return f"SELECT {names}, wd_h % {plan.partitions} AS {column} FROM ({hashed}) AS wd_q"


def stage_impressions(plan: JoinPlan) -> str:
    """Return SQL of the impressions with all keys, each once, with user and item partitions."""
    source = plan.impressions
    assert source is not None
    names = _names(source)
    select = f"{selected(source)} WHERE {all_keys(source)}"
    if plan.config.duplicates == "drop":
        position = ", wd_position" if plan.has_position else ""
        order = ", ".join(["wd_time", "wd_user", *(column.inner for column in source.pass_through)])
        select = (
            f"SELECT {names} FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY wd_request, wd_item"
            f"{position} ORDER BY {order}) AS wd_copy FROM ({select}) AS wd_c) AS wd_d "
            "WHERE wd_copy = 1"
        )
    return _both_partitions(plan, select, names)


def _both_partitions(plan: JoinPlan, select: str, names: str) -> str:
    by_user = _partitioned(plan, select, names, "user", "wd_part")
    return _partitioned(plan, by_user, f"{names}, wd_part", "item", "wd_item_part")


def all_keys(source: SqlInput) -> str:
    """Return the condition that a row has all keys."""
    keys = [sql for name, sql in source.key.items() if name in NEVER_NULL]
    return " AND ".join(f"({sql}) IS NOT NULL" for sql in keys)


NEVER_NULL = ("wd_request", "wd_user", "wd_item", "wd_time")


def stage_actions(plan: JoinPlan) -> str:
    """Return SQL of the actions with all keys, with user and item partitions."""
    source = plan.actions
    select = f"{selected(source)} WHERE {all_keys(source)}"
    names = [name for name in source.key if name != "wd_value"]
    if plan.value_scale is not None:
        select = _limbs(plan.value_scale, select)
        names += plan.value_scale.columns
    return _both_partitions(plan, select, ", ".join(names))


def _limbs(scale: ValueScale, select: str) -> str:
    """Add the limbs of ``wd_value``: each step is exact, for it moves or cuts off bits."""
    select = (
        f"SELECT *, COALESCE(wd_value, {double(0)}) * {double(2.0**scale.shift)} AS wd_r0 "
        f"FROM ({select}) AS wd_v"
    )
    for index, limb in enumerate(scale.columns):
        remainder = f"wd_r{index}"
        whole = f"CASE WHEN {remainder} < 0 THEN -FLOOR(-{remainder}) ELSE FLOOR({remainder}) END"
        select = (
            f"SELECT *, CAST({whole} AS BIGINT) AS {limb}, "
            f"({remainder} - {whole}) * {double(2.0**LIMB_BITS)} AS wd_r{index + 1} "
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
    hashed = sql_hash("positives", ids, SALT_POSITIVE + plan.config.seed * 31, "wd_s")
    tried = (
        "SELECT p.wd_user, p.wd_time, p.wd_p, p.wd_before, p.wd_s, t.wd_try "
        f"FROM ({hashed}) AS p CROSS JOIN tries AS t WHERE p.wd_before > 0"
    )
    high = sql_hash(f"({tried}) AS wd_d", ["wd_s", "wd_try"], SALT_DRAW, "wd_h")
    both = sql_hash(f"({high}) AS wd_d", ["wd_s", "wd_try"], SALT_DRAW + 7_919, "wd_g")
    log = f"wd_actions WHERE {labels_condition(plan.config.labels, plan.actions.key)}"
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


def labels_condition(labels: Sequence[Label], key: Mapping[str, str]) -> str:
    """Return the condition that an action is of a kind that one of the labels counts."""
    if "wd_kind" not in key or any(not label.kinds for label in labels):
        return "TRUE"
    kinds = sorted({kind for label in labels for kind in label.kinds})
    return f"wd_kind IN ({', '.join(literal(kind) for kind in kinds)})"


def _pool(plan: JoinPlan) -> str:
    """Return SQL of the numbered items that are drawn from, in order of time."""
    log = f"wd_actions WHERE {labels_condition(plan.config.labels, plan.actions.key)}"
    if plan.config.negatives.draw == "popularity":
        source = log
    else:
        source = f"(SELECT wd_item, MIN(wd_time) AS wd_time FROM {log} GROUP BY wd_item) AS wd_f"
    return (
        "\n  SELECT wd_item, wd_time, ROW_NUMBER() OVER (ORDER BY wd_time, wd_item) AS wd_n "
        f"FROM {source}"
    )


KEYS = {"user": ("wd_user",), "item": ("wd_item",), "pair": ("wd_user", "wd_item")}


def of_kinds(plan: JoinPlan, kinds: Sequence[str]) -> str:
    """Return the condition that an action is of one of the kinds; none given: of any."""
    if not kinds:
        return "TRUE"
    if "wd_kind" not in plan.actions.key:
        return "TRUE" if "action" in kinds else "FALSE"
    return f"wd_kind IN ({', '.join(literal(kind) for kind in kinds)})"


def side(
    plan: JoinPlan,
    scope: str,
    imp: str,
    act: str,
    versions: str | None,
    partition_column: str | None = None,
) -> str | None:
    """Return SQL of a scope's features at each moment of its impressions."""
    features = plan.history_by(scope)
    if not features and versions is None:
        return None
    kinds = _kinds_of(features)
    keys = ", ".join(KEYS[scope])
    key_columns = ", ".join([*KEYS[scope], *([partition_column] if partition_column else [])])
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
    stream = _stream(plan, scope, imp, act, versions if dated else None, kinds, partition_column)
    names = ", ".join([*(name for name, _ in features), *(["wd_version"] if versions else [])])
    return (
        f"SELECT {key_columns}, wd_time, {names} FROM (SELECT {key_columns}, wd_time, wd_asked, "
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
    partition_column: str | None,
) -> str:
    keys = ", ".join(KEYS[scope])
    null = "CAST(NULL AS BIGINT)"

    def row(requested: int, impressions: str, events: list[str], version: str) -> str:
        columns = [f"CAST({requested} AS BIGINT) AS wd_asked", f"{impressions} AS wd_shown"]
        columns += [f"{sql} AS {name}" for sql, name in zip(events, kinds.values(), strict=True)]
        if partition_column:
            columns.append(partition_column if requested else f"{null} AS {partition_column}")
        return f"SELECT {keys}, wd_time, {', '.join(columns)}, {version} AS wd_v"

    nothing = [null] * len(kinds)
    moments = f"{keys}, wd_time{f', {partition_column}' if partition_column else ''}"
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

    impressions = f"COALESCE(CAST(SUM(wd_shown) {frame('impressions')} AS BIGINT), 0)"
    event = kinds[feature.kinds] if feature.of == "actions" else "wd_shown"
    if feature.feature == "since":
        last = f"MAX(CASE WHEN {event} IS NOT NULL THEN wd_time END) {frame(feature.of)}"
        return f"CAST(wd_time - {last} AS DOUBLE) / CAST(1000000 AS DOUBLE)"
    count = impressions if feature.of == "impressions" else f"COUNT({event}) {frame('actions')}"
    if feature.feature != "rate":
        return count
    weight, prior = repr(float(feature.strength)), repr(feature.prior * feature.strength)
    return (
        f"(CAST({count} AS DOUBLE) + CAST({prior} AS DOUBLE)) / "
        f"(CAST({impressions} AS DOUBLE) + CAST({weight} AS DOUBLE))"
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


ITEM_SIDE = "wd_item_side"
SALT_SAMPLE = 2
SALT_USER_SPLIT = 3
_SPLIT_CODES = {"train": 0, "valid": 1, "test": 2}


def item_side(plan: JoinPlan, partition: int | None) -> str | None:
    """Return SQL of what belongs to the items of an item partition or of all, at their moments."""
    has_versions = plan.item_attributes is not None
    features = side(plan, "item", "imp", "act", "ver" if has_versions else None, "wd_part")
    if features is None:
        return None
    versions = (
        f", ver AS (SELECT * FROM wd_item_versions WHERE {in_partition(partition)})"
        if has_versions
        else ""
    )
    columns = [f"f.{name}" for name, _ in plan.history_by("item")]
    join = ""
    if plan.item_attributes is not None:
        columns += [f"v.{column.inner}" for column in plan.item_attributes.pass_through]
        columns.append("f.wd_version")
        join = " LEFT JOIN ver AS v ON v.wd_item = f.wd_item AND v.wd_version = f.wd_version"
    condition = in_partition(partition, "wd_item_part")
    return f"""
WITH imp AS (SELECT wd_item, wd_time, wd_part FROM wd_impressions WHERE {condition}),
act AS (SELECT * FROM wd_actions WHERE {condition}){versions},
f AS ({features})
SELECT f.wd_item, f.wd_time, f.wd_part, {", ".join(columns)} FROM f{join}"""


def examples(plan: JoinPlan, partition: int | None) -> str:
    """Return SQL of the examples of a user partition, or of all, in their final order."""
    tables = {
        "imp": f"SELECT * FROM wd_impressions WHERE {in_partition(partition)}",
        "act": f"SELECT * FROM wd_actions WHERE {in_partition(partition)}",
        "numbered": _numbered(plan),
    }
    if plan.user_attributes is not None:
        tables["uver"] = f"SELECT * FROM wd_user_versions WHERE {in_partition(partition)}"
    versions = "uver" if plan.user_attributes is not None else None
    for scope, of in (("user", versions), ("pair", None)):
        select = side(plan, scope, "imp", "act", of)
        if select is not None:
            tables[f"{scope}_side"] = select
    for name, feature in plan.history_by("user"):
        if feature.feature == "last":
            tables[f"list_{name}"] = last_items(plan, feature, "imp", "act")
    if plan.history_by("item") or plan.item_attributes is not None:
        tables["item_side"] = f"SELECT * FROM {ITEM_SIDE} WHERE {in_partition(partition)}"
    tables["kept"] = _kept(plan)
    for number, label in enumerate(plan.config.labels):
        tables[f"label_{number}"] = _label(plan, label)
    tables["credit"] = _credit(plan)
    joined = _joined(plan, tables)
    if plan.config.negatives.by == "request":
        over = "OVER (PARTITION BY wd_user, wd_request)"
        joined = f"SELECT *, MAX(wd_positive) {over} AS wd_any FROM ({joined}) AS wd_j"
    tables["joined"] = joined
    ctes = ",\n".join(f"{name} AS ({select})" for name, select in tables.items())
    columns = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in _outputs(plan))
    selected = f"WITH {ctes}\nSELECT CAST(wd_split AS INTEGER) AS wd_split, {columns}"
    source = f"FROM joined{_where_sampled(plan)}"
    if partition is None:  # Sorted when they are written: see ordered_examples.
        return f"{selected}, wd_part {source}"
    return (
        f"{selected}, wd_time AS wd_event_time {source} "
        f"ORDER BY wd_time, wd_request, {_position_order(plan)}wd_item"
    )


def ordered_examples(plan: JoinPlan, view: str) -> str:
    """Return SQL of staged examples of all partitions, in the order of one pass after the other."""
    keys = {inner: quoted(name) for name, inner in _outputs(plan) if inner in _ORDER}
    order = [
        f"{keys[inner]} NULLS FIRST" if inner == "wd_position" else keys[inner]
        for inner in _ORDER
        if inner in keys
    ]
    columns = ", ".join(quoted(name) for name in output_columns(plan))
    return f"SELECT wd_split, {columns} FROM {view} ORDER BY wd_split, wd_part, {', '.join(order)}"


_ORDER = ("wd_time", "wd_request", "wd_position", "wd_item")


def _position_order(plan: JoinPlan) -> str:
    return "wd_position NULLS FIRST, " if plan.has_position else ""


def _numbered(plan: JoinPlan) -> str:
    """Number the impressions that an action may belong to, in the total order of their user."""
    return (
        "SELECT *, ROW_NUMBER() OVER (PARTITION BY wd_user ORDER BY wd_time, wd_request, "
        f"{_position_order(plan)}wd_item) AS wd_n FROM (SELECT i.* FROM imp AS i "
        "SEMI JOIN act AS a ON i.wd_user = a.wd_user AND i.wd_item = a.wd_item) AS wd_r"
    )


def _credit(plan: JoinPlan) -> str:
    """Return SQL of the labels of the numbered impressions, beside what identifies them."""
    columns, joins = ["n.wd_request", "n.wd_item"], ["numbered AS n"]
    if plan.has_position:
        columns.append("n.wd_position")
    for number in range(len(plan.config.labels)):
        y = f"y{number}"
        joins.append(f"label_{number} AS {y} ON {y}.wd_user = n.wd_user AND {y}.wd_n = n.wd_n")
        sums = ["wd_acts", *_value_columns(plan, plan.config.labels[number])]
        columns += [f"{y}.{name} AS {name}_{number}" for name in sums]
    return f"SELECT {', '.join(columns)} FROM {' LEFT JOIN '.join(joins)}"


def _kept(plan: JoinPlan) -> str:
    """Return the impressions that become examples, with their split and sampling hash."""
    source = "imp"
    split = plan.config.split
    if split.by in ("time", "both"):
        source = (
            "(SELECT i.*, r.wd_request_time FROM imp AS i JOIN (SELECT wd_request, MIN(wd_time) "
            "AS wd_request_time FROM imp GROUP BY wd_request) AS r ON i.wd_request = r.wd_request)"
            " AS wd_r"
        )
    if split.by in ("user", "both"):
        ids = [plan.id_integer("user")]
        hashed = sql_hash(source, ids, SALT_USER_SPLIT + plan.config.seed * 31, "wd_uh")
        source = f"({hashed}) AS wd_us"
    source = f"(SELECT *, {split_code(plan)} AS wd_split FROM {source}) AS wd_k"
    conditions = ["wd_split >= 0"]
    if plan.config.open_windows == "drop":
        conditions.append(f"wd_time <= {plan.log_end_us - plan.window_us}")
    selected = f"SELECT * FROM {source} WHERE {' AND '.join(conditions)}"
    if plan.config.negatives.rate == 1:
        return selected
    ids = [plan.id_integer("request")]
    if plan.config.negatives.by == "impression":
        ids.append(plan.id_integer("item"))
        if plan.has_position:
            ids.append("COALESCE(wd_position, -1)")
    return sql_hash(f"({selected}) AS wd_x", ids, SALT_SAMPLE + plan.config.seed * 31, "wd_draw")


def split_code(plan: JoinPlan) -> str:
    """Return SQL of an impression's split, -1 where time and user disagree."""
    by = plan.config.split.by
    if by == "none":
        return "0"
    train, valid, _ = plan.config.split.fractions
    ends = (round(train * PRIME), round((train + valid) * PRIME))
    user = f"CASE WHEN wd_uh < {ends[0]} THEN 0 WHEN wd_uh < {ends[1]} THEN 1 ELSE 2 END"
    if by == "user":
        return user
    assert plan.boundaries_us is not None
    first, second = plan.boundaries_us
    time = (
        f"CASE WHEN wd_request_time < {first} THEN 0 "
        f"WHEN wd_request_time < {second} THEN 1 ELSE 2 END"
    )
    return time if by == "time" else f"CASE WHEN {time} = {user} THEN {time} ELSE -1 END"


def _label(plan: JoinPlan, label: Label) -> str:
    """Return SQL of what a label's actions amount to for each impression that gets credit."""
    null = "CAST(NULL AS BIGINT)"
    limbs = _value_columns(plan, label)
    nothing = "".join(f", {null} AS {name}" for name in limbs)
    values = "".join(f", {name}" for name in limbs)
    stream = f"""
  SELECT n.wd_user, n.wd_item, n.wd_time, n.wd_n, {null} AS wd_act{nothing}
  FROM numbered AS n SEMI JOIN (SELECT wd_user, wd_item FROM act WHERE {{kinds}}) AS a
    ON n.wd_user = a.wd_user AND n.wd_item = a.wd_item
  UNION ALL
  SELECT wd_user, wd_item, wd_time, {null} AS wd_n, CAST(1 AS BIGINT) AS wd_act{values}
  FROM act WHERE {{kinds}}""".replace("{kinds}", of_kinds(plan, label.kinds))
    over = "OVER (PARTITION BY wd_user, wd_item ORDER BY wd_time RANGE BETWEEN"
    window = label.window_us
    if plan.config.touch == "all":
        frame = f"{over} CURRENT ROW AND {window} FOLLOWING)"
        sums = "".join(f", CAST(SUM({name}) {frame} AS BIGINT) AS {name}" for name in limbs)
        return (
            f"SELECT wd_user, wd_n, COUNT(wd_act) {frame} AS wd_acts{sums} FROM ({stream}) AS wd_s"
        )
    aggregate = "MAX" if plan.config.touch == "last" else "MIN"
    frame = f"{over} {window} PRECEDING AND CURRENT ROW)"
    sums = "".join(f", CAST(SUM({name}) AS BIGINT) AS {name}" for name in limbs)
    return (
        f"SELECT wd_user, wd_to AS wd_n, COUNT(*) AS wd_acts{sums} "
        f"FROM (SELECT wd_user, wd_act{values}, {aggregate}(wd_n) {frame} AS wd_to "
        f"FROM ({stream}) AS wd_s) AS wd_a WHERE wd_act = 1 AND wd_to IS NOT NULL "
        "GROUP BY wd_user, wd_to"
    )


def _value_columns(plan: JoinPlan, label: Label) -> list[str]:
    """Return the columns that a label's value is added up in; none if it has no value."""
    return plan.value_scale.columns if label.value and plan.value_scale is not None else []


def _joined(plan: JoinPlan, tables: dict[str, str]) -> str:
    columns, joins = ["k.*"], ["kept AS k"]
    if "user_side" in tables:
        joins.append("user_side AS us ON us.wd_user = k.wd_user AND us.wd_time = k.wd_time")
    if "pair_side" in tables:
        joins.append(
            "pair_side AS ps ON ps.wd_user = k.wd_user AND ps.wd_item = k.wd_item "
            "AND ps.wd_time = k.wd_time"
        )
    if "item_side" in tables:
        # A moment of an item is there once for each user partition that asks for it.
        joins.append(
            "item_side AS xs ON xs.wd_item = k.wd_item AND xs.wd_time = k.wd_time "
            "AND xs.wd_part = k.wd_part"
        )
    for scope, alias in (("user", "us"), ("pair", "ps"), ("item", "xs")):
        for name, feature in plan.history_by(scope):
            if feature.feature == "last":
                joins.append(
                    f"list_{name} AS l{name} ON l{name}.wd_user = k.wd_user "
                    f"AND l{name}.wd_number = us.{name}"
                )
                empty = f"CAST([] AS {plan.history_type(feature)})"
                columns.append(f"COALESCE(l{name}.wd_items, {empty}) AS {name}")
            else:
                columns.append(f"{alias}.{name} AS {name}")
    if plan.user_attributes is not None:
        joins.append("uver AS uv ON uv.wd_user = k.wd_user AND uv.wd_version = us.wd_version")
        columns += [f"uv.{column.inner}" for column in plan.user_attributes.pass_through]
    if plan.item_attributes is not None:
        columns += [f"xs.{column.inner}" for column in plan.item_attributes.pass_through]
    joins.append(f"credit AS y ON {_same_impression(plan)}")
    acts = []
    for number, label in enumerate(plan.config.labels):
        acts.append(f"COALESCE(y.wd_acts_{number}, 0)")
        columns.append(_label_value(plan, label, number))
    columns.append(f"{' + '.join(acts)} AS wd_positive")
    return f"SELECT {', '.join(columns)} FROM {' LEFT JOIN '.join(joins)}"


def _same_impression(plan: JoinPlan) -> str:
    """Return the condition that ``y`` and ``k`` are one impression; a null position equals null."""
    same = "y.wd_request = k.wd_request AND y.wd_item = k.wd_item"
    if plan.has_position:
        for sql in ("COALESCE({}.wd_position, 0)", "({}.wd_position IS NULL)"):
            same += f" AND {sql.format('y')} = {sql.format('k')}"
    return same


def _label_value(plan: JoinPlan, label: Label, number: int) -> str:
    if label.value:
        scale = plan.value_scale
        assert scale is not None
        parts = [
            f"CAST(COALESCE(y.{name}_{number}, 0) AS DOUBLE) * {double(scale.unit(limb))}"
            for limb, name in enumerate(scale.columns)
        ]
        return f"{' + '.join(parts)} AS label_{number}"
    return (
        f"CAST(CASE WHEN COALESCE(y.wd_acts_{number}, 0) > 0 THEN 1 ELSE 0 END AS INTEGER) "
        f"AS label_{number}"
    )


def _is_thinned(plan: JoinPlan) -> str:
    codes = sorted(_SPLIT_CODES[name] for name in plan.config.negatives.splits)
    return f"wd_split IN ({', '.join(str(code) for code in codes)})"


def _positive(plan: JoinPlan) -> str:
    return "wd_any" if plan.config.negatives.by == "request" else "wd_positive"


def _where_sampled(plan: JoinPlan) -> str:
    """Return the source and condition that leave a share of the negatives."""
    negatives = plan.config.negatives
    if negatives.rate == 1 or not negatives.splits:
        return ""
    limit = round(negatives.rate * PRIME)
    return f" WHERE NOT ({_is_thinned(plan)}) OR {_positive(plan)} > 0 OR wd_draw < {limit}"


def _outputs(plan: JoinPlan) -> list[tuple[str, str]]:
    """Return (name, SQL) of every output column in terms of ``joined``."""
    log = plan.config.impressions
    actions = plan.config.actions
    names = {
        "wd_request": (log.request if log else None) or "request_id",
        "wd_user": log.user if log else actions.user,
        "wd_item": log.item if log else actions.item,
    }
    outputs = [(name, inner) for inner, name in names.items()]
    if plan.has_position:
        assert log is not None
        assert log.position is not None
        outputs.append((log.position, "wd_position"))
    outputs.append((log.time if log else actions.time, "wd_time"))
    history = {
        feature.name: (f"h{number}", plan.history_type(feature))
        for number, feature in enumerate(plan.config.history)
    }
    for column in plan.context:
        outputs.append((column.name, _logged_wins(column, history.pop(column.name, None))))
    for source in (plan.user_attributes, plan.item_attributes):
        outputs += [(column.name, column.inner) for column in source.pass_through] if source else []
    outputs += [(name, inner) for name, (inner, _) in history.items()]
    outputs += [(label.name, f"label_{n}") for n, label in enumerate(plan.config.labels)]
    outputs.append(("weight", _weight(plan)))
    return outputs


def _logged_wins(column: PassThroughColumn, computed: tuple[str, str] | None) -> str:
    if computed is None:
        return column.inner
    inner, type_name = computed
    return f"COALESCE(CAST({column.inner} AS {type_name}), {inner})"


def _weight(plan: JoinPlan) -> str:
    negatives = plan.config.negatives
    one = "CAST(1 AS DOUBLE)"
    if negatives.rate == 1 or not negatives.splits:
        return one
    weight = f"CAST({1 / negatives.rate!r} AS DOUBLE)"
    kept_whole = f"NOT ({_is_thinned(plan)}) OR {_positive(plan)} > 0"
    return f"CASE WHEN {kept_whole} THEN {one} ELSE {weight} END"


def output_columns(plan: JoinPlan) -> list[str]:
    """Return the names of the columns of an example, in order."""
    return [name for name, _ in _outputs(plan)]


def time_name(plan: JoinPlan) -> str:
    """Return the name of an example's column of event times."""
    return next(name for name, inner in _outputs(plan) if inner == "wd_time")


def part_counts(plan: JoinPlan, partition: int | None) -> str:
    """Return SQL of one row of counts for a partition of the users, or for all."""
    closed = plan.log_end_us - plan.window_us
    impressions = (
        f"SELECT COUNT(*) AS impressions, COUNT(CASE WHEN wd_time > {closed} THEN 1 END) "
        f"AS open_windows FROM wd_impressions WHERE {in_partition(partition)}"
    )
    actions = f"SELECT COUNT(*) AS actions FROM wd_actions WHERE {in_partition(partition)}"
    tables = [f"({impressions}) AS s", f"({actions}) AS t"]
    for number, label in enumerate(plan.config.labels):
        kinds = of_kinds(plan, label.kinds)
        over = "OVER (PARTITION BY wd_user, wd_item ORDER BY wd_time RANGE BETWEEN"
        stream = (
            "SELECT i.wd_user, i.wd_item, i.wd_time, CAST(1 AS BIGINT) AS wd_imp "
            f"FROM wd_impressions AS i SEMI JOIN (SELECT wd_user, wd_item FROM wd_actions "
            f"WHERE {in_partition(partition)} AND {kinds}) AS a ON i.wd_user = a.wd_user "
            f"AND i.wd_item = a.wd_item WHERE {in_partition(partition, 'i.wd_part')} UNION ALL "
            "SELECT wd_user, wd_item, wd_time, CAST(NULL AS BIGINT) AS wd_imp FROM wd_actions "
            f"WHERE {in_partition(partition)} AND {kinds}"
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
            tables.append(f"({_attribute_hits(of, partition, delay)}) AS {of[0]}h")
    return f"SELECT * FROM {' CROSS JOIN '.join(tables)}"


def _attribute_hits(of: str, partition: int | None, delay_us: int) -> str:
    """Return SQL that counts the impressions at which a user or item had attributes."""
    own = f" WHERE {in_partition(partition)}" if of == "user" else ""
    return (
        f"SELECT COUNT(CASE WHEN v.wd_first + {delay_us} <= i.wd_time THEN 1 END) AS {of}_hits "
        f"FROM wd_impressions AS i LEFT JOIN (SELECT wd_{of}, MIN(wd_time) AS wd_first "
        f"FROM wd_{of}_versions{own} GROUP BY wd_{of}) AS v ON i.wd_{of} = v.wd_{of} "
        f"WHERE {in_partition(partition, 'i.wd_part')}"
    )
