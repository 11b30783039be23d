"""CSV files as a stream of record batches with declared types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from widedeep.data.arrow_types import logical_schema
from widedeep.errors import DataError, nearest

__all__ = ["csv_reader"]

BLOCK_BYTES = 4 << 20


def csv_reader(
    path: Path, columns: Sequence[str] | None, column_types: Mapping[str, pa.DataType]
) -> pa.RecordBatchReader:
    """Return a reader over a CSV file with a header line.

    An empty field is null; a quoted empty field is an empty string, as is ``NA`` the text "NA".

    Args:
        path: The file; one that ends in ``.gz`` is decompressed.
        columns: The columns to read; None reads all.
        column_types: Types by column. A column that is not named here gets the type its first 4 MiB
            suggest.

    Raises:
        DataError: If the file has no header, lacks a column, or holds a value that does not fit its
            type.
    """
    schema = _open(path, pacsv.ConvertOptions(column_types={})).schema
    logical_schema(schema, str(path))
    names = list(columns) if columns is not None else schema.names
    for name in names:
        if name not in schema.names:
            raise DataError(f"{path}: no column {name!r}; {nearest(name, schema.names)}")
        if pa.types.is_nested(column_types.get(name, pa.null())):
            raise DataError(
                f"{path}: column {name!r} is one of lists, which CSV cannot hold; write the rows "
                "as Parquet"
            )
    options = pacsv.ConvertOptions(
        include_columns=names,
        column_types={name: column_types[name] for name in names if name in column_types},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    stream = _open(path, options)
    return pa.RecordBatchReader.from_batches(stream.schema, _batches(stream, path, names))


def _open(path: Path, options: pacsv.ConvertOptions) -> pacsv.CSVStreamingReader:
    # One thread: only then do Arrow's messages name the row.
    read = pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    try:
        return pacsv.open_csv(path, read_options=read, convert_options=options)
    except (pa.ArrowException, OSError) as error:
        raise _csv_error(path, options.include_columns, error) from error


def _batches(
    stream: pacsv.CSVStreamingReader, path: Path, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    try:
        yield from stream
    except (pa.ArrowException, OSError) as error:
        raise _csv_error(path, names, error) from error


def _csv_error(path: Path, names: Sequence[str], error: Exception) -> DataError:
    text = str(error)
    for number, name in enumerate(names):
        text = text.replace(f"In CSV column #{number}:", f"column {name!r}:")
    return DataError(
        f"{path}: {text}; expected comma-separated lines under one header line, with values of the "
        "column's type or nothing for null: correct the row, or declare the column categorical"
    )
