"""The forward pass of a request: sums kept of its sides, and what candidates add to them."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from widedeep._native import EncodedSide, ItemIds, SideParts, SideSums, TransformSides
from widedeep.kernels.backend import backend

__all__ = [
    "EncodedSide",
    "ItemIds",
    "RankScorer",
    "Side",
    "SideParts",
    "SideSums",
    "TransformSides",
    "new_rank_scorer",
]

Side = Literal["query", "item", "pair"]
"""Whose a feature is: the query's, the item's, or (a cross of both) the pair's."""


class RankScorer(Protocol):
    """Computes logits of candidates from sums kept of the query and of the items.

    Every sum runs in the order that :class:`widedeep.kernels.score.Scorer` tells: the item's go on
    over the pair's, then the query's are added. So the logits are the scorer's, bit for bit. Each
    side has slots of its own, numbered from 0, and its batches hold these alone.
    """

    def add_wide(self, side: Side, slot: int, weights: NDArray[np.float32], combiner: str) -> None:
        """Add a slot of the wide part.

        Args:
            side: Whose it is.
            slot: Its place among the side's slots.
            weights: (size, C), one row an id.
            combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``.
        """

    def add_embedding(
        self, side: Side, slot: int, table: NDArray[np.float32], combiner: str
    ) -> None:
        """Add a slot's pooled embedding as the side's next inputs of the first layer.

        Args:
            side: Whose it is.
            slot: Its place among the side's slots.
            table: (size, D), one row an id.
            combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``.
        """

    def add_dense(self, side: Side, column: int, width: int) -> None:
        """Add dense numbers as the side's next inputs of the first layer.

        Args:
            side: ``"query"`` or ``"item"``.
            column: The first of them.
            width: How many.
        """

    def add_layer(
        self,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        activation: str,
        *,
        bfloat16: bool = False,
    ) -> None:
        """Add a dense layer, once all inputs are there; the last one must have C units.

        Args:
            weight: (units, inputs); the first layer's inputs are the query's, the item's and the
                pair's.
            bias: (units,), or None for none.
            activation: One of :data:`widedeep.kernels.score.ACTIVATIONS`.
            bfloat16: Round weights and inputs to bfloat16; sums stay float32, and are the same bits
                whether or not the processor multiplies bfloat16. Not for the first layer.
        """

    def sums(
        self,
        side: Side,
        ids_N: NDArray[np.int64],
        offsets_BF: NDArray[np.int64],
        values_N: NDArray[np.float32] | None,
        dense_BK: NDArray[np.float32],
        *,
        threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the sums of queries or items: of the wide part (B, C), of the first layer (B, H).

        Args:
            side: ``"query"`` or ``"item"``.
            ids_N: int64 feature-local ids of the side's slots.
            offsets_BF: int64 of length B * F + 1, for F slots of the side.
            values_N: float32 weight of each id, or None where all are 1.
            dense_BK: float32, all dense columns.
            threads: Threads to use.

        Raises:
            ValueError: If the arrays are another schema's.
        """

    def sums_of(self, side: Side, rows: EncodedSide, *, threads: int) -> SideSums:
        """Return the sums of rows as they were encoded.

        Args:
            side: ``"query"`` or ``"item"``.
            rows: Of that side.
            threads: Threads to use.

        Raises:
            ValueError: If the rows are another schema's.
        """

    def rank(
        self,
        query_wide: NDArray[np.float32],
        query_hidden: NDArray[np.float32],
        item_wide: NDArray[np.float32],
        item_hidden: NDArray[np.float32] | None,
        item_hidden_bfloat16: NDArray[np.uint16] | None,
        positions_B: NDArray[np.int64],
        ids_N: NDArray[np.int64],
        offsets_BF: NDArray[np.int64],
        *,
        threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the candidates' wide part and, if there are layers, deep part, each (B, C).

        Args:
            query_wide: (1, C), from :meth:`sums`.
            query_hidden: (1, H), from :meth:`sums`.
            item_wide: (items, C), from :meth:`sums`.
            item_hidden: (items, H), from :meth:`sums`, or None:
            item_hidden_bfloat16: The same from :func:`to_bfloat16`, or None.
            positions_B: int64, the item of each candidate.
            ids_N: int64 feature-local ids of the pair's slots.
            offsets_BF: int64 of length B * F + 1, for F slots of the pair.
            threads: At most so many are used.

        Raises:
            ValueError: If the arrays are another model's.
        """

    def logits(
        self,
        sides: TransformSides,
        query: SideSums,
        items: SideSums,
        positions_B: NDArray[np.int64],
        bias_C: NDArray[np.float32],
        *,
        threads: int,
    ) -> NDArray[np.float32]:
        """Return the candidates' logits, (B, C): they are crossed, and :meth:`rank` is added up.

        Args:
            sides: Crosses the query with items.
            query: Of one row, in float32.
            items: Of the catalogue, or of items given inline.
            positions_B: int64, the item of each candidate.
            bias_C: (C,).
            threads: At most so many are used.

        Raises:
            ValueError: If the sums are another model's.
        """


def new_rank_scorer(n_slots: tuple[int, int, int], n_dense: int, n_classes: int) -> RankScorer:
    """Return an empty scorer of the kernels in use.

    Args:
        n_slots: Feature slots of the query, of the item and of the pair.
        n_dense: K, dense columns of a batch.
        n_classes: C, logits an example.

    Example:
        >>> import numpy as np
        >>> scorer = new_rank_scorer((1, 1, 0), n_dense=0, n_classes=1)
        >>> scorer.add_wide("query", 0, np.array([[0.5]], np.float32), "sum")
        >>> scorer.add_wide("item", 0, np.array([[1], [2]], np.float32), "sum")
        >>> none = np.zeros((1, 0), np.float32), np.zeros((2, 0), np.float32)
        >>> query = scorer.sums("query", np.array([0]), np.array([0, 1]), None, none[0], threads=1)
        >>> items = scorer.sums("item", np.array([0, 1]), np.array([0, 1, 2]), None, none[1],
        ...                     threads=1)
        >>> no_ids, no_cells = np.zeros(0, np.int64), np.zeros(1, np.int64)
        >>> wide, _ = scorer.rank(*query, *items, None, np.array([1, 0, 1]), no_ids, no_cells,
        ...                       threads=1)
        >>> wide[:, 0].tolist()
        [2.5, 1.5, 2.5]
    """
    scorer: RankScorer = backend.RankScorer(n_slots, n_dense, n_classes)
    return scorer
