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
from widedeep.errors import BundleError, ConfigError, DataError
from widedeep.metrics import auc, log_loss

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
def test_isotonic_runs_through_the_centres_of_scikit_learns_levels(
    seed: int, n: int, ties: bool, weighted: bool
) -> None:
    logits, labels, weights = labelled(seed, n, ties=ties)
    weights = weights if weighted else np.ones(n)
    fitted = fit_isotonic(logits, labels, weights if weighted else None)
    oracle = IsotonicRegression().fit(logits, labels, weights).predict(logits)
    weights = weights / weights.mean()
    centres, values = [], []
    for level in np.unique(oracle.round(9)):
        rows = oracle.round(9) == level
        mass = weights[rows].sum()
        margin = min(0.5, mass / 2)
        centres.append(np.average(logits[rows], weights=weights[rows]))
        values.append(np.clip(weights[rows] @ labels[rows], margin, mass - margin) / mass)
    # Where the ends, moved from 0 and 1, still rise, the levels are scikit-learn's.
    odds = np.log(np.array(values) / (1 - np.array(values)))
    if (np.diff(odds) > 0.011 * np.diff(centres)).all():
        assert fitted.logits == pytest.approx(centres, abs=1e-8)
        assert fitted.values == pytest.approx(values, abs=1e-8)
    assert len(fitted.logits) <= len(centres)


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 300),
    slope=st.sampled_from([-1.0, 0.0, 0.01, 0.5, 9.0]),
    weighted=st.booleans(),
)
def test_isotonic_keeps_every_ranking_and_never_saturates(
    seed: int, n: int, slope: float, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=n).astype(np.float32)
    labels = rng.random(n) < sigmoid(slope * logits.astype(np.float64))
    weights = rng.uniform(0, 1e6, size=n) if weighted else None
    fitted = fit_isotonic(logits, labels, weights)
    near = np.nextafter(logits, np.float32(np.inf))
    scores = fitted.probabilities(
        np.unique(np.concatenate([logits, near, np.linspace(-14, 14, 1001, dtype=np.float32)]))
    )
    assert (np.diff(scores) > 0).all()
    assert 0 < scores[0] < scores[-1] < 1


@pytest.mark.parametrize("base", [0.0, -4.0])
@pytest.mark.parametrize("slope, intercept", [(1.0, 0.0), (0.5, -0.5)])
@pytest.mark.parametrize("n", [3_000, 30_000])
def test_isotonic_does_not_make_the_log_loss_worse(
    base: float, slope: float, intercept: float, n: int
) -> None:
    rng = np.random.default_rng(7)
    logits = (base + rng.normal(scale=1.5, size=n + 100_000)).astype(np.float32)
    truth = sigmoid(slope * logits.astype(np.float64) + intercept)
    labels = (rng.random(len(logits)) < truth).astype(np.float64)
    fitted = fit_isotonic(logits[:n], labels[:n])
    scores = {
        "raw": sigmoid(logits[n:].astype(np.float64)),
        "isotonic": fitted.probabilities(logits[n:]),
        "best": truth[n:],
    }
    loss = {name: log_loss(labels[n:], values) for name, values in scores.items()}
    noise = 20 / n  # a level per n / 50 rows, half a unit of log-likelihood each, and a reserve
    assert loss["isotonic"] < loss["best"] + noise
    assert loss["isotonic"] < loss["raw"] + noise
    assert auc(labels[n:], scores["isotonic"]) == auc(labels[n:], scores["raw"])
    assert fitted.probabilities(logits[:n]).mean() == pytest.approx(labels[:n].mean(), rel=0.05)


def test_a_curve_of_an_older_bundle_scores_as_it_did() -> None:
    logits = np.array([-2.0, -1.0, -0.5, 0.0, 1.0, 3.0])
    stored = {"kind": "isotonic", "logits": [-1.0, 0.0, 1.0], "values": [0.0, 0.5, 1.0]}
    curve = calibration_from_json(stored)
    assert curve.probabilities(logits).tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert calibration_to_json(curve) == {
        **stored,
        "logits": (-1.0, 0.0, 1.0),
        "values": (0.0, 0.5, 1.0),
    }


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
        Isotonic(logits=(-1.0, 0.1), values=(0.2, 0.9), slope=0.7),
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
    for values, slope in [((0.5, 0.5), 1.0), ((0.0, 0.5), 1.0), ((0.2, 0.5), 0.0)]:
        with pytest.raises(BundleError, match="expected a slope above 0 and probabilities that"):
            Isotonic(logits=(0.0, 1.0), values=values, slope=slope)
    with pytest.raises(ConfigError, match=r"isotonic.values: got 0.5, expected a list of numbers"):
        calibration_from_json({"kind": "isotonic", "logits": [0.0], "values": 0.5})
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
