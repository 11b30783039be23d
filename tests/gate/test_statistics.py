"""The gate's statistics against brute force, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from widedeep.evaluation.statistics import (
    MAX_CLUSTERS,
    benjamini_hochberg,
    bootstrap_clusters,
    holm,
    p_value_at_limit,
    placements,
    resample,
)


def test_placements_give_the_auc_of_each_group_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, 500)
    labels = rng.integers(0, 2, 500).astype(float)
    scores = rng.integers(0, 20, 500) / 20.0
    weights = rng.random(500)
    below, above = placements(scores, weights * labels, weights * (1 - labels), groups)
    for group in range(4):
        rows = groups == group
        expected = roc_auc_score(labels[rows], scores[rows], sample_weight=weights[rows])
        for place, side in ((below, labels), (above, 1 - labels)):
            mean = np.average(place[rows], weights=(weights * side)[rows])
            assert mean == pytest.approx(expected, abs=1e-12)


def test_the_influence_of_rows_gives_the_aucs_standard_error() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(2000) < 0.3).astype(float)
    scores = labels + rng.normal(0, 1.5, 2000)
    below, above = placements(scores, labels, 1 - labels, np.zeros(2000, np.int64))
    auc = below[labels == 1].mean()
    influence = np.where(
        labels == 1, (below - auc) / labels.sum(), (above - auc) / (1 - labels).sum()
    )
    error = (resample(2000, 1000, 0) @ influence).std()
    again = []
    for _ in range(300):
        rows = rng.integers(0, 2000, 2000)
        again.append(roc_auc_score(labels[rows], scores[rows]))
    assert error == pytest.approx(np.std(again), rel=0.15)


def test_bags_hold_whole_units_and_are_alike_in_size() -> None:
    units = np.repeat(np.arange(10_000), 3)
    bags, count = bootstrap_clusters(units, 10_000, 7)
    assert count == MAX_CLUSTERS
    assert (bags.reshape(-1, 3) == bags[::3, None]).all()
    assert set(np.bincount(bags)) == {15}


def test_correction_for_many_tests() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([]) == benjamini_hochberg([]) == []
    # Under the null, Holm names anything in one family of 30 tests in at most 5 % of the cases.
    rng = np.random.default_rng(2)
    named = [min(holm(rng.random(30))) < 0.05 for _ in range(1000)]
    assert np.mean(named) < 0.07


def test_an_undefined_difference_proves_nothing() -> None:
    assert p_value_at_limit(float("nan"), 1.0, 0.0) == 0.0
    assert p_value_at_limit(1.0, 0.0, 0.5) == 0.0
    assert p_value_at_limit(0.4, 0.0, 0.5) == 1.0
