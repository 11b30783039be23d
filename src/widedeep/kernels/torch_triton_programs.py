"""The programs behind :mod:`widedeep.kernels.torch_triton`, in Triton's language.

Names in capitals are known when a program is compiled: SINGLE (one id a cell), WEIGHED (ids have
weights), SCALED (cells have a combiner's factor), and how much a program works on at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "adagrad_kernel",
    "ftrl_kernel",
    "gather_kernel",
    "join_kernel",
    "piece_kernel",
    "wide_kernel",
]


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
def gather_kernel(
    weights, stride, ids, offsets, values, scales, base_F, column_F, out, out_stride, n_cells,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    CELLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write a block of cells' combined rows into their columns."""
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
def wide_kernel(
    weights, stride, ids, offsets, values, scales, base_F, logits, logits_stride, n_examples,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    EXAMPLES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Add every slot's combined weights to a block of examples' logits, slot after slot."""
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
def piece_kernel(
    grad, grad_stride, order, cells, scales, values, column_F, first_Q, length_Q, sums, n_pieces,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    PIECES: tl.constexpr, WIDTH: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Sum a block of pieces, each over its occurrences in ascending order."""
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
def join_kernel(
    pieces, starts_U, sums, n_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Sum the pieces of a block of rows, in ascending order."""
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
def adagrad_kernel(
    weights, accumulator, stride, rows, grads, n_rows, width, lr, eps, grad_scale,
    EVERY: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Move a block of records: weights and accumulator, read and written once."""
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
def ftrl_kernel(
    weights, z, n, stride, rows, grads, rates, products, change, n_rows, width,
    lr, l1, l2, beta, shrinkage, grad_scale,
    EVERY: tl.constexpr, RATED: tl.constexpr, TOLD: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Move a block of records: weights, z and n, read and written once; count what becomes 0."""
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
