"""The regressor for scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, DataError, show_value
from widedeep.estimators.base import RegressorMixin, WideDeepEstimator
from widedeep.estimators.estimator_data import (
    Examples,
    read_examples,
    read_numbers,
    read_weights,
)
from widedeep.estimators.value_errors import value_errors
from widedeep.models.heads import Head, Regression


class WideDeepRegressor(RegressorMixin, WideDeepEstimator):  # type: ignore[misc]
    """A Wide & Deep regressor for scikit-learn; the label is standardised while it is learned.

    Args:
        features: As for :class:`WideDeepClassifier`, also for the arguments that follow.
        quality: How much time to spend: ``"fast"``, ``"good"`` or ``"best"``.
        hidden_units: Width of each hidden layer.
        embedding_dim: Width of embeddings, or ``"auto"``.
        dropout: Probability to drop a hidden unit.
        epochs: Passes over the data.
        batch_size: Examples a step.
        validation_fraction: Share of the rows left out to choose settings on.
        early_stopping: Choose settings by rows left out.
        wide: Optimizer of the wide part.
        deep: Optimizer of the deep part.
        random_state: Seed of initial values, reading order and rows left out.
        threads: Threads; None: all the process may use.
        verbose: Show progress, and the settings tried.
        class_weight: None: a value has no class.
        importance_type: What ``feature_importances_`` is: ``"permutation"`` or ``"gain"``.

    Attributes:
        label_mean_: Mean of the label; its bundle's scores are in units of ``label_scale_`` from
            it.
        label_scale_: Standard deviation of the label.

    The others are those of :class:`WideDeepClassifier`.

    Example:
        >>> import pandas as pd
        >>> import widedeep as wd
        >>> X = pd.DataFrame({"job": ["a", "b"] * 64})
        >>> y = [1.0, 3.0] * 64
        >>> model = wd.WideDeepRegressor(hidden_units=[4], epochs=20, batch_size=16)
        >>> model.fit(X, y).score(X, y) > 0.9
        True
    """

    def _examples(self, X: object, y: object, sample_weight: object) -> tuple[Examples, Head]:
        if self.class_weight is not None:
            raise ConfigError(
                f"got class_weight={show_value(self.class_weight)} for a regression, which has no "
                "classes; give sample_weight to fit"
            )
        weights = read_weights(sample_weight)
        examples = read_examples(X, read_numbers("y", y), weights)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.average(examples.labels, weights=examples.weights)
            variance = np.average((examples.labels - mean) ** 2, weights=examples.weights)
        if not np.isfinite(variance):
            raise DataError("y: got values whose spread no number holds; scale them down")
        self.label_mean_, self.label_scale_ = float(mean), float(np.sqrt(variance)) or 1.0
        return examples.with_labels(self._standardise(examples.labels)), Regression()

    def _labels(self, y: object) -> NDArray[np.float64]:
        return self._standardise(read_numbers("y", y))

    def _standardise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (values - self.label_mean_) / self.label_scale_

    @value_errors
    def predict(self, X: object) -> NDArray[np.float64]:
        """Return the predicted value of each row, (rows,)."""
        return self._predictions(X) * self.label_scale_ + self.label_mean_
