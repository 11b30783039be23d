"""Atomic writes (temporary name, fsync, rename), and arrays in mapped safetensors files."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import mmap
import os
import re
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import DataError

_BLOCK = 1 << 20
_HERE = -100  # AT_FDCWD of Linux; the paths are absolute
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's contents, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Force a file's contents or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_folder(path: Path) -> None:
    """Raise a DataError for a folder in the place of a file that is to be written."""
    if not path.name or path.is_dir():
        raise DataError(f"{path}: is a folder, expected the name of a file to write")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; its file gets that name if the block ends well."""
    final = Path(path)
    refuse_folder(final)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, final)
        fsync_path(final.parent)
    except OSError as error:
        if error.filename is None and type(error) is OSError:
            raise OSError(error.errno, error.strerror, os.fspath(final)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a small file: whole, or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, within: Path | None = None) -> Iterator[Path]:
    """Give a temporary directory beside ``path``; rename it to ``path`` if the block ends well."""
    final = Path(path).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=within or final.parent)
    )
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            fsync_path(entry)
        fsync_path(temporary)
        temporary.chmod(0o755)
        _put_in_place(temporary, final)
        fsync_path(final.parent)
    finally:
        # What failed, or what was replaced.
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], mode: int = 0o600) -> Iterator[None]:
    """Hold an exclusive lock on a file that is for this alone: a replaced file locks nobody out."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def held_folder(
    folder: str | os.PathLike[str],
    busy: str = "another process writes into it; wait for its end, or choose another folder",
) -> Iterator[None]:
    """Hold a folder for this process alone, as far as its file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{os.fspath(folder)}: {busy}") from None
        except OSError:  # some network file systems have none
            pass
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def try_locked(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold an exclusive lock on a file for this alone, or tell that another process has it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        is_free = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        yield is_free
    finally:
        os.close(lock)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename ``temporary`` to ``final``; what was at ``final`` gets the temporary name."""
    if not final.exists():
        os.rename(temporary, final)
    elif not _exchange(temporary, final):
        aside = temporary.with_suffix(".old")
        os.rename(final, aside)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(aside, final)
            raise
        os.rename(aside, temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = (os.fsencode(one), os.fsencode(other))
    if hasattr(libc, "renameat2"):
        return bool(libc.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)
    if hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(*paths, _EXCHANGE) == 0)
    return False


_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_PADDING = "__pad."
_SMALL_ALIGNMENT = 64
_PAGE = 4096
_CUT = 1 << 16  # a page of any system: where a tensor may go on in another file
_COPY_BYTES = 1 << 24
_MAP_FIXED = 0x10  # of Linux and of macOS
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Rows of a tensor that lie side by side in one file."""

    file: int  # Number of the file, from 0
    offset: int  # Bytes from the start of the file's tensors
    first: int  # First row
    stop: int  # One past the last row


class TensorFiles:
    """Where each tensor's rows lie in one safetensors file, or in parts of a limited size.

    The places are a function of shapes and ``part_bytes`` alone, so several processes may each
    write their own rows. A tensor too large for what is left of a part goes on in the next one; it
    is cut where a page begins, and :func:`map_tensors` maps its pieces one after the other.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        *,
        metadata: Mapping[str, str] | None = None,
        part_bytes: int | None = None,
    ) -> None:
        """Lay out tensors; ``part_bytes``: most bytes of tensors in a file, None for no limit."""
        self.spans: dict[str, list[TensorSpan]] = {}
        self._row_bytes: dict[str, int] = {}
        self._headers: list[dict[str, Any]] = [{_METADATA: dict(metadata or {})}]
        self._ends = [0]
        for name, (dtype, shape) in shapes.items():
            if name == _METADATA or name.startswith(_PADDING):
                raise DataError(f"tensor {name!r}: the name is reserved; choose another")
            if dtype not in _NAMES:
                raise DataError(
                    f"tensor {name!r}: got dtype {dtype}, expected one of {sorted(_DTYPES)}"
                )
            self._place(name, dtype, shape, math.inf if part_bytes is None else part_bytes)
        self.paths = part_paths(Path(path), len(self._headers))
        # Pages of a piece are mapped behind those of the piece before: all start on one.
        boundary = _PAGE if len(self.paths) == 1 else _CUT
        self._texts = [_header_text(header, boundary) for header in self._headers]

    def _place(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], limit: float) -> None:
        rows, first = (shape[0] if shape else 1), 0
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        unit = _CUT // math.gcd(_CUT, row_bytes) if row_bytes else max(1, rows)  # fills pages
        self._row_bytes[name] = row_bytes
        self.spans[name] = []
        while first < rows or not self.spans[name]:
            whole = (rows - first) * row_bytes
            boundary = _CUT if first else _PAGE if whole >= _PAGE else _SMALL_ALIGNMENT
            room = limit - self._ends[-1] - -self._ends[-1] % boundary
            count = rows - first
            if whole > room:
                room = limit - self._ends[-1] - -self._ends[-1] % _CUT
                count, boundary = int(room // (unit * row_bytes)) * unit, _CUT
                if count <= 0 and self._ends[-1]:
                    self._new_file()
                    continue
                count = min(max(count, unit), rows - first)
            span = TensorSpan(len(self._ends) - 1, self._pad(boundary), first, first + count)
            self.spans[name].append(span)
            cut = shape if count == rows else (count, *shape[1:])
            self._headers[-1][name] = _entry(dtype, cut, span.offset)
            self._ends[-1] += count * row_bytes
            first += count

    def _new_file(self) -> None:
        self._headers.append({_METADATA: self._headers[0][_METADATA]})
        self._ends.append(0)

    def _pad(self, boundary: int) -> int:
        """Fill up to a multiple of ``boundary`` bytes, and return where the next tensor begins."""
        header, end = self._headers[-1], self._ends[-1]
        if gap := -end % boundary:
            header[f"{_PADDING}{len(header) - 1}"] = _entry(np.dtype("u1"), (gap,), end)
            self._ends[-1] += gap
        return self._ends[-1]

    def create(self) -> None:
        """Write the headers, and give each file its size."""
        for path, text, end in zip(self.paths, self._texts, self._ends, strict=True):
            with open(path, "wb") as file:
                file.write(text)
                file.truncate(len(text) + end)

    def write(self, name: str, rows: NDArray[Any], first: int = 0) -> None:
        """Write rows ``first``, ... of a tensor into files that were created."""
        row_bytes = self._row_bytes[name]
        rows = np.atleast_1d(rows)
        at_once = max(1, _COPY_BYTES // max(1, row_bytes))
        for span in self.spans[name]:
            begin, stop = max(span.first, first), min(span.stop, first + len(rows))
            if begin >= stop:
                continue
            start = len(self._texts[span.file]) + span.offset - span.first * row_bytes
            with open(self.paths[span.file], "r+b", buffering=0) as file:
                for row in range(begin, stop, at_once):
                    # Rows of a table with its state are no block: one copy at a time.
                    block = _bytes_of(rows[row - first : min(row + at_once, stop) - first])
                    _write_at(file.fileno(), block, start + row * row_bytes)


def part_paths(path: Path, parts: int) -> list[Path]:
    """Return the names of a file that is cut into parts: ``NAME-00001-of-00008.SUFFIX``."""
    if parts == 1:
        return [path]
    numbers = range(1, parts + 1)
    return [path.with_name(f"{path.stem}-{i:05}-of-{parts:05}{path.suffix}") for i in numbers]


def is_part_of(path: Path, name: str) -> bool:
    """Whether ``path`` is named like a part of a file called ``name``."""
    whole = Path(name)
    pattern = rf"{re.escape(whole.stem)}-\d{{5}}-of-\d{{5}}{re.escape(whole.suffix)}"
    return re.fullmatch(pattern, path.name) is not None


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to ``path`` and force them to the disk."""
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    TensorFiles(path, shapes, metadata=metadata)  # says what cannot be written before it begins
    with atomic_file(path) as temporary:
        files = TensorFiles(temporary, shapes, metadata=metadata)
        files.create()
        for name, array in arrays.items():
            files.write(name, array)


def _write_at(descriptor: int, block: memoryview, offset: int) -> None:
    while block:
        written = os.pwrite(descriptor, block, offset)
        block, offset = block[written:], offset + written


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _entry(dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> dict[str, Any]:
    end = offset + math.prod(shape) * dtype.itemsize
    return {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}


def _header_text(header: Mapping[str, Any], boundary: int) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % boundary)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise DataError(
                f"{path}: got no safetensors header; the file is damaged or of another kind"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise DataError(f"{path}: its safetensors header is damaged ({error})") from error
    try:
        end = _check_layout(header)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its safetensors header is damaged ({error!r})") from error
    if 8 + length + end != size:
        raise DataError(
            f"{path}: got {size} bytes, its header promises {8 + length + end}; "
            "the file is incomplete, write it again"
        )
    return header, 8 + length


def _check_layout(header: dict[str, Any]) -> int:
    """Check that tensors follow each other without a gap, and return where the last ends."""
    if not all(isinstance(text, str) for text in header.get(_METADATA, {}).values()):
        raise ValueError("metadata that is no text")
    entries = {name: entry for name, entry in header.items() if name != _METADATA}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        numbers = [first, last, *entry["shape"]]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"tensor {name!r} has a shape or place that is no count")
        dtype = _DTYPES.get(entry["dtype"])
        nbytes = None if dtype is None else math.prod(entry["shape"]) * dtype.itemsize
        if first != at or last < first or nbytes not in (None, last - first):
            raise ValueError(f"tensor {name!r} does not fill its place")
        at = last
    return at


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the strings of the file's header."""
    return dict(_read_header(Path(path))[0].get(_METADATA, {}))


def tensor_header(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file of tensors that stand before the first one."""
    _, start = _read_header(Path(path))
    with open(path, "rb") as file:
        return file.read(start)


def map_tensors(*paths: str | os.PathLike[str], writable: bool = False) -> dict[str, NDArray[Any]]:
    """Map arrays of a file, or of all its parts in order; nothing is copied.

    ``writable``: what is written to the arrays is written to the file, of which there is one.
    """
    tensors: dict[str, NDArray[Any]] = {}
    pieces: dict[str, list[tuple[Path, int, NDArray[Any]]]] = {}
    for path in map(Path, paths):
        header, start = _read_header(path)
        raw = np.memmap(path, dtype=np.uint8, mode="r+" if writable else "r")
        for name, entry in header.items():
            if name == _METADATA or name.startswith(_PADDING):
                continue
            if entry["dtype"] not in _DTYPES:
                raise DataError(
                    f"{path}: tensor {name!r} has dtype {entry['dtype']}, which is not known"
                )
            first, last = (start + offset for offset in entry["data_offsets"])
            view = (
                np.frombuffer(raw, np.uint8, last - first, first)
                if last > first
                else np.empty(0, np.uint8)
            )
            tensor = view.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = tensor
            pieces.setdefault(name, []).append((path, first, tensor))
    cut = {name: several for name, several in pieces.items() if len(several) > 1}
    return {**tensors, **{name: _map_one_after_the_other(name, cut[name]) for name in cut}}


def release_pages(array: NDArray[Any]) -> None:
    """Give back the memory of a mapped array's pages; they are read again where they are needed."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _map_one_after_the_other(
    name: str, pieces: list[tuple[Path, int, NDArray[Any]]]
) -> NDArray[Any]:
    """Map the pieces of a tensor, that lie in several files, into one stretch of addresses."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_int64,
    )
    arrays = [array for _, _, array in pieces]
    first, last, page = arrays[0], arrays[-1], mmap.ALLOCATIONGRANULARITY
    for path, offset, array in pieces:
        whole = array is last or array.nbytes % page == 0  # pages
        same = array.ndim and (array.dtype, array.shape[1:]) == (first.dtype, first.shape[1:])
        if not (same and whole and array.nbytes and offset % page == 0):
            raise DataError(
                f"{path}: tensor {name!r} is cut where it cannot go on in the next part (rows of "
                f"{array.dtype} {array.shape[1:]}, pages of {page:,} bytes); write the parts again"
            )
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    # Unmapped, with what is mapped over it, when the last view of it is gone.
    space = mmap.mmap(-1, sum(array.nbytes for array in arrays), flags, mmap.PROT_READ)
    bytes_N = np.frombuffer(space, np.uint8)
    address = bytes_N.ctypes.data
    for path, offset, array in pieces:
        with open(path, "rb") as file:
            over = mmap.MAP_SHARED | _MAP_FIXED
            mapped = libc.mmap(address, array.nbytes, mmap.PROT_READ, over, file.fileno(), offset)
        if mapped != address:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(path))
        address += array.nbytes
    rows = sum(len(array) for array in arrays)
    return bytes_N.view(first.dtype).reshape(rows, *first.shape[1:])
