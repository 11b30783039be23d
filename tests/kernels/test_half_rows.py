"""Tables in bfloat16: rows as they are read, updates in float32, and the rounding between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kernels.random_batches import RandomBatch, batches
from tests.kernels.test_pooling import gather, table
from widedeep import _native, kernels
from widedeep.kernels import Rounding, round_rows
from widedeep.optim import FTRL, SGD, Adagrad, Adam, Optimizer, RMSProp

Halves = NDArray[np.uint16]
Floats = NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[2]


def widened(halves: Halves) -> Floats:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def rounded(rows: Floats, rounding: Rounding, threads: int = 1) -> Halves:
    halves = np.empty(rows.shape, np.uint16)
    round_rows(rows, halves, rounding, threads)
    return halves


def test_rounding_keeps_the_mean() -> None:
    """Up in as many of 2^18 cases as the fraction says, within 4 standard deviations."""
    n, width = 1 << 13, 32
    for fraction in (1, 300, 0x8000, 0xC000, 0xFFFF):
        for bits in (0x3F800000, 0xBDCC0000, 0x00010000):  # 1, -0.1, a denormal
            number = np.uint32(bits + fraction).view(np.float32)
            halves = rounded(np.full((n, width), number), Rounding(7, fraction))
            ups = halves.astype(np.int64) - (bits >> 16)
            assert set(np.unique(ups)) <= {0, 1}
            p = fraction / 65536
            assert abs(ups.mean() - p) < 4 * np.sqrt(p * (1 - p) / ups.size), (fraction, bits)


def test_random_bits_are_independent() -> None:
    """Of neighbours, columns, rows, updates and seeds: no correlation beyond 4 deviations."""
    n, width = 1 << 13, 16
    half = np.full((n, width), np.uint32(0x3F808000).view(np.float32))
    bits = {key: rounded(half, Rounding(*key)) & 1 for key in ((0, 1), (0, 2), (1, 1), (1, 2))}
    signs = {key: 2.0 * values - 1 for key, values in bits.items()}
    first = signs[0, 1]
    pairs = {
        "columns": (first[:, :-1], first[:, 1:]),
        "distant columns": (first[:, :8], first[:, 8:]),
        "rows": (first[:-1], first[1:]),
        "updates": (first, signs[0, 2]),
        "seeds": (first, signs[1, 1]),
        "all": (first * signs[0, 2], signs[1, 1] * signs[1, 2]),
    }
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean()) < 4 / np.sqrt(one.size), name
    by_column, by_row = first.mean(axis=0), first.mean(axis=1)
    assert abs(by_column).max() < 4.5 / np.sqrt(n)
    assert by_row.std() == pytest.approx(1 / np.sqrt(width), rel=0.05)


def test_what_needs_no_rounding_stays() -> None:
    exact = np.array([[0.0, -0.0, 1.5, np.inf, -np.inf, np.nan]], np.float32)
    for step in range(50):
        np.testing.assert_array_equal(widened(rounded(exact, Rounding(0, step))), exact)


def test_bits_depend_on_numbers_alone() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 7)).astype(np.float32)
    whole = rounded(rows, Rounding(3, 9))
    np.testing.assert_array_equal(rounded(rows, Rounding(3, 9), threads=3), whole)
    numbers = rng.permutation(1000)[:300]
    part = rounded(np.ascontiguousarray(rows[numbers]), Rounding(3, 9, numbers), threads=2)
    np.testing.assert_array_equal(part, whole[numbers])
    assert (rounded(rows, Rounding(3, 10)) != whole).any()


OPTIMIZERS = (
    Adagrad(l2=0.01),
    Adagrad(row_wise=True),
    Adam(weight_decay=0.01),
    FTRL(lr=0.1, beta=1.0),
    RMSProp(momentum=0.9, centered=True),
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9, nesterov=True),
)


class Plain(Adagrad):
    """Adagrad without its kernel."""

    def update_tensors(self, *arguments: Any) -> int | torch.Tensor:
        return super().update_tensors(*arguments)


@pytest.mark.parametrize("width", [1, 5, 16, 32])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, Plain(), Plain(row_wise=True)], ids=repr)
def test_an_update_is_that_of_float32_rounded(optimizer: Optimizer, width: int) -> None:
    rng = np.random.default_rng(width)
    start = torch.from_numpy(rng.normal(size=(40, width)).astype(np.float32)).bfloat16()
    rows = torch.from_numpy(rng.permutation(40)[:25])
    grads = torch.from_numpy(rng.normal(size=(25, width)).astype(np.float32))
    half, whole = start.clone(), start.float()
    states = [optimizer.initial_state(whole) for _ in range(2)]
    numbers = rng.integers(1 << 40, size=25)
    for step in (1, 2):
        rounding = Rounding(5, step, numbers)
        optimizer.update_rows(half, states[0], rows, grads, step=step, rounding=rounding, threads=2)
        optimizer.update_rows(whole, states[1], rows, grads, step=step)
        moved = rounded(np.ascontiguousarray(whole[rows].numpy()), rounding)
        whole[rows] = torch.from_numpy(widened(moved))
        assert torch.equal(half.float(), whole)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@given(batch=batches(), width=st.sampled_from([1, 3, 8, 16, 33]))
def test_pooled_rows_are_those_of_float32(batch: RandomBatch, width: int) -> None:
    halves = rounded(table(batch, width), Rounding(0, 1))
    np.testing.assert_array_equal(gather(batch, halves, threads=2), gather(batch, widened(halves)))


def test_rows_travel_as_they_are() -> None:
    halves = np.random.default_rng(0).integers(0, 1 << 16, size=(50, 6)).astype(np.uint16)
    halves[(halves & 0x7F80) == 0x7F80] = 0  # numbers alone
    rows, buffer = np.array([3, 3, 49, 0]), np.empty(4 * 6 * 2, np.uint8)
    kernels.pack_rows(halves[:, :6], rows, buffer, "bf16")
    out = np.empty((4, 6), np.float32)
    kernels.unpack_rows(buffer, np.arange(4), out, "bf16")
    np.testing.assert_array_equal(out, widened(halves[rows]))


def test_wrong_arrays_are_refused() -> None:
    halves, floats = np.zeros((3, 2), np.uint16), np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="without a rounding"):
        kernels.sgd_rows(halves, None, floats, lr=0.1)
    with pytest.raises(ValueError, match="expected uint16"):
        kernels.sgd_rows(floats, None, floats, lr=0.1, rounding=Rounding(0, 1))
    with pytest.raises(ValueError, match="got length 2, expected 3"):
        kernels.sgd_rows(halves, None, floats, lr=0.1, rounding=Rounding(0, 1, np.arange(2)))


_CASE = """
import hashlib
import numpy as np
from widedeep import kernels
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for width in (1, 5, 16, 32, 40):
    weights = rng.integers(0x3C00, 0x3F00, size=(99, width)).astype(np.uint16)
    total, grads = np.ones((99, 1), np.float32), rng.normal(size=(99, width)).astype(np.float32)
    rounding = kernels.Rounding(1, 2)
    kernels.adagrad_rows(weights, total, None, grads, lr=0.1, eps=1e-7, rounding=rounding)
    digest.update(weights.tobytes() + total.tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    names = ["baseline", "avx2", "avx512"]
    digests = set()
    for isa in names[: names.index(_native.isa()) + 1]:
        environment = {**os.environ, "WIDEDEEP_ISA": isa, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        digests.add(subprocess.check_output([sys.executable, "-c", _CASE], env=environment))
    assert len(digests) == 1
