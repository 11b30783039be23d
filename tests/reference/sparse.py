"""The kernels in plain NumPy: what the C++ must compute, with the same signatures.

Sums run in the same order as in C++ (``np.add.at`` adds one after the other), so both give the
same float32 bits, except that C++ flushes denormal numbers to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.kernels import CsrBatch, Slots

_NO_FAULT, _SINGLE = -1, -2
_SUM, _MEAN = 0, 1

Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Groups:
    """The fields of the native groups."""

    rows_U: Ints
    table_starts: Ints
    starts_U: Ints32
    order: Ints32
    cells: Ints32
    is_single: bool

    def __len__(self) -> int:
        return len(self.rows_U)

    def select(self, tables: Sequence[int], shifts: Sequence[int]) -> Groups:
        """Return the groups of some logical tables, copied."""
        rows, starts, order, cells, table_starts = [], [0], [], [], [0]
        for table, shift in zip(tables, shifts, strict=True):
            for u in range(self.table_starts[table], self.table_starts[table + 1]):
                occurrences = slice(self.starts_U[u], self.starts_U[u + 1])
                rows.append(self.rows_U[u] + shift)
                order += self.order[occurrences].tolist()
                cells += self.cells[occurrences].tolist()
                starts.append(len(order))
            table_starts.append(len(rows))
        return Groups(
            np.array(rows, np.int64), np.array(table_starts, np.int64),
            np.array(starts, np.int32), np.array(order, np.int32), np.array(cells, np.int32),
            self.is_single,
        )  # fmt: skip


def _arrays(slots: Slots) -> tuple[Ints32, Ints, Ints, NDArray[np.int8]]:
    return (
        np.array(slots.features, np.int32), np.array(slots.bases, np.int64),
        np.array(slots.sizes, np.int64), np.array(slots.combiners, np.int8),
    )  # fmt: skip


def _csr(batch: CsrBatch) -> tuple[Ints, Ints, Floats | None, int]:
    return batch.ids_N, batch.offsets_BF, batch.values_N, batch.n_features


def group_ids(batch: CsrBatch, slots: Slots, threads: int = 1) -> Groups:
    """Find the distinct rows and the occurrences of each."""
    n, n_tables = len(batch.ids_N), len(slots.table_bases)
    rows, table_starts = np.empty(n, np.int64), np.empty(n_tables + 1, np.int64)
    starts, order, cells = (np.empty(m, np.int32) for m in (n + 1, n, n))
    fault = _group_ids(
        batch.ids_N, batch.offsets_BF, batch.n_features, np.array(slots.features, np.int32),
        np.array(slots.tables, np.int32), np.array(slots.table_bases, np.int64),
        np.array(slots.table_sizes, np.int64), rows, table_starts, starts, order, cells, threads,
    )  # fmt: skip
    assert fault < 0
    n_rows = int(table_starts[-1])
    n_used = int(starts[n_rows])
    return Groups(
        rows[:n_rows], table_starts, starts[: n_rows + 1], order[:n_used], cells[:n_used],
        fault == _SINGLE,
    )  # fmt: skip


def gather_pool(
    weights_RD: Floats, batch: CsrBatch, slots: Slots, out_BX: Floats, threads: int = 1
) -> None:
    """Write each slot's pooled rows into its columns."""
    columns = np.array(slots.columns, np.int64)
    _gather_pool(weights_RD, *_csr(batch), *_arrays(slots), out_BX, columns, threads)


def wide_forward(
    weights_RC: Floats, batch: CsrBatch, slots: Slots, logits_BC: Floats, threads: int = 1
) -> None:
    """Add each slot's combined weights to the logits, slot after slot."""
    _wide_forward(weights_RC, *_csr(batch), *_arrays(slots), logits_BC, threads)


def segment_sum(
    grad_BX: Floats,
    groups: Groups,
    batch: CsrBatch,
    slots: Slots,
    width: int,
    threads: int = 1,
    sequence_grads_MD: Floats | None = None,
    sequence_rows_N: Ints | None = None,
) -> Floats:
    """Sum the gradients of each row's occurrences, in ascending order."""
    features, _, _, combiners = _arrays(slots)
    column_of_feature = np.zeros(batch.n_features, np.int64)
    column_of_feature[features] = slots.columns
    scale = None
    if combiners.any() and not (groups.is_single and batch.values_N is None):
        scale = np.ones(len(batch.offsets_BF) - 1, np.float32)
        _cell_scales(*_csr(batch), features, combiners, scale, threads)
    unpooled = np.empty((0, width), np.float32) if sequence_grads_MD is None else sequence_grads_MD
    out = np.empty((len(groups), width), np.float32)
    _segment_sum(
        grad_BX, groups.starts_U, groups.order, groups.cells, batch.n_features, column_of_feature,
        scale, batch.values_N, sequence_rows_N, unpooled, out, threads,
    )  # fmt: skip
    return out


def take_rows(batch: CsrBatch, rows_B: Ints, threads: int = 1) -> tuple[Ints, Ints, Floats | None]:
    """Return ids, offsets and values of the examples at some positions."""
    ids_N, offsets_BF, values_N, n_features = _csr(batch)
    offsets = np.empty(len(rows_B) * n_features + 1, np.int64)
    n_ids = _take_offsets(ids_N, offsets_BF, n_features, rows_B, offsets)
    ids = np.empty(n_ids, np.int64)
    values = None if values_N is None else np.empty(n_ids, np.float32)
    _take_ids(ids_N, offsets_BF, values_N, n_features, rows_B, offsets, ids, values, threads)
    return ids, offsets, values


def _group_ids(
    ids: Ints,
    offsets: Ints,
    n_features: int,
    slots: Ints32,
    tables: Ints32,
    bases: Ints,
    sizes: Ints,
    rows: Ints,
    table_starts: Ints,
    starts: Ints32,
    order: Ints32,
    cells: Ints32,
    threads: int,
) -> int:
    """Fill the arrays of `Groups`; return the first faulty cell, -1, or -2 (one id a cell)."""
    fault, cell_N, table_N = _occurrences(ids, offsets, n_features, slots, sizes[tables], tables)
    if fault >= 0:
        return fault
    n_rows = n_used = 0
    for table in range(len(bases)):
        table_starts[table] = n_rows
        places = np.flatnonzero(table_N == table)
        _, first, number = np.unique(ids[places], return_index=True, return_inverse=True)
        by_first = np.argsort(first)  # unique ids in order of first occurrence
        rank = np.empty_like(by_first)
        rank[by_first] = np.arange(len(by_first))
        sort = np.argsort(rank[number], kind="stable")
        n_unique = len(first)
        rows[n_rows : n_rows + n_unique] = bases[table] + ids[places[first[by_first]]]
        counts = np.bincount(rank[number], minlength=n_unique)
        starts[n_rows : n_rows + n_unique] = n_used + np.cumsum(counts) - counts
        order[n_used : n_used + len(places)] = places[sort]
        cells[n_used : n_used + len(places)] = cell_N[places[sort]]
        n_rows += n_unique
        n_used += len(places)
    table_starts[len(bases)] = n_rows
    starts[n_rows] = n_used
    return _SINGLE if bool((offsets == np.arange(len(offsets))).all()) else _NO_FAULT


def _gather_pool(
    weights: Floats,
    ids: Ints,
    offsets: Ints,
    values: Floats | None,
    n_features: int,
    slots: Ints32,
    bases: Ints,
    sizes: Ints,
    combiners: NDArray[np.int8],
    out: Floats,
    columns: Ints,
    threads: int,
) -> int:
    """Write each slot's pooled rows into its columns."""
    fault, cell_N, slot_N = _occurrences(ids, offsets, n_features, slots, sizes)
    if fault >= 0:
        return fault
    width = weights.shape[1]
    for s in range(len(slots)):
        bags = _bags(weights, ids, offsets, values, n_features, s, slots, bases, cell_N, slot_N)
        scale = _scales(offsets, values, n_features, int(slots[s]), int(combiners[s]))
        out[:, columns[s] : columns[s] + width] = bags * scale[:, None]
    return _NO_FAULT


def _wide_forward(
    weights: Floats,
    ids: Ints,
    offsets: Ints,
    values: Floats | None,
    n_features: int,
    slots: Ints32,
    bases: Ints,
    sizes: Ints,
    combiners: NDArray[np.int8],
    logits: Floats,
    threads: int,
) -> int:
    """Add each slot's combined weights to the logits, slot after slot."""
    fault, cell_N, slot_N = _occurrences(ids, offsets, n_features, slots, sizes)
    if fault >= 0:
        return fault
    for s in range(len(slots)):
        bags = _bags(weights, ids, offsets, values, n_features, s, slots, bases, cell_N, slot_N)
        scale = _scales(offsets, values, n_features, int(slots[s]), int(combiners[s]))
        logits += bags * scale[:, None]
    return _NO_FAULT


def _cell_scales(
    ids: Ints,
    offsets: Ints,
    values: Floats | None,
    n_features: int,
    slots: Ints32,
    combiners: NDArray[np.int8],
    scale: Floats,
    threads: int,
) -> int:
    """Fill the combiner's factor of every cell of the slots."""
    fault, _, _ = _occurrences(ids, offsets, n_features, slots, np.full(len(slots), 2**62))
    if fault >= 0:
        return fault
    scale_BF = scale.reshape(-1, n_features)
    for s, slot in enumerate(slots):
        scale_BF[:, slot] = _scales(offsets, values, n_features, int(slot), int(combiners[s]))
    return _NO_FAULT


def _segment_sum(
    grad: Floats,
    starts: Ints32,
    order: Ints32,
    cells: Ints32,
    n_features: int,
    column_of_feature: Ints,
    scale_of_cell: Floats | None,
    values: Floats | None,
    sequence_place: Ints | None,
    sequence_grad: Floats,
    out: Floats,
    threads: int,
) -> None:
    """Sum the gradients of each row's occurrences, in ascending order."""
    out[:] = 0
    used = slice(int(starts[0]), int(starts[-1]))
    cell_j = cells[used]
    unique_j = np.repeat(np.arange(len(out)), np.diff(starts))
    column_j = column_of_feature[cell_j % n_features]
    columns_jD = column_j[:, None] + np.arange(out.shape[1])
    parts = grad[(cell_j // n_features)[:, None], columns_jD]
    if scale_of_cell is not None or values is not None:
        factor = np.ones(len(cell_j), np.float32)
        if scale_of_cell is not None:
            factor = scale_of_cell[cell_j]
        if values is not None:
            factor = factor * values[order[used]]
        parts = factor[:, None] * parts
    if sequence_place is not None:
        place_j = sequence_place[order[used]]
        parts[place_j >= 0] = sequence_grad[place_j[place_j >= 0]]
    np.add.at(out, unique_j, parts)


def sgd_rows(
    weights: Floats,
    rows: Ints | None,
    grads: Floats,
    *,
    lr: float,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Move rows down their gradients."""
    at = slice(None) if rows is None else rows
    weights[at] -= np.float32(lr) * (grads * np.float32(grad_scale))


def momentum_rows(
    weights: Floats,
    velocity: Floats,
    rows: Ints | None,
    grads: Floats,
    *,
    lr: float,
    momentum: float,
    nesterov: bool = False,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Apply momentum."""
    at = slice(None) if rows is None else rows
    g = grads * np.float32(grad_scale)
    v = np.float32(momentum) * velocity[at] + g
    velocity[at] = v
    weights[at] -= np.float32(lr) * (g + np.float32(momentum) * v if nesterov else v)


def rmsprop_rows(
    weights: Floats,
    square: Floats,
    mean: Floats | None,
    velocity: Floats | None,
    rows: Ints | None,
    grads: Floats,
    *,
    lr: float,
    decay: float,
    momentum: float,
    eps: float,
    eps_in_root: bool,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Apply RMSProp."""
    at = slice(None) if rows is None else rows
    g = grads * np.float32(grad_scale)
    spread = np.float32(decay) * square[at] + np.float32(1.0 - decay) * (g * g)
    square[at] = spread
    if mean is not None:
        m = np.float32(decay) * mean[at] + np.float32(1.0 - decay) * g
        mean[at] = m
        spread = np.maximum(spread - m * m, np.float32(0))
    own = np.float32(eps)
    change = g / (np.sqrt(spread + own) if eps_in_root else np.sqrt(spread) + own)
    change = np.float32(lr) * change if eps_in_root else change
    if velocity is not None:
        change = np.float32(momentum) * velocity[at] + change
        velocity[at] = change
    weights[at] -= change if eps_in_root else np.float32(lr) * change


def adagrad_rows(
    weights: Floats,
    accumulator: Floats,
    rows: Ints | None,
    grads: Floats,
    *,
    lr: float,
    eps: float,
    l2: float = 0.0,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Apply Adagrad."""
    at = slice(None) if rows is None else rows
    g = grads * np.float32(grad_scale) + np.float32(l2) * weights[at]
    total = accumulator[at] + g * g
    accumulator[at] = total
    weights[at] -= np.float32(lr) * g / (np.sqrt(total) + np.float32(eps))


def adam_rows(
    weights: Floats,
    mean: Floats,
    square: Floats,
    rows: Ints | None,
    grads: Floats,
    *,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    grad_scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Apply lazy Adam."""
    at = slice(None) if rows is None else rows
    g = grads * np.float32(grad_scale)
    m = np.float32(beta1) * mean[at] + np.float32(1.0 - beta1) * g
    v = np.float32(beta2) * square[at] + np.float32(1.0 - beta2) * (g * g)
    mean[at] = m
    square[at] = v
    change = np.float32(rate) * m / (np.sqrt(v) + np.float32(eps))
    weights[at] = np.float32(decay) * weights[at] - change


def ftrl_rows(
    weights: Floats,
    z: Floats,
    n: Floats,
    rows: Ints | None,
    grads: Floats,
    *,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 0.0,
    lr_power: float = -0.5,
    shrinkage: float = 0.0,
    grad_scale: float = 1.0,
    rates_U: Floats | None = None,
    products_U: Floats | None = None,
    threads: int = 1,
) -> int:
    """Apply FTRL-Proximal; return the change of the non-zero count."""
    at = slice(None) if rows is None else rows
    inverse_lr: Any = np.float32(1.0 / lr)
    if rates_U is not None:
        inverse_lr = (inverse_lr / rates_U)[:, None]
    l1_f = np.float32(l1)
    g = grads * np.float32(grad_scale)
    old, old_n = weights[at], n[at]
    if products_U is not None:
        products_U[:] = (g * old).sum(axis=1)
    total = old_n + g * g
    root, old_root = _power(total, lr_power), _power(old_n, lr_power)
    sigma = (root - old_root) * inverse_lr
    linear = z[at] + ((g + np.float32(shrinkage) * old) - sigma * old)
    denominator = (np.float32(beta) + root) * inverse_lr + np.float32(l2)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = -(linear - np.copysign(l1_f, linear)) / denominator
    weight = np.where(np.abs(linear) <= l1_f, np.float32(0), moved)
    change = np.count_nonzero(weight) - np.count_nonzero(old)
    weights[at], z[at], n[at] = weight, linear, total
    return int(change)


def init_rows(
    out: Floats, key: int, first_row: int, scale: float, threads: int, distribution: str,
    ids_n: Ints | None = None,
) -> None:  # fmt: skip
    """Fill rows from mixed counters."""
    if ids_n is None:
        ids_n = np.arange(first_row, first_row + len(out))
    ids = ids_n.astype(np.uint64)
    columns = np.arange(out.shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        row = _mix(np.uint64(key) + ids * np.uint64(0x9E3779B97F4A7C15))
        bits = _mix(row[:, None] + columns * np.uint64(0xD1B54A32D192ED03))
    if distribution == "uniform":
        odd = 2 * (bits >> np.uint64(40)).astype(np.int64) + 1 - (1 << 24)
        out[:] = odd.astype(np.float32) * np.float32(scale)
        return
    if distribution == "truncated_normal":
        uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        out[:] = _normal_within_two(uniform).astype(np.float32) * np.float32(scale)
        return
    lanes = [(bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    total = np.sum(lanes, axis=0, dtype=np.int64)
    out[:] = (total - 131070).astype(np.float32) * np.float32(scale)


def _normal_within_two(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    q = (uniform - 0.5) * 0.9544997361036416
    above = [-39.69683028665376, 220.9460984245205, -275.9285104469687]
    above += [138.3577518672690, -30.66479806628331, 2.506628277459239]
    below = [-54.47609879822406, 161.5858368580409, -155.6989798598866]
    below += [66.80131188771972, -13.28068155288572, 1.0]
    return np.polyval(above, q * q) * q / np.polyval(below, q * q)


def _take_offsets(ids: Ints, offsets: Ints, n_features: int, rows: Ints, out_offsets: Ints) -> int:
    """Fill the offsets of the examples ``rows``; return the number of ids, or -1."""
    lengths = _lengths(offsets, n_features)[rows]
    spans = offsets[rows[:, None] * n_features + np.arange(n_features + 1)]
    if (lengths < 0).any() or (spans < 0).any() or (spans > len(ids)).any():
        return -1
    out_offsets[0] = 0
    np.cumsum(lengths.ravel(), out=out_offsets[1:])
    return int(out_offsets[-1])


def _take_ids(
    ids: Ints,
    offsets: Ints,
    values: Floats | None,
    n_features: int,
    rows: Ints,
    out_offsets: Ints,
    out_ids: Ints,
    out_values: Floats | None,
    threads: int,
) -> None:
    """Copy the ids and values of the examples ``rows``."""
    counts = np.diff(out_offsets[::n_features])
    shift = offsets[rows * n_features] - out_offsets[:-1:n_features]
    source = np.arange(len(out_ids)) + np.repeat(shift, counts)
    out_ids[:] = ids[source]
    if values is not None and out_values is not None:
        out_values[:] = values[source]


def _lengths(offsets: Ints, n_features: int) -> NDArray[Any]:
    return np.diff(offsets).reshape(-1, n_features)


def _occurrences(
    ids: Ints,
    offsets: Ints,
    n_features: int,
    slots: Ints32,
    sizes: Ints,
    numbers: Ints32 | None = None,
) -> tuple[int, NDArray[Any], NDArray[Any]]:
    """Return a fault or -1, each occurrence's cell, and its slot's number (-1: takes no part)."""
    lengths = np.diff(offsets)
    bad = (lengths < 0) | (offsets[:-1] < 0) | (offsets[1:] > len(ids))
    if bad.any():
        return int(bad.argmax()), np.empty(0), np.empty(0)
    cell_N = np.repeat(np.arange(len(lengths)), lengths)
    cell_N = np.concatenate([np.full(offsets[0], -1), cell_N])
    cell_N = np.concatenate([cell_N, np.full(len(ids) - len(cell_N), -1)])
    number_of_feature = np.full(n_features, -1)
    number_of_feature[slots] = np.arange(len(slots)) if numbers is None else numbers
    limit_of_feature = np.full(n_features, np.iinfo(np.int64).max)
    limit_of_feature[slots] = sizes
    number_N = np.where(cell_N >= 0, number_of_feature[cell_N % n_features], -1)
    outside = (number_N >= 0) & ((ids < 0) | (ids >= limit_of_feature[cell_N % n_features]))
    if outside.any():
        return int(cell_N[outside].min()), cell_N, number_N
    return _NO_FAULT, cell_N, number_N


def _bags(
    weights: Floats,
    ids: Ints,
    offsets: Ints,
    values: Floats | None,
    n_features: int,
    s: int,
    slots: Ints32,
    bases: Ints,
    cell_N: NDArray[Any],
    slot_N: NDArray[Any],
) -> Floats:
    """Sum the rows of each example's bag in slot ``s``, in order."""
    places = np.flatnonzero(slot_N == s)
    rows = weights[bases[s] + ids[places]]
    if values is not None:
        rows = values[places][:, None] * rows
    bags = np.zeros(((len(offsets) - 1) // n_features, weights.shape[1]), np.float32)
    np.add.at(bags, cell_N[places] // n_features, rows)
    return bags


def _scales(
    offsets: Ints, values: Floats | None, n_features: int, slot: int, combiner: int
) -> Floats:
    """Return the combiner's factor of each example's bag."""
    lengths = _lengths(offsets, n_features)[:, slot]
    if combiner == _SUM:
        return np.ones(len(lengths), np.float32)
    if values is None:
        total = lengths.astype(np.float32)
    else:
        total = np.zeros(len(lengths), np.float32)
        starts = offsets[:-1].reshape(-1, n_features)[:, slot]
        example = np.repeat(np.arange(len(lengths)), lengths)
        first = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        weight = values[np.arange(len(example)) + first]
        np.add.at(total, example, weight if combiner == _MEAN else weight * weight)
    root = total if combiner == _MEAN else np.sqrt(total)
    scale = np.zeros(len(lengths), np.float32)
    np.divide(np.float32(1), root, out=scale, where=total != 0)
    return scale


def _power(n: Floats, lr_power: float) -> Floats:
    if lr_power == -0.5:
        return np.sqrt(n)
    return np.power(n.astype(np.float64), -float(np.float32(lr_power))).astype(np.float32)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's finalizer (Steele, Lea & Flood 2014) of each number."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sigmoid(logits_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """See widedeep.kernels.score."""
    small = np.exp(-np.abs(logits_B))
    found: NDArray[np.float64] = np.where(logits_B >= 0, 1.0, small) / (1.0 + small)
    return found


def logistic_loss(logits: Floats, labels: Floats, losses: Floats, grads: Floats) -> None:
    """Fill the losses and their derivatives."""
    small = np.exp(-np.abs(logits))
    losses[:] = np.maximum(logits, 0.0) - logits * labels + np.log1p(small)
    grads[:] = np.where(logits >= 0.0, 1.0, small) / (1.0 + small) - labels
