"""Metrics of a label with several classes, in one pass over a stream of any length."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import ConfigError
from widedeep.metrics.accumulate import (
    BLOCK_ROWS,
    DEFAULT_MAX_ROWS,
    BlockedStream,
    CompensatedSum,
    SortedRows,
)
from widedeep.metrics.binary import score_curve
from widedeep.metrics.collection import MetricCollection, SingleMetric
from widedeep.metrics.registry import ReasonedValue, Undefined, add_metric, ratio
from widedeep.metrics.rows import (
    BINARY_ROW,
    Rows,
    ScoreKind,
    checked_score_kind,
    finite_column,
    finite_matrix,
    refuse,
    unit_interval,
    weight_column,
)

__all__ = ["MulticlassMetric", "MulticlassMetrics"]

_SUM_TO_ONE = 1e-4


class MulticlassMetrics(MetricCollection):
    """Exact metrics of a label with C classes, whatever the number of rows, in bounded memory.

    - ``accuracy``: fraction of rows whose class has the highest score; ties go to the lower class,
      as with argmax.
    - ``accuracy_baseline``: accuracy of always predicting the most frequent class.
    - ``top_k_accuracy``: fraction of rows whose class is among the k highest (the key holds the
      number: ``top_5_accuracy``); ties go to the lower class.
    - ``log_loss``: from logits without clipping.
    - ``normalized_entropy``: log loss over the entropy of the label's distribution.
    - ``auc``: mean over the classes of their AUC against the rest (macro, one-vs-rest) on the class
      probability; classes without a row are left out, see ``auc_classes`` and ``reasons``.
    - ``auc_classes``: how many classes ``auc`` is the mean of.
    - ``rows``.

    Args:
        classes: Number of classes C, 2 or more.
        names: Metrics to compute; sorting is skipped where none needs it; None for all.
        score_kind: ``"logit"`` (softmax follows) or ``"probability"`` (each row sums to 1).
        top_k: The k of the top-k accuracy, 1 or more.
        groups: Whether updates bring group ids, for metrics of your own.
        max_rows_in_memory: Rows held, shared by the classes' sorts, before sorted runs go to disk.
            The AUC stores each row once per class: 24·C bytes.
        spill_directory: Where the runs go; None for the system's temporary directory.

    Raises:
        ConfigError: On an unknown name or a value out of range.

    Example:
        >>> import numpy as np
        >>> metrics = MulticlassMetrics(3, names=["accuracy", "auc"])
        >>> metrics.update(np.eye(3), np.array([0, 1, 1]))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'accuracy': 0.6667, 'auc': 0.875}
        >>> metrics.reasons["auc"]
        'mean of 2 of 3 classes; no row of positive weight has class 2'
    """

    kind = "multiclass"

    def __init__(
        self,
        classes: int,
        *,
        names: Sequence[str] | None = None,
        score_kind: ScoreKind = "logit",
        top_k: int = 5,
        groups: bool = False,
        max_rows_in_memory: int = DEFAULT_MAX_ROWS,
        spill_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if classes < 2:
            raise ConfigError(f"classes: got {classes}, expected 2 or more")
        if top_k < 1:
            raise ConfigError(f"top_k: got {top_k}, expected 1 or more")
        self._score_kind = checked_score_kind(score_kind)
        self._classes = classes
        super().__init__(names=names, cuts=[top_k], groups=groups, prediction_shape=(classes,))
        self._sorted: list[SortedRows] = []
        if self.needs("curve"):
            max_rows = max(1, max_rows_in_memory // classes) if max_rows_in_memory > 0 else 0
            self._sorted = [
                SortedRows(BINARY_ROW, ("key",), max_rows, spill_directory) for _ in range(classes)
            ]
        self._dtype = np.dtype(
            [("scores", np.float64, (classes,)), ("label", np.int64), ("weight", np.float64)]
        )
        totals = MulticlassTotals(classes, top_k, self._score_kind)
        self._totals = BlockedStream(totals, self._dtype, max(1, BLOCK_ROWS // classes))

    def update(
        self,
        scores_BC: ArrayLike,
        labels_B: ArrayLike,
        weights_B: ArrayLike | None = None,
        groups_B: ArrayLike | None = None,
    ) -> None:
        """Add scored rows.

        Args:
            scores_BC: Logits or probabilities, as ``score_kind`` says.
            labels_B: Class numbers, 0 to C - 1.
            weights_B: Sample weights of 0 or more; None for ones.
            groups_B: Group ids; read with ``groups=True`` alone.

        Shape:
            scores_BC: (B, C); labels_B, weights_B, groups_B: (B,) or (B, 1).

        Raises:
            DataError: On a NaN or infinite value, a label that is no class, a negative weight,
                probabilities that do not sum to 1, or unequal lengths, with the row. Nothing of
                such an update is counted.
        """
        matrix = finite_matrix(scores_BC, "scores", self._rows, self._classes)
        if self._score_kind == "probability":
            unit_interval(matrix, "scores", self._rows, "pass score_kind='logit' for logits")
            sums = matrix.sum(axis=1)
            off = np.abs(sums - 1.0) > _SUM_TO_ONE
            refuse("sums of the scores", off, sums, self._rows, "1; normalise the probabilities")
        label_B = finite_column(labels_B, "labels", self._rows, len(matrix))
        wrong = (label_B < 0) | (label_B >= self._classes) | (label_B != np.floor(label_B))
        refuse("labels", wrong, label_B, self._rows, f"a class number 0 to {self._classes - 1}")
        rows: Rows = np.empty(len(matrix), dtype=self._dtype)
        rows["scores"] = matrix
        rows["label"] = label_B
        rows["weight"] = weight_column(weights_B, self._rows, len(matrix))
        groups = self._keys_of_groups(groups_B, len(rows))
        self._rows += len(rows)
        self._totals.append(rows)
        if self._sorted or self._functions:
            self._append_probabilities(rows, groups)

    def _append_probabilities(self, rows: Rows, groups: NDArray[np.int64] | Literal[0]) -> None:
        matrix = rows["scores"]
        probability_BC = np.exp(_log_softmax(matrix)) if self._score_kind == "logit" else matrix
        if self._functions:
            labels_B = rows["label"].astype(np.float64)
            self._append_to_functions(labels_B, probability_BC, rows["weight"], groups)
        for class_, by_score in enumerate(self._sorted):
            binary: Rows = np.empty(len(rows), dtype=BINARY_ROW)
            binary["key"] = -probability_BC[:, class_]
            binary["label"] = rows["label"] == class_
            binary["weight"] = rows["weight"]
            by_score.append(binary)

    def _inputs(self) -> Mapping[str, Any]:
        totals = self._totals.totals()
        curves = [score_curve(one.blocks(), 0.0, "probability", 1) for one in self._sorted]
        aucs = [curve.auc for curve in curves]
        return {"sums": totals, "curve": _ClassAucs(aucs, totals.class_weights)}

    def _merge(self, other: Self) -> None:
        self._totals.merge(other._totals)
        for by_score, others in zip(self._sorted, other._sorted, strict=True):
            by_score.extend(others)


class _ClassAucs:
    """AUC of each class against the other classes."""

    def __init__(self, aucs: Sequence[float], class_weights: NDArray[np.float64]) -> None:
        self._classes = len(aucs)
        self._class_weights = class_weights
        self.defined = [auc for auc in aucs if not isinstance(auc, Undefined)]

    @property
    def mean(self) -> float:
        """Mean over the classes that have an AUC, with a remark on those that have none."""
        absent = np.flatnonzero(self._class_weights == 0)
        text = ", ".join(str(class_) for class_ in absent[:10]) + ", ..." * (len(absent) > 10)
        if not self.defined:
            return Undefined(f"at most one class has rows of positive weight; none: {text}")
        mean = float(np.mean(self.defined))
        if len(self.defined) == self._classes:
            return mean
        return ReasonedValue(
            mean,
            f"mean of {len(self.defined)} of {self._classes} classes; "
            f"no row of positive weight has class {text}",
        )


class MulticlassTotals:
    """Sums that need no order: weight per class, then loss, correct, within the top k."""

    def __init__(self, classes: int, top_k: int, kind: ScoreKind) -> None:
        self._classes = classes
        self._top_k = top_k
        self._kind = kind
        self._sums = CompensatedSum(classes + 3)

    @property
    def class_weights(self) -> NDArray[np.float64]:
        """Sum of the weights of each class."""
        return self._sums.values()[: self._classes]

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(np.sum(self.class_weights))

    @property
    def rates(self) -> NDArray[np.float64]:
        """Fraction of the weight of each class that has any."""
        weights = self.class_weights
        rates: NDArray[np.float64] = weights[weights > 0] / self.weight
        return rates

    @property
    def loss(self) -> float:
        """Σ w times the log loss."""
        return float(self._sums.values()[self._classes])

    @property
    def correct(self) -> float:
        """Weight of the rows whose class has the highest score."""
        return float(self._sums.values()[self._classes + 1])

    @property
    def within_top(self) -> float:
        """Weight of the rows whose class is among the k highest."""
        return float(self._sums.values()[self._classes + 2])

    @property
    def entropy(self) -> float:
        """Entropy of the classes in nats, 0 for one class."""
        rates = self.rates
        return -float(np.sum(rates * np.log(rates))) if len(rates) > 1 else 0.0

    def merge(self, other: MulticlassTotals) -> None:
        self._sums.merge(other._sums)

    def add(self, block: Rows) -> None:
        matrix, label, weight = block["scores"], block["label"], block["weight"]
        row = np.arange(len(block))
        own = matrix[row, label]
        if self._kind == "logit":
            loss = -_log_softmax(matrix)[row, label]
        else:
            tiny = np.finfo(np.float64).eps
            loss = -np.log(np.clip(own, tiny, 1.0 - tiny))
        # (B, C) classes ahead of the row's own: a higher score, or an equal one of a lower class.
        ahead = matrix > own[:, None]
        ahead |= (matrix == own[:, None]) & (np.arange(self._classes) < label[:, None])
        position = ahead.sum(axis=1)
        sums = [weight * loss, weight * (position == 0), weight * (position < self._top_k)]
        per_class = np.bincount(label, weight, minlength=self._classes)
        self._sums.add(np.concatenate([per_class, [np.sum(column) for column in sums]]))


def _log_softmax(logits_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = logits_BC - logits_BC.max(axis=1, keepdims=True, initial=-np.inf)
    total: NDArray[np.float64] = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


_ONE_CLASS = "only one class: every row of positive weight has the same label"
# name, value, order in tables, better values, title
_of_curve = partial(add_metric, kinds=["multiclass"], input="curve")
_of_sums = partial(add_metric, kinds=["multiclass"], input="sums")

_of_sums("accuracy", lambda sums: sums.correct / sums.weight, 5, "higher", headline=0)
_of_sums(
    "accuracy_baseline",
    lambda sums: float(sums.rates.max()),
    6,
    None,
    "accuracy of one answer for all",
)
_of_sums(
    "top_{k}_accuracy",
    lambda sums, k: sums.within_top / sums.weight,
    None,
    "higher",
    "top-k accuracy",
)
_of_sums("log_loss", lambda sums: sums.loss / sums.weight, 3, headline=1)
_of_sums(
    "normalized_entropy",
    lambda sums: ratio(sums.loss / sums.weight, sums.entropy, _ONE_CLASS),
    4,
    "lower",
    "normalised entropy",
)
_of_curve("auc", lambda aucs: aucs.mean, 0, "higher", "AUC", headline=2)
_of_curve("auc_classes", lambda aucs: len(aucs.defined), None, None, "classes with an AUC")


class MulticlassMetric(SingleMetric):
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
        metrics = MulticlassMetrics(
            classes,
            names=[name],
            score_kind=score_kind,
            top_k=top_k,
            max_rows_in_memory=max_rows_in_memory,
            spill_directory=spill_directory,
        )
        super().__init__(name, metrics)
