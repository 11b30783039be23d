"""Is the candidate worse than the model in service: overall, and in any slice of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.gate.config import GateConfig
from widedeep.gate.scored import HeadScores, Scored, SliceColumn
from widedeep.gate.statistics import (
    bags_of,
    benjamini_hochberg,
    holm,
    p_above,
    placements,
    resample,
)
from widedeep.gate.verdict import LOSSES

Floats = NDArray[np.float64]

_FEWEST_UNITS = 30
_LEAST_DEFINED = 0.9  # of the resamples
_CALIBRATION_BINS = 10
_NAMES = {
    "log_loss": "log loss",
    "squared_error": "squared error",
    "auc": "AUC",
    "gauc": "AUC within groups",
    "calibration": "calibration",
}


@dataclass(slots=True)
class Quality:
    """What was found of both models' quality."""

    # By head: rows, both models' metrics, differences with intervals, calibration curve
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)  # One entry a slice and head
    # Why the candidate does not pass; empty if it does
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # What a person should know besides


class _Judge:
    def __init__(self, scored: Scored, config: GateConfig) -> None:
        self.scored, self.config = scored, config
        self.bags_B, self.n_bags = bags_of(scored.units_B, scored.n_units, config.seed)
        self.draws = resample(self.n_bags, config.bootstrap, config.seed)
        self.found = Quality()
        self.seen_B = scored.weight_B > 0
        self.tests: list[tuple[float, dict[str, Any], str, str]] = []
        # The rows of the present head by each model's scores: sorted once, used for every slice.
        self.by_score: dict[str, NDArray[np.intp]] = {}

    # ---- sums by bag ----------------------------------------------------------------------------

    def by_bag(self, values_B: Floats, codes_B: NDArray[np.int64] | None, codes: int) -> Floats:
        """Sum rows by bag and code: (bags, codes)."""
        at = self.bags_B if codes_B is None else self.bags_B * codes + codes_B
        found = np.bincount(at, values_B, self.n_bags * codes).astype(np.float64)
        return found.reshape(self.n_bags, codes)

    def both(
        self, values_B: Floats, codes_B: NDArray[np.int64] | None = None, codes: int = 1
    ) -> tuple[Floats, Floats]:
        """Return the sum of rows by code, and of each resample: (codes,) and (times, codes)."""
        sums = self.by_bag(values_B, codes_B, codes)
        return sums.sum(axis=0), self.draws @ sums

    # ---- a head ---------------------------------------------------------------------------------

    def head(self, head: HeadScores) -> None:
        """Judge one head: all rows, then each slice."""
        weight_B = self.scored.weight_B
        where = f"head {head.head.name}: " if head.head.name else ""
        codes_B = np.zeros(len(weight_B), np.int64)
        binary = head.head.kind == "binary"
        models = _models(head) if binary else {}
        self.by_score = {name: np.argsort(v, kind="stable") for name, v in models.items()}
        entry = self._entry(head, codes_B, 1, slices=False)[0]
        entry["rows"] = len(weight_B)
        little = self._too_little(head) + _undefined_scores(head)
        entry["judged"] = not little
        entry["curve"] = {
            name: calibration_curve(head.labels_B, scores, weight_B, self.by_score[name])
            for name, scores in models.items()
        }
        self.found.heads[head.head.name] = entry
        self.found.reasons += [where + told for told in little]
        if head.head.kind == "regression" and not self._is_ratio(head):
            self.found.notes.append(
                f"{where}labels below 0: predicted / observed is no measure of calibration there, "
                "and was not judged"
            )
        if not little:
            self._overall(head, entry, where)
        for column in self.scored.slices:
            self._slices(head, column, where, decides=not any(head.undefined.values()))

    def _too_little(self, head: HeadScores) -> list[str]:
        config, seen = self.config, self.seen_B
        rows, lead = int(seen.sum()), "too little data to judge by: "
        if rows < config.min_rows:
            weighed = "" if rows == len(self.scored) else f" of weight above 0 (of {len(seen):,})"
            return [
                f"{lead}{rows:,} rows{weighed}, at least {config.min_rows:,} are asked for "
                "(min_rows)"
            ]
        units = len(np.unique(self.scored.units_B[seen]))
        if units < _FEWEST_UNITS:
            return [f"{lead}rows of {units} units alone, at least {_FEWEST_UNITS} are asked for"]
        labels = head.labels_B[seen]
        if labels.min() == labels.max():
            at = int(labels[0]) if head.classes else labels[0]
            only = repr(head.classes[int(at)]) if head.classes else f"{at:g}"
            what = "value" if head.head.kind == "regression" else "class"
            return [
                f"every label of the data is {only}: a model cannot be judged by rows of one "
                f"{what}; give data with both"
            ]
        if head.head.kind == "regression":
            return []
        if head.head.kind == "multiclass":
            others = rows - int(np.bincount(labels.astype(np.int64)).max())
            told = f"{others:,} rows of another class than the most frequent one"
            fewer: float = others
        else:
            positives = float(labels.sum())
            fewer = min(positives, rows - positives)
            told = f"{positives:,.0f} positive and {rows - positives:,.0f} negative rows"
        if fewer < config.min_positives:
            of_each = " of each" if head.head.kind == "binary" else ""
            return [
                f"{lead}{told}, at least {config.min_positives:,}{of_each} are asked for "
                "(min_positives)"
            ]
        return []

    def _is_ratio(self, head: HeadScores) -> bool:
        """Whether predicted / observed is a measure: of labels that are counts or amounts."""
        labels = head.labels_B[self.seen_B]
        return head.head.kind != "multiclass" and not (len(labels) and labels.min() < 0)

    def _entry(
        self, head: HeadScores, codes_B: NDArray[np.int64], codes: int, *, slices: bool
    ) -> list[dict[str, Any]]:
        """One dictionary a code: both models' metrics, and differences with standard errors."""
        weight_B, labels_B = self.scored.weight_B, head.labels_B
        binary = head.head.kind == "binary"
        weights, drawn_weights = self.both(weight_B, codes_B, codes)
        labels, drawn_labels = self.both(weight_B * labels_B, codes_B, codes)
        found: dict[str, dict[str, tuple[Floats, Floats]]] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, scores_B in _models(head).items():
                loss, drawn_loss = self.both(weight_B * head.losses(scores_B), codes_B, codes)
                mine = {_loss_measure(head): (loss / weights, drawn_loss / drawn_weights)}
                if self._is_ratio(head):
                    total, drawn = self.both(weight_B * scores_B, codes_B, codes)
                    mine["calibration"] = (total / labels, drawn / drawn_labels)
                if binary:
                    mine["auc"] = self._auc(head, name, codes_B, codes)
                    if not slices and self.scored.groups_B is not None:
                        mine["gauc"] = self._gauc(head, name)
                found[name] = mine
            rate = labels / weights
            constant = self._constant(head, codes_B, codes, weights)
            return [
                _differences(
                    found,
                    at,
                    rate=float(rate[at]) if binary else None,
                    constant=float(constant[at]),
                )
                for at in range(codes)
            ]

    def _constant(
        self, head: HeadScores, codes_B: NDArray[np.int64], codes: int, weights: Floats
    ) -> Floats:
        """The loss of the best constant in each code: the mean label, or each class's share."""
        weight_B, labels_B = self.scored.weight_B, head.labels_B
        if head.head.kind == "multiclass":
            place_B = codes_B * (count := int(labels_B.max()) + 1) + labels_B.astype(np.int64)
            counts = np.bincount(place_B, weight_B, codes * count).reshape(codes, count)
            shares: Floats = counts / weights[:, None]
            return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1))
        mean = np.bincount(codes_B, weight_B * labels_B, codes) / weights
        if head.head.kind == "regression":
            away_B = weight_B * (labels_B - mean[codes_B]) ** 2
            return np.asarray(np.bincount(codes_B, away_B, codes) / weights)
        return _entropy(mean)

    def _placements(
        self, head: HeadScores, name: str, groups_B: NDArray[np.int64]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Each row's weight as a positive and as a negative, and its place among the others."""
        weight_B = self.scored.weight_B
        positive_B, negative_B = weight_B * head.labels_B, weight_B * (1.0 - head.labels_B)
        places = placements(
            _models(head)[name], positive_B, negative_B, groups_B, by_score_B=self.by_score[name]
        )
        return positive_B, negative_B, *places

    def _auc(
        self, head: HeadScores, name: str, codes_B: NDArray[np.int64], codes: int
    ) -> tuple[Floats, Floats]:
        """The AUC within each code, and its resamples by the influence of each row."""
        positive_B, negative_B, below_B, above_B = self._placements(head, name, codes_B)
        positive = np.bincount(codes_B, positive_B, codes)
        negative = np.bincount(codes_B, negative_B, codes)
        auc = np.bincount(codes_B, np.nan_to_num(below_B) * positive_B, codes) / positive
        auc[(positive == 0) | (negative == 0)] = np.nan
        influence_B = (below_B - auc[codes_B]) * positive_B / positive[codes_B]
        influence_B += (above_B - auc[codes_B]) * negative_B / negative[codes_B]
        _, moved = self.both(np.nan_to_num(influence_B), codes_B, codes)
        return auc, auc + moved

    def _gauc(self, head: HeadScores, name: str) -> tuple[Floats, Floats]:
        """The mean AUC within groups, weighted by rows; a group belongs to its first row's bag."""
        assert self.scored.groups_B is not None
        weight_B = self.scored.weight_B
        _, first, groups_B = np.unique(self.scored.groups_B, return_index=True, return_inverse=True)
        positive_B, negative_B, below_B, _ = self._placements(head, name, groups_B)
        count = len(first)
        positive = np.bincount(groups_B, positive_B, count)
        auc = np.bincount(groups_B, np.nan_to_num(below_B) * positive_B, count) / positive
        both = (positive > 0) & (np.bincount(groups_B, negative_B, count) > 0)
        weight = np.where(both, np.bincount(groups_B, weight_B, count), 0.0)
        bag = self.bags_B[first]
        sums = np.stack(
            [np.bincount(bag, v, self.n_bags) for v in (weight * np.nan_to_num(auc), weight)], 1
        )
        drawn = self.draws @ sums
        total = sums.sum(axis=0)
        return total[:1] / total[1:], drawn[:, :1] / drawn[:, 1:]

    # ---- decisions ------------------------------------------------------------------------------

    def _overall(self, head: HeadScores, entry: dict[str, Any], where: str) -> None:
        config, reasons = self.config, self.found.reasons
        mine = entry["candidate"]
        theirs = entry.get("serving", {})
        kind = head.head.kind
        loss = _loss_measure(head)
        relative = mine["normalized_loss"]
        # A model that is worse than a constant, and still better than what serves, may replace it.
        if not relative < 1 and not theirs.get("normalized_loss", 0) > relative:
            level = "each class's share" if kind == "multiclass" else "the mean label"
            reasons.append(
                f"{where}{_NAMES[loss]} {mine[loss]:.4f} is no better than the "
                f"{mine[loss] / relative:.4f} of a constant, {level}"
            )
        away = mine.get("calibration_distance")
        if away is not None:
            error = mine["calibration_error"]
            if p_above(away, error, config.max_calibration_error) < 1 - config.confidence:
                reasons.append(
                    f"{where}predictions are {_times(mine['calibration'])} what was observed; "
                    f"allowed is a factor of {math.exp(config.max_calibration_error):.2f} "
                    "(max_calibration_error)"
                )
        for measure, limit in (
            (loss, config.max_log_loss_rise),
            ("auc", config.max_auc_drop),
            ("gauc", config.max_gauc_drop),
            ("calibration", config.max_calibration_rise),
        ):
            change = entry["changes"].get(measure)
            if change is None:
                continue
            change["limit"] = limit
            if not is_defined(change):
                continue  # a reason to stop by itself: see undefined_figures
            change["p"] = p_above(change["worse"], change["error"], limit)
            if measure == "calibration":
                # Nearer to the truth than can be told from it is near enough.
                own = p_above(mine["calibration_distance"], mine["calibration_error"], limit)
                change["p"] = max(change["p"], own)
            if change["p"] < 1 - config.confidence:
                reasons.append(f"{where}{_told(measure, mine, theirs, change)}")
            elif change["error"] * 1.645 > max(limit, 1e-9) * 2:
                self.found.notes.append(
                    f"{where}{_NAMES[measure]}: a loss of twice the limit ({2 * limit:g}) would "
                    "not be seen for sure in so little data"
                )

    def _slices(self, head: HeadScores, column: SliceColumn, where: str, *, decides: bool) -> None:
        codes_B, codes = column.codes_B, len(column.values)
        seen_B = self.seen_B.astype(np.float64)
        rows = np.bincount(codes_B, seen_B, codes).astype(np.int64)
        positives = np.bincount(codes_B, head.labels_B * seen_B, codes)
        units = (self.by_bag(seen_B, codes_B, codes) > 0).sum(axis=0)
        entries = self._entry(head, codes_B, codes, slices=True)
        for at in np.argsort(-rows, kind="stable").tolist():
            entry = {
                "head": head.head.name,
                "column": column.name,
                "value": column.values[at],
                "rows": int(rows[at]),
                "positives": float(positives[at]),
                **entries[at],
                "too_little": self._slice_too_little(head, rows[at], positives[at], units[at]),
                "failed": False,
            }
            self.found.slices.append(entry)
            if not decides:
                entry["too_little"] = entry["too_little"] or "scores that are NaN or infinite"
            if entry["too_little"] is None:
                self._test_slice(entry, where)

    def _slice_too_little(
        self, head: HeadScores, rows: int, positives: float, units: int
    ) -> str | None:
        config = self.config
        if rows < config.min_slice_rows:
            return f"{rows:,} rows, fewer than {config.min_slice_rows:,}"
        if head.head.kind == "binary":
            fewer = min(positives, rows - positives)
            if fewer < config.min_slice_positives:
                return (
                    f"{positives:,.0f} positive rows of {rows:,}, fewer than "
                    f"{config.min_slice_positives:,} of one class"
                )
        if head.head.kind == "regression" and self._is_ratio(head) and not positives > 0:
            return "every label is 0"
        if units < _FEWEST_UNITS:
            return f"rows of {units} units alone, fewer than {_FEWEST_UNITS}"
        return None

    def _test_slice(self, entry: dict[str, Any], where: str) -> None:
        limits = {
            "log_loss": self.config.max_slice_log_loss_rise,
            "squared_error": self.config.max_slice_log_loss_rise,
            "auc": self.config.max_slice_auc_drop,
            "calibration": self.config.max_slice_calibration_rise,
        }
        for measure, limit in limits.items():
            change = entry["changes"].get(measure)
            if change is not None:
                change["limit"] = limit
                if not is_defined(change):
                    continue
                p = p_above(change["worse"], change["error"], limit)
                if measure == "calibration":
                    mine = entry["candidate"]
                    own = (mine["calibration_distance"], mine["calibration_error"])
                    p = max(p, p_above(*own, limit))
                self.tests.append((p, entry, measure, where))

    def correct(self) -> None:
        """Decide on the slices, all tests together."""
        values = [test[0] for test in self.tests]
        corrected = holm(values) if self.config.correction == "holm" else benjamini_hochberg(values)
        for p, (_, entry, measure, where) in zip(corrected, self.tests, strict=True):
            change = entry["changes"][measure]
            change["p"] = p
            if p < 1 - self.config.confidence:
                entry["failed"] = True
                told = _told(measure, entry["candidate"], entry["serving"], change)
                self.found.reasons.append(
                    f"{where}slice {entry['column']} = {entry['value']} "
                    f"({entry['rows']:,} rows): {told}"
                )
        few = sum(1 for entry in self.found.slices if entry["too_little"] is not None)
        if few:
            self.found.notes.append(
                f"{few} of {len(self.found.slices)} slices have too little data and decide nothing"
            )


def judge_quality(scored: Scored, config: GateConfig) -> Quality:
    """Compare both models on the same rows."""
    judge = _Judge(scored, config)
    for head in scored.heads:
        judge.head(head)
    judge.correct()
    judge.found.reasons[:0] = scored.reasons
    judge.found.notes[:0] = scored.notes
    if scored.unit is None and len(scored):
        judge.found.notes.append(
            "rows were resampled one by one: name the column of users or requests (unit under "
            "[gate]) if a user has many rows"
        )
    return judge.found


def is_defined(change: Mapping[str, float]) -> bool:
    """Tell whether a difference and its interval are finite numbers."""
    return all(math.isfinite(change[key]) for key in ("worse", "error", "low", "high"))


def _undefined_scores(head: HeadScores) -> list[str]:
    names = {"candidate": "the candidate", "serving": "the model in service"}
    return [
        f"{count:,} of {len(head.labels_B):,} scores of {names[who]} are NaN or infinite; a model "
        "cannot be judged by them"
        for who, count in head.undefined.items()
        if count
    ]


def calibration_curve(
    labels_B: Floats, scores_B: Floats, weight_B: Floats, by_score_B: NDArray[np.intp] | None = None
) -> list[list[float]]:
    """Return mean score, mean label and weight of each tenth of the rows by score."""
    if by_score_B is None:
        by_score_B = np.argsort(scores_B, kind="stable")
    found = []
    for rows in np.array_split(by_score_B, _CALIBRATION_BINS):
        total = float(weight_B[rows].sum())
        if total > 0:
            means = [float((v[rows] * weight_B[rows]).sum() / total) for v in (scores_B, labels_B)]
            found.append([*means, total])
    return found


def _models(head: HeadScores) -> dict[str, Floats]:
    """The scores of the candidate, and of the model in service if there is one."""
    models = {"candidate": head.candidate_B}
    return models if head.serving_B is None else {**models, "serving": head.serving_B}


def _loss_measure(head: HeadScores) -> str:
    """The name of a head's mean loss."""
    return "squared_error" if head.head.kind == "regression" else "log_loss"


def _entropy(rate: Floats) -> Floats:
    rate = np.clip(rate, 1e-15, 1 - 1e-15)
    found: Floats = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return found


def _differences(
    found: Mapping[str, Mapping[str, tuple[Floats, Floats]]],
    at: int,
    *,
    rate: float | None,
    constant: float,
) -> dict[str, Any]:
    """Both models' metrics of one code, and how much worse the candidate is in each."""
    entry: dict[str, Any] = {"changes": {}}
    if rate is not None:
        entry["label_mean"] = rate
    for name, metrics in found.items():
        entry[name] = {metric: float(value[at]) for metric, (value, _) in metrics.items()}
        loss = next(entry[name][loss] for loss in LOSSES if loss in metrics)
        entry[name]["normalized_loss"] = loss / constant if constant > 0 else math.nan
        if "calibration" in metrics:
            value, drawn = metrics["calibration"]
            entry[name]["calibration_distance"] = float(_distance(value)[at])
            entry[name]["calibration_error"] = _spread(_logs(drawn)[:, at])
    if "serving" not in found:
        return entry
    mine, theirs = found["candidate"], found["serving"]
    for metric in mine:
        (value, drawn), (other, other_drawn) = mine[metric], theirs[metric]
        if metric in LOSSES:
            worse, spread = value / other - 1.0, drawn / other_drawn - 1.0
        elif metric == "calibration":
            worse = _distance(value) - _distance(other)
            spread = _distance(drawn) - _distance(other_drawn)
        else:
            worse, spread = other - value, other_drawn - drawn
        column = spread[:, at]
        error = _spread(column)
        low, high = (
            np.quantile(column[np.isfinite(column)], [0.025, 0.975])
            if math.isfinite(error)
            else (math.nan, math.nan)
        )
        entry["changes"][metric] = {
            "worse": float(worse[at]),
            "error": error,
            "low": float(low),
            "high": float(high),
        }
    return entry


def _spread(drawn: Floats) -> float:
    """Return the standard deviation of resamples; NaN where too many of them are not defined."""
    finite = drawn[np.isfinite(drawn)]
    return float(finite.std()) if len(finite) >= _LEAST_DEFINED * len(drawn) else math.nan


def _logs(ratio: Floats) -> Floats:
    found: Floats = np.log(np.maximum(ratio, 1e-12))
    return found


def _distance(ratio: Floats) -> Floats:
    found: Floats = np.abs(_logs(ratio))
    return found


def _times(ratio: float) -> str:
    return f"{ratio:.3f} times"


def _told(
    measure: str,
    mine: Mapping[str, float],
    theirs: Mapping[str, float],
    change: Mapping[str, float],
) -> str:
    if measure == "calibration":
        return (
            f"predictions are {_times(mine['calibration'])} what was observed, those of the model "
            f"in service {_times(theirs['calibration'])}: {change['worse']:.1%} further from the "
            f"truth (95 % interval {change['low']:.1%} to {change['high']:.1%}), allowed "
            f"{change['limit']:.1%}"
        )
    now, before = f"{mine[measure]:.4f}", f"{theirs[measure]:.4f}"
    name = _NAMES[measure]
    if measure in LOSSES:
        worse, low, high, limit = (
            f"{change[key]:.2%}" for key in ("worse", "low", "high", "limit")
        )
        return (
            f"{name} {now}, {worse} above the {before} of the model in service (95 % interval "
            f"{low} to {high}), allowed {limit}"
        )
    worse, low, high, limit = (f"{change[key]:.4f}" for key in ("worse", "low", "high", "limit"))
    return (
        f"{name} {now}, {worse} below the {before} of the model in service (95 % interval "
        f"{low} to {high}), allowed {limit}"
    )
