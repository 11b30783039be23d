"""Drift of inputs and scores: population stability index, nulls, new and stuck values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.features import Feature, NumberInput
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.schema import Schema

Floats = NDArray[np.float64]

_TOP_VALUES = 20
_SCORE_BUCKETS = 10
_MIN_FRACTION = 1e-4
_MIN_ROWS = 200
_STUCK_NOW, _STUCK_IN_TRAINING = 0.99, 0.5


def psi(expected: Floats, observed: Floats) -> float:
    """Return the population stability index: Σ (o - e) log(o / e) of the fractions."""
    totals = float(expected.sum()), float(observed.sum())
    if not min(totals) > 0:
        return math.nan
    fractions = [
        np.maximum(counts / total, _MIN_FRACTION)
        for counts, total in zip((expected, observed), totals, strict=True)
    ]
    return float(((fractions[1] - fractions[0]) * np.log(fractions[1] / fractions[0])).sum())


def score_psi(serving_B: Floats, candidate_B: Floats) -> float:
    """Return the PSI of the candidate's scores over the deciles of the serving model's."""
    if not len(serving_B):
        return math.nan
    cuts = np.unique(np.quantile(serving_B, np.arange(1, _SCORE_BUCKETS) / _SCORE_BUCKETS))
    counts = [
        np.bincount(np.searchsorted(cuts, scores, side="right"), minlength=len(cuts) + 1)
        for scores in (serving_B, candidate_B)
    ]
    return psi(counts[0].astype(np.float64), counts[1].astype(np.float64))


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureDrift:
    """How far one feature has moved since training."""

    feature: str  # Name
    psi: float | None  # PSI of known values; None without counts of training
    missing_training: float  # Fraction of nulls in training
    missing_now: float  # Fraction of nulls now
    missing_psi: float  # PSI of null and not null
    # Fraction of values that training did not see: unknown categories, numbers outside the range;
    # None for features without known values
    new_values: float | None
    values: int  # Number of values compared
    moved_most: str | None  # Value or range whose fraction changed most
    # Reason why the values were not compared
    too_little: str | None = None
    # The value or range of nearly all of today's values and less than half of those of training
    stuck: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class DriftCounts:
    """Counts today's values of each feature, chunk by chunk, in the buckets of training."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._rows = 0
        self._unreadable: set[str] = set()
        self._nulls = dict.fromkeys(schema.columns, 0)
        sizes = [slot.size for slot in schema.slots]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._ids = np.zeros(int(self._starts[-1]), np.int64)
        self._inputs = {
            feature.name: feature.number_input
            for feature in schema.spec.all_features
            if feature.drift_form == "numbers" and feature.number_input is not None
        }
        # Features without a slot that an indicator counts: its dense columns, the rows of each
        slot_names = {slot.name for slot in schema.slots}
        self._counts = {
            feature.source_feature: (columns, np.zeros(columns.stop - columns.start, np.int64))
            for feature in schema.spec.all_features
            if feature.source_feature is not None and feature.source_feature not in slot_names
            for columns in [schema.dense_layout[feature.name]]
        }
        self._numbers = {
            (name, component): (cuts, trained, np.zeros(len(cuts) + 1, np.int64))
            for name, numbers in self._inputs.items()
            for component in range(numbers.size)
            for cuts, trained in [schema.numerics[name].profile_of(component)]
        }
        self._outside = dict.fromkeys(self._numbers, 0)

    def add(self, table: pa.Table, batch: Batch) -> None:
        """Count a chunk."""
        self._rows += table.num_rows
        for name in self._nulls:
            if name in table.column_names:
                self._nulls[name] += _nulls(table.column(name))
        slots = batch.n_slots
        if slots:
            slot_N = np.repeat(np.tile(self._starts[:-1], len(batch)), np.diff(batch.offsets_BF))
            self._ids += np.bincount(batch.ids_N + slot_N, minlength=len(self._ids))
        for columns, counts in self._counts.values():
            counts += np.count_nonzero(batch.dense_BK[:, columns], axis=0)
        for name, numbers in self._inputs.items():
            self._add_numbers(name, numbers, table.column(numbers.column))

    def _add_numbers(self, name: str, source: NumberInput, column: pa.ChunkedArray) -> None:
        numbers = _components(column, source.size)
        if numbers is None:
            self._unreadable.add(name)
        for component in range(source.size if numbers is not None else 0):
            assert numbers is not None
            cuts, _, counts = self._numbers[name, component]
            values = numbers[:, component]
            values = self._schema.columns[source.column].round(values[~np.isnan(values)])
            buckets = np.searchsorted(cuts, values, side="right")
            counts += np.bincount(buckets, minlength=len(counts))
            fit = self._schema.numerics[name]
            low, high = fit.minimum[component], fit.maximum[component]
            outside = int(np.count_nonzero((values < low) | (values > high)))
            self._outside[name, component] += outside

    def features(self) -> list[FeatureDrift]:
        """Return how far each feature has moved, those that moved most first."""
        drifts = [self._number(name, numbers) for name, numbers in self._inputs.items()]
        for index, slot in enumerate(self._schema.slots):
            feature = self._schema.spec.by_name[slot.name]
            if feature.drift_form == "values":
                ids = self._ids[self._starts[index] : self._starts[index + 1]]
                drifts.append(self._values(feature, ids))
        for name, (_, counts) in self._counts.items():
            feature = self._schema.spec.by_name[name]
            if feature.drift_form == "values":
                drifts.append(self._values(feature, self._counted_ids(feature, counts)))
        return sorted(drifts, key=lambda one: -max(one.psi or 0.0, one.missing_psi))

    def missing(self, column: str) -> float:
        """Return the fraction of today's rows in which a column is null."""
        return self._nulls[column] / max(1, self._rows)

    def new_crosses(self) -> dict[str, float]:
        """Return the fraction of combinations that training did not see, by learned cross."""
        fractions = {}
        for index, slot in enumerate(self._schema.slots):
            feature = self._schema.spec.by_name[slot.name]
            if feature.drift_form == "combinations":
                ids = self._ids[self._starts[index] : self._starts[index + 1]]
                fractions[slot.name] = int(ids[0]) / max(1, int(ids.sum()))
        return fractions

    def _missing(self, column: str) -> dict[str, Any]:
        training, now = self._schema.missing.get(column, 0.0), self.missing(column)
        fractions = [np.array([nulls, 1.0 - nulls]) for nulls in (training, now)]
        moved = psi(fractions[0], fractions[1]) if self._schema.rows else 0.0
        return {"missing_training": training, "missing_now": now, "missing_psi": moved}

    def _number(self, name: str, source: NumberInput) -> FeatureDrift:
        worst, moved_most, values, few, new, stuck = None, None, 0, None, None, None
        for component in range(source.size):
            cuts, training, now = self._numbers[name, component]
            values += int(now.sum())
            if training.sum() and now.sum() < _MIN_ROWS:
                few = _too_few(int(now.sum()))
            elif training.sum():
                index = psi(training.astype(np.float64), now.astype(np.float64))
                moved = _moved_most(training, now, partial(_range, cuts))
                if worst is None or index > worst:
                    worst, moved_most = index, moved
                new = max(new or 0.0, self._outside[name, component] / int(now.sum()))
                stuck = moved if _is_stuck(training, now) else stuck
        if name in self._unreadable:
            worst, moved_most = math.nan, "its column holds no plain numbers"
        return FeatureDrift(
            feature=name,
            psi=worst,
            new_values=new,
            values=values,
            moved_most=moved_most,
            too_little=few,
            stuck=stuck,
            **self._missing(source.column),
        )

    def _counted_ids(self, feature: Feature, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the counts of ids; of lists, where the unseen are not counted, without these."""
        column = feature.input_columns[0]
        nulls = self._nulls[column]
        is_list = self._schema.columns[column].nested
        unseen = 0 if is_list else self._rows - nulls - int(counts.sum())
        return np.concatenate([[max(0, unseen), nulls], counts])

    def _values(self, feature: Feature, ids: NDArray[np.int64]) -> FeatureDrift:
        moved, moved_most, new, few, stuck = None, None, None, None, None
        if feature.vocabulary_key is not None:
            vocabulary = self._schema.vocabularies[feature.vocabulary_key]
            first = len(ids) - len(vocabulary)  # OOV buckets stand before the known values
            counts, unseen = ids[first:], int(ids[0] + ids[FIRST_KNOWN_ID:first].sum())
            new = unseen / max(1, unseen + int(counts.sum()))
            training = np.asarray(vocabulary.counts, np.float64)
            has_counts = bool(training.sum()) and not feature.shares_table
            # Data of new values alone are reported by ``new_values``.
            if has_counts and counts.sum() < _MIN_ROWS and unseen < _MIN_ROWS:
                few = _too_few(int(counts.sum()))
            elif has_counts and counts.sum() >= _MIN_ROWS:
                top = np.argsort(-training, kind="stable")[:_TOP_VALUES]
                before, now = (_top_and_others(values, top) for values in (training, counts))
                moved = psi(before, now)
                moved_most = _moved_most(
                    before, now, lambda bucket: self._value(feature, top, bucket)
                )
                stuck = moved_most if _is_stuck(before, now) else None
        return FeatureDrift(
            feature=feature.name,
            psi=moved,
            new_values=new,
            values=int(ids.sum() - ids[1]),
            moved_most=moved_most,
            too_little=few,
            stuck=stuck,
            **self._missing(feature.input_columns[0]),
        )

    def _value(self, feature: Feature, top: NDArray[np.int64], bucket: int) -> str:
        if bucket == len(top):
            return "the rarer values"
        return str(self._schema.vocabularies[feature.name].value(int(top[bucket])))


def _too_few(values: int) -> str:
    return f"{values:,} values, fewer than {_MIN_ROWS}"


def _nulls(column: pa.ChunkedArray) -> int:
    nulls = int(column.null_count)
    if pa.types.is_floating(column.type):
        nulls += int(pc.sum(pc.is_nan(column)).as_py() or 0)
    return nulls


def _components(column: pa.ChunkedArray, size: int) -> Floats | None:
    """Return numbers as (rows, size), NaN for nulls; None where they are no plain numbers."""
    if pa.types.is_nested(column.type):
        column = pc.list_flatten(column)
    try:
        numbers = pc.cast(column, pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    flat = numbers.to_numpy()
    return flat.reshape(-1, size) if len(flat) % size == 0 else None


def _top_and_others(counts: NDArray[Any], top: NDArray[np.int64]) -> Floats:
    frequent = counts[top].astype(np.float64)
    return np.append(frequent, counts.sum() - frequent.sum())


def _fractions(training: NDArray[Any], now: NDArray[Any]) -> tuple[Floats, Floats]:
    first, second = (np.asarray(c, np.float64) / max(1.0, float(c.sum())) for c in (training, now))
    return first, second


def _is_stuck(training: NDArray[Any], now: NDArray[Any]) -> bool:
    """Whether a bucket with a minority of the values in training has nearly all of them now."""
    before, after = _fractions(training, now)
    return bool(((after >= _STUCK_NOW) & (before < _STUCK_IN_TRAINING)).any())


def _moved_most(training: NDArray[Any], now: NDArray[Any], name: Callable[[int], str]) -> str:
    before, after = _fractions(training, now)
    bucket = int(np.abs(after - before).argmax())
    return f"{name(bucket)}: {before[bucket]:.1%} in training, {after[bucket]:.1%} now"


def _range(cuts: Floats, bucket: int) -> str:
    if not len(cuts):
        return "any number"
    if bucket == 0:
        return f"below {cuts[0]:g}"
    if bucket == len(cuts):
        return f"from {cuts[-1]:g}"
    return f"{cuts[bucket - 1]:g} to {cuts[bucket]:g}"
