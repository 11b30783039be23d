"""Parquet files as inputs: one block a row group, dictionaries kept."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep.data.arrow_types import logical_schema
from widedeep.data.fragments import Input, InputFormat, InputRecord, Spool, file_by_file
from widedeep.errors import DataError
from widedeep.remote import (
    FileRanges,
    InputPath,
    RangesIgnored,
    RemoteFile,
    file_size,
    readable,
)

MAX_ROW_GROUP_ROWS = 1 << 20
MAX_ROW_GROUP_BYTES = 1 << 30
STREAMED_ROWS = 16_384
_FOOTER_BYTES = 64 << 10  # Fetched at once from the end of a remote file
AHEAD_BYTES = 512 << 20
"""Bytes of row groups that may be on their way, or wait to be read, in all of a process."""
_GAP_BYTES = 256 << 10  # Columns of a remote file this close are fetched as one range


@dataclass(frozen=True, slots=True)
class _FileVersion:
    """A file as it was when it was opened; another size or time means that it was written since."""

    path: InputPath
    size: int
    modified: int | str  # In nanoseconds; of a file behind a URL its tag

    @classmethod
    def now(cls, path: InputPath) -> _FileVersion:
        if isinstance(path, RemoteFile):
            path = path.look()
            return cls(path, path.size, path.tag)
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)

    @property
    def tag(self) -> str:
        """What a record holds of a file behind a URL beside its size."""
        return self.modified if isinstance(self.modified, str) else ""

    def start(self, spans: list[tuple[int, int]]) -> Callable[[], object]:
        """Return what gives Parquet's reader these bytes; those of a remote file are on their way.

        Of a file here it gives all bytes.
        """
        path = self.path
        if not isinstance(path, RemoteFile):
            return self._unchanged
        blocks = path.start_ranges(spans)
        starts = [start for start, _ in spans]
        return lambda: FileRanges(self.size, zip(starts, blocks(), strict=True))

    def _unchanged(self) -> InputPath:
        if _FileVersion.now(self.path) != self:
            raise DataError(
                f"{self.path}: changed while being read; leave input files alone during a run"
            )
        return self.path


@lru_cache(maxsize=64)
def _metadata(version: _FileVersion) -> pq.FileMetaData:
    path = version.path
    source = _footer(path, version.size) if isinstance(path, RemoteFile) else path
    with pq.ParquetFile(source) as file:
        return file.metadata


def _footer(file: RemoteFile, size: int) -> FileRanges:
    """Return the end of a remote Parquet file that holds its metadata."""
    start = max(0, size - _FOOTER_BYTES)
    tail = _tail(file, start, size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail.endswith(b"PAR1") and len(tail) < length <= size:
        start = size - length
        tail = _tail(file, start, size)
    return FileRanges(size, [(start, tail)])


def _tail(file: RemoteFile, start: int, size: int) -> bytes:
    (block,) = file.start_ranges([(start, size)])()
    return bytes(block)


def _spans(
    metadata: pq.FileMetaData, row_group: int, columns: Collection[str]
) -> list[tuple[int, int]]:
    """Return the byte ranges of columns of a row group; those that lie close become one."""
    group, spans = metadata.row_group(row_group), []
    for number in range(group.num_columns):
        chunk = group.column(number)
        path = chunk.path_in_schema  # Of a list it goes on: "tags.list.element"
        if any(path == name or path.startswith(f"{name}.") for name in columns):
            start = chunk.data_page_offset
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            spans.append((start, start + chunk.total_compressed_size))
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start - merged[-1][1] < _GAP_BYTES:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class _Fetch:
    """A row group on its way."""

    wait: Callable[[], object]
    n_bytes: int


class _Ahead:
    """The row groups on their way; those that were read, or given up, count no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fetches: weakref.WeakSet[_Fetch] = weakref.WeakSet()

    def start(self, group: RowGroup, columns: Collection[str]) -> _Fetch | None:
        """Begin to fetch columns of a row group, unless too much is on its way."""
        spans = group.spans(columns)
        n_bytes = sum(stop - start for start, stop in spans)
        with self._lock:
            waiting = sum(fetch.n_bytes for fetch in self._fetches)
            if waiting and waiting + n_bytes > AHEAD_BYTES:
                return None
            fetch = _Fetch(group.version.start(spans), n_bytes)
            self._fetches.add(fetch)
        return fetch


_ahead = _Ahead()


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a Parquet file."""

    version: _FileVersion
    row_group: int
    num_rows: int
    # What was begun to be fetched, by columns
    started: dict[frozenset[str], _Fetch] = field(default_factory=dict, compare=False, repr=False)

    def start(self, columns: Sequence[str]) -> None:
        """Begin to fetch these columns, where they are far away and there is room for them."""
        names = frozenset(columns)
        if isinstance(self.version.path, RemoteFile) and names not in self.started:
            fetch = _ahead.start(self, names)
            if fetch is not None:
                self.started[names] = fetch

    def spans(self, columns: Collection[str]) -> list[tuple[int, int]]:
        """Return the ranges of bytes of a remote file that hold these columns."""
        if not isinstance(self.version.path, RemoteFile):
            return []
        return _spans(_metadata(self.version), self.row_group, columns)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns, decoded in the calling thread."""
        path, names = self.version.path, frozenset(columns)
        try:
            fetch = self.started.pop(names, None)
            wait = fetch.wait if fetch else self.version.start(self.spans(names))
            file = self._file(wait())
            table = file.read_row_group(self.row_group, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: row group {self.row_group} cannot be read ({error}); "
                "the file is damaged or gone: write it again"
            ) from error
        return table.select(list(columns))

    def _file(self, source: object) -> pq.ParquetFile:
        """Return the open file: each reading thread opens it once, the main thread each time."""
        metadata = _metadata(self.version)
        dictionaries = _dictionary_paths(self.version, self.row_group)
        # The main thread does not end, and a file that it held open would stay on the disk.
        lasts = threading.current_thread() is threading.main_thread()
        if lasts or isinstance(self.version.path, RemoteFile):
            return pq.ParquetFile(source, metadata=metadata, read_dictionary=dictionaries)
        key = (self.version, dictionaries)
        if getattr(_opened_file, "key", None) != key:
            _opened_file.file = pq.ParquetFile(
                source, metadata=metadata, read_dictionary=dictionaries, pre_buffer=False
            )
            _opened_file.key = key
        opened: pq.ParquetFile = _opened_file.file
        return opened


_opened_file = threading.local()


@lru_cache(maxsize=256)
def _dictionary_paths(version: _FileVersion, row_group: int) -> tuple[str, ...]:
    """Name the text columns stored as dictionaries; reading others so would hash each value."""
    group = _metadata(version).row_group(row_group)
    chunks = (group.column(number) for number in range(group.num_columns))
    return tuple(
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page
    )


def _parquet_input(path: InputPath, columns: Sequence[str] | None, spool: Spool) -> Input:
    """Open a Parquet file; row groups too large to hold are first written again as smaller ones."""
    copied, origin = None, path
    try:
        version, metadata, logical = _opened(path)
    except RangesIgnored:
        assert isinstance(path, RemoteFile)
        copied, path = path, spool.copy(path)
        version, metadata, logical = _opened(path)
    record = InputRecord(
        name=origin.name,
        path=str(origin),
        rows=metadata.num_rows,
        bytes=version.size,
        checksum=version.tag if copied is None else copied.tag,
    )
    if _too_large(metadata, columns):
        blocks = _rewritten(path, spool, columns, logical)
    else:
        blocks = _blocks(version, metadata)
    return Input(record=record, schema=logical, blocks=blocks)


def parquet_metadata(path: InputPath) -> pq.FileMetaData:
    """Return what the end of a Parquet file holds; raise what pyarrow does if it has none yet."""
    return _metadata(_FileVersion.now(path))


def parquet_schema(path: InputPath) -> pa.Schema:
    """Return the logical types of a Parquet file's columns."""
    return _opened(path)[2]


def _opened(path: InputPath) -> tuple[_FileVersion, pq.FileMetaData, pa.Schema]:
    try:
        version = _FileVersion.now(path)
        metadata = _metadata(version)
        schema = metadata.schema.to_arrow_schema()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a complete Parquet file ({error}); it is truncated, still being written "
            "or of another format: write it again, or name the right file"
        ) from error
    return version, metadata, logical_schema(schema, str(path))


def _blocks(version: _FileVersion, metadata: pq.FileMetaData) -> Sequence[RowGroup]:
    groups = range(metadata.num_row_groups)
    return [RowGroup(version, group, metadata.row_group(group).num_rows) for group in groups]


def _too_large(metadata: pq.FileMetaData, columns: Sequence[str] | None) -> bool:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows > MAX_ROW_GROUP_ROWS:
            return True
        chunks = (group.column(position) for position in range(group.num_columns))
        sizes = (
            chunk.total_uncompressed_size
            for chunk in chunks
            if columns is None or chunk.path_in_schema.split(".")[0] in columns
        )
        if sum(sizes) > MAX_ROW_GROUP_BYTES:
            return True
    return False


def _rewritten(
    path: InputPath, spool: Spool, columns: Sequence[str] | None, schema: pa.Schema
) -> Sequence[RowGroup]:
    names = [name for name in schema.names if columns is None or name in columns]
    with pq.ParquetFile(readable(path), pre_buffer=False) as file:
        physical = pa.schema([file.schema_arrow.field(name) for name in names])
        batches = (
            batch.select(names).cast(physical)
            for batch in file.iter_batches(STREAMED_ROWS, columns=names, use_threads=False)
        )
        reader = pa.RecordBatchReader.from_batches(physical, batches)
        rewritten, _ = spool.write(str(path), reader)
    version = _FileVersion.now(rewritten)
    return _blocks(version, _metadata(version))


def spooled_input(
    reader: pa.RecordBatchReader, origin: str, spool: Spool, *, path: InputPath | None = None
) -> Input:
    """Write a reader's rows to the spool and return them as an input."""
    spooled, checksum = spool.write(origin, reader)
    version = _FileVersion.now(spooled)
    metadata = _metadata(version)
    record = InputRecord(
        name=path.name if path else origin,
        path=origin,
        rows=metadata.num_rows,
        bytes=file_size(path) if path else -1,
        checksum=checksum if path is None else path.tag if isinstance(path, RemoteFile) else "",
    )
    schema = logical_schema(metadata.schema.to_arrow_schema(), origin)
    return Input(record=record, schema=schema, blocks=_blocks(version, metadata))


def _locate(path: InputPath, column: str, value: object) -> str | None:
    first_row = 1
    with pq.ParquetFile(readable(path)) as file:
        for batch in file.iter_batches(columns=[column]):
            values = batch.column(0)
            is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
            index = pc.index(pc.list_flatten(values) if is_list else values, value).as_py()
            if index >= 0:
                index = pc.list_parent_indices(values)[index].as_py() if is_list else index
                return f"row {first_row + index:,}"
            first_row += batch.num_rows
    return None


PARQUET = InputFormat(
    suffixes=(".parquet", ".pq"), open=file_by_file(_parquet_input), locate=_locate
)
