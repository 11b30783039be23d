"""Numbers are summed exactly, cut at exact quantiles, and mostly-zero columns stay useful."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.data.number_fit import (
    NumberSummary,
    bucket_boundaries,
    quantile_cuts,
    quantiles,
    summarised_fit,
)
from widedeep.errors import FeatureError
from widedeep.features import bucketized, numeric
from widedeep.schema import ColumnType, NumericFit

FLOAT = ColumnType(kind="float", storage="float64")
FINITE = st.floats(allow_nan=False, allow_infinity=False)
MODEST = st.floats(-1e100, 1e100)


def summary_of(values: list[float], *transforms: str) -> NumberSummary:
    summary = NumberSummary(transforms)
    summary.add(np.array(values, np.float64))
    summary.keep_sample(np.array(values, np.float64))
    return summary


def fit(values: list[float], **options: Any) -> NumericFit:
    feature = numeric("x", **options)[0]
    return summarised_fit(feature, [summary_of(values, feature.transform)], FLOAT)


@given(st.lists(MODEST, min_size=1))
def test_moments_are_the_nearest_floats_to_the_exact_ones(values: list[float]) -> None:
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    got_mean, got_spread = summary_of(values, "standard").moments("standard")
    assert got_mean == float(mean)
    assert got_spread == pytest.approx(math.sqrt(variance), rel=1e-12, abs=1e-160)


def test_a_small_spread_around_a_large_mean_is_kept() -> None:
    values = [1e15 + offset for offset in (0, 1, 2, 3)]
    mean, spread = summary_of(values, "standard").moments("standard")
    assert (mean, spread) == (1e15 + 1.5, math.sqrt(1.25))


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(2, 12))
def test_bucket_cuts_hold_equal_mass_of_distinct_values(values: list[int], buckets: int) -> None:
    ordered = np.sort(np.array(values, np.float64))
    cuts = quantile_cuts(ordered, buckets)
    wanted = {ordered[k * len(values) // buckets] for k in range(1, buckets)} - {ordered[0]}
    assert cuts.tolist() == sorted(wanted)
    counts = np.bincount(np.searchsorted(cuts, ordered, "right"), minlength=len(cuts) + 1)
    assert counts.min() > 0
    if len(set(values)) == len(values):
        assert counts.max() - counts.min() <= 1 or len(values) < buckets


@given(st.lists(FINITE, min_size=1), st.integers(2, 12))
def test_quantiles_are_values_and_span_them_all(values: list[float], count: int) -> None:
    ordered = np.sort(np.array(values))
    cuts = quantiles(ordered, count)
    assert cuts[0] == ordered[0] and cuts[-1] == ordered[-1]
    assert set(cuts) <= set(values)
    assert (np.diff(cuts) > 0).all() and len(cuts) <= count


def test_a_zero_inflated_column_keeps_its_resolution() -> None:
    values = [0.0] * 900 + [float(v) for v in range(1, 101)]
    learned = fit(values, quantiles=101)
    # Of 101 quantiles 90 are zero and merge into one; the others spread over the rest.
    assert learned.boundaries[0].tolist() == [0.0, *(float(v) for v in range(10, 101, 10))]


def test_given_boundaries_are_used_as_they_are() -> None:
    feature = bucketized("b", source="x", boundaries=[1, 2])
    assert bucket_boundaries(feature, summary_of([5.0]), FLOAT).tolist() == [1.0, 2.0]


def test_learned_buckets_merge_equal_boundaries() -> None:
    feature = bucketized("b", source="x", quantiles=4)
    assert bucket_boundaries(feature, summary_of([1, 1, 1, 1, 1, 1, 2, 3]), FLOAT).tolist() == [2.0]
    assert bucket_boundaries(feature, summary_of([7, 7]), FLOAT).tolist() == []
    assert bucket_boundaries(feature, summary_of([math.nan]), FLOAT).tolist() == []


@pytest.mark.parametrize(
    "transform, shift, scale",
    [
        ("standard", 2.0, 1 / math.sqrt(2.0)),
        ("minmax", 0.0, 0.25),
        ("none", 0.0, 1.0),
    ],
)
def test_shift_and_scale(transform: Any, shift: float, scale: float) -> None:
    learned = fit([0, 1, 2, 3, 4, math.nan], transform=transform)
    assert learned.shift.tolist() == [shift]
    assert learned.scale.tolist() == pytest.approx([scale], rel=1e-15)
    assert learned.boundaries == ()
    assert (learned.minimum[0], learned.maximum[0], learned.mean[0]) == (0.0, 4.0, 2.0)


def test_log1p_is_standardised_after_the_logarithm() -> None:
    values = [-9.0, 0.0, 4.0, 99.0]
    logged = np.sign(values) * np.log1p(np.abs(values))
    learned = fit(values, transform="log1p")
    assert learned.shift[0] == pytest.approx(logged.mean(), rel=1e-14)
    assert learned.scale[0] == pytest.approx(1 / logged.std(), rel=1e-14)


@pytest.mark.parametrize("transform", ["quantile", "standard", "minmax", "log1p"])
@pytest.mark.parametrize("values", [[], [math.nan], [3.0, 3.0, math.nan]])
def test_a_column_without_information_becomes_zero(transform: Any, values: list[float]) -> None:
    learned = fit(values, transform=transform)
    assert learned.scale.tolist() == [1.0]
    assert learned.fill.tolist() == [0.0]
    assert fit(values, transform=transform, missing="indicator").fill.tolist() == [0.0]


def test_the_sign_of_zero_is_dropped() -> None:
    learned = fit([-0.0, 0.0, 1.0])
    assert not np.signbit(learned.boundaries[0]).any()
    assert not np.signbit(learned.minimum).any()


def test_an_empty_column_has_no_range() -> None:
    learned = fit([math.nan])
    assert all(math.isnan(part[0]) for part in (learned.minimum, learned.maximum, learned.mean))
    assert learned.boundaries[0].tolist() == []


@pytest.mark.parametrize(
    "options, fill",
    [
        ({"transform": "none"}, 2.5),
        ({"transform": "minmax"}, 0.25),
        ({"transform": "standard"}, 0.0),
        ({"transform": "log1p"}, 0.0),
        ({"transform": "none", "missing": 7}, 7.0),
        ({"transform": "minmax", "missing": 10}, 1.0),
        ({"transform": "standard", "missing": 2.5}, 0.0),
    ],
)
def test_the_value_of_a_null(options: dict[str, Any], fill: float) -> None:
    assert fit([0.0, 0.0, 0.0, 10.0], **options).fill[0] == np.float32(fill)


@pytest.mark.parametrize("missing, fill", [(-5, 0.0), (1, 0.25), (6, 0.75), (99, 1.0)])
def test_a_given_number_is_read_as_a_raw_value(missing: float, fill: float) -> None:
    assert fit([0.0, 2.0, 10.0], quantiles=3, missing=missing).fill[0] == np.float32(fill)


def test_the_mean_of_quantiles_fills() -> None:
    # Boundaries 0, 2, 10: the values become 0, 1/4, 1/2, 3/4 and 1.
    assert fit([0.0, 1.0, 2.0, 6.0, 10.0], quantiles=3).fill[0] == 0.5


@pytest.mark.parametrize("transform", ["standard", "minmax"])
def test_numbers_too_large_to_scale_are_refused(transform: Any) -> None:
    with pytest.raises(
        FeatureError, match="feature 'x': got 1e\\+200, expected numbers of at most"
    ):
        fit([0.0, 1e200], transform=transform)
    assert fit([0.0, 1e200], transform="quantile").maximum[0] == 1e200
