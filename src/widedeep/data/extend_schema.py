"""An older schema extended by new data: its ids keep their place, new ones follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.counting import ValueCounter
from widedeep.features import Feature, FeatureSpec, IdMap
from widedeep.features.id_map import match_vocabulary, no_ids, tuples_as_bytes
from widedeep.features.learned import FIRST_KNOWN_ID, ColumnType, NumericFit, Vocabulary
from widedeep.schema import Schema


@dataclass(frozen=True, slots=True)
class SchemaPair:
    """A new schema and the older one that ids are carried over from."""

    new: Schema
    old: Schema

    def map_ids(self, name: str) -> IdMap:
        """Find the ids of a feature, or of a raw column that a cross reads, in the older schema."""
        size = self.new.id_count(name)
        feature, older = self.new.spec.by_name.get(name), self.old.spec.by_name.get(name)
        if older is None and self.old.vocabulary_key(name) not in self.old.vocabularies:
            return no_ids(size, "not in the old model")
        if type(feature) is not type(older):
            return no_ids(size, "another kind of feature")
        why = self._column_change(name, feature, older)
        if why:
            return no_ids(size, why)
        if feature is not None:
            return feature.map_ids(older, self)
        vocabularies = self.new.vocabularies[name], self.old.vocabularies[name]
        return match_vocabulary(*vocabularies, (FIRST_KNOWN_ID, FIRST_KNOWN_ID))

    def key_change(self, name: str) -> str:
        """Return why a part of a hashed cross is hashed otherwise than it was, or ""."""
        feature, older = self.new.spec.by_name.get(name), self.old.spec.by_name.get(name)
        if type(feature) is not type(older):
            return "another kind of feature"
        why = self._column_change(name, feature, older)
        return why if why or feature is None else feature.key_change(older, self)

    def _column_change(self, name: str, feature: Feature | None, older: Feature | None) -> str:
        """Return why a feature's column holds other values than it did, or "" if it does not."""
        column, old_column = (name if f is None else f.main_column for f in (feature, older))
        if column is None or old_column is None:
            return ""  # a cross: its parts are compared
        if column != old_column:
            return f"read from column {column!r}, before from {old_column!r}"
        now, before = (schema.columns.get(column) for schema in (self.new, self.old))
        if now is None or before is None:
            return ""
        is_other = None not in (now.storage, before.storage) and now.storage != before.storage
        if is_other and (now.is_time or before.is_time):
            return f"its column held {before.storage} and holds {now.storage}"
        if feature is not None and feature.number_input is not None:
            return ""
        if now.kind != before.kind:
            return f"its column held {before.kind} and holds {now.kind}"
        return ""


def map_ids(new: Schema, old: Schema, name: str) -> IdMap:
    """Find a feature's ids, or those of a raw column that a cross reads, in an older schema."""
    return SchemaPair(new, old).map_ids(name)


TAIL_VALUES = 1 << 18
TAIL_BYTES = 16 << 20
"""Limits of a tail: the most frequent values that ``min_count`` and ``max_size`` drop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierCounts:
    """The counts of an older schema for one vocabulary."""

    # Values in order with their counts; 0 for values that the spec gives
    vocabulary: Vocabulary
    tail: Vocabulary | None  # Values that its limits left out
    lost: int  # Most values whose counts are lost

    def count_into(self, counter: ValueCounter) -> None:
        """Add the counts to those of the new data."""
        for vocabulary in (self.vocabulary, self.tail):
            if vocabulary is not None and len(vocabulary):
                counter.add(vocabulary.values, np.ascontiguousarray(vocabulary.counts))


def counted_vocabulary(
    counter: ValueCounter, min_count: int, max_size: int | None, earlier: EarlierCounts | None
) -> Vocabulary:
    """Return the counted vocabulary, older values first, and what the limits leave out."""
    (values, counts), (rare, rare_counts) = counter.split(
        min_count, max_size, TAIL_VALUES, TAIL_BYTES
    )
    if earlier is not None:
        values, counts = _older_first(earlier.vocabulary, values, counts, max_size)
    lost = 0 if earlier is None else earlier.lost
    dropped = max(0, counter.distinct - len(counts)) + lost
    n_tail = _within_bytes(rare)
    tail = Vocabulary(values=rare[:n_tail], counts=rare_counts[:n_tail], dropped=dropped - n_tail)
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
    # (old values,) position of each among the new ones, null for those that are gone
    positions = pc.index_in(_keys(old.values), value_set=_keys(values))
    gone = positions.is_null().to_numpy(zero_copy_only=False) & (np.asarray(old.counts) == 0)
    if gone.any():  # values that the spec gave were never counted: they stay
        mask = pa.array(gone)
        more = old.values[gone] if isinstance(old.values, np.ndarray) else old.values.filter(mask)
        values = _joined(values, more)
        counts = np.concatenate([counts, np.zeros(int(gone.sum()), np.int64)])
        positions = pc.index_in(_keys(old.values), value_set=_keys(values))
    older = positions.drop_null().to_numpy().astype(np.int64)
    _, first = np.unique(older, return_index=True)
    older = older[np.sort(first)]  # positions of older values in their old order, each once
    is_new = np.ones(len(counts), np.bool_)
    is_new[older] = False
    order = np.concatenate([older, np.flatnonzero(is_new)])
    if max_size is not None and len(order) > max_size:
        # The most frequent stay, in this order.
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


def earlier_vocabulary(
    previous: Schema, key: str, *, is_text: bool, notes: list[str]
) -> EarlierCounts | None:
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
    return _earlier_counts(old, old.tail, f"vocabulary {key!r}", notes)


def _earlier_counts(
    old: Vocabulary, tail: Vocabulary | None, name: str, notes: list[str]
) -> EarlierCounts:
    lost = old.dropped - (0 if old.tail is None else len(old.tail))
    if lost > 0:
        notes.append(
            f"{name}: the older schema keeps no counts of {lost:,} values below its limits; they "
            "are counted from 0"
        )
    return EarlierCounts(vocabulary=old, tail=tail, lost=max(0, lost))


def earlier_cross(
    previous: Schema, cross: Feature, parts: Schema, notes: list[str]
) -> EarlierCounts | None:
    """Return an older schema's combinations in the new parts' ids; None where it has none."""
    older = previous.spec.by_name.get(cross.name)
    if older is None or not older.part_names or older.is_hashed:
        return None
    if older.part_names != cross.part_names:
        notes.append(f"cross {cross.name!r}: crossed from other parts; it begins anew")
        return None
    new_of_old = [_new_ids(parts, previous, part_name) for part_name in cross.part_names]
    old = previous.vocabularies[cross.name]
    vocabulary, gone = _renumbered(old, new_of_old)
    tail, more = (None, 0) if old.tail is None else _renumbered(old.tail, new_of_old)
    if gone + more:
        notes.append(
            f"cross {cross.name!r}: {gone + more:,} combinations of the older schema have parts "
            "that mean something else by now; they are forgotten"
        )
    lost = _earlier_counts(old, tail, f"cross {cross.name!r}", notes).lost
    return EarlierCounts(vocabulary=vocabulary, tail=tail, lost=lost)


def _new_ids(parts: Schema, previous: Schema, name: str) -> NDArray[np.int64]:
    """Return the new id of each old id of a part, (old ids,); -1 where it has none."""
    ids = map_ids(parts, previous, name)
    feature = parts.spec.by_name.get(name)
    forgets = name in parts.vocabularies if feature is None else feature.forgets_to_unseen
    unseen = 0 if forgets and not ids.why else -1
    new_of_old = np.full(previous.id_count(name), unseen, np.int64)
    matched = ids.old_of_N >= 0
    new_of_old[ids.old_of_N[matched]] = np.flatnonzero(matched)
    return new_of_old


def without_values(schema: Schema, unused: Mapping[str, NDArray[np.bool_]]) -> Schema:
    """Return a schema without some values of its vocabularies, and without crosses of these."""
    if not any(mask.any() for mask in unused.values()):
        return schema
    vocabularies = {
        key: _selected(vocabulary, ~unused[key]) if key in unused else vocabulary
        for key, vocabulary in schema.vocabularies.items()
    }
    pruned = replace(schema, vocabularies=vocabularies)
    for cross in schema.spec.all_features:
        if not cross.part_names or cross.is_hashed:
            continue
        new_of_old = []
        for part_name in cross.part_names:
            ids = map_ids(pruned, schema, part_name).old_of_N
            new_of_old.append(np.full(schema.id_count(part_name), -1, np.int64))
            new_of_old[-1][ids[ids >= 0]] = np.flatnonzero(ids >= 0)
        vocabulary = vocabularies[cross.name]
        renumbered, _ = _renumbered(vocabulary, new_of_old)
        tail = None if vocabulary.tail is None else _renumbered(vocabulary.tail, new_of_old)[0]
        vocabularies[cross.name] = replace(
            vocabulary, values=renumbered.values, counts=renumbered.counts, tail=tail
        )
    return replace(schema, vocabularies=vocabularies)


def _selected(vocabulary: Vocabulary, mask: NDArray[np.bool_]) -> Vocabulary:
    old = vocabulary.values
    values = old[mask] if isinstance(old, np.ndarray) else old.filter(pa.array(mask))
    counts = np.asarray(vocabulary.counts)[mask]
    return replace(vocabulary, values=values, counts=counts, index=None)


def _renumbered(
    vocabulary: Vocabulary, new_of_old: list[NDArray[np.int64]]
) -> tuple[Vocabulary, int]:
    """Return combinations in new part ids, without those that have none, and how many these are."""
    assert isinstance(vocabulary.values, np.ndarray)  # (n, parts)
    columns = [ids[vocabulary.values[:, i]] for i, ids in enumerate(new_of_old)]
    tuples = np.stack(columns, axis=1)
    has_ids = (tuples >= 0).all(axis=1)
    renumbered = Vocabulary(values=tuples[has_ids], counts=np.asarray(vocabulary.counts)[has_ids])
    return renumbered, int(np.count_nonzero(~has_ids))


def extend_classes(
    classes: Mapping[str, tuple[str, ...]], spec: FeatureSpec, previous: Schema, notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the classes of each label: the older schema's in its order, then new ones."""
    earlier = dict(classes)
    for head, names in classes.items():
        older = previous.classes.get(head, ())
        same = previous.spec.labels.get(head) == spec.labels[head]
        if spec.label_vocabulary is not None or not same or not older:
            continue
        earlier[head] = (*older, *(name for name in names if name not in set(older)))
        absent = [name for name in older if name not in set(names)]
        if absent:
            notes.append(
                f"label {spec.labels[head]!r}: no row has {', '.join(map(repr, absent[:10]))}, "
                "which the older schema knows; the class keeps its place"
            )
    return earlier


def keep_numbers(
    numerics: dict[str, NumericFit],
    boundaries: dict[str, NDArray[np.float64]],
    spec: FeatureSpec,
    types: Mapping[str, ColumnType],
    previous: Schema,
    history: Mapping[str, Mapping[str, Any]],
    notes: list[str],
) -> None:
    """Replace quantiles and boundaries by an older schema's where numbers are declared alike."""
    for feature in spec.all_features:
        numbers = feature.number_input
        if numbers is None or previous.spec.by_name.get(feature.name) != feature:
            continue
        before, now = previous.columns[numbers.column], types[numbers.column]
        if not _same_numbers(before, now):
            notes.append(
                f"feature {feature.name!r}: its column was {before.storage} and is "
                f"{now.storage}, so its boundaries are learned anew"
            )
        elif history.get(numbers.column) != previous.history.get(numbers.column):
            notes.append(
                f"feature {feature.name!r}: its column is computed otherwise than it was, so its "
                "boundaries are learned anew"
            )
        else:
            if feature.learns_numbers:
                numerics[feature.name] = previous.numerics[feature.name]
            if feature.is_bucketed:
                boundaries[feature.name] = previous.boundaries[feature.name]


def _same_numbers(before: ColumnType, now: ColumnType) -> bool:
    """Whether a number means the same in both; what an older version did not write is trusted."""
    narrow = {"float16", "float32"}
    is_other = before.storage is not None and before.storage != now.storage
    return not (is_other and narrow & {before.storage, now.storage})
