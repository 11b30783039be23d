"""Input as fragments of Arrow tables; input that can be read only once is spooled to files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.data.arrow_types import (
    conform,
    logical_schema,
    logical_type,
    readable,
    readable_table,
    unified_schema,
)
from widedeep.errors import ColumnError, DataError, WideDeepError, nearest
from widedeep.features.learned import ColumnTypes
from widedeep.remote import InputPath, RemoteFile, RemoteUnavailable, remote_errors

SAMPLED_ROWS = 4096
"""Rows of each fragment that enter a checksum: all, or an even sample."""

_END_BYTES = 1 << 16
"""Bytes at each end of a file that enter a fingerprint."""


class InputRecord(TypedDict):
    """One input as a checkpoint remembers it; plain values that JSON holds."""

    name: str
    path: str
    rows: int
    bytes: int
    checksum: str


def check_same_inputs(recorded: Sequence[InputRecord], current: Sequence[InputRecord]) -> None:
    """Raise unless the inputs are those that were recorded."""
    if len(recorded) != len(current):
        raise DataError(
            f"the data has {len(current)} inputs, but the interrupted run read {len(recorded)}; "
            "resume with the same inputs, or start a new run"
        )
    for number, (old, new) in enumerate(zip(recorded, current, strict=True)):
        for key in ("name", "rows", "bytes", "checksum"):
            if old[key] != new[key]:
                raise DataError(
                    f"input {number} ({new['path']}): {key} is {new[key]!r}, but was {old[key]!r} "
                    "in the interrupted run; resume with the same inputs, or start a new run"
                )


class ContentChecksum:
    """A checksum of rows that depends on their values, not on how Arrow lays them out."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, table: pa.Table) -> None:
        """Add the next rows."""
        n_sampled = min(table.num_rows, SAMPLED_ROWS)
        rows = np.linspace(0, table.num_rows - 1, n_sampled).astype(np.int64)
        self._hash.update(f"{table.num_rows},{n_sampled};".encode())
        for name, column in zip(table.column_names, table.columns, strict=True):
            self._hash.update(f"{name}:{logical_type(column.type)};".encode())
            try:
                self._hash.update(_plain_bytes(column, rows))
            except pa.ArrowNotImplementedError as error:
                raise DataError(
                    f"column {name!r} is {column.type}; expected numbers, booleans, text, times, "
                    "or lists of them: convert it, or name only the columns that are needed"
                ) from error

    def hexdigest(self) -> str:
        """Return the checksum of all rows so far."""
        return self._hash.hexdigest()


def _plain_bytes(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Buffer:
    column = readable(column)
    plain = logical_type(column.type)
    if column.type != plain:
        column = pc.cast(column, plain)
    # Rows that were taken lie without an offset, and with zeros under their nulls.
    array = column.combine_chunks().take(pa.array(rows))
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([array], names=["values"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


ROW_GROUP_ROWS = 65_536


class Spool:
    """A temporary folder of files with groups of 65,536 rows, deleted on close."""

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent
        self._folder: Path | None = None
        self._n_files = 0
        self._remove: weakref.finalize[..., Spool] | None = None

    def write(self, origin: str, reader: pa.RecordBatchReader) -> tuple[Path, str]:
        """Write what a reader holds to a file of its own."""
        logical_schema(reader.schema, origin)
        schema = _spooled_schema(reader.schema)
        path = self._next_path()
        checksum = ContentChecksum()
        try:
            with pq.ParquetWriter(path, schema, **_writer_options(schema)) as writer:
                for table in _regrouped(reader):
                    even = _castable(table, schema, origin)
                    checksum.update(even)
                    writer.write_table(even, row_group_size=ROW_GROUP_ROWS)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise DataError(
                f"{origin}: cannot be kept in a temporary Parquet file ({error}); "
                "name only the columns that are needed, or convert this column"
            ) from error
        except OSError as error:
            raise _disk_error(origin, path, error) from error
        return path, checksum.hexdigest()

    def keep(self, origin: str, tables: Iterable[pa.Table]) -> list[RowBlock]:
        """Write tables to one file as they are, and return each as a block."""
        path = self._next_path(".arrows")
        blocks: list[RowBlock] = []
        try:
            with pa.OSFile(str(path), "wb") as file:
                for table in tables:
                    spans = {}
                    for name in table.column_names:
                        column, offset = table.select([name]), file.tell()
                        with pa.ipc.new_stream(file, column.schema) as writer:
                            writer.write_table(column)
                        spans[name] = offset, file.tell() - offset
                    blocks.append(_KeptBlock(path, spans, table.num_rows))
        except OSError as error:
            raise _disk_error(origin, path, error) from error
        return blocks

    def copy(self, file: RemoteFile) -> Path:
        """Copy a file behind a URL as it is; it is read once alone, whatever is read of it."""
        path = self._next_path()
        try:
            with remote_errors(file.url):
                file.fs.get_file(file.path, str(path))
        except RemoteUnavailable as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
                raise _disk_error(file.url, path, error.__cause__) from error
            raise
        return path

    def close(self) -> None:
        """Delete the files; calling it twice is no error."""
        if self._remove is not None:
            self._remove()

    def _next_path(self, suffix: str = ".parquet") -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="widedeep-spool-", dir=self.parent))
            self._remove = weakref.finalize(self, _remove_folder, str(self._folder), os.getpid())
        self._n_files += 1
        return self._folder / f"{self._n_files - 1}{suffix}"


@dataclass(frozen=True, slots=True)
class _KeptBlock:
    """A table whose columns lie in a file of the spool as Arrow lays them out in memory."""

    path: Path
    spans: Mapping[str, tuple[int, int]]  # Where each column begins, and its bytes
    num_rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns; they stay in the file until they are touched."""
        arrays = []
        with pa.memory_map(str(self.path)) as file:
            for name in columns:
                offset, size = self.spans[name]
                file.seek(offset)
                with pa.ipc.open_stream(file.read_buffer(size)) as reader:
                    arrays.append(_with_wide_codes(reader.read_all().column(0)))
        return pa.Table.from_arrays(arrays, names=list(columns))


def _with_wide_codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with its dictionary's codes as other inputs have them."""
    if not pa.types.is_dictionary(column.type):
        return column
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary, safe=False)
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), column.type.value_type))


def _remove_folder(folder: str, owner: int) -> None:
    # A forked child inherits the finalizer; the files are its parent's.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _spooled_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, _spooled_type(field.type)) for field in schema])


def _spooled_type(arrow_type: pa.DataType) -> pa.DataType:
    """Keep a column's dictionary, which is worth much to the transform; write the rest plainly."""
    plain = logical_type(arrow_type)
    if pa.types.is_dictionary(arrow_type) and plain in (pa.string(), pa.binary()):
        return pa.dictionary(pa.int32(), plain)
    return plain


def _writer_options(schema: pa.Schema) -> dict[str, object]:
    texts = [_leaf_path(field) for field in schema if _holds_text(field.type)]
    # Without statistics and number dictionaries the temporary file is written and read twice as
    # fast.
    return {"use_dictionary": texts or False, "write_statistics": False, "compression": "lz4"}


def _holds_text(arrow_type: pa.DataType) -> bool:
    plain = logical_type(arrow_type)
    if pa.types.is_list(plain):
        plain = plain.value_type
    return plain in (pa.string(), pa.binary())


def _leaf_path(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def _regrouped(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Cut at fixed rows, so that the row groups do not depend on how the rows arrive."""
    waiting: list[pa.RecordBatch] = []
    n_waiting = 0
    for batch in reader:
        waiting.append(batch)
        n_waiting += batch.num_rows
        if n_waiting >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(waiting, reader.schema)
            whole = n_waiting - n_waiting % ROW_GROUP_ROWS
            for start in range(0, whole, ROW_GROUP_ROWS):
                yield table.slice(start, ROW_GROUP_ROWS)
            waiting = table.slice(whole).to_batches()
            n_waiting -= whole
    if n_waiting:
        yield pa.Table.from_batches(waiting, reader.schema)


def _castable(table: pa.Table, schema: pa.Schema, origin: str) -> pa.Table:
    logical = pa.schema([(field.name, logical_type(field.type)) for field in schema])
    columns = []
    for field, column in zip(schema, conform(table, logical).columns, strict=True):
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{origin}: column {field.name!r} is {column.type}, which cannot be kept in a "
                f"temporary Parquet file ({error}); name only the columns that are needed"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema).unify_dictionaries().combine_chunks()


def _disk_error(origin: str, path: Path, error: OSError) -> DataError:
    full = error.errno == errno.ENOSPC
    advice = "free some space or point TMPDIR at a larger disk" if full else "check TMPDIR"
    return DataError(f"{origin}: cannot write the temporary copy {path} ({error}); {advice}")


def batches_reader(batches: Iterable[object], origin: str) -> pa.RecordBatchReader:
    """Return a reader over record batches or tables that a generator yields."""
    iterator = iter(batches)
    try:
        first = next(iterator)
    except StopIteration:
        raise DataError(f"{origin}: yielded no batch; expected at least one") from None
    first_table = _as_table(first, origin)

    schema = logical_schema(first_table.schema, origin)

    def all_batches() -> Iterator[pa.RecordBatch]:
        yield from first_table.to_batches()
        for number, item in enumerate(iterator, 1):
            table = _as_table(item, origin)
            _check_batch(schema, logical_schema(table.schema, origin), number, origin)
            yield from table.select(schema.names).cast(first_table.schema).to_batches()

    return pa.RecordBatchReader.from_batches(first_table.schema, all_batches())


def _check_batch(first: pa.Schema, schema: pa.Schema, number: int, origin: str) -> None:
    """Refuse a batch that the first one's types would change."""
    agreed = unified_schema([("batch 0", first), (f"{origin}: batch {number}", schema)])
    for field in first:
        if agreed.field(field.name).type != field.type:
            raise DataError(
                f"{origin}: batch {number}: column {field.name!r} is "
                f"{schema.field(field.name).type}, but {field.type} in the first batch; yield one "
                "type, the widest"
            )


def _as_table(item: object, origin: str) -> pa.Table:
    if hasattr(item, "__arrow_c_stream__") or hasattr(item, "__arrow_c_array__"):
        return readable_table(pa.table(item))
    raise DataError(f"{origin}: yielded a {type(item).__name__}; expected record batches or tables")


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
    skipped: int = 0  # Rows of the group before its first, where it is a part of one


class RowBlock(Protocol):
    """Where a fragment's rows are."""

    @property
    def num_rows(self) -> int:
        """Rows it holds."""

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns in this order; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One file or table: what it is called, what it holds, and its blocks in order."""

    record: InputRecord
    schema: pa.Schema
    blocks: Sequence[RowBlock]
    checksum: Callable[[], str] | None = None
    """Works out the record's checksum; only a run that can be resumed needs it."""
    row_name: Callable[[int], str] | None = None
    """How a person finds a row, if not by its number here: ``"line 9 of a.csv"``."""


def start_reading(block: RowBlock, columns: Sequence[str]) -> None:
    """Let a block that is far away begin to fetch columns that will be read soon."""
    start = getattr(block, "start", None)
    if start is not None:
        start(columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputFormat:
    """How files of one kind are read; its entry in :mod:`widedeep.data.formats` makes it known."""

    suffixes: tuple[str, ...]  # Ends of file names, in lower case and with their dots
    # Opens all files of one input: paths, columns to read (None: all), spool, declared types
    open: Callable[[Sequence[InputPath], Sequence[str] | None, Spool, ColumnTypes], list[Input]]
    # True if files state their columns' types; else columns take declared and other files' types
    typed: bool = True
    # Says where a column first holds a value, such as ``"row 7"``; None if nowhere
    locate: Callable[[InputPath, str, object], str | None] | None = None


def file_by_file(
    read: Callable[[InputPath, Sequence[str] | None, Spool], Input],
) -> Callable[[Sequence[InputPath], Sequence[str] | None, Spool, object], list[Input]]:
    """Return how files are opened of which each says by itself what its columns are."""

    def open_files(
        paths: Sequence[InputPath], columns: Sequence[str] | None, spool: Spool, declared: object
    ) -> list[Input]:
        return [read(path, columns, spool) for path in paths]

    return open_files


@dataclass(frozen=True, slots=True)
class TableBlock:
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
class ChangedBlock:
    """A block whose rows are changed as they are read."""

    block: RowBlock
    change: Callable[[pa.Table, Sequence[str]], pa.Table]  # Makes columns of those it stores
    num_rows: int
    added: Collection[str] = ()  # Columns that are not stored

    def start(self, columns: Sequence[str]) -> None:
        """Begin to fetch them."""
        start_reading(self.block, self._stored(columns))

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns, changed."""
        stored = self._stored(columns)
        table = self.block.read(stored) if stored or not self.added else pa.table({})
        return self.change(table, columns)

    def _stored(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if name not in self.added]


def cast_blocks(opened: Input, types: Mapping[str, pa.DataType]) -> Input:
    """Return an input whose text columns are read as other types."""
    changed = {
        name: kind
        for name, kind in types.items()
        if name in opened.schema.names and kind != pa.string()
    }
    if not changed:
        return opened
    schema = pa.schema([(f.name, changed.get(f.name, f.type)) for f in opened.schema])
    cast = partial(_cast, changed)
    blocks = [ChangedBlock(block, cast, block.num_rows) for block in opened.blocks]
    return replace(opened, schema=schema, blocks=blocks)


def _cast(types: Mapping[str, pa.DataType], table: pa.Table, columns: Sequence[str]) -> pa.Table:
    for index, name in enumerate(columns):
        if name in types:
            kind, column = types[name], table.column(index)
            if pa.types.is_null(kind):
                cast = pa.chunked_array([pa.nulls(len(column))])
            elif pa.types.is_dictionary(column.type):
                chunks = [c.dictionary.cast(kind).take(c.indices) for c in column.chunks]
                cast = pa.chunked_array(chunks, kind)
            else:
                cast = column.cast(kind)
            table = table.set_column(index, name, cast)
    return table


def table_input(table: pa.Table, origin: str, columns: Sequence[str] | None = None) -> Input:
    """Return a table in memory as an input."""
    schema = logical_schema(table.schema, origin)
    if columns is not None:
        table = table.select([name for name in schema.names if name in columns])
    table = readable_table(table)
    starts = range(0, table.num_rows, TABLE_FRAGMENT_ROWS)
    blocks = [TableBlock(table.slice(start, TABLE_FRAGMENT_ROWS)) for start in starts]
    record = InputRecord(name=origin, path=origin, rows=table.num_rows, bytes=-1, checksum="")
    return Input(
        record=record, schema=schema, blocks=blocks, checksum=partial(_table_checksum, table)
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
        files: Sequence[InputPath] = (),
    ) -> None:
        self._spool = spool
        self.files = tuple(files)
        self._records = [(item.record, item.checksum) for item in inputs]
        self._blocks = [block for item in inputs for block in item.blocks if block.num_rows]
        self.fragments: tuple[Fragment, ...] = tuple(_fragments(inputs))
        self.num_rows = sum(fragment.num_rows for fragment in self.fragments)
        self.arrow_schema = _agreed_schema(inputs, columns)
        # Bytes are text where they are asked for by name; in a whole table they may be pictures.
        self._kinds_of_text = _TEXTS if columns is not None else _TEXTS[:1]
        self._checked: set[tuple[int, str]] = set()
        self._row_names = {i.record["path"]: i.row_name for i in inputs if i.row_name}

    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a fragment's rows."""
        names = self.arrow_schema.names if columns is None else list(columns)
        for name in names:
            if name not in self.arrow_schema.names:
                raise DataError(f"no column {name!r}; {nearest(name, self.arrow_schema.names)}")
        schema = pa.schema([self.arrow_schema.field(name) for name in names])
        whole = self.fragments[fragment.index]
        table = self._blocks[fragment.index].read(names)
        if table.num_rows != whole.num_rows:
            raise DataError(
                f"{fragment.origin}: changed while being read; leave input files alone during a run"
            )
        table = conform(table, schema)
        self._check_text(whole, table)
        if fragment.num_rows < whole.num_rows:
            table = table.slice(fragment.skipped, fragment.num_rows)
        metadata = {ORIGIN_KEY: fragment.origin.encode(), FIRST_ROW_KEY: str(fragment.first_row)}
        return table.replace_schema_metadata(metadata)

    def start(self, fragment: Fragment, columns: Sequence[str] | None = None) -> None:
        """Begin to fetch a fragment that will be read soon, where that takes time."""
        names = self.arrow_schema.names if columns is None else columns
        start_reading(self._blocks[fragment.index], names)

    def _check_text(self, fragment: Fragment, table: pa.Table) -> None:
        """Refuse text that is no UTF-8, the first time that a fragment's column is read."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            kind = logical_type(column.type)
            kind = kind.value_type if pa.types.is_list(kind) else kind
            if kind not in self._kinds_of_text or (fragment.index, name) in self._checked:
                continue
            row = row_without_text(column)
            if row is not None:
                raise DataError(
                    f"{fragment.origin}, row {fragment.first_row + row}, column {name!r}: got "
                    f"{_bytes_at(column, row)!r}, which is not UTF-8; decode the bytes where the "
                    "column is made (they may be Latin-1 or Windows-1252)"
                )
            self._checked.add((fragment.index, name))

    def fragments_of(self, rank: int, size: int) -> tuple[int, tuple[Fragment, ...]]:
        """Return the fragments that one of ``size`` readers reads, and the rows before them.

        A fragment is its whose equal part of all rows holds the fragment's first row.
        """
        starts = np.cumsum([0, *(fragment.num_rows for fragment in self.fragments)])
        low, high = (-(-self.num_rows * one // size) for one in (rank, rank + 1))
        first, stop = np.searchsorted(starts[:-1], [low, high]).tolist()
        return int(starts[first]), self.fragments[first:stop]

    def describe(self) -> list[InputRecord]:
        """Return name, rows, size and checksum of every input, for ``check_same_inputs``."""
        records = []
        for record, checksum in self._records:
            filled = record.copy()
            if checksum is not None:
                filled["checksum"] = checksum()
            records.append(filled)
        return records

    def fingerprint(self) -> str:
        """Return a digest that tells these rows from others: of sizes, samples, ends of files.

        Copies of files have one fingerprint. The end of a Parquet file says what it holds.
        """
        digest = hashlib.blake2b(digest_size=6)
        digest.update(str([fragment.num_rows for fragment in self.fragments]).encode())
        for record in self.describe():
            digest.update(f"{record['rows']},{record['bytes']},{record['checksum']};".encode())
        for path in self.files:
            if isinstance(path, Path):
                with path.open("rb") as file:
                    digest.update(file.read(_END_BYTES))
                    file.seek(max(0, file.seek(0, 2) - _END_BYTES))
                    digest.update(file.read())
        return digest.hexdigest()

    def close(self) -> None:
        """Delete temporary files; reading afterwards is an error."""
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if isinstance(error, WideDeepError) and self._row_names:
            error.args = (_with_row_names(str(error), self._row_names), *error.args[1:])
        self.close()

    def row_name(self, origin: str, row: int) -> str:
        """Return how a person finds a row of an input."""
        return _with_row_names(f"row {row} of {origin}", self._row_names)


def _with_row_names(text: str, row_names: Mapping[str, Callable[[int], str]]) -> str:
    """Return a message with rows named as a person finds them in their files."""
    number = r"\d+(?:,\d{3})*"
    for origin, row_name in row_names.items():

        def name(match: re.Match[str], row_name: Callable[[int], str] = row_name) -> str:
            return row_name(int((match["before"] or match["behind"]).replace(",", "")))

        file = re.escape(origin)
        pattern = rf"row (?P<before>{number}) of {file}|{file}, row (?P<behind>{number})"
        text = re.sub(pattern, name, text)
    return text


def row_without_text(column: pa.ChunkedArray) -> int | None:
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
        for block in item.blocks:
            if block.num_rows:
                yield Fragment(
                    index=index,
                    num_rows=block.num_rows,
                    origin=item.record["path"],
                    first_row=first_row,
                )
                index += 1
                first_row += block.num_rows


def _agreed_schema(inputs: Sequence[Input], columns: Sequence[str] | None) -> pa.Schema:
    schemas = []
    for item in inputs:
        origin = item.record["path"]
        names = item.schema.names if columns is None else columns
        for name in names:
            if name not in item.schema.names:
                raise ColumnError(origin, name, nearest(name, item.schema.names))
        schemas.append((origin, pa.schema([item.schema.field(name) for name in names])))
    return unified_schema(schemas)


def origin_of(table: pa.Table | pa.RecordBatch) -> tuple[str, int] | None:
    """Return the input that a table was read from, and the position of its first row there."""
    metadata = table.schema.metadata or {}
    if ORIGIN_KEY not in metadata:
        return None
    return metadata[ORIGIN_KEY].decode(), int(metadata[FIRST_ROW_KEY])


def fragment_tables(
    source: Source,
    columns: Sequence[str] | None = None,
    fragments: Sequence[Fragment] | None = None,
) -> Iterator[pa.Table]:
    """Yield a source's fragments, all or some, in order, decoded by the caller's thread.

    Two more of them are being fetched, where they are far away.
    """
    fragments = source.fragments if fragments is None else fragments
    for number, fragment in enumerate(fragments):
        for following in fragments[number : number + 3]:
            source.start(following, columns)
        yield source.read(fragment, columns)


def column_stream(
    source: Source,
    columns: Sequence[str] | None = None,
    fragments: Sequence[Fragment] | None = None,
) -> Iterator[pa.Table]:
    """Yield what :func:`fragment_tables` does, decoding one fragment ahead of the caller."""
    tables = fragment_tables(source, columns, fragments)
    with ThreadPoolExecutor(1, thread_name_prefix="widedeep-read") as worker:
        waiting = worker.submit(next, tables, None)
        while (table := waiting.result()) is not None:
            waiting = worker.submit(next, tables, None)
            yield table
            del table


def row_chunks(source: Source, n_rows: int) -> Iterator[tuple[pa.Table, str, int]]:
    """Yield ``n_rows`` rows at most at a time, with their input and the first one's row in it."""
    for table in column_stream(source):
        origin, first_row = origin_of(table) or ("", 0)
        for start in range(0, table.num_rows, n_rows):
            yield table.slice(start, n_rows), origin, first_row + start


def selected_columns(
    reader: pa.RecordBatchReader, columns: Sequence[str] | None, origin: str
) -> pa.RecordBatchReader:
    """Drop the columns that are not needed, so that they are not copied to the spool."""
    if columns is None:
        return reader
    check_columns(columns, reader.schema.names, origin)
    schema = pa.schema([reader.schema.field(name) for name in columns])
    return pa.RecordBatchReader.from_batches(
        schema, (batch.select(list(columns)) for batch in reader)
    )


def check_columns(columns: Sequence[str], present: Sequence[str], origin: str) -> None:
    """Refuse columns that are absent, or named twice."""
    for name in columns:
        if name not in present:
            raise ColumnError(origin, name, nearest(name, present))
        if list(present).count(name) > 1:
            raise DataError(f"{origin}: two columns are named {name!r}; rename or drop one of them")
