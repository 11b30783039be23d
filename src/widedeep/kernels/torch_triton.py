"""The sparse kernels in Triton: one launch where the twins take many, and the twins' bits.

Products and sums are not contracted, roots and quotients are rounded as IEEE 754 has it, and sums
run in the twins' order, so every result equals :mod:`widedeep.kernels.torch_twins`' bit for bit
(but :func:`ftrl_rows`'s products, whose sum over more than one column has another order).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from widedeep.kernels.torch_twins import TensorBatch, TensorGroups, TensorSlots, cell_scales

__all__ = ["adagrad_rows", "ftrl_rows", "gather_pool", "segment_sum", "wide_forward"]

_LANES = 512  # numbers that a program works on at a time
_EXACT = {"enable_fp_fusion": False}


@triton.jit
def _bag(
    weights, stride, ids, offsets, values, base, cell, live, column, inside,
    SINGLE: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    """Sum the rows of a block of cells, each in ascending order."""
    if SINGLE:
        row = base + tl.load(ids + cell, live, 0)
        at = row[:, None] * stride + column[None, :]
        found = tl.load(weights + at, live[:, None] & inside[None, :], 0.0)
        if WEIGHED:
            found = tl.load(values + cell, live, 0.0)[:, None] * found
        total = found + 0.0
    else:
        start = tl.load(offsets + cell, live, 0)
        length = tl.load(offsets + cell + 1, live, 0) - start
        total = tl.zeros([cell.shape[0], column.shape[0]], tl.float32)
        for k in range(tl.max(length, 0)):
            here = live & (k < length)
            row = base + tl.load(ids + start + k, here, 0)
            at = row[:, None] * stride + column[None, :]
            found = tl.load(weights + at, here[:, None] & inside[None, :], 0.0)
            if WEIGHED:
                found = tl.load(values + start + k, here, 0.0)[:, None] * found
            total += found
    return total


@triton.jit(do_not_specialize=["n_cells"])
def _gather_kernel(
    weights, stride, ids, offsets, values, scales, base_F, column_F, out, out_stride, n_cells,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    CELLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    feature = cell % n_features
    column = tl.arange(0, WIDTH)
    base = tl.load(base_F + feature, cell < n_cells, -1)
    live = (cell < n_cells) & (base >= 0)
    total = _bag(
        weights, stride, ids, offsets, values, base, cell, live, column, column < width,
        SINGLE, WEIGHED,
    )  # fmt: skip
    if SCALED:
        total = total * tl.load(scales + cell, live, 0.0)[:, None]
    to = (cell // n_features) * out_stride + tl.load(column_F + feature, live, 0)
    tl.store(out + to[:, None] + column[None, :], total, live[:, None] & (column < width)[None, :])


@triton.jit(do_not_specialize=["n_examples"])
def _wide_kernel(
    weights, stride, ids, offsets, values, scales, base_F, logits, logits_stride, n_examples,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    EXAMPLES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    example = tl.program_id(0).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)
    column = tl.arange(0, WIDTH)
    live = example < n_examples
    place = logits + example[:, None] * logits_stride + column[None, :]
    inside = live[:, None] & (column < width)[None, :]
    total = tl.load(place, inside, 0.0)
    for feature in range(n_features):
        base = tl.load(base_F + feature)
        if base >= 0:
            cell = example * n_features + feature
            bag = _bag(
                weights, stride, ids, offsets, values, base, cell, live, column, column < width,
                SINGLE, WEIGHED,
            )  # fmt: skip
            if SCALED:
                bag = bag * tl.load(scales + cell, live, 0.0)[:, None]
            total += bag
    tl.store(place, total, inside)


@triton.jit(do_not_specialize=["n_pieces"])
def _piece_kernel(
    grad, grad_stride, order, cells, scales, values, column_F, first_Q, length_Q, sums, n_pieces,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    PIECES: tl.constexpr, WIDTH: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0).to(tl.int64) * PIECES + tl.arange(0, PIECES)
    column = tl.arange(0, WIDTH)
    inside = column < width
    first = tl.load(first_Q + piece, piece < n_pieces, 0)
    length = tl.load(length_Q + piece, piece < n_pieces, 0)
    total = tl.zeros([PIECES, WIDTH], tl.float32)
    for k in range(0, tl.max(length, 0), AHEAD):
        # Unrolled, so that the next rows are under way while one is added.
        for j in tl.static_range(AHEAD):
            here = k + j < length
            place = tl.load(order + first + k + j, here, 0)
            cell = place
            if not SINGLE:
                cell = tl.load(cells + place, here, 0)
            at = (cell // n_features) * grad_stride
            at += tl.load(column_F + cell % n_features, here, 0)
            part = tl.load(
                grad + at[:, None] + column[None, :], here[:, None] & inside[None, :], 0.0
            )
            if SCALED and WEIGHED:
                factor = tl.load(scales + cell, here, 0.0) * tl.load(values + place, here, 0.0)
                part = factor[:, None] * part
            elif SCALED:
                part = tl.load(scales + cell, here, 0.0)[:, None] * part
            elif WEIGHED:
                part = tl.load(values + place, here, 0.0)[:, None] * part
            total += part
    to = piece[:, None] * width + column[None, :]
    tl.store(sums + to, total, (piece < n_pieces)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n_rows"])
def _join_kernel(
    pieces, starts_U, sums, n_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = column < width
    first = tl.load(starts_U + row, row < n_rows, 0)
    length = tl.load(starts_U + row + 1, row < n_rows, 0) - first
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for k in range(tl.max(length, 0)):
        here = (k < length)[:, None] & inside[None, :]
        total += tl.load(pieces + (first + k)[:, None] * width + column[None, :], here, 0.0)
    to = row[:, None] * width + column[None, :]
    tl.store(sums + to, total, (row < n_rows)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n_rows"])
def _adagrad_kernel(
    weights, accumulator, stride, rows, grads, n_rows, width, lr, eps, grad_scale,
    EVERY: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    row = number
    if not EVERY:
        row = tl.load(rows + number, number < n_rows, 0)
    inside = (number < n_rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * stride + column[None, :]
    w = tl.load(weights + at, inside, 0.0)
    total = tl.load(accumulator + at, inside, 1.0)
    g = tl.load(grads + number[:, None] * width + column[None, :], inside, 0.0) * grad_scale
    total = total + g * g
    tl.store(accumulator + at, total, inside)
    tl.store(weights + at, w - tl.div_rn(lr * g, tl.sqrt_rn(total) + eps), inside)


@triton.jit(do_not_specialize=["n_rows"])
def _ftrl_kernel(
    weights, z, n, stride, rows, grads, rates, products, change, n_rows, width,
    lr, l1, l2, beta, shrinkage, grad_scale,
    EVERY: tl.constexpr, RATED: tl.constexpr, TOLD: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    row = number
    if not EVERY:
        row = tl.load(rows + number, number < n_rows, 0)
    inside = (number < n_rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * stride + column[None, :]
    w = tl.load(weights + at, inside, 0.0)
    held = tl.load(n + at, inside, 1.0)
    g = tl.load(grads + number[:, None] * width + column[None, :], inside, 0.0) * grad_scale
    rate = tl.zeros([ROWS, 1], tl.float32) + lr
    if RATED:
        rate = lr * tl.load(rates + number, number < n_rows, 1.0)[:, None]
    if TOLD:
        tl.store(products + number, tl.sum(g * w, 1), number < n_rows)
    total = held + g * g
    root = tl.sqrt_rn(total)
    sigma = tl.div_rn(root - tl.sqrt_rn(held), rate + tl.zeros_like(root))
    linear = tl.load(z + at, inside, 0.0) + (g + shrinkage * w - sigma * w)
    curvature = tl.div_rn(beta + root, rate + tl.zeros_like(root)) + l2
    sign = tl.where(linear > 0, 1.0, tl.where(linear < 0, -1.0, 0.0))
    moved = -tl.div_rn(linear - sign * l1, curvature)
    fresh = tl.where(tl.abs(linear) <= l1, 0.0, moved)
    tl.store(weights + at, fresh, inside)
    tl.store(z + at, linear, inside)
    tl.store(n + at, total, inside)
    gained = ((fresh != 0) & inside).to(tl.int32) - ((w != 0) & inside).to(tl.int32)
    tl.atomic_add(change, tl.sum(tl.sum(gained, 1), 0).to(tl.int64), sem="relaxed")


def _width(width: int) -> int:
    return triton.next_power_of_2(width)


def _block(width: int, lanes: int = _LANES) -> int:
    return max(1, lanes // _width(width))


def gather_pool(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots, out_BX: Tensor) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``."""
    width, cells = weights_RD.shape[1], batch.n_cells
    if not cells:
        return
    scales = cell_scales(batch, slots)
    block = _block(width)
    _gather_kernel[(triton.cdiv(cells, block),)](
        weights_RD, weights_RD.stride(0), batch.ids_N, batch.offsets_BF, batch.values_N, scales,
        slots.base_F, slots.column_F, out_BX, out_BX.stride(0), cells, batch.n_features, width,
        SINGLE=batch.offsets_BF is None, WEIGHED=batch.values_N is not None,
        SCALED=scales is not None, CELLS=block, WIDTH=_width(width), **_EXACT,
    )  # fmt: skip


def wide_forward(
    weights_RC: Tensor, batch: TensorBatch, slots: TensorSlots, logits_BC: Tensor
) -> None:
    """Add every slot's combined weights to the logits, one slot after the other."""
    examples, width = logits_BC.shape
    if not examples:
        return
    scales = cell_scales(batch, slots)
    block = _block(width, 128)
    _wide_kernel[(triton.cdiv(examples, block),)](
        weights_RC, weights_RC.stride(0), batch.ids_N, batch.offsets_BF, batch.values_N, scales,
        slots.base_F, logits_BC, logits_BC.stride(0), examples, batch.n_features, width,
        SINGLE=batch.offsets_BF is None, WEIGHED=batch.values_N is not None,
        SCALED=scales is not None, EXAMPLES=block, WIDTH=_width(width), **_EXACT,
    )  # fmt: skip


def segment_sum(
    grad_BX: Tensor, groups: TensorGroups, batch: TensorBatch, slots: TensorSlots, width: int
) -> Tensor:
    """Sum the gradient of every touched row over its occurrences.

    Args:
        grad_BX: Gradient of the pooled buffer, or of the logits.
        groups: Of this batch and these slots.
        batch: The batch.
        slots: The slots.
        width: D.
    """
    rows, pieces = len(groups.rows_U), groups.pieces
    sums = torch.empty(rows, width, device=grad_BX.device)
    if not rows:
        return sums
    scales, single = cell_scales(batch, slots), batch.offsets_BF is None
    n_pieces = len(pieces.row_Q)
    parts = torch.empty(n_pieces, width, device=grad_BX.device)
    block = _block(width, 256)
    _piece_kernel[(triton.cdiv(n_pieces, block),)](
        grad_BX, grad_BX.stride(0), groups.order, None if single else batch.cell_N, scales,
        batch.values_N, slots.column_F, pieces.first_Q, pieces.length_Q, parts, n_pieces,
        batch.n_features, width, SINGLE=single, WEIGHED=batch.values_N is not None,
        SCALED=scales is not None, PIECES=block, WIDTH=_width(width), AHEAD=4, **_EXACT,
    )  # fmt: skip
    block = _block(width)
    _join_kernel[(triton.cdiv(rows, block),)](
        parts, pieces.starts_U, sums, rows, width, ROWS=block, WIDTH=_width(width), **_EXACT
    )
    return sums


def adagrad_rows(
    weights: Tensor,
    accumulator: Tensor,
    rows_U: Tensor | None,
    grads_UD: Tensor,
    *,
    lr: float,
    eps: float,
    grad_scale: float,
) -> None:
    """Adagrad in one pass over the touched records (see :class:`widedeep.optim.Adagrad`).

    Args:
        weights: float32 (R, D), changed in place.
        accumulator: float32 (R, D) of the same strides, changed in place.
        rows_U: int64 distinct rows, or None for all.
        grads_UD: float32 gradient of each of them.
        lr: Learning rate.
        eps: Added to the root.
        grad_scale: What gradients are multiplied by.
    """
    count, width = grads_UD.shape
    if not count:
        return
    block = _block(width)
    _adagrad_kernel[(triton.cdiv(count, block),)](
        weights, accumulator, weights.stride(0), rows_U, grads_UD.contiguous(), count, width,
        lr, eps, grad_scale, EVERY=rows_U is None, ROWS=block, WIDTH=_width(width), **_EXACT,
    )  # fmt: skip


def ftrl_rows(
    weights: Tensor,
    z: Tensor,
    n: Tensor,
    rows_U: Tensor | None,
    grads_UD: Tensor,
    *,
    lr: float,
    l1: float,
    l2: float,
    beta: float,
    shrinkage: float,
    grad_scale: float,
    rates_U: Tensor | None,
    products_U: Tensor | None,
) -> Tensor:
    """FTRL of the power -0.5 in one pass over the touched records (see `widedeep.optim.FTRL`).

    Args:
        weights: float32 (R, D), changed in place.
        z: float32 (R, D) of the same strides, changed in place.
        n: As ``z``.
        rows_U: int64 distinct rows, or None for all.
        grads_UD: float32 gradient of each of them.
        lr: Learning rate.
        l1: Threshold.
        l2: Curvature added.
        beta: Added to the root.
        shrinkage: Factor of the weight in z.
        grad_scale: What gradients are multiplied by.
        rates_U: Factor of each row's rate, or None.
        products_U: Filled with each row's sum of gradient times weight, or None.

    Returns:
        Change of the non-zero count, int64.
    """
    change = torch.zeros((), dtype=torch.int64, device=weights.device)
    count, width = grads_UD.shape
    if not count:
        return change
    block = _block(width)
    _ftrl_kernel[(triton.cdiv(count, block),)](
        weights, z, n, weights.stride(0), rows_U, grads_UD.contiguous(), rates_U, products_U,
        change, count, width, lr, l1, l2, beta, shrinkage, grad_scale, EVERY=rows_U is None,
        RATED=rates_U is not None, TOLD=products_U is not None, ROWS=block, WIDTH=_width(width),
        **_EXACT,
    )  # fmt: skip
    return change
