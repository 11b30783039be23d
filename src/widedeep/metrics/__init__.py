"""Exact metrics over streams of any length, in bounded memory, with sample weights.

``BinaryMetrics``, ``MulticlassMetrics`` and ``RegressionMetrics`` compute everything in one pass;
``BinaryMetric`` and its kin are one number behind the ``Metric`` protocol; the plain functions
take arrays.

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

from widedeep.metrics.binary import BinaryMetrics
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
from widedeep.metrics.multiclass import MulticlassMetrics
from widedeep.metrics.regression import RegressionMetrics
from widedeep.metrics.single import BinaryMetric, Metric, MulticlassMetric, RegressionMetric

__all__ = [
    "BinaryMetric",
    "BinaryMetrics",
    "Metric",
    "MulticlassMetric",
    "MulticlassMetrics",
    "RegressionMetric",
    "RegressionMetrics",
    "auc",
    "calibration",
    "expected_calibration_error",
    "grouped_auc",
    "hit_rate_at_k",
    "log_loss",
    "map_at_k",
    "mrr",
    "ndcg_at_k",
    "normalized_entropy",
    "pr_auc",
]
