"""SQL of the labelled examples of one partition of the users."""

from __future__ import annotations

from widedeep.data.join.config import Label
from widedeep.data.join.history_sql import last_items, of_kinds, side
from widedeep.data.join.mixing import PRIME, mixed
from widedeep.data.join.plan import Carried, JoinPlan, double, in_part, quoted

ITEM_SIDE = "wd_item_side"
SALT_SAMPLE = 2
SALT_USER_SPLIT = 3
_SPLIT_CODES = {"train": 0, "valid": 1, "test": 2}


def item_side(plan: JoinPlan, part: int | None) -> str | None:
    """Return SQL of what belongs to the items of an item partition or of all, at their moments."""
    has_versions = plan.item_attributes is not None
    features = side(plan, "item", "imp", "act", "ver" if has_versions else None, "wd_part")
    if features is None:
        return None
    versions = (
        f", ver AS (SELECT * FROM wd_item_versions WHERE {in_part(part)})" if has_versions else ""
    )
    columns = [f"f.{name}" for name, _ in plan.history_by("item")]
    join = ""
    if plan.item_attributes is not None:
        columns += [f"v.{column.inner}" for column in plan.item_attributes.carried]
        columns.append("f.wd_version")
        join = " LEFT JOIN ver AS v ON v.wd_item = f.wd_item AND v.wd_version = f.wd_version"
    mine = in_part(part, "wd_item_part")
    return f"""
WITH imp AS (SELECT wd_item, wd_time, wd_part FROM wd_impressions WHERE {mine}),
act AS (SELECT * FROM wd_actions WHERE {mine}){versions},
f AS ({features})
SELECT f.wd_item, f.wd_time, f.wd_part, {", ".join(columns)} FROM f{join}"""


def examples(plan: JoinPlan, part: int | None) -> str:
    """Return SQL of the examples of a user partition, or of all, in their final order."""
    tables = {
        "imp": f"SELECT * FROM wd_impressions WHERE {in_part(part)}",
        "act": f"SELECT * FROM wd_actions WHERE {in_part(part)}",
        "numbered": _numbered(plan),
    }
    if plan.user_attributes is not None:
        tables["uver"] = f"SELECT * FROM wd_user_versions WHERE {in_part(part)}"
    versions = "uver" if plan.user_attributes is not None else None
    for scope, of in (("user", versions), ("pair", None)):
        select = side(plan, scope, "imp", "act", of)
        if select is not None:
            tables[f"{scope}_side"] = select
    for name, feature in plan.history_by("user"):
        if feature.feature == "last":
            tables[f"list_{name}"] = last_items(plan, feature, "imp", "act")
    if plan.history_by("item") or plan.item_attributes is not None:
        tables["item_side"] = f"SELECT * FROM {ITEM_SIDE} WHERE {in_part(part)}"
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
    # One pass after the other makes the same order.
    order = "wd_part, " if part is None else ""
    return (
        f"WITH {ctes}\nSELECT CAST(wd_split AS INTEGER) AS wd_split, wd_time AS wd_event_time, "
        f"{columns} FROM joined{_where_sampled(plan)} "
        f"ORDER BY {order}wd_time, wd_request, {_position_order(plan)}wd_item"
    )


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
        sums = ["wd_acts", *_limbs(plan, plan.config.labels[number])]
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
        hashed = mixed(source, ids, SALT_USER_SPLIT + plan.config.seed * 31, "wd_uh")
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
    return mixed(f"({selected}) AS wd_x", ids, SALT_SAMPLE + plan.config.seed * 31, "wd_draw")


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
    limbs = _limbs(plan, label)
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
    chosen = "MAX" if plan.config.touch == "last" else "MIN"
    frame = f"{over} {window} PRECEDING AND CURRENT ROW)"
    sums = "".join(f", CAST(SUM({name}) AS BIGINT) AS {name}" for name in limbs)
    return (
        f"SELECT wd_user, wd_to AS wd_n, COUNT(*) AS wd_acts{sums} "
        f"FROM (SELECT wd_user, wd_act{values}, {chosen}(wd_n) {frame} AS wd_to "
        f"FROM ({stream}) AS wd_s) AS wd_a WHERE wd_act = 1 AND wd_to IS NOT NULL "
        "GROUP BY wd_user, wd_to"
    )


def _limbs(plan: JoinPlan, label: Label) -> list[str]:
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
        columns += [f"uv.{column.inner}" for column in plan.user_attributes.carried]
    if plan.item_attributes is not None:
        columns += [f"xs.{column.inner}" for column in plan.item_attributes.carried]
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
        outputs += [(column.name, column.inner) for column in source.carried] if source else []
    outputs += [(name, inner) for name, (inner, _) in history.items()]
    outputs += [(label.name, f"label_{n}") for n, label in enumerate(plan.config.labels)]
    outputs.append(("weight", _weight(plan)))
    return outputs


def _logged_wins(column: Carried, computed: tuple[str, str] | None) -> str:
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
