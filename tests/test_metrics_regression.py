"""Regression metrics against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from widedeep import metrics as wm
from widedeep.errors import ConfigError


@given(
    st.integers(2, 200),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1e3, -1e9]),
    st.booleans(),
)
def test_everything_equals_scikit_learn(rows: int, seed: int, far: float, weighted: bool) -> None:
    random = np.random.default_rng(seed)
    labels = far + random.normal(size=rows)
    predictions = labels + random.normal(size=rows)
    weights: Any = random.choice([0.0, 1.0, 4.5], rows) if weighted else None
    if weighted:
        weights[:2] = 1.0
    metrics = wm.RegressionMetrics()
    metrics.update(predictions, labels, weights)
    got = metrics.compute()
    mse = oracle.mean_squared_error(labels, predictions, sample_weight=weights)
    mae = oracle.mean_absolute_error(labels, predictions, sample_weight=weights)
    r2 = oracle.r2_score(labels, predictions, sample_weight=weights)
    assert got["mse"] == pytest.approx(mse, rel=1e-12)
    assert got["rmse"] == pytest.approx(math.sqrt(mse), rel=1e-12)
    assert got["mae"] == pytest.approx(mae, rel=1e-12)
    # Labels near 1e9 have seven digits behind the point, the oracle's mean no more.
    assert got["r2"] == pytest.approx(r2, rel=1e-5 if far == -1e9 else 1e-9, abs=1e-6)
    assert got["mean_bias"] == pytest.approx(
        np.average(predictions - labels, weights=weights), rel=1e-9, abs=1e-12
    )
    assert got["label_mean"] == pytest.approx(
        np.average(labels, weights=weights), rel=1e-12, abs=1e-12
    )
    assert got["prediction_mean"] == pytest.approx(
        np.average(predictions, weights=weights), rel=1e-12, abs=1e-12
    )
    assert got["rows"] == rows


def test_long_streams_do_not_depend_on_cuts_and_keep_their_digits() -> None:
    random = np.random.default_rng(2)
    labels = 1e8 + random.normal(size=200_000)
    predictions = labels + random.normal(size=200_000) / 2
    whole = wm.RegressionMetrics()
    whole.update(predictions, labels)
    cut = wm.RegressionMetrics()
    for start in range(0, 200_000, 4321):
        cut.update(predictions[start : start + 4321], labels[start : start + 4321])
    assert cut.compute() == whole.compute()
    exact = oracle.r2_score(labels - 1e8, predictions - 1e8)
    assert whole.compute()["r2"] == pytest.approx(exact, rel=1e-9)


def test_equal_labels_and_no_rows_are_nan_with_a_reason() -> None:
    metrics = wm.RegressionMetrics()
    metrics.update([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], [0.3, 0.7, 0.9])
    got = metrics.compute()
    assert math.isnan(got["r2"])
    assert metrics.reasons == {"r2": "all labels of positive weight are equal: 0.1"}
    assert got["mae"] == pytest.approx((0.3 * 0.9 + 0.7 * 1.9 + 0.9 * 2.9) / 1.9, rel=1e-12)
    empty = wm.RegressionMetrics()
    assert math.isnan(empty.compute()["mse"])
    assert empty.reasons["mse"] == "there are no rows of positive weight"
    with pytest.raises(ConfigError, match="did you mean 'rmse'"):
        wm.RegressionMetrics(names=["rmsee"])
