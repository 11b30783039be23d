"""Input that can be read only once, written to temporary Parquet files that can be read again."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.arrow_types import conform, logical_schema, logical_type, unified_schema
from widedeep.data.inputs import ContentChecksum
from widedeep.errors import DataError

ROW_GROUP_ROWS = 65_536


class Spool:
    """A temporary folder of Parquet files with row groups of 65,536 rows, deleted on close."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
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

    def close(self) -> None:
        """Delete the files; calling it twice is no error."""
        if self._remove is not None:
            self._remove()

    def _next_path(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="widedeep-spool-", dir=self._parent))
            self._remove = weakref.finalize(self, _remove_folder, str(self._folder), os.getpid())
        self._n_files += 1
        return self._folder / f"{self._n_files - 1}.parquet"


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
        return pa.table(item)
    raise DataError(f"{origin}: yielded a {type(item).__name__}; expected record batches or tables")
