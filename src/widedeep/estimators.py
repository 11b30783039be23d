"""scikit-learn estimators over the same parts: spec, schema, model, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.config import ModelConfig, TrainConfig
from widedeep.errors import DataError, WideDeepError
from widedeep.features import FeatureSpec, categorical, numeric
from widedeep.heads import Binary, Head, Multiclass, Regression
from widedeep.optim import FTRL, Adagrad, Optimizer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise WideDeepError(
        "got no scikit-learn for WideDeepClassifier and WideDeepRegressor; run: pip install "
        "'widedeep[sklearn]'"
    ) from error

__all__ = ["WideDeepClassifier", "WideDeepRegressor"]

_LABEL, _WEIGHT = "__label__", "__weight__"


class _WideDeepEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share; see :class:`WideDeepClassifier` for the arguments."""

    def __init__(
        self,
        features: Sequence[object] | None = None,
        *,
        hidden_units: Sequence[int] = ModelConfig().hidden_units,
        embedding_dim: int | Literal["auto"] = ModelConfig().embedding_dim,
        dropout: float = 0.0,
        epochs: int = 5,
        batch_size: int = TrainConfig().batch_size,
        wide: Optimizer | None = None,
        deep: Optimizer | None = None,
        random_state: int = 0,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.features = features
        self.hidden_units = hidden_units
        self.embedding_dim = embedding_dim
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.wide = wide
        self.deep = deep
        self.random_state = random_state
        self.threads = threads
        self.verbose = verbose

    def _fit(self, X: object, y: NDArray[Any], head: Head, sample_weight: object) -> None:
        from widedeep.data.fit import fit_schema
        from widedeep.model import WideDeep
        from widedeep.trainer import Trainer

        table = as_table(X)
        _check_length("y", y, table)
        features = infer_features(table) if self.features is None else self.features
        table = table.append_column(_LABEL, pa.array(y))
        if sample_weight is not None:
            weights = _one_column("sample_weight", np.asarray(sample_weight, np.float64))
            _check_length("sample_weight", weights, table)
            table = table.append_column(_WEIGHT, pa.array(weights))
        spec = FeatureSpec(
            features=features, label=_LABEL, weight=None if sample_weight is None else _WEIGHT
        )
        self.schema_ = fit_schema(spec, table, seed=self.random_state)
        self.model_ = WideDeep(
            self.schema_,
            hidden_units=self.hidden_units,
            embedding_dim=self.embedding_dim,
            dropout=self.dropout,
            head=head,
            seed=self.random_state,
        )
        self.trainer_ = Trainer(
            self.model_,
            wide=self.wide or FTRL(),
            deep=self.deep or Adagrad(),
            batch_size=self.batch_size,
            seed=self.random_state,
            threads=self.threads,
            progress=self.verbose,
        )
        self.trainer_.fit(table, epochs=self.epochs)
        self.n_features_in_ = table.num_columns - (1 if sample_weight is None else 2)
        self.feature_names_in_ = np.array(
            [name for name in table.column_names if name not in (_LABEL, _WEIGHT)], dtype=object
        )

    def _predictions(self, X: object) -> NDArray[np.float64]:
        check_is_fitted(self, "trainer_")
        found = self.trainer_.predict(as_table(X))
        assert isinstance(found, np.ndarray)
        return found


class WideDeepClassifier(ClassifierMixin, _WideDeepEstimator):  # type: ignore[misc]
    """A Wide & Deep classifier for scikit-learn: pipelines, ``cross_val_score`` and ``clone`` work.

    Args:
        features: Features as for :class:`widedeep.FeatureSpec`; None takes number columns as
            numeric and all others as categorical.
        hidden_units: Width of each hidden layer.
        embedding_dim: Width of embeddings, or ``"auto"``.
        dropout: Probability to drop a hidden unit.
        epochs: Passes over the data.
        batch_size: Examples a step.
        wide: Optimizer of the wide part; None: :class:`widedeep.FTRL` with its defaults.
        deep: Optimizer of the deep part; None: :class:`widedeep.Adagrad` with its defaults.
        random_state: Seed of initial values and reading order.
        threads: Threads; None: all the process may use.
        verbose: Show progress.

    Example:
        >>> import pandas as pd
        >>> import widedeep as wd
        >>> X = pd.DataFrame({"job": ["a", "b"] * 64})
        >>> y = ["yes", "no"] * 64
        >>> wd.WideDeepClassifier(hidden_units=[4], epochs=20, batch_size=16).fit(X, y).score(X, y)
        1.0
    """

    def fit(self, X: object, y: object, sample_weight: object = None) -> WideDeepClassifier:
        """Fit on a table ``X`` of shape (rows, columns) and labels ``y`` of shape (rows,).

        Raises:
            DataError: If ``y`` holds one class only or a missing value, or lengths differ.
        """
        labels = _one_column("y", np.asarray(y))
        missing = np.array([label is None or label != label for label in labels.tolist()])
        if missing.any():
            row = int(missing.argmax())
            raise DataError(f"y (row {row}): got {labels[row]}, expected a class; drop the row")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"got one class only in y ({self.classes_.tolist()}), expected at least two"
            )
        head: Head = Binary() if len(self.classes_) == 2 else Multiclass(classes=len(self.classes_))
        self._fit(X, codes.reshape(-1).astype(np.int64), head, sample_weight)
        return self

    def predict_proba(self, X: object) -> NDArray[np.float64]:
        """Return the probability of each class, (rows, classes)."""
        found = self._predictions(X)
        return np.stack([1.0 - found, found], axis=1) if found.ndim == 1 else found

    def predict(self, X: object) -> NDArray[Any]:
        """Return the most probable class of each row, (rows,)."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[most_probable]
        return chosen


class WideDeepRegressor(RegressorMixin, _WideDeepEstimator):  # type: ignore[misc]
    """A Wide & Deep regressor for scikit-learn; the label is standardised while it is learned.

    Args:
        features: As for :class:`WideDeepClassifier`, also for the arguments that follow.
        hidden_units: Width of each hidden layer.
        embedding_dim: Width of embeddings, or ``"auto"``.
        dropout: Probability to drop a hidden unit.
        epochs: Passes over the data.
        batch_size: Examples a step.
        wide: Optimizer of the wide part.
        deep: Optimizer of the deep part.
        random_state: Seed of initial values and reading order.
        threads: Threads; None: all the process may use.
        verbose: Show progress.

    Example:
        >>> import pandas as pd
        >>> import widedeep as wd
        >>> X = pd.DataFrame({"job": ["a", "b"] * 64})
        >>> y = [1.0, 3.0] * 64
        >>> model = wd.WideDeepRegressor(hidden_units=[4], epochs=20, batch_size=16)
        >>> model.fit(X, y).score(X, y) > 0.9
        True
    """

    def fit(self, X: object, y: object, sample_weight: object = None) -> WideDeepRegressor:
        """Fit on a table ``X`` of shape (rows, columns) and values ``y`` of shape (rows,).

        Raises:
            DataError: If a value is not finite, or lengths differ.
        """
        values = _one_column("y", np.asarray(y, np.float64))
        if not np.isfinite(values).all():
            row = int((~np.isfinite(values)).nonzero()[0][0])
            raise DataError(
                f"y (row {row}): got {values[row]}, expected a finite number; drop the row"
            )
        self.label_mean_ = float(values.mean()) if len(values) else 0.0
        self.label_scale_ = float(values.std()) or 1.0
        self._fit(X, (values - self.label_mean_) / self.label_scale_, Regression(), sample_weight)
        return self

    def predict(self, X: object) -> NDArray[np.float64]:
        """Return the predicted value of each row, (rows,)."""
        return self._predictions(X) * self.label_scale_ + self.label_mean_


def as_table(X: object) -> pa.Table:
    """Return a DataFrame, Arrow table or 2-D array (columns ``x0``, ``x1``, ...) as Arrow.

    Raises:
        DataError: If it is none of these.
    """
    if isinstance(X, pa.Table):
        return X
    if isinstance(X, np.ndarray):
        if X.ndim != 2:
            raise DataError(f"got an array of {X.ndim} dimension(s), expected 2: (rows, columns)")
        return pa.table({f"x{i}": pa.array(X[:, i], from_pandas=True) for i in range(X.shape[1])})
    if type(X).__module__.startswith("pandas"):
        # Not through the Arrow interface, which makes a column of the index of a shuffled frame.
        return pa.Table.from_pandas(X, preserve_index=False)
    if hasattr(X, "__arrow_c_stream__"):
        return pa.table(X)
    raise DataError(f"got {type(X).__name__}, expected a DataFrame, an Arrow table or a 2-D array")


def _one_column(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return (rows,) for (rows,) or (rows, 1)."""
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"{name}: got an array of shape {values.shape}, expected (rows,); fit an estimator for "
            "each column"
        )
    return values


def _check_length(name: str, values: NDArray[Any], table: pa.Table) -> None:
    if len(values) != table.num_rows:
        raise DataError(
            f"got {table.num_rows} rows in X and {len(values)} in {name}; expected equally many"
        )


def infer_features(table: pa.Table) -> list[object]:
    """Return numeric features for number columns and categorical ones for all others."""
    features: list[object] = []
    for column in table.schema:
        kind = column.type
        plain_number = (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        )
        features.append(numeric(column.name) if plain_number else categorical(column.name))
    return features
