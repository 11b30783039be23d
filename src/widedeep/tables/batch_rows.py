"""A batch and a schema's slots, in the arrays that the kernels take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.kernels import torch_ops


class BatchArrays(Protocol):
    """What tables read of a batch: its ids, their offsets and weights (example-major)."""

    ids_N: NDArray[np.int64]
    offsets_BF: NDArray[np.int64]
    values_N: NDArray[np.float32] | None


class SlotLike(Protocol):
    """What tables read of a feature slot."""

    @property
    def name(self) -> str:
        """The feature's name."""

    @property
    def combiner(self) -> str | None:
        """How a bag is combined in the deep part; None keeps the sequence."""

    def wide_combiner(self, combiner: str) -> str:
        """Return how its weights are combined in the wide part of a model with ``combiner``."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The distinct rows of a table that a batch touches."""

    rows: Tensor  # int64 physical rows, on the table's device
    places: kernels.Groups | torch_ops.TensorGroups  # Where each of them occurs

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def table_starts(self) -> tuple[NDArray[np.int64], Tensor | None]:
        """First row of each logical table, and their number; the same on the device, if there."""
        if isinstance(self.places, kernels.Groups):
            return self.places.table_starts, None
        return self.places.table_starts, self.places.table_starts_there


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The slots that take part in one table, and where each begins."""

    n_features: int  # F
    slots: NDArray[np.int32]  # int32 ascending slots
    tables: NDArray[np.int32]  # int32 logical table of each
    bases: NDArray[np.int64]  # int64 first row of each one's table
    sizes: NDArray[np.int64]  # int64 rows of each one's table
    combiners: NDArray[np.int8]  # int8 combiner of each
    columns: NDArray[np.int64]  # int64 first column of each in the deep input (0 in the wide part)

    @classmethod
    def make(
        cls,
        slots: Sequence[SlotLike],
        chosen: Sequence[int],
        table_of: Mapping[str, int],
        bases: NDArray[np.int64],
        sizes: NDArray[np.int64],
        combiners: Sequence[str],
        columns: Mapping[str, slice] | None,
    ) -> Placement:
        """Place the chosen slots."""
        names = [slots[i].name for i in chosen]
        tables = np.array([table_of[name] for name in names], np.int32)
        starts = [0 if columns is None else columns[name].start for name in names]
        placed = cls(
            n_features=len(slots),
            slots=np.array(chosen, np.int32),
            tables=tables,
            bases=bases[tables],
            sizes=sizes[tables],
            combiners=np.array([kernels.COMBINERS[name] for name in combiners], np.int8),
            columns=np.array(starts, np.int64),
        )
        # So that the kernels check them once.
        for array in (placed.slots, tables, placed.bases, placed.sizes, placed.columns):
            array.flags.writeable = False
        return placed

    def to_device(self, device: torch.device) -> torch_ops.TensorSlots:
        """Return the placement as tensors over all features."""

        def spread(values: NDArray[Any], rest: int) -> Tensor:
            full = np.full(self.n_features, rest, np.int64)
            full[self.slots] = values
            return torch.from_numpy(full).to(device)

        return torch_ops.TensorSlots(
            features=tuple(self.slots.tolist()),
            columns=tuple(self.columns.tolist()),
            base_F=spread(self.bases, -1),
            size_F=spread(self.sizes, 0),
            combiner_F=spread(self.combiners, 0),
            column_F=spread(self.columns, 0),
            sums_alone=not self.combiners.any(),
        )


def sequence_places(batch: BatchArrays, n_features: int, slots: Sequence[int]) -> NDArray[np.int64]:
    """Return each occurrence's row in the unpooled embeddings of ``slots``, one after the other."""
    lengths = np.diff(batch.offsets_BF)
    slot_N = np.repeat(np.arange(len(lengths)) % n_features, lengths)
    places = np.full(len(batch.ids_N), -1, np.int64)
    filled = 0
    for slot in slots:
        at = np.flatnonzero(slot_N == slot)
        places[at] = np.arange(filled, filled + len(at))
        filled += len(at)
    return places
