"""IdMap: where a feature's ids stood in an older schema, for a warm start."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.features.learned import FIRST_KNOWN_ID, Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IdMap:
    """Where each id of a feature stood in an older schema."""

    old_of_N: NDArray[np.int64]  # (N,) the old id of each id 0 ... N - 1; -1 where there is none
    why: str = ""  # Why ids have no old one, in a few words; "" if only new values have none

    @property
    def matched(self) -> int:
        """Number of ids that stood in the older schema."""
        return int(np.count_nonzero(self.old_of_N >= 0))

    @property
    def is_identity(self) -> bool:
        """True if every id is what it was."""
        return bool((self.old_of_N == np.arange(len(self.old_of_N))).all())


def same_ids(size: int) -> IdMap:
    """Return the map of ids that are what they were."""
    return IdMap(old_of_N=np.arange(size))


def no_ids(size: int, why: str) -> IdMap:
    """Return the map of ids that all begin anew."""
    return IdMap(old_of_N=np.full(size, -1, np.int64), why=why)


def reserved_ids(size: int) -> NDArray[np.int64]:
    """Return old ids (size,): unseen and missing are what they were, -1 for those to be matched."""
    old_of_N = np.full(size, -1, np.int64)
    old_of_N[:FIRST_KNOWN_ID] = np.arange(FIRST_KNOWN_ID)
    return old_of_N


def match_values(values: pa.Array, older: pa.Array, shift: int) -> NDArray[np.int64]:
    """Return each value's position among the older ones plus ``shift``, -1 for new values."""
    index = pc.index_in(values, value_set=older).fill_null(-shift - 1)
    return np.asarray(index.to_numpy(zero_copy_only=False), np.int64) + shift


def tuples_as_bytes(tuples: NDArray[np.int64]) -> pa.Array:
    """Return each row of int64 (n, parts) as one value, to be looked up."""
    rows = np.ascontiguousarray(tuples)
    width = rows.shape[1] * rows.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(rows)]
    )


def match_vocabulary(new: Vocabulary, old: Vocabulary, first_ids: tuple[int, int]) -> IdMap:
    """Match two vocabularies by value; ``first_ids`` are those of their first values."""
    first, old_first = first_ids
    size = first + len(new)
    if isinstance(new.values, np.ndarray) != isinstance(old.values, np.ndarray):
        return no_ids(size, "text became integers, or integers text")
    old_of_N = reserved_ids(size)
    old_of_N[first:] = match_values(pa.array(new.values), pa.array(old.values), old_first)
    return IdMap(old_of_N=old_of_N)


def match_buckets(cuts: NDArray[np.float64], old_cuts: NDArray[np.float64]) -> IdMap:
    """Match the buckets between cut points by their bounds."""
    old_id = {bounds: FIRST_KNOWN_ID + i for i, bounds in enumerate(_bounds(old_cuts))}
    old_of_N = reserved_ids(FIRST_KNOWN_ID + len(cuts) + 1)
    old_of_N[FIRST_KNOWN_ID:] = [old_id.get(bounds, -1) for bounds in _bounds(cuts)]
    return IdMap(old_of_N=old_of_N)


def match_cut_points(cuts: NDArray[np.float64], old_cuts: NDArray[np.float64]) -> IdMap:
    """Match cut points that have an id each by their value."""
    old_of_N = reserved_ids(FIRST_KNOWN_ID + len(cuts))
    old_of_N[FIRST_KNOWN_ID:] = match_values(pa.array(cuts), pa.array(old_cuts), FIRST_KNOWN_ID)
    return IdMap(old_of_N=old_of_N)


def _bounds(cuts: NDArray[np.float64]) -> list[tuple[float, float]]:
    return list(itertools.pairwise([-np.inf, *cuts.tolist(), np.inf]))
