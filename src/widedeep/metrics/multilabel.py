"""Metrics of a label that is any number of classes, in one pass over a stream of any length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from widedeep.errors import ConfigError, DataError
from widedeep.metrics.binary import BinaryMetrics
from widedeep.metrics.collection import MetricCollection
from widedeep.metrics.registry import ReasonedValue, Undefined, add_metric
from widedeep.metrics.rows import ScoreKind, finite_matrix

_BY_CLASS = ("auc", "log_loss", "label_mean", "prediction_mean")


class MultilabelMetrics(MetricCollection):
    """Metrics of independent classes: each is a binary label, and they are averaged.

    ``auc`` is the mean over classes that have both labels (macro average); ``log_loss`` the mean
    over rows and classes; ``calibration`` Σ predictions / Σ labels over rows and classes;
    ``label_mean`` and ``prediction_mean`` the number of classes per row.

    Args:
        classes: Number of classes.
        names: Metrics to compute; None for all.
        score_kind: ``"logit"`` or ``"probability"``.
        groups: Whether updates bring group ids; no metric reads them.

    Raises:
        ConfigError: On an unknown name or no class.

    Example:
        >>> measured = MultilabelMetrics(2, score_kind="probability")
        >>> measured.update([[0.9, 0.2], [0.1, 0.2]], [[1, 0], [0, 0]])
        >>> result = measured.compute()
        >>> result["auc"], result["calibration"]
        (1.0, 1.4)
    """

    kind = "multilabel"

    def __init__(
        self,
        classes: int,
        *,
        names: Sequence[str] | None = None,
        score_kind: ScoreKind = "logit",
        groups: bool = False,
    ) -> None:
        if classes < 1:
            raise ConfigError(f"classes: got {classes}, expected 1 or more")
        super().__init__(names=names, cuts=(), groups=groups)
        self._by_class = [
            BinaryMetrics(names=_BY_CLASS, score_kind=score_kind) for _ in range(classes)
        ]

    def update(
        self,
        scores_BC: ArrayLike,
        labels_BC: ArrayLike,
        weights_B: ArrayLike | None = None,
        groups_B: ArrayLike | None = None,
    ) -> None:
        """Add scored rows.

        Args:
            scores_BC: Logits or probabilities, as ``score_kind`` says.
            labels_BC: 1 for each class of a row, else 0.
            weights_B: Sample weights of 0 or more; None for ones.
            groups_B: Ignored.

        Shape:
            scores_BC, labels_BC: (B, C). weights_B: (B,).

        Raises:
            DataError: On a value that is not finite or other shapes, with the row.
        """
        classes = len(self._by_class)
        scores = finite_matrix(scores_BC, "scores", self._rows, classes)
        labels = finite_matrix(labels_BC, "labels", self._rows, classes)
        if len(scores) != len(labels):
            raise DataError(f"labels: got {len(labels)} rows, expected {len(scores)}")
        for index, metrics in enumerate(self._by_class):
            metrics.update(scores[:, index], labels[:, index], weights_B)
        self._rows += len(scores)

    def _inputs(self) -> Mapping[str, Any]:
        return {"classes": [metrics.compute() for metrics in self._by_class]}

    def _merge(self, other: Self) -> None:
        for metrics, more in zip(self._by_class, other._by_class, strict=True):
            metrics.merge(more)


ByClass = Sequence[Mapping[str, float]]


def _mean_auc(by_class: ByClass) -> float:
    areas = [metrics["auc"] for metrics in by_class if not math.isnan(metrics["auc"])]
    if not areas:
        return Undefined("no class has rows with it and rows without it")
    mean = float(np.mean(areas))
    missing = len(by_class) - len(areas)
    if missing:
        reason = f"{missing} of {len(by_class)} classes that all rows have, or none, are left out"
        return ReasonedValue(mean, reason)
    return mean


def _mean(name: str) -> Callable[[ByClass], float]:
    return lambda by_class: float(np.mean([metrics[name] for metrics in by_class]))


def _sum(name: str) -> Callable[[ByClass], float]:
    return lambda by_class: float(np.sum([metrics[name] for metrics in by_class]))


def _calibration(by_class: ByClass) -> float:
    labels = _sum("label_mean")(by_class)
    if not labels > 0:
        return Undefined("no row has a class")
    return _sum("prediction_mean")(by_class) / labels


# name, value, order in tables, better values, title
_of_classes = partial(add_metric, kinds=["multilabel"], input="classes")

_of_classes("auc", _mean_auc, 0, "higher", "mean AUC of the classes", short="AUC", headline=0)
_of_classes("log_loss", _mean("log_loss"), 3, "lower", "log loss", headline=1)
_of_classes("calibration", _calibration, 7, "nearest_1", "predicted / observed", headline=2)
_of_classes("label_mean", _sum("label_mean"), 90, None, "mean number of classes")
_of_classes("prediction_mean", _sum("prediction_mean"), 91, None, "mean predicted number")
