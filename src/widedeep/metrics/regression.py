"""Metrics of a number to predict, in one pass over a stream of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from widedeep.errors import ConfigError, nearest
from widedeep.metrics.rows import Rows, finite_column, weight_column
from widedeep.metrics.sums import CompensatedSum, FixedBlocks, Numbers

__all__ = ["RegressionMetrics"]

_NAMES = ("mse", "rmse", "mae", "r2", "mean_bias", "label_mean", "prediction_mean", "rows")
_ROW = np.dtype([(name, np.float64) for name in ("prediction", "label", "weight")])


class RegressionMetrics:
    """Metrics of a regression, whatever the number of rows, in constant memory.

    ``mse``, ``rmse`` and ``mae`` are means of squared and absolute errors; ``r2`` is 1 - Σ w (p -
    y)² / Σ w (y - ȳ)², NaN where all labels are equal; ``mean_bias`` is the mean of prediction
    less label; then ``label_mean``, ``prediction_mean`` and ``rows``. Where nothing has weight
    they are NaN, and ``reasons`` says so.

    Args:
        names: The metrics wanted; None for all.

    Raises:
        ConfigError: On an unknown name.

    Example:
        >>> import numpy as np
        >>> metrics = RegressionMetrics(names=["rmse", "r2"])
        >>> metrics.update(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 4.0]))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'rmse': 0.5774, 'r2': 0.7857}
    """

    def __init__(self, *, names: Sequence[str] | None = None) -> None:
        for name in names or ():
            if name not in _NAMES:
                raise ConfigError(f"names: got {name!r}, no metric; {nearest(name, _NAMES)}")
        self._names = list(_NAMES if names is None else names)
        self._totals = FixedBlocks(_RegressionTotals(), _ROW)
        self._rows = 0
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Why a number of the last ``compute`` is NaN, by name."""
        return dict(self._reasons)

    def update(
        self,
        predictions_B: ArrayLike,
        labels_B: ArrayLike,
        weights_B: ArrayLike | None = None,
    ) -> None:
        """Take rows into account.

        Args:
            predictions_B: Predicted values.
            labels_B: Observed values.
            weights_B: Sample weights of 0 or more; None for ones.

        Shape:
            predictions_B, labels_B, weights_B: (B,) or (B, 1).

        Raises:
            DataError: On a NaN or infinite value, a negative weight or unequal lengths, with the
                row. Nothing of such an update is counted.
        """
        prediction_B = finite_column(predictions_B, "predictions", self._rows)
        rows: Rows = np.empty(len(prediction_B), dtype=_ROW)
        rows["prediction"] = prediction_B
        rows["label"] = finite_column(labels_B, "labels", self._rows, len(rows))
        rows["weight"] = weight_column(weights_B, self._rows, len(rows))
        self._rows += len(rows)
        self._totals.append(rows)

    def compute(self) -> dict[str, float]:
        """Return the metrics of all rows so far; more updates may follow."""
        numbers = self._totals.totals().numbers(self._rows)
        self._reasons = {
            name: reason for name, reason in numbers.reasons.items() if name in self._names
        }
        return {name: numbers.values[name] for name in self._names}


class _RegressionTotals:
    """Sums of errors, and the spread of the labels around their running mean."""

    def __init__(self) -> None:
        self._sums = CompensatedSum(4)
        self._weight = 0.0
        self._mean = 0.0
        self._spread = CompensatedSum(1)
        self._least = math.inf
        self._most = -math.inf

    def add(self, block: Rows) -> None:
        prediction, label, weight = (
            block[name].copy() for name in ("prediction", "label", "weight")
        )
        mass = float(np.sum(weight))
        if mass == 0:
            return
        error = prediction - label
        sums = (weight * error, weight * error**2, weight * np.abs(error), weight * prediction)
        self._sums.add(np.array([np.sum(column) for column in sums]))
        mean = float(np.sum(weight * label)) / mass
        around = float(np.sum(weight * (label - mean) ** 2))
        apart = mean - self._mean
        total = self._weight + mass
        self._spread.add(np.array([around + apart**2 * (self._weight * mass / total)]))
        self._mean += apart * (mass / total)
        self._weight = total
        counted = label[weight > 0]
        self._least = min(self._least, float(counted.min()))
        self._most = max(self._most, float(counted.max()))

    def numbers(self, rows: int) -> Numbers:
        numbers = Numbers()
        numbers.put("rows", rows)
        if self._weight == 0:
            means = [name for name in _NAMES if name != "rows"]
            numbers.undefined(means, "there are no rows of positive weight")
            return numbers
        bias, squared, absolute, prediction = (self._sums.values() / self._weight).tolist()
        numbers.put("mse", squared)
        numbers.put("rmse", math.sqrt(squared))
        numbers.put("mae", absolute)
        numbers.put("mean_bias", bias)
        numbers.put("label_mean", self._mean)
        numbers.put("prediction_mean", prediction)
        spread = float(self._spread.values()[0]) / self._weight
        if self._least == self._most or spread == 0:
            numbers.undefined(["r2"], f"all labels of positive weight are equal: {self._least:g}")
        else:
            numbers.put("r2", 1.0 - squared / spread)
        return numbers
