"""JSON lines as inputs: one object a line."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from widedeep.data.column_values import is_time, read_times
from widedeep.data.fragments import Input, InputFormat, Spool, selected_columns
from widedeep.data.parquet_input import spooled_input
from widedeep.errors import DataError
from widedeep.features.learned import ColumnTypes
from widedeep.remote import InputPath, open_bytes

_CHUNK_BYTES = 16 << 20
_WHOLE = 2.0**53  # Below it a float64 holds every whole number


def _open(
    paths: Sequence[InputPath],
    columns: Sequence[str] | None,
    spool: Spool,
    declared: ColumnTypes,
) -> list[Input]:
    return [_json_input(path, columns, spool, declared) for path in paths]


def _json_input(
    path: InputPath, columns: Sequence[str] | None, spool: Spool, declared: ColumnTypes
) -> Input:
    ids = [name for name, kind in declared.items() if kind == "category"]
    # Two passes: a field may come late, or be a fraction for the first time there.
    types: dict[str, set[pa.DataType]] = {}
    for line, text in _chunks(path):
        table = _parsed(path, line, text, pa.schema([]))
        _check_ids(path, line, table.select([name for name in ids if name in table.schema.names]))
        for field in table.schema:
            types.setdefault(field.name, set()).add(field.type)
    # Text that looks like a time is text, as in CSV, unless the column is one of times.
    texts = {
        name: {pa.string() if pa.types.is_timestamp(kind) else kind for kind in kinds}
        for name, kinds in types.items()
    }
    written = pa.schema([(name, _one_type(path, name, kinds)) for name, kinds in texts.items()])
    times = {
        field.name: kind
        for field in written
        if isinstance(kind := declared.get(field.name), pa.DataType)
        and is_time(kind)
        and field.type == pa.string()
    }
    schema = pa.schema([(field.name, times.get(field.name, field.type)) for field in written])
    batches = (
        batch
        for line, text in _chunks(path)
        for batch in _timed(path, line, _parsed(path, line, text, written), schema).to_batches()
    )
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    opened = spooled_input(
        selected_columns(reader, columns, str(path)), str(path), spool, path=path
    )
    return replace(opened, row_name=partial(_line_of_row, path))


def _line_of_row(path: InputPath, row: int) -> str:
    """Return where a row is, as ``"line 7 of a.jsonl"``; blank lines hold none."""
    for first, text in _chunks(path):
        for line, one in enumerate(text.split(b"\n"), first):
            if one.strip():
                if not row:
                    return f"line {line:,} of {path}"
                row -= 1
    return f"the end of {path}"


def _timed(path: InputPath, line: int, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema, texts that are times in it as such."""
    columns = []
    for field in schema:
        column = table[field.name]
        if column.type != field.type:
            text = column
            column, fault = read_times(text, field.type)
            if fault is not None:
                raise DataError(
                    f"{path}, counted from line {line}: the field {field.name!r} holds "
                    f"{text[fault].as_py()!r}, expected a value of type {field.type}, as its "
                    "column holds elsewhere"
                )
        columns.append(column)
    return pa.table(columns, schema=schema)


def _chunks(path: InputPath) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, about 16 MiB at a time, with the number of the first."""
    line = 1
    try:
        with open_bytes(path) as file:
            while lines := file.readlines(_CHUNK_BYTES):
                yield line, b"".join(lines)
                line += len(lines)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again") from error


def _parsed(path: InputPath, line: int, text: bytes, schema: pa.Schema) -> pa.Table:
    options = pajson.ParseOptions(explicit_schema=schema, newlines_in_values=False)
    block = pajson.ReadOptions(block_size=len(text) + 1)
    try:
        return pajson.read_json(io.BytesIO(text), read_options=block, parse_options=options)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}, counted from line {line}: cannot be read ({error}); expected one JSON object "
            "a line, with one type for each field"
        ) from error


def _check_ids(path: InputPath, line: int, table: pa.Table) -> None:
    """Refuse ids that became floating-point numbers of too few digits."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_floating(field.type) and (pc.max(pc.abs(column)).as_py() or 0) >= _WHOLE:
            raise DataError(
                f"{path}, counted from line {line}: the field {field.name!r} holds a number beyond "
                "64 bits, or beyond 2^53 beside fractions, which loses digits; write ids as text"
            )


def _one_type(path: InputPath, name: str, kinds: set[pa.DataType]) -> pa.DataType:
    """Return the type that holds the values of a field in all chunks."""
    schemas = [pa.schema([(name, kind)]) for kind in kinds]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        listed = ", ".join(sorted(map(str, kinds)))
        raise DataError(
            f"{path}: the field {name!r} is {listed} in different rows; expected one type"
        ) from error


JSON_LINES = InputFormat(suffixes=(".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), open=_open)
