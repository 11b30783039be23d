"""Ids of one schema in another: the same value may stand at another place, or not at all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.features import Bucketized, Categorical, Crossed, Feature, Numeric
from widedeep.schema import FIRST_KNOWN_ID, Schema

__all__ = ["IdMap", "map_ids", "tuples_as_bytes"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IdMap:
    """Where each id of a feature stood in an older schema.

    Args:
        old_of_N: int64, the old id of each id 0 ... N - 1; -1 where there is none.
        why: Why ids are not found, in a few words; "" if only new values are.
    """

    old_of_N: NDArray[np.int64]
    why: str = ""

    @property
    def found(self) -> int:
        """Ids that stood in the older schema."""
        return int(np.count_nonzero(self.old_of_N >= 0))

    @property
    def is_identity(self) -> bool:
        """True if every id is what it was."""
        return bool((self.old_of_N == np.arange(len(self.old_of_N))).all())


def map_ids(new: Schema, old: Schema, name: str) -> IdMap:
    """Find a feature's ids, or those of a raw column that a cross reads, in an older schema.

    Values are compared, never places: vocabularies by their bytes, crosses by the values of their
    parts, buckets by their two ends. Where values cannot be compared (another number of hash
    buckets, another kind of feature), no id is found, and :attr:`IdMap.why` says it.

    Args:
        new: Has the feature.
        old: May have it.
        name: The feature's name, or the raw column's.

    Raises:
        SchemaError: If ``new`` has no such feature.

    Example:
        >>> import widedeep as wd
        >>> def schema(*jobs):
        ...     spec = wd.FeatureSpec(features=wd.categorical("job", vocabulary=list(jobs)))
        ...     return wd.fit_schema(spec, [{"job": "cook"}])
        >>> map_ids(schema("cook", "nurse", "smith"), schema("smith", "cook"), "job").old_of_N
        array([ 0,  1,  3, -1,  2])
    """
    size = new.id_count(name)
    mine, theirs = new.spec.by_name.get(name), old.spec.by_name.get(name)
    if theirs is None and old.vocabulary_key(name) not in old.vocabularies:
        return _nothing(size, "not in the old model")
    if type(mine) is not type(theirs):
        return _nothing(size, "another kind of feature")
    if isinstance(mine, Numeric) and isinstance(theirs, Numeric):
        if (mine.size, mine.transform) != (theirs.size, theirs.transform):
            return _nothing(size, "another transform of the number")
        return IdMap(old_of_N=np.arange(size))
    if isinstance(mine, Bucketized):
        return IdMap(old_of_N=_buckets(new.boundaries[name], old.boundaries[name]))
    if isinstance(mine, Crossed) and isinstance(theirs, Crossed):
        return _crossed(new, old, mine, theirs)
    return _categorical(new, old, name, mine, theirs)


def _nothing(size: int, why: str) -> IdMap:
    return IdMap(old_of_N=np.full(size, -1, np.int64), why=why)


def _reserved(size: int) -> NDArray[np.int64]:
    """Unseen and missing are what they were; the rest is to be found."""
    old_of_N = np.full(size, -1, np.int64)
    old_of_N[:FIRST_KNOWN_ID] = np.arange(FIRST_KNOWN_ID)
    return old_of_N


def _categorical(
    new: Schema, old: Schema, name: str, mine: Feature | None, theirs: Feature | None
) -> IdMap:
    size, shift, old_shift = new.id_count(name), FIRST_KNOWN_ID, FIRST_KNOWN_ID
    if isinstance(mine, Categorical) and isinstance(theirs, Categorical):
        if mine.hash_buckets or theirs.hash_buckets:
            if mine.hash_buckets != theirs.hash_buckets:
                return _nothing(
                    size, f"{theirs.hash_buckets} hash buckets became {mine.hash_buckets}"
                )
            return IdMap(old_of_N=np.arange(size))
        if mine.num_buckets or theirs.num_buckets:
            if not (mine.num_buckets and theirs.num_buckets):
                return _nothing(size, "integers are no longer ids by themselves, or are now")
            ids = np.arange(size)
            return IdMap(old_of_N=np.where(ids < old.id_count(name), ids, -1))
        shift, old_shift = shift + mine.oov_buckets, old_shift + theirs.oov_buckets
    values = new.vocabularies[new.vocabulary_key(name)].values
    known = old.vocabularies[old.vocabulary_key(name)].values
    if isinstance(values, np.ndarray) != isinstance(known, np.ndarray):
        return _nothing(size, "text became integers, or integers text")
    old_of_N = _reserved(size)
    if shift == old_shift:  # as many buckets for the unseen: the same hash
        old_of_N[:shift] = np.arange(shift)
    old_of_N[shift:] = _positions(pa.array(values), pa.array(known), old_shift)
    return IdMap(old_of_N=old_of_N)


def _positions(values: pa.Array, known: pa.Array, shift: int) -> NDArray[np.int64]:
    """Return where each value stands among the known ones, plus ``shift``; -1 where it does not."""
    at = pc.index_in(values, value_set=known).fill_null(-shift - 1).to_numpy(zero_copy_only=False)
    return np.asarray(at, np.int64) + shift


def _buckets(cuts: NDArray[np.float64], old_cuts: NDArray[np.float64]) -> NDArray[np.int64]:
    def ends(of: NDArray[np.float64]) -> list[tuple[float, float]]:
        edges = [-np.inf, *of.tolist(), np.inf]
        return list(itertools.pairwise(edges))

    place = {pair: at for at, pair in enumerate(ends(old_cuts))}
    old_of_N = _reserved(FIRST_KNOWN_ID + len(cuts) + 1)
    found = [place.get(pair, -FIRST_KNOWN_ID - 1) + FIRST_KNOWN_ID for pair in ends(cuts)]
    old_of_N[FIRST_KNOWN_ID:] = found
    return old_of_N


def _crossed(new: Schema, old: Schema, mine: Crossed, theirs: Crossed) -> IdMap:
    name, size = mine.name, new.id_count(mine.name)
    if mine.parts != theirs.parts:
        return _nothing(size, "crossed from other parts")
    if mine.hash_buckets or theirs.hash_buckets:
        if mine.hash_buckets != theirs.hash_buckets:
            return _nothing(size, f"{theirs.hash_buckets} hash buckets became {mine.hash_buckets}")
        for part in mine.parts:
            if isinstance(new.spec.by_name.get(part), Bucketized) and not np.array_equal(
                new.boundaries[part], old.boundaries[part]
            ):
                return _nothing(size, f"its part {part!r} has other boundaries")
        return IdMap(old_of_N=np.arange(size))
    tuples, known = new.vocabularies[name].values, old.vocabularies[name].values
    assert isinstance(tuples, np.ndarray) and isinstance(known, np.ndarray)
    old_of_N = _reserved(size)
    old_of_N[FIRST_KNOWN_ID:] = _positions(
        tuples_as_bytes(_in_old_ids(new, old, mine, tuples)), tuples_as_bytes(known), FIRST_KNOWN_ID
    )
    return IdMap(old_of_N=old_of_N)


def _in_old_ids(
    new: Schema, old: Schema, cross: Crossed, tuples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return a learned cross's part ids as the older schema numbers them; -1 for new values.

    Args:
        new: Numbers ``tuples``.
        old: Has the cross's parts too.
        cross: The cross.
        tuples: int64 (n, parts).
    """
    columns = [
        map_ids(new, old, part).old_of_N[tuples[:, at]] for at, part in enumerate(cross.parts)
    ]
    found: NDArray[np.int64] = np.stack(columns, axis=1)
    return found


def tuples_as_bytes(tuples: NDArray[np.int64]) -> pa.Array:
    """Return each row of int64 (n, parts) as one value, to be looked up."""
    rows = np.ascontiguousarray(tuples)
    width = rows.shape[1] * rows.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(rows)]
    )
