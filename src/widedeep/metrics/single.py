"""One metric at a time, behind one protocol."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

from numpy.typing import ArrayLike

from widedeep.metrics.binary import BinaryMetrics
from widedeep.metrics.multiclass import MulticlassMetrics
from widedeep.metrics.regression import RegressionMetrics
from widedeep.metrics.rows import ScoreKind
from widedeep.metrics.spill import DEFAULT_MAX_ROWS

__all__ = ["BinaryMetric", "Metric", "MulticlassMetric", "RegressionMetric"]


@runtime_checkable
class Metric(Protocol):
    """A number over a stream of scored rows."""

    name: str

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Take rows into account; a metric that needs no groups ignores them."""

    def compute(self) -> float:
        """Return the number over all rows so far, NaN where it is undefined."""


class BinaryMetric:
    """One of the ``BinaryMetrics``, holding no more than that number needs.

    Args:
        name: A key of ``BinaryMetrics.compute``, such as ``"auc"``, ``"gauc"`` or ``"ndcg@5"``.
        score_kind: ``"logit"`` or ``"probability"``.
        ece_bins: Bins of ``"ece"``.
        max_rows_in_memory: Rows held before sorted runs are written to disk.
        spill_directory: Where the runs go; None for the system's temporary directory.

    Raises:
        ConfigError: On an unknown name or a value out of range.

    Example:
        >>> ndcg = BinaryMetric("ndcg@2")
        >>> ndcg.update([0.9, 0.5, 0.1], [0, 1, 0], groups=["ann", "ann", "ann"])
        >>> round(ndcg.compute(), 4)
        0.6309
        >>> auc = BinaryMetric("auc")
        >>> auc.update([0.9, 0.5], [1, 1])
        >>> auc.compute(), auc.reason
        (nan, 'only one class: every row of positive weight is positive, none is negative')
    """

    def __init__(
        self,
        name: str,
        *,
        score_kind: ScoreKind = "logit",
        ece_bins: int = 15,
        max_rows_in_memory: int = DEFAULT_MAX_ROWS,
        spill_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = name
        self.reason: str | None = None
        self._metrics = BinaryMetrics(
            names=[name],
            score_kind=score_kind,
            ece_bins=ece_bins,
            max_rows_in_memory=max_rows_in_memory,
            spill_directory=spill_directory,
        )

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Take rows into account; see ``BinaryMetrics.update``. Unneeded groups are ignored."""
        self._metrics.update(scores, labels, weights, groups if self._metrics.grouped else None)

    def compute(self) -> float:
        """Return the number; where it is NaN, ``reason`` says why."""
        value = self._metrics.compute()[self.name]
        self.reason = self._metrics.reasons.get(self.name)
        return value


class MulticlassMetric:
    """One of the ``MulticlassMetrics``, holding no more than that number needs.

    Args:
        name: A key of ``MulticlassMetrics.compute``, such as ``"auc"``.
        classes: Number of classes, 2 or more.
        score_kind: ``"logit"`` or ``"probability"``.
        top_k: The k of the top-k accuracy.
        max_rows_in_memory: Rows held before sorted runs are written to disk.
        spill_directory: Where the runs go; None for the system's temporary directory.

    Raises:
        ConfigError: On an unknown name or a value out of range.

    Example:
        >>> accuracy = MulticlassMetric("accuracy", 3)
        >>> accuracy.update([[2.0, 1.0, 0.0], [0.0, 0.5, 1.0]], [0, 1])
        >>> accuracy.compute()
        0.5
    """

    def __init__(
        self,
        name: str,
        classes: int,
        *,
        score_kind: ScoreKind = "logit",
        top_k: int = 5,
        max_rows_in_memory: int = DEFAULT_MAX_ROWS,
        spill_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = name
        self.reason: str | None = None
        self._metrics = MulticlassMetrics(
            classes,
            names=[name],
            score_kind=score_kind,
            top_k=top_k,
            max_rows_in_memory=max_rows_in_memory,
            spill_directory=spill_directory,
        )

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Take rows into account; see ``MulticlassMetrics.update``. Groups are ignored."""
        self._metrics.update(scores, labels, weights)

    def compute(self) -> float:
        """Return the number; where it is NaN or leaves classes out, ``reason`` says why."""
        value = self._metrics.compute()[self.name]
        self.reason = self._metrics.reasons.get(self.name)
        return value


class RegressionMetric:
    """One of the ``RegressionMetrics``.

    Args:
        name: A key of ``RegressionMetrics.compute``, such as ``"rmse"``.

    Raises:
        ConfigError: On an unknown name.

    Example:
        >>> error = RegressionMetric("mae")
        >>> error.update([1.0, 4.0], [2.0, 2.0])
        >>> error.compute()
        1.5
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reason: str | None = None
        self._metrics = RegressionMetrics(names=[name])

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Take rows into account; see ``RegressionMetrics.update``. Groups are ignored."""
        self._metrics.update(scores, labels, weights)

    def compute(self) -> float:
        """Return the number; where it is NaN, ``reason`` says why."""
        value = self._metrics.compute()[self.name]
        self.reason = self._metrics.reasons.get(self.name)
        return value
