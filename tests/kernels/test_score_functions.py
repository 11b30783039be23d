"""Functions of scores against NumPy's, and a log-normal's mean against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.kernels import lognormal_mean
from widedeep.kernels.score import power, score_function, sigmoid

NUMPYS = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "softplus": lambda x: np.logaddexp(0.0, x),
}
NUMBERS = st.lists(st.floats(-800, 800) | st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan]))


@pytest.mark.parametrize("name", NUMPYS)
@given(numbers=NUMBERS)
def test_functions_are_numpys_to_the_last_bits(name: str, numbers: list[float]) -> None:
    x = np.array(numbers)
    with np.errstate(all="ignore"):
        expected = NUMPYS[name](x)
    np.testing.assert_allclose(score_function(name, x), expected, rtol=1e-15, atol=1e-320)


@given(numbers=NUMBERS, exponent=st.floats(-3, 3))
def test_powers_are_numpys_to_the_last_bits(numbers: list[float], exponent: float) -> None:
    x = np.array(numbers)
    with np.errstate(all="ignore"):
        expected = np.power(x, exponent)
    np.testing.assert_allclose(power(x, exponent), expected, rtol=1e-15, atol=1e-320)


def test_a_sigmoid_is_the_same_function() -> None:
    x = np.linspace(-40.0, 40.0, 101)
    np.testing.assert_array_equal(sigmoid(x), score_function("sigmoid", x))
    np.testing.assert_allclose(sigmoid(x), 1 / (1 + np.exp(-x)), rtol=1e-15)


def test_shapes_are_kept_and_numbers_broadcast() -> None:
    x = np.arange(6.0).reshape(2, 3)
    assert score_function("exp", x).shape == (2, 3)
    assert score_function("exp", 1.0).shape == power(2.0, 3.0).shape == ()
    np.testing.assert_array_equal(power(x.T, [2.0, 1.0]), x.T ** np.array([2.0, 1.0]))
    with pytest.raises(ValueError, match="expected a function of scores, got cosh"):
        score_function("cosh", x)  # type: ignore[arg-type]


def test_a_zero_inflated_mean_is_its_probability_times_the_amount() -> None:
    logits = np.array([[0.0, 1.0, 0.5], [-2.0, 3.0, -90.0]])
    sigma = np.maximum(np.log1p(np.exp(logits[:, 2])), 2.0**-12)
    expected = np.exp(logits[:, 1] + sigma**2 / 2) / (1 + np.exp(-logits[:, 0]))
    np.testing.assert_allclose(lognormal_mean(logits), expected, rtol=1e-14)
