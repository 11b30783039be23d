"""Whether the candidate is worse than the serving model: overall, and in any slice of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from widedeep.evaluation.compare import ComparedRows, HeadScores
from widedeep.evaluation.slices import SliceColumn
from widedeep.evaluation.statistics import (
    LOSSES,
    BootstrapComparison,
    benjamini_hochberg,
    holm,
    is_defined,
    loss_measure,
    p_value_at_limit,
)
from widedeep.gate.config import GateConfig
from widedeep.gate.measures import MEASURES, measure_title

_MIN_UNITS = 30


@dataclass(slots=True)
class Quality:
    """Quality of both models, with the reasons that stop the candidate."""

    # By head: rows, both models' metrics, differences with intervals, calibration curve
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)  # One entry per slice and head
    reasons: list[str] = field(default_factory=list)  # Why the candidate does not pass
    notes: list[str] = field(default_factory=list)  # Remarks that stop nothing


class _QualityCheck:
    def __init__(self, rows: ComparedRows, config: GateConfig) -> None:
        self.rows, self.config = rows, config
        self.comparison = BootstrapComparison(rows, resamples=config.bootstrap, seed=config.seed)
        self.quality = Quality()
        self.weighted_B = rows.weight_B > 0
        # p-value, entry, measure and location of each test of a slice
        self.tests: list[tuple[float, dict[str, Any], str, str]] = []

    def head(self, head: HeadScores) -> None:
        """Judge one head: all rows, then each slice."""
        where = f"head {head.head.name}: " if head.head.name else ""
        codes_B = np.zeros(len(self.rows), np.int64)
        self.comparison.sort(head)
        self.weighted_B = head.weight_B > 0
        entry = self.comparison.measure(head, codes_B, 1, slices=False)[0]
        entry["rows"] = len(self.rows)
        obstacles = self._too_little(head) + _undefined_scores(head)
        entry["judged"] = not obstacles
        entry["curve"] = self.comparison.curves(head)
        self.quality.heads[head.head.name] = entry
        self.quality.reasons += [where + text for text in obstacles]
        if head.head.kind == "regression" and not self.comparison.has_ratio(head):
            self.quality.notes.append(
                f"{where}labels below 0: predicted / observed is no measure of calibration there, "
                "and was not judged"
            )
        if not obstacles:
            self._overall(head, entry, where)
        for column in self.rows.slices:
            self._slices(head, column, where, decides=not any(head.undefined.values()))

    def _too_little(self, head: HeadScores) -> list[str]:
        config, weighted_B = self.config, self.weighted_B
        rows, lead = int(weighted_B.sum()), "too little data to judge by: "
        if rows < config.min_rows:
            total = len(self.rows)
            weight = "" if rows == total else f" of weight above 0 (of {total:,})"
            return [
                f"{lead}{rows:,} rows{weight}, expected at least {config.min_rows:,} (min_rows)"
            ]
        units = len(np.unique(self.rows.units_B[weighted_B]))
        if units < _MIN_UNITS:
            return [f"{lead}rows of {units} units, expected at least {_MIN_UNITS}"]
        labels = head.labels_B[weighted_B]
        if labels.min() == labels.max():
            by_name = head.classes and head.head.kind != "multilabel"
            only = repr(head.classes[int(labels[0])]) if by_name else f"{labels[0]:g}"
            what = "class" if head.head.kind in ("binary", "multiclass") else "value"
            return [
                f"every label of the data is {only}: a model cannot be judged by rows of one "
                f"{what}; give data with both"
            ]
        if head.head.kind in ("regression", "multilabel", "ranking"):
            return []
        if head.head.kind == "multiclass":
            others = rows - int(np.bincount(labels.astype(np.int64)).max())
            text = f"{others:,} rows of another class than the most frequent one"
            fewer: float = others
        else:
            positives = float(labels.sum())
            fewer = min(positives, rows - positives)
            text = f"{positives:,.0f} positive and {rows - positives:,.0f} negative rows"
        if fewer < config.min_positives:
            of_each = " of each" if head.head.kind == "binary" else ""
            return [
                f"{lead}{text}, expected at least {config.min_positives:,}{of_each} (min_positives)"
            ]
        return []

    def _overall(self, head: HeadScores, entry: dict[str, Any], where: str) -> None:
        config, reasons = self.config, self.quality.reasons
        candidate, serving = entry["candidate"], entry.get("serving", {})
        kind = head.head.kind
        loss = loss_measure(head)
        relative = candidate["normalized_loss"]
        # A model that is worse than a constant, but better than the serving one, may replace it.
        if not relative < 1 and not serving.get("normalized_loss", 0) > relative:
            levels = {
                "multiclass": "the fraction of each class",
                "multilabel": "the fraction of each class",
                "ranking": "the same score for every candidate",
            }
            level = levels.get(kind, "the mean label")
            reasons.append(
                f"{where}{measure_title(loss)} {candidate[loss]:.4f} is no better than the "
                f"{candidate[loss] / relative:.4f} of a constant, {level}"
            )
        distance = candidate.get("calibration_distance")
        if distance is not None:
            error = candidate["calibration_error"]
            if (
                p_value_at_limit(distance, error, config.max_calibration_error)
                < 1 - config.confidence
            ):
                reasons.append(
                    f"{where}predictions are {candidate['calibration']:.3f} times the observed "
                    f"labels, limit a factor of {math.exp(config.max_calibration_error):.2f} "
                    "(max_calibration_error)"
                )
        for name, change in entry["changes"].items():
            self._test(MEASURES[name].limit, name, entry)
            if "p" not in change:
                continue
            limit = change["limit"]
            if change["p"] < 1 - config.confidence:
                reasons.append(f"{where}{_change_text(name, candidate, serving, change)}")
            elif change["error"] * 1.645 > max(limit, 1e-9) * 2:
                self.quality.notes.append(
                    f"{where}{measure_title(name)}: too little data to detect a regression of "
                    f"twice the limit ({2 * limit:g}) reliably"
                )

    def _test(self, option: str | None, measure: str, entry: dict[str, Any]) -> None:
        """Set the limit of a change and, where it is defined, its p-value at the limit."""
        change = entry["changes"][measure]
        if option is None:
            return
        change["limit"] = limit = getattr(self.config, option)
        if not is_defined(change):
            return  # a reason to stop by itself: see undefined_figures
        change["p"] = p_value_at_limit(change["worse"], change["error"], limit)
        if measure == "calibration":
            # A calibration within the limit of the truth passes, whatever the change.
            candidate = entry["candidate"]
            distance, error = candidate["calibration_distance"], candidate["calibration_error"]
            change["p"] = max(change["p"], p_value_at_limit(distance, error, limit))

    def _slices(self, head: HeadScores, column: SliceColumn, where: str, *, decides: bool) -> None:
        codes_B, codes = column.codes_B, len(column.values)
        weighted_B = self.weighted_B.astype(np.float64)
        rows = np.bincount(codes_B, weighted_B, codes).astype(np.int64)
        positives = np.bincount(codes_B, head.labels_B * weighted_B, codes)
        units = (self.comparison.by_cluster(weighted_B, codes_B, codes) > 0).sum(axis=0)
        entries = self.comparison.measure(head, codes_B, codes, slices=True)
        limits = [
            self._slice_too_little(head, *counts)
            for counts in zip(rows, positives, units, strict=True)
        ]
        for code in np.argsort(-rows, kind="stable").tolist():
            entry = {
                "head": head.head.name,
                "column": column.name,
                "value": column.values[code],
                "rows": int(rows[code]),
                "positives": float(positives[code]),
                **entries[code],
                "too_little": limits[code],
                "failed": False,
            }
            self.quality.slices.append(entry)
            if not decides:
                entry["too_little"] = entry["too_little"] or "scores that are NaN or infinite"
            if entry["too_little"] is None:
                for name in entry["changes"]:
                    self._test(MEASURES[name].slice_limit, name, entry)
                    # The p-value is set once it is corrected.
                    if "p" in entry["changes"][name]:
                        p = entry["changes"][name].pop("p")
                        self.tests.append((p, entry, name, where))

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
        if head.head.kind == "regression" and self.comparison.has_ratio(head) and not positives > 0:
            return "every label is 0"
        if units < _MIN_UNITS:
            return f"rows of {units} units, fewer than {_MIN_UNITS}"
        return None

    def correct(self) -> None:
        """Decide on the slices, all tests together."""
        values = [test[0] for test in self.tests]
        corrected = holm(values) if self.config.correction == "holm" else benjamini_hochberg(values)
        for p, (_, entry, measure, where) in zip(corrected, self.tests, strict=True):
            change = entry["changes"][measure]
            change["p"] = p
            if p < 1 - self.config.confidence:
                entry["failed"] = True
                text = _change_text(measure, entry["candidate"], entry["serving"], change)
                self.quality.reasons.append(
                    f"{where}slice {entry['column']} = {entry['value']} "
                    f"({entry['rows']:,} rows): {text}"
                )
        skipped = sum(1 for entry in self.quality.slices if entry["too_little"] is not None)
        if skipped:
            self.quality.notes.append(
                f"{skipped} of {len(self.quality.slices)} slices have too little data and decide "
                "nothing"
            )


def judge_quality(rows: ComparedRows, config: GateConfig) -> Quality:
    """Compare both models on the same rows."""
    check = _QualityCheck(rows, config)
    for head in rows.heads:
        check.head(head)
    check.correct()
    check.quality.reasons[:0] = rows.reasons
    check.quality.notes[:0] = rows.notes
    if rows.unit is None and len(rows):
        check.quality.notes.append(
            "rows were resampled one by one: set unit under [gate] to the column of users or "
            "requests if a user has many rows"
        )
    return check.quality


def _undefined_scores(head: HeadScores) -> list[str]:
    names = {"candidate": "the candidate", "serving": "the serving model"}
    return [
        f"{count:,} of {len(head.labels_B):,} scores of {names[model]} are NaN or infinite; a "
        "model cannot be judged by them"
        for model, count in head.undefined.items()
        if count
    ]


def _change_text(
    measure: str,
    candidate: Mapping[str, float],
    serving: Mapping[str, float],
    change: Mapping[str, float],
) -> str:
    digits = ".1%" if measure == "calibration" else ".2%" if measure in LOSSES else ".4f"
    worse, low, high, limit = (
        f"{change[key]:{digits}}" for key in ("worse", "low", "high", "limit")
    )
    interval = f"(95 % interval {low} to {high}), limit {limit}"
    if measure == "calibration":
        return (
            f"predictions are {candidate['calibration']:.3f} times the observed labels, the "
            f"serving model's {serving['calibration']:.3f} times: {worse} further from the truth "
            f"{interval}"
        )
    side = "above" if measure in LOSSES else "below"
    return (
        f"{measure_title(measure)} {candidate[measure]:.4f}, {worse} {side} the serving model's "
        f"{serving[measure]:.4f} {interval}"
    )
