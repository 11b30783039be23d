"""The classifier for scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, DataError, show_value
from widedeep.estimators.base import ClassifierMixin, WideDeepEstimator
from widedeep.estimators.estimator_data import (
    Examples,
    read_classes,
    read_examples,
    read_numbers,
    read_weights,
)
from widedeep.estimators.value_errors import value_errors
from widedeep.models.heads import Binary, Head, Multiclass


class WideDeepClassifier(ClassifierMixin, WideDeepEstimator):  # type: ignore[misc]
    """A Wide & Deep classifier for scikit-learn: pipelines, ``cross_val_score`` and ``clone`` work.

    Args:
        features: Features as for :class:`widedeep.FeatureSpec`; None: those that
            :func:`widedeep.infer_spec` finds, numbers standardised.
        quality: How much time to spend: ``"fast"`` trains once, without choosing settings;
            ``"good"``; ``"best"`` then trains an ensemble of four
            (:class:`widedeep.models.Ensemble`), which is one model; without hidden layers or
            features for them it is as ``"good"``.
        hidden_units: Width of each hidden layer.
        embedding_dim: Width of embeddings, or ``"auto"``.
        dropout: Probability to drop a hidden unit.
        epochs: Passes over the data, or ``"auto"``: as many as give 600 steps, three times as many
            where that is better on rows left out, and at least one.
        batch_size: Examples a step, or ``"auto"``: by the number of rows, as for
            :class:`widedeep.Trainer`.
        validation_fraction: Share of the rows left out to choose settings on where there are more
            than 5,000, 0 < share <= 0.5. Of fewer, each third is left out in turn.
        early_stopping: Choose by rows left out how strongly weights decay, whether numbers are cut
            into bins and how long to train, then train on all rows; False, or a number of epochs,
            trains once.
        wide: Optimizer of the wide part, its name or a table, as :class:`widedeep.Trainer` takes
            it; None: :class:`widedeep.FTRL` with its defaults.
        deep: Optimizer of the deep part; None: :class:`widedeep.Adagrad` for embeddings, and
            :class:`widedeep.Adam` with weight decay for hidden layers.
        random_state: Seed of initial values, reading order and rows left out.
        threads: Threads; None: all the process may use.
        verbose: Show progress, and the settings tried.
        class_weight: Weight of each class, by class, 1 where none is given; ``"balanced"``:
            rows / (classes · rows of the class). They multiply ``sample_weight``.
        importance_type: What ``feature_importances_`` is: ``"permutation"`` or ``"gain"``.

    Optimizers' own parameters are searched as ``wide__lr`` or ``deep__l2``
    (:meth:`set_params`).

    Attributes:
        classes_: The classes, in the order of the probabilities.
        candidates_: The settings tried, each with its loss on rows left out; empty if none were.
        inferred_: What each column was taken for, with reasons; only where ``features`` is None.
        spec_: The features in use.
        schema_: What was learned of them.
        model_: The model.
        trainer_: Its trainer, whose ``export`` writes a bundle: its scores are of the classes by
            number.
        history_: One row per evaluation or epoch; metrics of ``eval_set`` as ``valid/...``.
        n_iter_: Passes over all rows.
        n_features_in_: Columns of ``X``.
        feature_names_in_: Their names.

    Example:
        >>> import pandas as pd
        >>> import widedeep as wd
        >>> X = pd.DataFrame({"job": ["a", "b"] * 64})
        >>> y = ["yes", "no"] * 64
        >>> wd.WideDeepClassifier().fit(X, y).score(X, y)
        1.0
    """

    def _examples(self, X: object, y: object, sample_weight: object) -> tuple[Examples, Head]:
        self.classes_, codes = np.unique(read_classes(y), return_inverse=True)
        codes, count = codes.reshape(-1).astype(np.int64), len(self.classes_)
        if count < 2:
            read_examples(X, codes)  # what is wrong with the rows is told first
            raise DataError(
                f"got one class only in y ({self.classes_.tolist()}), expected at least two"
            )
        weights = read_weights(sample_weight)
        if self.class_weight is not None:
            by_row = self._weight_by_class(codes)[codes]
            if weights is None:
                weights = by_row
            elif len(weights) == len(by_row):  # others are refused
                weights = weights * by_row
        head: Head = Binary() if count == 2 else Multiclass(classes=count)
        return read_examples(X, codes, weights), head

    def _weight_by_class(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weight of each class, (classes,)."""
        classes = self.classes_.tolist()
        choice = self.class_weight
        if isinstance(choice, str) and choice == "balanced":
            counts: NDArray[np.float64] = np.bincount(codes).astype(np.float64)
            return len(codes) / (len(classes) * counts)
        if not isinstance(choice, Mapping):
            raise ConfigError(
                f"got class_weight={show_value(choice)}, expected 'balanced' or a dict by class"
            )
        unknown = [label for label in choice if label not in classes]
        if unknown:
            raise ConfigError(
                f"class_weight: got the class {show_value(unknown[0])}, which y does not hold; its "
                f"classes: {show_value(classes)}"
            )
        return read_numbers("class_weight", [choice.get(label, 1.0) for label in classes], 0.0)

    def _labels(self, y: object) -> NDArray[np.int64]:
        numbers = {label: code for code, label in enumerate(self.classes_.tolist())}
        labels = read_classes(y).tolist()
        for row, label in enumerate(labels):
            if label not in numbers:
                raise DataError(
                    f"eval_set: y (row {row}): got {show_value(label)}, expected one of the "
                    f"classes of fit: {show_value(list(numbers))}"
                )
        return np.array([numbers[label] for label in labels], np.int64)

    @value_errors
    def predict_proba(self, X: object) -> NDArray[np.float64]:
        """Return the probability of each class, (rows, classes)."""
        predictions = self._predictions(X)
        return (
            np.stack([1.0 - predictions, predictions], axis=1)
            if predictions.ndim == 1
            else predictions
        )

    @value_errors
    def predict(self, X: object) -> NDArray[Any]:
        """Return the most probable class of each row, (rows,)."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[most_probable]
        return labels
