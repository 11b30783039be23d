"""Whose embeddings point the same way: the nearest neighbours of frequent values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.schema import Schema, Slot

_FEWEST_VALUES = 4
_FEWEST_SEEN = 5
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """A value and those nearest to it."""

    value: str  # What the embedding is of
    count: int  # How often training saw it
    nearest: list[tuple[str, float]]  # Values with their cosine, the nearest first


def embedded_features(bundle: Bundle) -> list[str]:
    """Return the features whose embeddings stand for known values, one a table."""
    schema = bundle.schema
    slots = {slot.name: slot for slot in schema.slots}
    candidates: list[tuple[bool, bool, int, str]] = []
    for column in bundle.model.deep:
        feature = schema.spec.by_name[column.name]
        if column.source != "table" or feature.part_names or feature.vocabulary_key is None:
            continue
        size = len(schema.vocabularies[feature.vocabulary_key])
        if size < _FEWEST_VALUES:
            continue
        owner = slots[column.name].table == column.name
        candidates.append((column.name not in schema.spec.item, not owner, -size, column.name))
    tables: dict[str, str] = {}
    for *_, name in sorted(candidates):
        tables.setdefault(slots[name].table, name)
    return list(tables.values())


def nearest_values(
    bundle: Bundle, feature: str, *, values: int = 8, nearest: int = 5
) -> list[Neighbours]:
    """Return the nearest neighbours of a feature's most frequent values, by cosine."""
    schema = bundle.schema
    slot = next(slot for slot in schema.slots if slot.name == feature)
    vocabulary = schema.vocabularies[schema.vocabulary_key(feature)]
    counts = np.asarray(vocabulary.counts)
    first = slot.size - len(vocabulary)
    eligible = np.arange(len(vocabulary))
    if counts.any():
        eligible = eligible[counts >= _FEWEST_SEEN]
    frequent = eligible[np.argsort(-counts[eligible], kind="stable")[:values]]
    table = bundle.weights[f"table/{slot.table}"]
    neighbours = _cosines(table, first + frequent, first + eligible, nearest)
    return [
        Neighbours(
            value=schema.describe_id(feature, int(first + position)),
            count=int(counts[position]),
            nearest=[(_name(schema, slot, id_), cosine) for id_, cosine in row],
        )
        for position, row in zip(frequent.tolist(), neighbours, strict=True)
    ]


def _name(schema: Schema, slot: Slot, id_: int) -> str:
    return schema.describe_id(slot.name, id_)


def _cosines(
    table: NDArray[np.float32],
    query_ids: NDArray[np.int64],
    candidate_ids: NDArray[np.int64],
    nearest: int,
) -> list[list[tuple[int, float]]]:
    """Of each asked row the ids and cosines of the nearest known ones, itself left out."""
    queries = _unit(table[query_ids])
    best: list[list[tuple[int, float]]] = [[] for _ in query_ids]
    for start in range(0, len(candidate_ids), _ROWS_AT_ONCE):
        ids = candidate_ids[start : start + _ROWS_AT_ONCE]
        cosines = queries @ _unit(table[ids]).T
        cosines[query_ids[:, None] == ids[None, :]] = -np.inf
        cosines[np.isnan(cosines)] = -np.inf  # an embedding of zeros points nowhere
        count = min(nearest, len(ids))
        top = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for row, places in enumerate(top):
            more = [(int(ids[p]), float(cosines[row, p])) for p in places]
            every = sorted([*best[row], *more], key=lambda pair: (-pair[1], pair[0]))
            best[row] = [pair for pair in every[:nearest] if pair[1] > -np.inf]
    return best


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide**2).sum(axis=1, keepdims=True))
    normalised: NDArray[np.float64] = wide / np.where(lengths > 0, lengths, np.nan)
    return normalised
