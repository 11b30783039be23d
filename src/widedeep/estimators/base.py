"""What both scikit-learn estimators share: options, the search of settings, training."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.callbacks import Callback
from widedeep.data.fit import fit_schema
from widedeep.data.infer import infer_spec
from widedeep.errors import (
    ConfigError,
    DataError,
    FeatureError,
    WideDeepError,
    install_hint,
    show_value,
)
from widedeep.estimators.estimator_data import (
    LABEL,
    WEIGHT,
    Examples,
    as_table,
    has_names,
    infer_features,
)
from widedeep.estimators.settings import (
    MOST_ROWS,
    ScoredSetting,
    Setting,
    search,
    validation_splits,
)
from widedeep.estimators.value_errors import value_errors
from widedeep.features import Feature, FeatureSpec
from widedeep.models.ensemble import Ensemble
from widedeep.models.heads import Head
from widedeep.optim import Adam, OptimizerChoice, describe_optimizer, make_optimizer
from widedeep.schema import Schema
from widedeep.training.config import Quality, TrainConfig
from widedeep.training.defaults import BEST_MEMBERS, auto_batch_size
from widedeep.training.early_stopping import EarlyStopping

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer


try:
    from sklearn.base import BaseEstimator as BaseEstimator
    from sklearn.base import ClassifierMixin as ClassifierMixin
    from sklearn.base import RegressorMixin as RegressorMixin
    from sklearn.utils.validation import check_is_fitted, check_random_state

    _HAS_SKLEARN = True
except ImportError:  # the names are there, so that help() and import * work; see __init__
    _HAS_SKLEARN = False

    class BaseEstimator:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""

    class ClassifierMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""

    class RegressorMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""


ImportanceType = Literal["permutation", "gain"]

_DEFAULT_OPTIMIZERS = {"wide": "ftrl", "deep": "adagrad"}
_IMPORTANCE_ROWS = 2000
_EVALUATIONS = 20  # evaluations of an eval_set during a training
_PATIENCE = 3


@dataclass(eq=False, repr=False)
class WideDeepEstimator(BaseEstimator):  # type: ignore[misc]
    """The base of both estimators; see :class:`WideDeepClassifier` for the arguments."""

    features: Sequence[object] | None = None
    _: KW_ONLY
    quality: Quality = "good"
    hidden_units: Sequence[int] = (128, 64)
    embedding_dim: int | Literal["auto"] = 8
    dropout: float = 0.0
    epochs: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    validation_fraction: float = 0.1
    early_stopping: bool = True
    wide: OptimizerChoice | None = None
    deep: OptimizerChoice | None = None
    random_state: int | np.random.RandomState | None = 0
    threads: int | None = None
    verbose: bool = False
    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None
    importance_type: ImportanceType = "permutation"
    trainer_: Trainer = field(init=False)
    n_features_in_: int = field(init=False)

    def __post_init__(self) -> None:
        if not _HAS_SKLEARN:
            raise WideDeepError(
                "WideDeepClassifier and WideDeepRegressor need scikit-learn: "
                + install_hint("scikit-learn", "sklearn")
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True  # a missing number is a value of its own
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; ``deep``: those of the optimizers too, as ``wide__lr``."""
        params: dict[str, Any] = super().get_params(deep)
        for group in _DEFAULT_OPTIMIZERS if deep else ():
            for name, value in self._optimizer_table(group).items():
                params[f"{group}__{name}"] = value
        return params

    @value_errors
    def set_params(self, **params: Any) -> WideDeepEstimator:
        """Set parameters; ``wide__lr=0.2`` changes one of an optimizer, by default FTRL's.

        Raises:
            ConfigError: If an optimizer has no such parameter, or a value is outside its range.
        """
        changes: dict[str, dict[str, Any]] = {}
        for key in list(params):
            group, nested, name = key.partition("__")
            if nested and group in _DEFAULT_OPTIMIZERS:
                changes.setdefault(group, {})[name] = params.pop(key)
        super().set_params(**params)
        for group, values in changes.items():
            table = self._optimizer_table(group) or {"optimizer": _DEFAULT_OPTIMIZERS[group]}
            if values.get("optimizer", table["optimizer"]) != table["optimizer"]:
                table = {}  # another optimizer has parameters of its own
            setattr(self, group, make_optimizer({**table, **values}))
        return self

    def _optimizer_table(self, group: str) -> dict[str, Any]:
        """Return an optimizer's name and parameters; {} if none is given, or no valid one."""
        choice = getattr(self, group)
        with contextlib.suppress(ConfigError):
            optimizer = make_optimizer(choice) if isinstance(choice, str | Mapping) else choice
            return {} if choice is None else describe_optimizer(optimizer)
        return {}

    @value_errors
    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        eval_set: object = None,
        callbacks: Sequence[Callback] = (),
    ) -> Self:
        """Fit on a table ``X`` of shape (rows, columns) and labels ``y`` of shape (rows,).

        Args:
            X: A DataFrame, an Arrow table or an array; arrays' columns are called ``x0``, ``x1``.
            y: The class of each row; of a regression its value.
            sample_weight: Weight of each row, at least 0. Of up to 5,000 rows a whole weight is
                that many rows.
            eval_set: A pair ``(X, y)``, or a list of one pair: settings are chosen on it and not on
                rows left out, and training stops early by it unless ``early_stopping=False``.
            callbacks: As for :class:`widedeep.Trainer`; told of the final training.

        Raises:
            DataError: If ``y`` holds one class only, a missing value or one that is not finite, or
                lengths differ.
        """
        examples, head = self._examples(X, y, sample_weight)
        self._fit(examples, head, self._valid(eval_set), callbacks)
        return self

    def _examples(self, X: object, y: object, sample_weight: object) -> tuple[Examples, Head]:
        """Return the rows to learn with their labels as numbers, and the head that learns them."""
        raise NotImplementedError

    def _labels(self, y: object) -> NDArray[Any]:
        """Return labels as :meth:`_examples` did, by what it learned of them."""
        raise NotImplementedError

    def _fit(
        self, examples: Examples, head: Head, valid: pa.Table | None, callbacks: Sequence[Callback]
    ) -> None:
        table = examples.table
        names = [name for name in table.column_names if name not in (LABEL, WEIGHT)]
        if valid is not None and examples.weighted:
            valid = valid.append_column(WEIGHT, pa.array(np.ones(valid.num_rows)))
        self._check_options()
        seed = self._seed()
        spec = self._infer(table, head).replace(weight=WEIGHT if examples.weighted else None)
        self.candidates_: list[ScoredSetting] = []
        setting = Setting()
        if self.early_stopping and self.epochs == "auto" and self.quality != "fast":
            with _rows_as_given(spec, examples):
                setting = self._best_setting(spec, examples, head, valid, seed)
        self.spec_ = self._with_setting(spec, setting)
        deep = None
        if self.quality == "best" and self.hidden_units and self.spec_.deep_names:
            of = {"name": "mlp", "hidden_units": self.hidden_units, "dropout": self.dropout}
            deep = Ensemble(of=of, members=BEST_MEMBERS, training="apart")
        with _rows_as_given(self.spec_, examples):
            self.trainer_ = self._train(
                *(fit_schema(self.spec_, table, seed=seed), table, head, setting, seed),
                progress=self.verbose,
                deep=deep,
                valid=valid,
                callbacks=callbacks,
            )
        self.model_ = self.trainer_.model
        self.schema_ = self.model_.schema
        self.history_ = self.trainer_.history
        self.n_iter_ = self.trainer_.position.epoch
        self.n_features_in_ = len(names)
        self.feature_names_in_ = np.array(names, dtype=object)
        rows = table if valid is None else valid
        picks = np.random.Generator(np.random.Philox(seed)).permutation(rows.num_rows)
        self._importance_rows = rows.take(picks[:_IMPORTANCE_ROWS])
        self._importances: dict[str, NDArray[np.float64]] = {}

    def _check_options(self) -> None:
        if self.quality not in get_args(Quality):
            raise ConfigError(
                f"got quality={show_value(self.quality)}, expected 'fast', 'good' or 'best'"
            )
        if self.importance_type not in get_args(ImportanceType):
            raise ConfigError(
                f"got importance_type={show_value(self.importance_type)}, expected 'permutation' "
                "or 'gain'"
            )
        fraction = self.validation_fraction
        if not isinstance(fraction, float) or not 0 < fraction <= 0.5:
            raise ConfigError(
                f"got validation_fraction={show_value(fraction)}, expected 0 < fraction <= 0.5"
            )

    def _infer(self, table: pa.Table, head: Head) -> FeatureSpec:
        """Return the features asked for, or those that the table seems to hold."""
        if self.features is not None:
            return FeatureSpec(features=self.features, label=LABEL)
        table = table.select([name for name in table.column_names if name != WEIGHT])
        columns = table.drop_columns([LABEL])
        try:
            # With and without bins is tried below, whatever the number of rows.
            self.inferred_ = infer_spec(table, label=LABEL, head=head.kind, bins=True)  # type: ignore[arg-type]
        except ConfigError:  # no column says anything that a model could learn
            return FeatureSpec(features=infer_features(columns), label=LABEL)
        unread = [c for c in self.inferred_.columns if c.is_unread]
        if unread:
            reasons = "; ".join(f"{column.name}: {column.reason}" for column in unread)
            warnings.warn(f"X: columns are left out: {reasons}", stacklevel=4)
        spec = self.inferred_.spec
        # In a table of features alone no column weighs rows or names a query.
        others = [name for name in (*spec.weights, spec.group) if name is not None]
        features = [*spec.features, *infer_features(columns.select(others))]
        return FeatureSpec(features=features, label=LABEL)

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
        examples: Examples,
        head: Head,
        valid: pa.Table | None,
        seed: int,
    ) -> Setting:
        """Return the setting that predicts the eval_set best, or rows left out."""
        table, labels = examples.table, examples.labels
        parts: list[tuple[pa.Table, pa.Table]]
        if valid is not None:
            rows = np.random.Generator(np.random.Philox(seed)).permutation(table.num_rows)
            parts = [(table.take(np.sort(rows[:MOST_ROWS])), valid.slice(0, MOST_ROWS))]
        else:
            strata = np.zeros(len(labels), np.int64) if head.kind == "regression" else labels
            splits = validation_splits(strata, self.validation_fraction, seed)
            parts = [(table.take(learned), table.take(left_out)) for learned, left_out in splits]
        if not parts:
            return Setting()
        metric = "rmse" if head.kind == "regression" else "log_loss"

        @functools.cache
        def schema_of(bins: bool, fold: int) -> Schema:
            features = self._with_setting(spec, Setting(bins=bins))
            return fit_schema(features, parts[fold][0], seed=seed)

        def judge(setting: Setting, fold: int) -> float:
            learned, left_out = parts[fold]
            trainer = self._train(schema_of(setting.bins, fold), learned, head, setting, seed)
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
        schema: Schema,
        table: pa.Table,
        head: Head,
        setting: Setting,
        seed: int,
        *,
        progress: bool = False,
        deep: Ensemble | None = None,
        valid: pa.Table | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trainer:
        from widedeep.models.wide_deep import WideDeep
        from widedeep.training.trainer import Trainer

        model = WideDeep(
            schema,
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
        steps_per_epoch = math.ceil(rows / batch_size)
        if epochs == "auto":
            epochs = max(1, round(setting.steps / steps_per_epoch))
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
            callbacks=callbacks,
            progress=progress,
        )
        if valid is None:
            trainer.fit(table)
        else:
            every = max(1, epochs * steps_per_epoch // _EVALUATIONS)
            stopping = EarlyStopping(patience=_PATIENCE) if self.early_stopping else None
            trainer.fit(table, valid=valid, eval_every=every, early_stopping=stopping)
        return trainer

    def _seed(self) -> int:
        """The seed of a number, a generator, or chance, as scikit-learn reads ``random_state``."""
        state = self.random_state
        if state is None or isinstance(state, np.random.RandomState):
            return int(check_random_state(state).randint(2**31 - 1))
        return state

    def _predictions(self, X: object) -> NDArray[np.float64]:
        check_is_fitted(self, "trainer_")
        table = as_table(X)
        if not has_names(X) and table.num_columns != self.n_features_in_:
            raise DataError(
                f"X has {table.num_columns} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input: an array's columns have no names, "
                "so they must be those of fit, in its order"
            )
        predictions = self.trainer_.predict(table)
        assert isinstance(predictions, np.ndarray)
        return predictions

    def _valid(self, eval_set: object) -> pa.Table | None:
        """Return the rows of an eval_set with their labels."""
        if eval_set is None:
            return None
        pair = eval_set[0] if isinstance(eval_set, list) and len(eval_set) == 1 else eval_set
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise DataError(
                f"eval_set: got {show_value(type(eval_set).__name__)}, expected one pair (X, y)"
            )
        table, labels = as_table(pair[0]), self._labels(pair[1])
        if not len(labels) or len(labels) != table.num_rows:
            raise DataError(
                f"eval_set: got {table.num_rows} rows in X and {len(labels)} in y; expected "
                "equally many, at least one"
            )
        return table.append_column(LABEL, pa.array(labels))

    @property
    @value_errors
    def feature_importances_(self) -> NDArray[np.float64]:
        """How much each column matters, (columns,), as ``feature_names_in_``; the sum is 1.

        ``importance_type="permutation"``: how much worse the metric is when the column is shuffled
        (:func:`widedeep.evaluation.importance.permutation_importance`); ``"gain"``: the variance
        of what its wide weights add to the logits. Of 2,000 rows of ``eval_set``, or else of the
        training data. 0 where a column helps nothing.
        """
        check_is_fitted(self, "trainer_")
        if self.importance_type not in self._importances:
            from widedeep.evaluation.importance import permutation_importance, wide_gain

            with tempfile.TemporaryDirectory() as folder:
                bundle = self.trainer_.export(Path(folder) / "bundle", warmup=False)
                data, threads = self._importance_rows, self.trainer_.threads
                if self.importance_type == "gain":
                    (by_column,) = wide_gain(bundle, data, threads=threads).values()
                else:
                    (head,) = permutation_importance(bundle, data, threads=threads).values()
                    by_column = {name: c.worse for c in head.columns for name in c.columns}
            values = [max(by_column.get(name, 0.0), 0.0) for name in self.feature_names_in_]
            self._importances[self.importance_type] = np.array(values) / (sum(values) or 1.0)
        return self._importances[self.importance_type]


@contextlib.contextmanager
def _rows_as_given(spec: FeatureSpec, examples: Examples) -> Iterator[None]:
    """Let an error of a value name its row as X has it: examples are sorted and split."""
    try:
        yield
    except (DataError, FeatureError):
        fit_schema(spec.replace(label=None, weight=None), examples.features)
        raise
