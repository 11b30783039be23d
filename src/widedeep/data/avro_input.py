"""Avro files as inputs, read by fastavro."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from widedeep.data.fragments import Input, InputFormat, Spool, check_columns, file_by_file
from widedeep.data.parquet_input import spooled_input
from widedeep.errors import DataError, extra_imports
from widedeep.remote import InputPath, open_bytes

_CHUNK_ROWS = 16_384
_PLAIN = {
    **{"null": pa.null(), "boolean": pa.bool_(), "int": pa.int32(), "long": pa.int64()},
    **{"float": pa.float32(), "double": pa.float64(), "bytes": pa.binary(), "string": pa.string()},
    "enum": pa.string(),
}
_LOGICAL = {
    "date": pa.date32(),
    "timestamp-millis": pa.timestamp("ms", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
    "uuid": pa.string(),
}


def _avro_input(path: InputPath, columns: Sequence[str] | None, spool: Spool) -> Input:
    with extra_imports():
        import fastavro

    origin = str(path)
    try:
        with open_bytes(path) as file:
            rows = fastavro.reader(file)
            declaration = rows.writer_schema
            fields = declaration.get("fields") if isinstance(declaration, dict) else None
            if fields is None:
                raise DataError(f"{origin}: got an Avro file of {declaration}, expected records")
            types = {field["name"]: field["type"] for field in fields}
            names = list(types) if columns is None else list(columns)
            check_columns(names, list(types), origin)
            schema = pa.schema([(name, _type(types[name], name, origin)) for name in names])
            reader = pa.RecordBatchReader.from_batches(schema, _batches(rows, schema, origin))
            return spooled_input(reader, origin, spool, path=path)
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{origin}: not a complete Avro file ({error!r}); it is truncated or of another "
            "format: write it again, or name the right file"
        ) from error


def _batches(rows: Any, schema: pa.Schema, origin: str) -> Iterator[pa.RecordBatch]:
    while chunk := list(itertools.islice(rows, _CHUNK_ROWS)):
        try:
            arrays = [pa.array([_plain(row[f.name]) for row in chunk], f.type) for f in schema]
        except pa.ArrowException as error:
            raise DataError(f"{origin}: got values that Arrow does not hold ({error})") from error
        yield pa.record_batch(arrays, schema=schema)


def _plain(value: Any) -> Any:
    return str(value) if type(value).__name__ == "UUID" else value


def _type(declared: Any, name: str, origin: str) -> pa.DataType:
    """Return the Arrow type of an Avro one."""
    if isinstance(declared, list):
        kinds = [kind for kind in declared if kind != "null"]
        if len(kinds) == 1:
            return _type(kinds[0], name, origin)
    elif isinstance(declared, str) and declared in _PLAIN:
        return _PLAIN[declared]
    elif isinstance(declared, dict):
        kind, logical = declared["type"], declared.get("logicalType")
        if logical in _LOGICAL:
            return _LOGICAL[logical]
        if logical == "decimal":
            return pa.decimal128(declared["precision"], declared.get("scale", 0))
        if kind == "array":
            return pa.list_(_type(declared["items"], name, origin))
        if kind == "fixed":
            return pa.binary(declared["size"])
        if logical is None and isinstance(kind, str) and kind in _PLAIN:
            return _PLAIN[kind]
    raise DataError(
        f"{origin}: the field {name!r} is of the Avro type {declared}, which no feature reads; "
        "leave it out, or write numbers, text, times or lists of them"
    )


AVRO = InputFormat(suffixes=(".avro",), open=file_by_file(_avro_input))
