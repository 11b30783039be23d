"""The sparse kernels in Triton: one launch where torch takes many, with the same bits.

Products and sums are not contracted, roots and quotients are rounded as IEEE 754 has it, and sums
run in the order of the torch operations, so every result equals theirs bit for bit (except
:func:`ftrl_rows`'s products, whose sum over more than one column has another order).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from widedeep.kernels import torch_triton_programs as programs
from widedeep.kernels.torch_ops import (
    PIECE,
    SortedIds,
    TensorBatch,
    TensorGroups,
    TensorSlots,
    cell_scales,
    checked,
    key_type,
)

_LANES = 512  # numbers that a program works on at a time
_PLACES = 1024  # ids
_EXACT = {"enable_fp_fusion": False}


def _width(width: int) -> int:
    return int(triton.next_power_of_2(width))


def _block(width: int, lanes: int = _LANES) -> int:
    return max(1, lanes // _width(width))


def sort_ids(batch: TensorBatch, slots: TensorSlots, bounds_T: Tensor, n_rows: int) -> SortedIds:
    """Sort a batch's ids by row, and wait for the number of rows (see torch_ops)."""
    n, n_bounds, device = len(batch.ids_N), len(bounds_T), batch.ids_N.device
    single = batch.offsets_BF is None
    keys = torch.empty(n, dtype=key_type(n_rows), device=device)
    grid = (triton.cdiv(n + 1, _PLACES),)
    programs.keys_kernel[grid](
        batch.ids_N, None if single else batch.cell_N, slots.base_F, slots.size_F, keys, n, n_rows,
        batch.n_features, SINGLE=single, IDS=_PLACES,
    )  # fmt: skip
    rows, order = torch.sort(keys, stable=True)
    numbers = torch.empty(n + 1, dtype=torch.int64, device=device)
    programs.starts_kernel[grid](rows, numbers, n, PIECE=PIECE, IDS=_PLACES)
    numbers.cumsum_(0)
    bounds = torch.empty(3, n_bounds, dtype=torch.int64, device=device)
    programs.bounds_kernel[(1,)](
        rows, numbers, bounds_T, bounds, n, n_bounds, SHARED=_width(n_bounds),
        DIGITS=max(1, n).bit_length() + 1,
    )  # fmt: skip
    return checked(SortedIds(rows, order, numbers, bounds, bounds.cpu().numpy()), batch, slots)


def find_rows(ids: SortedIds) -> TensorGroups:
    """Find the distinct rows among sorted ids."""
    n_rows, n_pieces, n = int(ids.host_bounds[1, -1]), int(ids.host_bounds[2, -1]), len(ids.rows_N)
    memory = torch.empty(3 * n_rows + n_pieces + 3, dtype=torch.int64, device=ids.rows_N.device)
    sizes = [n_rows, n_rows + 1, n_rows + 1, n_pieces + 1]
    rows, starts, pieces, firsts = torch.split(memory, sizes)
    programs.rows_kernel[(triton.cdiv(n + 1, _PLACES),)](
        ids.rows_N, ids.numbers_N, rows, starts, pieces, firsts, n, n_rows, n_pieces,
        IDS=_PLACES,
    )  # fmt: skip
    return TensorGroups(
        rows,
        starts,
        ids.order_N,
        pieces,
        firsts,
        0,
        ids.host_bounds[1],
        ids.host_bounds,
        ids.bounds[1],
    )


def gather_pool(weights_RD: Tensor, batch: TensorBatch, slots: TensorSlots, out_BX: Tensor) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``."""
    width, cells = weights_RD.shape[1], batch.n_cells
    if not cells:
        return
    scales = cell_scales(batch, slots)
    block = _block(width)
    programs.gather_kernel[(triton.cdiv(cells, block),)](
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
    programs.wide_kernel[(triton.cdiv(examples, block),)](
        weights_RC, weights_RC.stride(0), batch.ids_N, batch.offsets_BF, batch.values_N, scales,
        slots.base_F, logits_BC, logits_BC.stride(0), examples, batch.n_features, width,
        SINGLE=batch.offsets_BF is None, WEIGHED=batch.values_N is not None,
        SCALED=scales is not None, EXAMPLES=block, WIDTH=_width(width), **_EXACT,
    )  # fmt: skip


def segment_sum(
    grad_BX: Tensor, groups: TensorGroups, batch: TensorBatch, slots: TensorSlots, width: int
) -> Tensor:
    """Sum the gradient of every touched row over its occurrences."""
    rows, n_pieces = len(groups.rows_U), len(groups.first_Q) - 1
    sums = torch.empty(rows, width, device=grad_BX.device)
    if not rows:
        return sums
    scales, single = cell_scales(batch, slots), batch.offsets_BF is None
    parts = torch.empty(n_pieces, width, device=grad_BX.device)
    block = _block(width, 256)
    programs.piece_kernel[(triton.cdiv(n_pieces, block),)](
        grad_BX, grad_BX.stride(0), groups.order, None if single else batch.cell_N, scales,
        batch.values_N, slots.column_F, groups.first_Q, parts, n_pieces, batch.n_features, width,
        SINGLE=single, WEIGHED=batch.values_N is not None, SCALED=scales is not None,
        PIECES=block, WIDTH=_width(width), AHEAD=4, **_EXACT,
    )  # fmt: skip
    block = _block(width)
    programs.join_kernel[(triton.cdiv(rows, block),)](
        parts, groups.pieces_U, sums, rows, groups.first_piece, width, ROWS=block,
        WIDTH=_width(width), **_EXACT,
    )  # fmt: skip
    return sums


def expand(values_T: Tensor, starts_T: Tensor, rows: int) -> Tensor:
    """Give each touched row its logical table's value, float32."""
    out = torch.empty(rows, device=values_T.device)
    if rows:
        programs.expand_kernel[(triton.cdiv(rows, _LANES),)](
            values_T, starts_T, out, rows, len(values_T), ROWS=_LANES
        )
    return out


def learn_rates(
    products_U: Tensor, starts_T: Tensor, log_rates: Tensor, evidence: Tensor, options: Tensor
) -> None:
    """Move each feature's rate; sums are float64 and have a fixed order.

    ``options`` are the step, what stands for no evidence, the lowest and the highest rate.
    """
    programs.learn_kernel[(len(log_rates),)](
        products_U, starts_T, log_rates, evidence, options[0:], options[1:], options[2:],
        options[3:], ROWS=_LANES,
    )  # fmt: skip


def adagrad_rows(
    weights: Tensor,
    accumulator: Tensor,
    rows_U: Tensor | None,
    grads_UD: Tensor,
    *,
    lr: float,
    eps: float,
    l2: float,
    grad_scale: float,
) -> Any:
    """Adagrad in one pass over the touched records (see :class:`widedeep.optim.Adagrad`).

    Returns:
        NotImplemented for an accumulator of one number a row, else None.
    """
    count, width = grads_UD.shape
    if accumulator.shape[1] != width:
        return NotImplemented
    if not count:
        return None
    block = _block(width)
    programs.adagrad_kernel[(triton.cdiv(count, block),)](
        weights, accumulator, weights.stride(0), rows_U, grads_UD.contiguous(), count, width,
        lr, eps, l2, grad_scale, EVERY=rows_U is None, ROWS=block, WIDTH=_width(width), **_EXACT,
    )  # fmt: skip
    return None


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
    lr_power: float,
    shrinkage: float,
    grad_scale: float,
    rates_U: Tensor | None,
    products_U: Tensor | None,
) -> Tensor | Any:
    """FTRL of the power -0.5 in one pass over the touched records (see `widedeep.optim.FTRL`).

    Returns:
        Change of the non-zero count, int64; NotImplemented for another power.
    """
    if lr_power != -0.5:
        return NotImplemented
    change = torch.zeros((), dtype=torch.int64, device=weights.device)
    count, width = grads_UD.shape
    if not count:
        return change
    block = _block(width)
    programs.ftrl_kernel[(triton.cdiv(count, block),)](
        weights, z, n, weights.stride(0), rows_U, grads_UD.contiguous(), rates_U, products_U,
        change, count, width, lr, l1, l2, beta, shrinkage, grad_scale, EVERY=rows_U is None,
        RATED=rates_U is not None, TRACKED=products_U is not None, ROWS=block, WIDTH=_width(width),
        **_EXACT,
    )  # fmt: skip
    return change
