"""TensorFlow's checkpoints (tensor bundles), read without TensorFlow.

A bundle is ``PREFIX.index``, a sorted table of LevelDB's format (prefix-compressed keys, blocks
with a CRC-32C each) that holds a ``BundleEntryProto`` for each tensor, and ``PREFIX.data-*-of-*``,
the tensors' bytes. The tensor of a partitioned variable has an entry without bytes, which lists the
slices that other entries hold.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.data.protobuf import (
    UNREADABLE,
    Message,
    WireError,
    messages,
    number,
    read_message,
    read_varint,
    signed,
)
from widedeep.data.tfrecord_input import masked_checksum
from widedeep.errors import CheckpointError, nearest

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # compression, checksum

# DataType (types.proto): number, name, NumPy's type.
_TYPES: dict[int, tuple[str, type[np.generic] | None]] = {
    1: ("float32", np.float32),
    2: ("float64", np.float64),
    3: ("int32", np.int32),
    4: ("uint8", np.uint8),
    5: ("int16", np.int16),
    6: ("int8", np.int8),
    7: ("string", None),
    9: ("int64", np.int64),
    10: ("bool", np.bool_),
    14: ("bfloat16", None),
    17: ("uint16", np.uint16),
    19: ("float16", np.float16),
    22: ("uint32", np.uint32),
    23: ("uint64", np.uint64),
}
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key that a checkpoint of ``tf.train.Checkpoint`` or Keras has, and an estimator's has not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor is."""

    dtype: int  # Its number in types.proto
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0  # masked
    # Of a partitioned tensor: for each slice its first index and length by axis
    slices: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def type_name(self) -> str:
        """Name of the type."""
        return _TYPES.get(self.dtype, (f"type {self.dtype}", None))[0]


class TensorBundle:
    """The tensors of a TensorFlow checkpoint by name; the files are mapped, never read whole.

    Args:
        prefix: ``model.ckpt-1000``: the path of the index without ``.index``.

    Raises:
        CheckpointError: If the index or a shard is missing or damaged.

    Example:
        >>> from widedeep.importing import TensorBundle
        >>> TensorBundle("model.ckpt-7")
        Traceback (most recent call last):
            ...
        widedeep.errors.CheckpointError: model.ckpt-7.index: got no such file, expected the index of
        a TensorFlow checkpoint; name a checkpoint (model.ckpt-1000) or the folder that holds it
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(prefix)
        self.index = self.prefix.with_name(f"{self.prefix.name}.index")
        self._shards: dict[int, NDArray[np.uint8]] = {}
        try:
            entries = dict(_table_entries(self.index))
            header = read_message(entries.pop(b"", b""))
            self.n_shards = number(header, 1)
            if not self.n_shards:
                raise WireError("has no header")
            if number(header, 2):
                raise CheckpointError(
                    f"{self.index}: was written on a big-endian machine; save the checkpoint again "
                    "on one of x86-64 or arm64"
                )
            self._entries = {key: _stored(read_message(value)) for key, value in entries.items()}
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.index}: got no such file, expected the index of a TensorFlow checkpoint; "
                "name a checkpoint (model.ckpt-1000) or the folder that holds it"
            ) from error
        except UNREADABLE as error:
            raise CheckpointError(
                f"{self.index}: {error}: the index is damaged, or no TensorFlow checkpoint's; use "
                "another checkpoint"
            ) from error
        self.tensors: dict[str, StoredTensor] = {
            key.decode("utf-8", "replace"): entry
            for key, entry in sorted(self._entries.items())
            if not key.startswith(b"\0")  # the slices of partitioned tensors
        }

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entry(name).shape

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor; a view of the file, or a copy of one in slices.

        Raises:
            CheckpointError: If there is no such tensor, its shard is missing or cut off, its
                checksum is wrong, or its type is text or has no counterpart in NumPy.
        """
        entry = self._entry(name)
        if not entry.slices:
            return self._view(name, entry)
        whole = np.empty(entry.shape, self._dtype(name, entry))
        covered = 0
        for extents in entry.slices:
            key = _slice_key(name, extents, entry.shape)
            if key not in self._entries:
                raise CheckpointError(
                    f"{self.index}: tensor {name!r}: its slice {_shown(extents)} is missing; use "
                    "another checkpoint"
                )
            part = self._view(name, self._entries[key])
            place = tuple(
                slice(start, start + length if length >= 0 else size)
                for (start, length), size in zip(extents, entry.shape, strict=True)
            )
            if whole[place].shape != part.shape:
                raise CheckpointError(
                    f"{self.index}: tensor {name!r}: its slice {_shown(extents)} has the shape "
                    f"{part.shape}; the index is damaged, use another checkpoint"
                )
            whole[place] = part
            covered += part.size
        if covered != whole.size:
            raise CheckpointError(
                f"{self.index}: tensor {name!r}: its slices hold {covered:,} of {whole.size:,} "
                "values; the index is damaged, use another checkpoint"
            )
        return whole

    def _entry(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.index}: got no tensor {name!r}; {nearest(name, self.tensors)}"
            )
        return self.tensors[name]

    def _dtype(self, name: str, entry: StoredTensor) -> np.dtype[Any]:
        dtype = _TYPES.get(entry.dtype, ("", None))[1]
        if dtype is None:
            raise CheckpointError(
                f"{self.index}: tensor {name!r}: got {entry.type_name}, expected numbers of a type "
                "that NumPy has; cast the variable to float32 and save the checkpoint again"
            )
        return np.dtype(dtype).newbyteorder("<")

    def _view(self, name: str, entry: StoredTensor) -> NDArray[Any]:
        dtype = self._dtype(name, entry)
        path, shard = self._shard(name, entry.shard)
        n_values = int(np.prod(entry.shape, dtype=np.int64))
        if entry.offset < 0 or entry.offset + entry.size > len(shard):
            raise CheckpointError(
                f"{path}: tensor {name!r}: ends at byte {entry.offset + entry.size:,} of "
                f"{len(shard):,}; the file is cut off, copy it again"
            )
        if n_values * dtype.itemsize != entry.size:
            raise CheckpointError(
                f"{self.index}: tensor {name!r}: {entry.type_name} of shape {entry.shape} in "
                f"{entry.size:,} bytes; the index is damaged, use another checkpoint"
            )
        raw = shard[entry.offset : entry.offset + entry.size]
        if masked_checksum(raw) != entry.checksum:
            raise CheckpointError(
                f"{path}: tensor {name!r}: its checksum is wrong, the file is damaged; copy it "
                "again, or use another checkpoint"
            )
        if entry.offset % dtype.itemsize:
            raw = raw.copy()
        return raw.view(dtype).reshape(entry.shape)

    def _shard(self, name: str, number: int) -> tuple[Path, NDArray[np.uint8]]:
        suffix = f".data-{number:05d}-of-{self.n_shards:05d}"
        path = self.prefix.with_name(self.prefix.name + suffix)
        if number not in self._shards:
            try:
                empty = not path.stat().st_size
                self._shards[number] = (
                    np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
                )
            except FileNotFoundError as error:
                raise CheckpointError(
                    f"{path}: got no such file, which holds tensor {name!r}; copy all files of the "
                    f"checkpoint: {self.prefix.name}.*"
                ) from error
        return path, self._shards[number]


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the prefix of a checkpoint: of a folder, the one that its ``checkpoint`` file names.

    Args:
        path: ``model.ckpt-1000``, one of its files, or a folder of checkpoints.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(path)
    if path.is_dir():
        marker, prefixes = path / "checkpoint", bundle_prefixes(path)
        if marker.is_file():
            text = marker.read_text(encoding="utf-8", errors="replace")
            match = re.search(r'^model_checkpoint_path:\s*"(.*)"', text, re.MULTILINE)
            newest = None if match is None else path / Path(match.group(1)).name
            if newest is not None and newest in prefixes:
                return newest
        if prefixes:
            return prefixes[-1]
        raise CheckpointError(
            f"{path}: got no TensorFlow checkpoint (*.index), expected the folder of an "
            "estimator's model, or model.ckpt-1000 in it"
        )
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    return path.with_name(name)


def bundle_prefixes(folder: Path) -> list[Path]:
    """Return the prefixes of a folder's checkpoints, by step."""
    prefixes = [path.with_suffix("") for path in folder.glob("*.index")]

    def step(path: Path) -> tuple[int, str]:
        match = re.search(r"-(\d+)$", path.name)
        return (int(match.group(1)) if match else -1, path.name)

    return sorted(prefixes, key=step)


def _table_entries(path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the keys and values of a table in LevelDB's format."""
    data = memoryview(path.read_bytes())
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise WireError("ends without the mark of a table")
    footer = data[-_FOOTER:]
    at = 0
    for _ in range(2):  # the index of meta blocks, which has no use here
        _, at = read_varint(footer, at)
    offset, at = read_varint(footer, at)
    size, at = read_varint(footer, at)
    for _, handle in _block_entries(_block(data, offset, size)):
        begin, at = read_varint(handle, 0)
        length, _ = read_varint(handle, at)
        yield from _block_entries(_block(data, begin, length))


def _block(data: memoryview, offset: int, size: int) -> memoryview:
    stop = offset + size
    if stop + _TRAILER > len(data) - _FOOTER:
        raise WireError(f"names a block that ends at byte {stop:,} of {len(data):,}")
    checksum = struct.unpack("<I", data[stop + 1 : stop + _TRAILER])[0]
    if masked_checksum(np.frombuffer(data[offset : stop + 1], np.uint8)) != checksum:
        raise WireError(f"has a block with a wrong checksum (byte {offset:,})")
    if data[stop]:
        raise WireError(f"has a compressed block (byte {offset:,}), which TensorFlow never writes")
    return data[offset:stop]


def _block_entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    n_restarts = struct.unpack("<I", block[-4:])[0]
    stop = len(block) - 4 - 4 * n_restarts
    if stop < 0:
        raise WireError(f"has a block of {len(block)} bytes with {n_restarts:,} restarts")
    at, key = 0, b""
    while at < stop:
        shared, at = read_varint(block, at)
        own, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key) or at + own + size > stop:
            raise WireError("has an entry that does not fit its block")
        key = key[:shared] + bytes(block[at : at + own])
        at += own
        yield key, block[at : at + size]
        at += size


def _stored(entry: Message) -> StoredTensor:
    return StoredTensor(
        dtype=number(entry, 1),
        shape=_shape(entry),
        shard=number(entry, 3),
        offset=signed(entry, 4),
        size=signed(entry, 5),
        checksum=number(entry, 6),
        slices=tuple(
            tuple(_extent(read_message(extent)) for extent in messages(read_message(one), 1))
            for one in messages(entry, 7)
        ),
    )


def _shape(entry: Message) -> tuple[int, ...]:
    shapes = messages(entry, 2)
    dims = messages(read_message(shapes[-1]), 2) if shapes else []
    shape = tuple(signed(read_message(dim), 1) for dim in dims)
    if min(shape, default=0) < 0:
        raise WireError(f"has a tensor of shape {shape}")
    return shape


def _extent(extent: Message) -> tuple[int, int]:
    """Return the first index and the length of a slice along one axis; -1: all of it."""
    return (signed(extent, 1), signed(extent, 2) if 2 in extent else -1)


def _shown(extents: tuple[tuple[int, int], ...]) -> str:
    return ":".join("-" if n < 0 else f"{start},{n}" for start, n in extents)


def _slice_key(name: str, extents: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> bytes:
    """Return the key of a slice: an ordered code of 0, the name, the rank, starts and lengths."""
    key = b"\0" + name.encode() + b"\0\1" + _ordered(len(shape))
    for start, length in extents:
        key += _ordered_signed(start) + _ordered_signed(length)
    return key


def _ordered(value: int) -> bytes:
    """Return the ordered code of a number >= 0: how many bytes it has, and those."""
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(raw)]) + raw


def _ordered_signed(value: int) -> bytes:
    """Return the ordered code of a signed number: 7 bits a byte, headed by as many ones."""
    magnitude = ~value if value < 0 else value
    n_bytes = max(1, -(-(magnitude.bit_length() + 1) // 7))
    bits = value & ((1 << (8 * n_bytes)) - 1)
    header = ((1 << n_bytes) - 1) << (7 * n_bytes)  # n ones, then zeros, in 8 n bits
    return (bits ^ header).to_bytes(n_bytes, "big")
