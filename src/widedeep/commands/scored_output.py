"""Rows with their scores, written as JSON lines or Parquet while they come."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.scoring import Scores
from widedeep.data.arrow_types import logical_type
from widedeep.errors import DataError

STANDARD_STREAM = "-"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

Kept: TypeAlias = "list[dict[str, Any]] | pa.Table"
Writer: TypeAlias = Callable[[Kept, Scores], None]
Columns: TypeAlias = "list[tuple[str, NDArray[np.float64]]]"


@contextlib.contextmanager
def scored_output(out: str, bundle: Bundle, name: str) -> Iterator[Writer]:
    """Give a function that writes rows and their scores."""
    heads = [head.name for head in bundle.model.heads]

    def columns(scores: Scores) -> Columns:
        if isinstance(scores, dict):
            return [(f"{name}/{head}", scores[head]) for head in heads]
        return [(name, scores)]

    if out == STANDARD_STREAM:
        yield lambda kept, scores: _write_lines(sys.stdout, kept, columns(scores))
        sys.stdout.flush()
        return
    path = Path(out)
    _check_place(path)
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix.lower() in JSON_SUFFIXES:
            with open(made, "w", encoding="utf-8") as file:
                yield lambda kept, scores: _write_lines(file, kept, columns(scores))
        else:
            types = {column: kind.arrow() for column, kind in bundle.schema.columns.items()}
            with contextlib.closing(_ParquetOut(made, types)) as parquet:
                yield lambda kept, scores: parquet.write(kept, columns(scores))
        os.replace(made, path)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); make room, or name another "
            "file; nothing half-written is left"
        ) from error
    finally:
        made.unlink(missing_ok=True)


def _check_place(path: Path) -> None:
    if path.suffix.lower() not in (".parquet", *JSON_SUFFIXES):
        raise DataError(f"{path}: got the suffix {path.suffix!r}, expected .parquet or .jsonl")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no folder {path.parent}; make it first")


# ---- JSON lines ---------------------------------------------------------------------------------


def _write_lines(file: IO[str], kept: Kept, columns: Columns) -> None:
    rows = kept if isinstance(kept, list) else kept.to_pylist()
    if not rows:
        rows = [{} for _ in columns[0][1]]
    lists = [(name, scores.tolist()) for name, scores in columns]
    for index, row in enumerate(rows):
        scored = {**row, **{name: scores[index] for name, scores in lists}}
        file.write(_line(scored))


def _line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text) + "\n"
    except ValueError:  # JSON has no word for NaN and infinity
        return json.dumps(_without_nan(row), ensure_ascii=False, default=_as_text) + "\n"


def _as_text(value: Any) -> str:
    """Text for what JSON has no word for: times, decimals, bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- Parquet ------------------------------------------------------------------------------------


class _ParquetOut:
    """A Parquet file whose columns are those of the first rows written."""

    def __init__(self, path: Path, types: Mapping[str, pa.DataType]) -> None:
        self._path = path
        self._types = types
        self._file: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            self._file.close()

    def write(self, kept: Kept, columns: Columns) -> None:
        """Write rows with their scores."""
        arrays = self._rows_columns(kept) if isinstance(kept, list) else _plain_columns(kept)
        for name, scores in columns:
            arrays[name] = pa.array(scores.tolist() if scores.ndim > 1 else scores)
        table = pa.table(arrays)
        if self._file is None:
            self._schema = table.schema
            self._file = pq.ParquetWriter(self._path, table.schema)
        try:
            self._file.write_table(_like(table, self._schema))
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"rows hold other columns or types than those before them ({error}); write "
                ".jsonl, or keep only columns that all rows have (--keep)"
            ) from error

    def _rows_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = dict.fromkeys(key for row in rows for key in row)
        return {name: self._column(name, [row.get(name) for row in rows]) for name in names}

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(
                f"column {name!r} holds values of several types ({error}), which Parquet cannot "
                "hold; write .jsonl, or leave the column out (--keep)"
            ) from error
        if pa.types.is_null(array.type) and name in self._types:
            return array.cast(self._types[name])
        return array


def _plain_columns(table: pa.Table) -> dict[str, Any]:
    """Dictionaries differ from fragment to fragment; plain columns do not."""
    types = [logical_type(column.type) for column in table.columns]
    return {
        name: column if column.type == plain else column.cast(plain)
        for name, column, plain in zip(table.column_names, table.columns, types, strict=True)
    }


def _like(table: pa.Table, schema: pa.Schema | None) -> pa.Table:
    assert schema is not None
    for name in table.column_names:
        if name not in schema.names:
            raise KeyError(f"{name} is new")
    rows = table.num_rows
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
