"""Triton's kernels against torch's index operations, bit for bit, where there is a GPU.

`TRITON_INTERPRET=1` runs them on the CPU too, if Triton is installed: slowly, but with a debugger.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.random_batches import RandomBatch, batches, make_batch
from widedeep.kernels import IdOutOfRangeError, torch_ops
from widedeep.optim import FTRL, Adagrad
from widedeep.optim.base import Step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("no GPU", allow_module_level=True)
triton_kernels = pytest.importorskip("widedeep.kernels.torch_triton")

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
WIDTHS = st.sampled_from([1, 2, 3, 8, 16, 19, 32, 64])
few = settings(max_examples=15 if INTERPRETED else 60)


def there(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


class OnDevice:
    """A random batch, its slots and a table, on the device."""

    def __init__(self, batch: RandomBatch, width: int) -> None:
        cells = len(batch.offsets) - 1
        single = cells == len(batch.ids) and bool((np.diff(batch.offsets) == 1).all())
        self.ids = torch_ops.TensorBatch(
            there(batch.ids), None if single else there(batch.offsets),
            None if batch.values is None else there(batch.values), batch.n_features, cells,
        )  # fmt: skip
        columns = 3 + width * np.arange(len(batch.slots))[::-1]
        self.slots = torch_ops.TensorSlots(
            features=tuple(batch.slots.tolist()),
            columns=tuple(columns.tolist()),
            base_F=self.spread(batch, batch.bases[batch.tables], -1),
            size_F=self.spread(batch, batch.sizes[batch.tables], 0),
            combiner_F=self.spread(batch, batch.combiners, 0),
            column_F=self.spread(batch, columns, 0),
            sums_alone=not batch.combiners.any(),
        )
        self.bounds = there(np.append(batch.bases, batch.n_rows))
        self.n_rows, self.width = batch.n_rows, width
        self.n_columns = 5 + width * len(batch.slots)
        rng = np.random.default_rng(1)
        self.weights = there(rng.normal(size=(batch.n_rows, width + 3)).astype(np.float32))
        self.weights = self.weights[:, :width]
        self.grad = there(rng.normal(size=(batch.n_examples, self.n_columns)).astype(np.float32))

    @staticmethod
    def spread(batch: RandomBatch, values: np.ndarray, rest: int) -> torch.Tensor:
        full = np.full(batch.n_features, rest, np.int64)
        full[batch.slots] = values
        return there(full)


@few
@given(batch=batches(), width=WIDTHS)
def test_gather_and_wide_sum_equal_torch_bit_for_bit(batch: RandomBatch, width: int) -> None:
    case = OnDevice(batch, width)
    pooled = [torch.full((batch.n_examples, case.n_columns), 7.0, device=DEVICE) for _ in "ab"]
    logits = [torch.full((batch.n_examples, width), 0.25, device=DEVICE) for _ in "ab"]
    for module, out, sums in zip((triton_kernels, torch_ops), pooled, logits, strict=True):
        module.gather_pool(case.weights, case.ids, case.slots, out)
        module.wide_forward(case.weights, case.ids, case.slots, sums)
    assert torch.equal(*pooled)
    assert torch.equal(*logits)


@few
@given(batch=batches(), short=st.booleans())
def test_groups_equal_torch_operations(batch: RandomBatch, short: bool) -> None:
    case = OnDevice(batch, 1)
    n_rows = case.n_rows if short else 1 << 40  # which are sorted as int64
    case.bounds[-1] = n_rows
    by_triton, by_torch = (
        module.find_rows(module.sort_ids(case.ids, case.slots, case.bounds, n_rows))
        for module in (triton_kernels, torch_ops)
    )
    for name in ("rows_U", "starts_U", "pieces_U", "first_Q", "device_table_starts"):
        assert torch.equal(getattr(by_triton, name), getattr(by_torch, name)), name
    np.testing.assert_array_equal(by_triton.bounds, by_torch.bounds)
    places = slice(*by_torch.bounds[0, [0, -1]].tolist())
    assert torch.equal(by_triton.order[places], by_torch.order[places])
    rows = batch.bases[batch.tables]
    of_feature = dict(zip(batch.slots.tolist(), rows.tolist(), strict=True))
    features = np.repeat(
        np.arange(len(batch.offsets) - 1) % batch.n_features, np.diff(batch.offsets)
    )
    wanted = [
        of_feature[f] + i for f, i in zip(features, batch.ids, strict=True) if f in of_feature
    ]
    found = torch.repeat_interleave(by_triton.rows_U, by_triton.starts_U.diff())
    assert found.tolist() == sorted(wanted)


@pytest.mark.parametrize("bad", [-1, 10**12])
def test_an_id_outside_is_told(bad: int) -> None:
    batch = make_batch(3, n_examples=4, n_features=1, longest=0, with_values=False)
    batch.ids[2] = bad
    case = OnDevice(batch, 1)
    with pytest.raises(IdOutOfRangeError) as told:
        triton_kernels.sort_ids(case.ids, case.slots, case.bounds, case.n_rows)
    assert (told.value.example, told.value.id) == (2, bad)


@given(counts=st.lists(st.integers(0, 1_500), min_size=1, max_size=40))
@settings(max_examples=20)
def test_rates_are_learned_as_by_torch_operations(counts: list[int]) -> None:
    rng = np.random.default_rng(len(counts))
    starts = there(np.cumsum([0, *counts]))
    factors = there(rng.uniform(0.01, 5, len(counts)).astype(np.float32))
    wanted = torch.repeat_interleave(factors, starts.diff())
    assert torch.equal(triton_kernels.expand(factors, starts, sum(counts)), wanted)
    products = there(rng.normal(size=sum(counts)).astype(np.float32))
    log_rates, evidence = (there(rng.uniform(0, 1, len(counts))) for _ in "ab")
    told = there(np.array([0.2, 1e-300, -4.0, 1.0]))
    sums = [part.sum() for part in products.double().split(counts)]
    squares = [(part**2).sum() for part in products.double().split(counts)]
    wanted_evidence = evidence + torch.stack(squares)
    wanted_rates = log_rates - 0.2 * torch.stack(sums) / wanted_evidence.sqrt()
    triton_kernels.learn_rates(products, starts, log_rates, evidence, told)
    torch.testing.assert_close(evidence, wanted_evidence, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_rates, wanted_rates.clamp(-4.0, 1.0), rtol=1e-9, atol=1e-12)


@few
@given(batch=batches(), width=WIDTHS)
def test_segment_sums_equal_torch_operations_bit_for_bit(batch: RandomBatch, width: int) -> None:
    case = OnDevice(batch, width)
    groups = torch_ops.group_ids(case.ids, case.slots, case.bounds, case.n_rows)
    given = (case.grad, groups, case.ids, case.slots, width)
    assert torch.equal(triton_kernels.segment_sum(*given), torch_ops.segment_sum(*given))


@pytest.mark.parametrize("with_values", [False, True])
def test_frequent_rows_are_summed_in_pieces(with_values: bool) -> None:
    batch = make_batch(
        3, n_examples=3 * torch_ops.PIECE, n_features=2, longest=3, with_values=with_values,
        largest_table=2,
    )  # fmt: skip
    case = OnDevice(batch, 8)
    groups = torch_ops.group_ids(case.ids, case.slots, case.bounds, case.n_rows)
    assert int(groups.starts_U.diff().max()) > torch_ops.PIECE
    given = (case.grad, groups, case.ids, case.slots, 8)
    found = triton_kernels.segment_sum(*given)
    assert torch.equal(found, torch_ops.segment_sum(*given))
    exact = torch_ops.segment_sum(case.grad.double(), *given[1:])
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def records(seed: int, n_rows: int, width: int, parts: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    held = there(rng.normal(size=(n_rows, parts * width + 1)).astype(np.float32))
    found = [held[:, i * width : (i + 1) * width] for i in range(parts)]
    found[0][there(rng.random((n_rows, width)) < 0.3)] = 0
    found[-1].abs_()
    return found


@few
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 300),
    width=WIDTHS,
    every=st.booleans(),
    rated=st.booleans(),
    kind=st.sampled_from(
        [
            *(Adagrad(), Adagrad(lr=0.3, eps=0.1, l2=0.2)),
            *(FTRL(), FTRL(beta=0.5, l2=0.1, l2_shrinkage=0.3)),
        ]
    ),
)
def test_updates_equal_torch_operations_bit_for_bit(
    seed: int, n_rows: int, width: int, every: bool, rated: bool, kind: Adagrad | FTRL
) -> None:
    rng = np.random.default_rng(seed)
    rows = None if every else there(rng.permutation(n_rows)[: int(rng.integers(n_rows + 1))])
    count = n_rows if rows is None else len(rows)
    grads = there(rng.normal(size=(count, width)).astype(np.float32))
    rates = there(rng.uniform(0.01, 5, count).astype(np.float32)) if rated else None
    found = []
    for by_triton in (True, False):
        weights, *state = records(seed, n_rows, width, 1 + len(kind.state_names))
        products = torch.zeros(count, device=DEVICE)
        step = Step(
            lr=kind.lr, grad_scale=0.5, number=1, threads=1, rates_U=rates, products_U=products
        )
        named = dict(zip(kind.state_names, state, strict=True))
        if by_triton:
            change = kind._run_kernel(triton_kernels, weights, named, rows, grads, step)
        else:
            change = kind.update_tensors(weights, named, rows, grads, step)
        found.append((int(change), products, weights, *state))
    (change, products, *moved), (wanted_change, wanted, *wanted_moved) = found
    assert change == wanted_change
    torch.testing.assert_close(products, wanted, rtol=1e-5, atol=1e-5)
    for name, one, other in zip(("weights", *kind.state_names), moved, wanted_moved, strict=True):
        # The CPU's vectorised root, which the interpreter is held against, is not rounded exactly.
        tolerance = 1e-5 if INTERPRETED else 0.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=name)


def test_ftrl_of_another_power_has_no_kernel() -> None:
    weights, z, n = records(0, 3, 1, 3)
    step = Step(lr=0.1, grad_scale=1.0, number=1, threads=1)
    grads = torch.ones(3, 1, device=DEVICE)
    state = {"z": z, "n": n}
    assert FTRL(lr_power=-0.7)._run_kernel(
        triton_kernels, weights, state, None, grads, step
    ) is None  # fmt: skip
