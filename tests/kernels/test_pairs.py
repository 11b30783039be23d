"""Attention over pairs of fields: C++ against NumPy in float64, and as a part of torch's graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import reference
from widedeep import kernels
from widedeep.kernels.torch_layers import native_layers
from widedeep.models.blocks import PairAttention

Floats = NDArray[np.float32]
# Rows around a part, widths and units around a tile.
SHAPES = st.tuples(
    st.sampled_from([0, 1, 31, 32, 33, 70]),
    st.integers(2, 7),
    st.sampled_from([1, 3, 15, 16, 17, 40]),
    st.sampled_from([1, 4, 16, 19]),
)


def spread(rows: int, width: int) -> Floats:
    """A matrix whose rows lie further apart than their width, NaN between them."""
    return np.full((rows, width + 3), np.nan, np.float32)[:, :width]


def compute(
    module: Any, shape: tuple[int, int, int, int], seed: int, threads: int = 1
) -> list[Floats]:
    """Return the pooled products, the pairs' weights and all gradients.

    Units' sums are exact and never 0, so that units are on for both modules or for none.
    """
    rows, fields, dim, units = shape
    rng = np.random.default_rng(seed)
    fields_BX, grad_BD = spread(rows, fields * dim), spread(rows, dim)
    fields_BX[:] = rng.integers(-2, 3, fields_BX.shape)
    grad_BD[:] = rng.normal(size=grad_BD.shape)
    weight_AD = np.float32(rng.integers(-3, 4, (units, dim)) / 4)
    bias_A = np.float32((2 * rng.integers(-4, 4, units) + 1) / 8)
    weights = [weight_AD, bias_A, np.float32(rng.normal(size=units) / 8)]
    out_BD, attention_BP = spread(rows, dim), spread(rows, fields * (fields - 1) // 2)
    module.attend_pairs(fields_BX, *weights, out_BD, attention_BP, threads)
    gradients = [spread(rows, fields * dim), *(np.full_like(w, np.nan) for w in weights)]
    module.attend_pairs_grad(fields_BX, *weights, attention_BP, grad_BD, *gradients, threads)
    return [out_BD, attention_BP, *gradients]


@given(SHAPES, st.integers(0, 2**31))
def test_attention_over_pairs_equals_numpy(shape: tuple[int, int, int, int], seed: int) -> None:
    expected = compute(reference, shape, seed)
    for threads in (1, 3):
        for actual, right in zip(compute(kernels, shape, seed, threads), expected, strict=True):
            scale = max(1.0, float(np.abs(right).max(initial=0.0)))
            np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-5 * scale)


def test_no_result_depends_on_threads_or_on_other_rows() -> None:
    shape = (70, 5, 17, 19)
    alone = compute(kernels, shape, 1)
    for one, several in zip(alone, compute(kernels, shape, 1, threads=4), strict=True):
        np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((4, 6), (2, 4), 2, 2), "fields_BX: got width 6, expected two or more fields of width 4"),
        (((4, 3), (2, 3), 2, 2), "fields_BX: got width 3, expected two or more fields of width 3"),
        (((4, 600), (2, 300), 2, 2), "weight_AD: got .*, expected one row or more, 1 to 256 wide"),
        (((4, 6), (2, 3), 3, 2), "bias_A: got length 3, expected 2"),
    ],
)
def test_other_shapes_are_refused(shapes: Any, says: str) -> None:
    arrays = [np.zeros(shape, np.float32) for shape in (*shapes, (4, 3), (4, 1))]
    with pytest.raises(ValueError, match=says):
        kernels.attend_pairs(*arrays, 1)


def test_a_graph_has_the_gradients_of_torchs_operations() -> None:
    torch.manual_seed(1)
    block = PairAttention(5, 3)
    concat = torch.randn(40, 23, requires_grad=True)  # Fields, and numbers beside them
    weight = torch.randn(40, 5)

    def run() -> list[torch.Tensor]:
        pooled = block(concat[:, :20].view(-1, 4, 5))
        sources = [concat, *block.parameters()]
        return [pooled, *torch.autograd.grad((pooled * weight).sum(), sources)]

    expected = run()
    with native_layers(2):
        actual = run()
        assert "AttendPairs" in type(block(concat[:, :20].view(-1, 4, 5)).grad_fn).__name__
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
