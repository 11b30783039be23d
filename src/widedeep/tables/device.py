"""Batches on a device: brought there once, beside the work that is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.kernels import torch_device, torch_ops
from widedeep.kernels.torch_ops import SortedIds, TensorBatch, TensorGroups, TensorSlots, to_device
from widedeep.tables.batch_rows import BatchArrays, Groups, Placement

_OTHERS = ("dense_BK", "labels_BL", "weight_B")
_DERIVED = ("lengths_BF", "cell_N", "feature_N")
_ALIGNED = 64  # bytes
_LONG = 1 << 18  # numbers from which it is worth waking torch's threads for a pass over them
_TYPES = {"<i8": torch.int64, "<f4": torch.float32}
_STEPS_AHEAD = 2  # batches whose work may wait on the device; more would only hold memory
Found = TypeVar("Found")


class DeviceBatches:
    """Brings each batch to a device once, for all tables that look into it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: tuple[BatchArrays, TensorBatch] | None = None
        self._checked: set[object] = set()
        self._stream: torch.cuda.Stream | None = None
        self._marks: deque[torch.cuda.Event] = deque()
        self._places = np.zeros(0, np.int64)

    def bring(self, batch: BatchArrays, n_features: int) -> TensorBatch:
        """Return a batch's ids on the device; its arrays must not change between calls."""
        if self._held is None or self._held[0] is not batch:
            self._bound_lead()
            self._held = (batch, self._beside(lambda: self._copy(batch, n_features)))
            self._checked.clear()
        return self._held[1]

    def array(self, batch: object, name: str) -> Tensor:
        """Return one of a batch's arrays on the device, as it was brought if it was."""
        if self._held is not None and self._held[0] is batch and name in self._held[1].others:
            return self._held[1].others[name]
        return to_device(getattr(batch, name), self.device)

    def _copy(self, batch: BatchArrays, n_features: int) -> TensorBatch:
        cells = len(batch.offsets_BF) - 1
        single = cells == len(batch.ids_N) and self._counts_up(batch.offsets_BF)
        names = ("ids_N", *(() if single else ("offsets_BF",)), "values_N", *_OTHERS)
        given = {name: getattr(batch, name, None) for name in names}
        found, memory = self._pack({k: v for k, v in given.items() if v is not None})
        return TensorBatch(
            found["ids_N"],
            found.get("offsets_BF"),
            found.get("values_N"),
            n_features,
            cells,
            {name: found[name] for name in _OTHERS if name in found},
            memory,
        )

    def _counts_up(self, offsets_BF: NDArray[np.int64]) -> bool:
        """Tell whether every cell holds one id."""
        if len(self._places) < len(offsets_BF):
            self._places = np.arange(len(offsets_BF))
        places = self._places[: len(offsets_BF)]
        if len(places) < _LONG:
            return np.array_equal(offsets_BF, places)
        return not bool(torch.ne(torch.from_numpy(offsets_BF), torch.from_numpy(places)).any())

    def _pack(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Bring arrays over; to a GPU in one piece, since each copy has its price."""
        if self.device.type != "cuda":
            return {k: torch.from_numpy(v).to(self.device) for k, v in arrays.items()}, None
        sizes = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays.values()]
        pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        held, start = pinned.numpy(), 0
        places: dict[str, slice] = {}
        for (name, array), size in zip(arrays.items(), sizes, strict=True):
            places[name] = slice(start, start + array.nbytes)
            place = held[places[name]].view(array.dtype).reshape(array.shape)
            if array.size < _LONG:
                np.copyto(place, array)
            else:
                torch.from_numpy(place).copy_(torch.from_numpy(array))
            start += size
        memory = pinned.to(self.device, non_blocking=True)
        parts = {}
        for name, array in arrays.items():
            part = memory[places[name]].view(_TYPES[array.dtype.str])
            parts[name] = part if array.ndim == 1 else part.view(array.shape)
        return parts, memory

    def check(self, table: object, batch: TensorBatch, slots: TensorSlots) -> None:
        """Raise IdOutOfRangeError if an id lies outside its table; once a batch and table."""
        if table not in self._checked:
            self._beside(lambda: torch_ops.check_ids(batch, slots), batch)
            self._checked.add(table)

    def group(
        self, table: object, batch: TensorBatch, slots: TensorSlots,
        bounds_T: Tensor, n_rows: int,
    ) -> TensorGroups:  # fmt: skip
        """Group a batch's ids, which checks them as well."""
        sparse = torch_device.kernels_on(self.device)
        ordered = self._beside(lambda: sparse.sort_ids(batch, slots, bounds_T, n_rows), batch)
        self._checked.add(table)
        groups: TensorGroups = sparse.find_rows(ordered)
        return groups

    def was_checked(self, table: object) -> None:
        """Tell that a table's ids of the present batch are known to be inside."""
        self._checked.add(table)

    def _beside(self, work: Callable[[], Found], batch: TensorBatch | None = None) -> Found:
        """Do work that reads ids alone beside the rest; what comes after waits for it."""
        if self.device.type != "cuda":
            return work()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            found = work()
        main.wait_stream(self._stream)
        # Memory that one stream asked for and another reads must not be given away meanwhile.
        for tensor in (*_tensors(found), *_tensors(batch)):
            tensor.record_stream(main)
        return found

    def _bound_lead(self) -> None:
        if self.device.type != "cuda":
            return
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self.device))
        self._marks.append(mark)
        if len(self._marks) > _STEPS_AHEAD:
            self._marks.popleft().synchronize()


class DevicePlaces:
    """Where a table's slots lie, as tensors on its device, kept from step to step."""

    def __init__(self, batches: DeviceBatches, bases: NDArray[np.int64], n_rows: int) -> None:
        self.batches = batches
        self.n_rows = n_rows
        self.bounds_T = torch.from_numpy(np.append(bases, n_rows)).to(batches.device)
        self._slots: dict[int, tuple[Placement, TensorSlots]] = {}

    def place(
        self, batch: BatchArrays, placed: Placement, *, check: bool
    ) -> tuple[TensorBatch, TensorSlots]:
        """Return a batch and a placement on the device."""
        held = self._slots.get(id(placed))
        if held is None or held[0] is not placed:
            if len(self._slots) >= 8:
                self._slots.clear()
            held = self._slots[id(placed)] = (placed, placed.to_device(self.batches.device))
        ids = self.batches.bring(batch, placed.n_features)
        if check:
            self.batches.check(self, ids, held[1])
        return ids, held[1]

    def group(self, batch: BatchArrays, placed: Placement) -> Groups:
        """Group a batch's ids by row."""
        ids, slots = self.place(batch, placed, check=False)
        found = self.batches.group(self, ids, slots, self.bounds_T, self.n_rows)
        return Groups(found.rows_U, found)

    def regroup(self, groups: TensorGroups, tables: list[int], shifts: NDArray[np.int64]) -> Groups:
        """Take the groups of a table that holds the same logical tables, ``shifts`` rows away."""
        self.batches.was_checked(self)
        found = torch_ops.select_tables(groups, tables, shifts)
        return Groups(found.rows_U, found)


def _tensors(found: object) -> Iterator[Tensor]:
    if isinstance(found, SortedIds):
        yield from (found.rows_N, found.order_N, found.numbers_N, found.bounds)
    elif isinstance(found, TensorBatch):
        if found.memory is not None:
            yield found.memory
        yield from (value for name, value in vars(found).items() if name in _DERIVED)
