"""The programs behind :mod:`widedeep.kernels.torch_triton`, in Triton's language.

Names in capitals are known when a program is compiled: SINGLE (one id a cell), WEIGHED (ids have
weights), SCALED (cells have a combiner's factor), and how much a program works on at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_ids"])
def keys_kernel(
    ids, cells, base_F, size_F, keys, n_ids, n_rows, n_features, SINGLE: tl.constexpr,
    IDS: tl.constexpr,
):  # fmt: skip
    """Write the row of a block of ids: -1 where it is outside, n_rows where it takes no part."""
    index = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    live = index < n_ids
    cell = index
    if not SINGLE:
        cell = tl.load(cells + index, live, 0)
    feature = cell % n_features
    base = tl.load(base_F + feature, live, -1)
    id = tl.load(ids + index, live, 0)
    outside = (id < 0) | (id >= tl.load(size_F + feature, live, 0))
    row = tl.where(base >= 0, tl.where(outside, -1, base + id), n_rows)
    tl.store(keys + index, row.to(keys.dtype.element_ty), live)


@triton.jit(do_not_specialize=["n_ids"])
def starts_kernel(rows, marks, n_ids, PIECE: tl.constexpr, IDS: tl.constexpr):
    """Mark a block of places that begin a row (upper half) and a piece (lower half)."""
    index = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    row = tl.load(rows + index, index < n_ids, 0)
    before = tl.load(rows + index - 1, (index > 0) & (index < n_ids), 0)
    fresh = (index == 0) | (index == n_ids) | (row != before)
    piece = fresh | (index % PIECE == 0)
    tl.store(marks + index, (fresh.to(tl.int64) << 32) + piece.to(tl.int64), index <= n_ids)


@triton.jit(do_not_specialize=["n_ids"])
def bounds_kernel(
    rows, numbers, bounds_T, out, n_ids, n_bounds, SHARED: tl.constexpr, DIGITS: tl.constexpr
):
    """Find the place, row and piece that begin each logical table, by bisection."""
    table = tl.arange(0, SHARED)
    live = table < n_bounds
    bound = tl.load(bounds_T + table, live, 0)
    low = tl.zeros([SHARED], tl.int64)
    high = low + n_ids
    for _ in range(DIGITS):
        middle = (low + high) // 2
        open = low < high
        below = tl.load(rows + middle, live & open, 0).to(tl.int64) < bound
        low = tl.where(open & below, middle + 1, low)
        high = tl.where(open & (below == 0), middle, high)
    number = tl.load(numbers + low, live, 0)
    tl.store(out + table, low, live)
    tl.store(out + n_bounds + table, (number >> 32) - 1, live)
    tl.store(out + 2 * n_bounds + table, (number & 0xFFFFFFFF) - 1, live)


@triton.jit(do_not_specialize=["n_ids", "n_rows", "n_pieces"])
def rows_kernel(
    sorted_N, numbers, rows_U, starts_U, pieces_U, first_Q, n_ids, n_rows, n_pieces,
    IDS: tl.constexpr,
):  # fmt: skip
    """Gather what a block of places begins: rows, their places and pieces, the pieces' places."""
    index = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    live = index <= n_ids
    number = tl.load(numbers + index, live, 0)
    before = tl.load(numbers + index - 1, live & (index > 0), 0)
    row = (number >> 32) - 1
    piece = (number & 0xFFFFFFFF) - 1
    new_row = live & ((number >> 32) != (before >> 32))
    new_piece = live & ((number & 0xFFFFFFFF) != (before & 0xFFFFFFFF))
    id = tl.load(sorted_N + index, index < n_ids, 0).to(tl.int64)
    tl.store(rows_U + row, id, new_row & (row < n_rows))
    tl.store(starts_U + row, index, new_row & (row <= n_rows))
    tl.store(pieces_U + row, piece, new_row & (row <= n_rows))
    tl.store(first_Q + piece, index, new_piece & (piece <= n_pieces))


@triton.jit(do_not_specialize=["n_rows"])
def expand_kernel(values_T, starts_T1, out_U, n_rows, n_tables, ROWS: tl.constexpr):
    """Give each row of a block its table's value."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    table = tl.zeros([ROWS], tl.int32)
    for t in range(1, n_tables):
        table += (tl.load(starts_T1 + t) <= row).to(tl.int32)
    tl.store(out_U + row, tl.load(values_T + table, row < n_rows, 0.0), row < n_rows)


@triton.jit
def learn_kernel(
    products_U, starts_T1, log_rates, evidence, step, tiny, lowest, highest, ROWS: tl.constexpr
):
    """Move one feature's rate (see :class:`widedeep.training.feature_rates.FeatureRates`)."""
    table = tl.program_id(0)
    last = tl.load(starts_T1 + table + 1)
    lane = tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float64)
    squares = tl.zeros([ROWS], tl.float64)
    for first in range(tl.load(starts_T1 + table), last, ROWS):
        product = tl.load(products_U + first + lane, first + lane < last, 0.0).to(tl.float64)
        total += product
        squares += product * product
    evidence_sum = tl.load(evidence + table) + tl.sum(squares, 0)
    root = tl.sqrt(tl.maximum(evidence_sum, tl.load(tiny)))
    rate = tl.load(log_rates + table) - tl.load(step) * tl.sum(total, 0) / root
    rate = tl.minimum(tl.maximum(rate, tl.load(lowest)), tl.load(highest))
    tl.store(evidence + table, evidence_sum)
    tl.store(log_rates + table, rate)


@triton.jit
def _bag(
    weights, stride, ids, offsets, values, base, cell, live, column, inside,
    SINGLE: tl.constexpr, WEIGHED: tl.constexpr,
):  # fmt: skip
    """Sum the rows of a block of cells, each in ascending order."""
    if SINGLE:
        row = base + tl.load(ids + cell, live, 0)
        address = row[:, None] * stride + column[None, :]
        rows = tl.load(weights + address, live[:, None] & inside[None, :], 0.0)
        if WEIGHED:
            rows = tl.load(values + cell, live, 0.0)[:, None] * rows
        total = rows + 0.0
    else:
        start = tl.load(offsets + cell, live, 0)
        length = tl.load(offsets + cell + 1, live, 0) - start
        total = tl.zeros([cell.shape[0], column.shape[0]], tl.float32)
        for k in range(tl.max(length, 0)):
            here = live & (k < length)
            row = base + tl.load(ids + start + k, here, 0)
            address = row[:, None] * stride + column[None, :]
            rows = tl.load(weights + address, here[:, None] & inside[None, :], 0.0)
            if WEIGHED:
                rows = tl.load(values + start + k, here, 0.0)[:, None] * rows
            total += rows
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
    target = logits + example[:, None] * logits_stride + column[None, :]
    inside = live[:, None] & (column < width)[None, :]
    total = tl.load(target, inside, 0.0)
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
    tl.store(target, total, inside)


@triton.jit(do_not_specialize=["n_pieces"])
def piece_kernel(
    grad, grad_stride, order, cells, scales, values, column_F, first_Q, sums, n_pieces,
    n_features, width, SINGLE: tl.constexpr, WEIGHED: tl.constexpr, SCALED: tl.constexpr,
    PIECES: tl.constexpr, WIDTH: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Sum a block of pieces, each over its occurrences in ascending order."""
    piece = tl.program_id(0).to(tl.int64) * PIECES + tl.arange(0, PIECES)
    column = tl.arange(0, WIDTH)
    inside = column < width
    first = tl.load(first_Q + piece, piece < n_pieces, 0)
    length = tl.load(first_Q + piece + 1, piece < n_pieces, 0) - first
    total = tl.zeros([PIECES, WIDTH], tl.float32)
    for k in range(0, tl.max(length, 0), AHEAD):
        # Unrolled, so that the next rows are under way while one is added.
        for j in tl.static_range(AHEAD):
            here = k + j < length
            index = tl.load(order + first + k + j, here, 0)
            cell = index
            if not SINGLE:
                cell = tl.load(cells + index, here, 0)
            offset = (cell // n_features) * grad_stride
            offset += tl.load(column_F + cell % n_features, here, 0)
            gradient = tl.load(
                grad + offset[:, None] + column[None, :], here[:, None] & inside[None, :], 0.0
            )
            if SCALED and WEIGHED:
                factor = tl.load(scales + cell, here, 0.0) * tl.load(values + index, here, 0.0)
                gradient = factor[:, None] * gradient
            elif SCALED:
                gradient = tl.load(scales + cell, here, 0.0)[:, None] * gradient
            elif WEIGHED:
                gradient = tl.load(values + index, here, 0.0)[:, None] * gradient
            total += gradient
    to = piece[:, None] * width + column[None, :]
    tl.store(sums + to, total, (piece < n_pieces)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n_rows", "first_piece"])
def join_kernel(
    parts, pieces_U, sums, n_rows, first_piece, width, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Sum the pieces of a block of rows, in ascending order."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = column < width
    first = tl.load(pieces_U + row, row < n_rows, 0)
    length = tl.load(pieces_U + row + 1, row < n_rows, 0) - first
    first -= first_piece
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for k in range(tl.max(length, 0)):
        here = (k < length)[:, None] & inside[None, :]
        total += tl.load(parts + (first + k)[:, None] * width + column[None, :], here, 0.0)
    to = row[:, None] * width + column[None, :]
    tl.store(sums + to, total, (row < n_rows)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n_rows"])
def adagrad_kernel(
    weights, accumulator, stride, rows, grads, n_rows, width, lr, eps, l2, grad_scale,
    EVERY: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Move a block of records: weights and accumulator, read and written once."""
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    row = number
    if not EVERY:
        row = tl.load(rows + number, number < n_rows, 0)
    inside = (number < n_rows)[:, None] & (column < width)[None, :]
    address = row[:, None] * stride + column[None, :]
    w = tl.load(weights + address, inside, 0.0)
    total = tl.load(accumulator + address, inside, 1.0)
    g = tl.load(grads + number[:, None] * width + column[None, :], inside, 0.0) * grad_scale
    g = g + l2 * w
    total = total + g * g
    tl.store(accumulator + address, total, inside)
    tl.store(weights + address, w - tl.div_rn(lr * g, tl.sqrt_rn(total) + eps), inside)


@triton.jit(do_not_specialize=["n_rows"])
def ftrl_kernel(
    weights, z, n, stride, rows, grads, rates, products, change, n_rows, width,
    lr, l1, l2, beta, shrinkage, grad_scale,
    EVERY: tl.constexpr, RATED: tl.constexpr, TRACKED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Move a block of records: weights, z and n, read and written once; count what becomes 0."""
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    row = number
    if not EVERY:
        row = tl.load(rows + number, number < n_rows, 0)
    inside = (number < n_rows)[:, None] & (column < width)[None, :]
    address = row[:, None] * stride + column[None, :]
    w = tl.load(weights + address, inside, 0.0)
    old_n = tl.load(n + address, inside, 1.0)
    g = tl.load(grads + number[:, None] * width + column[None, :], inside, 0.0) * grad_scale
    rate = tl.zeros([ROWS, 1], tl.float32) + lr
    if RATED:
        rate = lr * tl.load(rates + number, number < n_rows, 1.0)[:, None]
    if TRACKED:
        tl.store(products + number, tl.sum(g * w, 1), number < n_rows)
    total = old_n + g * g
    root = tl.sqrt_rn(total)
    sigma = tl.div_rn(root - tl.sqrt_rn(old_n), rate + tl.zeros_like(root))
    linear = tl.load(z + address, inside, 0.0) + (g + shrinkage * w - sigma * w)
    curvature = tl.div_rn(beta + root, rate + tl.zeros_like(root)) + l2
    sign = tl.where(linear > 0, 1.0, tl.where(linear < 0, -1.0, 0.0))
    moved = -tl.div_rn(linear - sign * l1, curvature)
    fresh = tl.where(tl.abs(linear) <= l1, 0.0, moved)
    tl.store(weights + address, fresh, inside)
    tl.store(z + address, linear, inside)
    tl.store(n + address, total, inside)
    gained = ((fresh != 0) & inside).to(tl.int32) - ((w != 0) & inside).to(tl.int32)
    tl.atomic_add(change, tl.sum(tl.sum(gained, 1), 0).to(tl.int64), sem="relaxed")
