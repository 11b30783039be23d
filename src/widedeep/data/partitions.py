"""Columns that the folders of files state (``day=7/part.parquet``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from widedeep.data.fragments import ChangedBlock, Input
from widedeep.data.paths import InputFile
from widedeep.errors import DataError
from widedeep.features.learned import ColumnKind


def partition_columns(
    files: Sequence[InputFile], types: Mapping[str, ColumnKind]
) -> dict[str, pa.DataType]:
    """Return the partitions of files with their types.

    A column has its declared type; without one it is int64 if every value is a whole number as
    programs write it (``7``, not ``07``), else text.
    """
    values: dict[str, list[str | None]] = {}
    for file in files:
        for name, value in file.partitions:
            values.setdefault(name, []).append(value)
    columns = {}
    for name, texts in values.items():
        declared = types.get(name)
        if declared is None or isinstance(declared, str) or pa.types.is_null(declared):
            is_integer = all(text is None or _is_integer(text) for text in texts)
            declared = pa.int64() if is_integer else pa.string()
        columns[name] = declared
    return columns


def _is_integer(text: str) -> bool:
    try:
        return str(int(text)) == text and abs(int(text)) < 2**63
    except ValueError:
        return False


def _with_values(
    values: Mapping[str, pa.Scalar], num_rows: int, table: pa.Table, columns: Sequence[str]
) -> pa.Table:
    arrays = [
        pa.repeat(values[name], num_rows) if name in values else table.column(name)
        for name in columns
    ]
    return pa.Table.from_arrays(arrays, names=list(columns))


def with_partitions(
    opened: Input,
    file: InputFile,
    types: Mapping[str, pa.DataType],
    columns: Sequence[str] | None,
) -> Input:
    """Return an input with the columns of its file's partitions, if they are asked for."""
    origin = opened.record["path"]
    values = {}
    for name, text in file.partitions:
        if columns is not None and name not in columns:
            continue
        if name in opened.schema.names:
            raise DataError(
                f"{origin}: the column {name!r} is in the file, and the folder {name}={text} "
                "states it too; drop it from the file, rename the folder, or list the files by name"
            )
        try:
            values[name] = pa.scalar(text, pa.string()).cast(types[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{origin}: got {name}={text} in its path, expected a value of type {types[name]}, "
                "as the column is declared or was when the schema was fitted; rename the folder"
            ) from error
    if not values:
        return opened
    schema = pa.schema([*opened.schema, *(pa.field(name, types[name]) for name in values)])
    blocks = [
        ChangedBlock(
            block, partial(_with_values, values, block.num_rows), block.num_rows, added=values
        )
        for block in opened.blocks
    ]
    return replace(opened, schema=schema, blocks=blocks)
