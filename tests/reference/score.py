"""The forward pass in plain NumPy, in the precision asked for: what the C++ must come close to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Scorer"]

Ints = NDArray[np.int64]
Floats = NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])

_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, x * 0.01),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * 0.5 * (1 + _erf(x * math.sqrt(0.5))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@dataclass(frozen=True, slots=True)
class _Source:
    """Columns of the deep part's input: a slot's pooled rows, or dense numbers (table None)."""

    at: int
    width: int
    table: Floats | None = None
    combiner: str = "sum"


class Scorer:
    """A scorer with the methods of :class:`widedeep.kernels.score.Scorer`.

    Args:
        n_slots: F, feature slots of a batch.
        n_dense: K, dense columns of a batch.
        n_classes: C, logits an example.
        dtype: The precision of all arithmetic.
    """

    def __init__(
        self, n_slots: int, n_dense: int, n_classes: int, dtype: DTypeLike = np.float32
    ) -> None:
        self._n_slots, self._n_dense, self._n_classes = n_slots, n_dense, n_classes
        self._dtype = np.dtype(dtype)
        self._wide: list[tuple[int, Floats, str, bool]] = []
        self._sources: list[_Source] = []
        self._layers: list[tuple[Floats, Floats | None, str]] = []
        self._split: int | None = None

    @property
    def _n_inputs(self) -> int:
        return sum(source.width for source in self._sources)

    def add_wide(self, slot: int, weights: Floats, combiner: str, *, item: bool) -> None:
        """Add a slot of the wide part."""
        self._wide.append((slot, weights, combiner, item))

    def add_embedding(self, slot: int, table: Floats, combiner: str) -> None:
        """Add a slot's pooled embedding as the next inputs of the deep part."""
        self._sources.append(_Source(slot, table.shape[1], table, combiner))

    def add_dense(self, column: int, width: int) -> None:
        """Add dense numbers as the next inputs of the deep part."""
        self._sources.append(_Source(column, width))

    def start_item_inputs(self) -> None:
        """Say that the inputs so far are the query's, and those that follow the item's."""
        self._split = self._n_inputs

    def add_layer(self, weight: Floats, bias: Floats | None, activation: str) -> None:
        """Add a dense layer."""
        expected = len(self._layers[-1][0]) if self._layers else self._n_inputs
        if weight.shape[1] != expected:
            raise ValueError("expected one column of the layer's weight an input")
        self._layers.append((weight, bias, activation))

    def forward(
        self,
        ids_N: Ints,
        offsets_BF: Ints,
        values_N: Floats | None,
        dense_BK: Floats,
        *,
        threads: int,
    ) -> tuple[Floats, Floats | None]:
        """Return the wide part and, if there are layers, the deep part, each (B, C)."""
        batch = self._check(ids_N, offsets_BF, values_N, dense_BK)
        sides = np.zeros((2, len(dense_BK), self._n_classes), self._dtype)
        for slot, weights, combiner, item in self._wide:
            sides[int(item)] += self._pool(batch, slot, weights, combiner)
        wide = sides[0] + sides[1]
        if not self._layers:
            return wide, None
        if len(self._layers[-1][0]) != self._n_classes:
            raise ValueError("expected one last unit a class")
        hidden = self._inputs(batch, dense_BK)
        split = self._split or 0
        for weight, bias, activation in self._layers:
            weight = weight.astype(self._dtype)
            query, item_part = hidden[:, :split], hidden[:, split:]
            hidden = query @ weight[:, :split].T + item_part @ weight[:, split:].T
            if bias is not None:
                hidden = hidden + bias.astype(self._dtype)
            hidden = _ACTIVATIONS[activation](hidden).astype(self._dtype)
            split = 0
        return wide, hidden

    def concat(
        self,
        ids_N: Ints,
        offsets_BF: Ints,
        values_N: Floats | None,
        dense_BK: Floats,
        *,
        threads: int,
    ) -> Floats:
        """Return the inputs of the deep part, (B, X)."""
        return self._inputs(self._check(ids_N, offsets_BF, values_N, dense_BK), dense_BK)

    def _check(
        self, ids: Ints, offsets: Ints, values: Floats | None, dense: Floats
    ) -> tuple[Ints, Ints, Floats]:
        cells = len(dense) * self._n_slots
        if dense.shape[1] != self._n_dense or len(offsets) != cells + 1:
            raise ValueError(
                "got a batch with other feature slots or dense columns than the model's schema has"
            )
        if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise ValueError("got offsets that do not rise from 0 to the number of ids")
        weights = np.ones(len(ids), self._dtype) if values is None else values
        return ids, offsets, weights.astype(self._dtype)

    def _inputs(self, batch: tuple[Ints, Ints, Floats], dense: Floats) -> Floats:
        parts = [
            dense[:, source.at : source.at + source.width].astype(self._dtype)
            if source.table is None
            else self._pool(batch, source.at, source.table, source.combiner)
            for source in self._sources
        ]
        return np.concatenate([np.zeros((len(dense), 0), self._dtype), *parts], axis=1)

    def _pool(
        self, batch: tuple[Ints, Ints, Floats], slot: int, table: Floats, combiner: str
    ) -> Floats:
        ids, offsets, values = batch
        n_examples = (len(offsets) - 1) // self._n_slots
        pooled = np.zeros((n_examples, table.shape[1]), self._dtype)
        for example in range(n_examples):
            begin, end = offsets[example * self._n_slots + slot :][:2]
            cell, weights = ids[begin:end], values[begin:end]
            if ((cell < 0) | (cell >= len(table))).any():
                raise ValueError(
                    f"row {example}, slot {slot}: got id {', '.join(map(str, cell))}, "
                    "which the model's table does not have"
                )
            pooled[example] = weights @ table[cell].astype(self._dtype)
            pooled[example] *= _scale(weights, combiner)
        return pooled


def _scale(weights: Floats, combiner: str) -> Any:
    if combiner == "sum":
        return 1
    divisor = np.sqrt((weights**2).sum()) if combiner == "sqrtn" else weights.sum()
    return 0 if divisor == 0 else 1 / divisor
