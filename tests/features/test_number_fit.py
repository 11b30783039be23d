"""Numbers are summed exactly, cut at exact quantiles, and mostly-zero columns stay useful."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.errors import FeatureError
from widedeep.features import bucketized, numeric
from widedeep.features.numbers import NumberSummary, bin_cuts, quantile_cuts, quantiles
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
    return feature.fit_numbers([summary_of(values, feature.transform)], FLOAT)


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
    assert feature.fit_boundaries(summary_of([5.0]), FLOAT).tolist() == [1.0, 2.0]


def test_learned_buckets_merge_equal_boundaries() -> None:
    feature = bucketized("b", source="x", quantiles=4)
    assert feature.fit_boundaries(summary_of([1, 1, 1, 1, 1, 1, 2, 3]), FLOAT).tolist() == [2.0]
    assert feature.fit_boundaries(summary_of([7, 7]), FLOAT).tolist() == []
    assert feature.fit_boundaries(summary_of([math.nan]), FLOAT).tolist() == []


def greedy_bins(values: list[float], bins: int) -> list[list[float]]:
    """Bins value by value: the oracle of ``bin_cuts``."""
    distinct = sorted(set(values))
    counts = {value: values.count(value) for value in distinct}
    bins = bins if len(distinct) <= bins else max(1, min(bins, len(values) // 3))
    heavy = {value for value in distinct if counts[value] * bins >= len(values)}
    light_rows = sum(counts[value] for value in distinct if value not in heavy)
    light_bins = bins - len(heavy)
    result: list[list[float]] = [[]]
    for position, value in enumerate(distinct[:-1]):
        result[-1].append(value)
        rows = sum(counts[one] for one in result[-1])
        behind = sum(counts[one] for one in distinct[position + 1 :])
        target = max(light_rows / light_bins, 3) if light_bins else math.inf
        if len(distinct) <= bins:
            closes = rows >= 3
        else:
            is_before_heavy = distinct[position + 1] in heavy
            closes = value in heavy or rows >= (max(target / 2, 3) if is_before_heavy else target)
        if closes and behind >= 3 and len(result) < bins:
            light_rows -= sum(counts[one] for one in result[-1] if one not in heavy)
            light_bins -= value not in heavy
            result.append([])
    result[-1].append(distinct[-1])
    return result


@given(
    st.lists(
        st.tuples(st.one_of(st.integers(-9, 30), FINITE), st.integers(1, 12)),
        min_size=1,
        max_size=60,
    ),
    st.integers(2, 20),
)
def test_bins_are_those_of_a_plain_greedy_loop(runs: list[tuple[float, int]], bins: int) -> None:
    values = [float(value) + 0.0 for value, count in runs for _ in range(count)]
    ordered = np.sort(np.array(values))
    cuts = bin_cuts(ordered, bins)
    assert (np.diff(cuts) > 0).all() and len(cuts) <= bins - 1
    bin_of_N = np.searchsorted(cuts, ordered, "right")
    groups = [np.unique(ordered[bin_of_N == b]).tolist() for b in range(len(cuts) + 1)]
    assert groups == greedy_bins(values, bins)
    if len(cuts):
        assert np.bincount(bin_of_N).min() >= 3


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    values = [0.0] * 900 + [float(v) for v in range(1, 101)]
    cuts = bin_cuts(np.sort(np.array(values)), 11)
    assert cuts.tolist() == [0.5, *(v + 0.5 for v in range(10, 100, 10))]
    cuts = bin_cuts(np.sort(np.array([50.5] * 900 + values[900:])), 11)
    assert {50.25, 50.75} <= set(cuts.tolist())


def test_few_values_have_bins_of_three_rows() -> None:
    feature = bucketized("b", source="x", bins=255)

    def cuts(values: list[float]) -> list[float]:
        return feature.fit_boundaries(summary_of(values), FLOAT).tolist()

    assert cuts([1, 1, 1, 2, 2, 2, 4, 4, 4]) == [1.5, 3.0]
    assert cuts([1, 1, 2, 3, 3, 3, 4, 4]) == [2.5]
    assert cuts([1, 2, 3, 4, 5]) == []
    assert cuts([7.0] * 9) == cuts([math.nan] * 9) == cuts([]) == []


def test_a_cut_lies_above_the_lower_value_in_float32_too() -> None:
    low = 1.0 + 2.0**-23  # whose midpoint to the next float32 rounds to an even neighbour
    for below, above in [(1.0, low), (low, low + 2.0**-23), (-1e308, 1e308), (5e-324, 1e-323)]:
        cut = bin_cuts(np.array([below] * 3 + [above] * 3), 2)
        assert below < cut[0] <= above
        with np.errstate(over="ignore"):
            low_32, cut_32, high_32 = np.array([below, cut[0], above]).astype(np.float32)
        assert low_32 < cut_32 <= high_32 or low_32 == high_32


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


def test_a_given_scaling_is_not_learned() -> None:
    learned = fit([0, 1, 2, 3, 4, math.nan], transform="standard", shift=38.6, scale=0.073)
    assert (learned.shift.tolist(), learned.scale.tolist()) == ([38.6], [0.073])
    assert learned.fill[0] == np.float32((2.0 - 38.6) * 0.073)
    two = numeric("x", size=2, transform="standard", shift=[1, 2], scale=np.array([0.5, 3]))[0]
    learned = two.fit_numbers([summary_of([9.0]), summary_of([9.0])], FLOAT)
    assert (learned.shift.tolist(), learned.scale.tolist()) == ([1.0, 2.0], [0.5, 3.0])


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
