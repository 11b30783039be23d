"""Metrics of arrays in memory, as plain functions."""

from __future__ import annotations

from numpy.typing import ArrayLike

from widedeep.metrics.binary import BinaryMetric
from widedeep.metrics.rows import ScoreKind


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the exact area under the ROC curve; ties count half; NaN where one class is absent.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Any numbers, higher for more likely positives.
        weights: Sample weights of 0 or more.

    Shape:
        labels, scores, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
    """
    return _measure("auc", labels, scores, weights)


def pr_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the average precision Σ (R_i - R_{i-1}) P_i; NaN where there are no positives.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Any numbers, higher for more likely positives.
        weights: Sample weights of 0 or more.

    Shape:
        labels, scores, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.

    Example:
        >>> round(pr_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
        0.8333
    """
    return _measure("pr_auc", labels, scores, weights)


def log_loss(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    score_kind: ScoreKind = "probability",
) -> float:
    """Return the mean log loss, in nats.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Probabilities, clipped to [ε, 1 - ε] with float64's ε; or logits, which need no
            clipping.
        weights: Sample weights of 0 or more.
        score_kind: ``"probability"`` or ``"logit"``.

    Shape:
        labels, scores, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a value outside [0, 1] or unequal lengths.

    Example:
        >>> round(log_loss([1, 0], [0.9, 0.2]), 4)
        0.1643
        >>> log_loss([0], [800.0], score_kind="logit")
        800.0
    """
    return _measure("log_loss", labels, scores, weights, score_kind=score_kind)


def normalized_entropy(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    score_kind: ScoreKind = "probability",
) -> float:
    """Return the log loss over that of predicting the labels' mean; a constant gets 1.

    Source: He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", section
        2.1.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Probabilities or logits.
        weights: Sample weights of 0 or more.
        score_kind: ``"probability"`` or ``"logit"``.

    Shape:
        labels, scores, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a value outside [0, 1] or unequal lengths.

    Example:
        >>> normalized_entropy([1, 0], [0.5, 0.5])
        1.0
    """
    return _measure("normalized_entropy", labels, scores, weights, score_kind=score_kind)


def calibration(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    score_kind: ScoreKind = "probability",
) -> float:
    """Return the sum of predicted probabilities over the sum of labels; 1 is right on average.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Probabilities or logits.
        weights: Sample weights of 0 or more.
        score_kind: ``"probability"`` or ``"logit"``.

    Shape:
        labels, scores, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a value outside [0, 1] or unequal lengths.

    Example:
        >>> calibration([1, 0], [0.75, 0.5])
        1.25
    """
    return _measure("calibration", labels, scores, weights, score_kind=score_kind)


def expected_calibration_error(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    score_kind: ScoreKind = "probability",
    bins: int = 15,
) -> float:
    """Return the mean distance between predicted and observed rates over bins of equal mass.

    Bins of equal width would put nearly all rows of a rare label into the first one. Rows with one
    score share a bin.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Probabilities or logits.
        weights: Sample weights of 0 or more.
        score_kind: ``"probability"`` or ``"logit"``.
        bins: Number of bins, 1 or more.

    Shape:
        labels, scores, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a value outside [0, 1] or unequal lengths.

    Example:
        >>> expected_calibration_error([1, 0, 1, 0], [0.75, 0.75, 0.5, 0.25], bins=2)
        0.1875
    """
    metric = BinaryMetric("ece", score_kind=score_kind, ece_bins=bins)
    metric.update(scores, labels, weights)
    return metric.compute()


def grouped_auc(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Return the groups' mean AUC, weighted by impressions, without groups of one class.

    Args:
        labels: 0 or 1, or soft labels between them.
        scores: Any numbers, higher for more likely positives.
        groups: The group of each row (a user, a request): integers or strings, in any order.
        weights: Sample weights of 0 or more.

    Shape:
        labels, scores, groups, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.

    Example:
        >>> grouped_auc([1, 0, 1, 0, 1], [0.9, 0.1, 0.2, 0.3, 0.5], ["a", "a", "b", "b", "c"])
        0.5
    """
    return _measure("gauc", labels, scores, weights, groups)


def ndcg_at_k(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    k: int,
    weights: ArrayLike | None = None,
) -> float:
    """Return the mean NDCG@k (binary gain) over the groups that have a relevant row.

    Args:
        labels: Relevant where at least 0.5.
        scores: Any numbers, higher for better rows; ties in expectation.
        groups: The group of each row: integers or strings, in any order.
        k: Rows of each group that count, 1 to 1,000,000.
        weights: Sample weights; a group weighs as much as the mean of its rows' weights.

    Shape:
        labels, scores, groups, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.
        ConfigError: On a k out of range.

    Example:
        >>> round(ndcg_at_k([0, 1, 0], [0.9, 0.5, 0.1], [7, 7, 7], k=2), 4)
        0.6309
    """
    return _measure(f"ndcg@{k}", labels, scores, weights, groups)


def map_at_k(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    k: int,
    weights: ArrayLike | None = None,
) -> float:
    """Return the mean over groups of the average precision at k, over min(k, relevant rows).

    Args:
        labels: Relevant where at least 0.5.
        scores: Any numbers, higher for better rows; ties in expectation.
        groups: The group of each row: integers or strings, in any order.
        k: Rows of each group that count, 1 to 1,000,000.
        weights: Sample weights; a group weighs as much as the mean of its rows' weights.

    Shape:
        labels, scores, groups, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.
        ConfigError: On a k out of range.

    Example:
        >>> map_at_k([0, 1, 0], [0.9, 0.5, 0.1], [7, 7, 7], k=2)
        0.5
    """
    return _measure(f"map@{k}", labels, scores, weights, groups)


def hit_rate_at_k(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    k: int,
    weights: ArrayLike | None = None,
) -> float:
    """Return the fraction of groups with a relevant row that have one among their first k.

    Args:
        labels: Relevant where at least 0.5.
        scores: Any numbers, higher for better rows; ties in expectation.
        groups: The group of each row: integers or strings, in any order.
        k: Rows of each group that count, 1 to 1,000,000.
        weights: Sample weights; a group weighs as much as the mean of its rows' weights.

    Shape:
        labels, scores, groups, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.
        ConfigError: On a k out of range.

    Example:
        >>> hit_rate_at_k([0, 1, 1, 0], [0.9, 0.5, 0.8, 0.1], [7, 7, 8, 8], k=1)
        0.5
    """
    return _measure(f"hit_rate@{k}", labels, scores, weights, groups)


def mrr(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Return the mean over groups of 1/rank of the first relevant row.

    Args:
        labels: Relevant where at least 0.5.
        scores: Any numbers, higher for better rows; ties in expectation.
        groups: The group of each row: integers or strings, in any order.
        weights: Sample weights; a group weighs as much as the mean of its rows' weights.

    Shape:
        labels, scores, groups, weights: (B,).

    Raises:
        DataError: On a NaN or infinite value, a label outside [0, 1] or unequal lengths.

    Example:
        >>> mrr([0, 1, 1, 0], [0.9, 0.5, 0.8, 0.1], [7, 7, 8, 8])
        0.75
    """
    return _measure("mrr", labels, scores, weights, groups)


def _measure(
    name: str,
    labels: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None,
    groups: ArrayLike | None = None,
    *,
    score_kind: ScoreKind = "logit",
) -> float:
    metric = BinaryMetric(name, score_kind=score_kind)
    metric.update(scores, labels, weights, groups)
    return metric.compute()
