"""Parquet files as inputs: one block a row group, dictionaries kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep.data.arrow_types import logical_schema
from widedeep.data.fragments import ColumnKind, Input, InputFormat, InputRecord, Spool
from widedeep.errors import DataError

MAX_ROW_GROUP_ROWS = 1 << 20
MAX_ROW_GROUP_BYTES = 1 << 30
STREAMED_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class _FileVersion:
    """A file as it was when it was opened; another size or time means that it was written since."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def now(cls, path: str) -> _FileVersion:
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _metadata(version: _FileVersion) -> pq.FileMetaData:
    with pq.ParquetFile(version.path) as file:
        return file.metadata


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a Parquet file."""

    version: _FileVersion
    row_group: int
    num_rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns, decoded in the calling thread."""
        path = self.version.path
        try:
            if _FileVersion.now(path) != self.version:
                raise DataError(
                    f"{path}: changed while being read; leave input files alone during a run"
                )
            metadata = _metadata(self.version)
            dictionaries = _dictionary_paths(metadata, self.row_group, columns)
            with pq.ParquetFile(path, metadata=metadata, read_dictionary=dictionaries) as file:
                table = file.read_row_group(
                    self.row_group, columns=list(columns), use_threads=False
                )
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: row group {self.row_group} cannot be read ({error}); "
                "the file is damaged or gone: write it again"
            ) from error
        return table.select(list(columns))


def _dictionary_paths(
    metadata: pq.FileMetaData, row_group: int, columns: Sequence[str]
) -> list[str]:
    """Name the text columns stored as dictionaries; reading others so would hash each value."""
    names = set(columns)
    group = metadata.row_group(row_group)
    chunks = (group.column(number) for number in range(group.num_columns))
    return [
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY"
        and chunk.has_dictionary_page
        and (chunk.path_in_schema in names or chunk.path_in_schema.split(".")[0] in names)
    ]


def _open(
    paths: Sequence[Path],
    columns: Sequence[str] | None,
    spool: Spool,
    declared: Mapping[str, ColumnKind],
) -> list[Input]:
    return [_parquet_input(path, spool, columns) for path in paths]


def _parquet_input(path: Path, spool: Spool, columns: Sequence[str] | None) -> Input:
    """Open a Parquet file; row groups too large to hold are first written again as smaller ones."""
    version, metadata, logical = _opened(path)
    record = InputRecord(
        name=path.name, path=str(path), rows=metadata.num_rows, bytes=version.size, checksum=""
    )
    if _too_large(metadata, columns):
        blocks = _rewritten(path, spool, columns, logical)
    else:
        blocks = _blocks(version, metadata)
    return Input(record=record, schema=logical, blocks=blocks)


def parquet_schema(path: Path) -> pa.Schema:
    """Return the logical types of a Parquet file's columns."""
    return _opened(path)[2]


def _opened(path: Path) -> tuple[_FileVersion, pq.FileMetaData, pa.Schema]:
    try:
        version = _FileVersion.now(str(path))
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
    path: Path, spool: Spool, columns: Sequence[str] | None, schema: pa.Schema
) -> Sequence[RowGroup]:
    names = [name for name in schema.names if columns is None or name in columns]
    with pq.ParquetFile(path, pre_buffer=False) as file:
        physical = pa.schema([file.schema_arrow.field(name) for name in names])
        batches = (
            batch.select(names).cast(physical)
            for batch in file.iter_batches(STREAMED_ROWS, columns=names, use_threads=False)
        )
        reader = pa.RecordBatchReader.from_batches(physical, batches)
        rewritten, _ = spool.write(str(path), reader)
    version = _FileVersion.now(str(rewritten))
    return _blocks(version, _metadata(version))


def spooled_input(
    reader: pa.RecordBatchReader, origin: str, spool: Spool, *, path: Path | None = None
) -> Input:
    """Write a reader's rows to the spool and return them as an input."""
    spooled, checksum = spool.write(origin, reader)
    version = _FileVersion.now(str(spooled))
    metadata = _metadata(version)
    record = InputRecord(
        name=path.name if path else origin,
        path=origin,
        rows=metadata.num_rows,
        bytes=path.stat().st_size if path else -1,
        checksum="" if path else checksum,
    )
    schema = logical_schema(metadata.schema.to_arrow_schema(), origin)
    return Input(record=record, schema=schema, blocks=_blocks(version, metadata))


def _locate(path: Path, column: str, value: object) -> str | None:
    first_row = 1
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[column]):
            index = pc.index(batch.column(0), value).as_py()
            if index >= 0:
                return f"row {first_row + index:,}"
            first_row += batch.num_rows
    return None


PARQUET = InputFormat(suffixes=(".parquet", ".pq"), open=_open, locate=_locate)
