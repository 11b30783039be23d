"""Exact metrics over streams of any length, in bounded memory, with sample weights.

``BinaryMetrics``, ``MulticlassMetrics`` and ``RegressionMetrics`` compute everything in one pass;
``BinaryMetric`` and its kin are one number each; the plain functions take arrays. ``register`` adds
a metric of your own to evaluation, early stopping and reports.

Example:
    >>> import numpy as np
    >>> from widedeep.metrics import BinaryMetrics
    >>> metrics = BinaryMetrics(groups=True, k=1)
    >>> for users, logits, labels in [([1, 1], [0.3, -2.0], [1, 0]), ([2, 2], [0.1, 0.1], [1, 0])]:
    ...     metrics.update(np.array(logits), np.array(labels), groups_B=np.array(users))
    >>> result = metrics.compute()
    >>> result["auc"], result["gauc"], result["ndcg@1"]
    (0.875, 0.75, 0.75)
"""

from widedeep.metrics.binary import BinaryMetric, BinaryMetrics, RankingMetrics
from widedeep.metrics.collection import MetricCollection
from widedeep.metrics.functions import (
    auc,
    calibration,
    expected_calibration_error,
    grouped_auc,
    hit_rate_at_k,
    log_loss,
    map_at_k,
    mrr,
    ndcg_at_k,
    normalized_entropy,
    pr_auc,
)
from widedeep.metrics.multiclass import MulticlassMetric, MulticlassMetrics
from widedeep.metrics.multilabel import MultilabelMetrics
from widedeep.metrics.registry import (
    LabelKind,
    Metric,
    StreamingMetric,
    Undefined,
    add_metric,
    find_metric,
    register,
    registered,
    unregister,
)
from widedeep.metrics.regression import AmountMetrics, RegressionMetric, RegressionMetrics
from widedeep.metrics.rows import ScoreKind

__all__ = [
    "AmountMetrics",
    "BinaryMetric",
    "BinaryMetrics",
    "LabelKind",
    "Metric",
    "MetricCollection",
    "MulticlassMetric",
    "MulticlassMetrics",
    "MultilabelMetrics",
    "RankingMetrics",
    "RegressionMetric",
    "RegressionMetrics",
    "StreamingMetric",
    "Undefined",
    "auc",
    "calibration",
    "expected_calibration_error",
    "find_metric",
    "grouped_auc",
    "hit_rate_at_k",
    "log_loss",
    "map_at_k",
    "metrics_of",
    "mrr",
    "ndcg_at_k",
    "normalized_entropy",
    "pr_auc",
    "register",
    "registered",
    "unregister",
]

_COUNTED: list[LabelKind] = ["binary", "ranking", "multiclass", "multilabel", "regression"]
add_metric("rows", float, 92, None, input="count", kinds=_COUNTED)


def metrics_of(
    kind: LabelKind, *, classes: int = 1, score_kind: ScoreKind = "logit", groups: bool = False
) -> MetricCollection:
    """Return the collection of all metrics for a kind of labels.

    Args:
        kind: ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"regression"``, ``"amount"`` or
            ``"ranking"``, which needs groups.
        classes: Number of classes of a multiclass or multilabel label.
        score_kind: ``"logit"`` or ``"probability"``; of no meaning for a regression.
        groups: Whether updates bring group ids.

    Example:
        >>> errors = metrics_of("regression")
        >>> errors.update([1.0, 2.0], [1.0, 3.0])
        >>> errors.compute()["mae"]
        0.5
    """
    if kind == "multiclass":
        return MulticlassMetrics(classes, score_kind=score_kind, groups=groups)
    if kind == "multilabel":
        return MultilabelMetrics(classes, score_kind=score_kind, groups=groups)
    if kind == "ranking":
        return RankingMetrics()
    if kind == "amount":
        return AmountMetrics(groups=groups)
    if kind == "regression":
        return RegressionMetrics(groups=groups)
    return BinaryMetrics(score_kind=score_kind, groups=groups)
