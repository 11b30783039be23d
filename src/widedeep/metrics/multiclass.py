"""Metrics of a label with several classes, in one pass over a stream of any length."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import ConfigError, nearest
from widedeep.metrics.curve import curve_numbers
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
from widedeep.metrics.spill import DEFAULT_MAX_ROWS, SortedRows
from widedeep.metrics.sums import BLOCK_ROWS, CompensatedSum, FixedBlocks, Numbers

__all__ = ["MulticlassMetrics"]

_SUM_TO_ONE = 1e-4


class MulticlassMetrics:
    """Exact metrics of a label with C classes, whatever the number of rows, in bounded memory.

    - ``accuracy``: share of rows whose class has the highest score; ties go to the lower class, as
      with argmax.
    - ``accuracy_baseline``: accuracy of always predicting the most frequent class.
    - ``top_k_accuracy``: share of rows whose class is among the k highest (the key holds the
      number: ``top_5_accuracy``); ties go to the lower class.
    - ``log_loss``: from logits without clipping.
    - ``normalized_entropy``: log loss over the entropy of the label's distribution.
    - ``auc``: mean over the classes of their AUC against the rest (macro, one-vs-rest) on the class
      probability; classes without a row are left out, see ``auc_classes`` and ``reasons``.
    - ``auc_classes``: how many classes ``auc`` is the mean of.
    - ``rows``.

    Args:
        classes: Number of classes C, 2 or more.
        names: The metrics wanted, so that nothing is sorted which is not needed; None for all.
        score_kind: ``"logit"`` (softmax follows) or ``"probability"`` (each row sums to 1).
        top_k: The k of the top-k accuracy, 1 or more.
        max_rows_in_memory: Rows held, shared by the classes' sorts, before sorted runs go to disk.
            The AUC stores each row once a class: 24·C bytes.
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

    def __init__(
        self,
        classes: int,
        *,
        names: Sequence[str] | None = None,
        score_kind: ScoreKind = "logit",
        top_k: int = 5,
        max_rows_in_memory: int = DEFAULT_MAX_ROWS,
        spill_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if classes < 2:
            raise ConfigError(f"classes: got {classes}, expected 2 or more")
        if top_k < 1:
            raise ConfigError(f"top_k: got {top_k}, expected 1 or more")
        self._kind = checked_score_kind(score_kind)
        self._classes = classes
        self._names = _checked_names(names, top_k)
        self._sorted: list[SortedRows] = []
        if {"auc", "auc_classes"} & set(self._names):
            held = max(1, max_rows_in_memory // classes) if max_rows_in_memory > 0 else 0
            self._sorted = [
                SortedRows(BINARY_ROW, ("key",), held, spill_directory) for _ in range(classes)
            ]
        self._dtype = np.dtype(
            [("scores", np.float64, (classes,)), ("label", np.int64), ("weight", np.float64)]
        )
        totals = _MulticlassTotals(classes, top_k, self._kind)
        self._totals = FixedBlocks(totals, self._dtype, max(1, BLOCK_ROWS // classes))
        self._rows = 0
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Why a number of the last ``compute`` is NaN or leaves classes out, by name."""
        return dict(self._reasons)

    def update(
        self,
        scores_BC: ArrayLike,
        labels_B: ArrayLike,
        weights_B: ArrayLike | None = None,
    ) -> None:
        """Take rows into account.

        Args:
            scores_BC: Logits or probabilities, as ``score_kind`` says.
            labels_B: Class numbers, 0 to C - 1.
            weights_B: Sample weights of 0 or more; None for ones.

        Shape:
            scores_BC: (B, C); labels_B, weights_B: (B,) or (B, 1).

        Raises:
            DataError: On a NaN or infinite value, a label that is no class, a negative weight,
                probabilities that do not sum to 1, or unequal lengths, with the row. Nothing of
                such an update is counted.
        """
        matrix = finite_matrix(scores_BC, "scores", self._rows, self._classes)
        if self._kind == "probability":
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
        self._rows += len(rows)
        self._totals.append(rows)
        if self._sorted:
            self._sort(rows)

    def _sort(self, rows: Rows) -> None:
        matrix = rows["scores"]
        probability_BC = np.exp(_log_softmax(matrix)) if self._kind == "logit" else matrix
        for class_, by_score in enumerate(self._sorted):
            binary: Rows = np.empty(len(rows), dtype=BINARY_ROW)
            binary["key"] = -probability_BC[:, class_]
            binary["label"] = rows["label"] == class_
            binary["weight"] = rows["weight"]
            by_score.append(binary)

    def compute(self) -> dict[str, float]:
        """Return the metrics of all rows so far; more updates may follow."""
        totals = self._totals.totals()
        numbers = totals.numbers(self._rows)
        if self._sorted:
            numbers.merge(self._auc(totals.class_weights))
        self._reasons = {
            name: reason for name, reason in numbers.reasons.items() if name in self._names
        }
        return {name: numbers.values[name] for name in self._names}

    def _auc(self, class_weights: NDArray[np.float64]) -> Numbers:
        numbers = Numbers()
        aucs = []
        for by_score in self._sorted:
            one = curve_numbers(by_score.blocks(), 0.0, "probability", 1)
            if "auc" not in one.reasons:
                aucs.append(one.values["auc"])
        absent = np.flatnonzero(class_weights == 0)
        shown = ", ".join(str(class_) for class_ in absent[:10]) + ", ..." * (len(absent) > 10)
        numbers.put("auc_classes", len(aucs))
        if not aucs:
            numbers.undefined(
                ["auc"], f"at most one class has rows of positive weight; none: {shown}"
            )
            return numbers
        numbers.put("auc", float(np.mean(aucs)))
        if len(aucs) < self._classes:
            numbers.reasons["auc"] = (
                f"mean of {len(aucs)} of {self._classes} classes; "
                f"no row of positive weight has class {shown}"
            )
        return numbers


class _MulticlassTotals:
    """Sums that need no order: weight a class, then loss, right, in the top k."""

    def __init__(self, classes: int, top_k: int, kind: ScoreKind) -> None:
        self._classes = classes
        self._top_k = top_k
        self._kind = kind
        self._sums = CompensatedSum(classes + 3)

    @property
    def class_weights(self) -> NDArray[np.float64]:
        """Sum of the weights of each class."""
        return self._sums.values()[: self._classes]

    def add(self, block: Rows) -> None:
        matrix, label, weight = block["scores"], block["label"], block["weight"]
        row = np.arange(len(block))
        own = matrix[row, label]
        if self._kind == "logit":
            loss = -_log_softmax(matrix)[row, label]
        else:
            tiny = np.finfo(np.float64).eps
            loss = -np.log(np.clip(own, tiny, 1.0 - tiny))
        ahead = matrix > own[:, None]
        ahead |= (matrix == own[:, None]) & (np.arange(self._classes) < label[:, None])
        place = ahead.sum(axis=1)
        sums = [weight * loss, weight * (place == 0), weight * (place < self._top_k)]
        per_class = np.bincount(label, weight, minlength=self._classes)
        self._sums.add(np.concatenate([per_class, [np.sum(column) for column in sums]]))

    def numbers(self, rows: int) -> Numbers:
        numbers = Numbers()
        loss, right, in_top = self._sums.values()[self._classes :].tolist()
        weight = float(np.sum(self.class_weights))
        numbers.put("rows", rows)
        top = f"top_{self._top_k}_accuracy"
        if weight == 0:
            means = ["log_loss", "accuracy", "accuracy_baseline", "normalized_entropy", top]
            numbers.undefined(means, "there are no rows of positive weight")
            return numbers
        rates = self.class_weights[self.class_weights > 0] / weight
        numbers.put("log_loss", loss / weight)
        numbers.put("accuracy", right / weight)
        numbers.put("accuracy_baseline", float(rates.max()))
        numbers.put(top, in_top / weight)
        entropy = -float(np.sum(rates * np.log(rates))) if len(rates) > 1 else 0.0
        only = "only one class: every row of positive weight has the same label"
        numbers.ratio("normalized_entropy", loss / weight, entropy, only)
        return numbers


def _log_softmax(logits_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = logits_BC - logits_BC.max(axis=1, keepdims=True, initial=-np.inf)
    total: NDArray[np.float64] = np.exp(shifted).sum(axis=1, keepdims=True)
    return shifted - np.log(total)


def _checked_names(names: Sequence[str] | None, top_k: int) -> list[str]:
    known = [
        "accuracy",
        "accuracy_baseline",
        f"top_{top_k}_accuracy",
        "log_loss",
        "normalized_entropy",
        "auc",
        "auc_classes",
        "rows",
    ]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"names: got {name!r}, no metric; {nearest(name, known)}")
    return known if names is None else list(names)
