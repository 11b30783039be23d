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

_EMPTY = 'missing: "" counts as null by now, or no longer does'


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IdMap:
    """Where each id of a feature stood in an older schema."""

    old_of_N: NDArray[np.int64]  # int64, the old id of each id 0 ... N - 1; -1 where there is none
    why: str = ""  # Why ids are not found, in a few words; "" if only new values are

    @property
    def found(self) -> int:
        """Ids that stood in the older schema."""
        return int(np.count_nonzero(self.old_of_N >= 0))

    @property
    def is_identity(self) -> bool:
        """True if every id is what it was."""
        return bool((self.old_of_N == np.arange(len(self.old_of_N))).all())


def map_ids(new: Schema, old: Schema, name: str) -> IdMap:
    """Find a feature's ids, or those of a raw column that a cross reads, in an older schema."""
    size = new.id_count(name)
    mine, theirs = new.spec.by_name.get(name), old.spec.by_name.get(name)
    if theirs is None and old.vocabulary_key(name) not in old.vocabularies:
        return _nothing(size, "not in the old model")
    if type(mine) is not type(theirs):
        return _nothing(size, "another kind of feature")
    if isinstance(mine, Crossed) and isinstance(theirs, Crossed):
        return _crossed(new, old, mine, theirs)
    why = _column_change(new, old, name, mine, theirs)
    if why:
        return _nothing(size, why)
    if isinstance(mine, Numeric) and isinstance(theirs, Numeric):
        why = _number_change(new, old, mine, theirs)
        return _nothing(size, why) if why else IdMap(old_of_N=np.arange(size))
    if isinstance(mine, Bucketized):
        return IdMap(old_of_N=_buckets(new.boundaries[name], old.boundaries[name]))
    return _categorical(new, old, name, mine, theirs)


def _column_change(
    new: Schema, old: Schema, name: str, mine: Feature | None, theirs: Feature | None
) -> str:
    """Return why a feature's column holds other values than it did, or "" if it does not."""
    columns = [getattr(feature, "source", name) for feature in (mine, theirs)]
    if columns[0] != columns[1]:
        return f"read from column {columns[0]!r}, before from {columns[1]!r}"
    types = [schema.columns.get(columns[0]) for schema in (new, old)]
    if types[0] is None or types[1] is None:
        return ""
    storage = [kind.storage for kind in types if kind is not None]
    known = None not in storage and storage[0] != storage[1]
    if known and any(kind is not None and kind.is_time for kind in types):
        return f"its column held {storage[1]} and holds {storage[0]}"
    if isinstance(mine, Numeric | Bucketized):
        return ""
    kinds = [kind.kind for kind in types if kind is not None]
    return "" if kinds[0] == kinds[1] else f"its column held {kinds[1]} and holds {kinds[0]}"


def _number_change(new: Schema, old: Schema, mine: Numeric, theirs: Numeric) -> str:
    """Return why a number becomes another input than it did, or "" if it does not."""
    for option in ("size", "transform", "missing"):
        now, before = getattr(mine, option), getattr(theirs, option)
        if now != before:
            return f"{option} {before!r} became {now!r}"
    now_fit, before_fit = new.numerics.get(mine.name), old.numerics.get(mine.name)
    if now_fit is None or before_fit is None:
        return ""
    pairs = [
        (now_fit.shift, before_fit.shift),
        (now_fit.scale, before_fit.scale),
        *itertools.zip_longest(now_fit.boundaries, before_fit.boundaries),
    ]
    if all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs):
        return ""
    return f"the {mine.transform} transform was learned anew (grow= keeps the older one)"


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
            if mine.empty_as_null != theirs.empty_as_null:
                return _nothing(size, _EMPTY)
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
    why = _unseen_and_missing(old_of_N, mine, theirs)
    old_of_N[shift:] = _positions(pa.array(values), pa.array(known), old_shift)
    return IdMap(old_of_N=old_of_N, why=why)


def _unseen_and_missing(
    old_of_N: NDArray[np.int64], mine: Feature | None, theirs: Feature | None
) -> str:
    """Find the ids of what is no known value, in place; return which rules are others."""
    why = []
    rules = [
        (getattr(f, "oov_buckets", 0), getattr(f, "oov", "id"), getattr(f, "empty_as_null", False))
        for f in (mine, theirs)
    ]
    (buckets, oov, empty), (old_buckets, old_oov, old_empty) = rules
    unseen = np.array([0, *range(FIRST_KNOWN_ID, FIRST_KNOWN_ID + buckets)])
    if buckets == old_buckets and oov == old_oov:  # as many buckets: the same hash
        old_of_N[unseen] = unseen
    else:
        old_of_N[unseen] = -1
        ways = [
            f"{n} buckets" if n else repr(rule)
            for n, rule in ((old_buckets, old_oov), (buckets, oov))
        ]
        why.append(f"unseen: {ways[0]} became {ways[1]}")
    if empty != old_empty:
        old_of_N[1] = -1
        why.append(_EMPTY)
    return "; ".join(why)


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
            why = _key_change(new, old, part)
            if why:
                return _nothing(size, f"its part {part!r}: {why}")
        return IdMap(old_of_N=np.arange(size))
    tuples, known = new.vocabularies[name].values, old.vocabularies[name].values
    assert isinstance(tuples, np.ndarray) and isinstance(known, np.ndarray)
    old_of_N = _reserved(size)
    old_of_N[FIRST_KNOWN_ID:] = _positions(
        tuples_as_bytes(_in_old_ids(new, old, mine, tuples)), tuples_as_bytes(known), FIRST_KNOWN_ID
    )
    changes = [(part, map_ids(new, old, part).why) for part in mine.parts]
    why = "; ".join(f"its part {part!r}: {change}" for part, change in changes if change)
    if why:  # which combinations count as unseen follows from the parts' rules
        old_of_N[0] = -1
    return IdMap(old_of_N=old_of_N, why=why)


def _key_change(new: Schema, old: Schema, part: str) -> str:
    """Return why a part of a hashed cross is hashed otherwise than it was, or ""."""
    mine, theirs = new.spec.by_name.get(part), old.spec.by_name.get(part)
    if type(mine) is not type(theirs):
        return "another kind of feature"
    why = _column_change(new, old, part, mine, theirs)
    if why:
        return why
    if isinstance(mine, Bucketized):
        same = np.array_equal(new.boundaries[part], old.boundaries[part])
        return "" if same else "other boundaries"
    if not isinstance(mine, Categorical) or not isinstance(theirs, Categorical):
        return ""
    for option in ("hash_buckets", "num_buckets", "oov", "oov_buckets", "empty_as_null"):
        if getattr(mine, option) != getattr(theirs, option):
            return f"{option} {getattr(theirs, option)!r} became {getattr(mine, option)!r}"
    # The values of a given vocabulary are hashed by their places in it, those of others as text.
    given = [f.vocabulary is not None or f.vocabulary_file is not None for f in (mine, theirs)]
    if given[0] != given[1] or (given[0] and not map_ids(new, old, part).is_identity):
        return "another vocabulary"
    return ""


def _in_old_ids(
    new: Schema, old: Schema, cross: Crossed, tuples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return a learned cross's part ids as the older schema numbers them; -1 for new values."""
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
