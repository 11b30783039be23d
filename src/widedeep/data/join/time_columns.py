"""Columns of times as SQL: what forms they come in, and which of their values cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from widedeep.data.join.config import ActionLog, Attributes, ImpressionLog
from widedeep.data.join.engine import Engine
from widedeep.data.join.inputs import Opened, is_text, located, micros_sql
from widedeep.data.join.plan import quoted
from widedeep.data.join.times import (
    FINER_TEXT,
    TIME_TEXT,
    ZONED_TEXT,
    check_unit,
    offset_us,
    unit_of_epochs,
)
from widedeep.errors import DataError

_TO_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class TimeColumn:
    """A column of times."""

    sql: str  # Its microseconds since 1970
    zoned: bool  # True if its times name a zone, or the configuration does
    notes: tuple[str, ...] = ()  # What a person should know


def time_column(
    engine: Engine, opened: Opened, column: str, source: ImpressionLog | ActionLog | Attributes
) -> TimeColumn:
    """Return how a column's times are read."""
    kind = opened.type_of(column, "valid_from" if isinstance(source, Attributes) else "time")
    where = f"{opened.name}: column {column!r}"
    name = quoted(column)
    if pa.types.is_integer(kind):
        sql, notes = _epochs(engine, opened, column, name, source.time_unit)
        return TimeColumn(sql=sql, zoned=True, notes=notes)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        sql, zoned = micros_sql(kind, name), pa.types.is_timestamp(kind) and kind.tz is not None
        notes = note_finer(engine, opened, column)
    elif is_text(kind):
        row = _text_counts(engine, opened, name)
        if row["wd_digits"] and row["wd_digits"] == row["wd_present"]:
            digits = f"CAST({name} AS BIGINT)"
            sql, notes = _epochs(engine, opened, column, digits, source.time_unit)
            return TimeColumn(sql=sql, zoned=True, notes=notes)
        zoned, notes = _checked_text(engine, opened, column, row)
        sql = f"WD_TEXT_MICROS({name})"
    else:
        raise DataError(
            f"{where} is of type {kind}, expected timestamps, dates, ISO 8601 text, or integer "
            "seconds, milliseconds, microseconds or nanoseconds since 1970"
        )
    if zoned:
        return TimeColumn(sql=sql, zoned=True, notes=notes)
    if source.timezone is None:
        notes += (
            f"{where}: its times name no zone and are read as UTC; set timezone = 'UTC', or an "
            "offset such as '+02:00'",
        )
    else:
        sql = f"({sql} - CAST({offset_us(source.timezone)} AS BIGINT))"
    return TimeColumn(sql=sql, zoned=source.timezone is not None, notes=notes)


def _epochs(
    engine: Engine, opened: Opened, column: str, number: str, unit: str
) -> tuple[str, tuple[str, ...]]:
    """Return epoch numbers in microseconds, and a note where digits are cut off."""
    where = f"{opened.name}: column {column!r}"
    row = engine.rows(
        f"SELECT MIN({number}) AS low, MAX({number}) AS high, "
        f"COUNT(CASE WHEN {number} % 1000 <> 0 THEN 1 END) AS finer FROM {opened.view}"
    )[0]
    if row["low"] is None:
        return f"CAST({number} AS BIGINT)", ()
    low, high = int(row["low"]), int(row["high"])
    try:
        if unit == "auto":
            unit = unit_of_epochs(low, high, where)
        else:
            check_unit(unit, low, high, where)
    except DataError as error:
        ends = "; ".join(dict.fromkeys(located(opened, column, end) for end in (low, high)))
        raise DataError(f"{error} ({ends})") from None
    if unit == "ns":
        return f"WD_FLOOR_1000(CAST({number} AS BIGINT))", _finer(where, int(row["finer"]))
    return f"CAST({number} AS BIGINT) * {_TO_MICROSECONDS[unit]}", ()


def _text_counts(engine: Engine, opened: Opened, name: str) -> dict[str, Any]:
    conditions = {
        "wd_digits": f"REGEXP_MATCHES({name}, '^[0-9]+$')",
        "wd_zoned": f"REGEXP_MATCHES({name}, '{ZONED_TEXT}')",
        "wd_finer": f"REGEXP_MATCHES({name}, '{FINER_TEXT}')",
        "wd_unread": f"{name} IS NOT NULL AND {_unread(name)}",
    }
    counts = ", ".join(
        f"COUNT(CASE WHEN {sql} THEN 1 END) AS {key}" for key, sql in conditions.items()
    )
    return engine.rows(f"SELECT COUNT({name}) AS wd_present, {counts} FROM {opened.view}")[0]


def _unread(name: str) -> str:
    return f"(NOT REGEXP_MATCHES({name}, '{TIME_TEXT}') OR WD_TEXT_MICROS({name}) IS NULL)"


def _checked_text(
    engine: Engine, opened: Opened, column: str, row: dict[str, Any]
) -> tuple[bool, tuple[str, ...]]:
    """Return whether the texts name zones, and notes; refuse what cannot be read."""
    where = f"{opened.name}: column {column!r}"
    if row["wd_unread"]:
        name = quoted(column)
        # Where most are whole numbers, the others are at fault.
        epochs = 2 * row["wd_digits"] > row["wd_present"]
        wrong = f"NOT REGEXP_MATCHES({name}, '^[0-9]+$')" if epochs else _unread(name)
        count = row["wd_present"] - row["wd_digits"] if epochs else row["wd_unread"]
        expected = (
            "numbers like the others" if epochs else "ISO 8601 text such as '2026-01-31T12:00:00Z'"
        )
        texts = engine.rows(
            f"SELECT DISTINCT {name} AS wd_text FROM {opened.view} WHERE {name} IS NOT NULL AND "
            f"{wrong} ORDER BY wd_text LIMIT {_SHOWN}"
        )
        shown = "; ".join(located(opened, column, text["wd_text"]) for text in texts)
        raise DataError(
            f"{where}: got {count:,} values that are no times ({shown}), expected "
            f"{expected}, or null; correct the rows"
        )
    if 0 < row["wd_zoned"] < row["wd_present"]:
        raise DataError(
            f"{where}: time zones are mixed: {row['wd_zoned']} of {row['wd_present']} times name a "
            "zone, the others do not; write all of them with a zone"
        )
    return row["wd_zoned"] > 0, _finer(where, int(row["wd_finer"]))


def note_finer(engine: Engine, opened: Opened, column: str) -> tuple[str, ...]:
    """Return a note if timestamps of nanoseconds have digits that microseconds do not hold."""
    kind = opened.schema[column]
    if not (pa.types.is_timestamp(kind) and kind.unit == "ns"):
        return ()
    count = f"COUNT(CASE WHEN WD_NANOS({quoted(column)}) % 1000 <> 0 THEN 1 END)"
    row = engine.rows(f"SELECT {count} AS finer FROM {opened.view}")[0]
    return _finer(f"{opened.name}: column {column!r}", int(row["finer"]))


def _finer(where: str, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{where}: {count:,} times have digits below a microsecond, which are cut off",)
