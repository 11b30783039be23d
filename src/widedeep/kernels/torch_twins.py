"""The sparse kernels in torch index operations: for tables on a device, and as a second opinion.

They take tensors of one device and follow the same rules as the C++: duplicates are summed in
ascending order of occurrence, without float atomics (``segment_reduce`` sums each segment by
itself), so a run repeats its bits. Rows are ordered by their number, not by first occurrence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from widedeep.kernels.checks import IdOutOfRangeError

__all__ = [
    "TensorBatch",
    "TensorGroups",
    "TensorSlots",
    "check_ids",
    "gather_pool",
    "group_ids",
    "segment_sum",
    "wide_forward",
]


@dataclass(frozen=True, slots=True, eq=False)
class TensorBatch:
    """The ids of a batch on a device.

    Args:
        ids_N: int64 feature-local ids.
        cell_N: int64 cell ``b * F + f`` of each id.
        lengths_BF: int64 ids in each cell.
        values_N: float32 weight of each id, or None.
        n_features: F.
    """

    ids_N: Tensor
    cell_N: Tensor
    lengths_BF: Tensor
    values_N: Tensor | None
    n_features: int

    @classmethod
    def make(
        cls, ids_N: Tensor, offsets_BF: Tensor, values_N: Tensor | None, n_features: int
    ) -> TensorBatch:
        """Make a batch from offsets."""
        lengths = offsets_BF.diff()
        cells = torch.arange(len(lengths), device=ids_N.device)
        return cls(
            ids_N,
            torch.repeat_interleave(cells, lengths, output_size=len(ids_N)),
            lengths,
            values_N,
            n_features,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TensorSlots:
    """The slots that take part, as tensors over all F features.

    Args:
        features: Ascending slots.
        base_F: int64 first row of each slot's table, -1 where it takes no part.
        size_F: int64 rows of each slot's table.
        combiner_F: int64 combiner of each slot.
        column_F: int64 first column of each slot.
    """

    features: tuple[int, ...]
    base_F: Tensor
    size_F: Tensor
    combiner_F: Tensor
    column_F: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TensorGroups:
    """The distinct rows of a batch and their occurrences.

    Args:
        rows_U: int64 distinct rows, ascending.
        lengths_U: int64 occurrences of each.
        order: int64 occurrences by row, ascending within one.
    """

    rows_U: Tensor
    lengths_U: Tensor
    order: Tensor


def check_ids(batch: TensorBatch, slots: TensorSlots) -> None:
    """Raise IdOutOfRangeError if an id lies outside its table; this waits for the device."""
    feature_N = batch.cell_N % batch.n_features
    outside = (slots.base_F[feature_N] >= 0) & (
        (batch.ids_N < 0) | (batch.ids_N >= slots.size_F[feature_N])
    )
    if bool(outside.any()):
        n = int(outside.to(torch.uint8).argmax())
        slot = int(feature_N[n])
        example = int(batch.cell_N[n]) // batch.n_features
        raise IdOutOfRangeError(slot, example, int(batch.ids_N[n]), int(slots.size_F[slot]))


def group_ids(batch: TensorBatch, slots: TensorSlots) -> TensorGroups:
    """Find the distinct rows and the occurrences of each.

    Example:
        >>> ids, offsets = torch.tensor([3, 1, 3]), torch.tensor([0, 1, 3])
        >>> batch = TensorBatch.make(ids, offsets, None, 1)
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> groups = group_ids(batch, TensorSlots((0,), zero, zero + 4, zero, zero))
        >>> groups.rows_U.tolist(), groups.order.tolist()
        ([1, 3], [1, 0, 2])
    """
    base_N = slots.base_F[batch.cell_N % batch.n_features]
    taken = torch.nonzero(base_N >= 0).squeeze(1)
    rows, order = torch.sort(base_N[taken] + batch.ids_N[taken], stable=True)
    distinct, lengths = torch.unique_consecutive(rows, return_counts=True)
    return TensorGroups(distinct, lengths, taken[order])


def gather_pool(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots, out_BX: Tensor) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``."""
    width = weights_RD.shape[1]
    bags = _bags(weights_RD, batch, slots).view(-1, batch.n_features, width)
    for feature in slots.features:
        column = int(slots.column_F[feature])
        out_BX[:, column : column + width] = bags[:, feature]


def wide_forward(
    weights_RC: Tensor, batch: TensorBatch, slots: TensorSlots, logits_BC: Tensor
) -> None:
    """Add every slot's combined weights to the logits, one slot after the other."""
    bags = _bags(weights_RC, batch, slots).view(-1, batch.n_features, weights_RC.shape[1])
    for feature in slots.features:
        logits_BC += bags[:, feature]


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
    cells = batch.cell_N[groups.order]
    features = cells % batch.n_features
    columns = slots.column_F[features][:, None] + torch.arange(width, device=cells.device)
    parts = grad_BX[(cells // batch.n_features)[:, None], columns]
    scale = _scales(batch, slots)
    if scale is not None or batch.values_N is not None:
        factor = torch.ones(len(cells), device=cells.device)
        if scale is not None:
            factor = scale[cells]
        if batch.values_N is not None:
            factor = factor * batch.values_N[groups.order]
        parts = factor[:, None] * parts
    if sequence_grads_MD is not None and sequence_place_N is not None:
        places = sequence_place_N[groups.order]
        unpooled = torch.nonzero(places >= 0).squeeze(1)
        parts[unpooled] = sequence_grads_MD[places[unpooled]]
    return _segments(parts, groups.lengths_U)


def _segments(rows: Tensor, lengths: Tensor) -> Tensor:
    if not len(lengths):
        return rows.new_zeros((0, rows.shape[1]))
    if not len(rows):
        return rows.new_zeros((len(lengths), rows.shape[1]))
    return torch.segment_reduce(rows, "sum", lengths=lengths, initial=0.0, unsafe=True)


def _bags(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots) -> Tensor:
    """Return every cell's combined rows, zeros for cells of other slots."""
    base_N = slots.base_F[batch.cell_N % batch.n_features]
    taken = base_N >= 0
    lengths = batch.lengths_BF * (slots.base_F >= 0).repeat(
        len(batch.lengths_BF) // batch.n_features
    )
    rows = weights_RD[base_N[taken] + batch.ids_N[taken]]
    if batch.values_N is not None:
        rows = batch.values_N[taken][:, None] * rows
    bags = _segments(rows, lengths)
    scale = _scales(batch, slots)
    return bags if scale is None else bags * scale[:, None]


def _scales(batch: TensorBatch, slots: TensorSlots) -> Tensor | None:
    """Return the combiner's factor of every cell, or None where all are 1."""
    if not bool(slots.combiner_F.any()):
        return None
    if batch.values_N is None:
        total = mean_total = batch.lengths_BF.to(torch.float32)
    else:
        values = batch.values_N[:, None]
        mean_total = _segments(values, batch.lengths_BF)[:, 0]
        total = _segments(values * values, batch.lengths_BF)[:, 0]
    combiner = slots.combiner_F.repeat(len(batch.lengths_BF) // batch.n_features)
    divisor = torch.where(combiner == 1, mean_total, total.sqrt())
    scale = torch.where(divisor == 0, torch.zeros_like(divisor), 1.0 / divisor)
    return torch.where(combiner == 0, torch.ones_like(scale), scale)
