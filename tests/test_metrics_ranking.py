"""Grouped metrics against brute force over all orders of tied rows, and against scikit-learn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from widedeep import metrics as wm
from widedeep.metrics.ranking import expected_first


def orders(scores: list[float]) -> list[tuple[int, ...]]:
    """All orders from the highest score down, ties in every order."""
    return [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def by_definition(labels: list[int], scores: list[float], k: int) -> dict[str, float]:
    """Mean over the orders of a group's metrics, by their textbook definitions."""
    sums = {"ndcg": 0.0, "map": 0.0, "hit_rate": 0.0, "mrr": 0.0}
    every = orders(scores)
    best = min(sum(labels), k)
    for order in every:
        ranked = [labels[row] for row in order]
        gain = sum(label / math.log2(i + 2) for i, label in enumerate(ranked[:k]))
        sums["ndcg"] += gain / sum(1 / math.log2(i + 2) for i in range(best))
        precisions = (
            sum(ranked[: i + 1]) / (i + 1) for i in range(min(k, len(ranked))) if ranked[i]
        )
        sums["map"] += sum(precisions) / best
        sums["hit_rate"] += float(any(ranked[:k]))
        sums["mrr"] += 1 / (ranked.index(1) + 1)
    return {name: total / len(every) for name, total in sums.items()}


@st.composite
def grouped(draw: st.DrawFn) -> list[tuple[list[int], list[float], list[float]]]:
    """Groups of 1 to 6 rows: labels, scores with ties, weights."""
    row = st.tuples(
        st.integers(0, 1), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.sampled_from([0.5, 1.0, 3.0])
    )
    tables = draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=5))
    return [tuple(list(column) for column in zip(*rows, strict=True)) for rows in tables]  # type: ignore[misc]


def flat(groups: Any, seed: int) -> tuple[Any, ...]:
    """Scores, labels, weights and group ids of all rows, shuffled."""
    rows = [
        (score, label, weight, f"user {number}")
        for number, (labels, scores, weights) in enumerate(groups)
        for label, score, weight in zip(labels, scores, weights, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(rows))
    return tuple(np.array(column)[order] for column in zip(*rows, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    grouped(), st.integers(1, 7), st.integers(0, 99), st.booleans(), st.sampled_from([2, 10_000])
)
def test_means_over_groups_equal_their_definitions(
    groups: Any, k: int, seed: int, weighted: bool, bound: int
) -> None:
    scores, labels, weights, ids = flat(groups, seed)
    metrics = wm.BinaryMetrics(groups=True, k=k, max_rows_in_memory=bound)
    metrics.update(scores, labels, weights if weighted else None, ids)
    got = metrics.compute()
    totals = dict.fromkeys(("ndcg", "map", "hit_rate", "mrr"), 0.0)
    mass = 0.0
    for group_labels, group_scores, group_weights in groups:
        if any(group_labels):
            weight = float(np.mean(group_weights)) if weighted else 1.0
            mass += weight
            for name, value in by_definition(group_labels, group_scores, k).items():
                totals[name] += weight * value
    for name, total in totals.items():
        value = got["mrr" if name == "mrr" else f"{name}@{k}"]
        expected = total / mass if mass else float("nan")
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-15, nan_ok=True), name
    assert got["groups"] == len(groups)
    assert got["groups_without_positive"] == sum(not any(labels) for labels, _, _ in groups)


@settings(max_examples=60, deadline=None)
@given(grouped(), st.integers(0, 99), st.booleans(), st.sampled_from([2, 10_000]))
def test_grouped_auc_is_the_mean_of_scikit_learns(
    groups: Any, seed: int, weighted: bool, bound: int
) -> None:
    scores, labels, weights, ids = flat(groups, seed)
    total = mass = left_out = 0.0
    for group_labels, group_scores, group_weights in groups:
        sample_weight = group_weights if weighted else [1.0] * len(group_labels)
        if len(set(group_labels)) == 1:
            left_out += 1
            continue
        auc = oracle.roc_auc_score(group_labels, group_scores, sample_weight=sample_weight)
        total += auc * sum(sample_weight)
        mass += sum(sample_weight)
    metrics = wm.BinaryMetrics(names=["gauc", "groups_one_class"], max_rows_in_memory=bound)
    metrics.update(scores, labels, weights if weighted else None, ids)
    got = metrics.compute()
    expected = total / mass if mass else float("nan")
    assert got["gauc"] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert got["groups_one_class"] == left_out
    assert ("gauc" in metrics.reasons) == (mass == 0)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_ndcg_equals_scikit_learns_on_large_groups_with_ties(k: int) -> None:
    random = np.random.default_rng(k)
    labels = random.integers(0, 2, (20, 60))
    scores = random.integers(0, 9, (20, 60)).astype(float)
    ids = np.repeat(np.arange(20), 60)
    expected = oracle.ndcg_score(labels, scores, k=k)
    got = wm.ndcg_at_k(labels.ravel(), scores.ravel(), ids, k)
    assert got == pytest.approx(expected, rel=1e-12)


def test_a_constant_score_gets_what_shuffling_gets_wherever_the_positives_stand() -> None:
    for labels in ([1, 0, 0, 0], [0, 0, 0, 1]):
        group = [4] * 4
        assert wm.hit_rate_at_k(labels, [0.3] * 4, group, k=2) == pytest.approx(0.5, rel=1e-12)
        assert wm.mrr(labels, [0.3] * 4, group) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
        assert wm.grouped_auc(labels, [0.3] * 4, group) == 0.5


def test_groups_and_ties_larger_than_a_block_are_put_together_again() -> None:
    rows = 150_000
    labels = np.zeros(rows, dtype=np.int64)
    labels[rows // 2 :] = 1
    scores = np.where(np.arange(rows) % 3 == 0, 0.0, 1.0)
    metrics = wm.BinaryMetrics(groups=True, k=5, max_rows_in_memory=20_000)
    metrics.update(scores, labels, groups_B=np.full(rows, 7))
    got = metrics.compute()
    assert got["gauc"] == pytest.approx(got["auc"], rel=1e-12)
    assert got["gauc"] == pytest.approx(oracle.roc_auc_score(labels, scores), rel=1e-12)
    assert got["groups"] == 1.0
    # 100,000 rows share the first score, half of them relevant: nearly a coin a place.
    assert got["mrr"] == pytest.approx(math.log(2), rel=1e-4)
    assert got["hit_rate@5"] == pytest.approx(1 - 1 / 32, rel=1e-4)
    assert got["ndcg@5"] == pytest.approx(0.5, rel=1e-9)
    # Mean over five places j of 1/2 · (1/j + (j - 1)/(2 j)), in a run this long.
    assert got["map@5"] == pytest.approx(
        np.mean([(j + 1) / (4 * j) for j in range(1, 6)]), rel=1e-4
    )


def test_first_relevant_row_in_a_run_longer_than_a_piece() -> None:
    size, above = 200_000.0, 3.0
    reciprocal, hits = expected_first(
        np.array([above]), np.array([size]), np.array([1.0]), (1, 3, 100_000)
    )
    places = np.arange(1, size + 1) + above
    assert reciprocal[0] == pytest.approx(np.mean(1 / places), rel=1e-9)
    assert hits[:, 0] == pytest.approx([0.0, 0.0, (100_000 - above) / size], rel=1e-9)


def test_a_light_group_beside_a_heavy_one_keeps_its_digits() -> None:
    scores = np.array([3.0, 2.0, 1.0, 3.0, 2.0, 1.0])
    labels = np.array([1, 0, 1, 1, 0, 1])
    light = [0.3e-9, 0.2e-9, 0.7e-9]
    weights = np.array([1e9, 3e9, 5e9, *light])
    metrics = wm.BinaryMetrics(names=["gauc"])
    metrics.update(scores, labels, weights, np.array([1, 1, 1, 2, 2, 2]))
    heavy_auc, light_auc = 1 / 6, 0.3
    expected = (9e9 * heavy_auc + sum(light) * light_auc) / (9e9 + sum(light))
    assert metrics.compute()["gauc"] == pytest.approx(expected, rel=1e-14)
    alone = wm.grouped_auc(labels, scores, [1, 1, 1, 2, 2, 2], [0.0, 0.0, 0.0, *light])
    assert alone == pytest.approx(light_auc, rel=1e-14)


def test_group_ids_of_every_kind_give_the_same_groups() -> None:
    random = np.random.default_rng(1)
    scores, labels = random.normal(size=90), random.integers(0, 2, 90)
    users = random.integers(0, 12, 90)
    expected = wm.grouped_auc(labels, scores, users)
    names = np.array([f"usér {user}" for user in users])
    for ids in (
        users.astype(np.uint64) + np.uint64(2**63),
        users.astype(np.int8),
        names,
        names.astype(object),
        np.array([name.encode() for name in names]),
        names.tolist(),
        users.astype(object),
        users[:, None],
    ):
        assert wm.grouped_auc(labels, scores, ids) == pytest.approx(expected, rel=1e-12)
