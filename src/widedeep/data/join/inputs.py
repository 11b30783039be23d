"""Opens the inputs, checks what can be checked before any work, and says it in SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep.data.arrow_types import unified_schema
from widedeep.data.csv_input import is_csv, line_of_value
from widedeep.data.csv_values import ColumnKind
from widedeep.data.fragments import Source, column_stream
from widedeep.data.join.config import ActionLog, Attributes, ImpressionLog
from widedeep.data.join.engine import Engine, EngineError
from widedeep.data.join.plan import Carried, quoted
from widedeep.data.parquet_input import parquet_schema
from widedeep.data.paths import input_paths
from widedeep.data.sources import open_source
from widedeep.errors import ConfigError, DataError, nearest

AnySource = ImpressionLog | ActionLog | Attributes
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An input that the engine can read."""

    name: str  # Such as ``"impressions"``
    view: str  # The relation in the engine
    schema: Mapping[str, pa.DataType]  # Arrow type of each column
    files: tuple[Path, ...]  # Where the rows are
    spooled: bool = False  # True if ``files`` is a copy of a table that was in memory
    is_csv: bool = False  # True if all rows are in CSV files

    def type_of(self, column: str, role: str) -> pa.DataType:
        """Return a column's type, or say which column was meant."""
        if column not in self.schema:
            raise DataError(
                f"{self.name}: {role} = {column!r}, but there is no such column; "
                f"{nearest(column, self.schema)}"
            )
        return self.schema[column]


def open_input(engine: Engine, name: str, source: AnySource, spool: Path) -> Opened:
    """Open an input in the engine."""
    view = f"wd_in_{name}"
    if source.table is not None:
        return _open_table(engine, name, view, source)
    try:
        files = [file.absolute() for file in input_paths(source.path) or ()]
        copies = _Copies(spool / name)
        if files and all(file.suffix.lower() in _PARQUET for file in files):
            schema, readable = _parquet_files(files, copies)
        else:
            schema, readable = copies.write(source.path, _column_kinds(source))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    _check_names(name, schema.names)
    engine.open_parquet(view, readable)
    return Opened(
        name=name,
        view=view,
        schema={field.name: field.type for field in schema},
        files=tuple(files or readable),
        spooled=not files,
        is_csv=bool(files) and all(map(is_csv, files)),
    )


def _open_table(engine: Engine, name: str, view: str, source: AnySource) -> Opened:
    files = [file.absolute() for file in input_paths(source.path) or ()]
    if len(files) != 1:
        raise ConfigError(f"{name}: table = {source.table!r} needs one DuckDB file as its path")
    schema = engine.open_table(view, files[0], str(source.table))
    _check_names(name, schema.names)
    return Opened(name=name, view=view, schema={f.name: f.type for f in schema}, files=tuple(files))


def _check_names(name: str, columns: Sequence[str]) -> None:
    """Refuse names that SQL engines, which do not look at case, take for one, and the join's."""
    seen: dict[str, str] = {}
    for column in columns:
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


def _column_kinds(source: AnySource) -> dict[str, ColumnKind]:
    """Return what the roles of columns say of their types, for files that do not (CSV)."""
    roles: dict[str, ColumnKind] = dict.fromkeys(("user", "item", "request", "key"), "category")
    roles |= {"position": pa.int64(), "kind": pa.string(), "value": pa.float64()}
    columns = {role: getattr(source, role, None) for role in roles}
    return {column: roles[role] for role, column in columns.items() if column is not None}


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


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type holds text, dictionaries of it included."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in kinds)


def id_column(opened: Opened, column: str, role: str) -> tuple[str, bool]:
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


def carried_columns(
    opened: Opened, wanted: Sequence[str] | None, taken: set[str], prefix: str
) -> tuple[Carried, ...]:
    """Return the columns of an input that pass through the join."""
    names = [name for name in opened.schema if name not in taken] if wanted is None else wanted
    carried = []
    for number, name in enumerate(names):
        kind = opened.type_of(name, "columns")
        sql, sql_type = _carried_sql(opened, name, kind)
        carried.append(Carried(name=name, inner=f"{prefix}{number}", sql=sql, type=sql_type))
    return tuple(carried)


def _carried_sql(opened: Opened, name: str, kind: pa.DataType) -> tuple[str, str]:
    column = quoted(name)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return micros_sql(kind, column), "BIGINT"
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    sql_type = _sql_type(kind.value_type if nested else kind)
    if sql_type is None:
        raise DataError(
            f"{opened.name}: column {name!r} is of type {kind}, which cannot pass through; convert "
            "it to text, numbers, booleans or lists of these, or leave it out of 'columns'"
        )
    sql_type += "[]" if nested else ""
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
def damaged_files_named(inputs: Sequence[Opened]) -> Iterator[None]:
    """Turn an engine's complaint into one that names the damaged Parquet file, if there is one."""
    try:
        yield
    except EngineError as error:
        damaged = _damaged_file(inputs)
        if damaged is None:
            raise
        raise DataError(damaged) from error


def _damaged_file(inputs: Sequence[Opened]) -> str | None:
    """Read every Parquet file of the inputs; return what is wrong with the first damaged one."""
    for opened in inputs:
        for file in opened.files:
            if file.suffix.lower() not in _PARQUET:
                continue
            try:
                with open_source(file) as source:
                    for _ in column_stream(source):
                        pass
            except DataError as error:
                return f"{opened.name}: {error}"
    return None


def located(opened: Opened, column: str, value: Any) -> str:
    """Return a value with the file and row that hold it first: ``'soon' in row 7 of shown.csv``."""
    for file in opened.files:
        row = _row_of(file, column, value)
        if row is not None:
            what = "the table" if opened.spooled else str(file)
            return f"{value!r} in {row} of {what}"
    return repr(value)


def _row_of(file: Path, column: str, value: Any) -> str | None:
    if file.suffix.lower() in _PARQUET:
        before = 0
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=[column]):
                index = pc.index(batch.column(0), value).as_py()
                if index >= 0:
                    return f"row {before + index + 1:,}"
                before += batch.num_rows
    elif is_csv(file):
        line = line_of_value(file, column, str(value))
        return None if line is None else f"line {line:,}"
    return None
