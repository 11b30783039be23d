"""Metrics of the whole order of scores: exact AUC, average precision, calibration error."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from widedeep.metrics.rows import Rows, ScoreKind
from widedeep.metrics.sums import Numbers
from widedeep.metrics.ties import tie_runs

CURVE_NAMES = ("auc", "pr_auc", "ece")
_RUN = np.dtype([("key", np.float64), ("positive", np.float64), ("negative", np.float64)])


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-logits)) without overflow, exact to rounding at both ends."""
    small = np.exp(-np.abs(logits))
    top: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return top


def curve_numbers(blocks: Iterable[Rows], weight: float, kind: ScoreKind, bins: int) -> Numbers:
    """Compute AUC, average precision and expected calibration error in one pass."""
    curve = _Curve(weight, kind, bins)
    for runs in tie_runs(blocks, _as_runs, ("key",)):
        curve.add(runs)
    return curve.numbers()


def _as_runs(rows: Rows) -> Rows:
    runs: Rows = np.empty(len(rows), dtype=_RUN)
    runs["key"] = rows["key"]
    runs["positive"] = rows["weight"] * rows["label"]
    runs["negative"] = rows["weight"] * (1.0 - rows["label"])
    return runs


class _Curve:
    """Walks down the order of scores with the weight of positives and negatives above."""

    def __init__(self, weight: float, kind: ScoreKind, bins: int) -> None:
        self._weight = weight
        self._kind = kind
        self._positive = 0.0
        self._negative = 0.0
        self._wins: list[float] = []
        self._precision: list[float] = []
        self._gaps = np.zeros(bins)

    def add(self, runs: Rows) -> None:
        positive, negative = runs["positive"].copy(), runs["negative"].copy()
        positives = np.cumsum(np.concatenate([[self._positive], positive]))
        negatives = np.cumsum(np.concatenate([[self._negative], negative]))
        self._wins.append(float(np.sum(negative * (positives[:-1] + 0.5 * positive))))
        has = positive > 0
        precision = positives[1:][has] / (positives[1:][has] + negatives[1:][has])
        self._precision.append(float(np.sum(positive[has] * precision)))
        self._add_gaps(runs["key"], positive, positive + negative, positives[:-1] + negatives[:-1])
        self._positive, self._negative = float(positives[-1]), float(negatives[-1])

    def _add_gaps(
        self,
        key: NDArray[np.float64],
        positive: NDArray[np.float64],
        mass: NDArray[np.float64],
        above: NDArray[np.float64],
    ) -> None:
        """Add expected less observed positives to the bin of each run."""
        if self._weight == 0:
            return
        count = len(self._gaps)
        middle = (above + 0.5 * mass) / self._weight
        place = np.minimum((middle * count).astype(np.int64), count - 1)
        probability = sigmoid(-key) if self._kind == "logit" else -key
        self._gaps += np.bincount(place, probability * mass - positive, minlength=count)

    def numbers(self) -> Numbers:
        numbers = Numbers()
        positive, negative = self._positive, self._negative
        if positive == 0 or negative == 0:
            numbers.undefined(["auc"], one_class(positive, negative))
        else:
            # Rounding of weighted sums may pass 1 by a unit in the last place.
            numbers.put("auc", min(1.0, math.fsum(self._wins) / positive / negative))
        reason = one_class(positive, negative)
        numbers.ratio("pr_auc", math.fsum(self._precision), positive, reason)
        gap = math.fsum(np.abs(self._gaps))
        numbers.ratio("ece", gap, self._weight, reason)
        return numbers


def one_class(positive: float, negative: float) -> str:
    """Say what is missing where there are no positives or no negatives."""
    if positive == 0 and negative == 0:
        return "there are no rows of positive weight"
    seen, missing = ("negative", "positive") if positive == 0 else ("positive", "negative")
    return f"only one class: every row of positive weight is {seen}, none is {missing}"
