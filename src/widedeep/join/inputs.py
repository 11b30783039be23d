"""Opens the inputs, checks what can be checked before any work, and says it in SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.arrow_types import is_text, unified_schema
from widedeep.data.formats import find_format, format_of
from widedeep.data.fragments import Source, column_stream
from widedeep.data.parquet_input import PARQUET, parquet_schema
from widedeep.data.paths import InputFile, input_files, input_paths
from widedeep.data.sources import open_source
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.features.learned import ColumnKind, ColumnTypes
from widedeep.join.config import Attributes, JoinInput
from widedeep.join.engines import Engine, EngineError, SparkEngine
from widedeep.join.plan import PassThroughColumn, quoted
from widedeep.join.times import (
    FINER_TEXT,
    TIME_TEXT,
    ZONED_TEXT,
    check_unit,
    offset_us,
    unit_of_epochs,
)
from widedeep.remote import RemoteFile


@dataclass(frozen=True, kw_only=True)
class OpenedInput:
    """An input that the engine can read."""

    name: str  # Such as ``"impressions"``
    view: str  # The relation in the engine
    schema: Mapping[str, pa.DataType]  # Arrow type of each column
    files: tuple[Path, ...]  # Where the rows are
    spooled: bool = False  # True if ``files`` is a copy of what is not here in files
    remote: tuple[RemoteFile, ...] = ()  # What was copied from behind URLs
    address: str = ""  # Where Spark alone reads: URLs, or a table of its catalogue
    untyped: bool = False  # True if all rows are in files without types, such as CSV

    def type_of(self, column: str, role: str) -> pa.DataType:
        """Return a column's type, or say which column was meant."""
        if column not in self.schema:
            raise DataError(
                f"{self.name}: {role} = {column!r}, but there is no such column; "
                f"{nearest(column, self.schema)}"
            )
        return self.schema[column]


def open_input(engine: Engine, name: str, source: JoinInput, spool: Path) -> OpenedInput:
    """Open an input in the engine."""
    view = f"wd_in_{name}"
    urls = _urls(source.path)
    of_spark = source.path is None or (urls and all(map(_is_sparks, urls)))
    if isinstance(engine, SparkEngine) and of_spark:
        return _open_in_spark(engine, name, view, urls or str(source.table))
    _refuse_sparks(name, source, urls)
    if source.table is not None:
        return _open_table(engine, name, view, source)
    try:
        listed = input_files(source.path) or ()
        files = [file.path.absolute() for file in listed if isinstance(file.path, Path)]
        copies = _Copies(spool / name)
        if files and all(_is_read_in_place(file) for file in listed):
            schema, readable = _parquet_files(files, copies)
        else:
            schema, readable = copies.write(source.path, _column_types(source))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    _check_names(name, schema.names)
    engine.open_parquet(view, readable)
    return OpenedInput(
        name=name,
        view=view,
        schema={field.name: field.type for field in schema},
        files=tuple(files or readable),
        spooled=not files,
        remote=tuple(file.path for file in listed if isinstance(file.path, RemoteFile)),
        untyped=bool(listed) and not any(format_of(file.path).typed for file in listed),
    )


def _is_read_in_place(file: InputFile) -> bool:
    return isinstance(file.path, Path) and not file.partitions and find_format(file.path) is PARQUET


_SPARKS = ("dbfs", "hdfs", "maprfs", "s3n", "viewfs", "wasb", "wasbs")
"""Schemes of file systems that Spark alone opens."""


def _urls(path: Any) -> list[str]:
    """Return the URLs that a path is, or is a list of."""
    listed = path if isinstance(path, list | tuple) else [path]
    return [url for url in listed if isinstance(url, str) and "://" in url]


def _is_sparks(url: str) -> bool:
    """Tell whether Spark opens a URL itself; what is no Parquet is copied, as DuckDB has it."""
    is_web = url.lower().startswith(("http://", "https://"))
    return not is_web and find_format(Path(url)) in (None, PARQUET)


def _refuse_sparks(name: str, source: JoinInput, urls: Sequence[str]) -> None:
    """Refuse what DuckDB cannot read and Spark could."""
    advice = "set engine = 'spark' ('widedeep check' samples with DuckDB alone)"
    if source.path is None:
        raise ConfigError(
            f"{name}: table = {source.table!r} without a path is a table of Spark's catalogue, "
            f"which DuckDB does not know; {advice}, or name a DuckDB file as path"
        )
    for url in urls:
        scheme = url.partition("://")[0].lower()
        if scheme in _SPARKS:
            raise DataError(
                f"{name}: {url}: DuckDB does not read {scheme}://; {advice}, or copy the files here"
            )


def _open_in_spark(
    engine: SparkEngine, name: str, view: str, address: Sequence[str] | str
) -> OpenedInput:
    """Open what Spark reads where it is; no row comes here."""
    try:
        schema = engine.open_address(view, address)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    _check_names(name, schema.names)
    return OpenedInput(
        name=name,
        view=view,
        schema={field.name: field.type for field in schema},
        files=(),
        address=address if isinstance(address, str) else ", ".join(address),
    )


def _open_table(engine: Engine, name: str, view: str, source: JoinInput) -> OpenedInput:
    files = [p.absolute() for p in input_paths(source.path) or () if isinstance(p, Path)]
    if len(files) != 1:
        raise ConfigError(f"{name}: table = {source.table!r} needs one DuckDB file as its path")
    schema = engine.open_table(view, files[0], str(source.table))
    _check_names(name, schema.names)
    return OpenedInput(
        name=name, view=view, schema={f.name: f.type for f in schema}, files=tuple(files)
    )


def _check_names(name: str, columns: Sequence[str]) -> None:
    """Refuse names that SQL engines, which do not look at case, take for one, and the join's."""
    seen: dict[str, str] = {}
    for place, column in enumerate(columns, 1):
        if not column or "\0" in column:
            raise DataError(
                f"{name}: column {place} of {len(columns)} is named {column!r}, which SQL engines "
                "cannot read; name it, or drop it (in CSV, a comma at the header's end)"
            )
        if column.lower().startswith("wd_"):
            raise DataError(
                f"{name}: column {column!r} has a name that begins with 'wd_', as the join's own "
                "columns do; rename or drop it"
            )
        other = seen.setdefault(column.lower(), column)
        if other != column:
            raise DataError(
                f"{name}: columns {other!r} and {column!r} differ in case alone, and the join's "
                "engine takes them for one; rename or drop one of them"
            )


def _column_types(source: JoinInput) -> ColumnTypes:
    """Return what is known of columns whose files do not say it (CSV): types by their roles."""
    roles: dict[str, ColumnKind] = dict.fromkeys(("user", "item", "request", "key"), "category")
    roles |= {"position": pa.int64(), "kind": pa.string(), "value": pa.float64()}
    columns = {role: getattr(source, role, None) for role in roles}
    types = {column: roles[role] for role, column in columns.items() if column is not None}
    return ColumnTypes(types, source.null_values)


def _parquet_files(files: Sequence[Path], copies: _Copies) -> tuple[pa.Schema, list[Path]]:
    """Return the files' one schema, and the files with a copy of each that differs from it."""
    schemas = [(str(file), parquet_schema(file)) for file in files]
    schema = _engine_schema(unified_schema(schemas))
    readable = []
    for file, (_, own) in zip(files, schemas, strict=True):
        # Spark takes no file by such a name as that one.
        plain = not (file.name.startswith((".", "_")) or set("*?[]{}\\") & set(str(file)))
        same = own == schema and plain
        readable += [file] if same else copies.write(file, {}, schema)[1]
    return schema, readable


@dataclass
class _Copies:
    """Copies of inputs as Parquet files that an engine reads as they are."""

    folder: Path  # Where they go
    count: int = 0

    def write(
        self, data: Any, kinds: Mapping[str, ColumnKind], schema: pa.Schema | None = None
    ) -> tuple[pa.Schema, list[Path]]:
        """Copy rows; return their schema and the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.count}.parquet"
        self.count += 1
        with open_source(data, column_types=kinds, spool_folder=self.folder) as source:
            if schema is None and not source.num_rows:
                raise DataError("got an empty log; check the path, or leave this input out")
            schema = schema or _engine_schema(source.arrow_schema)
            coarser = pa.schema([field.with_type(_coarser(field.type)) for field in schema])
            try:
                _write_copy(source, coarser, path)
            except pa.ArrowInvalid:  # Nanoseconds that are no whole microseconds stay.
                _write_copy(source, schema, path)
                return schema, [path]
        return coarser, [path]


def _write_copy(source: Source, schema: pa.Schema, path: Path) -> None:
    with pq.ParquetWriter(path, schema, compression="lz4") as writer:
        for table in column_stream(source):
            columns = [
                (
                    column.cast(column.type.value_type)
                    if pa.types.is_dictionary(column.type)
                    else column
                ).cast(field.type)
                for field, column in zip(schema, table.select(schema.names).columns, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _engine_schema(schema: pa.Schema) -> pa.Schema:
    """Return the types that both engines read."""
    return pa.schema([field.with_type(_engine_type(field.type)) for field in schema])


def _engine_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_engine_type(kind.value_type))
    return kind


def _coarser(kind: pa.DataType) -> pa.DataType:
    """Return a type of whole microseconds for one of nanoseconds, which Spark does not read."""
    ns = pa.types.is_timestamp(kind) and kind.unit == "ns"
    return pa.timestamp("us", kind.tz) if ns else kind


def id_column(opened: OpenedInput, column: str, role: str) -> tuple[str, bool]:
    """Return an id as SQL, and whether it is text."""
    kind = opened.type_of(column, role)
    if is_text(kind):
        return f"CAST({quoted(column)} AS VARCHAR)", True
    if pa.types.is_integer(kind):
        return f"CAST({quoted(column)} AS BIGINT)", False
    raise DataError(
        f"{opened.name}: {role} = {column!r} is of type {kind}, expected text or integers; convert "
        "it (ids held as floating-point numbers lose digits beyond 2^53)"
    )


def pass_through_columns(
    opened: OpenedInput, columns: Sequence[str] | None, key_columns: set[str], prefix: str
) -> tuple[PassThroughColumn, ...]:
    """Return the columns of an input that pass through the join."""
    names = (
        [name for name in opened.schema if name not in key_columns] if columns is None else columns
    )
    pass_through = []
    for number, name in enumerate(names):
        kind = opened.type_of(name, "columns")
        sql, sql_type = _pass_through_sql(opened, name, kind)
        pass_through.append(
            PassThroughColumn(name=name, inner=f"{prefix}{number}", sql=sql, type=sql_type)
        )
    return tuple(pass_through)


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values; of lists that of their items."""
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind.value_type if nested else kind


def _pass_through_sql(opened: OpenedInput, name: str, kind: pa.DataType) -> tuple[str, str]:
    column = quoted(name)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return micros_sql(kind, column), "BIGINT"
    sql_type = _sql_type(value_type(kind))
    if sql_type is None:
        raise DataError(
            f"{opened.name}: column {name!r} is of type {kind}, which cannot pass through; convert "
            "it to text, numbers, booleans or lists of these, or leave it out of 'columns'"
        )
    sql_type += "[]" if value_type(kind) != kind else ""
    return f"CAST({column} AS {sql_type})", sql_type


def micros_sql(kind: pa.DataType, column: str) -> str:
    """Return a timestamp's or date's microseconds as SQL; digits below them are cut off."""
    if pa.types.is_date(kind):
        return f"WD_MICROS(CAST({column} AS TIMESTAMP))"
    return f"WD_FLOOR_1000(WD_NANOS({column}))" if kind.unit == "ns" else f"WD_MICROS({column})"


def _sql_type(kind: pa.DataType) -> str | None:
    if is_text(kind):
        return "VARCHAR"
    if pa.types.is_integer(kind):
        return "BIGINT"
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_float32(kind):
        return "FLOAT"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "DOUBLE"
    return None


@contextlib.contextmanager
def damaged_files_named(inputs: Sequence[OpenedInput]) -> Iterator[None]:
    """Turn an engine's complaint into one that names the damaged Parquet file, if there is one."""
    try:
        yield
    except EngineError as error:
        damaged = _damaged_file(inputs)
        if damaged is None:
            raise
        raise DataError(damaged) from error


def _damaged_file(inputs: Sequence[OpenedInput]) -> str | None:
    """Read every Parquet file of the inputs; return what is wrong with the first damaged one."""
    for opened in inputs:
        for file in opened.files:
            if find_format(file) is not PARQUET:
                continue
            try:
                with open_source(file) as source:
                    for _ in column_stream(source):
                        pass
            except DataError as error:
                return f"{opened.name}: {error}"
    return None


def located(opened: OpenedInput, column: str, value: Any) -> str:
    """Return a value with the file and row that hold it first: ``'soon' in row 7 of shown.csv``."""
    for file in opened.files:
        file_format = find_format(file)
        locate = None if file_format is None else file_format.locate
        row = None if locate is None else locate(file, column, value)
        if row is not None:
            what = "the table" if opened.spooled else str(file)
            return f"{value!r} in {row} of {what}"
    return repr(value)


_TO_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class TimeColumn:
    """A column of times."""

    sql: str  # Its microseconds since 1970
    zoned: bool  # True if its times name a zone, or the configuration does
    notes: tuple[str, ...] = ()  # What a person should know


def time_column(engine: Engine, opened: OpenedInput, column: str, source: JoinInput) -> TimeColumn:
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
    engine: Engine, opened: OpenedInput, column: str, number: str, unit: str
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


def _text_counts(engine: Engine, opened: OpenedInput, name: str) -> dict[str, Any]:
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
    engine: Engine, opened: OpenedInput, column: str, row: dict[str, Any]
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
        examples = "; ".join(located(opened, column, text["wd_text"]) for text in texts)
        raise DataError(
            f"{where}: got {count:,} values that are no times ({examples}), expected "
            f"{expected}, or null; correct the rows"
        )
    if 0 < row["wd_zoned"] < row["wd_present"]:
        raise DataError(
            f"{where}: time zones are mixed: {row['wd_zoned']} of {row['wd_present']} times name a "
            "zone, the others do not; write all of them with a zone"
        )
    return row["wd_zoned"] > 0, _finer(where, int(row["wd_finer"]))


def note_finer(engine: Engine, opened: OpenedInput, column: str) -> tuple[str, ...]:
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
