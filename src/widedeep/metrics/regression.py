"""Metrics of a number to predict, in one pass over a stream of any length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.metrics.accumulate import BlockedStream, CompensatedSum
from widedeep.metrics.collection import MetricCollection, SingleMetric
from widedeep.metrics.registry import LabelKind, Undefined, add_metric
from widedeep.metrics.rows import Rows, finite_column, weight_column

__all__ = ["AmountMetrics", "RegressionMetric", "RegressionMetrics"]

_ROW = np.dtype([(name, np.float64) for name in ("prediction", "label", "weight")])


class RegressionMetrics(MetricCollection):
    """Metrics of a regression, whatever the number of rows, in constant memory.

    ``mse``, ``rmse`` and ``mae`` are means of squared and absolute errors; ``r2`` is 1 - Σ w (p -
    y)² / Σ w (y - ȳ)², NaN where all labels are equal; ``mean_bias`` is the mean of prediction
    less label; then ``label_mean``, ``prediction_mean`` and ``rows``. Where nothing has weight
    they are NaN, and ``reasons`` says so.

    Args:
        names: Metrics to compute; None for all.
        groups: Whether updates bring group ids, for metrics of your own.

    Raises:
        ConfigError: On an unknown name.

    Example:
        >>> import numpy as np
        >>> metrics = RegressionMetrics(names=["rmse", "r2"])
        >>> metrics.update(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 4.0]))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'rmse': 0.5774, 'r2': 0.7857}
    """

    kind: ClassVar[LabelKind] = "regression"

    def __init__(self, *, names: Sequence[str] | None = None, groups: bool = False) -> None:
        super().__init__(names=names, cuts=(), groups=groups)
        self._totals = BlockedStream(RegressionTotals(), _ROW)

    def update(
        self,
        predictions_B: ArrayLike,
        labels_B: ArrayLike,
        weights_B: ArrayLike | None = None,
        groups_B: ArrayLike | None = None,
    ) -> None:
        """Add scored rows.

        Args:
            predictions_B: Predicted values.
            labels_B: Observed values.
            weights_B: Sample weights of 0 or more; None for ones.
            groups_B: Group ids; read with ``groups=True`` alone.

        Shape:
            predictions_B, labels_B, weights_B, groups_B: (B,) or (B, 1).

        Raises:
            DataError: On a NaN or infinite value, a negative weight or unequal lengths, with the
                row. Nothing of such an update is counted.
        """
        prediction_B = finite_column(predictions_B, "predictions", self._rows)
        rows: Rows = np.empty(len(prediction_B), dtype=_ROW)
        rows["prediction"] = prediction_B
        rows["label"] = finite_column(labels_B, "labels", self._rows, len(rows))
        rows["weight"] = weight_column(weights_B, self._rows, len(rows))
        groups = self._keys_of_groups(groups_B, len(rows))
        self._rows += len(rows)
        self._totals.append(rows)
        if self._functions:
            self._append_to_functions(rows["label"], prediction_B, rows["weight"], groups)

    def _inputs(self) -> Mapping[str, Any]:
        return {"sums": self._totals.totals()}

    def _merge(self, other: Self) -> None:
        self._totals.merge(other._totals)


class AmountMetrics(RegressionMetrics):
    """Metrics of a number of at least 0, such as a count or a price.

    Those of :class:`RegressionMetrics`, ``calibration`` (Σ predictions / Σ labels) and
    ``poisson_deviance``, the mean of 2 (y log(y / p) - y + p) (McCullagh and Nelder 1989, §2.3).

    Example:
        >>> measured = AmountMetrics(names=["calibration", "poisson_deviance"])
        >>> measured.update([1.0, 2.0], [1.0, 3.0])
        >>> {name: round(value, 4) for name, value in measured.compute().items()}
        {'calibration': 0.75, 'poisson_deviance': 0.2164}
    """

    kind = "amount"


class RegressionTotals:
    """Sums of errors, and the spread of the labels around their running mean."""

    def __init__(self) -> None:
        self._sums = CompensatedSum(5)
        self.negative = False
        self._spread = CompensatedSum(1)
        self._min_label = math.inf
        self._max_label = -math.inf
        self.weight = 0.0
        self.label_mean = 0.0

    def add(self, block: Rows) -> None:
        prediction, label, weight = (
            block[name].copy() for name in ("prediction", "label", "weight")
        )
        mass = float(np.sum(weight))
        if mass == 0:
            return
        error = prediction - label
        positive = bool((label >= 0).all() and (prediction >= 0).all())
        self.negative = self.negative or not positive
        sums = (
            weight * error,
            weight * error**2,
            weight * np.abs(error),
            weight * prediction,
            weight * poisson_deviances(prediction, label) if positive else np.zeros(1),
        )
        self._sums.add(np.array([np.sum(column) for column in sums]))
        mean = float(np.sum(weight * label)) / mass
        spread = float(np.sum(weight * (label - mean) ** 2))
        self._add_labels(mass, mean, np.array([spread]))
        weighted = label[weight > 0]
        self._min_label = min(self._min_label, float(weighted.min()))
        self._max_label = max(self._max_label, float(weighted.max()))

    def merge(self, other: RegressionTotals) -> None:
        if not other.weight:
            return
        self._sums.merge(other._sums)
        self.negative = self.negative or other.negative
        self._add_labels(other.weight, other.label_mean, other._spread.values())
        self._min_label = min(self._min_label, other._min_label)
        self._max_label = max(self._max_label, other._max_label)

    def _add_labels(self, weight: float, mean: float, spread: NDArray[np.float64]) -> None:
        """Merge the mean and the spread of labels (Chan et al. 1979, pairwise update)."""
        shift = mean - self.label_mean
        total = self.weight + weight
        self._spread.add(spread + shift**2 * (self.weight * weight / total))
        self.label_mean += shift * (weight / total)
        self.weight = total

    def mean(self, index: int) -> float:
        """Mean of error (0), squared (1), absolute error (2), prediction (3) or deviance (4)."""
        return float(self._sums.values()[index] / self.weight)

    @property
    def calibration(self) -> float:
        """Σ w p / Σ w y."""
        if self.negative or not self.label_mean > 0:
            return Undefined("the labels are not all at least 0 and some above")
        return self.mean(3) / self.label_mean

    @property
    def deviance(self) -> float:
        """Mean of 2 (y log(y / p) - y + p)."""
        return Undefined("a label or prediction is below 0") if self.negative else self.mean(4)

    @property
    def r2(self) -> float:
        """1 - Σ w (p - y)² / Σ w (y - ȳ)²."""
        spread = float(self._spread.values()[0]) / self.weight
        if self._min_label == self._max_label or spread == 0:
            return Undefined(f"all labels of positive weight are equal: {self._min_label:g}")
        return 1.0 - self.mean(1) / spread


def poisson_deviances(
    prediction: NDArray[np.float64], label: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Poisson deviance of each row; a prediction of 0 counts as the smallest number."""
    rate = np.maximum(prediction, np.finfo(np.float64).tiny)
    # A quotient of numbers this far apart would overflow; the difference of logarithms does not.
    logs = label * (np.log(np.where(label > 0, label, 1.0)) - np.log(rate))
    return 2.0 * (np.where(label > 0, logs, 0.0) - label + prediction)


# name, value, order in tables, better values, title
_of_number = partial(add_metric, kinds=["regression"], input="sums")
_of_amount = partial(add_metric, kinds=["amount"], input="sums")
_of_number("mse", lambda sums: sums.mean(1), None, "lower", "mean squared error")
_of_number(
    "rmse",
    lambda sums: math.sqrt(sums.mean(1)),
    10,
    "lower",
    "root mean squared error",
    short="RMSE",
    headline=0,
)
_of_number("mae", lambda sums: sums.mean(2), 11, "lower", "mean absolute error", headline=1)
_of_number("r2", lambda sums: sums.r2, 12, "higher", "R²", headline=2)
_of_number("mean_bias", lambda sums: sums.mean(0), 13, "nearest_0", detail=True)
_of_amount(
    "calibration", lambda sums: sums.calibration, 7, "nearest_1", "predicted / observed", headline=3
)
_of_amount("poisson_deviance", lambda sums: sums.deviance, 9, "lower", "Poisson deviance")
_of_number("label_mean", lambda sums: sums.label_mean, 90, None, "mean label")
_of_number("prediction_mean", lambda sums: sums.mean(3), 91, None, "mean prediction")


class RegressionMetric(SingleMetric):
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
        super().__init__(name, RegressionMetrics(names=[name]))
