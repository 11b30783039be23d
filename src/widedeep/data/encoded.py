"""EncodedRows: a source's examples as the transform encoded them, packed, in mapped files."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from widedeep._version import __version__
from widedeep.data.fragments import Fragment, Source
from widedeep.data.packed import LayoutFields, PackedExamples, layout_fields, pack_batch
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.files import atomic_directory, write_text_whole
from widedeep.kernels import ExampleLayout
from widedeep.remote import modified

ENCODED_FORMAT = 2
_KEY = "key.json"


class _File(NamedTuple):
    """A file of packed examples; behind them stand their lengths, unless all are equal."""

    name: str
    size: int
    n_bytes: int  # Bytes of the examples
    length: int  # Bytes of each example; 0 where the lengths follow


class EncodedRows:
    """A folder with one file per fragment of a source, and the key of their origin."""

    def __init__(self, path: Path, files: list[_File], fields: LayoutFields | None) -> None:
        self.path = path
        self._files = files
        self._layout = None if fields is None else ExampleLayout(**fields)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], transform: Transform, source: Source
    ) -> EncodedRows | None:
        """Return a folder's encoded rows, or None if they are other rows or of another schema."""
        folder = Path(path)
        try:
            stored = json.loads((folder / _KEY).read_text(encoding="utf-8"))
            files = [_File(*entry) for entry in stored["files"]]
            whole = all((folder / file.name).stat().st_size == file.size for file in files)
            if not whole or stored["key"] != _key(transform, source):
                return None
            return cls(folder, files, stored["layout"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def write(
        cls, path: str | os.PathLike[str], transform: Transform, source: Source
    ) -> EncodedRows:
        """Encode a source's rows into a folder, written atomically."""
        folder = Path(path)
        fields: LayoutFields | None = None
        files: list[_File] = []
        key = _key(transform, source)
        try:
            with atomic_directory(folder) as temporary:
                for fragment, encoded in _encoded(transform, source):
                    fields, packed, starts = encoded
                    name = f"rows-{fragment.index:06d}.bin"
                    files.append(_write_file(temporary / name, packed, starts))
                content = {"key": key, "layout": fields, "files": files}
                write_text_whole(temporary / _KEY, json.dumps(content, indent=1))
        except OSError as error:
            raise DataError(
                f"{folder}: the encoded rows cannot be written ({error.strerror or error}); make "
                "room there (an id takes 1 to 4 bytes, a number 4), or train without them"
            ) from error
        return cls(folder, files, fields)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._files)

    def read(self, fragment: Fragment) -> PackedExamples:
        """Return a fragment's encoded rows; called from several threads."""
        file = self._files[fragment.index]
        assert self._layout is not None
        try:
            mapped = _map_file(self.path / file.name, file.size)
            starts = _starts(file, mapped, fragment.num_rows)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path / file.name}: cannot be read ({error}); delete the folder "
                f"{self.path}, and the rows are encoded again"
            ) from error
        return PackedExamples.within(self._layout, mapped, starts)


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


_Packed = tuple[LayoutFields, NDArray[np.uint8], NDArray[np.int64]]


def _encoded(transform: Transform, source: Source) -> Iterator[tuple[Fragment, _Packed]]:
    """Yield the fragments in order, encoding two ahead of the caller, who writes them."""
    sizes = [slot.size for slot in transform.schema.slots]

    def encode(fragment: Fragment) -> _Packed:
        batch = transform(source.read(fragment))
        fields = layout_fields(batch, sizes)
        return fields, *pack_batch(batch, ExampleLayout(**fields))

    with ThreadPoolExecutor(2, thread_name_prefix="widedeep-encode") as workers:
        waiting: list[tuple[Fragment, Future[_Packed]]] = []
        for fragment in source.fragments:
            waiting.append((fragment, workers.submit(encode, fragment)))
            if len(waiting) > 2:
                first, future = waiting.pop(0)
                yield first, future.result()
                del future
        for first, future in waiting:
            yield first, future.result()


def _write_file(path: Path, packed: NDArray[np.uint8], starts: NDArray[np.int64]) -> _File:
    lengths = np.diff(starts).astype(np.uint32)
    is_even = len(lengths) > 0 and lengths.min() == lengths.max()
    with open(path, "wb") as file:
        file.write(packed.data)
        if not is_even:
            file.write(bytes(-len(packed) % lengths.itemsize))
            file.write(lengths.data)
        size = file.tell()
    return _File(path.name, size, len(packed), int(lengths[0]) if is_even else 0)


def _starts(file: _File, mapped: NDArray[np.uint8], rows: int) -> NDArray[np.int64]:
    """Return where each example of a file begins, and the last one ends."""
    if file.length:
        starts = np.arange(rows + 1) * file.length
    else:
        lengths = mapped[file.size - 4 * rows :].view(np.uint32) if rows else np.empty(0)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if starts[-1] != file.n_bytes:
        raise ValueError(f"its examples have {starts[-1]:,} bytes, expected {file.n_bytes:,}")
    return starts


def _map_file(path: Path, size: int) -> NDArray[np.uint8]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise OSError(f"it holds {os.fstat(file.fileno()).st_size} bytes, expected {size}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(mapped, np.uint8)
