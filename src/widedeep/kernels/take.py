"""Examples picked out of an encoded chunk, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep import _native
from widedeep.kernels.checks import check_batch, check_vector

__all__ = ["take_dense", "take_rows"]


def take_rows(
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    rows_B: NDArray[np.int64],
    threads: int = 1,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
    """Return the ids, offsets and values of the examples at the given positions.

    Args:
        ids_N: int64 feature-local ids.
        offsets_BF: int64 of length B * F + 1.
        values_N: float32 weight of each id, or None.
        n_features: F, feature slots of the batch.
        rows_B: int64 positions, each 0 <= row < B, in any order; repeats are allowed.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If a position lies outside, offsets are not ascending, or a type is wrong.

    Example:
        >>> import numpy as np
        >>> ids, offsets, values = take_rows(
        ...     np.array([7, 8, 9]), np.array([0, 1, 3]), None, 1, np.array([1, 0]))
        >>> ids, offsets
        (array([8, 9, 7]), array([0, 2, 3]))
    """
    n_examples = check_batch(ids_N, offsets_BF, values_N, n_features)
    _check_positions(rows_B, n_examples)
    offsets = np.empty(len(rows_B) * n_features + 1, np.int64)
    n_ids = int(_native.take_offsets(ids_N, offsets_BF, n_features, rows_B, offsets))
    if n_ids < 0:
        raise ValueError(
            f"offsets_BF: not ascending within [0, {len(ids_N)}] at one of the positions"
        )
    ids = np.empty(n_ids, np.int64)
    values = None if values_N is None else np.empty(n_ids, np.float32)
    _native.take_ids(ids_N, offsets_BF, values_N, n_features, rows_B, offsets, ids, values, threads)
    return ids, offsets, values


def take_dense(array_BK: NDArray[Any], rows_B: NDArray[np.int64], threads: int = 1) -> NDArray[Any]:
    """Return ``array_BK[rows_B]``, copied by several threads.

    Args:
        array_BK: Contiguous array of any dtype without Python objects; rows are its first
            dimension.
        rows_B: int64 positions, each 0 <= row < B, in any order; repeats are allowed.
        threads: Threads to use.

    Raises:
        ValueError: If a position lies outside, or the array is not contiguous.

    Example:
        >>> import numpy as np
        >>> take_dense(np.array([[1, 2], [3, 4]]), np.array([1, 1]))
        array([[3, 4],
               [3, 4]])
    """
    if not array_BK.flags.c_contiguous or array_BK.dtype.hasobject or array_BK.ndim < 1:
        raise ValueError(
            f"array_BK: got {array_BK.dtype} of shape {array_BK.shape}, expected a contiguous "
            "array of plain numbers"
        )
    _check_positions(rows_B, len(array_BK))
    out = np.empty((len(rows_B), *array_BK.shape[1:]), array_BK.dtype)
    row_bytes = array_BK.dtype.itemsize * int(np.prod(array_BK.shape[1:]))
    if out.nbytes:
        _native.take_dense(_bytes(array_BK), rows_B, row_bytes, _bytes(out), threads)
    return out


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _check_positions(rows_B: NDArray[np.int64], n_examples: int) -> None:
    check_vector("rows_B", rows_B, np.int64)
    if not len(rows_B):
        return
    low, high = int(rows_B.min()), int(rows_B.max())
    if low < 0 or high >= n_examples:
        raise ValueError(
            f"rows_B: got positions {low} to {high}, expected them in [0, {n_examples})"
        )
