"""Gather, wide sum and segment sum: C++ against NumPy, and forward against backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import reference
from tests.kernels.random_batches import RandomBatch, batches, make_batch
from tests.kernels.test_groups import group
from widedeep import kernels
from widedeep.kernels import (
    CsrBatch,
    IdOutOfRangeError,
    Slots,
    gather_pool,
    segment_sum,
    wide_forward,
)
from widedeep.ranks.lanes import LaneTree

WIDTHS = st.sampled_from([1, 2, 4, 7, 8, 16, 19, 32, 64])
Floats = NDArray[np.float32]


def table(batch: RandomBatch, width: int, stride: int | None = None) -> Floats:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(batch.n_rows, stride or width)).astype(np.float32)
    return rows[:, :width]


def gather(
    batch: RandomBatch, weights: NDArray[Any], threads: int = 1, module: Any = kernels
) -> Floats:
    width = weights.shape[1]
    columns = np.arange(len(batch.slots))[::-1] * width + 3
    out = np.full((batch.n_examples, len(batch.slots) * width + 5), 7.0, np.float32)
    module.gather_pool(weights, batch.csr, batch.slots_at(columns), out, threads)
    return out


@given(batch=batches(), width=WIDTHS)
def test_gather_equals_the_reference_bit_for_bit(batch: RandomBatch, width: int) -> None:
    weights = table(batch, width, stride=width + 3)
    native = gather(batch, weights)
    assert np.array_equal(native, gather(batch, weights, threads=3))
    assert np.array_equal(native, gather(batch, weights, module=reference))
    assert (native[:, :3] == 7).all() and (native[:, -2:] == 7).all()


@given(batch=batches(), width=WIDTHS)
def test_wide_equals_the_reference_bit_for_bit(batch: RandomBatch, width: int) -> None:
    weights = table(batch, width)

    def run(threads: int, module: Any = kernels) -> Floats:
        logits = np.full((batch.n_examples, width), 0.25, np.float32)
        module.wide_forward(weights, batch.csr, batch.slots_at(), logits, threads)
        return logits

    native = run(1)
    assert np.array_equal(native, run(3))
    assert np.array_equal(native, run(1, reference))


@given(batch=batches(), width=WIDTHS)
def test_segment_sums_equal_the_reference_bit_for_bit(batch: RandomBatch, width: int) -> None:
    groups = group(batch)
    rng = np.random.default_rng(2)
    grad = rng.normal(size=(batch.n_examples, len(batch.slots) * width + 2)).astype(np.float32)
    columns = np.arange(len(batch.slots), dtype=np.int64) * width + 1
    wide_grad = np.ascontiguousarray(grad[:, :width])

    def run(threads: int, module: Any = kernels) -> tuple[Floats, Floats]:
        arrays = (groups, batch.csr)
        deep = module.segment_sum(grad, *arrays, batch.slots_at(columns), width, threads)
        return deep, module.segment_sum(wide_grad, *arrays, batch.slots_at(), width, threads)

    native = run(1)
    for other in (run(3), run(1, reference)):
        assert np.array_equal(native[0], other[0])
        assert np.array_equal(native[1], other[1])


@given(batch=batches(), width=WIDTHS)
def test_unpooled_gradients_are_added_as_they_are(batch: RandomBatch, width: int) -> None:
    groups = group(batch)
    rng = np.random.default_rng(4)
    grad = rng.normal(size=(batch.n_examples, width)).astype(np.float32)
    places = np.where(rng.random(len(batch.ids)) < 0.5, np.arange(len(batch.ids)), -1)
    unpooled = rng.normal(size=(len(batch.ids), width)).astype(np.float32)

    def run(threads: int, module: Any = kernels) -> Floats:
        slots = batch.slots_at()
        return module.segment_sum(grad, groups, batch.csr, slots, width, threads, unpooled, places)

    native = run(1)
    assert np.array_equal(native, run(3))
    assert np.array_equal(native, run(1, reference))
    for u in range(len(groups)):
        taken = groups.order[groups.starts_U[u] : groups.starts_U[u + 1]]
        if (places[taken] >= 0).all():
            expected = unpooled[taken].astype(np.float64).sum(0)
            np.testing.assert_allclose(native[u], expected, rtol=1e-4, atol=1e-4)


@given(batch=batches(), width=WIDTHS, lanes=st.integers(1, 9), bf16=st.booleans(), data=st.data())
def test_lanes_are_summed_as_the_tree_says(
    batch: RandomBatch, width: int, lanes: int, data: st.DataObject, *, bf16: bool
) -> None:
    groups, n = group(batch), batch.n_examples
    lane_B = np.array(sorted(data.draw(st.integers(0, lanes - 1)) for _ in range(n)), np.int32)
    grad = np.random.default_rng(5).normal(size=(n, width)).astype(np.float32)

    def rounded(values: Floats) -> Floats:
        return torch.from_numpy(values).bfloat16().float().numpy() if bf16 else values

    def of(grad: Floats, threads: int = 1, *order: Any) -> Floats:
        arrays = (groups, batch.csr, batch.slots_at())
        return segment_sum(grad, *arrays, width, threads, None, None, *order)

    native = of(grad, 1, lane_B, lanes, bf16)
    assert np.array_equal(native, of(grad, 3, lane_B, lanes, bf16))
    by_lane = [rounded(of(grad * (lane_B == lane)[:, None])) for lane in range(lanes)]
    for u in range(len(groups)):
        cells = groups.cells[groups.starts_U[u] : groups.starts_U[u + 1]]
        tree = LaneTree[Floats](lanes, lambda first, second: rounded(first + second))
        for lane in np.unique(lane_B[cells // batch.csr.n_features]).tolist():
            tree.push(lane, by_lane[lane][u])
        assert np.array_equal(native[u], tree.total())


@given(batch=batches())
def test_backward_is_the_transpose_of_forward(batch: RandomBatch) -> None:
    """<forward(W), G> equals <W, backward(G)>: the adjoint identity, in float64."""
    width = 4
    weights = table(batch, width)
    groups = group(batch)
    columns = np.arange(len(batch.slots), dtype=np.int64) * width
    out = np.zeros((batch.n_examples, len(batch.slots) * width), np.float32)
    slots = batch.slots_at(columns)
    gather_pool(weights, batch.csr, slots, out)
    grad = np.random.default_rng(3).normal(size=out.shape).astype(np.float32)
    sums = segment_sum(grad, groups, batch.csr, slots, width)
    forward = (out.astype(np.float64) * grad).sum()
    backward = (weights[groups.rows_U].astype(np.float64) * sums).sum()
    size = np.abs(out.astype(np.float64) * grad).sum() + 1
    assert abs(forward - backward) <= 1e-4 * size


def test_combiners_divide_as_documented() -> None:
    weights = np.array([[1.0], [10.0]], np.float32)
    values = np.array([3.0, 4.0], np.float32)
    found = {}
    for name in ("sum", "mean", "sqrtn"):
        for weight in (None, values):
            out = np.zeros((1, 1), np.float32)
            batch = CsrBatch(np.array([0, 1]), np.array([0, 2]), weight, 1)
            slots = Slots(
                n_features=1, features=[0], tables=[0], table_bases=[0], table_sizes=[2],
                combiners=[name],
            )  # fmt: skip
            gather_pool(weights, batch, slots, out)
            found[name, weight is not None] = float(out[0, 0])
    assert found == pytest.approx(
        {
            ("sum", False): 11.0,
            ("sum", True): 43.0,
            ("mean", False): 5.5,
            ("mean", True): 43.0 / 7.0,
            ("sqrtn", False): 11.0 / 2**0.5,
            ("sqrtn", True): 43.0 / 5.0,
        }
    )


@pytest.mark.parametrize("bad", [-1, 40, 2**60])
def test_no_memory_is_touched_for_a_bad_id(bad: int) -> None:
    batch = make_batch(5, n_examples=20, n_features=3, longest=2, with_values=True)
    batch.slots, batch.tables = np.arange(3, dtype=np.int32), np.zeros(3, np.int32)
    batch.combiners = np.zeros(3, np.int8)
    batch.bases, batch.sizes = np.array([0]), np.array([40])
    cell = int(np.flatnonzero(np.diff(batch.offsets))[-1])
    batch.ids[batch.offsets[cell]] = bad
    weights = np.zeros((40, 16), np.float32)
    with pytest.raises(IdOutOfRangeError, match=f"slot {cell % 3} of example {cell // 3}"):
        gather(batch, weights, threads=2)
    with pytest.raises(IdOutOfRangeError, match=f"holds id {bad}, outside"):
        wide_forward(weights, batch.csr, batch.slots_at(), np.zeros((20, 16), np.float32))


def test_embeddings_must_fit_the_buffer() -> None:
    batch = make_batch(6, n_examples=2, n_features=1, longest=0, with_values=False)
    weights, out = table(batch, 4), np.zeros((2, 6), np.float32)
    with pytest.raises(ValueError, match=r"columns: got \[3\] for embeddings of 4 in 6 columns"):
        gather_pool(weights, batch.csr, batch.slots_at(np.array([3])), out)
    with pytest.raises(ValueError, match="weights: got 1 rows, but the slots' tables end at row"):
        gather_pool(weights[:1], batch.csr, batch.slots_at(), out)
    with pytest.raises(ValueError, match="out_BX: got 2 rows, expected 3"):
        batch = make_batch(6, n_examples=3, n_features=1, longest=0, with_values=False)
        gather_pool(weights, batch.csr, batch.slots_at(), out)


def test_groups_of_another_batch_are_refused() -> None:
    batch = make_batch(7, n_examples=4, n_features=2, longest=3, with_values=False)
    other = make_batch(8, n_examples=5, n_features=2, longest=3, with_values=False)
    grad = np.zeros((4, 1), np.float32)
    with pytest.raises(ValueError, match="pass the groups of this very batch"):
        segment_sum(grad, group(other), batch.csr, batch.slots_at(), 1)
