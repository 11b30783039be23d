"""Binary metrics against scikit-learn, brute force, and themselves with other cuts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as oracle

from widedeep import metrics as wm
from widedeep.errors import ConfigError
from widedeep.metrics.accumulate import BLOCK_ROWS, CompensatedSum

Floats = NDArray[np.float64]


@st.composite
def tables(draw: st.DrawFn, most: int = 60) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Logits with many ties, labels of both classes, weights."""
    rows = draw(st.integers(2, most))
    distinct = draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = random.normal(size=distinct) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    labels = random.integers(0, 2, rows)
    labels[:2] = [0, 1]
    weights = random.choice([0.0, 0.25, 1.0, 3.7], rows)
    weights[:2] = [0.5, 2.0]
    return random.choice(levels, rows), labels, weights


def pairwise_auc(labels: Any, scores: Any, weights: Any) -> float:
    """The definition: the weighted share of (positive, negative) pairs in order, ties one half."""
    won = every = 0.0
    for label, score, weight in zip(labels, scores, weights, strict=True):
        for other, below, times in zip(labels, scores, weights, strict=True):
            pair = weight * label * times * (1 - other)
            every += pair
            won += pair * (1.0 if score > below else 0.5 if score == below else 0.0)
    return won / every


def feed(metrics: wm.BinaryMetrics, columns: tuple[Any, ...], cuts: list[int]) -> dict[str, float]:
    """Update piece by piece."""
    for start, stop in zip([0, *cuts], [*cuts, len(columns[0])], strict=True):
        metrics.update(*(None if column is None else column[start:stop] for column in columns))
    return metrics.compute()


@given(tables(), st.booleans())
def test_the_curve_equals_scikit_learn_and_the_definition(table: Any, weighted: bool) -> None:
    logits, labels, weights = table
    sample_weight = weights if weighted else None
    assert wm.auc(labels, logits, sample_weight) == pytest.approx(
        oracle.roc_auc_score(labels, logits, sample_weight=sample_weight), rel=1e-12
    )
    shown = weights if weighted else np.ones(len(labels))
    assert wm.auc(labels, logits, sample_weight) == pytest.approx(
        pairwise_auc(labels, logits, shown), rel=1e-12
    )
    assert wm.pr_auc(labels, logits, sample_weight) == pytest.approx(
        oracle.average_precision_score(labels, logits, sample_weight=sample_weight), rel=1e-12
    )


@given(tables())
def test_the_means_equal_scikit_learn(table: Any) -> None:
    logits, labels, weights = table
    metrics = wm.BinaryMetrics()
    metrics.update(logits, labels, weights)
    got = metrics.compute()
    probabilities = 1 / (1 + np.exp(-logits))
    called = probabilities > 0.5
    # Probabilities near 1 have lost the digits that their logits hold: no oracle there.
    if np.abs(logits).max() < 10:
        expected = oracle.log_loss(labels, probabilities, sample_weight=weights)
        assert got["log_loss"] == pytest.approx(expected, rel=1e-9)
    mean = np.average(labels, weights=weights)
    entropy = -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
    assert got["normalized_entropy"] == pytest.approx(got["log_loss"] / entropy, rel=1e-12)
    accuracy = oracle.accuracy_score(labels, called, sample_weight=weights)
    assert got["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert got["accuracy_baseline"] == pytest.approx(max(mean, 1 - mean), rel=1e-12)
    recall = oracle.recall_score(labels, called, sample_weight=weights)
    assert got["recall"] == pytest.approx(recall, rel=1e-12)
    if np.sum(weights * called):
        precision = oracle.precision_score(labels, called, sample_weight=weights)
        assert got["precision"] == pytest.approx(precision, rel=1e-12)
    else:
        assert math.isnan(got["precision"])
        assert "no row of positive weight has a probability above 0.5" in str(metrics.reasons)
    assert got["calibration"] == pytest.approx(
        np.sum(weights * probabilities) / np.sum(weights * labels), rel=1e-12
    )
    assert got["label_mean"] == pytest.approx(mean, rel=1e-12)
    assert got["prediction_mean"] == pytest.approx(
        np.average(probabilities, weights=weights), rel=1e-12
    )
    assert got["rows"] == len(labels)


@given(tables(), st.integers(1, 7))
def test_calibration_error_is_that_of_bins_of_equal_mass(table: Any, bins: int) -> None:
    logits, labels, weights = table
    gaps = np.zeros(bins)
    above = 0.0
    for level in np.unique(logits)[::-1]:
        tied = logits == level
        mass = weights[tied].sum()
        place = min(int(bins * (above + mass / 2) / weights.sum()), bins - 1)
        gaps[place] += np.sum(weights[tied] * (1 / (1 + math.exp(-level)) - labels[tied]))
        above += mass
    got = wm.expected_calibration_error(labels, logits, weights, score_kind="logit", bins=bins)
    assert got == pytest.approx(np.abs(gaps).sum() / weights.sum(), rel=1e-9, abs=1e-15)


@given(tables())
def test_probabilities_give_what_their_logits_give(table: Any) -> None:
    logits, labels, weights = table
    logits = logits / 2
    probabilities = 1 / (1 + np.exp(-logits))
    of_probabilities = wm.BinaryMetrics(score_kind="probability")
    of_probabilities.update(probabilities, labels, weights)
    of_logits = wm.BinaryMetrics()
    # The same scores, so that the same ones tie.
    of_logits.update(np.log(probabilities) - np.log1p(-probabilities), labels, weights)
    expected = of_logits.compute()
    for name, value in of_probabilities.compute().items():
        if name not in ("auc", "pr_auc", "ece"):
            assert value == pytest.approx(expected[name], rel=1e-6, nan_ok=True), name
    assert wm.log_loss(labels, probabilities, weights) == pytest.approx(
        oracle.log_loss(labels, probabilities, sample_weight=weights), rel=1e-12
    )


@given(tables(), st.lists(st.integers(0, 60), max_size=4), st.sampled_from([1, 3, 7, 16]))
def test_neither_cuts_nor_spilling_change_a_bit(table: Any, cuts: list[int], bound: int) -> None:
    logits, labels, weights = table
    groups = (np.abs(logits) * 7).astype(np.int64) % 3
    columns = (logits, labels, weights, groups)
    inside = sorted(min(cut, len(labels)) for cut in cuts)
    whole = feed(wm.BinaryMetrics(groups=True, k=[1, 3]), columns, [])
    spilled = wm.BinaryMetrics(groups=True, k=[1, 3], max_rows_in_memory=bound)
    assert np.array_equal(
        list(feed(spilled, columns, inside).values()), list(whole.values()), equal_nan=True
    )


def test_long_streams_do_not_depend_on_cuts_or_memory() -> None:
    random = np.random.default_rng(3)
    rows = 3 * BLOCK_ROWS + 1234
    logits = random.normal(size=rows).round(3)
    labels = random.random(rows) < 1 / (1 + np.exp(-logits))
    columns = (logits, labels, random.gamma(1.0, size=rows), random.integers(0, 9000, rows))
    whole = feed(wm.BinaryMetrics(groups=True), columns, [])
    cuts = sorted(random.integers(0, rows, 90).tolist())
    small = wm.BinaryMetrics(groups=True, max_rows_in_memory=30_011)
    assert feed(small, columns, cuts) == whole
    expected = oracle.roc_auc_score(labels, logits, sample_weight=columns[2])
    assert whole["auc"] == pytest.approx(expected, rel=1e-12)


def test_compute_is_repeatable_and_the_stream_goes_on() -> None:
    random = np.random.default_rng(5)
    columns = (
        random.normal(size=400),
        random.integers(0, 2, 400),
        None,
        random.integers(0, 30, 400),
    )
    for bound in (50, 1000):
        metrics = wm.BinaryMetrics(groups=True, max_rows_in_memory=bound)
        half = feed(metrics, tuple(None if c is None else c[:200] for c in columns), [])
        assert metrics.compute() == half
        rest = feed(metrics, tuple(None if c is None else c[200:] for c in columns), [])
        assert rest == feed(wm.BinaryMetrics(groups=True), columns, [])


@settings(max_examples=30)
@given(tables(), st.integers(0, 2**32))
def test_a_soft_label_is_a_positive_and_a_negative_row(table: Any, seed: int) -> None:
    logits, _, weights = table
    soft = np.random.default_rng(seed).choice([0.0, 0.125, 0.5, 0.75, 1.0], len(logits))
    soft[:2] = [0.125, 0.75]
    one = wm.BinaryMetrics()
    one.update(logits, soft, weights)
    split = wm.BinaryMetrics()
    split.update(
        np.concatenate([logits, logits]),
        np.repeat([1, 0], len(logits)),
        np.concatenate([weights * soft, weights * (1 - soft)]),
    )
    expected = split.compute()
    for name, value in one.compute().items():
        if name != "rows":
            assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True), name


def test_log_loss_from_logits_keeps_its_digits_at_both_ends() -> None:
    assert wm.log_loss([0], [1000.0], score_kind="logit") == 1000.0
    assert wm.log_loss([1], [40.0], score_kind="logit") == pytest.approx(math.exp(-40), rel=1e-12)
    # In float32 this sum would stand still at 2**24.
    rows = 20_000
    value = wm.log_loss(np.zeros(rows), np.full(rows, 3.0, np.float32), score_kind="logit")
    assert value == pytest.approx(math.log1p(math.exp(3.0)), rel=1e-14)
    assert wm.log_loss([1], [0.0]) == pytest.approx(-math.log(np.finfo(np.float64).eps), rel=1e-12)


def test_scores_of_two_precisions_tie_where_they_are_equal() -> None:
    metrics = wm.BinaryMetrics(names=["auc"])
    metrics.update(np.array([0.1], np.float32), np.array([1]))
    metrics.update(np.array([np.float64(np.float32(0.1))]), np.array([0]))
    metrics.update(np.array([0.0]), np.array([1]))
    metrics.update(np.array([-0.0]), np.array([0]))
    assert metrics.compute() == {"auc": 0.5}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan_with_a_reason(label: int) -> None:
    metrics = wm.BinaryMetrics(groups=True)
    metrics.update([0.5, -1.0], [label, label], None, [1, 1])
    got = metrics.compute()
    undefined = {name for name, value in got.items() if math.isnan(value)}
    without_positives = {"pr_auc", "recall", "calibration", "mrr", "ndcg@10", "map@10"}
    expected = {"auc", "normalized_entropy", "gauc"}
    assert undefined == (expected if label else expected | without_positives | {"hit_rate@10"})
    assert set(metrics.reasons) == undefined
    missing = "none is negative" if label else "none is positive"
    assert missing in metrics.reasons["auc"]
    assert got["groups_one_class"] == 1.0
    assert got["accuracy_baseline"] == 1.0


def test_no_rows_and_no_weight_are_nan_with_a_reason() -> None:
    for rows, weights in ((0, None), (2, [0.0, 0.0])):
        metrics = wm.BinaryMetrics(groups=True)
        metrics.update([1.0, 2.0][:rows], [0, 1][:rows], weights, [1, 1][:rows])
        got = metrics.compute()
        assert got["rows"] == rows
        assert math.isnan(got["auc"]) and math.isnan(got["log_loss"]) and math.isnan(got["gauc"])
        assert metrics.reasons["log_loss"] == "there are no rows of positive weight"


def test_only_the_metrics_named_are_computed() -> None:
    metrics = wm.BinaryMetrics(names=["ndcg@3", "auc", "ndcg@1"])
    assert metrics.grouped
    metrics.update([2.0, 1.0, 3.0], [1, 0, 0], groups_B=["a", "a", "a"])
    assert metrics.compute() == {
        "ndcg@3": pytest.approx(1 / math.log2(3), rel=1e-12),
        "auc": 0.5,
        "ndcg@1": 0.0,
    }
    assert not wm.BinaryMetrics(names=["log_loss"]).grouped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["aux"]}, "names: got 'aux', not a metric; did you mean 'auc'?"),
        ({"names": ["ndcg"]}, "did you mean 'ndcg@10'?"),
        ({"names": ["ndcg@0"]}, "k: got 0, expected 1 to 1000000"),
        ({"k": [5, -1]}, "k: got -1"),
        ({"ece_bins": 0}, "ece_bins: got 0, expected 1 or more"),
        ({"score_kind": "logits"}, "score_kind: got 'logits'; did you mean 'logit'?"),
        ({"max_rows_in_memory": 0}, "max_rows_in_memory: got 0, expected 1 to"),
        ({"spill_directory": "/no/such/place"}, "spill_directory: got '/no/such/place'"),
    ],
)
def test_wrong_settings_say_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wm.BinaryMetrics(**arguments)
    assert message in str(caught.value)


def test_every_single_metric_is_a_metric() -> None:
    for metric in (
        wm.BinaryMetric("auc"),
        wm.MulticlassMetric("accuracy", 2),
        wm.RegressionMetric("mse"),
    ):
        assert isinstance(metric, wm.StreamingMetric)
        scores = [[0.0, 1.0], [3.0, 2.0]] if metric.name == "accuracy" else [0.0, 1.0]
        metric.update(scores, [0, 1], [1.0, 3.0], ["a", "b"])
        assert metric.compute() == {"auc": 1.0, "accuracy": 0.0, "mse": 0.0}[metric.name]


def test_compensated_sums_lose_nothing() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=1000) * 10.0 ** random.integers(-12, 12, 1000)
    total = CompensatedSum(2)
    for value in values:
        total.add(np.array([value, -value]))
    assert total.values()[0] == pytest.approx(math.fsum(values), rel=1e-15)
    assert total.values()[1] == -total.values()[0]
