"""The forward pass: a scorer is built once from a model's arrays, then run on batches."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from widedeep.kernels.backend import backend

__all__ = ["ACTIVATIONS", "Scorer", "new_scorer"]

ACTIVATIONS = ("none", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh")
"""What a dense layer may do to its sums; the slope of ``leaky_relu`` is 0.01."""


class Scorer(Protocol):
    """Turns ids, offsets and dense numbers into the wide and the deep part of the logits.

    Sums run in a fixed order in float32, so a row's logits depend neither on the rows beside it
    nor on ``threads``. Wide part: a slot's ids in order, then its combiner; the query's slots are
    added up one after the other, the item's likewise, then both sums are added. First layer: the
    query's inputs in order, the item's likewise, the two sums added, then the bias. Later layers:
    the inputs in order, then the bias. Arrays given to ``add_wide`` and ``add_embedding`` are read
    where they are, in a mapped file for one; layers are copied.
    """

    def add_wide(
        self, slot: int, weights: NDArray[np.float32], combiner: str, *, item: bool
    ) -> None:
        """Add a slot of the wide part; the query's come before the item's.

        Args:
            slot: Its place among the feature slots.
            weights: (size, C), one row an id.
            combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``.
            item: True if its sum belongs to the item.
        """

    def add_embedding(self, slot: int, table: NDArray[np.float32], combiner: str) -> None:
        """Add a slot's pooled embedding as the next inputs of the deep part.

        Args:
            slot: Its place among the feature slots.
            table: (size, D), one row an id.
            combiner: ``"sum"``, ``"mean"`` or ``"sqrtn"``.
        """

    def add_dense(self, column: int, width: int) -> None:
        """Add dense numbers as the next inputs of the deep part.

        Args:
            column: The first of them.
            width: How many.
        """

    def start_item_inputs(self) -> None:
        """Say that the inputs so far are the query's, and those that follow the item's."""

    def add_layer(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, activation: str
    ) -> None:
        """Add a dense layer; the last one must have C units.

        Args:
            weight: (units, inputs).
            bias: (units,), or None for none.
            activation: One of :data:`ACTIVATIONS`.
        """

    def forward(
        self,
        ids_N: NDArray[np.int64],
        offsets_BF: NDArray[np.int64],
        values_N: NDArray[np.float32] | None,
        dense_BK: NDArray[np.float32],
        *,
        threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the wide part and, if there are layers, the deep part, each (B, C).

        Args:
            ids_N: int64 feature-local ids.
            offsets_BF: int64 of length B * F + 1.
            values_N: float32 weight of each id, or None where all are 1.
            dense_BK: float32 dense numbers.
            threads: Threads to use.

        Raises:
            ValueError: If the arrays are another schema's.
        """

    def concat(
        self,
        ids_N: NDArray[np.int64],
        offsets_BF: NDArray[np.int64],
        values_N: NDArray[np.float32] | None,
        dense_BK: NDArray[np.float32],
        *,
        threads: int,
    ) -> NDArray[np.float32]:
        """Return the inputs of the deep part, (B, X), in the order they were added.

        Args:
            ids_N: int64 feature-local ids.
            offsets_BF: int64 of length B * F + 1.
            values_N: float32 weight of each id, or None where all are 1.
            dense_BK: float32 dense numbers.
            threads: Threads to use.

        Raises:
            ValueError: If the arrays are another schema's.
        """


def new_scorer(n_slots: int, n_dense: int, n_classes: int) -> Scorer:
    """Return an empty scorer of the kernels in use.

    Args:
        n_slots: F, feature slots of a batch.
        n_dense: K, dense columns of a batch.
        n_classes: C, logits an example.

    Example:
        >>> import numpy as np
        >>> scorer = new_scorer(n_slots=1, n_dense=0, n_classes=1)
        >>> scorer.add_wide(0, np.array([[0], [0], [0.5]], np.float32), "sum", item=False)
        >>> ids, offsets = np.array([2, 2]), np.array([0, 1, 2])
        >>> wide, _ = scorer.forward(ids, offsets, None, np.zeros((2, 0), np.float32), threads=1)
        >>> wide.tolist()
        [[0.5], [0.5]]
    """
    scorer: Scorer = backend.Scorer(n_slots, n_dense, n_classes)
    return scorer
