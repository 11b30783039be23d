"""PackedExamples: examples as byte strings, which cost little to keep, to store and to shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.errors import DataError, RowError
from widedeep.kernels import ExampleLayout

_WIDTHS = (1, 2, 3, 4, 8)


class LayoutFields(TypedDict):
    """What a layout is made of, as JSON holds it."""

    widths: list[int]  # Bytes of an id, by slot
    n_dense: int
    n_labels: int
    has_values: bool
    has_weight: bool
    has_group: bool


@dataclass(frozen=True, slots=True)
class PackedExamples:
    """Examples as byte strings that lie anywhere in memory, each id in as few bytes as suffice.

    Slicing, taking and joining move the strings' addresses alone. An example of 29 ids and 13
    numbers has about 120 bytes, a fifth of what a :class:`Batch` takes for it.
    """

    layout: ExampleLayout
    spans_B2: NDArray[np.int64]  # (B, 2) addresses: where each example begins and ends
    owners: tuple[NDArray[np.uint8], ...]  # The memory that they lie in

    def __len__(self) -> int:
        return len(self.spans_B2)

    @classmethod
    def pack(cls, batch: Batch, sizes: Sequence[int] | None) -> PackedExamples:
        """Pack a batch whose ids of each slot are below a size; any ids without sizes.

        Raises:
            RowError: For an id that is not.
        """
        layout = ExampleLayout(**layout_fields(batch, sizes))
        try:
            return cls.within(layout, *pack_batch(batch, layout))
        except ValueError as error:
            raise _wrong_id(batch, sizes) or error from None

    @classmethod
    def within(
        cls, layout: ExampleLayout, packed: NDArray[np.uint8], starts: NDArray[np.int64]
    ) -> PackedExamples:
        """Return examples that lie one behind the other in an array, from start to start."""
        spans_B2 = np.stack([starts[:-1], starts[1:]], axis=1) + packed.ctypes.data
        return cls(layout, spans_B2, (packed,))

    def slice(self, start: int, stop: int) -> PackedExamples:
        """Return examples ``start`` to ``stop``."""
        return PackedExamples(self.layout, self.spans_B2[start:stop], self.owners)

    def take(self, rows_B: NDArray[np.int64]) -> PackedExamples:
        """Return the examples at the given positions, in that order."""
        return PackedExamples(self.layout, self.spans_B2[rows_B], self.owners)

    @staticmethod
    def concat(parts: Sequence[PackedExamples]) -> PackedExamples:
        """Return the examples of several parts of one layout, one after the other."""
        if len(parts) == 1:
            return parts[0]
        owners = {id(owner): owner for part in parts for owner in part.owners}
        spans_B2 = np.concatenate([part.spans_B2 for part in parts])
        return PackedExamples(parts[0].layout, spans_B2, tuple(owners.values()))

    def unpack(self) -> Batch:
        """Return the batch."""
        try:
            arrays = kernels.unpack_examples(self.layout, np.ascontiguousarray(self.spans_B2))
        except ValueError as error:
            raise DataError(
                f"encoded rows are damaged ({error}); delete their folder, and they are encoded "
                "again"
            ) from error
        ids, offsets, dense, values, labels, weight, group = arrays
        return Batch(ids, offsets, dense, values, labels, weight, group)


def id_widths(sizes: Sequence[int]) -> list[int]:
    """Return how many bytes hold the ids of each slot, which are below a size."""
    # The largest number of a width stands for no id.
    return [next(w for w in _WIDTHS if size < 1 << (8 * w)) for size in sizes]


def layout_fields(batch: Batch, sizes: Sequence[int] | None) -> LayoutFields:
    """Return the layout of a batch whose ids of each slot are below a size."""
    widths = [_WIDTHS[-1]] * batch.n_slots
    if sizes is not None:
        widths = id_widths(sizes)
    return {
        "widths": widths,
        "n_dense": batch.dense_BK.shape[1],
        "n_labels": 0 if batch.labels_BL is None else batch.labels_BL.shape[1],
        "has_values": batch.values_N is not None,
        "has_weight": batch.weight_B is not None,
        "has_group": batch.group_B is not None,
    }


def _wrong_id(batch: Batch, sizes: Sequence[int] | None) -> RowError | None:
    """Return what is said of the first id that its slot has no place for."""
    cell_N = np.repeat(np.arange(len(batch.offsets_BF) - 1), np.diff(batch.offsets_BF))
    if sizes is None or len(cell_N) != len(batch.ids_N):
        return None
    size_N = np.array(sizes)[cell_N % batch.n_slots]
    wrong_N = np.flatnonzero((batch.ids_N < 0) | (batch.ids_N >= size_N))
    if not len(wrong_N):
        return None
    first = int(wrong_N[0])
    row, slot = divmod(int(cell_N[first]), batch.n_slots)
    return RowError(
        f"feature slot {slot}", row,
        f"got id {batch.ids_N[first]}, expected 0 <= id < {size_N[first]}; encode the rows with "
        "the schema that the model was made with",
    )  # fmt: skip


def pack_batch(batch: Batch, layout: ExampleLayout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of a batch's examples, one behind the other, and where each begins."""
    return kernels.pack_examples(
        layout,
        batch.ids_N,
        batch.offsets_BF,
        batch.values_N,
        batch.dense_BK,
        batch.labels_BL if layout.n_labels else None,
        batch.weight_B,
        batch.group_B,
    )
