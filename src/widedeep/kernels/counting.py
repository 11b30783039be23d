"""How often each key occurred: a hash table of byte strings, compared byte by byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from widedeep import _native
from widedeep.kernels.checks import check_vector

__all__ = ["CountTable"]


class CountTable:
    """Counts of byte strings in a bounded amount of memory.

    Args:
        limit_bytes: Memory of keys, counts and the hash table, at least 1. A full table refuses
            further keys; an empty one takes at least one.

    Example:
        >>> import numpy as np
        >>> table = CountTable(1 << 20)
        >>> data = np.frombuffer(b"abaab", np.uint8)
        >>> table.add(data, np.array([0, 1, 2, 3, 5]))
        4
        >>> order, _ = table.partitions(shift=0, bits=0)
        >>> keys, offsets, counts = table.take(order)
        >>> bytes(keys), offsets, counts
        (b'abab', array([0, 1, 2, 4]), array([2, 1, 1]))
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes: got {limit_bytes}, expected at least 1")
        self._table = _native.CountTable(limit_bytes)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def nbytes(self) -> int:
        """Bytes in use, without what is reserved ahead (at most 1 MiB)."""
        return int(self._table.nbytes)

    def add(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        counts: NDArray[np.int64] | None = None,
        first: int = 0,
    ) -> int:
        """Count keys from ``first`` on until all are in or the table is full.

        Args:
            data: The keys' bytes; key i is ``data[offsets[i] : offsets[i + 1]]``.
            offsets: int64, ascending within ``data``, one more than keys.
            counts: int64 occurrences of each key, at least 0, or None for 1 each. A key that
                counts 0 is passed over.
            first: 0 <= first <= keys.

        Returns:
            The first key that is not in; the number of keys if all are.

        Raises:
            ValueError: If a key is longer than half a mebibyte, or an array is wrong.
        """
        check_vector("data", data, np.uint8)
        check_vector("offsets", offsets, np.int64)
        n_keys = len(offsets) - 1
        if not 0 <= first <= n_keys:
            raise ValueError(f"first: got {first}, expected it in [0, {n_keys}]")
        _check_offsets(offsets, len(data))
        if counts is not None:
            check_vector("counts", counts, np.int64, n_keys)
            if n_keys and counts.min() < 0:
                raise ValueError(f"counts: got {int(counts.min())}, expected at least 0")
        return int(self._table.add(data, offsets, counts, first))

    def partitions(self, shift: int, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Group the keys by ``bits`` bits of their hashes, those below the top ``shift``.

        Args:
            shift: 0 <= shift < 64.
            bits: 0 <= bits <= 16, shift + bits <= 64.

        Returns:
            A reference to each key, valid until the table changes, and where each partition
            starts: partition p is ``order[starts[p] : starts[p + 1]]``.
        """
        if not (0 <= bits <= 16 and 0 <= shift < 64 and shift + bits <= 64):
            raise ValueError(f"bits: got {bits} below {shift}, expected them within 64, at most 16")
        order = np.empty(len(self), np.uint32)
        starts = np.zeros((1 << bits) + 1, np.int64)
        self._table.partition(shift, bits, order, starts)
        return order, starts

    def take(
        self, order: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Return bytes, offsets and counts of the keys at these references.

        Args:
            order: References from :meth:`partitions`.
        """
        check_vector("order", order, np.uint32)
        data = np.empty(self._table.key_bytes(order), np.uint8)
        offsets = np.empty(len(order) + 1, np.int64)
        counts = np.empty(len(order), np.int64)
        self._table.take(order, data, offsets, counts)
        return data, offsets, counts

    def clear(self) -> None:
        """Forget all keys and free their memory."""
        self._table.clear()


def _check_offsets(offsets: NDArray[np.int64], n_bytes: int) -> None:
    lengths = np.diff(offsets)
    if not len(lengths):
        return
    if offsets[0] < 0 or offsets[-1] > n_bytes or int(lengths.min()) < 0:
        raise ValueError(f"offsets: not ascending within [0, {n_bytes}]")
    longest = int(_native.CountTable.MAX_KEY_BYTES)
    if int(lengths.max()) > longest:
        raise ValueError(
            f"offsets: key {int(lengths.argmax())} has {int(lengths.max())} bytes, "
            f"expected at most {longest}"
        )
