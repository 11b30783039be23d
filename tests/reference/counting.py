"""The count table in plain Python: what the C++ must compute, with the same signatures."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["CountTable"]

_RECORD_BYTES, _SLOT_BYTES, _FIRST_SLOTS = 24, 8, 64


class CountTable:
    """A dict that says how much memory the C++ table would take."""

    MAX_KEY_BYTES = 1 << 19

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all keys."""
        self._counts: dict[bytes, int] = {}
        self._key_bytes = 0
        self._n_slots = _FIRST_SLOTS

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def nbytes(self) -> int:
        """Bytes that the C++ table would use."""
        records = len(self._counts) * _RECORD_BYTES + self._key_bytes
        return records + self._n_slots * _SLOT_BYTES

    def add(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        counts: NDArray[np.int64] | None = None,
        first: int = 0,
    ) -> int:
        """Count keys from ``first`` on; return the first that is not in."""
        for i in range(first, len(offsets) - 1):
            count = 1 if counts is None else int(counts[i])
            key = data[offsets[i] : offsets[i + 1]].tobytes()
            if count == 0:
                continue
            if key not in self._counts and not self._reserve(-(-len(key) // 8) * 8):
                return i
            self._counts[key] = self._counts.get(key, 0) + count
        return len(offsets) - 1

    def _reserve(self, key_bytes: int) -> bool:
        grows = (len(self) + 1) * 8 > self._n_slots * 5
        more = _RECORD_BYTES + key_bytes + (self._n_slots * _SLOT_BYTES if grows else 0)
        if len(self) and self.nbytes + more > self._limit_bytes:
            return False
        self._n_slots *= 2 if grows else 1
        self._key_bytes += key_bytes
        return True

    def partitions(self, shift: int, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the keys' numbers, grouped by hash, and where each partition starts."""
        mask = (1 << bits) - 1
        parts = np.array(
            [_hash(key) >> (64 - shift - bits) & mask for key in self._counts], np.int64
        )
        starts = np.concatenate([[0], np.cumsum(np.bincount(parts, minlength=1 << bits))])
        return np.argsort(parts, kind="stable").astype(np.uint32), starts.astype(np.int64)

    def take(
        self, order: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Return bytes, offsets and counts of the keys at these numbers."""
        items = list(self._counts.items())
        picked = [items[i] for i in order]
        data = np.frombuffer(b"".join(key for key, _ in picked), np.uint8)
        offsets = np.cumsum([0, *(len(key) for key, _ in picked)]).astype(np.int64)
        return data, offsets, np.array([count for _, count in picked], np.int64)

    def ranked(
        self, min_count: int, max_size: int | None, tail_size: int, tail_bytes: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Return bytes, offsets and counts of the leading keys and of a tail behind them."""
        keys = list(self._counts)
        order = sorted(range(len(keys)), key=lambda i: (-self._counts[keys[i]], keys[i]))
        n_leaders = sum(count >= min_count for count in self._counts.values())
        n_leaders = n_leaders if max_size is None else min(n_leaders, max_size)
        tail = order[n_leaders : n_leaders + tail_size]
        if tail_bytes is not None:
            ends = np.cumsum([len(keys[i]) for i in tail])
            tail = tail[: int((ends <= tail_bytes).sum())]
        return self.take(np.array([*order[:n_leaders], *tail], np.uint32))


def _hash(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
