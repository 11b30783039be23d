"""The tower's forward and backward pass: C++ against NumPy in float64, and what never matters."""

from __future__ import annotations

import itertools
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
        self.grads = [spread(self.rows, len(w)) for w in self.weights]
        self.grad_input = spread(self.rows, self.input.shape[1])
        self.weight_grads = [np.full_like(w, np.nan) for w in self.weights]
        self.bias_grads = [np.full_like(b, np.nan) for b in self.biases]

    def run(self, threads: int = 1, bf16: bool = False, module: Any = kernels) -> list[Floats]:
        self.clear()
        self.grads[-1][:] = self.grad_logits
        layers = [
            module.TowerLayer(
                weight=weight,
                output=output,
                grad=grad,
                weight_grad=weight_grad,
                bias=bias,
                bias_grad=bias_grad,
                activation="linear" if bias is None else "relu",
            )
            for weight, output, grad, weight_grad, bias, bias_grad in zip(
                self.weights,
                self.outputs,
                self.grads,
                self.weight_grads,
                [*self.biases, None],
                [*self.bias_grads, None],
                strict=True,
            )
        ]
        arrays = module.Tower(
            input_BX=self.input, layers=layers, grad_input_BX=self.grad_input, bf16=bf16
        )
        arrays.forward(threads)
        arrays.backward(threads).wait()
        return self.computed()

    def run_reference(self, bf16: bool = False) -> list[Floats]:
        return self.run(bf16=bf16, module=reference)

    def computed(self) -> list[Floats]:
        return [
            *self.outputs,
            *self.grads[:-1],
            self.grad_input,
            *self.weight_grads,
            *self.bias_grads,
        ]

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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9, 16, 29])
def test_a_rows_outputs_do_not_depend_on_the_batch(count: int) -> None:
    whole = Tower(1, 200, [70, 45, 17, 2])
    whole.run()
    part = Tower(1, 200, [70, 45, 17, 2])
    rows = slice(61, 61 + count)
    part.input, part.grad_logits, part.rows = whole.input[rows], whole.grad_logits[rows], count
    part.run()
    for one, other in zip(
        [*whole.outputs, *whole.grads, whole.grad_input],
        [*part.outputs, *part.grads, part.grad_input],
        strict=True,
    ):
        np.testing.assert_array_equal(one[rows], other)


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
    with pytest.raises(ValueError, match=r"layers\[1\]\.weight: got width 6, expected 5"):
        tower.run()


# ---- activations, dropout, norms -----------------------------------------------------------------

ACTIVATIONS = ["linear", "relu", "gelu", "tanh", "elu", "leaky_relu", "silu"]
UNITS = st.tuples(st.sampled_from(ACTIVATIONS), st.sampled_from([0.0, 0.25]), st.booleans())


class Units:
    """A tower whose layers have activations, dropout and norms, as one of the modules makes it."""

    def __init__(
        self, module: Any, seed: int, rows: int, widths: list[int],
        units: tuple[str, float, bool], scale: float = 1.0,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        activation, dropout, norm = units
        self.input = spread(rows, widths[0])
        self.input[:] = scale * rng.normal(size=self.input.shape)
        self.layers, self.norms = [], []
        for inputs, width in itertools.pairwise(widths):
            simple = activation == "linear" or (activation == "relu" and not norm)
            vectors = {
                name: rng.normal(size=width).astype(np.float32)
                for name in ("weight", "bias", "weight_grad", "bias_grad", "running_mean")
            }
            self.norms.append(
                module.TowerNorm(
                    **vectors,
                    running_var=rng.random(width, np.float32),
                    inverse=np.full(width, np.nan, np.float32),
                    normed=spread(rows, width),
                    biased=seed % 2 == 1,
                )
            )
            arrays = {
                "weight": (rng.normal(size=(width, inputs)) / inputs**0.5).astype(np.float32),
                "bias": rng.normal(size=width).astype(np.float32),
                "weight_grad": np.full((width, inputs), np.nan, np.float32),
                "bias_grad": np.full(width, np.nan, np.float32),
                "output": spread(rows, width),
                "grad": spread(rows, width),
                "slope": None if simple and not dropout else spread(rows, width),
            }
            layer = module.TowerLayer(
                **arrays,
                activation=activation,
                dropout=dropout,
                norm=self.norms[-1] if norm else None,
            )
            self.layers.append((layer, arrays, vectors))
        self.layers[-1][1]["grad"][:] = rng.normal(size=(rows, widths[-1]))
        self.grad_input = spread(rows, widths[0])
        self.tower = module.Tower(
            input_BX=self.input,
            layers=[layer for layer, _, _ in self.layers],
            grad_input_BX=self.grad_input,
        )

    def run(self, threads: int = 1, key: int = 5) -> list[Floats]:
        self.tower.forward(threads, key)
        self.tower.backward(threads).wait()
        found = [self.grad_input]
        for _, arrays, vectors in self.layers:
            found += [array for array in arrays.values() if array is not None]
            found += vectors.values()
        return found


@given(st.integers(0, 9), st.integers(2, 150), WIDTHS, UNITS, st.integers(1, 3))
def test_units_equal_the_reference(
    seed: int, rows: int, widths: list[int], units: tuple[str, float, bool], threads: int
) -> None:
    if units[2]:
        rows += 30  # of few rows, those that a norm divides by are near 0 at times
    got = Units(kernels, seed, rows, widths, units).run(threads)
    expected = Units(reference, seed, rows, widths, units).run()
    # Gradients before a norm sum to 0: what is left of them is as exact as their parts are.
    size = 1 + max(np.abs(other).max() for other in expected)
    off = [np.abs(one - other).max() / size for one, other in zip(got, expected, strict=True)]
    # A rectifier whose sum is next to 0 may be on either side.
    assert max(off) < 2e-5 or (units[0] in ("relu", "leaky_relu") and np.median(off) < 1e-5)


@given(st.integers(0, 9), st.integers(1, 230), WIDTHS, UNITS)
def test_threads_change_no_bit_of_units(
    seed: int, rows: int, widths: list[int], units: tuple[str, float, bool]
) -> None:
    first = Units(kernels, seed, rows, widths, units).run(threads=1)
    for one, other in zip(
        first, Units(kernels, seed, rows, widths, units).run(threads=3), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_gradients_of_some_rows_add_up_to_those_of_all() -> None:
    unit = Units(kernels, 0, 100, [5, 7, 3], ("relu", 0.0, False))
    unit.run()
    arrays = [layer[name] for _, layer, _ in unit.layers for name in ("weight_grad", "bias_grad")]
    whole = [array.copy() for array in arrays]
    unit.tower.gradients(0, 100).wait()
    for one, other in zip(arrays, whole, strict=True):
        np.testing.assert_array_equal(one, other)
    sums = [np.zeros_like(array) for array in arrays]
    for first, last in ((0, 33), (33, 33), (33, 100)):
        unit.tower.gradients(first, last).wait()
        sums = [total + array for total, array in zip(sums, arrays, strict=True)]
    for one, other in zip(sums, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="rows: got 50 to 101, of 100"):
        unit.tower.gradients(50, 101)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_at_every_size(activation: str) -> None:
    sums = np.concatenate([np.linspace(-100, 100, 4001), np.geomspace(1e-30, 1, 200), [0.0]])
    rows = len(sums)
    unit = Units(kernels, 0, rows, [1, 1], (activation, 0.5, False))
    layer = unit.layers[0][1]
    unit.input[:, 0], layer["weight"][:], layer["bias"][:] = sums, 1.0, 0.0
    unit.run()
    stays = reference.tower.kept(5, 0, rows, 1, 0.5)[:, 0]
    value, slope = reference.tower.activated(activation, unit.input[:, 0].astype(np.float64))
    for found, expected in ((layer["output"], value), (layer["slope"], slope)):
        np.testing.assert_allclose(found[stays, 0], 2 * expected[stays], rtol=2e-6, atol=1e-6)
        assert (found[~stays] == 0).all()


def test_units_are_dropped_as_often_as_asked_and_anew_each_time() -> None:
    dropped = []
    for key in (1, 2, 3):
        unit = Units(kernels, 0, 400, [3, 200, 200], ("linear", 0.2, False))
        unit.run(key=key)
        dropped += [arrays["output"] == 0 for _, arrays, _ in unit.layers]
    for mask in dropped:
        assert abs(mask.mean() - 0.2) < 4 * (0.2 * 0.8 / mask.size) ** 0.5
        assert mask.mean(0).std() < 0.03 and mask.mean(1).std() < 0.04  # no row, no column more
    together = np.corrcoef([mask.ravel() for mask in dropped])
    assert np.abs(together - np.eye(len(dropped))).max() < 0.02


def test_a_number_that_is_none_is_not_hidden_by_units() -> None:
    for activation in ACTIVATIONS:
        unit = Units(kernels, 0, 3, [4, 5], (activation, 0.1, False))
        unit.input[1, 2] = np.nan
        unit.run()
        kept = reference.tower.kept(5, 0, 3, 5, 0.1)
        assert np.isnan(unit.layers[0][1]["output"][1][kept[1]]).all()


def test_room_for_derivatives_is_asked_for() -> None:
    tower = Tower(0, 3, [4, 5])
    with pytest.raises(ValueError, match=r"layers\[0\]\.slope: expected room"):
        kernels.Tower(
            input_BX=tower.input,
            layers=[
                kernels.TowerLayer(
                    weight=tower.weights[0],
                    output=tower.outputs[0],
                    grad=tower.grads[0],
                    weight_grad=tower.weight_grads[0],
                    activation="tanh",
                )
            ],
            grad_input_BX=tower.grad_input,
        )
    with pytest.raises(ValueError, match="activation: got sine, expected one of linear, relu"):
        kernels.TowerLayer(
            weight=tower.weights[0],
            output=tower.outputs[0],
            grad=tower.grads[0],
            weight_grad=tower.weight_grads[0],
            activation="sine",
        )


# ---- products of pairs ---------------------------------------------------------------------------


@given(st.integers(0, 9), st.integers(0, 200), st.integers(1, 7), st.sampled_from([1, 4, 16, 70]))
def test_products_of_pairs_equal_the_reference(
    seed: int, rows: int, n_fields: int, dim: int
) -> None:
    rng = np.random.default_rng(seed)
    fields, grad = spread(rows, n_fields * dim), spread(rows, dim)
    fields[:], grad[:] = rng.normal(size=fields.shape), rng.normal(size=grad.shape)
    for threads in (1, 3):
        found = [spread(rows, dim), spread(rows, n_fields * dim)]
        wanted = [spread(rows, dim), np.empty((rows, n_fields * dim), np.float32)]
        for module, (out, fields_grad) in ((kernels, found), (reference, wanted)):
            module.pair_products(fields, out, threads)
            module.pair_products_grad(fields, grad, fields_grad, threads)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)
            if one.base is not None:
                assert np.isnan(one.base[:, one.shape[1] :]).all()


def test_products_of_pairs_of_a_wrong_width_are_named() -> None:
    with pytest.raises(ValueError, match=r"fields: got width 7, expected a multiple .*, 2"):
        kernels.pair_products(np.zeros((3, 7), np.float32), np.zeros((3, 2), np.float32))
