"""Patches: a bundle as what changed since another one, row by row; applied, it is the same bytes.

A patch is a folder with the manifest of the bundle that comes out, and one file of changes: of each
tensor the rows whose bytes differ, of any other file the whole. What a row's bytes mean is not
looked at, so tables of any encoding are patched alike.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle.manifest import MANIFEST, PATCH, read_manifest
from widedeep.errors import BundleError, DataError
from widedeep.files import file_sha256, map_tensors, read_metadata, tensor_header, write_tensors

_FORMAT = 1
_KEY = "patch"
_ROWS_PER_BLOCK = 1 << 16
_TENSORS = ".safetensors"
_XOR, _PLAIN = "x", "-"  # A byte of each number: as its difference to the older one, or itself

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """The bundle that a patch applies to, and the files of the one that comes out.

    Args:
        base: SHA-256 of the manifest of the bundle that it applies to.
        version: Version whose bundle that is, in the same directory of versions.
        depth: Number of patches from the last whole version to this one, at least 1.
        files: Changed files by name: number of changed rows of each tensor, and the form of each
            byte of its numbers; None for a file that is written whole.
    """

    base: str
    version: str
    depth: int
    files: Mapping[str, Mapping[str, tuple[int, str]] | None] = field(repr=False)


class BaseMissing(BundleError):
    """The version that a patch applies to is not there; it may come."""


def read_patch(path: Path) -> Patch | None:
    """Return the description of a patch; None if the folder is no patch.

    Raises:
        BundleError: If it is damaged, or of a format that this version does not read.
    """
    file = path / PATCH
    if not file.exists():
        return None
    try:
        value = json.loads(read_metadata(file)[_KEY])
        if value.pop("format") != _FORMAT:
            raise BundleError(
                f"{file}: got a patch of another format, expected {_FORMAT}; publish a whole "
                "version, or install the version of widedeep that wrote it"
            )
        return Patch(**value)
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file}: the patch is damaged ({error}); publish it again") from error


def find_base(path: Path, patch: Patch) -> Path:
    """Return the folder of the version that a patch applies to.

    Raises:
        BundleError: If that version is another bundle by now.
        BaseMissing: If it is not there.
    """
    base = path.absolute().parent / patch.version
    advice = "restore it, or publish a whole version"
    if not (base / MANIFEST).is_file():
        raise BaseMissing(
            f"{path}: got a patch of version {patch.version}, which is not in {base.parent}; "
            f"{advice}"
        )
    identity = file_sha256(base / MANIFEST)
    if identity != patch.base:
        raise BundleError(
            f"{path}: got a patch of another bundle: it applies to {patch.base[:12]}, and version "
            f"{patch.version} is {identity[:12]}; {advice}"
        )
    return base


def write_patch(base: Path, bundle: Path, path: Path, *, version: str, depth: int) -> Patch:
    """Write what a bundle changed since another one.

    Args:
        base: Folder of the older bundle, whole.
        bundle: Folder of the newer bundle, whole.
        path: Existing folder for the patch.
        version: Version that serves ``base``.
        depth: Number of patches since the last whole version, this one included.
    """
    before, after = read_manifest(base).files, read_manifest(bundle).files
    files: dict[str, dict[str, tuple[int, str]] | None] = {}
    arrays: dict[str, Bytes] = {}
    for name, entry in after.items():
        if before.get(name) == entry:
            continue
        if name.endswith(_TENSORS) and name in before:
            files[name] = _changed_tensors(base / name, bundle / name, name, arrays)
        else:
            files[name] = None
            arrays[name] = _packed((bundle / name).read_bytes())
    patch = Patch(base=file_sha256(base / MANIFEST), version=version, depth=depth, files=files)
    text = json.dumps({"format": _FORMAT, **asdict(patch)})
    write_tensors(path / PATCH, arrays, {_KEY: text})
    shutil.copyfile(bundle / MANIFEST, path / MANIFEST)
    return patch


def apply_patch(path: Path, folder: Path) -> None:
    """Turn a copy of a patch's base into the bundle that comes out; the caller verifies it.

    Args:
        path: Folder of the patch.
        folder: A copy of the bundle that the patch applies to. It is changed in place.

    Raises:
        BundleError: If the patch is damaged.
    """
    patch = read_patch(path)
    assert patch is not None
    manifest = read_manifest(path)
    try:
        arrays = map_tensors(path / PATCH)
        for name, tensors in patch.files.items():
            size = manifest.files[name].size
            if tensors is None:
                (folder / name).unlink(missing_ok=True)
                (folder / name).write_bytes(_unpacked(arrays[name], size))
            else:
                _apply_tensors(folder / name, size, tensors, arrays)
    except (DataError, KeyError, ValueError, IndexError, OverflowError, pa.ArrowException) as error:
        raise BundleError(f"{path}: the patch is damaged ({error}); publish it again") from error
    for file in folder.iterdir():
        if file.name not in manifest.files:
            file.unlink()
    shutil.copyfile(path / MANIFEST, folder / MANIFEST)


def _changed_tensors(
    base: Path, file: Path, name: str, arrays: dict[str, Bytes]
) -> dict[str, tuple[int, str]]:
    """Add the changed rows of each tensor of a file to ``arrays``; return how they are written."""
    header = tensor_header(file)
    if header != tensor_header(base):
        arrays[f"{name}|"] = _packed(header)
    old, changes = map_tensors(base), {}
    for tensor, array in map_tensors(file).items():
        rows_NW = _rows(array)
        base_NW = _base_rows(old.get(tensor), array)
        index_N = _changed_rows(base_NW, rows_NW)
        if len(index_N) == 0:
            continue
        gaps_N8 = np.diff(index_N, prepend=0).view(np.uint8).reshape(-1, 8)
        arrays[f"{name}|{tensor}|rows"] = _packed(gaps_N8.T.tobytes())
        changed_NW = rows_NW[index_N]
        xor_NW = changed_NW ^ _taken(base_NW, index_N)
        ways = ""
        for byte in range(array.dtype.itemsize):
            # The first bytes of all numbers, then the second ones, ...: alike, they pack better.
            plain, xor = (
                _packed(x_NW[:, byte :: array.dtype.itemsize].T.tobytes())
                for x_NW in (changed_NW, xor_NW)
            )
            ways += _XOR if len(xor) < len(plain) else _PLAIN
            arrays[f"{name}|{tensor}|{byte}"] = min(plain, xor, key=len)
        changes[tensor] = (len(index_N), ways)
    return changes


def _apply_tensors(
    file: Path, size: int, changes: Mapping[str, tuple[int, str]], arrays: Mapping[str, Bytes]
) -> None:
    """Change rows of a file in place; with a new header, write it anew from the older one."""
    name, target = file.name, file
    if f"{name}|" in arrays:
        target = file.with_name(f"{name}.new")
        with open(target, "wb") as output:
            output.write(_unpacked(arrays[f"{name}|"], size))
            output.truncate(size)
    old, tensors = map_tensors(file), map_tensors(target, writable=True)
    for tensor, array in tensors.items():
        rows_NW, base_NW = _rows(array), _base_rows(old.get(tensor), array)
        count, ways = changes.get(tensor, (0, ""))
        if target != file:
            rows_NW[: len(base_NW)] = base_NW[: len(rows_NW)]
        if count == 0:
            continue
        gaps = np.frombuffer(_unpacked(arrays[f"{name}|{tensor}|rows"], count * 8), np.uint8)
        index_N = np.cumsum(np.ascontiguousarray(gaps.reshape(8, count).T).view(np.int64).ravel())
        changed_NW = _taken(base_NW, index_N)
        bytes_each = len(ways)
        for byte, way in enumerate(ways):
            plane_NW = changed_NW[:, byte::bytes_each]
            packed = _unpacked(arrays[f"{name}|{tensor}|{byte}"], plane_NW.size)
            values_NW = np.frombuffer(packed, np.uint8).reshape(-1, count).T
            changed_NW[:, byte::bytes_each] = plane_NW ^ values_NW if way == _XOR else values_NW
        rows_NW[index_N] = changed_NW
    if target != file:
        target.replace(file)


def _rows(array: NDArray[Any]) -> Bytes:
    """Return the bytes of each row, (rows, bytes of a row); a view."""
    rows = len(array) if array.ndim else 1
    width = math.prod(array.shape[1:]) * array.dtype.itemsize
    return array.reshape(-1).view(np.uint8).reshape(rows, width)


def _base_rows(old: NDArray[Any] | None, array: NDArray[Any]) -> Bytes:
    """Return the rows of the older tensor; none where its rows are of another kind."""
    same = old is not None and (old.dtype, old.shape[1:]) == (array.dtype, array.shape[1:])
    rows_NW = _rows(array)
    return _rows(old) if old is not None and same else rows_NW[:0]


def _changed_rows(base_NW: Bytes, rows_NW: Bytes) -> NDArray[np.int64]:
    """Return the rows that differ, and all behind the older ones, ascending."""
    both, width = min(len(base_NW), len(rows_NW)), rows_NW.shape[1]
    word = next(bits for bits in (8, 4, 2, 1) if width % bits == 0)
    changed = [np.arange(both, len(rows_NW))]
    for start in range(0, both if width else 0, _ROWS_PER_BLOCK):
        block = slice(start, min(both, start + _ROWS_PER_BLOCK))
        one, other = (x[block].view(f"u{word}") for x in (base_NW, rows_NW))
        changed.append(start + np.flatnonzero((one != other).any(axis=1)))
    return np.concatenate([*changed[1:], changed[0]]).astype(np.int64)


def _taken(base_NW: Bytes, index_N: NDArray[np.int64]) -> Bytes:
    """Return a copy of rows; zeros for those behind the last one."""
    taken_NW = np.zeros((len(index_N), base_NW.shape[1]), np.uint8)
    present_N = index_N < len(base_NW)
    taken_NW[present_N] = base_NW[index_N[present_N]]
    return taken_NW


def _packed(data: bytes) -> Bytes:
    """Return the length of some bytes, and the bytes compressed."""
    packed = pa.Codec("zstd").compress(data, asbytes=True)
    return np.frombuffer(len(data).to_bytes(8, "little") + packed, np.uint8)


def _unpacked(packed: Bytes, most: int) -> bytes:
    size = int.from_bytes(packed[:8].tobytes(), "little")
    if size > most:
        raise ValueError(f"got {size:,} bytes, expected {most:,} at most")
    try:
        return bytes(pa.Codec("zstd").decompress(packed[8:].tobytes(), size, asbytes=True))
    except OSError as error:
        raise ValueError(str(error)) from error
