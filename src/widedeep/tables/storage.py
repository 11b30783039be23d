"""Where a table's numbers lie: one record a row, its weights and optimizer state side by side.

An update touches a row's weights and all of its state. In one record they share cache lines and a
page, so a row in a table far larger than the caches costs one trip to memory, not one a tensor.
"""

from __future__ import annotations

import errno
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.kernels import torch_device, torch_ops
from widedeep.kernels.torch_ops import SortedIds, TensorBatch, TensorGroups, TensorSlots

_LINE = 16  # floats of a cache line
_HUGE_PAGE = 2 << 20  # bytes
_HUGE_BYTES = 2 * _HUGE_PAGE  # from here on, ask for huge pages
_COLLAPSED_BYTES = 64 << 20  # at once: a failure ends a call
_REFUSALS = 8  # of memory in one piece, after which no more is asked for
_MADV_COLLAPSE = 25  # Linux 6.1; Python does not name it


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """What a record of a table holds: the weights, then the optimizer's state tensors."""

    dim: int
    names: tuple[str, ...]  # Parts by name; the first are the weights
    widths: tuple[int, ...]  # Numbers of each
    dtype: torch.dtype = torch.float32  # Type of the weights; state is float32

    @property
    def starts(self) -> list[int]:
        """The bytes before each part, and before the end."""
        weights = -(-self.dim * self.dtype.itemsize // 4) * 4
        return [0, *np.cumsum([weights, *(4 * width for width in self.widths[1:])]).tolist()]

    @property
    def stride(self) -> int:
        """The bytes from one record to the next."""
        if self.dtype == torch.float32 and set(self.widths) == {self.dim}:
            return 4 * record_stride(sum(self.widths))
        return self.starts[-1]  # Chosen to save memory: nothing is left between


class RowStorage:
    """R records of one layout; those of several parts let an update touch few cache lines."""

    def __init__(self, n_rows: int, layout: RecordLayout, device: torch.device) -> None:
        self.layout, self.names, self.n_rows = layout, layout.names, n_rows
        memory, self._pages = _zeros(n_rows * layout.stride // 4, device)
        types = [layout.dtype, *(torch.float32 for _ in self.names[1:])]
        # Made once: every step asks for each of them.
        self._parts = {
            name: memory.view(dtype).as_strided(
                (n_rows, width), (layout.stride // dtype.itemsize, 1), start // dtype.itemsize
            )
            for name, width, dtype, start in zip(
                self.names, layout.widths, types, layout.starts, strict=False
            )
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pages: a copy's numbers lie elsewhere."""
        return {**self.__dict__, "_pages": None}

    def part(self, name: str) -> Tensor:
        """Return a view of one part, (R, its width); its rows lie a record apart."""
        return self._parts[name]

    def collapse(self) -> None:
        """Move what was written into huge pages where the system had none at the first touch."""
        if (pages := self._pages) is None:
            return
        refusals = 0
        for start in range(0, len(pages), _COLLAPSED_BYTES):
            try:
                pages.madvise(_MADV_COLLAPSE, start, min(_COLLAPSED_BYTES, len(pages) - start))
            except OSError as error:  # EINVAL: nothing written there, or an older system
                refusals += error.errno != errno.EINVAL  # each has searched for memory
                if refusals == _REFUSALS:
                    return


def batch_rows(rows: int, width: int, device: torch.device) -> Tensor:
    """Return a buffer of zeros, (rows, width), for embeddings or gradients of a batch."""
    lines = -(-max(width, 1) // _LINE)
    stride = (lines + 1 - lines % 2) * _LINE
    return _zeros(rows * stride, device)[0].view(rows, stride)[:, :width]


def record_stride(width: int) -> int:
    """Return the floats from one record to the next, so that few records straddle a cache line.

    Those of up to four numbers lie without gaps: a wide weight with FTRL's state in 12 bytes, which
    took no more time than 16 in tables far larger than the caches.
    """
    if width <= 4:
        return width
    if width <= _LINE:
        return 1 << (width - 1).bit_length()
    lines = -(-width // _LINE) * _LINE
    return lines if lines <= width * 1.25 else -(-width // 4) * 4


def _zeros(numbers: int, device: torch.device) -> tuple[Tensor, mmap.mmap | None]:
    """Return zeros, and the pages that hold them: huge ones where the system grants them.

    A row of a large table then costs a miss of the cache and seldom one of the TLB. Only a mapping
    of whole huge pages begins at one.
    """
    n_bytes = numbers * 4
    if device.type != "cpu" or n_bytes < _HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(numbers, device=device), None
    whole = -(-n_bytes // _HUGE_PAGE) * _HUGE_PAGE
    pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, np.float32, numbers)), pages


_OTHERS = ("dense_BK", "labels_BL", "weight_B")
_DERIVED = ("lengths_BF", "cell_N", "feature_N")
_ALIGNED = 64  # bytes
_LONG = 1 << 18  # numbers from which it is worth waking torch's threads for a pass over them
_TYPES = {"<i8": torch.int64, "<f4": torch.float32}
_STEPS_AHEAD = 2  # batches whose work may wait on the device; more would only hold memory
Result = TypeVar("Result")


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
    occurrences: kernels.Groups | TensorGroups  # Where each of them occurs
    lane_counts: Tensor | None = None  # How often, where an occurrence stands for those of a lane

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> Tensor:
        """How often each of the rows occurs in the batch, (U,)."""
        if self.lane_counts is not None:
            return self.lane_counts
        if isinstance(self.occurrences, kernels.Groups):
            return torch.from_numpy(np.diff(self.occurrences.starts_U))
        return self.occurrences.starts_U.diff()

    @property
    def table_starts(self) -> tuple[NDArray[np.int64], Tensor | None]:
        """First row of each logical table, and their number; the same on the device, if there."""
        if isinstance(self.occurrences, kernels.Groups):
            return self.occurrences.table_starts, None
        return self.occurrences.table_starts, self.occurrences.device_table_starts


@dataclass(frozen=True, slots=True, eq=False)
class RowLookup:
    """The rows of a table that one batch reads, wherever they are kept."""

    batch: BatchArrays
    rows_UD: Tensor  # By logical table
    starts_T: NDArray[np.int64]  # (T + 1,) first row of each logical table, and their number
    ids_N: NDArray[np.int64]  # For each of the batch's ids: its row within its logical table


@dataclass(frozen=True, slots=True, eq=False)
class LaneOrder:
    """By which sums over a batch of several lanes are added: as ``ranks/lanes.py`` says."""

    lane_B: NDArray[np.int32]  # Lane of each example, ascending
    lanes: int  # Lanes of the whole batch, on all ranks
    bf16: bool = False  # Whether each sum of lanes is rounded


@dataclass(slots=True, eq=False)
class IdLists:
    """Ids of T logical tables, one list for each of B askers: a batch of T features."""

    ids_N: NDArray[np.int64]
    offsets_BF: NDArray[np.int64]
    values_N: NDArray[np.float32] | None = None


def csr_batch(batch: BatchArrays, n_features: int) -> kernels.CsrBatch:
    """Return a batch as the native kernels take it."""
    return kernels.CsrBatch(batch.ids_N, batch.offsets_BF, batch.values_N, n_features)


def tensor_slots(slots: kernels.Slots, device: torch.device) -> TensorSlots:
    """Return slots as tensors over all F features, on a device."""

    def spread(values: Sequence[int], absent: int) -> Tensor:
        full_F = np.full(slots.n_features, absent, np.int64)
        full_F[slots.features] = values
        return torch.from_numpy(full_F).to(device)

    return TensorSlots(
        features=tuple(slots.features),
        columns=tuple(slots.columns),
        base_F=spread(slots.bases, -1),
        size_F=spread(slots.sizes, 0),
        combiner_F=spread(slots.combiners, 0),
        column_F=spread(slots.columns, 0),
        sums_alone=not any(slots.combiners),
    )


def sequence_rows(batch: BatchArrays, n_features: int, slots: Sequence[int]) -> NDArray[np.int64]:
    """Return each id's row in the unpooled embeddings of ``slots``, one after the other, or -1."""
    lengths_BF = np.diff(batch.offsets_BF)
    slot_N = np.repeat(np.arange(len(lengths_BF)) % n_features, lengths_BF)
    row_N = np.full(len(batch.ids_N), -1, np.int64)
    n_rows = 0
    for slot in slots:
        ids_of_slot = np.flatnonzero(slot_N == slot)
        row_N[ids_of_slot] = np.arange(n_rows, n_rows + len(ids_of_slot))
        n_rows += len(ids_of_slot)
    return row_N


class DeviceBatches:
    """Copies each batch to a device once, for all tables that look into it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._current: tuple[BatchArrays, TensorBatch] | None = None
        self._checked: set[object] = set()
        self._stream: torch.cuda.Stream | None = None
        self._marks: deque[torch.cuda.Event] = deque()
        self._cell_numbers = np.zeros(0, np.int64)

    def to_device(self, batch: BatchArrays, n_features: int) -> TensorBatch:
        """Return a batch's ids on the device; its arrays must not change between calls."""
        if self._current is None or self._current[0] is not batch:
            self._limit_steps_in_flight()
            self._current = (batch, self._on_side_stream(lambda: self._copy(batch, n_features)))
            self._checked.clear()
        return self._current[1]

    def array(self, batch: object, name: str) -> Tensor:
        """Return one of a batch's arrays on the device, copied with the batch if it was."""
        current = self._current
        if current is not None and current[0] is batch and name in current[1].others:
            return current[1].others[name]
        return torch_ops.to_device(getattr(batch, name), self.device)

    def _copy(self, batch: BatchArrays, n_features: int) -> TensorBatch:
        cells = len(batch.offsets_BF) - 1
        single = cells == len(batch.ids_N) and self._one_id_per_cell(batch.offsets_BF)
        names = ("ids_N", *(() if single else ("offsets_BF",)), "values_N", *_OTHERS)
        arrays = {name: getattr(batch, name, None) for name in names}
        tensors, memory = self._pack({k: v for k, v in arrays.items() if v is not None})
        return TensorBatch(
            tensors["ids_N"],
            tensors.get("offsets_BF"),
            tensors.get("values_N"),
            n_features,
            cells,
            {name: tensors[name] for name in _OTHERS if name in tensors},
            memory,
        )

    def _one_id_per_cell(self, offsets_BF: NDArray[np.int64]) -> bool:
        """Tell whether every cell holds one id."""
        if len(self._cell_numbers) < len(offsets_BF):
            self._cell_numbers = np.arange(len(offsets_BF))
        numbers = self._cell_numbers[: len(offsets_BF)]
        if len(numbers) < _LONG:
            return np.array_equal(offsets_BF, numbers)
        return not bool(torch.ne(torch.from_numpy(offsets_BF), torch.from_numpy(numbers)).any())

    def _pack(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Copy arrays to the device; to a GPU in one piece, since each copy has its price."""
        if self.device.type != "cuda":
            return {k: torch.from_numpy(v).to(self.device) for k, v in arrays.items()}, None
        sizes = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays.values()]
        pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        buffer, start = pinned.numpy(), 0
        spans: dict[str, slice] = {}  # bytes of each array
        for (name, array), size in zip(arrays.items(), sizes, strict=True):
            spans[name] = slice(start, start + array.nbytes)
            target = buffer[spans[name]].view(array.dtype).reshape(array.shape)
            if array.size < _LONG:
                np.copyto(target, array)
            else:
                torch.from_numpy(target).copy_(torch.from_numpy(array))
            start += size
        memory = pinned.to(self.device, non_blocking=True)
        tensors = {}
        for name, array in arrays.items():
            flat = memory[spans[name]].view(_TYPES[array.dtype.str])
            tensors[name] = flat if array.ndim == 1 else flat.view(array.shape)
        return tensors, memory

    def check(self, table: object, batch: TensorBatch, slots: TensorSlots) -> None:
        """Raise IdOutOfRangeError if an id lies outside its table; once a batch and table."""
        if table not in self._checked:
            self._on_side_stream(lambda: torch_ops.check_ids(batch, slots), batch)
            self._checked.add(table)

    def group(
        self, table: object, batch: TensorBatch, slots: TensorSlots,
        bounds_T: Tensor, n_rows: int,
    ) -> TensorGroups:  # fmt: skip
        """Group a batch's ids, which checks them as well."""
        sparse = torch_device.kernels_on(self.device)
        ordered = self._on_side_stream(
            lambda: sparse.sort_ids(batch, slots, bounds_T, n_rows), batch
        )
        self._checked.add(table)
        groups: TensorGroups = sparse.find_rows(ordered)
        return groups

    def mark_checked(self, table: object) -> None:
        """Tell that a table's ids of the present batch are known to be inside."""
        self._checked.add(table)

    def _on_side_stream(
        self, work: Callable[[], Result], batch: TensorBatch | None = None
    ) -> Result:
        """Do work that reads only ids on a stream of its own; later work waits for it."""
        if self.device.type != "cuda":
            return work()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            result = work()
        main.wait_stream(self._stream)
        # Memory that one stream asked for and another reads must not be given away meanwhile.
        for tensor in (*_tensors(result), *_tensors(batch)):
            tensor.record_stream(main)
        return result

    def _limit_steps_in_flight(self) -> None:
        if self.device.type != "cuda":
            return
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self.device))
        self._marks.append(mark)
        if len(self._marks) > _STEPS_AHEAD:
            self._marks.popleft().synchronize()


class DeviceSlots:
    """A table's slots as tensors on its device, kept from step to step."""

    def __init__(self, batches: DeviceBatches, bases: NDArray[np.int64], n_rows: int) -> None:
        self.batches = batches
        self.n_rows = n_rows
        # (T + 1,) first row of each logical table, and their number
        self.bounds_T = torch.from_numpy(np.append(bases, n_rows)).to(batches.device)
        self._tensors: dict[int, tuple[kernels.Slots, TensorSlots]] = {}

    def tensors(
        self, batch: BatchArrays, slots: kernels.Slots, *, check: bool
    ) -> tuple[TensorBatch, TensorSlots]:
        """Return a batch and slots on the device."""
        entry = self._tensors.get(id(slots))
        if entry is None or entry[0] is not slots:
            if len(self._tensors) >= 8:
                self._tensors.clear()
            entry = (slots, tensor_slots(slots, self.batches.device))
            self._tensors[id(slots)] = entry
        ids = self.batches.to_device(batch, slots.n_features)
        if check:
            self.batches.check(self, ids, entry[1])
        return ids, entry[1]

    def group(self, batch: BatchArrays, slots: kernels.Slots) -> Groups:
        """Group a batch's ids by row."""
        ids, on_device = self.tensors(batch, slots, check=False)
        groups = self.batches.group(self, ids, on_device, self.bounds_T, self.n_rows)
        return Groups(groups.rows_U, groups)

    def regroup(self, groups: TensorGroups, tables: list[int], shifts: NDArray[np.int64]) -> Groups:
        """Take the groups of a table that holds the same logical tables, ``shifts`` rows away."""
        self.batches.mark_checked(self)
        selected = torch_ops.select_tables(groups, tables, shifts)
        return Groups(selected.rows_U, selected)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, SortedIds):
        yield from (value.rows_N, value.order_N, value.numbers_N, value.bounds)
    elif isinstance(value, TensorBatch):
        if value.memory is not None:
            yield value.memory
        yield from (tensor for name, tensor in vars(value).items() if name in _DERIVED)
