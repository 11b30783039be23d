"""Atomic writes (temporary name, fsync, rename), and arrays in one mapped safetensors file."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
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


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; its file gets that name if the block ends well."""
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, final)
        fsync_path(final.parent)
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
_HEADER_LIMIT = 100_000_000


def _alignment(nbytes: int) -> int:
    return _PAGE if nbytes >= _PAGE else _SMALL_ALIGNMENT


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to ``path`` and force them to the disk."""
    header: dict[str, Any] = {_METADATA: dict(metadata or {})}
    parts: list[NDArray[Any]] = []
    at = 0
    for name, tensor in tensors.items():
        if name == _METADATA or name.startswith(_PADDING):
            raise DataError(f"tensor {name!r}: the name is reserved; choose another")
        array = np.asarray(tensor)
        if array.dtype not in _NAMES:
            raise DataError(
                f"tensor {name!r}: got dtype {array.dtype}, expected one of {sorted(_DTYPES)}"
            )
        gap = -at % _alignment(array.nbytes)
        if gap:
            pad = np.zeros(gap, np.uint8)
            header[f"{_PADDING}{len(parts)}"] = _entry(pad, at)
            parts.append(pad)
            at += gap
        header[name] = _entry(array, at)
        parts.append(array)
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _PAGE)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.writelines([struct.pack("<Q", len(text)), text])
        for part in parts:  # rows of a table with its state are no block: one copy at a time
            file.write(_bytes_of(part))


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _entry(array: NDArray[Any], at: int) -> dict[str, Any]:
    return {
        "dtype": _NAMES[array.dtype],
        "shape": list(array.shape),
        "data_offsets": [at, at + array.nbytes],
    }


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


def map_tensors(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Map a file's arrays read-only; nothing is copied."""
    header, start = _read_header(Path(path))
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    tensors: dict[str, NDArray[Any]] = {}
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
        tensors[name] = view.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors
