"""EncodedRows: a source's rows as the transform encoded them, mapped from Arrow files."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep._version import __version__
from widedeep.data.batch import Batch
from widedeep.data.fragments import Fragment, Source
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.files import atomic_directory, write_text_whole
from widedeep.remote import modified

ENCODED_FORMAT = 1
_KEY = "key.json"


class EncodedRows:
    """A folder with one Arrow file per fragment of a source, and the key of their origin."""

    def __init__(self, path: Path, files: list[tuple[str, int]], n_slots: int) -> None:
        self.path = path
        self._files = files
        self._n_slots = n_slots

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], transform: Transform, source: Source
    ) -> EncodedRows | None:
        """Return a folder's encoded rows, or None if they are other rows or of another schema."""
        folder = Path(path)
        try:
            stored = json.loads((folder / _KEY).read_text(encoding="utf-8"))
            files = [(str(name), int(size)) for name, size in stored["files"]]
            whole = all((folder / name).stat().st_size == size for name, size in files)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not whole or stored.get("key") != _key(transform, source):
            return None
        return cls(folder, files, len(transform.schema.slots))

    @classmethod
    def write(
        cls, path: str | os.PathLike[str], transform: Transform, source: Source
    ) -> EncodedRows:
        """Encode a source's rows into a folder, written atomically."""
        folder = Path(path)
        key, files = _key(transform, source), []
        try:
            with atomic_directory(folder) as temporary:
                for fragment, batch in _encoded(transform, source):
                    file = temporary / f"rows-{fragment.index:06d}.arrow"
                    _write_batch(file, batch)
                    files.append((file.name, file.stat().st_size))
                write_text_whole(
                    temporary / _KEY, json.dumps({"key": key, "files": files}, indent=1)
                )
        except OSError as error:
            raise DataError(
                f"{folder}: the encoded rows cannot be written ({error.strerror or error}); make "
                "room there (an id takes 16 bytes, a number 4), or train without them"
            ) from error
        return cls(folder, files, len(transform.schema.slots))

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self._files)

    def read(self, fragment: Fragment) -> Batch:
        """Return a fragment's encoded rows; called from several threads."""
        name, size = self._files[fragment.index]
        try:
            mapped = _map_file(self.path / name, size)
            with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
                rows = reader.get_batch(0)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path / name}: cannot be read ({error}); delete the folder {self.path}, "
                "and the rows are encoded again"
            ) from error
        return _as_batch(rows, mapped, fragment.num_rows, self._n_slots)


def encoded_rows(
    path: str | os.PathLike[str], transform: Transform, source: Source
) -> tuple[EncodedRows, bool]:
    """Return the encoded rows in a folder, and whether they had to be written."""
    if not source.files:
        raise DataError(
            f"{path}: got data in memory, expected files, whose changes since the encoding are "
            "cheap to detect; write the data to a Parquet file first, or train without encoded rows"
        )
    rows = EncodedRows.open(path, transform, source)
    if rows is not None:
        return rows, False
    return EncodedRows.write(path, transform, source), True


def _key(transform: Transform, source: Source) -> dict[str, Any]:
    """Return everything that the encoded rows depend on, as JSON values."""
    return {
        "format": ENCODED_FORMAT,
        "widedeep": __version__,
        "schema": transform.schema.fingerprint,
        "labels": list(transform.schema.spec.labels),
        "inputs": [{k: v for k, v in r.items() if k != "path"} for r in source.describe()],
        # A file written again may keep its size, so its time counts too.
        "modified_ns": [modified(file) for file in source.files],
        "fragments": [fragment.num_rows for fragment in source.fragments],
    }


def _encoded(transform: Transform, source: Source) -> Iterator[tuple[Fragment, Batch]]:
    """Yield the fragments in order, encoding two ahead of the caller, who writes them."""

    def encode(fragment: Fragment) -> Batch:
        return transform(source.read(fragment))

    with ThreadPoolExecutor(2, thread_name_prefix="widedeep-encode") as workers:
        waiting: list[tuple[Fragment, Future[Batch]]] = []
        for fragment in source.fragments:
            waiting.append((fragment, workers.submit(encode, fragment)))
            if len(waiting) > 2:
                first, future = waiting.pop(0)
                yield first, future.result()
                del future
        for first, future in waiting:
            yield first, future.result()


# ---- Batch <-> record batch ---------------------------------------------------------------------


def _write_batch(path: Path, batch: Batch) -> None:
    columns: dict[str, pa.Array] = {}
    if batch.n_slots:
        columns["ids"] = _cells(batch, pa.array(batch.ids_N))
        if batch.values_N is not None:
            columns["values"] = _cells(batch, pa.array(batch.values_N))
    for name, table in (("dense", batch.dense_BK), ("labels", batch.labels_BL)):
        if table is not None and table.shape[1]:
            flat = pa.array(np.ascontiguousarray(table).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, table.shape[1])
    for name, vector in (("weight", batch.weight_B), ("group", batch.group_B)):
        if vector is not None:
            columns[name] = pa.array(vector)
    rows = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_batch(rows)


def _cells(batch: Batch, items: pa.Array) -> pa.Array:
    """A list for each slot of each example."""
    cells = pa.LargeListArray.from_arrays(pa.array(batch.offsets_BF), items)
    return pa.FixedSizeListArray.from_arrays(cells, batch.n_slots)


def _map_file(path: Path, size: int) -> NDArray[np.uint8]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise OSError(f"it holds {os.fstat(file.fileno()).st_size} bytes, expected {size}")
        # A private copy on write: tensors may be made of the arrays, and no byte reaches the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(mapped, np.uint8)


def _as_batch(rows: pa.RecordBatch, mapped: NDArray[np.uint8], n_rows: int, n_slots: int) -> Batch:
    names = set(rows.schema.names)

    def column(name: str) -> pa.Array | None:
        return rows.column(name) if name in names else None

    def table(name: str) -> NDArray[Any] | None:
        array = column(name)
        return None if array is None else _view(array.values, mapped).reshape(n_rows, -1)

    def vector(name: str) -> NDArray[Any] | None:
        array = column(name)
        return None if array is None else _view(array, mapped)

    ids, values, dense = column("ids"), column("values"), table("dense")
    return Batch(
        ids_N=np.zeros(0, np.int64) if ids is None else _view(ids.values.values, mapped),
        offsets_BF=np.zeros(n_rows * n_slots + 1, np.int64)
        if ids is None
        else _view(ids.values.offsets, mapped),
        dense_BK=np.zeros((n_rows, 0), np.float32) if dense is None else dense,
        values_N=None if values is None else _view(values.values.values, mapped),
        labels_BL=table("labels"),
        weight_B=vector("weight"),
        group_B=vector("group"),
    )


def _view(array: pa.Array, mapped: NDArray[np.uint8]) -> NDArray[Any]:
    """Return a flat array's values as a view of the mapping; Arrow's own views are read-only."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.zeros(0, dtype)
    start = array.buffers()[1].address - mapped.ctypes.data + array.offset * dtype.itemsize
    return mapped[start : start + len(array) * dtype.itemsize].view(dtype)
