"""DeepLayout: which columns of the concatenated deep input belong to which feature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from widedeep.schema import Schema, Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLayout:
    """The deep part's input, known before any tower is made."""

    width: int  # X, columns of ``concat_BX``
    # Feature to its columns; pooled embeddings first, then the dense numbers
    columns: Mapping[str, slice]
    dense: slice  # The dense numbers' columns as one slice
    dense_columns: tuple[int, ...]  # Column of ``Batch.dense_BK`` for each column of ``dense``
    dims: Mapping[str, int]  # Feature to its embedding width, sequences too
    sequences: tuple[str, ...]  # Features that keep their sequence
    # Feature to its columns of ``Batch.dense_BK``, for :attr:`widedeep.FeatureSpec.extra`
    extra: Mapping[str, slice]


def auto_dim(size: int) -> int:
    """Return an embedding width for a vocabulary: 1.6 x size^0.56, at most 64, at least 2."""
    return max(2, min(64, round(1.6 * math.pow(size, 0.56))))


def _dim(slot: Slot, default: int | Literal["auto"]) -> int:
    if slot.embedding_dim is not None:
        return slot.embedding_dim
    return auto_dim(slot.size) if default == "auto" else default


def make_layout(schema: Schema, embedding_dim: int | Literal["auto"]) -> DeepLayout:
    """Lay out the deep input of a schema."""
    deep = [slot for slot in schema.slots if slot.deep]
    dims = {slot.name: _dim(slot, embedding_dim) for slot in deep}
    columns: dict[str, slice] = {}
    at = 0
    for slot in deep:
        if slot.combiner is not None:
            columns[slot.name] = slice(at, at + dims[slot.name])
            at += dims[slot.name]
    start = at
    chosen: list[int] = []
    for name, places in schema.dense_layout.items():
        if name in schema.spec.deep_names and name not in schema.spec.extra:
            columns[name] = slice(at, at + places.stop - places.start)
            chosen += range(places.start, places.stop)
            at += places.stop - places.start
    return DeepLayout(
        width=at,
        columns=columns,
        dense=slice(start, at),
        dense_columns=tuple(chosen),
        dims=dims,
        sequences=tuple(slot.name for slot in deep if slot.combiner is None),
        extra={name: schema.dense_layout[name] for name in schema.spec.extra},
    )
