"""Bad rows: an error that says where, and nothing of the update is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from widedeep import metrics as wm
from widedeep.errors import ConfigError, DataError

nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "labels", "weights", "message"),
    [
        (
            [1.0, nan],
            [0, 1],
            None,
            "scores (row 4 of the evaluated rows, counted from 0): got nan, exp",
        ),
        (
            [-inf, 0.0],
            [0, 1],
            None,
            "scores (row 3 of the evaluated rows, counted from 0): got -inf",
        ),
        ([1.0, 2.0], [0, nan], None, "labels (row 4 "),
        (
            [1.0, 2.0],
            [0, None],
            None,
            "labels (row 4 of the evaluated rows, counted from 0): got None",
        ),
        (
            [1.0, 2.0],
            [0, 2],
            None,
            "got 2.0, expected a number in [0, 1]; map the labels to 0 and 1",
        ),
        ([1.0, 2.0], ["no", "yes"], None, "labels: got an array of <U3, expected numbers"),
        ([1.0, 2.0], [0, 1, 1], None, "labels: got 3 rows, expected 2, one for each score"),
        (
            [[1.0, 2.0]],
            [0],
            None,
            "scores: got shape (1, 2), expected one value per row",
        ),
        ([1.0, 2.0], [0, 1], [1.0, -1.0], "weights (row 4 "),
        ([1.0, 2.0], [0, 1], [nan, 1.0], "weights (row 3 "),
        ([1.0, 2.0], [0, 1], [1.0], "weights: got 1 rows, expected 2"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_counted(
    scores: Any, labels: Any, weights: Any, message: str
) -> None:
    metrics = wm.BinaryMetrics()
    metrics.update([0.5, -0.5, 0.1], [1, 0, 0])
    before = metrics.compute()
    with pytest.raises(DataError) as caught:
        metrics.update(scores, labels, weights)
    assert message in str(caught.value)
    assert metrics.compute() == before


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "groups: got None, expected one group id per row"),
        ([1], "groups: got shape (1,), expected (2,), one id per score"),
        ([1.0, 2.0], "groups: got an array of float64, expected integers or strings"),
        (
            np.array(["a", None], dtype=object),
            "groups (row 5 of the evaluated rows, counted from 0): got None",
        ),
        (np.array([None, "a"], dtype=object), "groups (row 4 "),
        (np.array([1, "a"], dtype=object), "groups (row 5 "),
        (["a", "b"], "got strings, expected integers as in earlier updates"),
    ],
)
def test_a_bad_group_is_named(groups: Any, message: str) -> None:
    metrics = wm.BinaryMetrics(groups=True)
    metrics.update([0.5, -0.5, 1.0, 0.0], [1, 0, 1, 0], groups_B=[1, 1, 2, 2])
    before = metrics.compute()
    with pytest.raises(DataError) as caught:
        metrics.update([1.0, 2.0], [0, 1], groups_B=groups)
    assert message in str(caught.value)
    assert metrics.compute() == before


def test_groups_that_no_metric_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match="pass groups=True"):
        wm.BinaryMetrics().update([1.0], [1], groups_B=[3])


def test_logits_passed_as_probabilities_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"got 2\.0, expected a number in \[0, 1\]; pass score_kind="
    ):
        wm.log_loss([1, 0], [0.5, 2.0])


@pytest.mark.parametrize(
    ("scores", "labels", "kind", "message"),
    [
        ([[0.0, nan, 1.0]], [1], "logit", "scores (row 1, column 1 of the evaluated rows"),
        (
            [[0.0, 1.0]],
            [1],
            "logit",
            "scores: got shape (1, 2), expected (B, 3), a column for each",
        ),
        ([[0.0, 0.0, 1.0]], [3], "logit", "got 3.0, expected a class number 0 to 2"),
        ([[0.0, 0.0, 1.0]], [0.5], "logit", "got 0.5, expected a class number 0 to 2"),
        ([[0.5, 0.0, 1.0]], [1], "probability", "sums of the scores (row 1 of the"),
        ([[-0.5, 0.5, 1.0]], [1], "probability", "pass score_kind='logit' for logits"),
    ],
)
def test_bad_multiclass_rows_are_named(scores: Any, labels: Any, kind: Any, message: str) -> None:
    metrics = wm.MulticlassMetrics(3, score_kind=kind)
    metrics.update([[0.0, 0.0, 1.0]], [2])
    with pytest.raises(DataError) as caught:
        metrics.update(scores, labels)
    assert message in str(caught.value)
    assert metrics.compute()["rows"] == 1.0


def test_bad_regression_rows_are_named() -> None:
    metrics = wm.RegressionMetrics()
    metrics.update([1.0], [2.0])
    with pytest.raises(DataError, match=r"predictions \(row 1 "):
        metrics.update([inf], [2.0])
    with pytest.raises(DataError, match=r"labels \(row 2 "):
        metrics.update([1.0, 1.0], [2.0, nan])
    assert metrics.compute()["rows"] == 1.0


def test_numbers_come_from_any_array_like() -> None:
    expected = wm.auc([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.5])
    scores = np.array([0.1, 0.9, 0.4, 0.5])
    assert wm.auc([False, True, True, False], scores[:, None]) == expected
    assert wm.auc(np.array([0, 1, 1, 0], dtype=object), scores.astype(">f8")) == expected
    strided = np.stack([scores, scores], axis=1)[:, 0]
    assert wm.auc(np.array([0, 1, 1, 0], np.uint8), strided) == expected
