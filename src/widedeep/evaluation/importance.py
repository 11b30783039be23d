"""Permutation importance: how much worse a model scores when a column is shuffled among rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.profile import sample_rows
from widedeep.data.sources import Data
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.compare import log_losses, request_losses
from widedeep.evaluation.statistics import placements
from widedeep.features.spec import all_columns

Floats = NDArray[np.float64]

IMPORTANCE_ROWS = 2000
_MOST_SCORES = 500_000
"""Rows that are scored for all columns together: of many columns the sample is smaller."""
_SMALLEST_PROBABILITY = 1e-15
_HALF_WIDTH = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnImportance:
    """How much worse a head's metric is when columns are shuffled among rows."""

    # The columns, shuffled together: one, or one with the columns of its weights and of parallel
    # sequences
    columns: tuple[str, ...]
    features: tuple[str, ...]  # The features that read them, crosses too
    worse: float  # How much worse the metric is, the mean of the repeats; below 0 it is better
    low: float  # Lower end of its 95 % interval
    high: float  # Upper end


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadImportance:
    """What each column is worth to a head."""

    # ``"auc"`` of a binary head whose labels are of both classes, ``"rmse"`` of a regression, else
    # ``"log_loss"``
    metric: str
    value: float  # The metric of the sample as it is
    rows: int  # Rows of the sample with a label and a weight above 0
    repeats: int  # How often each column was shuffled
    columns: tuple[ColumnImportance, ...]  # One entry per column, the most important first


def permutation_importance(
    bundle: Bundle,
    data: Data,
    *,
    rows: int = IMPORTANCE_ROWS,
    repeats: int = 5,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, HeadImportance]:
    """Return how much worse each head is when a column is shuffled among the rows of a sample.

    Breiman 2001, section 10, with the model as it is. A column is shuffled for all features that
    read it at once; what columns say together, such as two copies of one, none of them shows alone.
    The interval is that of the paired difference by the rows' influence on the metric, whole groups
    where the schema has a group; it holds the error of the sample and of the shuffling.

    Args:
        bundle: The model.
        data: Labelled rows that it was not trained on.
        rows: Most rows of the sample; at most 500,000 rows are scored in all.
        repeats: How often each column is shuffled.
        seed: Seed of the shuffling; the result depends on nothing else that is drawn.
        threads: Threads to score with; the result does not depend on it.

    Returns:
        By head.

    Raises:
        DataError: If there are no rows, no row has a label, or a score is not finite.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education", "gender"))
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.fit("train.parquet")
        >>> importance = permutation_importance(trainer.export("bundle"), "test.parquet")[""]
        >>> importance.metric, importance.columns[0].columns
        ('auc', ('education',))
    """
    for option, value in (("rows", rows), ("repeats", repeats)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"got {option}={value!r}, expected an integer of at least 1")
    transform = Transform(bundle.schema, threads=threads)
    columns = _shuffled_together(bundle, transform.columns(targets=True))
    table = _sample(bundle, data, transform, min(rows, _MOST_SCORES // (repeats * len(columns))))
    scorer = _SampleScorer(bundle, transform, table, threads)
    before = scorer.influences(table)
    worse: dict[str, list[ColumnImportance]] = {head: [] for head in before}
    for index, names in enumerate(columns):
        after = [
            scorer.influences(shuffled)
            for shuffled in _shuffles(table, names, repeats, [seed, index])
        ]
        for head, influence in before.items():
            repeated = [one[head] for one in after]
            worse[head].append(_importance(bundle, names, influence, repeated))
    return {
        head: HeadImportance(
            metric=influence.metric,
            value=influence.value,
            rows=influence.rows,
            repeats=repeats,
            columns=tuple(sorted(worse[head], key=lambda one: -one.worse)),
        )
        for head, influence in before.items()
    }


def wide_gain(
    bundle: Bundle, data: Data, *, rows: int = IMPORTANCE_ROWS, threads: int = 1
) -> dict[str, dict[str, float]]:
    """Return how much the wide weights of each column move the logits of a sample of rows.

    What a feature's wide weights add to a logit has a variance over the rows; it is added up over
    a head's logits, and shared equally by the columns that the feature reads.

    Args:
        bundle: The model.
        data: Rows, labelled or not.
        rows: Most rows of the sample.
        threads: Threads to encode with.

    Returns:
        By head and column, in logits squared, the largest first; empty without wide features.

    Raises:
        DataError: If there are no rows, or they cannot be read.
    """
    transform = Transform(bundle.schema, threads=threads)
    sample = sample_rows(
        data,
        rows=rows,
        columns=transform.columns(targets=False),
        column_types=bundle.schema.input_types(),
    )
    batch = transform(sample.table.combine_chunks(), targets=False)
    spec, model = bundle.schema.spec, bundle.model
    gains: dict[str, Counter[str]] = {head.name: Counter() for head in model.heads}
    for index, slot in enumerate(bundle.schema.slots):
        if slot.name not in model.wide:
            continue
        cells = batch.cells(index)
        rows_N = np.repeat(np.arange(len(batch)), np.diff(cells.offsets))
        values_N = np.ones(len(rows_N)) if cells.values_N is None else cells.values_N
        divisor_B = np.ones(len(batch))
        combiner = slot.wide_combiner(model.wide_combiner)
        if combiner != "sum":
            power = 2 if combiner == "sqrtn" else 1
            divisor_B[:] = np.bincount(rows_N, values_N**power, len(batch)) ** (1 / power)
        added_BC = np.zeros((len(batch), len(bundle.weights["bias"])))
        np.add.at(
            added_BC, rows_N, bundle.weights[f"wide/{slot.name}"][cells.ids_N] * values_N[:, None]
        )
        variance_C = (added_BC / np.where(divisor_B, divisor_B, 1.0)[:, None]).var(axis=0)
        columns = all_columns(spec, slot.name)
        for head in model.heads:
            gain = float(variance_C[head.start : head.stop].sum())
            gains[head.name].update(dict.fromkeys(columns, gain / len(columns)))
    return {head: dict(counter.most_common()) for head, counter in gains.items()}


def _shuffled_together(bundle: Bundle, read: Collection[str]) -> list[tuple[str, ...]]:
    """Return the columns that the model reads, each with its weights and parallel sequences."""
    spec = bundle.schema.spec
    # Those of features in neither part are not read
    together: dict[str, tuple[str, ...]] = {
        name: (name,) for name in spec.columns() if name in read
    }
    for feature in spec.all_features:
        main, weights = feature.main_column, feature.weight_column
        if main in together and weights is not None and weights in together:
            together[main] = (*together[main], weights)
            del together[weights]
    for feature in spec.all_features:
        if feature.parallel_to is not None:
            main, first = feature.main_column, spec.by_name[feature.parallel_to].main_column
            if first in together and main in together and main != first:
                together[first] = (*together[first], *together.pop(main))
    return list(together.values())


def _sample(bundle: Bundle, data: Data, transform: Transform, rows: int) -> pa.Table:
    if not bundle.schema.spec.labels:
        raise DataError(f"{bundle.path}: its schema has no label; it cannot be judged")
    columns = transform.columns(targets=True)
    types = bundle.schema.input_types()
    sample = sample_rows(data, rows=max(rows, 1), columns=columns, column_types=types)
    return sample.table.combine_chunks()


def _shuffles(
    table: pa.Table, names: Sequence[str], repeats: int, seed: Sequence[int]
) -> Iterator[pa.Table]:
    for repeat in range(repeats):
        order = np.random.default_rng([*seed, repeat]).permutation(table.num_rows)
        shuffled = table
        for name in names:
            column = table.column(name).take(pa.array(order))
            shuffled = shuffled.set_column(table.column_names.index(name), name, column)
        yield shuffled


@dataclass(frozen=True, slots=True)
class _Influence:
    """A metric that is better when larger, or the negative of one that is worse, on a sample."""

    metric: str
    value: float  # The metric as it is
    merit: float  # The value, or its negative: larger is better
    by_unit: Floats  # (units,) what each adds to the error of the merit, to first order
    rows: int


class _SampleScorer:
    """Scores a sample whose labels, weights and units stay as they are."""

    def __init__(self, bundle: Bundle, transform: Transform, table: pa.Table, threads: int) -> None:
        self.bundle, self.transform, self.threads = bundle, transform, threads
        batch = transform(table)
        self.group_B = batch.group_B
        self.targets = {
            head.name: self._targets(bundle, head, batch) for head in bundle.model.heads
        }
        units = np.arange(len(batch)) if batch.group_B is None else batch.group_B
        _, self.units_B = np.unique(units, return_inverse=True)
        if not all((weight_B > 0).any() for _, weight_B in self.targets.values()):
            raise DataError("no row of the sample has a label and a weight above 0")

    @staticmethod
    def _targets(bundle: Bundle, head: BundleHead, batch: Batch) -> tuple[Floats, Floats]:
        """Return a head's labels and the weights of the rows, 0 of both without a label."""
        labels, weight_B = head.targets(bundle.schema, batch)
        observed_B = np.isfinite(labels).reshape(len(labels), -1).all(axis=1)
        weight_B = np.ones(len(labels), np.float32) if weight_B is None else weight_B
        return np.nan_to_num(labels).astype(np.float64), np.where(observed_B, weight_B, 0.0)

    def influences(self, table: pa.Table) -> dict[str, _Influence]:
        """Return each head's metric and each unit's influence on it."""
        batch = self.transform(table)
        scores = self.bundle.scores_by_head(self.bundle.logits(batch, threads=self.threads))
        return {
            head.name: self._influence(head, scores[head.name]) for head in self.bundle.model.heads
        }

    def _influence(self, head: BundleHead, scores: Floats) -> _Influence:
        labels_B, weight_B = self.targets[head.name]
        if not np.isfinite(scores).all():
            raise DataError("a score of the sample is NaN or infinite")
        is_class = head.kind == "binary" and bool(np.isin(labels_B[weight_B > 0], (0, 1)).all())
        positive_B = weight_B * labels_B if is_class else weight_B
        negative_B = weight_B - positive_B
        if is_class and positive_B.sum() > 0 and negative_B.sum() > 0:
            metric = "auc"
            value, influence_B = _auc(scores, positive_B, negative_B)
            merit = value
        else:
            loss_B, metric = _losses(head, scores, labels_B, self.group_B)
            value, influence_B = _mean(loss_B, weight_B)
            if metric == "rmse":
                value = math.sqrt(value)
                influence_B = influence_B / (2.0 * value) if value > 0 else 0.0 * influence_B
            merit, influence_B = -value, -influence_B
        by_unit = np.bincount(self.units_B, influence_B).astype(np.float64)
        return _Influence(metric, value, merit, by_unit, int((weight_B > 0).sum()))


def _auc(scores_B: Floats, positive_B: Floats, negative_B: Floats) -> tuple[float, Floats]:
    """Return the AUC, and each row's influence on it (DeLong et al. 1988)."""
    below_B, above_B = placements(
        scores_B, positive_B, negative_B, np.zeros(len(scores_B), np.int64)
    )
    positive, negative = positive_B.sum(), negative_B.sum()
    auc = float((below_B * positive_B).sum() / positive)
    influence_B = (below_B - auc) * positive_B / positive + (above_B - auc) * negative_B / negative
    return auc, influence_B


def _losses(
    head: BundleHead, scores: Floats, labels_B: Floats, group_B: NDArray[np.int64] | None
) -> tuple[Floats, str]:
    if head.kind == "ranking" and group_B is not None:
        return request_losses(scores, labels_B, group_B), "log_loss"
    if head.kind == "multilabel":
        return log_losses(labels_B, scores).mean(axis=1), "log_loss"
    if head.kind == "regression":
        return (scores - labels_B) ** 2, "rmse"
    if head.kind == "multiclass":
        own_B = scores[np.arange(len(labels_B)), labels_B.astype(np.int64)]
        return -np.log(np.maximum(own_B, _SMALLEST_PROBABILITY)), "log_loss"
    return log_losses(labels_B, scores), "log_loss"


def _mean(values_B: Floats, weight_B: Floats) -> tuple[float, Floats]:
    """Return the weighted mean, and each row's influence on it."""
    total = weight_B.sum()
    mean = float((values_B * weight_B).sum() / total)
    return mean, (values_B - mean) * weight_B / total


def _importance(
    bundle: Bundle, columns: tuple[str, ...], before: _Influence, after: Sequence[_Influence]
) -> ColumnImportance:
    worse = before.merit - float(np.mean([one.merit for one in after]))
    difference = before.by_unit - np.mean([one.by_unit for one in after], axis=0)  # (units,)
    error = _HALF_WIDTH * math.sqrt(float((difference**2).sum()))
    spec = bundle.schema.spec
    features = [f.name for f in spec.all_features if all_columns(spec, f.name) & {*columns}]
    return ColumnImportance(
        columns=columns,
        features=tuple(features),
        worse=worse,
        low=worse - error,
        high=worse + error,
    )
