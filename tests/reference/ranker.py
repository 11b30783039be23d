"""The forward pass of a request in plain NumPy, in the precision asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.reference.score import Scorer
from widedeep._native import EncodedSide, PartialSums, TransformSides
from widedeep.kernels.score import from_bfloat16, to_bfloat16

__all__ = ["RankScorer"]

Ints = NDArray[np.int64]
Floats = NDArray[Any]

_SIDES = ("query", "item", "pair")


class RankScorer:
    """A scorer with the methods of :class:`widedeep.kernels.score.RankScorer`.

    Each side is a scorer without layers; those after the first make another.

    Args:
        n_slots: Feature slots of the query, of the item and of the pair.
        n_dense: K, dense columns of a batch.
        n_classes: C, logits an example.
        dtype: The precision of all arithmetic.
    """

    def __init__(
        self,
        n_slots: tuple[int, int, int],
        n_dense: int,
        n_classes: int,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._sides = {
            side: Scorer(n, n_dense, n_classes, dtype)
            for side, n in zip(_SIDES, n_slots, strict=True)
        }
        self._dtype = np.dtype(dtype)
        self._n_dense, self._n_classes = n_dense, n_classes
        self._bias: Floats | None = None
        self._first_activation = "none"
        self._n_hidden = 0
        self._first: dict[str, Floats] = {}
        self._later: list[tuple[Floats, Floats | None, str, bool]] = []
        self._widths = dict.fromkeys(_SIDES, 0)

    def add_wide(self, side: str, slot: int, weights: Floats, combiner: str) -> None:
        """Add a slot of the wide part."""
        self._sides[side].add_wide(slot, weights, combiner, item=False)

    def add_embedding(self, side: str, slot: int, table: Floats, combiner: str) -> None:
        """Add a slot's pooled embedding as the side's next inputs of the first layer."""
        self._sides[side].add_embedding(slot, table, combiner)
        self._widths[side] += table.shape[1]

    def add_dense(self, side: str, column: int, width: int) -> None:
        """Add dense numbers as the side's next inputs of the first layer."""
        self._sides[side].add_dense(column, width)
        self._widths[side] += width

    def add_layer(
        self, weight: Floats, bias: Floats | None, activation: str, *, bfloat16: bool = False
    ) -> None:
        """Add a dense layer."""
        if self._n_hidden:
            self._later.append((weight, bias, activation, bfloat16))
            return
        self._n_hidden = len(weight)
        self._bias, self._first_activation = bias, activation
        ends = np.cumsum([self._widths[side] for side in _SIDES])
        parts = np.split(weight.astype(self._dtype), ends[:-1], axis=1)
        self._first = dict(zip(_SIDES, parts, strict=True))

    def sums(
        self,
        side: str,
        ids_N: Ints,
        offsets_BF: Ints,
        values_N: Floats | None,
        dense_BK: Floats,
        *,
        threads: int,
    ) -> tuple[Floats, Floats]:
        """Return the sums of queries or items: of the wide part (B, C), of the first layer (B, H).

        With no layer, H is 0.
        """
        arrays = ids_N, offsets_BF, values_N, dense_BK
        wide, _ = self._sides[side].forward(*arrays, threads=threads)
        if not self._n_hidden:
            return wide, np.zeros((len(wide), 0), self._dtype)
        return wide, self._sides[side].concat(*arrays, threads=threads) @ self._first[side].T

    def sums_of(self, side: str, rows: EncodedSide, *, threads: int) -> PartialSums:
        """Return the sums of rows as they were encoded."""
        wide, hidden = self.sums(side, *rows.arrays, threads=threads)
        return PartialSums(rows.parts, wide, hidden)

    def rank(
        self,
        query_wide: Floats,
        query_hidden: Floats,
        item_wide: Floats,
        item_hidden: Floats | None,
        item_hidden_bfloat16: NDArray[np.uint16] | None,
        positions_B: Ints,
        ids_N: Ints,
        offsets_BF: Ints,
        *,
        threads: int,
    ) -> tuple[Floats, Floats | None]:
        """Return the candidates' wide part and, if there are layers, deep part, each (B, C)."""
        no_dense = np.zeros((len(positions_B), self._n_dense), self._dtype)
        pair_wide, pair_hidden = self.sums(
            "pair", ids_N, offsets_BF, None, no_dense, threads=threads
        )
        wide = query_wide + (item_wide[positions_B] + pair_wide)
        if not self._n_hidden:
            return wide, None
        if item_hidden is None:
            assert item_hidden_bfloat16 is not None
            item_hidden = from_bfloat16(item_hidden_bfloat16)
        hidden = query_hidden + (item_hidden[positions_B] + pair_hidden)
        unit = np.eye(hidden.shape[1], dtype=self._dtype)
        for layer in [(unit, self._bias, self._first_activation, False), *self._later]:
            hidden = self._dense(hidden, *layer)
        return wide, hidden

    def logits(
        self,
        sides: TransformSides,
        query: PartialSums,
        items: PartialSums,
        positions_B: Ints,
        bias_C: Floats,
        *,
        threads: int,
    ) -> Floats:
        """Return the candidates' logits, (B, C)."""
        pairs = sides.cross(query.parts, items.parts, positions_B)
        kept = items.wide, items.hidden, items.hidden_bfloat16
        hidden = query.hidden
        assert hidden is not None
        wide, deep = self.rank(query.wide, hidden, *kept, positions_B, *pairs, threads=threads)
        return (wide if deep is None else wide + deep) + bias_C

    def _dense(
        self, inputs: Floats, weight: Floats, bias: Floats | None, activation: str, half: bool
    ) -> Floats:
        """Hand one layer to a scorer that has no other inputs."""
        if half:
            inputs, weight = self._rounded(inputs), self._rounded(weight)
        scorer = Scorer(0, inputs.shape[1], len(weight), self._dtype)
        scorer.add_dense(0, inputs.shape[1])
        scorer.add_layer(weight, bias, activation)
        no_cells = np.zeros(1, np.int64)
        _, outputs = scorer.forward(no_cells[:0], no_cells, None, inputs, threads=1)
        assert outputs is not None
        return outputs

    def _rounded(self, values: Floats) -> Floats:
        return from_bfloat16(to_bfloat16(values.astype(np.float32))).astype(self._dtype)
