"""Writes tensor bundles as TensorFlow does, to test their reader without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from widedeep.importing.tensor_bundle import _slice_key, masked_checksum

TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
_BLOCK = 200  # bytes, so that small bundles have several blocks
_RESTART = 4  # entries


def varint(value: int) -> bytes:
    """A number in groups of seven bits."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def checksum(data: bytes) -> int:
    """The masked checksum of bytes."""
    return masked_checksum(np.frombuffer(data, np.uint8))


def entry(dtype: int, shape: tuple[int, ...], shard: int, offset: int, data: bytes) -> bytes:
    """The entry of a tensor."""
    dims = b"".join(field(2, field(1, size)) for size in shape)
    head = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset)
    return head + field(5, len(data)) + varint(6 << 3 | 5) + struct.pack("<I", checksum(data))


def table(entries: Mapping[bytes, bytes]) -> bytes:
    """A sorted table with blocks of a few entries."""
    out, index, pending = b"", [], []

    def flush() -> None:
        nonlocal out
        if pending:
            raw = _block(pending)
            index.append((pending[-1][0], varint(len(out)) + varint(len(raw))))
            out += raw + b"\0" + struct.pack("<I", checksum(raw + b"\0"))
            pending.clear()

    for key, value in sorted(entries.items()):
        pending.append((key, value))
        if sum(len(k) + len(v) for k, v in pending) > _BLOCK:
            flush()
    flush()
    handles = b""
    for raw in (_block([]), _block(index)):
        handles += varint(len(out)) + varint(len(raw))
        out += raw + b"\0" + struct.pack("<I", checksum(raw + b"\0"))
    return out + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % _RESTART == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, Any],
    *,
    shards: int = 1,
    parts: Mapping[str, int] | None = None,
    big_endian: bool = False,
) -> Path:
    """Write a bundle; `parts` cuts tensors along their first axis."""
    data, entries = [b""] * shards, {b"": field(1, shards) + field(2, int(big_endian))}

    def put(array: Any) -> bytes:
        shard = len(entries) % shards
        raw = np.ascontiguousarray(array).tobytes()
        line = entry(TYPES[array.dtype.name], array.shape, shard, len(data[shard]), raw)
        data[shard] += raw
        return line

    for name, value in tensors.items():
        array = np.asarray(value)
        if name not in (parts or {}):
            entries[name.encode()] = put(array)
            continue
        slices, first = b"", 0
        for part in np.array_split(array, parts[name]):
            extents = ((first, len(part)), *[(0, -1)] * (array.ndim - 1))
            entries[_slice_key(name, extents, array.shape)] = put(part)
            first += len(part)
            slices += field(
                7,
                b"".join(
                    field(1, (field(1, start) if start else b"") + (field(2, n) if n >= 0 else b""))
                    for start, n in extents
                ),
            )
        dims = b"".join(field(2, field(1, size)) for size in array.shape)
        whole = field(1, TYPES[array.dtype.name]) + field(2, dims)
        entries[name.encode()] = whole + slices
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for number, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}").write_bytes(raw)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries))
    return prefix
