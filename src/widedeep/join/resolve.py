"""From a configuration and opened inputs to a plan: keys, times, counts, and what is wrong."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from widedeep.data.arrow_types import is_text
from widedeep.errors import ConfigError, DataError
from widedeep.join.config import (
    ActionLog,
    Attributes,
    ImpressionLog,
    JoinConfig,
    JoinInput,
    check_delays,
)
from widedeep.join.coverage import Coverage, LogCoverage
from widedeep.join.engines import Engine
from widedeep.join.inputs import (
    OpenedInput,
    damaged_files_named,
    id_column,
    located,
    note_finer,
    open_input,
    pass_through_columns,
    time_column,
    value_type,
)
from widedeep.join.plan import (
    LIMB_BITS,
    JoinPlan,
    PassThroughColumn,
    SqlInput,
    ValueScale,
    double,
    quoted,
)
from widedeep.join.sql import NEVER_NULL, all_keys, labels_condition, output_columns, selected
from widedeep.join.times import LARGEST_US, moment_text

_EXACT_DIGITS = 15
_MOST_LIMBS = 5
_LARGEST_VALUE = 1e13
_LEAST_EXPONENT = -900
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class InputCounts:
    """What an input holds."""

    rows: int  # All of them
    null_keys: dict[str, int]  # Rows that lack a key, by the key's column
    complete: int  # Rows with all keys
    first_us: int  # The first event time
    last_us: int  # The last event time


@dataclass(frozen=True, kw_only=True)
class ResolvedJoin:
    """A plan and what was learned on the way."""

    plan: JoinPlan  # What to do
    inputs: tuple[OpenedInput, ...]  # The inputs, opened
    counts: dict[str, InputCounts]  # What each holds, by its name
    reach_us: Mapping[str, tuple[int, int]]  # Where each log begins and ends, but for strays
    notes: tuple[str, ...] = ()  # What a person should know


def resolve(engine: Engine, config: JoinConfig, spool: Path) -> ResolvedJoin:
    """Open every input, check it, and return the plan."""
    sources = _InputResolver(engine, config, spool)
    with damaged_files_named(sources.inputs):
        sources.open_inputs()
        actions = sources.actions()
        impressions = sources.impressions()
        users = sources.attributes("user", config.user_attributes)
        items = sources.attributes("item", config.item_attributes)
        value_scale = sources.value_scale(actions)
        sources.check_zones()
        inputs = {
            "actions": actions,
            "impressions": impressions,
            "user_attributes": users,
            "item_attributes": items,
        }
        coverage = LogCoverage(
            engine,
            config,
            {name: source for name, source in inputs.items() if source is not None},
            {name: (counts.first_us, counts.last_us) for name, counts in sources.counts.items()},
        ).result()
    plan = JoinPlan(
        config=config,
        **inputs,  # type: ignore[arg-type]
        text={"request": True, **sources.text},
        log_end_us=coverage.log_end_us,
        value_scale=value_scale,
        partitions=_partitions(config, sources.counts),
        at_once=engine.parallel,
    )
    check_delays(config.history, plan.delay_us)
    _check_window(plan, coverage)
    _check_outputs(plan)
    return ResolvedJoin(
        plan=plan,
        inputs=tuple(sources.inputs),
        counts=sources.counts,
        reach_us={name: (ends.first_us, ends.last_us) for name, ends in coverage.reach.items()},
        notes=(*sources.notes, *coverage.notes),
    )


def _id_columns(name: str, source: ImpressionLog | ActionLog | Attributes) -> list[tuple[str, str]]:
    if isinstance(source, Attributes):
        return [(name.removesuffix("_attributes"), source.key)]
    return [("user", source.user), ("item", source.item)]


class _InputResolver:
    """Opens one input after the other and remembers what they must agree on."""

    def __init__(self, engine: Engine, config: JoinConfig, spool: Path) -> None:
        self.engine, self.config, self.spool = engine, config, spool
        self.inputs: list[OpenedInput] = []
        self.counts: dict[str, InputCounts] = {}
        self.text: dict[str, bool] = {}
        self.text_ids: set[str] = set()
        self.zones: list[tuple[str, bool]] = []
        self.notes: list[str] = []

    def impressions(self) -> SqlInput | None:
        log = self.config.impressions
        if log is None:
            return None
        opened = self._opened("impressions")
        time = self._time(opened, log.time, log)
        key = {"wd_user": self._id(opened, log.user, "user")}
        key["wd_item"] = self._id(opened, log.item, "item")
        key["wd_time"] = time
        if log.request is None:
            user = f"CAST({key['wd_user']} AS VARCHAR)"
            key["wd_request"] = f"{user} || '@' || CAST({time} AS VARCHAR)"
        else:
            key["wd_request"], self.text["request"] = id_column(opened, log.request, "request")
        columns = {"wd_user": log.user, "wd_item": log.item, "wd_time": log.time}
        if log.request is not None:
            columns = {"wd_request": log.request, **columns}
        if log.position is not None:
            if not pa.types.is_integer(opened.type_of(log.position, "position")):
                kind = opened.schema[log.position]
                raise DataError(
                    f"impressions: position = {log.position!r} is of type {kind}, expected integers"
                )
            key["wd_position"] = f"CAST({quoted(log.position)} AS BIGINT)"
            columns["wd_position"] = log.position
        pass_through = self._pass_through(opened, log.columns, set(columns.values()), "c")
        return self._counted(opened, key, pass_through, columns)

    def actions(self) -> SqlInput:
        log = self.config.actions
        opened = self._opened("actions")
        key = {
            "wd_user": self._id(opened, log.user, "user"),
            "wd_item": self._id(opened, log.item, "item"),
            "wd_time": self._time(opened, log.time, log),
        }
        columns = {"wd_user": log.user, "wd_item": log.item, "wd_time": log.time}
        if log.kind is not None:
            if not is_text(opened.type_of(log.kind, "kind")):
                raise DataError(
                    f"actions: kind = {log.kind!r} is of type {opened.schema[log.kind]}, expected "
                    "text"
                )
            key["wd_kind"] = f"CAST({quoted(log.kind)} AS VARCHAR)"
        if log.value is not None:
            kind = opened.type_of(log.value, "value")
            number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            if not (number or pa.types.is_decimal(kind)):
                raise DataError(
                    f"actions: value = {log.value!r} is of type {kind}, expected numbers"
                )
            key["wd_value"] = _value_sql(self.config, quoted(log.value), kind, key)
        return self._counted(opened, key, (), columns)

    def value_scale(self, source: SqlInput) -> ValueScale | None:
        """Return how the values are added up, or None if no label has any."""
        labels = [label for label in self.config.labels if label.value]
        if not labels:
            return None
        column = f"actions: column {self.config.actions.value!r}"
        _check_finite(self.engine, source, column)
        row = self.engine.rows(
            f"SELECT COUNT(CASE WHEN {labels_condition(labels, source.key)} THEN 1 END) AS n, "
            f"COUNT(wd_value) AS present, MIN(CASE WHEN wd_abs > 0 THEN wd_abs END) AS low, "
            f"MAX(wd_abs) AS high FROM (SELECT *, CASE WHEN wd_value < 0 THEN -wd_value ELSE "
            f"wd_value END AS wd_abs FROM ({selected(source)} WHERE {all_keys(source)}) AS wd_a) "
            "AS wd_b"
        )[0]
        nulls = int(row["n"]) - int(row["present"])
        if nulls:
            names = ", ".join(repr(label.name) for label in labels)
            self.notes.append(
                f"{column}: {nulls:,} of {int(row['n']):,} actions have no value; they add 0 to "
                f"{names}"
            )
        return scale_of(float(row["low"] or 1), float(row["high"] or 1), column)

    def attributes(self, of: str, source: Attributes | None) -> SqlInput | None:
        if source is None:
            return None
        opened = self._opened(f"{of}_attributes")
        key = {f"wd_{of}": self._id(opened, source.key, of)}
        columns = {f"wd_{of}": source.key}
        if source.valid_from is None:
            # Before every event, far enough from the end of int64 for frames to reach back.
            key["wd_time"] = "CAST(-1000000000000000000 AS BIGINT)"
        else:
            key["wd_time"] = self._time(opened, source.valid_from, source)
            columns["wd_time"] = source.valid_from
        prefix = "ua" if of == "user" else "xa"
        pass_through = self._pass_through(opened, source.columns, set(columns.values()), prefix)
        return self._counted(opened, key, pass_through, columns)

    def open_inputs(self) -> None:
        """Open every input, and see which ids are text in one of them."""
        config = self.config
        for name, source in {
            "actions": config.actions,
            "impressions": config.impressions,
            "user_attributes": config.user_attributes,
            "item_attributes": config.item_attributes,
        }.items():
            if source is not None:
                opened = open_input(self.engine, name, source, self.spool)
                self.inputs.append(opened)
                self.text_ids |= {
                    of
                    for of, column in _id_columns(name, source)
                    if is_text(opened.schema.get(column, pa.null()))
                }

    def _opened(self, name: str) -> OpenedInput:
        return next(opened for opened in self.inputs if opened.name == name)

    def _id(self, opened: OpenedInput, column: str, of: str) -> str:
        sql, text = id_column(opened, column, of)
        if opened.untyped and not text and of in self.text_ids:
            # Integers of CSV are written as integers are: their text is the file's.
            sql, text = f"CAST({quoted(column)} AS VARCHAR)", True
        before = self.text.setdefault(of, text)
        if before != text:
            kinds = ["integers", "text"]
            raise DataError(
                f"{opened.name}: {of} ids ({column!r}) are {kinds[text]}, but {kinds[before]} in "
                f"{self.inputs[0].name}; write both in one type"
            )
        return sql

    def _time(self, opened: OpenedInput, column: str, source: JoinInput) -> str:
        time = time_column(self.engine, opened, column, source)
        self.zones.append((f"{opened.name}: column {column!r}", time.zoned))
        self.notes += time.notes
        return time.sql

    def _pass_through(
        self, opened: OpenedInput, columns: Sequence[str] | None, key_columns: set[str], prefix: str
    ) -> tuple[PassThroughColumn, ...]:
        pass_through = pass_through_columns(opened, columns, key_columns, prefix)
        for column in pass_through:
            self.notes += note_finer(self.engine, opened, column.name)
            kind = value_type(opened.schema[column.name])
            if pa.types.is_decimal(kind) and kind.precision > _EXACT_DIGITS:
                self.notes.append(
                    f"{opened.name}: column {column.name!r} is of type {kind} and becomes a 64-bit "
                    f"float, which rounds numbers of more than {_EXACT_DIGITS} digits; make it "
                    "text to keep them all"
                )
        return pass_through

    def check_zones(self) -> None:
        """Refuse times without a zone beside times with one."""
        naive = [where for where, zoned in self.zones if not zoned]
        zoned = [where for where, zoned in self.zones if zoned]
        if naive and zoned:
            raise DataError(
                f"time zones are mixed: {naive[0]} has times without a zone, {zoned[0]} times "
                "in a known zone; set timezone = 'UTC' (or an offset such as '+02:00') for the "
                "former"
            )

    def _counted(
        self,
        opened: OpenedInput,
        key: dict[str, str],
        pass_through: tuple[PassThroughColumn, ...],
        columns: dict[str, str],
    ) -> SqlInput:
        names = [*columns.values(), *(column.name for column in pass_through)]
        _check_wide(self.engine, opened, names)
        counts = _counts(self.engine, opened, key, columns)
        self.counts[opened.name] = counts
        missing = {name: n for name, n in counts.null_keys.items() if n}
        if missing and self.config.null_keys == "error":
            description = ", ".join(f"{n} in {name!r}" for name, n in missing.items())
            raise DataError(
                f"{opened.name}: got null keys ({description}) among {counts.rows} rows; correct "
                "them, or set null_keys = 'drop' to leave such rows out and count them"
            )
        if counts.complete == 0:
            raise DataError(
                f"{opened.name}: got an empty log ({counts.rows} rows, none with all keys); "
                "check the path, or leave this input out"
            )
        if max(-counts.first_us, counts.last_us) > LARGEST_US and columns.get("wd_time"):
            raise DataError(
                f"{opened.name}: column {columns['wd_time']!r}: got times from "
                f"{moment_text(counts.first_us)} to {moment_text(counts.last_us)}, which lie "
                "beyond all times that can be reckoned with; correct the rows"
            )
        return SqlInput(view=opened.view, key=key, pass_through=pass_through, rows=counts.rows)


def _check_wide(engine: Engine, opened: OpenedInput, columns: Sequence[str]) -> None:
    """Refuse unsigned integers that 64 bits with a sign do not hold."""
    wide = [name for name in columns if pa.types.is_uint64(value_type(opened.schema[name]))]
    if not wide:
        return
    largest = [
        quoted(name) if pa.types.is_uint64(opened.schema[name]) else f"LIST_MAX({quoted(name)})"
        for name in wide
    ]
    most = ", ".join(f"MAX({value}) AS wd_{number}" for number, value in enumerate(largest))
    row = engine.rows(f"SELECT {most} FROM {opened.view}")[0]
    for number, name in enumerate(wide):
        value = row[f"wd_{number}"]
        if value is not None and int(value) >= 2**63:
            raise DataError(
                f"{opened.name}: column {name!r}: got {located(opened, name, int(value))}, "
                "expected integers below 2^63; make the column text"
            )


def _value_sql(config: JoinConfig, column: str, kind: pa.DataType, key: Mapping[str, str]) -> str:
    """Return the value as a double; a wide decimal by way of its text, which rounds once."""
    wide = pa.types.is_decimal(kind) and kind.precision > _EXACT_DIGITS
    value = f"CAST({f'CAST({column} AS VARCHAR)' if wide else column} AS DOUBLE)"
    labels = [label for label in config.labels if label.value]
    condition = labels_condition(labels, key)
    if condition == "TRUE":
        return value
    condition = condition.replace("wd_kind", key["wd_kind"], 1)
    return f"CASE WHEN {condition} THEN {value} END"


def _check_finite(engine: Engine, source: SqlInput, column: str) -> None:
    """Refuse values that are NaN, infinite, or too large."""
    most = double(_LARGEST_VALUE)
    condition = (
        "REGEXP_MATCHES(CAST(wd_value AS VARCHAR), '[a-zA-Z]{3}') "
        f"OR wd_value >= {most} OR wd_value <= -{most}"
    )
    view = f"({selected(source)} WHERE {all_keys(source)}) AS wd_a"
    rows = engine.rows(
        f"SELECT wd_user, wd_item, wd_time, wd_value FROM {view} WHERE {condition} "
        f"ORDER BY wd_time, wd_user, wd_item LIMIT {_SHOWN}"
    )
    if not rows:
        return
    count = engine.rows(f"SELECT COUNT(*) AS n FROM {view} WHERE {condition}")[0]["n"]
    examples = "; ".join(
        f"{row['wd_value']} of user {row['wd_user']!r} and item {row['wd_item']!r} at "
        f"{moment_text(int(row['wd_time']))}"
        for row in rows
    )
    raise DataError(
        f"{column}: got {count} values that cannot be added up ({examples}), expected finite "
        f"numbers below {_LARGEST_VALUE:g} in magnitude, or null; correct the rows, make them "
        "null, or scale the column"
    )


def scale_of(low: float, high: float, column: str) -> ValueScale:
    """Return limbs that hold every bit of values whose magnitude goes from ``low`` to ``high``."""
    lowest, highest = math.frexp(low)[1], math.frexp(high)[1]
    limbs = -(-(highest - lowest + sys.float_info.mant_dig) // LIMB_BITS)
    if limbs > _MOST_LIMBS or lowest < _LEAST_EXPONENT:
        raise DataError(
            f"{column}: got values from {low:g} to {high:g} in magnitude, too far apart or too "
            "small to be added without rounding; correct the rows, or scale the column"
        )
    return ValueScale(shift=LIMB_BITS - highest, limbs=limbs)


def _counts(
    engine: Engine,
    opened: OpenedInput,
    key: dict[str, str],
    columns: dict[str, str],
) -> InputCounts:
    never_null = [name for name in columns if name in NEVER_NULL]
    parts = [f"COUNT({key[name]}) AS {name}" for name in never_null]
    every = " AND ".join(f"({key[name]}) IS NOT NULL" for name in never_null)
    parts.append(f"COUNT(CASE WHEN {every} THEN 1 END) AS wd_complete")
    parts.append(f"MIN({key['wd_time']}) AS wd_first, MAX({key['wd_time']}) AS wd_last")
    row = engine.rows(f"SELECT COUNT(*) AS wd_rows, {', '.join(parts)} FROM {opened.view}")[0]
    total = int(row["wd_rows"])
    return InputCounts(
        rows=total,
        null_keys={columns[name]: total - int(row[name]) for name in never_null},
        complete=int(row["wd_complete"]),
        first_us=int(row["wd_first"] or 0),
        last_us=int(row["wd_last"] or 0),
    )


def _partitions(config: JoinConfig, counts: dict[str, InputCounts]) -> int:
    if "impressions" in counts:
        rows = counts["impressions"].rows
    else:
        rows = counts["actions"].rows * (1 + config.negatives.per_positive)
    return max(1, -(-rows // config.partition_rows))


def _check_window(plan: JoinPlan, coverage: Coverage) -> None:
    log = "impressions" if plan.impressions is not None else "actions"
    first = coverage.reach[log].first_us
    if plan.config.open_windows != "drop" or first <= plan.log_end_us - plan.window_us:
        return
    log_from = f"which goes from {moment_text(first)} to {moment_text(plan.log_end_us)}"
    if first > plan.log_end_us:
        log_from = (
            f"for it ends at {moment_text(plan.log_end_us)}, before the first impression at "
            f"{moment_text(first)}"
        )
    raise ConfigError(
        f"the longest label window ({plan.window_us / 1e6:g} s) is longer than the log, "
        f"{log_from}: no impression's window has closed; shorten the window, or set open_windows "
        "= 'keep'" + "".join(f"; {note}" for note in coverage.notes)
    )


def _check_outputs(plan: JoinPlan) -> None:
    names = output_columns(plan)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two output columns are named {name!r}; rename a label or history feature, or "
                "list the columns to keep with 'columns'"
            )
    types = {feature.name: plan.history_type(feature) for feature in plan.config.history}
    for column in plan.context:
        expected = types.get(column.name, "")
        if expected in ("BIGINT", "DOUBLE") and column.type in ("VARCHAR", "BOOLEAN"):
            raise DataError(
                f"impressions: column {column.name!r} is of type {column.type}, expected numbers: "
                "its values are taken for those of the history feature of its name that were "
                "served; correct it, name words that say that a number is missing (null_values), "
                "or rename the feature"
            )
