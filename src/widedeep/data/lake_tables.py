"""Delta Lake and Iceberg tables by snapshot, and datasets of pyarrow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from widedeep.data.arrow_types import logical_schema
from widedeep.data.formats import find_format
from widedeep.data.fragments import (
    Input,
    InputRecord,
    RowBlock,
    Spool,
    check_columns,
    selected_columns,
)
from widedeep.data.parquet_input import spooled_input
from widedeep.errors import DataError, extra_imports
from widedeep.remote import is_url, local_path, open_filesystem, remote_errors

_METADATA = ".metadata.json"
_VERSION = re.compile(r"(?P<folder>.+)@(?P<version>v?\d+)$")


@dataclass(frozen=True, kw_only=True)
class TablePath:
    """The folder of a table, and the version or snapshot that is meant."""

    kind: Literal["delta", "iceberg"]
    folder: str  # Or a metadata file of Iceberg
    version: int | None = None  # None: the newest


def find_table(data: Any) -> TablePath | None:
    """Return the table whose folder a path is (``clicks``, ``s3://lake/clicks@v12``)."""
    if not isinstance(data, str | os.PathLike):
        return None
    text = local_path(os.fspath(data)).rstrip("/")
    match = _VERSION.match(text)
    exists = not is_url(text) and os.path.exists(text)
    folder = match["folder"] if match and not exists else text
    kind = None if find_format(Path(folder)) is not None else _kind(folder)
    if kind is None:
        return None
    version = int(match["version"].lstrip("v")) if match and folder != text else None
    return TablePath(kind=kind, folder=folder, version=version)


def _kind(folder: str) -> Literal["delta", "iceberg"] | None:
    if folder.endswith(_METADATA):
        return "iceberg"
    if not is_url(folder):
        path = Path(folder)
        if (path / "_delta_log").is_dir():
            return "delta"
        return "iceberg" if next(path.glob(f"metadata/*{_METADATA}"), None) else None
    if folder.startswith("http"):
        return None
    fs, path_there = open_filesystem(folder)
    with remote_errors(folder):
        if fs.exists(f"{path_there}/_delta_log"):
            return "delta"
        return "iceberg" if fs.glob(f"{path_there}/metadata/*{_METADATA}") else None


def pinned(data: Any) -> Any:
    """Return data whose table's newest version is named, so that it stays the same; else as is."""
    table = find_table(data)
    if table is None or table.version is not None:
        return data
    if table.kind == "delta":
        return f"{table.folder}@v{_delta_table(table).version()}"
    return _newest_metadata(table.folder)  # a snapshot does not say the newest names of columns


def open_table(table: TablePath, columns: Sequence[str] | None, spool: Spool) -> Input:
    """Open the snapshot of a table."""
    if table.kind == "delta":
        return delta_input(_delta_table(table), columns, spool)
    opened = _iceberg_table(table)
    return iceberg_input(opened, columns, spool, snapshot=table.version, folder=table.folder)


# ---- datasets of pyarrow -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _DatasetBlock:
    """A row group of a dataset's file."""

    fragment: Any
    schema: pa.Schema
    num_rows: int  # Rows that were not deleted
    origin: str
    keep: pa.BooleanArray | None = None

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the rows that were not deleted."""
        try:
            table = self.fragment.to_table(
                schema=self.schema, columns=list(columns), use_threads=False
            )
        except FileNotFoundError as error:
            raise _vacuumed(self.origin, error) from error
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.origin}: cannot be read ({error})") from error
        return table if self.keep is None else table.filter(self.keep)


def dataset_input(dataset: Any, origin: str, columns: Sequence[str] | None, spool: Spool) -> Input:
    """Return a dataset of pyarrow as an input: Parquet is read in place, other files are copied."""
    try:
        fragments = list(dataset.get_fragments())
    except ValueError:  # of a dataset with a filter; only a scan of it applies that
        fragments = [dataset]
    if not all(hasattr(fragment, "split_by_row_group") for fragment in fragments):
        reader = dataset.scanner(columns=columns).to_reader()
        return spooled_input(selected_columns(reader, columns, origin), origin, spool)
    fragments.sort(key=lambda fragment: str(fragment.path))
    blocks = [
        block for fragment in fragments for block in _row_groups(fragment, dataset.schema, origin)
    ]
    return _input(origin, origin, dataset.schema, blocks, columns)


def _row_groups(
    fragment: Any, schema: pa.Schema, origin: str, keep: pa.BooleanArray | None = None
) -> Iterator[_DatasetBlock]:
    first = 0
    try:
        for group in fragment.split_by_row_group():
            n_rows = group.row_groups[0].num_rows
            remaining = None if keep is None else keep.slice(first, n_rows)
            n_rows_left = n_rows if remaining is None else remaining.true_count
            yield _DatasetBlock(group, schema, n_rows_left, origin, remaining)
            first += n_rows
    except FileNotFoundError as error:
        raise _vacuumed(origin, error) from error


def _input(
    name: str,
    origin: str,
    schema: pa.Schema,
    blocks: Sequence[RowBlock],
    columns: Sequence[str] | None,
    checksum: str = "",
) -> Input:
    if columns is not None:
        check_columns(columns, schema.names, origin)
    rows = sum(block.num_rows for block in blocks)
    record = InputRecord(name=name, path=origin, rows=rows, bytes=-1, checksum=checksum)
    return Input(record=record, schema=logical_schema(schema, origin), blocks=blocks)


def _recorded(opened: Input, name: str, checksum: str) -> Input:
    """Return a copied input that is remembered by its snapshot instead of its values."""
    record = opened.record.copy()
    record["name"], record["checksum"] = name, checksum
    return replace(opened, record=record)


def _vacuumed(origin: str, error: Exception) -> DataError:
    return DataError(
        f"{origin}: a file of this snapshot is gone ({error}); the table was vacuumed since: "
        "read a newer version, or keep files longer than a run takes"
    )


# ---- Delta Lake ----------------------------------------------------------------------------------


def _delta_table(table: TablePath) -> Any:
    with extra_imports():
        import deltalake
    insecure = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options = {"AWS_ALLOW_HTTP": "true"} if insecure else None
    folder = table.folder.replace("s3a://", "s3://")
    try:
        return deltalake.DeltaTable(folder, version=table.version, storage_options=options)
    except Exception as error:  # the library's own are not all of one class
        what = "" if table.version is None else f"version {table.version} of "
        raise DataError(
            f"{table.folder}: {what}the Delta table cannot be opened ({error}); check the path, "
            "the credentials and the version (deltalake.DeltaTable(PATH).history())"
        ) from error


def delta_input(table: Any, columns: Sequence[str] | None, spool: Spool) -> Input:
    """Return the rows of a ``deltalake.DeltaTable`` at its version."""
    origin = f"{str(table.table_uri).removeprefix('file://').rstrip('/')}@v{table.version()}"
    name, checksum = origin.rpartition("/")[2], f"delta {table.metadata().id} {table.version()}"
    features = table.protocol().reader_features or ()
    mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    try:
        if mapped:  # names in the files are others; only the library's engine knows them
            names = None if columns is None else list(columns)
            reader = pa.RecordBatchReader.from_stream(table.scan(names))
            return _recorded(spooled_input(reader, origin, spool), name, checksum)
        if "deletionVectors" not in features:
            dataset = table.to_pyarrow_dataset()
            fragments = [(fragment, None) for fragment in dataset.get_fragments()]
            schema = dataset.schema
        else:
            fragments, schema = _with_deletion_vectors(table)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{origin}: the Delta table cannot be read ({error})") from error
    # The log's order is no order of the rows; that of the names is one that stays.
    fragments.sort(key=lambda pair: str(pair[0].path))
    blocks = [
        b for fragment, keep in fragments for b in _row_groups(fragment, schema, origin, keep)
    ]
    return _input(name, origin, schema, blocks, columns, checksum)


def _with_deletion_vectors(table: Any) -> tuple[list[tuple[Any, Any]], pa.Schema]:
    """Return a table's files, and of each which rows are kept; pyarrow's datasets cannot."""
    from pyarrow import dataset
    from pyarrow import fs as arrow_fs

    root = str(table.table_uri).rstrip("/")
    schema = pa.schema(table.schema().to_arrow())
    vectors = pa.table(table.deletion_vectors()).to_pylist()
    keeps = {unquote(local_path(row["filepath"])): row["selection_vector"] for row in vectors}
    parquet, fragments = dataset.ParquetFileFormat(), []
    fs = arrow_fs.LocalFileSystem()
    if is_url(root):
        fs = arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(open_filesystem(root)[0]))
    for action in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        path = action["path"]
        path = path if "://" in path or path.startswith("/") else f"{root}/{path}"
        values = [
            (key.removeprefix("partition."), value)
            for key, value in action.items()
            if key.startswith("partition.")
        ]
        expression = reduce(
            lambda one, other: one & other,
            (
                pc.field(key).is_null() if value is None else pc.field(key) == pa.scalar(value)
                for key, value in values
            ),
            pc.scalar(True),
        )
        fs_path = path.partition("://")[2] if is_url(path) else local_path(path)
        fragment = parquet.make_fragment(fs_path, filesystem=fs, partition_expression=expression)
        keep = keeps.get(unquote(local_path(path)))
        fragments.append((fragment, None if keep is None else pa.array(keep, pa.bool_())))
    return fragments, schema


# ---- Iceberg -------------------------------------------------------------------------------------


def _iceberg_table(table: TablePath) -> Any:
    with extra_imports():
        from pyiceberg.table import StaticTable
    properties = {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"} if is_url(table.folder) else {}
    try:
        return StaticTable.from_metadata(_newest_metadata(table.folder), properties)
    except DataError:
        raise
    except Exception as error:  # the library's own are not all of one class
        raise DataError(
            f"{table.folder}: the Iceberg table cannot be opened ({error}); check the path and the "
            "credentials"
        ) from error


def _newest_metadata(folder: str) -> str:
    """Return the newest metadata file of a table's folder; a metadata file as it is."""
    if folder.endswith(_METADATA):
        return folder
    if is_url(folder):
        fs, path = open_filesystem(folder)
        with remote_errors(folder):
            names = fs.glob(f"{path}/metadata/*{_METADATA}")
        files = [str(fs.unstrip_protocol(name)) for name in names]
    else:
        files = [str(file) for file in Path(folder).glob(f"metadata/*{_METADATA}")]
    return max(files, key=_metadata_number)


def _metadata_number(file: str) -> tuple[int, str]:
    """Return the order of metadata files: ``00003-uuid.metadata.json``, ``v3.metadata.json``."""
    name = file.rpartition("/")[2]
    match = re.match(r"v?(\d+)", name)
    return int(match[1]) if match else -1, name


def iceberg_input(
    table: Any,
    columns: Sequence[str] | None,
    spool: Spool,
    *,
    snapshot: int | None = None,
    folder: str | None = None,
) -> Input:
    """Return the rows of an Iceberg table, or of an older snapshot of it, copied once."""
    current, asked_id = table.current_snapshot(), snapshot
    snapshot = (
        snapshot if snapshot is not None else None if current is None else current.snapshot_id
    )
    if snapshot is None:
        raise DataError(f"{folder or table.location()}: the Iceberg table has no snapshot yet")
    origin = f"{folder or table.location()}@{snapshot}"
    if table.snapshot_by_id(snapshot) is None:
        newest = ", ".join(str(one.snapshot_id) for one in table.snapshots()[-5:])
        raise DataError(f"{origin}: no such snapshot; the newest are {newest}")
    fields = ("*",) if columns is None else tuple(columns)
    if columns is not None:
        names = [field.name for field in table.scan(snapshot_id=asked_id).projection().fields]
        check_columns(columns, names, origin)
    try:
        # Without a snapshot the names of columns are the newest, else those of its time.
        reader = table.scan(snapshot_id=asked_id, selected_fields=fields).to_arrow_batch_reader()
        opened = spooled_input(selected_columns(reader, columns, origin), origin, spool)
    except FileNotFoundError as error:
        raise _vacuumed(origin, error) from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{origin}: the Iceberg table cannot be read ({error})") from error
    return _recorded(opened, origin.rpartition("/")[2], f"iceberg {snapshot}")
