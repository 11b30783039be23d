"""Has the input moved since training: population stability index, nulls, new values, scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.features import Feature, NumberInput
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.gate.config import GateConfig
from widedeep.schema import Schema

Floats = NDArray[np.float64]

_TOP_VALUES = 20
_SCORE_BUCKETS = 10
_LEAST_SHARE = 1e-4
_FEWEST_ROWS = 200
_STUCK_NOW, _STUCK_THEN = 0.99, 0.5


def psi(expected: Floats, found: Floats) -> float:
    """Return the population stability index: sum of (found - expected) log(found / expected)."""
    totals = float(expected.sum()), float(found.sum())
    if not min(totals) > 0:
        return math.nan
    shares = [
        np.maximum(counts / total, _LEAST_SHARE)
        for counts, total in zip((expected, found), totals, strict=True)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def score_psi(serving_B: Floats, candidate_B: Floats) -> float:
    """Return the index of the candidate's scores over the tenths of those in service."""
    if not len(serving_B):
        return math.nan
    cuts = np.unique(np.quantile(serving_B, np.arange(1, _SCORE_BUCKETS) / _SCORE_BUCKETS))
    both = [
        np.bincount(np.searchsorted(cuts, scores, side="right"), minlength=len(cuts) + 1)
        for scores in (serving_B, candidate_B)
    ]
    return psi(both[0].astype(np.float64), both[1].astype(np.float64))


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureDrift:
    """How far one feature has moved since training."""

    feature: str  # Its name
    psi: float | None  # Of its values, nulls and new ones aside; None where training kept no counts
    missing_training: float  # Share of nulls then
    missing_now: float  # Share of nulls now
    missing_psi: float  # Of null or not
    # Share of today's values that training did not see: categories that it did not know, numbers
    # outside of its range; None where it knew no value
    new_values: float | None
    values: int  # How many values were compared
    moved_most: str | None  # The value or range whose share changed most, with both shares
    # Why the values were not compared though training kept their counts
    too_little: str | None = None
    # The one value or range that holds nearly all of today's values and held less than half of
    # those of training, with both shares
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
        for name, numbers in self._inputs.items():
            self._add_numbers(name, numbers, table.column(numbers.column))

    def _add_numbers(self, name: str, source: NumberInput, column: pa.ChunkedArray) -> None:
        numbers = _components(column, source.size)
        if numbers is None:
            self._unreadable.add(name)
        for component in range(source.size if numbers is not None else 0):
            assert numbers is not None
            cuts, _, counts = self._numbers[name, component]
            known = numbers[:, component]
            known = self._schema.columns[source.column].round(known[~np.isnan(known)])
            found = np.searchsorted(cuts, known, side="right")
            counts += np.bincount(found, minlength=len(counts))
            fit = self._schema.numerics[name]
            low, high = fit.minimum[component], fit.maximum[component]
            outside = int(np.count_nonzero((known < low) | (known > high)))
            self._outside[name, component] += outside

    def features(self) -> list[FeatureDrift]:
        """Return how far each feature has moved, those that moved most first."""
        found = [self._number(name, numbers) for name, numbers in self._inputs.items()]
        for index, slot in enumerate(self._schema.slots):
            feature = self._schema.spec.by_name[slot.name]
            if feature.drift_form == "values":
                found.append(self._values(feature, index))
        return sorted(found, key=lambda one: -max(one.psi or 0.0, one.missing_psi))

    def missing(self, column: str) -> float:
        """Return the share of today's rows in which a column is null."""
        return self._nulls[column] / max(1, self._rows)

    def new_crosses(self) -> dict[str, float]:
        """Return by learned cross what share of today's ones training did not see."""
        found = {}
        for index, slot in enumerate(self._schema.slots):
            feature = self._schema.spec.by_name[slot.name]
            if feature.drift_form == "combinations":
                ids = self._ids[self._starts[index] : self._starts[index + 1]]
                found[slot.name] = int(ids[0]) / max(1, int(ids.sum()))
        return found

    def _missing(self, column: str) -> dict[str, Any]:
        then, now = self._schema.missing.get(column, 0.0), self.missing(column)
        both = [np.array([share, 1.0 - share]) for share in (then, now)]
        moved = psi(both[0], both[1]) if self._schema.rows else 0.0
        return {"missing_training": then, "missing_now": now, "missing_psi": moved}

    def _number(self, name: str, source: NumberInput) -> FeatureDrift:
        worst, told, values, few, new, stuck = None, None, 0, None, None, None
        for component in range(source.size):
            cuts, then, now = self._numbers[name, component]
            values += int(now.sum())
            if then.sum() and now.sum() < _FEWEST_ROWS:
                few = _too_few(int(now.sum()))
            elif then.sum():
                found = psi(then.astype(np.float64), now.astype(np.float64))
                moved = _moved_most(then, now, lambda at, c=cuts: _range(c, at))
                if worst is None or found > worst:
                    worst, told = found, moved
                new = max(new or 0.0, self._outside[name, component] / int(now.sum()))
                stuck = moved if _is_stuck(then, now) else stuck
        if name in self._unreadable:
            worst, told = math.nan, "its column holds no plain numbers"
        return FeatureDrift(
            feature=name,
            psi=worst,
            new_values=new,
            values=values,
            moved_most=told,
            too_little=few,
            stuck=stuck,
            **self._missing(source.column),
        )

    def _values(self, feature: Feature, index: int) -> FeatureDrift:
        ids = self._ids[self._starts[index] : self._starts[index + 1]]
        moved, told, new, few, stuck = None, None, None, None, None
        if feature.vocabulary_key is not None:
            vocabulary = self._schema.vocabularies[feature.vocabulary_key]
            first = len(ids) - len(vocabulary)  # OOV buckets stand before the known values
            known, unseen = ids[first:], int(ids[0] + ids[FIRST_KNOWN_ID:first].sum())
            new = unseen / max(1, unseen + int(known.sum()))
            then = np.asarray(vocabulary.counts, np.float64)
            kept = bool(then.sum()) and not feature.shares_table
            # Where nothing is known any more, that says so by itself: see ``new_values``.
            if kept and known.sum() < _FEWEST_ROWS and unseen < _FEWEST_ROWS:
                few = _too_few(int(known.sum()))
            elif kept and known.sum() >= _FEWEST_ROWS:
                top = np.argsort(-then, kind="stable")[:_TOP_VALUES]
                both = [_top_and_rest(counts, top) for counts in (then, known)]
                moved = psi(both[0], both[1])
                told = _moved_most(both[0], both[1], lambda at: self._value(feature, top, at))
                stuck = told if _is_stuck(both[0], both[1]) else None
        return FeatureDrift(
            feature=feature.name,
            psi=moved,
            new_values=new,
            values=int(ids.sum() - ids[1]),
            moved_most=told,
            too_little=few,
            stuck=stuck,
            **self._missing(feature.input_columns[0]),
        )

    def _value(self, feature: Feature, top: NDArray[np.int64], at: int) -> str:
        if at == len(top):
            return "the rarer values"
        return str(self._schema.vocabularies[feature.name].value(int(top[at])))


def _too_few(values: int) -> str:
    return f"{values:,} values, fewer than {_FEWEST_ROWS}"


def _nulls(column: pa.ChunkedArray) -> int:
    found = int(column.null_count)
    if pa.types.is_floating(column.type):
        found += int(pc.sum(pc.is_nan(column)).as_py() or 0)
    return found


def _components(column: pa.ChunkedArray, size: int) -> Floats | None:
    """Numbers as (rows, size), NaN for nulls; None where they are no plain numbers."""
    if pa.types.is_nested(column.type):
        column = pc.list_flatten(column)
    try:
        numbers = pc.cast(column, pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    flat = numbers.to_numpy()
    return flat.reshape(-1, size) if len(flat) % size == 0 else None


def _top_and_rest(counts: NDArray[Any], top: NDArray[np.int64]) -> Floats:
    kept = counts[top].astype(np.float64)
    return np.append(kept, counts.sum() - kept.sum())


def _shares(then: NDArray[Any], now: NDArray[Any]) -> tuple[Floats, Floats]:
    first, second = (np.asarray(c, np.float64) / max(1.0, float(c.sum())) for c in (then, now))
    return first, second


def _is_stuck(then: NDArray[Any], now: NDArray[Any]) -> bool:
    """Tell whether one bucket, in which a minority lay in training, holds nearly all values now."""
    before, after = _shares(then, now)
    return bool(((after >= _STUCK_NOW) & (before < _STUCK_THEN)).any())


def _moved_most(then: NDArray[Any], now: NDArray[Any], name: Any) -> str:
    shares = _shares(then, now)
    at = int(np.abs(shares[1] - shares[0]).argmax())
    return f"{name(at)}: {shares[0][at]:.1%} in training, {shares[1][at]:.1%} now"


def _range(cuts: Floats, at: int) -> str:
    if not len(cuts):
        return "any number"
    if at == 0:
        return f"below {cuts[0]:g}"
    return f"from {cuts[-1]:g}" if at == len(cuts) else f"{cuts[at - 1]:g} to {cuts[at]:g}"


def drift_reasons(features: list[FeatureDrift], config: GateConfig) -> tuple[list[str], list[str]]:
    """Return what stops the model, and what a person should know, in plain words."""
    reasons: list[str] = []
    notes: list[str] = []
    for one in features:
        stops = notes if one.feature in config.ignore_drift else reasons
        stops += _broken_feed(one, config)
        # A NaN is beyond each limit, an infinite one too.
        if one.psi is not None and not one.psi <= min(config.warn_psi, config.max_psi):
            beyond = not one.psi <= config.max_psi
            limit = f"allowed {config.max_psi:g}" if beyond else "which by itself stops no model"
            (stops if beyond else notes).append(
                f"drift: feature {one.feature!r} has moved since training (stability index "
                f"{one.psi:.3g}, {limit}); most: {one.moved_most}"
            )
        if one.too_little is not None:
            notes.append(f"drift: feature {one.feature!r} was not compared: {one.too_little}")
    return reasons, notes


def _broken_feed(one: FeatureDrift, config: GateConfig) -> Iterator[str]:
    if not one.missing_psi <= config.max_missing_psi:
        yield (
            f"drift: feature {one.feature!r} is missing in {one.missing_now:.1%} of the rows, "
            f"in training it was in {one.missing_training:.1%}"
        )
    if one.new_values is not None and not one.new_values <= config.max_new_values:
        yield (
            f"drift: {one.new_values:.1%} of the values of feature {one.feature!r} are new to "
            f"the model, allowed are {config.max_new_values:.0%}"
            + ("" if one.moved_most is None else f"; most: {one.moved_most}")
        )
    elif one.stuck is not None:
        yield (
            f"drift: feature {one.feature!r} has nearly one value alone: {one.stuck}; if that is "
            "right, name it in ignore_drift under [gate]"
        )
