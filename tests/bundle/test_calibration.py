"""Calibrations against scikit-learn, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from widedeep.bundle.calibration import (
    Calibration,
    Isotonic,
    Platt,
    PriorCorrection,
    calibration_from_json,
    calibration_to_json,
    fit_isotonic,
    fit_platt,
    sigmoid,
)
from widedeep.errors import BundleError, DataError

Floats = NDArray[np.float64]


def labelled(seed: int, n: int, *, ties: bool = False) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=n)
    if ties:
        logits = logits.round(1)
    labels = (rng.random(n) < sigmoid(0.5 * logits - 1)).astype(np.float64)
    return logits, labels, rng.uniform(0.1, 3, size=n)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("n", [20, 5_000])
def test_platt_is_scikit_learns(n: int, weighted: bool) -> None:
    logits, labels, weights = labelled(1, n)
    given_weights = weights if weighted else None
    # Its line is 1 / (1 + exp(a x + b)): ours with the signs turned.
    a, b = _sigmoid_calibration(logits, labels, sample_weight=given_weights)
    fitted = fit_platt(logits, labels, given_weights)
    assert (fitted.slope, fitted.intercept) == pytest.approx((-a, -b), abs=2e-4)


def test_platt_stays_finite_where_classes_part_cleanly() -> None:
    logits = np.array([-3.0, -2, 2, 3])
    fitted = fit_platt(logits, np.array([0, 0, 1, 1]))
    # The targets are 1 / (2 + 2) and (2 + 1) / (2 + 2); at the best line both sums are 0.
    errors = fitted.probabilities(logits) - np.array([0.25, 0.25, 0.75, 0.75])
    assert 0 < fitted.slope < 1
    assert [errors.sum(), errors @ logits] == pytest.approx([0, 0], abs=1e-9)


def test_platt_of_equal_logits_is_the_smoothed_share() -> None:
    fitted = fit_platt(np.zeros(8), np.array([1, 0, 0, 0, 0, 0, 0, 0]))
    # The mean of one target (1 + 1) / (1 + 2) and seven 1 / (7 + 2).
    assert fitted.probabilities(np.zeros(1)) == pytest.approx([(2 / 3 + 7 / 9) / 8])


@given(seed=st.integers(0, 2**32), n=st.integers(1, 60), ties=st.booleans(), weighted=st.booleans())
def test_isotonic_is_scikit_learns(seed: int, n: int, ties: bool, weighted: bool) -> None:
    logits, labels, weights = labelled(seed, n, ties=ties)
    given_weights = weights if weighted else None
    oracle = IsotonicRegression(out_of_bounds="clip").fit(logits, labels, given_weights)
    at = np.concatenate([logits, np.linspace(-9, 9, 50)])
    found = fit_isotonic(logits, labels, given_weights).probabilities(at)
    np.testing.assert_allclose(found, oracle.predict(at), atol=1e-9)


def test_isotonic_needs_only_its_corners() -> None:
    logits = np.arange(1000.0)
    fitted = fit_isotonic(logits, logits >= 500)
    assert fitted.logits == (0.0, 499.0, 500.0, 999.0)
    assert fitted.values == (0.0, 0.0, 1.0, 1.0)


def test_rows_of_weight_zero_do_not_count() -> None:
    logits, labels, weights = labelled(2, 200)
    weights[::2] = 0
    kept = weights > 0
    assert fit_isotonic(logits, labels, weights) == fit_isotonic(
        logits[kept], labels[kept], weights[kept]
    )


@given(rate=st.floats(0.001, 1), share=st.floats(0.001, 0.999))
def test_prior_correction_is_the_published_formula(rate: float, share: float) -> None:
    # p: the probability in the sample; q: the true one (He et al. 2014, section 6.3).
    logit = np.log(share / (1 - share))
    expected = share / (share + (1 - share) / rate)
    found = PriorCorrection(rate=rate).probabilities(np.array([logit]))
    assert found == pytest.approx([expected], rel=1e-9)


def test_prior_correction_undoes_the_sampling_of_negatives() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.02
    kept = labels | (rng.random(200_000) < 0.1)
    share = labels[kept].mean()
    corrected = PriorCorrection(rate=0.1).probabilities(np.array([np.log(share / (1 - share))]))
    assert corrected == pytest.approx([labels.mean()], rel=0.02)


@pytest.mark.parametrize(
    "calibration",
    [
        PriorCorrection(rate=0.25),
        Platt(slope=1.5, intercept=-0.1),
        Isotonic(logits=(-1.0, 0.1), values=(0.2, 1.0)),
    ],
)
def test_calibrations_come_back_from_json(calibration: Calibration) -> None:
    assert calibration_from_json(calibration_to_json(calibration)) == calibration


def test_extreme_logits_do_not_overflow() -> None:
    extreme = np.array([-1e4, 1e4])
    assert sigmoid(extreme).tolist() == [0.0, 1.0]
    assert PriorCorrection(rate=0.5).probabilities(extreme).tolist() == [0.0, 1.0]


def test_values_outside_their_range_are_refused() -> None:
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(BundleError, match="expected 0 < rate <= 1"):
            PriorCorrection(rate=rate)
    with pytest.raises(BundleError, match="expected numbers"):
        Platt(slope=float("inf"), intercept=0)
    for values in [(0.5, 0.2), (0.5,), (0.5, 1.2)]:
        with pytest.raises(BundleError, match="rising, and within"):
            Isotonic(logits=(0.0, 1.0), values=values)
    with pytest.raises(BundleError, match="of kind 'beta', expected one of"):
        calibration_from_json({"kind": "beta"})


def test_data_that_cannot_be_fitted_is_refused() -> None:
    for fit in (fit_platt, fit_isotonic):
        with pytest.raises(DataError, match="0 logits, 0 labels"):
            fit([], [])
        with pytest.raises(DataError, match="2 logits, 1 labels"):
            fit([1.0, 2.0], [1])
        with pytest.raises(DataError, match="no finite numbers"):
            fit([np.nan], [1])
        with pytest.raises(DataError, match=r"beyond \[0, 1\]"):
            fit([1.0], [2])
        with pytest.raises(DataError, match="no row of weight above 0"):
            fit([1.0], [1], [0.0])
