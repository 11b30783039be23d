"""Multi-class metrics against scikit-learn and against their definitions."""

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


@st.composite
def tables(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Logits, labels with every class present, weights."""
    classes = draw(st.integers(2, 5))
    rows = draw(st.integers(classes + 1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = random.integers(0, classes, rows)
    labels[:classes] = np.arange(classes)
    return random.normal(size=(rows, classes)), labels, random.choice([0.5, 1.0, 2.5], rows)


def softmax(logits: Any) -> Any:
    top = np.exp(logits - logits.max(axis=1, keepdims=True))
    return top / top.sum(axis=1, keepdims=True)


@given(tables(), st.booleans(), st.sampled_from([3, 10_000]))
def test_everything_equals_scikit_learn(table: Any, from_logits: bool, bound: int) -> None:
    logits, labels, weights = table
    classes = logits.shape[1]
    probabilities = softmax(logits)
    kind = "logit" if from_logits else "probability"
    metrics = wm.MulticlassMetrics(classes, score_kind=kind, top_k=2, max_rows_in_memory=bound)  # type: ignore[arg-type]
    scores = logits if from_logits else probabilities
    half = len(labels) // 2
    metrics.update(scores[:half], labels[:half], weights[:half])
    metrics.update(scores[half:], labels[half:], weights[half:])
    got = metrics.compute()
    loss = oracle.log_loss(labels, probabilities, sample_weight=weights)
    assert got["log_loss"] == pytest.approx(loss, rel=1e-10)
    called = probabilities.argmax(axis=1)
    accuracy = oracle.accuracy_score(labels, called, sample_weight=weights)
    assert got["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    aucs = [
        oracle.roc_auc_score(labels == c, probabilities[:, c], sample_weight=weights)
        for c in range(classes)
    ]
    assert got["auc"] == pytest.approx(np.mean(aucs), rel=1e-12)
    assert got["auc_classes"] == classes
    if classes > 2:
        top = oracle.top_k_accuracy_score(labels, probabilities, k=2, sample_weight=weights)
        assert got["top_2_accuracy"] == pytest.approx(top, rel=1e-12)
    rates = np.bincount(labels, weights) / weights.sum()
    assert got["accuracy_baseline"] == pytest.approx(rates.max(), rel=1e-12)
    entropy = -np.sum(rates * np.log(rates))
    assert got["normalized_entropy"] == pytest.approx(loss / entropy, rel=1e-10)
    assert got["rows"] == len(labels)


def test_ties_go_to_the_lower_class_as_with_argmax() -> None:
    scores = np.zeros((4, 4))
    labels = np.array([0, 0, 1, 3])
    metrics = wm.MulticlassMetrics(4, top_k=3)
    metrics.update(scores, labels)
    got = metrics.compute()
    assert got["accuracy"] == np.mean(scores.argmax(axis=1) == labels) == 0.5
    assert got["top_3_accuracy"] == 0.75
    assert got["auc"] == 0.5


def test_long_streams_do_not_depend_on_cuts_or_memory() -> None:
    random = np.random.default_rng(8)
    logits = random.normal(size=(50_000, 3)).round(2).astype(np.float32)
    labels = random.integers(0, 3, 50_000)
    weights = random.random(50_000)
    whole = wm.MulticlassMetrics(3)
    whole.update(logits, labels, weights)
    cut = wm.MulticlassMetrics(3, max_rows_in_memory=10_000)
    for start in range(0, 50_000, 777):
        part = slice(start, start + 777)
        cut.update(logits[part], labels[part], weights[part])
    assert cut.compute() == whole.compute()


def test_absent_classes_are_left_out_and_named() -> None:
    metrics = wm.MulticlassMetrics(4)
    metrics.update(np.eye(4)[:2], [0, 1])
    got = metrics.compute()
    assert (got["auc"], got["auc_classes"]) == (1.0, 2.0)
    expected = "mean of 2 of 4 classes; no row of positive weight has class 2, 3"
    assert metrics.reasons == {"auc": expected}


def test_one_class_and_no_rows_are_nan_with_a_reason() -> None:
    metrics = wm.MulticlassMetrics(3)
    metrics.update(np.eye(3)[:1], [0])
    got = metrics.compute()
    assert math.isnan(got["auc"]) and math.isnan(got["normalized_entropy"])
    assert "at most one class has rows of positive weight" in metrics.reasons["auc"]
    empty = wm.MulticlassMetrics(3)
    empty.update(np.zeros((0, 3)), [])
    assert empty.compute()["rows"] == 0.0
    assert empty.reasons["log_loss"] == "there are no rows of positive weight"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "classes: got 1, expected 2 or more"),
        ({"classes": 3, "top_k": 0}, "top_k: got 0, expected 1 or more"),
        ({"classes": 3, "names": ["accuracies"]}, "did you mean 'accuracy'?"),
        ({"classes": 3, "max_rows_in_memory": -5}, "max_rows_in_memory: got"),
    ],
)
def test_wrong_settings_say_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wm.MulticlassMetrics(**arguments)
    assert message in str(caught.value)
