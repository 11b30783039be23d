"""The sparse kernels in torch index operations: for tables on a device, and as a second opinion.

They take tensors of one device and follow the same rules as the C++: no float atomics, and every
sum has a fixed order, so a run repeats its bits. The occurrences of a batch are sorted by row and
cut into pieces: at every new row, and at every multiple of :data:`PIECE` (one thread would walk
down the hundred thousand occurrences of a frequent id). A piece is summed in ascending order of
occurrence, then the pieces of a row. Rows are ordered by their number, not by first occurrence.
Nothing here waits for the device but :func:`check_ids` and :func:`sort_ids`, once each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.kernels.sparse import IdOutOfRangeError

PIECE = 128
"""Most occurrences of a row that are summed one after the other."""

_LOWER = (1 << 32) - 1


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of the CPU as a NumPy view; NumPy has bfloat16 as its bits, uint16.

    Example:
        >>> as_array(torch.ones(1, dtype=torch.bfloat16)).tolist() == [0x3F80]
        True
    """
    if tensor.dtype != torch.bfloat16:
        array: NDArray[Any] = tensor.numpy()
        return array
    return tensor.view(torch.int16).numpy().view(np.uint16)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device; a GPU gets it in its own time, and nobody waits.

    Example:
        >>> to_device(np.arange(3), torch.device("cpu")).tolist()
        [0, 1, 2]
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    # From pageable memory the copy would wait for all the work before it.
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class TensorBatch:
    """The ids of a batch on a device."""

    ids_N: Tensor  # int64 feature-local ids
    offsets_BF: Tensor | None  # int64 of length B * F + 1, or None where every cell holds one id
    values_N: Tensor | None  # float32 weight of each id, or None
    n_features: int  # F
    n_cells: int  # B * F
    # The batch's other arrays by name, where they came along
    others: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Tensor | None = None  # What all of these are parts of, if they came in one piece

    @cached_property
    def lengths_BF(self) -> Tensor:
        """Ids in each cell."""
        if self.offsets_BF is None:
            return torch.ones_like(self.ids_N)
        return self.offsets_BF.diff()

    @cached_property
    def cell_N(self) -> Tensor:
        """The cell ``b * F + f`` of each id."""
        cells = torch.arange(self.n_cells, device=self.ids_N.device)
        if self.offsets_BF is None:
            return cells
        return torch.repeat_interleave(cells, self.lengths_BF, output_size=len(self.ids_N))

    @cached_property
    def feature_N(self) -> Tensor:
        """The slot of each id."""
        return self.cell_N % self.n_features


@dataclass(frozen=True, slots=True, eq=False)
class TensorSlots:
    """The slots that take part, as tensors over all F features."""

    features: tuple[int, ...]  # Ascending slots
    columns: tuple[int, ...]  # First column of each of them
    base_F: Tensor  # int64 first row of each slot's table, -1 where it takes no part
    size_F: Tensor  # int64 rows of each slot's table
    combiner_F: Tensor  # int64 combiner of each slot
    column_F: Tensor  # int64 first column of each slot
    sums_alone: bool  # True if every combiner is the sum


@dataclass(frozen=True, slots=True, eq=False)
class SortedIds:
    """The ids of a batch in the order of their rows."""

    rows_N: Tensor  # The row of each, ascending; those of other tables behind the last row
    order_N: Tensor  # int64 occurrence of each
    # int64 (N + 1) rows begun up to each place in the upper half, pieces begun in the lower; the
    # place behind the last begins both
    numbers_N: Tensor
    # int64 on the device: place, row and piece that begin each logical table (3, T + 1)
    bounds: Tensor
    host_bounds: NDArray[np.int64]  # The same on the host


@dataclass(frozen=True, slots=True, eq=False)
class TensorGroups:
    """The distinct rows of a batch and their occurrences."""

    rows_U: Tensor  # int64 distinct rows, ascending within a logical table
    starts_U: Tensor  # int64 place in ``order`` where each begins, and where the last ends (U + 1)
    order: Tensor  # int64 occurrences by row, ascending within one
    # int64 first piece of each row, and the end (U + 1), counted from ``first_piece``
    pieces_U: Tensor
    first_Q: Tensor  # int64 place in ``order`` where each piece begins, and the end (Q + 1)
    first_piece: int  # Number of the first piece
    # First row of each logical table in ``rows_U``, and their number (T + 1)
    table_starts: NDArray[np.int64]
    bounds: NDArray[np.int64]  # int64 (3, T + 1): first place, row and piece of each logical table
    device_table_starts: Tensor | None = None  # ``table_starts`` on the device, if it has them


def check_ids(batch: TensorBatch, slots: TensorSlots) -> None:
    """Raise IdOutOfRangeError if an id lies outside its table; this waits for the device."""
    outside = _outside(batch, slots)
    if bool(outside.any()):
        n = int(outside.to(torch.uint8).argmax())
        slot = int(batch.feature_N[n])
        example = int(batch.cell_N[n]) // batch.n_features
        raise IdOutOfRangeError(slot, example, int(batch.ids_N[n]), int(slots.size_F[slot]))


def _outside(batch: TensorBatch, slots: TensorSlots) -> Tensor:
    beyond = (batch.ids_N < 0) | (batch.ids_N >= slots.size_F[batch.feature_N])
    return (slots.base_F[batch.feature_N] >= 0) & beyond


def group_ids(
    batch: TensorBatch, slots: TensorSlots, bounds_T: Tensor, n_rows: int
) -> TensorGroups:
    """Find the distinct rows and the occurrences of each.

    Raises:
        IdOutOfRangeError: If an id lies outside its table.

    Example:
        >>> batch = TensorBatch(torch.tensor([3, 1, 3]), torch.tensor([0, 1, 3]), None, 1, 2)
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> slots = TensorSlots((0,), (0,), zero, zero + 4, zero, zero, True)
        >>> groups = group_ids(batch, slots, torch.tensor([0, 4]), 4)
        >>> groups.rows_U.tolist(), groups.starts_U.tolist(), groups.order.tolist()
        ([1, 3], [0, 1, 3], [1, 0, 2])
    """
    return find_rows(sort_ids(batch, slots, bounds_T, n_rows))


def key_type(n_rows: int) -> torch.dtype:
    """Return the type in which rows are sorted: half the digits are half the passes."""
    return torch.int32 if n_rows <= torch.iinfo(torch.int32).max else torch.int64


def sort_ids(batch: TensorBatch, slots: TensorSlots, bounds_T: Tensor, n_rows: int) -> SortedIds:
    """Sort a batch's ids by row, as for :func:`group_ids`, and wait for the number of rows."""
    base_N = slots.base_F[batch.feature_N]
    row_N = torch.where(base_N >= 0, base_N + batch.ids_N, n_rows)
    # Ids outside come first, where they are seen.
    row_N = torch.where(_outside(batch, slots), -1, row_N)
    rows, order = torch.sort(row_N.to(key_type(n_rows)), stable=True)  # (N,) ascending rows
    index = torch.arange(len(rows) + 1, device=rows.device)  # (N + 1,) the last is the end
    begins_row = torch.ones_like(index, dtype=torch.bool)
    torch.ne(rows[1:], rows[:-1], out=begins_row[1:-1])
    begins_piece = begins_row | (index % PIECE == 0)
    # (N + 1,) rows begun so far in the upper half, pieces begun so far in the lower
    numbers = ((begins_row.long() << 32) + begins_piece).cumsum(0)
    firsts = torch.searchsorted(rows, bounds_T.to(rows.dtype))  # (T + 1,) first id of each table
    counts = numbers[firsts]
    # (3, T + 1) first id, row and piece of each logical table, and the ends
    bounds = torch.stack([firsts, (counts >> 32) - 1, (counts & _LOWER) - 1])
    return checked(SortedIds(rows, order, numbers, bounds, bounds.cpu().numpy()), batch, slots)


def checked(ids: SortedIds, batch: TensorBatch, slots: TensorSlots) -> SortedIds:
    """Return it, or raise IdOutOfRangeError if an id stands before the first row."""
    if ids.host_bounds[0, 0] > 0:
        check_ids(batch, slots)
    return ids


def find_rows(ids: SortedIds) -> TensorGroups:
    """Find the distinct rows among sorted ids."""
    n_rows, n_pieces = int(ids.host_bounds[1, -1]), int(ids.host_bounds[2, -1])
    rows = torch.arange(n_rows + 1, device=ids.rows_N.device)
    starts = torch.searchsorted((ids.numbers_N >> 32) - 1, rows)  # (U + 1,) first id of each row
    piece_N = (ids.numbers_N & _LOWER) - 1  # (N + 1,) piece of each sorted id
    pieces = torch.arange(n_pieces + 1, device=rows.device)
    return TensorGroups(
        ids.rows_N[starts[:-1]].to(torch.int64),
        starts,
        ids.order_N,
        piece_N[starts],
        torch.searchsorted(piece_N, pieces),
        0,
        ids.host_bounds[1],
        ids.host_bounds,
        ids.bounds[1],
    )


def select_tables(
    groups: TensorGroups, tables: Sequence[int], shifts: NDArray[np.int64]
) -> TensorGroups:
    """Return the groups of another physical table that holds some of the same logical tables.

    Args:
        groups: Groups of the table that holds them all.
        tables: Distinct logical tables there, in the order they shall have.
        shifts: int64 for each of them: what to add to its rows.
    """
    numbers = np.asarray(tables, np.int64)
    counts = groups.bounds[:, numbers + 1] - groups.bounds[:, numbers]  # (3, T) ids, rows, pieces
    bounds = np.zeros((3, len(numbers) + 1), np.int64)
    np.cumsum(counts, axis=1, out=bounds[:, 1:])
    rows, starts, order, pieces, firsts = [], [], [], [], []
    runs = _runs(groups.bounds, numbers, shifts)
    # Each run is cut out: ids p to q, rows a to b, pieces x to y of the other table's groups.
    for (p, a, x), (q, b, y), shift in runs:
        rows.append(groups.rows_U[a:b] + shift if shift else groups.rows_U[a:b])
        starts.append(groups.starts_U[a : b + 1])
        pieces.append(groups.pieces_U[a : b + 1])
        firsts.append(groups.first_Q[x - groups.first_piece : y + 1 - groups.first_piece])
        order.append(groups.order[p:q])
    if len(runs) == 1:
        (p, a, x), _, _ = runs[0]
        bounds += np.array([[p], [0], [x]])
        return TensorGroups(
            rows[0], starts[0], groups.order, pieces[0], firsts[0], x, bounds[1], bounds
        )
    # (runs + 1, 3) ids, rows and pieces before each run in the result
    ends = np.cumsum([[0, 0, 0], *(np.subtract(end, begin) for begin, end, _ in runs)], axis=0)
    for i, ((p, _, x), _, _) in enumerate(runs):
        last = i + 1 == len(runs)  # the end of one is the beginning of the next
        starts[i] = (starts[i] if last else starts[i][:-1]) + int(ends[i, 0] - p)
        firsts[i] = (firsts[i] if last else firsts[i][:-1]) + int(ends[i, 0] - p)
        pieces[i] = (pieces[i] if last else pieces[i][:-1]) + int(ends[i, 2] - x)
    return TensorGroups(
        torch.cat(rows), torch.cat(starts), torch.cat(order), torch.cat(pieces),
        torch.cat(firsts), 0, bounds[1], bounds,
    )  # fmt: skip


_Ends = tuple[int, int, int]


def _runs(
    bounds: NDArray[np.int64], numbers: NDArray[np.int64], shifts: NDArray[np.int64]
) -> list[tuple[_Ends, _Ends, int]]:
    """Join neighbours of one shift, so that a model of thirty tables is cut in a few places."""
    runs: list[tuple[_Ends, _Ends, int]] = []
    for table, shift in zip(numbers.tolist(), shifts.tolist(), strict=True):
        begin: _Ends = tuple(bounds[:, table].tolist())
        end: _Ends = tuple(bounds[:, table + 1].tolist())
        if runs and runs[-1][1] == begin and runs[-1][2] == shift:
            runs[-1] = (runs[-1][0], end, shift)
        else:
            runs.append((begin, end, shift))
    return runs


def gather_pool(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots, out_BX: Tensor) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``."""
    width = weights_RD.shape[1]
    bags = _bags(weights_RD, batch, slots).view(-1, batch.n_features, width)
    for feature, column, count in _column_runs(slots, width):
        pooled = bags[:, feature : feature + count].flatten(1)
        out_BX[:, column : column + count * width] = pooled


def _column_runs(slots: TensorSlots, width: int) -> list[tuple[int, int, int]]:
    """Return (slot, column, slots) of the runs whose columns follow each other as they do."""
    runs: list[tuple[int, int, int]] = []
    for feature, column in zip(slots.features, slots.columns, strict=True):
        if runs:
            start, first_column, count = runs[-1]
            if feature == start + count and column == first_column + count * width:
                runs[-1] = (start, first_column, count + 1)
                continue
        runs.append((feature, column, 1))
    return runs


def wide_forward(
    weights_RC: Tensor, batch: TensorBatch, slots: TensorSlots, logits_BC: Tensor
) -> None:
    """Add every slot's combined weights to the logits, one slot after the other."""
    bags = _bags(weights_RC, batch, slots).view(-1, batch.n_features, weights_RC.shape[1])
    # The logits come first and the slots follow in order, as if they were added one by one.
    parts = torch.cat([logits_BC[:, None], bags], dim=1)
    each = torch.full((len(parts),), parts.shape[1], device=parts.device)
    logits_BC.copy_(_segments(parts.flatten(0, 1), each))


def segment_sum(
    grad_BX: Tensor,
    groups: TensorGroups,
    batch: TensorBatch,
    slots: TensorSlots,
    width: int,
    sequence_grads_MD: Tensor | None = None,
    sequence_place_N: Tensor | None = None,
) -> Tensor:
    """Sum the gradient of every touched row over its occurrences.

    Args:
        grad_BX: Gradient of the pooled buffer, or of the logits.
        groups: Groups of this batch and these slots.
        batch: The batch.
        slots: The slots.
        width: D.
        sequence_grads_MD: Gradient of unpooled rows.
        sequence_place_N: int64 row of ``sequence_grads_MD`` of each occurrence, -1 if pooled.
    """
    order = groups.order[groups.bounds[0, 0] : groups.bounds[0, -1]]
    cells = order if batch.offsets_BF is None else batch.cell_N[order]
    features = cells % batch.n_features
    columns = slots.column_F[features][:, None] + torch.arange(width, device=cells.device)
    parts = grad_BX[(cells // batch.n_features)[:, None], columns]
    scale = cell_scales(batch, slots)
    if scale is not None or batch.values_N is not None:
        factor = torch.ones(len(cells), device=cells.device)
        if scale is not None:
            factor = scale[cells]
        if batch.values_N is not None:
            factor = factor * batch.values_N[order]
        parts = factor[:, None] * parts
    if sequence_grads_MD is not None and sequence_place_N is not None and len(sequence_grads_MD):
        places = sequence_place_N[order]
        unpooled = sequence_grads_MD[places.clamp(min=0)]
        parts = torch.where((places >= 0)[:, None], unpooled, parts)
    return _segments(_segments(parts, groups.first_Q.diff()), groups.pieces_U.diff())


def _segments(rows: Tensor, lengths: Tensor) -> Tensor:
    if not len(lengths):
        return rows.new_zeros((0, rows.shape[1]))
    if not len(rows):
        return rows.new_zeros((len(lengths), rows.shape[1]))
    return torch.segment_reduce(rows, "sum", lengths=lengths, initial=0.0, unsafe=True)


def _bags(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots) -> Tensor:
    """Return every cell's combined rows, zeros for cells of other slots."""
    base_N = slots.base_F[batch.feature_N]
    is_own = base_N >= 0
    every = len(slots.features) == batch.n_features
    # Ids of other slots read row 0 and count for nothing.
    rows = weights_RD[base_N + batch.ids_N if every else (base_N + batch.ids_N) * is_own]
    if batch.values_N is not None:
        rows = batch.values_N[:, None] * rows
    if not every:
        rows = torch.where(is_own[:, None], rows, torch.zeros((), device=rows.device))
    bags = rows if batch.offsets_BF is None else _segments(rows, batch.lengths_BF)
    scale = cell_scales(batch, slots)
    return bags if scale is None else bags * scale[:, None]


def cell_scales(batch: TensorBatch, slots: TensorSlots) -> Tensor | None:
    """Return the combiner's factor of every cell, or None where all are 1."""
    if slots.sums_alone or (batch.offsets_BF is None and batch.values_N is None):
        return None
    if batch.values_N is None:
        total = mean_total = batch.lengths_BF.to(torch.float32)
    else:
        values = batch.values_N[:, None]
        mean_total = _segments(values, batch.lengths_BF)[:, 0]
        total = _segments(values * values, batch.lengths_BF)[:, 0]
    combiner = slots.combiner_F.repeat(batch.n_cells // batch.n_features)
    divisor = torch.where(combiner == 1, mean_total, total.sqrt())
    scale = torch.where(divisor == 0, torch.zeros_like(divisor), torch.ones_like(divisor) / divisor)
    return torch.where(combiner == 0, torch.ones_like(scale), scale)


def max_pool(values_ND: Tensor, example_N: Tensor, n_examples: int) -> tuple[Tensor, Tensor]:
    """Return each example's largest values, and which of its rows has each of them first.

    Shape:
        (N, D), int64 (N,) ascending -> (B, D), zeros where no row is; int64 (B, D), N for none
    """
    shape = (n_examples, values_ND.shape[1])
    index_ND = example_N[:, None].expand_as(values_ND)
    lowest = values_ND.new_full(shape, -torch.inf)
    largest_BD = lowest.scatter_reduce(0, index_ND, values_ND, "amax")
    row_ND = torch.arange(len(values_ND), device=values_ND.device)[:, None].expand_as(index_ND)
    n_rows = len(values_ND)
    candidate_ND = torch.where(values_ND == largest_BD[example_N], row_ND, n_rows)
    none = row_ND.new_full(shape, n_rows)
    first_BD = none.scatter_reduce(0, index_ND, candidate_ND, "amin")
    return torch.where(first_BD < n_rows, largest_BD + 0.0, 0.0), first_BD


class Float64Scorer:
    """A bundle's forward pass in float64, by the native scorer's methods: what rounding moved."""

    def __init__(self, n_slots: int, n_dense: int, n_classes: int) -> None:
        self._n_slots = n_slots
        self._n_classes = n_classes
        self._wide: list[tuple[int, NDArray[np.float32], str]] = []
        # Inputs of the first layer: a slot's pooled rows, or dense numbers (a slice).
        self._inputs: list[tuple[int, NDArray[np.float32], str] | slice] = []
        self._layers: list[tuple[Tensor, Tensor | None, str]] = []

    def add_wide(
        self, slot: int, weights: NDArray[np.float32], combiner: str, *, item: bool
    ) -> None:
        """Add a slot of the wide part."""
        self._wide.append((slot, weights, combiner))

    def add_embedding(self, slot: int, table: NDArray[np.float32], combiner: str) -> None:
        """Add a slot's pooled embedding as the next inputs."""
        self._inputs.append((slot, table, combiner))

    def add_dense(self, column: int, width: int) -> None:
        """Add dense numbers as the next inputs."""
        self._inputs.append(slice(column, column + width))

    def start_item_inputs(self) -> None:
        """Do nothing: in float64 the order of the sums does not matter."""

    def add_layer(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, activation: str
    ) -> None:
        """Add a dense layer."""
        bias_H = None if bias is None else torch.from_numpy(bias.astype(np.float64))
        self._layers.append((torch.from_numpy(weight.astype(np.float64)), bias_H, activation))

    def forward(
        self,
        ids_N: NDArray[np.int64],
        offsets_BF: NDArray[np.int64],
        values_N: NDArray[np.float32] | None,
        dense_BK: NDArray[np.float32],
        *,
        threads: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return the wide part and, if there are layers, the deep part, each (B, C)."""
        weights_N = np.ones(len(ids_N)) if values_N is None else values_N.astype(np.float64)

        def pooled(slot: int, table: NDArray[np.float32], combiner: str) -> NDArray[np.float64]:
            starts_B = offsets_BF[slot : -1 : self._n_slots]
            lengths_B = offsets_BF[slot + 1 :: self._n_slots] - starts_B
            example_n = np.repeat(np.arange(len(lengths_B)), lengths_B)  # of each id in the slot
            first_B = np.cumsum(lengths_B) - lengths_B
            at_n = np.arange(len(example_n)) + (starts_B - first_B)[example_n]  # place in ids_N
            if combiner == "max":
                largest_BD = np.full((len(dense_BK), table.shape[1]), -np.inf)
                np.maximum.at(largest_BD, example_n, table[ids_N[at_n]])
                return np.where(lengths_B[:, None] > 0, largest_BD, 0.0)
            weight_n = weights_N[at_n]
            sums_BD = np.zeros((len(dense_BK), table.shape[1]))
            np.add.at(sums_BD, example_n, table[ids_N[at_n]] * weight_n[:, None])
            if combiner == "sum":
                return sums_BD
            power = 2 if combiner == "sqrtn" else 1
            divisor_B = np.bincount(example_n, weight_n**power, len(dense_BK)) ** (1 / power)
            scale_B = np.divide(1, divisor_B, out=np.zeros(len(dense_BK)), where=divisor_B != 0)
            sums_BD *= scale_B[:, None]
            return sums_BD

        wide_BC = np.zeros((len(dense_BK), self._n_classes))
        for source in self._wide:
            wide_BC += pooled(*source)
        if not self._layers:
            return wide_BC, None
        inputs = [
            dense_BK[:, source].astype(np.float64) if isinstance(source, slice) else pooled(*source)
            for source in self._inputs
        ]
        hidden = torch.from_numpy(np.concatenate(inputs, axis=1))
        for weight, bias, activation in self._layers:
            hidden = torch.nn.functional.linear(hidden, weight, bias)
            if activation != "none":
                hidden = getattr(torch.nn.functional, activation)(hidden)
        return wide_BC, hidden.numpy()
