"""Batch: examples as ids, offsets and dense numbers, ready for the model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep import kernels
from widedeep.schema import Schema


@dataclass(frozen=True, slots=True)
class Cells:
    """One feature's ids of B examples."""

    ids_N: NDArray[np.int64]
    offsets: NDArray[np.int64]  # (B + 1,)
    values_N: NDArray[np.float32] | None  # Weight of each id, or None where all are 1

    @property
    def longest(self) -> int:
        """The most ids that an example has."""
        return int(np.diff(self.offsets).max(initial=0))

    def places(self, steps: int) -> NDArray[np.int64]:
        """Return each id's place among (B, T) places, with T = ``steps``."""
        lengths = np.diff(self.offsets)
        first_N = np.repeat(np.arange(len(lengths)) * steps - self.offsets[:-1], lengths)
        places: NDArray[np.int64] = first_N + np.arange(len(self.ids_N))
        return places


@dataclass(slots=True)
class Batch:
    """B encoded examples in example-major order."""

    # int64, feature-local ids: 0 out-of-vocabulary, 1 missing, known values from 2
    ids_N: NDArray[np.int64]
    offsets_BF: NDArray[np.int64]  # int64 of length B * F + 1, starting at 0
    dense_BK: NDArray[np.float32]  # float32, transformed numbers
    # float32 weight of each id, or None where all are 1
    values_N: NDArray[np.float32] | None = None
    # float32, one column a label (class indices for multi-class), or None
    labels_BL: NDArray[np.float32] | None = None
    weight_B: NDArray[np.float32] | None = None  # float32 example weights, or None where all are 1
    group_B: NDArray[np.int64] | None = None  # int64 key of each example's query, or None
    # int64 first example of each of this rank's lanes, and their number; None where it is one
    lane_starts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.dense_BK.shape[0])

    @property
    def n_slots(self) -> int:
        """F, the number of feature slots."""
        return (len(self.offsets_BF) - 1) // len(self) if len(self) else 0

    @property
    def nbytes(self) -> int:
        """Total size of the arrays in bytes."""
        arrays = (
            self.ids_N,
            self.offsets_BF,
            self.dense_BK,
            self.values_N,
            self.labels_BL,
            self.weight_B,
            self.group_B,
        )
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def n_values(self) -> int:
        """Ids and dense numbers of all examples."""
        return len(self.ids_N) + self.dense_BK.size

    def cells(self, slot: int) -> Cells:
        """Return one feature's ids of all examples."""
        slots = max(1, self.n_slots)
        starts = self.offsets_BF[slot : len(self) * slots : slots]
        lengths = self.offsets_BF[slot + 1 :: slots][: len(self)] - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # (N,) where each id lies: its example's first, and its place within the example
        picks = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        values = None if self.values_N is None else self.values_N[picks]
        return Cells(self.ids_N[picks], offsets, values)

    def slice(self, start: int, stop: int) -> Batch:
        """Return examples ``start`` to ``stop``; all but the offsets are views."""
        stop = min(stop, len(self))
        slots = self.n_slots
        offsets = self.offsets_BF[start * slots : stop * slots + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Batch(
            ids_N=self.ids_N[first:last],
            offsets_BF=offsets - first,
            dense_BK=self.dense_BK[start:stop],
            values_N=None if self.values_N is None else self.values_N[first:last],
            labels_BL=None if self.labels_BL is None else self.labels_BL[start:stop],
            weight_B=None if self.weight_B is None else self.weight_B[start:stop],
            group_B=None if self.group_B is None else self.group_B[start:stop],
        )

    def target_columns(self) -> list[NDArray[Any]]:
        """Return labels, weights and groups, each (B, K): what metrics read beside scores."""
        assert self.labels_BL is not None
        ones_B, zeros_B = np.ones(len(self), np.float32), np.zeros(len(self), np.int64)
        weight_B = ones_B if self.weight_B is None else self.weight_B
        group_B = zeros_B if self.group_B is None else self.group_B
        return [self.labels_BL, weight_B[:, None], group_B[:, None]]

    def of_targets(self, columns: Sequence[NDArray[Any]]) -> Batch:
        """Return other rows' :meth:`target_columns` as a batch without features."""
        labels_BL, weight_B1, group_B1 = columns
        return Batch(
            ids_N=np.empty(0, np.int64),
            offsets_BF=np.zeros(1, np.int64),
            dense_BK=np.empty((len(labels_BL), 0), np.float32),
            labels_BL=labels_BL,
            weight_B=None if self.weight_B is None else weight_B1[:, 0],
            group_B=None if self.group_B is None else group_B1[:, 0],
        )

    def lanes(self) -> list[Batch]:
        """Return the examples of each of this rank's lanes."""
        if self.lane_starts is None:
            return [self]
        starts = self.lane_starts.tolist()
        return [self.slice(a, b) for a, b in itertools.pairwise(starts)]

    def take(self, rows_B: NDArray[np.int64], *, threads: int = 1) -> Batch:
        """Return the examples at the given positions, in that order."""
        ids, offsets, values = self.ids_N, self.offsets_BF, self.values_N
        if self.n_slots:
            batch = kernels.CsrBatch(ids, offsets, values, self.n_slots)
            ids, offsets, values = kernels.take_rows(batch, rows_B, threads)
        return Batch(
            ids_N=ids,
            offsets_BF=offsets,
            dense_BK=self.dense_BK[rows_B],
            values_N=values,
            labels_BL=None if self.labels_BL is None else self.labels_BL[rows_B],
            weight_B=None if self.weight_B is None else self.weight_B[rows_B],
            group_B=None if self.group_B is None else self.group_B[rows_B],
        )

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """Return the examples of several batches of one schema, one after the other."""
        if len(batches) == 1:
            return batches[0]
        shifts = np.cumsum([0, *(len(batch.ids_N) for batch in batches)])
        offsets = [np.zeros(1, np.int64)]
        offsets += [
            batch.offsets_BF[1:] + shift for batch, shift in zip(batches, shifts[:-1], strict=True)
        ]
        return Batch(
            ids_N=np.concatenate([batch.ids_N for batch in batches]),
            offsets_BF=np.concatenate(offsets),
            dense_BK=np.concatenate([batch.dense_BK for batch in batches]),
            values_N=_concat_values(batches),
            labels_BL=_concat_optional([batch.labels_BL for batch in batches]),
            weight_B=_concat_optional([batch.weight_B for batch in batches]),
            group_B=_concat_optional([batch.group_B for batch in batches]),
        )


def _concat_values(batches: Sequence[Batch]) -> NDArray[np.float32] | None:
    if all(batch.values_N is None for batch in batches):
        return None
    return np.concatenate(
        [
            np.ones(len(batch.ids_N), np.float32) if batch.values_N is None else batch.values_N
            for batch in batches
        ]
    )


def _concat_optional(arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if len(present) == len(arrays) else None


def count_values(schema: Schema, batch: Batch) -> dict[str, tuple[int, int]]:
    """Return how many values each categorical feature has in a batch: the unseen ones, and all."""
    slots = schema.slots
    if not len(batch):
        return {}
    totals_F = np.diff(batch.offsets_BF).reshape(len(batch), len(slots)).sum(axis=0)
    places = np.flatnonzero(batch.ids_N == 0)
    cells = np.searchsorted(batch.offsets_BF, places, side="right") - 1
    unseen_F = np.bincount(cells % len(slots), minlength=len(slots))
    return {
        slot.name: (int(unseen), int(total))
        for slot, unseen, total in zip(slots, unseen_F, totals_F, strict=True)
        if slot.is_value
    }
