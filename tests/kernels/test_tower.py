"""The tower's forward and backward pass: C++ against NumPy in float64, and what never matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import reference
from widedeep import kernels
from widedeep.kernels import has_bf16_products

Floats = NDArray[np.float32]
WIDTHS = st.lists(st.sampled_from([1, 2, 5, 15, 16, 17, 33, 70, 129]), min_size=2, max_size=4)


needs_bf16 = pytest.mark.skipif(not has_bf16_products(), reason="no AVX512_BF16 here")


def spread(rows: int, width: int) -> Floats:
    """A matrix whose rows lie further apart than their width, NaN between them."""
    return np.full((rows, width + 3), np.nan, np.float32)[:, :width]


class Tower:
    """Layers, a batch, and room for what the kernels fill."""

    def __init__(self, seed: int, rows: int, widths: list[int]) -> None:
        rng = np.random.default_rng(seed)
        self.rows = rows
        self.input = spread(rows, widths[0])
        self.input[:] = rng.normal(size=self.input.shape)
        shapes = list(zip(widths[1:], widths, strict=False))
        self.weights = [rng.normal(size=s).astype(np.float32) / np.float32(s[1]) for s in shapes]
        self.biases = [rng.normal(size=n).astype(np.float32) for n in widths[1:-1]]
        self.grad_logits = rng.normal(size=(rows, widths[-1])).astype(np.float32)
        self.clear()

    def clear(self) -> None:
        self.outputs = [spread(self.rows, len(w)) for w in self.weights]
        self.grads = [spread(self.rows, len(w)) for w in self.weights[:-1]]
        self.grad_input = spread(self.rows, self.input.shape[1])
        self.weight_grads = [np.full_like(w, np.nan) for w in self.weights]
        self.bias_grads = [np.full_like(b, np.nan) for b in self.biases]

    def run(self, threads: int = 1, bf16: bool = False, module: Any = kernels) -> list[Floats]:
        self.clear()
        arrays = module.Tower(
            input_BX=self.input,
            weights=self.weights,
            biases=self.biases,
            outputs=self.outputs,
            grad_logits_BC=self.grad_logits,
            grads=self.grads,
            grad_input_BX=self.grad_input,
            weight_grads=self.weight_grads,
            bias_grads=self.bias_grads,
            bf16=bf16,
        )
        arrays.forward(threads)
        arrays.backward(threads).wait()
        return self.computed()

    def run_reference(self, bf16: bool = False) -> list[Floats]:
        return self.run(bf16=bf16, module=reference)

    def computed(self) -> list[Floats]:
        return [*self.outputs, *self.grads, self.grad_input, *self.weight_grads, *self.bias_grads]

    def in_float64(self) -> list[NDArray[np.float64]]:
        outputs, hidden = [], self.input.astype(np.float64)
        inputs = [hidden]
        for weight, bias in zip(self.weights, [*self.biases, None], strict=True):
            hidden = hidden @ weight.T.astype(np.float64)
            if bias is not None:
                hidden = np.maximum(hidden + bias, 0)
            outputs.append(hidden)
            inputs.append(hidden)
        grad, grads, weight_grads, bias_grads = self.grad_logits.astype(np.float64), [], [], []
        for i in reversed(range(len(self.weights))):
            weight_grads.append(grad.T @ inputs[i])
            if i < len(self.biases):
                bias_grads.append(grad.sum(axis=0))
            # The rectifier's side is the kernels' own: near 0 float64 may see the other one.
            grad = grad @ self.weights[i] * (self.outputs[i - 1] > 0 if i else 1)
            grads.append(grad)
        return [*outputs, *grads[::-1][1:], grads[-1], *weight_grads[::-1], *bias_grads[::-1]]


@given(st.integers(0, 9), st.integers(0, 230), WIDTHS, st.integers(1, 3))
def test_equals_float64(seed: int, rows: int, widths: list[int], threads: int) -> None:
    tower = Tower(seed, rows, widths)
    got = tower.run(threads=threads)
    for found, expected in zip(got, tower.in_float64(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@given(st.integers(0, 9), st.integers(0, 40), WIDTHS)
def test_the_reference_equals_float64(seed: int, rows: int, widths: list[int]) -> None:
    tower = Tower(seed, rows, widths)
    got = tower.run_reference()
    for found, expected in zip(got, tower.in_float64(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@given(st.integers(0, 9), st.integers(1, 230), WIDTHS)
def test_threads_change_no_bit(seed: int, rows: int, widths: list[int]) -> None:
    tower = Tower(seed, rows, widths)
    first = [array.copy() for array in tower.run(threads=1)]
    for threads in (2, 5):
        for one, other in zip(first, tower.run(threads=threads), strict=True):
            np.testing.assert_array_equal(one, other)


@needs_bf16
@given(st.integers(0, 9), st.integers(1, 230), WIDTHS, st.integers(1, 3))
def test_bf16_equals_the_reference(seed: int, rows: int, widths: list[int], threads: int) -> None:
    tower = Tower(seed, rows, widths)
    got = [array.copy() for array in tower.run(threads, bf16=True)]
    layers = len(tower.weights)
    for i, (found, expected) in enumerate(zip(got, tower.run_reference(bf16=True), strict=True)):
        # A unit near 0, or a sum near the middle of two bfloat16, may fall on the other side: what
        # follows then differs by a bfloat16's last place in a few places.
        if i == 0:
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        off = np.abs(found - expected) > 2e-5 + 0.02 * np.abs(expected).max(initial=0)
        assert off.mean() < 0.05, (i, layers)


@needs_bf16
@given(st.integers(0, 9), st.integers(1, 230), WIDTHS)
def test_threads_change_no_bit_in_bf16(seed: int, rows: int, widths: list[int]) -> None:
    tower = Tower(seed, rows, widths)
    first = [array.copy() for array in tower.run(threads=1, bf16=True)]
    for one, other in zip(first, tower.run(threads=3, bf16=True), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_bf16
def test_bf16_of_numbers_that_fit_is_exact() -> None:
    tower = Tower(2, 150, [33, 17, 1])
    for array in (tower.input, *tower.weights, *tower.biases, tower.grad_logits):
        array[:] = np.random.default_rng(0).integers(-1, 2, array.shape)
    exact = [array.copy() for array in tower.run()]
    for one, other in zip(exact, tower.run(bf16=True, threads=2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_rows_outputs_do_not_depend_on_the_batch() -> None:
    whole = Tower(1, 200, [70, 33, 17, 2])
    whole.run()
    part = Tower(1, 200, [70, 33, 17, 2])
    part.input, part.grad_logits, part.rows = whole.input[61:90], whole.grad_logits[61:90], 29
    part.run()
    for one, other in zip(
        [*whole.outputs, *whole.grads, whole.grad_input],
        [*part.outputs, *part.grads, part.grad_input],
        strict=True,
    ):
        np.testing.assert_array_equal(one[61:90], other)


def test_nothing_beyond_a_row_is_written() -> None:
    tower = Tower(0, 20, [18, 17, 1])
    tower.run()
    for array in (*tower.outputs, *tower.grads, tower.grad_input):
        assert np.isnan(array.base[:, array.shape[1] :]).all()


def test_not_a_number_is_not_hidden() -> None:
    tower = Tower(0, 3, [4, 5, 1])
    tower.input[1, 2] = np.nan
    tower.run()
    assert np.isnan(tower.outputs[-1][:, 0]).tolist() == [False, True, False]
    assert np.isnan(tower.weight_grads[0][:, 2]).all()


def test_a_wrong_shape_is_named() -> None:
    tower = Tower(0, 3, [4, 5, 1])
    tower.weights[1] = np.zeros((1, 6), np.float32)
    with pytest.raises(ValueError, match=r"weights\[1\]: got width 6, expected 5"):
        tower.run()
    tower = Tower(0, 3, [4, 5, 1])
    tower.biases = []
    with pytest.raises(ValueError, match="biases: got 0 for 2 layers, expected 1"):
        tower.run()
