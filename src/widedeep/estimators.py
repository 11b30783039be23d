"""scikit-learn estimators over the same parts: spec, schema, model, trainer."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.infer import infer_spec
from widedeep.data.sources import pandas_table
from widedeep.errors import (
    ConfigError,
    DataError,
    FeatureError,
    SchemaError,
    WideDeepError,
    install_hint,
    show_value,
)
from widedeep.features import (
    Feature,
    FeatureSpec,
    categorical,
    numeric,
)
from widedeep.models.ensemble import Ensemble
from widedeep.models.heads import Binary, Head, Multiclass, Regression
from widedeep.optim import Adam, OptimizerChoice
from widedeep.training.config import Quality, TrainConfig
from widedeep.training.defaults import BEST_MEMBERS, auto_batch_size

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer


try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.validation import check_is_fitted, check_random_state

    _HAS_SKLEARN = True
except ImportError:  # the names are there, so that help() and import * work; see __init__
    _HAS_SKLEARN = False

    class BaseEstimator: ...  # type: ignore[no-redef]

    class ClassifierMixin: ...  # type: ignore[no-redef]

    class RegressorMixin: ...  # type: ignore[no-redef]


__all__ = ["EstimatorError", "WideDeepClassifier", "WideDeepRegressor"]

_LABEL, _WEIGHT = "__label__", "__weight__"


class EstimatorError(ConfigError, DataError, FeatureError, SchemaError, ValueError):
    """What an estimator cannot use; a ValueError, as scikit-learn's own estimators raise."""


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise
    except WideDeepError as error:
        raise EstimatorError(str(error)) from error


class _WideDeepEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share; see :class:`WideDeepClassifier` for the arguments."""

    def __init__(
        self,
        features: Sequence[object] | None = None,
        *,
        quality: Quality = "good",
        hidden_units: Sequence[int] = (128, 64),
        embedding_dim: int | Literal["auto"] = 8,
        dropout: float = 0.0,
        epochs: int | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        early_stopping: bool = True,
        wide: OptimizerChoice | None = None,
        deep: OptimizerChoice | None = None,
        random_state: int | np.random.RandomState | None = 0,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        if not _HAS_SKLEARN:
            raise WideDeepError(
                "WideDeepClassifier and WideDeepRegressor need scikit-learn: "
                + install_hint("scikit-learn", "sklearn")
            )
        self.features = features
        self.quality = quality
        self.hidden_units = hidden_units
        self.embedding_dim = embedding_dim
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.wide = wide
        self.deep = deep
        self.random_state = random_state
        self.threads = threads
        self.verbose = verbose

    def _fit(self, X: object, y: NDArray[Any], head: Head, sample_weight: object) -> None:
        table = as_table(X)
        _check_length("y", y, table)
        if not table.num_rows or not table.num_columns:
            raise DataError(
                f"got {table.num_rows} rows of {table.num_columns} columns in X, expected at least "
                "one of each"
            )
        names = table.column_names
        for name, what in ((_LABEL, "label"), (_WEIGHT, "weight")):
            if name in names:
                raise DataError(f"X: its column {name!r} is the {what}'s own name; rename it")
        table = table.append_column(_LABEL, pa.array(y))
        weights = None
        if sample_weight is not None:
            weights = _numbers("sample_weight", sample_weight, least=0.0)
            _check_length("sample_weight", weights, table)
            table = table.append_column(_WEIGHT, pa.array(weights))
        self._check_options()
        seed = self._seed()
        spec = self._infer(table, head).replace(weight=None if weights is None else _WEIGHT)
        self.candidates_: list[ScoredSetting] = []
        setting = Setting()
        if self.early_stopping and self.epochs == "auto" and self.quality != "fast":
            setting = self._best_setting(spec, table, head, weights, seed)
        self.spec_ = self._with_setting(spec, setting)
        deep = None
        if self.quality == "best" and self.hidden_units and self.spec_.deep_names:
            of = {"name": "mlp", "hidden_units": self.hidden_units, "dropout": self.dropout}
            deep = Ensemble(of=of, members=BEST_MEMBERS)
        self.trainer_ = self._train(self.spec_, table, head, setting, seed, self.verbose, deep)
        self.model_ = self.trainer_.model
        self.schema_ = self.model_.schema
        self.n_iter_ = self.trainer_.position.epoch
        self.n_features_in_ = len(names)
        self.feature_names_in_ = np.array(names, dtype=object)

    def _check_options(self) -> None:
        if self.quality not in get_args(Quality):
            raise ConfigError(
                f"got quality={show_value(self.quality)}, expected 'fast', 'good' or 'best'"
            )
        fraction = self.validation_fraction
        if not isinstance(fraction, float) or not 0 < fraction <= 0.5:
            raise ConfigError(
                f"got validation_fraction={show_value(fraction)}, expected 0 < fraction <= 0.5"
            )

    def _infer(self, table: pa.Table, head: Head) -> FeatureSpec:
        """Return the features asked for, or those that the table seems to hold."""
        if self.features is not None:
            return FeatureSpec(features=self.features, label=_LABEL)
        table = table.select([name for name in table.column_names if name != _WEIGHT])
        columns = table.drop_columns([_LABEL])
        try:
            self.inferred_ = infer_spec(table, label=_LABEL, head=head.kind)  # type: ignore[arg-type]
        except ConfigError:  # no column says anything that a model could learn
            return FeatureSpec(features=infer_features(columns), label=_LABEL)
        spec = self.inferred_.spec
        # In a table of features alone no column weighs rows or names a query.
        others = [name for name in (*spec.weights, spec.group) if name is not None]
        features = [*spec.features, *infer_features(columns.select(others))]
        return FeatureSpec(features=features, label=_LABEL)

    def _with_setting(self, spec: FeatureSpec, setting: Setting) -> FeatureSpec:
        """Return the features in the form of a setting: numbers standardised, with bins or not."""
        if self.features is not None:
            return spec
        in_crosses = {component for f in spec.all_features for component in f.part_names}
        features: list[Feature] = []
        deep: list[str] = []
        for feature in spec.all_features:
            only_in_crosses = feature.is_bucketed and feature.name in in_crosses
            if feature.is_bucketed and not (setting.bins or only_in_crosses):
                continue
            features.append(feature.standardised())
            if not feature.part_names and not only_in_crosses:
                deep.append(feature.name)
        return FeatureSpec(features=features, label=spec.label, weight=spec.weight, deep=deep)

    def _best_setting(
        self,
        spec: FeatureSpec,
        table: pa.Table,
        head: Head,
        weights: NDArray[np.float64] | None,
        seed: int,
    ) -> Setting:
        """Return the setting that predicts rows left out best; rows of weight 0 say nothing."""
        rows = np.arange(table.num_rows) if weights is None else np.flatnonzero(weights > 0)
        labels = table.column(_LABEL).to_numpy()[rows]
        strata = np.zeros(len(rows), np.int64) if head.kind == "regression" else labels
        parts = validation_splits(strata, self.validation_fraction, seed)
        if not parts:
            return Setting()
        metric = "rmse" if head.kind == "regression" else "log_loss"

        def judge(setting: Setting, fold: int) -> float:
            learned, left_out = (table.take(rows[indices]) for indices in parts[fold])
            features = self._with_setting(spec, setting)
            trainer = self._train(features, learned, head, setting, seed, False)
            return trainer.evaluate(left_out)[metric]

        bins = self.features is None and any(f.is_bucketed for f in spec.all_features)
        best, self.candidates_ = search(judge, len(parts), bins=bins)
        if self.verbose:
            for scored in self.candidates_:
                mark = "  <- best" if scored.setting == best else ""
                print(f"{metric} {scored.loss:.4f}  {scored.setting}{mark}", file=sys.stderr)
        return best

    def _train(
        self,
        spec: FeatureSpec,
        table: pa.Table,
        head: Head,
        setting: Setting,
        seed: int,
        progress: bool,
        deep: Ensemble | None = None,
    ) -> Trainer:
        from widedeep.data.fit import fit_schema
        from widedeep.models.wide_deep import WideDeep
        from widedeep.training.trainer import Trainer

        model = WideDeep(
            fit_schema(spec, table, seed=seed),
            hidden_units=() if deep else self.hidden_units,
            deep=() if deep is None else deep,
            embedding_dim=self.embedding_dim,
            dropout=self.dropout,
            embedding_std=0.1,
            head=head,
            seed=seed,
        )
        rows = table.num_rows
        batch_size = auto_batch_size(rows) if self.batch_size == "auto" else self.batch_size
        epochs = self.epochs
        if epochs == "auto":
            epochs = max(1, round(setting.steps / math.ceil(rows / batch_size)))
        dense = Adam(lr=0.003, weight_decay=setting.weight_decay)
        config = TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            schedule="linear",
            seed=seed,
            threads=self.threads,
        )
        trainer = Trainer(
            model,
            config,
            wide=self.wide,
            deep=self.deep,
            dense=None if self.deep else dense,
            progress=progress,
        )
        trainer.fit(table)
        return trainer

    def _seed(self) -> int:
        """The seed of a number, a generator, or chance, as scikit-learn reads ``random_state``."""
        state = self.random_state
        if state is None or isinstance(state, np.random.RandomState):
            return int(check_random_state(state).randint(2**31 - 1))
        return state

    def _predictions(self, X: object) -> NDArray[np.float64]:
        check_is_fitted(self, "trainer_")
        with _value_errors():
            table = as_table(X)
            if isinstance(X, np.ndarray) and table.num_columns != self.n_features_in_:
                raise DataError(
                    f"X has {table.num_columns} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input: an array's columns have no names, "
                    "so they must be those of fit, in its order"
                )
            predictions = self.trainer_.predict(table)
        assert isinstance(predictions, np.ndarray)
        return predictions


class WideDeepClassifier(ClassifierMixin, _WideDeepEstimator):  # type: ignore[misc]
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

    Attributes:
        classes_: The classes, in the order of the probabilities.
        candidates_: The settings tried, each with its loss on rows left out; empty if none were.
        inferred_: What each column was taken for, with reasons; only where ``features`` is None.
        spec_: The features in use.
        schema_: What was learned of them.
        model_: The model.
        trainer_: Its trainer, whose ``export`` writes a bundle: its scores are of the classes by
            number.
        n_iter_: Passes over all rows.

    Example:
        >>> import pandas as pd
        >>> import widedeep as wd
        >>> X = pd.DataFrame({"job": ["a", "b"] * 64})
        >>> y = ["yes", "no"] * 64
        >>> wd.WideDeepClassifier().fit(X, y).score(X, y)
        1.0
    """

    def fit(self, X: object, y: object, sample_weight: object = None) -> WideDeepClassifier:
        """Fit on a table ``X`` of shape (rows, columns) and labels ``y`` of shape (rows,).

        Raises:
            DataError: If ``y`` holds one class only or a missing value, or lengths differ.
        """
        with _value_errors():
            labels = _labels(y)
            self.classes_, codes = np.unique(labels, return_inverse=True)
            count = len(self.classes_)
            if count < 2:
                raise DataError(
                    f"got one class only in y ({self.classes_.tolist()}), expected at least two"
                )
            head: Head = Binary() if count == 2 else Multiclass(classes=count)
            self._fit(X, codes.reshape(-1).astype(np.int64), head, sample_weight)
        return self

    def predict_proba(self, X: object) -> NDArray[np.float64]:
        """Return the probability of each class, (rows, classes)."""
        predictions = self._predictions(X)
        return (
            np.stack([1.0 - predictions, predictions], axis=1)
            if predictions.ndim == 1
            else predictions
        )

    def predict(self, X: object) -> NDArray[Any]:
        """Return the most probable class of each row, (rows,)."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[most_probable]
        return labels


class WideDeepRegressor(RegressorMixin, _WideDeepEstimator):  # type: ignore[misc]
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

    def fit(self, X: object, y: object, sample_weight: object = None) -> WideDeepRegressor:
        """Fit on a table ``X`` of shape (rows, columns) and values ``y`` of shape (rows,).

        Raises:
            DataError: If a value is not finite, or lengths differ.
        """
        with _value_errors():
            values = _numbers("y", y)
            with np.errstate(over="ignore", invalid="ignore"):
                mean, scale = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
            if not np.isfinite(scale):
                raise DataError("y: got values whose spread no number holds; scale them down")
            self.label_mean_, self.label_scale_ = float(mean), float(scale) or 1.0
            standard = (values - self.label_mean_) / self.label_scale_
            self._fit(X, standard, Regression(), sample_weight)
        return self

    def predict(self, X: object) -> NDArray[np.float64]:
        """Return the predicted value of each row, (rows,)."""
        return self._predictions(X) * self.label_scale_ + self.label_mean_


def as_table(X: object) -> pa.Table:
    """Return a DataFrame, Arrow table or 2-D array (columns ``x0``, ``x1``, ...) as Arrow."""
    if isinstance(X, pa.Table):
        table = X
    elif isinstance(X, np.ndarray):
        if X.ndim != 2:
            raise DataError(f"got an array of {X.ndim} dimension(s), expected 2: (rows, columns)")
        table = pa.table({f"x{i}": _array(f"x{i}", X[:, i]) for i in range(X.shape[1])})
    elif type(X).__module__.startswith("pandas") and hasattr(X, "columns"):
        # Not through the Arrow interface, which makes a column of the index of a shuffled frame.
        table = pandas_table(X, None, "X")
    elif hasattr(X, "__arrow_c_stream__"):
        try:
            table = pa.table(X)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise _no_table(X) from error
    else:
        raise _no_table(X)
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise DataError(f"X: two columns are named {name!r}; rename or drop one of them")
    return table


def _no_table(X: object) -> DataError:
    hint = "; call toarray() first" if hasattr(X, "toarray") else ""
    hint = "; make it a table: to_frame()" if hasattr(X, "to_frame") else hint
    return DataError(
        f"got {type(X).__name__}, expected a DataFrame, an Arrow table or a 2-D array{hint}"
    )


def _array(name: str, values: NDArray[Any]) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f"X: column {name!r} has no single type ({error}); convert its values to text or to "
            "numbers"
        ) from error


def _column(name: str, values: object) -> NDArray[Any]:
    """Return the values of a target or of weights, (rows,) for (rows,) or (rows, 1)."""
    if values is None:
        raise DataError(f"{name}: got None, expected one value a row")
    if hasattr(values, "toarray"):
        raise DataError(f"{name}: got a sparse matrix, expected (rows,); call toarray() first")
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_pylist()
    try:
        array = np.asarray(values)
        if array.dtype.kind in "US" and isinstance(values, Sequence):
            array = np.asarray(values, dtype=object)  # NumPy makes text of numbers beside text
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: got values of no one shape ({error})") from error
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"{name}: got an array of shape {array.shape}, expected (rows,); fit an estimator for "
            "each column"
        )
    return array


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return bool(value != value) if isinstance(value, float | np.generic) else False


def _labels(y: object) -> NDArray[Any]:
    """Return the classes of a target: values of one kind, none of them missing."""
    labels = _column("y", y)
    whole = labels.dtype.kind == "f" and bool(
        (np.isfinite(labels) & (np.floor(labels) == labels)).all()
    )
    if labels.dtype.kind not in "biuU" and not whole:
        for row, label in enumerate(labels.tolist() if labels.dtype.kind != "M" else labels):
            if _is_missing(label):
                raise DataError(f"y (row {row}): got {label}, expected a class; drop the row")
            if isinstance(label, float) and not label.is_integer():
                raise DataError(
                    f"y (row {row}): got {label}, expected classes: integers, text or booleans; "
                    "use WideDeepRegressor for numbers"
                )
    if labels.dtype.kind != "O":
        return labels
    kinds: dict[type, int] = {}
    for row, label in enumerate(labels):
        kind = bool if isinstance(label, bool | np.bool_) else type(label)
        kinds.setdefault(
            float if isinstance(label, int | float | np.number) and kind is not bool else kind, row
        )
    if len(kinds) > 1 or not set(kinds) <= {bool, float, str, bytes}:
        examples = ", ".join(f"{show_value(labels[row])} in row {row}" for row in kinds.values())
        raise DataError(f"y: got {examples}; expected numbers alone, text alone or booleans alone")
    # An object array of one plain kind stays what scikit-learn makes of it.
    return labels.astype(bool) if set(kinds) == {bool} else labels


def _numbers(name: str, values: object, least: float = -np.inf) -> NDArray[np.float64]:
    """Return a target or weights as finite numbers of at least ``least``."""
    column = _column(name, values)
    allowed = "a finite number" if least == -np.inf else f"a finite number of at least {least:g}"
    try:
        if column.dtype.kind in "SUMmc":
            raise TypeError
        numbers = column.astype(np.float64)
    except (OverflowError, TypeError, ValueError):
        row = next((r for r, v in enumerate(column.tolist()) if not _is_finite(v)), 0)
        raise DataError(
            f"{name} (row {row}): got {show_value(column[row])}, expected {allowed}; drop the row"
        ) from None
    bad = ~(np.isfinite(numbers) & (numbers >= least))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{name} (row {row}): got {numbers[row]}, expected {allowed}; drop the row")
    return numbers


def _is_finite(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value))) and not isinstance(value, str)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return False


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


FEW_ROWS = 5_000
"""Rows up to which each of three parts is left out in turn; of more, one part is."""
MOST_ROWS = 50_000
"""Rows that settings are tried on; of more, as many are sampled."""
_FOLDS = 3
_LEAST_ROWS = 30
_STEPS = 600
# A setting so much worse on the first part is tried on no other.
_HOPELESS = 1.05


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model of a table is made and trained."""

    bins: bool = True  # Numbers are also cut into bins
    weight_decay: float = 1.0  # Weight decay of the dense parameters
    steps: int = _STEPS  # Steps of a run, at least; one pass is never cut


@dataclass(frozen=True, kw_only=True)
class ScoredSetting:
    """A setting and the mean of its losses on rows left out; of one part alone if hopeless."""

    setting: Setting
    loss: float


def validation_splits(
    strata: NDArray[np.int64], fraction: float, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split rows into those that are learned and those left out, alike in their strata."""
    rows = len(strata)
    if rows < _LEAST_ROWS:
        return []
    order = np.random.Generator(np.random.Philox(seed)).permutation(rows)[:MOST_ROWS]
    # Rows in turn, stratum by stratum: each part gets its share of each.
    order = order[np.argsort(strata[order], kind="stable")]
    count = _FOLDS if rows <= FEW_ROWS else max(2, round(1 / fraction))
    turns = range(_FOLDS if rows <= FEW_ROWS else 1)
    fold = np.arange(len(order)) % count
    return [(np.sort(order[fold != turn]), np.sort(order[fold == turn])) for turn in turns]


def search(
    judge: Callable[[Setting, int], float], parts: int, *, bins: bool
) -> tuple[Setting, list[ScoredSetting]]:
    """Try settings from a plain one on, each beside the best before it."""
    tried: list[ScoredSetting] = []
    best: list[float] = []

    def better(setting: Setting) -> bool:
        nonlocal best
        losses: list[float] = []
        for fold in range(parts):
            losses.append(judge(setting, fold))
            if best and losses[0] > _HOPELESS * best[0]:
                break
        tried.append(ScoredSetting(setting=setting, loss=float(np.mean(losses))))
        improved = not best or (len(losses) == parts and np.mean(losses) < np.mean(best))
        best = losses if improved else best
        return bool(improved)

    setting = Setting(bins=False)
    better(setting)
    if bins and better(replace(setting, bins=True)):
        setting = replace(setting, bins=True)
    for decay in (3.0, 0.3):
        if better(replace(setting, weight_decay=decay)):
            setting = replace(setting, weight_decay=decay)
            break
    if parts == 1 and better(replace(setting, steps=3 * setting.steps)):
        setting = replace(setting, steps=3 * setting.steps)
    return setting, tried
