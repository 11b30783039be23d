"""Tables on disk or in memory as one list of fragments that can be read in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from widedeep.data.arrow_types import conform, logical_schema, logical_type, unified_schema
from widedeep.data.inputs import ContentChecksum, InputRecord
from widedeep.data.spool import Spool
from widedeep.errors import DataError, nearest

TABLE_FRAGMENT_ROWS = 32_768
_CHECKED_ROWS = 131_072
ORIGIN_KEY = b"widedeep.origin"
FIRST_ROW_KEY = b"widedeep.first_row"
_TEXTS = (pa.string(), pa.binary())


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """A run of rows of one input that is read at once: a row group, or a slice of a table."""

    index: int  # Its place in ``Source.fragments``
    num_rows: int  # Rows it holds, at least 1
    origin: str  # The name of its input
    first_row: int  # The position of its first row in that input


class Part(Protocol):
    """Where a fragment's rows are."""

    @property
    def num_rows(self) -> int:
        """Rows it holds."""

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns in this order; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One file or table: what it is called, what it holds, and its parts in order."""

    record: InputRecord
    schema: pa.Schema
    parts: Sequence[Part]
    checksum: Callable[[], str] | None = None
    """Works out the record's checksum; only a run that can be resumed needs it."""


@dataclass(frozen=True, slots=True)
class TablePart:
    """A slice of a table in memory."""

    table: pa.Table

    @property
    def num_rows(self) -> int:
        """Rows it holds."""
        return int(self.table.num_rows)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns without a copy."""
        return self.table.select(list(columns))


@dataclass(frozen=True, slots=True)
class _CastPart:
    """A part whose text columns hold values of other types."""

    part: Part
    types: Mapping[str, pa.DataType]

    @property
    def num_rows(self) -> int:
        """Rows it holds."""
        return self.part.num_rows

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns, converted."""
        table = self.part.read(columns)
        for place, name in enumerate(columns):
            if name in self.types:
                kind, column = self.types[name], table.column(place)
                if pa.types.is_null(kind):
                    cast = pa.chunked_array([pa.nulls(len(column))])
                elif pa.types.is_dictionary(column.type):
                    cast = column.cast(column.type.value_type).cast(kind)
                else:
                    cast = column.cast(kind)
                table = table.set_column(place, name, cast)
        return table


def cast_parts(opened: Input, types: Mapping[str, pa.DataType]) -> Input:
    """Return an input whose text columns are read as other types."""
    changed = {
        name: kind
        for name, kind in types.items()
        if name in opened.schema.names and kind != pa.string()
    }
    schema = pa.schema([(f.name, changed.get(f.name, f.type)) for f in opened.schema])
    parts = [_CastPart(part, changed) for part in opened.parts] if changed else opened.parts
    return replace(opened, schema=schema, parts=parts)


def table_input(table: pa.Table, origin: str, columns: Sequence[str] | None = None) -> Input:
    """Return a table in memory as an input."""
    schema = logical_schema(table.schema, origin)
    if columns is not None:
        table = table.select([name for name in schema.names if name in columns])
    starts = range(0, table.num_rows, TABLE_FRAGMENT_ROWS)
    parts = [TablePart(table.slice(start, TABLE_FRAGMENT_ROWS)) for start in starts]
    record = InputRecord(name=origin, path=origin, rows=table.num_rows, bytes=-1, checksum="")
    return Input(
        record=record, schema=schema, parts=parts, checksum=partial(_table_checksum, table)
    )


def _table_checksum(table: pa.Table) -> str:
    checksum = ContentChecksum()
    for start in range(0, table.num_rows, _CHECKED_ROWS):
        checksum.update(table.slice(start, _CHECKED_ROWS))
    return checksum.hexdigest()


class Source:
    """Rows in a fixed order, cut into fragments that are read one at a time and from any thread."""

    def __init__(
        self,
        inputs: Sequence[Input],
        *,
        columns: Sequence[str] | None = None,
        spool: Spool | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self._spool = spool
        self.files = tuple(files)
        self._records = [(item.record, item.checksum) for item in inputs]
        self._parts = [part for item in inputs for part in item.parts if part.num_rows]
        self.fragments: tuple[Fragment, ...] = tuple(_fragments(inputs))
        self.num_rows = sum(fragment.num_rows for fragment in self.fragments)
        self.arrow_schema = _agreed_schema(inputs, columns)
        # Bytes are text where they are asked for by name; in a whole table they may be pictures.
        self._kinds_of_text = _TEXTS if columns is not None else _TEXTS[:1]
        self._checked: set[tuple[int, str]] = set()

    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a fragment's rows."""
        names = self.arrow_schema.names if columns is None else list(columns)
        for name in names:
            if name not in self.arrow_schema.names:
                raise DataError(f"no column {name!r}; {nearest(name, self.arrow_schema.names)}")
        schema = pa.schema([self.arrow_schema.field(name) for name in names])
        table = self._parts[fragment.index].read(names)
        if table.num_rows != fragment.num_rows:
            raise DataError(
                f"{fragment.origin}: changed while being read; leave input files alone during a run"
            )
        table = conform(table, schema)
        self._check_text(fragment, table)
        place = {ORIGIN_KEY: fragment.origin.encode(), FIRST_ROW_KEY: str(fragment.first_row)}
        return table.replace_schema_metadata(place)

    def _check_text(self, fragment: Fragment, table: pa.Table) -> None:
        """Refuse text that is no UTF-8, the first time that a fragment's column is read."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            kind = logical_type(column.type)
            kind = kind.value_type if pa.types.is_list(kind) else kind
            if kind not in self._kinds_of_text or (fragment.index, name) in self._checked:
                continue
            row = _row_without_text(column)
            if row is not None:
                raise DataError(
                    f"{fragment.origin}, row {fragment.first_row + row}, column {name!r}: got "
                    f"{_bytes_at(column, row)!r}, which is not UTF-8; decode the bytes where the "
                    "column is made (they may be Latin-1 or Windows-1252)"
                )
            self._checked.add((fragment.index, name))

    def describe(self) -> list[InputRecord]:
        """Return name, rows, size and checksum of every input, for ``check_same_inputs``."""
        records = []
        for record, checksum in self._records:
            filled = record.copy()
            if checksum is not None:
                filled["checksum"] = checksum()
            records.append(filled)
        return records

    def close(self) -> None:
        """Delete temporary files; reading afterwards is an error."""
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row_without_text(column: pa.ChunkedArray) -> int | None:
    """Return the first row of a text column that holds bytes that are not UTF-8."""
    row = 0
    for chunk in column.chunks:
        if not _is_utf8(chunk):
            return row + next(i for i in range(len(chunk)) if not _is_utf8(chunk.slice(i, 1)))
        row += len(chunk)
    return None


def _is_utf8(array: pa.Array) -> bool:
    if pa.types.is_dictionary(array.type):
        # A slice keeps the dictionary whole.
        return _is_utf8(array.dictionary) or (
            len(array) < len(array.dictionary) and _is_utf8(array.dictionary_decode())
        )
    if pa.types.is_nested(array.type):
        return _is_utf8(array.flatten())
    try:
        array = array.cast(pa.large_string()) if _is_bytes(array.type) else array
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _bytes_at(column: pa.ChunkedArray, row: int) -> bytes:
    """Return the start of a row's bytes, or of the first element's that is not UTF-8."""
    array = column.slice(row, 1).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    while pa.types.is_nested(array.type) or pa.types.is_dictionary(array.type):
        nested = pa.types.is_nested(array.type)
        array = array.flatten() if nested else array.dictionary_decode()
    wrong = next(i for i in range(len(array)) if not _is_utf8(array.slice(i, 1)))
    value: bytes = array.cast(pa.large_binary())[wrong].as_py()
    return value[:40]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(logical_type(kind) == pa.binary())


def _fragments(inputs: Sequence[Input]) -> Iterator[Fragment]:
    index = 0
    for item in inputs:
        first_row = 0
        for part in item.parts:
            if part.num_rows:
                yield Fragment(
                    index=index,
                    num_rows=part.num_rows,
                    origin=item.record["path"],
                    first_row=first_row,
                )
                index += 1
                first_row += part.num_rows


def _agreed_schema(inputs: Sequence[Input], columns: Sequence[str] | None) -> pa.Schema:
    schemas = []
    for item in inputs:
        origin = item.record["path"]
        names = item.schema.names if columns is None else columns
        for name in names:
            if name not in item.schema.names:
                raise DataError(f"{origin}: no column {name!r}; {nearest(name, item.schema.names)}")
        schemas.append((origin, pa.schema([item.schema.field(name) for name in names])))
    return unified_schema(schemas)


def origin_of(table: pa.Table | pa.RecordBatch) -> tuple[str, int] | None:
    """Return the input that a table was read from, and the position of its first row there."""
    metadata = table.schema.metadata or {}
    if ORIGIN_KEY not in metadata:
        return None
    return metadata[ORIGIN_KEY].decode(), int(metadata[FIRST_ROW_KEY])


def column_stream(source: Source, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield a source's fragments in order, decoding one ahead of the caller."""
    with ThreadPoolExecutor(1, thread_name_prefix="widedeep-read") as worker:
        waiting: Future[pa.Table] | None = None
        for fragment in source.fragments:
            ready, waiting = waiting, worker.submit(source.read, fragment, columns)
            if ready is not None:
                yield ready.result()
                del ready
        if waiting is not None:
            yield waiting.result()
