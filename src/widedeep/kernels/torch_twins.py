"""The sparse kernels in torch index operations: for tables on a device, and as a second opinion.

They take tensors of one device and follow the same rules as the C++: no float atomics, and every
sum has a fixed order, so a run repeats its bits. Duplicates are summed in ascending order of
occurrence, in pieces of :data:`PIECE` (one thread would walk down the hundred thousand occurrences
of a frequent id), and the pieces' sums in ascending order. Rows are ordered by their number, not by
first occurrence. None of them waits for the device but :func:`check_ids` and :func:`group_ids`,
once each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.kernels.checks import IdOutOfRangeError

__all__ = [
    "PIECE",
    "Pieces",
    "TensorBatch",
    "TensorGroups",
    "TensorSlots",
    "cell_scales",
    "check_ids",
    "gather_pool",
    "group_ids",
    "segment_sum",
    "select_tables",
    "to_device",
    "wide_forward",
]

PIECE = 128
"""Most occurrences of a row that are summed one after the other."""


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device; a GPU gets it in its own time, and nobody waits.

    Args:
        array: Any numbers.
        device: Where they go.

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
    """The ids of a batch on a device.

    Args:
        ids_N: int64 feature-local ids.
        offsets_BF: int64 of length B * F + 1, or None where every cell holds one id.
        values_N: float32 weight of each id, or None.
        n_features: F.
        n_cells: B * F.
    """

    ids_N: Tensor
    offsets_BF: Tensor | None
    values_N: Tensor | None
    n_features: int
    n_cells: int

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
    """The slots that take part, as tensors over all F features.

    Args:
        features: Ascending slots.
        columns: First column of each of them.
        base_F: int64 first row of each slot's table, -1 where it takes no part.
        size_F: int64 rows of each slot's table.
        combiner_F: int64 combiner of each slot.
        column_F: int64 first column of each slot.
        sums_alone: True if every combiner is the sum.
    """

    features: tuple[int, ...]
    columns: tuple[int, ...]
    base_F: Tensor
    size_F: Tensor
    combiner_F: Tensor
    column_F: Tensor
    sums_alone: bool


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The occurrences of each row, cut into pieces of at most :data:`PIECE`.

    Args:
        starts_U: int64 first piece of each row, and their number (U + 1).
        row_Q: int64 row of each piece; U for those at the end that no row has.
        first_Q: int64 first occurrence of each.
        length_Q: int64 occurrences of each, 0 at the end.
    """

    starts_U: Tensor
    row_Q: Tensor
    first_Q: Tensor
    length_Q: Tensor


@dataclass(frozen=True, eq=False)
class TensorGroups:
    """The distinct rows of a batch and their occurrences.

    Args:
        rows_U: int64 distinct rows, ascending within a logical table.
        starts_U: int64 first occurrence of each in ``order``, and their number (U + 1).
        order: int64 occurrences by row, ascending within one.
        table_starts: First row of each logical table in ``rows_U``, and their number (T + 1).
        place_starts: First occurrence of each logical table in ``order``, and their number.
    """

    rows_U: Tensor
    starts_U: Tensor
    order: Tensor
    table_starts: NDArray[np.int64]
    place_starts: NDArray[np.int64]

    @cached_property
    def pieces(self) -> Pieces:
        """The occurrences in pieces; made once for all who sum by these groups."""
        n_rows, n_places = len(self.rows_U), len(self.order)
        counts = (self.starts_U.diff() + (PIECE - 1)) // PIECE
        starts = _with_zero(counts)
        # As many as there may be: their number itself is known to the device alone.
        number = torch.arange(n_rows + n_places // PIECE, device=self.order.device)
        row = torch.searchsorted(starts[1:], number, right=True)
        inside = row.clamp(max=max(n_rows - 1, 0))
        first = self.starts_U[inside] + (number - starts[inside]) * PIECE
        length = torch.minimum(self.starts_U[inside + 1] - first, first.new_tensor(PIECE))
        return Pieces(starts, row, first, length.clamp(min=0) * (row < n_rows))


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

    Args:
        batch: The batch.
        slots: The slots that take part.
        bounds_T: int64 ascending first row of each logical table, and their number (T + 1).
        n_rows: Their number.

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
    base_N = slots.base_F[batch.feature_N]
    # Ids of other tables go behind the last row.
    row_N = torch.where(base_N >= 0, base_N + batch.ids_N, n_rows)
    # Half the digits are half the passes of the sort; ids outside are refused below.
    short = n_rows <= torch.iinfo(torch.int32).max
    rows, order = torch.sort(row_N.to(torch.int32) if short else row_N, stable=True)
    fresh = torch.ones_like(rows, dtype=torch.int64)
    torch.ne(rows[1:], rows[:-1], out=fresh[1:])
    number = _with_zero(fresh)
    places = torch.searchsorted(rows, bounds_T.to(rows.dtype))
    told = torch.cat([places, number[places], _outside(batch, slots).any()[None]]).cpu().numpy()
    if told[-1]:
        check_ids(batch, slots)
    place_starts, table_starts = told[: len(bounds_T)], told[len(bounds_T) : -1]
    n_places = int(place_starts[-1])
    wanted = torch.arange(1, int(table_starts[-1]) + 1, device=rows.device)
    first = torch.searchsorted(number[1 : n_places + 1], wanted)
    return TensorGroups(
        rows[first].to(torch.int64),
        torch.cat([first, first.new_full((1,), n_places)]),
        order[:n_places],
        table_starts,
        place_starts,
    )


def select_tables(groups: TensorGroups, tables: Sequence[int], shift_T: Tensor) -> TensorGroups:
    """Return the groups of another physical table that holds some of the same logical tables.

    Args:
        groups: Of the table that holds them all.
        tables: Distinct logical tables there, in the order they shall have.
        shift_T: int64 for each of them: what to add to its rows.
    """
    chosen = np.asarray(tables, np.int64)
    begins, ends = groups.table_starts[chosen], groups.table_starts[chosen + 1]
    table_starts = np.concatenate([[0], np.cumsum(ends - begins)])
    first, last = groups.place_starts[chosen], groups.place_starts[chosen + 1]
    place_starts = np.concatenate([[0], np.cumsum(last - first)])
    rows, starts, order = [], [], []
    for a, b, p, q, at in _runs(begins, ends, first, last, place_starts):
        rows.append(groups.rows_U[a:b])
        starts.append(groups.starts_U[a:b] + (at - p))
        order.append(groups.order[p:q])
    counts = to_device(ends - begins, shift_T.device)
    shifts = torch.repeat_interleave(shift_T, counts, output_size=int(table_starts[-1]))
    end = shift_T.new_full((1,), int(place_starts[-1]))
    return TensorGroups(
        torch.cat(rows) + shifts,
        torch.cat([*starts, end]),
        order[0] if len(order) == 1 else torch.cat(order),
        table_starts,
        place_starts,
    )


def _runs(
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    place_starts: NDArray[np.int64],
) -> list[tuple[int, int, int, int, int]]:
    """Join neighbours, so that a model of thirty tables is copied in a few pieces."""
    runs: list[tuple[int, int, int, int, int]] = []
    for a, b, p, q, at in zip(
        *(x.tolist() for x in (begins, ends, first, last, place_starts[:-1])), strict=True
    ):
        if runs and runs[-1][1] == a:
            runs[-1] = (runs[-1][0], b, runs[-1][2], q, runs[-1][4])
        else:
            runs.append((a, b, p, q, at))
    return runs


def gather_pool(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots, out_BX: Tensor) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``."""
    width = weights_RD.shape[1]
    bags = _bags(weights_RD, batch, slots).view(-1, batch.n_features, width)
    for feature, column, count in _column_runs(slots, width):
        part = bags[:, feature : feature + count].flatten(1)
        out_BX[:, column : column + count * width] = part


def _column_runs(slots: TensorSlots, width: int) -> list[tuple[int, int, int]]:
    """Return (slot, column, slots) of the runs whose columns follow each other as they do."""
    runs: list[tuple[int, int, int]] = []
    for feature, column in zip(slots.features, slots.columns, strict=True):
        if runs:
            start, at, count = runs[-1]
            if feature == start + count and column == at + count * width:
                runs[-1] = (start, at, count + 1)
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
        groups: Of this batch and these slots.
        batch: The batch.
        slots: The slots.
        width: D.
        sequence_grads_MD: Gradient of unpooled rows.
        sequence_place_N: int64 row of ``sequence_grads_MD`` of each occurrence, -1 if pooled.
    """
    cells = groups.order if batch.offsets_BF is None else batch.cell_N[groups.order]
    features = cells % batch.n_features
    columns = slots.column_F[features][:, None] + torch.arange(width, device=cells.device)
    parts = grad_BX[(cells // batch.n_features)[:, None], columns]
    scale = cell_scales(batch, slots)
    if scale is not None or batch.values_N is not None:
        factor = torch.ones(len(cells), device=cells.device)
        if scale is not None:
            factor = scale[cells]
        if batch.values_N is not None:
            factor = factor * batch.values_N[groups.order]
        parts = factor[:, None] * parts
    if sequence_grads_MD is not None and sequence_place_N is not None and len(sequence_grads_MD):
        places = sequence_place_N[groups.order]
        unpooled = sequence_grads_MD[places.clamp(min=0)]
        parts = torch.where((places >= 0)[:, None], unpooled, parts)
    pieces = groups.pieces
    return _segments(_segments(parts, pieces.length_Q), pieces.starts_U.diff())


def _with_zero(counts: Tensor) -> Tensor:
    """Return running sums that begin with 0."""
    found = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=found[1:])
    return found


def _segments(rows: Tensor, lengths: Tensor) -> Tensor:
    if not len(lengths):
        return rows.new_zeros((0, rows.shape[1]))
    if not len(rows):
        return rows.new_zeros((len(lengths), rows.shape[1]))
    return torch.segment_reduce(rows, "sum", lengths=lengths, initial=0.0, unsafe=True)


def _bags(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots) -> Tensor:
    """Return every cell's combined rows, zeros for cells of other slots."""
    base_N = slots.base_F[batch.feature_N]
    taken = base_N >= 0
    every = len(slots.features) == batch.n_features
    # Ids of other slots read row 0 and count for nothing.
    rows = weights_RD[base_N + batch.ids_N if every else (base_N + batch.ids_N) * taken]
    if batch.values_N is not None:
        rows = batch.values_N[:, None] * rows
    if not every:
        rows = torch.where(taken[:, None], rows, torch.zeros((), device=rows.device))
    bags = rows if batch.offsets_BF is None else _segments(rows, batch.lengths_BF)
    scale = cell_scales(batch, slots)
    return bags if scale is None else bags * scale[:, None]


def cell_scales(batch: TensorBatch, slots: TensorSlots) -> Tensor | None:
    """Return the combiner's factor of every cell, or None where all are 1."""
    if slots.sums_alone:
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
