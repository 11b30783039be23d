"""Growing a schema: what an older one knows keeps its place, what new data shows comes behind.

Counts of both are whole before any limit cuts: an older schema keeps those of values that its
limits left out, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.counting import ValueCounter
from widedeep.data.fit_plan import FitPlan
from widedeep.data.id_maps import map_ids, tuples_as_bytes
from widedeep.features import Bucketized, Categorical, Crossed, FeatureSpec, Numeric
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary

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
