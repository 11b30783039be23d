"""Row updates and initial values: C++ against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import reference
from widedeep import _native, kernels
from widedeep.kernels import (
    adagrad_rows,
    ftrl_rows,
    init_rows,
    sgd_rows,
)
from widedeep.optim import FTRL
from widedeep.optim.base import Step

Floats = NDArray[np.float32]
WIDTHS = st.sampled_from([1, 3, 7, 8, 16, 32])


class Rows:
    """Weights and two state arrays, side by side in one record a row or apart."""

    def __init__(self, seed: int, n_rows: int, width: int, *, interleaved: bool) -> None:
        rng = np.random.default_rng(seed)
        parts = rng.normal(size=(3, n_rows, width)).astype(np.float32)
        parts[0][rng.random((n_rows, width)) < 0.3] = 0
        parts[2] = np.abs(parts[2])
        if interleaved:
            record = np.concatenate([*parts, np.ones((n_rows, 2), np.float32)], axis=1)
            self.parts = [record[:, i * width : (i + 1) * width] for i in range(3)]
        else:
            self.parts = list(parts)
        touched = rng.permutation(n_rows)[: int(rng.integers(0, n_rows + 1))]
        self.rows = touched.astype(np.int64)
        self.grads = rng.normal(size=(len(touched), width)).astype(np.float32)
        self.rates = rng.uniform(0.01, 5, len(touched)).astype(np.float32)


KINDS = [
    *("sgd", "momentum", "nesterov", "rmsprop", "rmsprop, momentum", "rmsprop, centered"),
    *("adagrad", "adam", "ftrl", "ftrl, rates"),
]


def updates(
    rows: Rows, power: float, threads: int, module: Any = kernels
) -> dict[str, Callable[[], Any]]:
    w, a, b = rows.parts
    at, g = rows.rows, rows.grads
    scale: dict[str, Any] = {"grad_scale": 0.5, "threads": threads}
    return {
        "sgd": lambda: module.sgd_rows(w, at, g, lr=0.3, **scale),
        "momentum": lambda: module.momentum_rows(w, a, at, g, lr=0.3, momentum=0.9, **scale),
        "nesterov": lambda: module.momentum_rows(
            w, a, at, g, lr=0.3, momentum=0.9, nesterov=True, **scale
        ),
        "rmsprop": lambda: module.rmsprop_rows(
            w, b, None, None, at, g, lr=0.1, decay=0.8, momentum=0.0, eps=1e-3, eps_in_root=False,
            **scale,
        ),
        "rmsprop, momentum": lambda: module.rmsprop_rows(
            w, b, None, a, at, g, lr=0.1, decay=0.8, momentum=0.9, eps=1e-3, eps_in_root=True,
            **scale,
        ),
        "rmsprop, centered": lambda: module.rmsprop_rows(
            w, b, a, None, at, g, lr=0.1, decay=0.8, momentum=0.0, eps=0.1, eps_in_root=True,
            **scale,
        ),
        "adagrad": lambda: module.adagrad_rows(w, b, at, g, lr=0.3, eps=1e-7, l2=0.2, **scale),
        "adam": lambda: module.adam_rows(
            w, a, b, at, g, rate=0.1, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.95,
            **scale,
        ),
        "ftrl": lambda: module.ftrl_rows(
            w, a, b, at, g, lr=0.2, l1=0.4, l2=0.1, beta=0.5, lr_power=power, shrinkage=0.3,
            **scale,
        ),
        "ftrl, rates": lambda: module.ftrl_rows(
            w, a, b, at, g, lr=0.2, l1=0.4, l2=0.1, beta=0.5, lr_power=power, rates_U=rows.rates,
            **scale,
        ),
    }  # fmt: skip


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 60),
    width=WIDTHS,
    interleaved=st.booleans(),
    power=st.sampled_from([-0.5, -0.7, 0.0]),
    kind=st.sampled_from(KINDS),
)
def test_updates_equal_the_reference_bit_for_bit(
    seed: int, n_rows: int, width: int, interleaved: bool, power: float, kind: str
) -> None:
    results = []
    for threads, module in ((1, kernels), (3, kernels), (1, reference)):
        rows = Rows(seed, n_rows, width, interleaved=interleaved)
        change = updates(rows, power, threads, module)[kind]()
        results.append((rows.parts, change))
    before = Rows(seed, n_rows, width, interleaved=interleaved)
    untouched = np.setdiff1d(np.arange(n_rows), before.rows)
    for parts, change in results:
        assert change == results[0][1]
        for part, first, old in zip(parts, results[0][0], before.parts, strict=True):
            assert np.array_equal(part, first)
            assert np.array_equal(part[untouched], old[untouched])
    if kind == "ftrl":
        moved = np.count_nonzero(results[0][0][0]) - np.count_nonzero(before.parts[0])
        assert results[0][1] == moved


def test_no_rows_means_every_row_in_order() -> None:
    some, every = Rows(1, 9, 5, interleaved=True), Rows(1, 9, 5, interleaved=True)
    grads = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    some.rows, some.grads = np.arange(9), grads
    every.rows, every.grads = None, grads  # type: ignore[assignment]
    for kind in KINDS[:-1]:
        updates(some, -0.5, 1)[kind]()
        updates(every, -0.5, 2)[kind]()
        for one, other in zip(some.parts, every.parts, strict=True):
            assert np.array_equal(one, other)


def test_rows_outside_are_refused() -> None:
    weights, grads = np.zeros((4, 2), np.float32), np.zeros((2, 2), np.float32)
    for bad in ([0, 4], [-1, 2]):
        with pytest.raises(ValueError, match=r"rows_U: got rows .* expected them in \[0, 4\)"):
            sgd_rows(weights, np.array(bad), grads, lr=0.1)
    with pytest.raises(ValueError, match="grads_UD: got width 2, expected 3"):
        sgd_rows(np.zeros((4, 3), np.float32), np.array([0, 1]), grads, lr=0.1)
    with pytest.raises(
        ValueError, match=r"accumulator: got float32 of shape \(3, 2\), expected .*\(4, 2\)"
    ):
        adagrad_rows(weights, weights[:3], np.array([0, 1]), grads, lr=0.1, eps=0.0)
    with pytest.raises(ValueError, match="weights: rows are not contiguous"):
        sgd_rows(np.zeros((2, 4), np.float32).T, np.array([0, 1]), grads, lr=0.1)


@given(
    seed=st.integers(0, 2**62),
    first=st.integers(0, 2**40),
    n=st.integers(0, 20),
    width=st.integers(1, 20),
)
def test_initial_rows_equal_the_reference_and_their_shards(
    seed: int, first: int, n: int, width: int
) -> None:
    native = np.empty((n, width), np.float32)
    for init in ("normal", "uniform", "truncated_normal"):
        init_rows(native, seed, "genre", first, 0.1, 3, distribution=init)
        plain = np.empty((n, width), np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("widedeep.kernels.sparse._init_rows", reference.init_rows)
            init_rows(plain, seed, "genre", first, 0.1, distribution=init)
        assert np.array_equal(native, plain)
        shards = np.empty((n, width), np.float32)
        for row in range(n):
            init_rows(shards[row : row + 1], seed, "genre", first + row, 0.1, distribution=init)
        assert np.array_equal(native, shards)


def test_initial_rows_are_nearly_normal_and_differ() -> None:
    rows = np.empty((20_000, 16), np.float32)
    init_rows(rows, 1, "a", 0, 0.5, 2)
    assert abs(float(rows.mean())) < 0.004
    assert float(rows.std()) == pytest.approx(0.5, rel=0.01)
    assert float(np.abs(rows).max()) <= 0.5 * 3.47
    within = float((np.abs(rows) < 0.5).mean())
    assert within == pytest.approx(0.6827, abs=0.02)
    correlation = np.corrcoef(rows.T)
    assert np.abs(correlation - np.eye(16)).max() < 0.03
    other = np.empty((20_000, 16), np.float32)
    for seed, name in ((2, "a"), (1, "b")):
        init_rows(other, seed, name, 0, 0.5)
        assert abs(float(np.corrcoef(rows.ravel(), other.ravel())[0, 1])) < 0.01
    init_rows(other, 1, "a", 0, 0.0)
    assert not other.any()


def test_truncated_rows_have_the_quantiles_of_a_normal_variable_within_two() -> None:
    rows = np.empty((20_000, 16), np.float32)
    init_rows(rows, 1, "a", 0, 0.5, 2, distribution="truncated_normal")
    assert float(np.abs(rows).max()) <= 1.0 + 1e-6
    assert abs(float(rows.mean())) < 0.004
    normal = NormalDist()
    low, high = normal.cdf(-2), normal.cdf(2)
    for fraction in (0.01, 0.1, 0.25, 0.4, 0.75, 0.99):
        quantile = 0.5 * normal.inv_cdf(low + fraction * (high - low))
        assert float(np.quantile(rows, fraction)) == pytest.approx(quantile, abs=0.004)


def test_denormals_are_flushed_and_the_mode_is_put_back() -> None:
    tiny = np.float32(1e-40)
    weights = np.full((1, 1), tiny, np.float32)
    _native.sgd_rows(weights, None, np.zeros((1, 1), np.float32), lr=0.1)
    assert weights[0, 0] == 0
    assert np.float32(tiny) * np.float32(0.5) != 0


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("kernel", ["native", "reference", "torch"])
def test_ftrl_tells_gradients_times_weights_from_before_the_update(width: int, kernel: str) -> None:
    rows = Rows(3, 40, width, interleaved=True)
    weights, z, n = rows.parts
    wanted = 0.5 * (rows.grads * weights[rows.rows]).sum(axis=1)
    found = np.empty(len(rows.rows), np.float32)
    if kernel == "torch":
        FTRL().update_tensors(
            torch.from_numpy(weights),
            {"z": torch.from_numpy(z), "n": torch.from_numpy(n)},
            torch.from_numpy(rows.rows),
            torch.from_numpy(rows.grads),
            Step(lr=0.1, grad_scale=0.5, number=1, threads=1, products_U=torch.from_numpy(found)),
        )
    else:
        run: Any = {"native": kernels, "reference": reference}[kernel]
        run.ftrl_rows(
            weights, z, n, rows.rows, rows.grads, lr=0.1, grad_scale=0.5, products_U=found
        )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_ftrl_refuses_rates_of_another_length() -> None:
    rows = Rows(3, 40, 1, interleaved=False)
    with pytest.raises(ValueError, match="rates_U"):
        ftrl_rows(*rows.parts, rows.rows, rows.grads, lr=0.1, rates_U=np.ones(1, np.float32))
