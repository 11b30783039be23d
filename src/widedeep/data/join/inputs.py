"""Opens the inputs, checks what can be checked before any work, and says it in SQL."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from widedeep.data.join.config import ActionLog, Attributes, ImpressionLog
from widedeep.data.join.engine import Engine, EngineError
from widedeep.data.join.plan import Carried, quoted
from widedeep.errors import ConfigError, DataError, nearest

__all__ = ["Opened", "carried_columns", "damaged_files_named", "id_column", "open_input"]

AnySource = ImpressionLog | ActionLog | Attributes
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An input that the engine can read.

    Args:
        name: Such as ``"impressions"``.
        view: The relation in the engine.
        schema: Arrow type of each column.
        files: Where the rows are.
        spooled: True if ``files`` is a copy of a table that was in memory.
    """

    name: str
    view: str
    schema: Mapping[str, pa.DataType]
    files: tuple[Path, ...]
    spooled: bool = False

    def type_of(self, column: str, role: str) -> pa.DataType:
        """Return a column's type, or say which column was meant."""
        if column not in self.schema:
            raise DataError(
                f"{self.name}: {role} = {column!r}, but there is no such column; "
                f"{nearest(column, self.schema)}"
            )
        return self.schema[column]


def open_input(engine: Engine, name: str, source: AnySource, spool: Path) -> Opened:
    """Open an input in the engine.

    Args:
        engine: Reads it.
        name: Of the input, for errors.
        source: Where it is.
        spool: Folder for a copy of a table that is in memory.

    Raises:
        DataError: If nothing is there, or a file is damaged or unlike the others.
        ConfigError: If the path is of no kind that is known.
    """
    view = f"wd_in_{name}"
    if source.table is not None:
        return _open_table(engine, name, view, source)
    spooled = not _is_paths(source.path)
    files = [_spooled(source.path, name, spool)] if spooled else _files(source.path, name)
    if all(file.suffix.lower() in _PARQUET for file in files):
        schema = _parquet_schema(files, name)
        engine.open_parquet(view, files)
    elif all(file.name.lower().endswith((".csv", ".csv.gz")) for file in files):
        schema = _csv_schema(files, name)
        engine.open_csv(view, files, {key: _csv_type(kind) for key, kind in schema.items()})
    else:
        raise ConfigError(
            f"{name}: got {[file.name for file in files][:3]}, expected files that all end in "
            ".parquet or all in .csv (or a DuckDB file with table = 'NAME')"
        )
    return Opened(name=name, view=view, schema=schema, files=tuple(files), spooled=spooled)


def _is_paths(path: Any) -> bool:
    if isinstance(path, (str, os.PathLike)):
        return True
    return (
        isinstance(path, (list, tuple))
        and len(path) > 0
        and all(isinstance(item, (str, os.PathLike)) for item in path)
    )


def _open_table(engine: Engine, name: str, view: str, source: AnySource) -> Opened:
    files = _files(source.path, name)
    if len(files) != 1:
        raise ConfigError(f"{name}: table = {source.table!r} needs one DuckDB file as its path")
    schema = engine.open_table(view, files[0], str(source.table))
    return Opened(name=name, view=view, schema={f.name: f.type for f in schema}, files=tuple(files))


def _files(path: Any, name: str) -> list[Path]:
    items = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    found: list[Path] = []
    for item in items:
        text = os.fspath(item)
        place = Path(text)
        if place.is_dir():
            more = sorted(p for p in place.rglob("*.parquet") if not p.name.startswith((".", "_")))
        elif place.exists():
            more = [place]
        else:
            more = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not more:
            raise DataError(f"{name}: {text}: no file is there; check the path or glob")
        found += [file.absolute() for file in more]
    return found


def _spooled(table: Any, name: str, spool: Path) -> Path:
    try:
        if isinstance(table, list):
            table = pa.Table.from_pylist(table)
        elif type(table).__module__.startswith("pandas"):
            table = pa.Table.from_pandas(table, preserve_index=False)
        elif type(table).__module__.startswith("polars"):
            table = table.to_arrow()
        elif not isinstance(table, pa.Table):
            table = pa.table(table)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{name}: got a {type(table).__name__}, expected a path, a glob, a list of paths, a "
            "pandas or Polars DataFrame, an Arrow table or a list of dicts"
        ) from error
    spool.mkdir(parents=True, exist_ok=True)
    path = spool / f"{name}.parquet"
    pq.write_table(table, path, coerce_timestamps="us", allow_truncated_timestamps=True)
    return path


def _parquet_schema(files: Sequence[Path], name: str) -> dict[str, pa.DataType]:
    first: pa.Schema | None = None
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{name}: {file}: not a complete Parquet file ({error}); write it again or take it "
                "out"
            ) from error
        if first is None:
            first = schema
        elif not schema.remove_metadata().equals(first.remove_metadata()):
            raise DataError(
                f"{name}: {file}: its columns differ from those of {files[0].name}: "
                f"{_difference(first, schema)}; write all files with the same columns"
            )
    assert first is not None
    for column in first.names:
        if first.names.count(column) > 1:
            raise DataError(f"{name}: {files[0]}: two columns are named {column!r}; rename one")
    return {field.name: field.type for field in first}


def _difference(one: pa.Schema, other: pa.Schema) -> str:
    types = [{field.name: str(field.type) for field in schema} for schema in (one, other)]
    for column in {**types[0], **types[1]}:
        pair = [some.get(column, "absent") for some in types]
        if pair[0] != pair[1]:
            return f"{column!r} is {pair[1]}, not {pair[0]}"
    return "their order differs"


def _csv_schema(files: Sequence[Path], name: str) -> dict[str, pa.DataType]:
    header: list[str] | None = None
    found: dict[str, pa.DataType] = {}
    for file in files:
        types, rows = _csv_types(file, name)
        header = header or list(types)
        if list(types) != header:
            raise DataError(
                f"{name}: {file}: its header {list(types)} differs from that of {files[0].name}: "
                f"{header}"
            )
        if rows:
            # A column is what every file's first rows allow; a header alone tells no types.
            found = {key: _wider(found.get(key, kind), kind) for key, kind in types.items()}
    if not found:
        raise DataError(
            f"{name}: got an empty log (a header without rows); check the path, or leave this "
            "input out"
        )
    return found


def _csv_types(file: Path, name: str) -> tuple[dict[str, pa.DataType], bool]:
    """Return the types of a file's columns, and whether it has rows."""
    try:
        with pa_csv.open_csv(file) as reader:
            types = {field.name: _csv_kind(field.type) for field in reader.schema}
            return types, any(batch.num_rows for batch in reader)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {file}: cannot be read as CSV: {error}") from error


def _csv_kind(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return kind
    return pa.string()


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one.equals(other):
        return one
    numbers = (pa.int64(), pa.float64())
    return pa.float64() if one in numbers and other in numbers else pa.string()


def _csv_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_integer(kind):
        return "BIGINT"
    return "DOUBLE" if pa.types.is_floating(kind) else "VARCHAR"


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type holds text, dictionaries of it included."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in kinds)


def id_column(opened: Opened, column: str, role: str) -> tuple[str, bool]:
    """Return an id as SQL, and whether it is text.

    Raises:
        DataError: If the column is neither text nor of integers.
    """
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
    """Return the columns of an input that pass through the join.

    Args:
        opened: The input.
        wanted: Their names; None: all that are not taken.
        taken: Columns with another role.
        prefix: Of their inner names.

    Raises:
        DataError: If a column is not there, or of a type that the engines do not share.
    """
    names = [name for name in opened.schema if name not in taken] if wanted is None else wanted
    carried = []
    for number, name in enumerate(names):
        kind = opened.type_of(name, "columns")
        sql, sql_type = _carried_sql(opened, name, kind)
        carried.append(Carried(name=name, inner=f"{prefix}{number}", sql=sql, type=sql_type))
    return tuple(carried)


def _carried_sql(opened: Opened, name: str, kind: pa.DataType) -> tuple[str, str]:
    column = quoted(name)
    if pa.types.is_timestamp(kind):
        return f"WD_MICROS({column})", "BIGINT"
    if pa.types.is_date(kind):
        return f"WD_MICROS(CAST({column} AS TIMESTAMP))", "BIGINT"
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    sql_type = _sql_type(kind.value_type if nested else kind)
    if sql_type is None:
        raise DataError(
            f"{opened.name}: column {name!r} is of type {kind}, which cannot pass through; convert "
            "it to text, numbers, booleans or lists of these, or leave it out of 'columns'"
        )
    sql_type += "[]" if nested else ""
    return f"CAST({column} AS {sql_type})", sql_type


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
    """Turn an engine's complaint into one that names the damaged Parquet file, if there is one.

    Args:
        inputs: They may be opened within.

    Raises:
        DataError: What the engine raised, or which file is damaged.
    """
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
                with pq.ParquetFile(file) as parquet:
                    for _ in parquet.iter_batches():
                        pass
            except (pa.ArrowException, OSError) as error:
                return f"{opened.name}: {file}: damaged ({error}); write it again or take it out"
    return None
