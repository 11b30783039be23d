"""An older schema extended by new data: its ids keep their place, new ones follow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.counting import ValueCounter
from widedeep.data.fit_plan import FitPlan
from widedeep.features import Bucketized, Categorical, Crossed, Feature, FeatureSpec, Numeric
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary

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


TAIL_VALUES = 1 << 18
TAIL_BYTES = 16 << 20
"""So much is kept of what a vocabulary's limits leave out, the most frequent values first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """What an older schema counted of one vocabulary."""

    # Its values in order, with their counts; those of a given vocabulary have none
    known: Vocabulary
    tail: Vocabulary | None  # What its limits left out
    lost: int  # Values whose counts it did not keep, at most

    def count_into(self, counter: ValueCounter) -> None:
        """Add the counts to those of the new data."""
        for part in (self.known, self.tail):
            if part is not None and len(part):
                counter.add(part.values, np.ascontiguousarray(part.counts))


def counted_vocabulary(
    counter: ValueCounter, min_count: int, max_size: int | None, grown: Grown | None
) -> Vocabulary:
    """Return the counted vocabulary, older values first, and what the limits leave out."""
    (values, counts), (rare, rare_counts) = counter.split(
        min_count, max_size, TAIL_VALUES, TAIL_BYTES
    )
    if grown is not None:
        values, counts = _older_first(grown.known, values, counts, max_size)
    lost = 0 if grown is None else grown.lost
    dropped = max(0, counter.distinct - len(counts)) + lost
    kept = _within_bytes(rare)
    tail = Vocabulary(values=rare[:kept], counts=rare_counts[:kept], dropped=dropped - kept)
    return Vocabulary(values=values, counts=counts, dropped=dropped, tail=tail if dropped else None)


def _within_bytes(values: pa.LargeBinaryArray | NDArray[np.int64]) -> int:
    if isinstance(values, np.ndarray):
        width = 8 * (values.shape[1] if values.ndim == 2 else 1)
        return min(len(values), TAIL_BYTES // width)
    sizes = np.cumsum(np.asarray(pc.binary_length(values), np.int64))
    return int(np.searchsorted(sizes, TAIL_BYTES, side="right"))


def _older_first(
    old: Vocabulary,
    values: pa.LargeBinaryArray | NDArray[np.int64],
    counts: NDArray[np.int64],
    max_size: int | None,
) -> tuple[pa.LargeBinaryArray | NDArray[np.int64], NDArray[np.int64]]:
    """Put the values that an older vocabulary knew first, in its order."""
    at = pc.index_in(_keys(old.values), value_set=_keys(values))
    gone = at.is_null().to_numpy(zero_copy_only=False) & (np.asarray(old.counts) == 0)
    if gone.any():  # of a given vocabulary, which was never counted: it stays as it was given
        kept = pa.array(gone)
        more = old.values[gone] if isinstance(old.values, np.ndarray) else old.values.filter(kept)
        values = _joined(values, more)
        counts = np.concatenate([counts, np.zeros(int(gone.sum()), np.int64)])
        at = pc.index_in(_keys(old.values), value_set=_keys(values))
    places = at.drop_null().to_numpy().astype(np.int64)
    _, first = np.unique(places, return_index=True)
    places = places[np.sort(first)]
    others = np.ones(len(counts), np.bool_)
    others[places] = False
    order = np.concatenate([places, np.flatnonzero(others)])
    if max_size is not None and len(order) > max_size:
        order = order[np.sort(np.argsort(-counts[order], kind="stable")[:max_size])]
    ordered = values[order] if isinstance(values, np.ndarray) else values.take(pa.array(order))
    return ordered, counts[order]


def _joined(
    first: pa.LargeBinaryArray | NDArray[np.int64], second: pa.LargeBinaryArray | NDArray[np.int64]
) -> pa.LargeBinaryArray | NDArray[np.int64]:
    if isinstance(first, np.ndarray):
        return np.concatenate([first, np.asarray(second)])
    return pa.concat_arrays([first, second])


def _keys(values: pa.LargeBinaryArray | NDArray[np.int64]) -> pa.Array:
    if isinstance(values, np.ndarray):
        return tuples_as_bytes(values) if values.ndim == 2 else pa.array(values)
    return values


def carried_vocabulary(
    previous: Schema, key: str, *, is_text: bool, notes: list[str]
) -> Grown | None:
    """Return what an older schema counted of a vocabulary's values; None where it knew none."""
    old = previous.vocabularies.get(key)
    if old is None:
        return None
    if isinstance(old.values, np.ndarray) == is_text:
        kinds = ("integers", "text") if is_text else ("text", "integers")
        notes.append(
            f"vocabulary {key!r}: its values were {kinds[0]} and are {kinds[1]}; it begins anew"
        )
        return None
    return _grown(old, old.tail, f"vocabulary {key!r}", notes)


def _grown(old: Vocabulary, tail: Vocabulary | None, name: str, notes: list[str]) -> Grown:
    lost = old.dropped - (0 if old.tail is None else len(old.tail))
    if lost > 0:
        notes.append(
            f"{name}: the older schema keeps no counts of {lost:,} values below its limits; they "
            "are counted from 0"
        )
    return Grown(known=old, tail=tail, lost=max(0, lost))


def carried_cross(
    previous: Schema, cross: Crossed, parts: Schema, notes: list[str]
) -> Grown | None:
    """Return an older schema's combinations in the grown parts' ids; None where it has none."""
    theirs = previous.spec.by_name.get(cross.name)
    if not isinstance(theirs, Crossed) or theirs.hash_buckets:
        return None
    if theirs.parts != cross.parts:
        notes.append(f"cross {cross.name!r}: crossed from other parts; it begins anew")
        return None
    new_of_old = [_new_ids(parts, previous, part) for part in cross.parts]
    old = previous.vocabularies[cross.name]
    known, gone = _renumbered(old, new_of_old)
    tail, more = (None, 0) if old.tail is None else _renumbered(old.tail, new_of_old)
    if gone + more:
        notes.append(
            f"cross {cross.name!r}: {gone + more:,} combinations of the older schema have parts "
            "that mean something else by now; they are forgotten"
        )
    lost = _grown(old, tail, f"cross {cross.name!r}", notes).lost
    return Grown(known=known, tail=tail, lost=lost)


def _new_ids(parts: Schema, previous: Schema, part: str) -> NDArray[np.int64]:
    """Return the new id of each old one of a part; -1 where it has none."""
    ids = map_ids(parts, previous, part)
    feature = parts.spec.by_name.get(part)
    by_value = part in parts.vocabularies or isinstance(feature, Categorical)
    plain = not isinstance(feature, Categorical) or (
        feature.oov == "id"
        and not (feature.oov_buckets or feature.hash_buckets or feature.num_buckets)
    )
    unseen = 0 if by_value and plain and not ids.why else -1
    new_of_old = np.full(previous.id_count(part), unseen, np.int64)
    known = ids.old_of_N >= 0
    new_of_old[ids.old_of_N[known]] = np.flatnonzero(known)
    return new_of_old


def _renumbered(
    vocabulary: Vocabulary, new_of_old: list[NDArray[np.int64]]
) -> tuple[Vocabulary, int]:
    assert isinstance(vocabulary.values, np.ndarray)
    columns = [ids[vocabulary.values[:, at]] for at, ids in enumerate(new_of_old)]
    tuples = np.stack(columns, axis=1)
    kept = (tuples >= 0).all(axis=1)
    found = Vocabulary(values=tuples[kept], counts=np.asarray(vocabulary.counts)[kept])
    return found, int(np.count_nonzero(~kept))


def grown_classes(
    classes: Mapping[str, tuple[str, ...]], spec: FeatureSpec, previous: Schema, notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the classes of each label: the older schema's in its order, then new ones."""
    grown = dict(classes)
    for head, names in classes.items():
        older = previous.classes.get(head, ())
        same = previous.spec.labels.get(head) == spec.labels[head]
        if spec.label_vocabulary is not None or not same or not older:
            continue
        grown[head] = (*older, *(name for name in names if name not in set(older)))
        absent = [name for name in older if name not in set(names)]
        if absent:
            notes.append(
                f"label {spec.labels[head]!r}: no row has {', '.join(map(repr, absent[:10]))}, "
                "which the older schema knows; the class keeps its place"
            )
    return grown


def grow_numbers(
    numerics: dict[str, NumericFit],
    boundaries: dict[str, NDArray[np.float64]],
    spec: FeatureSpec,
    plan: FitPlan,
    previous: Schema,
    history: Mapping[str, Mapping[str, Any]],
    notes: list[str],
) -> None:
    """Keep an older schema's quantiles and boundaries of numbers declared as before, in place."""
    for feature in spec.all_features:
        if not isinstance(feature, Numeric | Bucketized):
            continue
        if previous.spec.by_name.get(feature.name) != feature:
            continue
        before, now = previous.columns[feature.source], plan.types[feature.source]
        if not _same_numbers(before, now):
            notes.append(
                f"feature {feature.name!r}: its column was {before.storage} and is "
                f"{now.storage}, so its boundaries are learned anew"
            )
        elif history.get(feature.source) != previous.history.get(feature.source):
            notes.append(
                f"feature {feature.name!r}: its column is computed otherwise than it was, so its "
                "boundaries are learned anew"
            )
        elif isinstance(feature, Numeric):
            numerics[feature.name] = previous.numerics[feature.name]
        else:
            boundaries[feature.name] = previous.boundaries[feature.name]


def _same_numbers(before: ColumnType, now: ColumnType) -> bool:
    """Whether a number means the same in both; what an older version did not write is trusted."""
    narrow = {"float16", "float32"}
    known = before.storage is not None and before.storage != now.storage
    return not (known and narrow & {before.storage, now.storage})
