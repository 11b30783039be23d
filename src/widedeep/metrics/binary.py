"""Metrics of a binary label, in one pass over a stream of any length."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import ConfigError
from widedeep.metrics.accumulate import (
    DEFAULT_MAX_ROWS,
    BlockedStream,
    CompensatedSum,
    SortedRows,
    tie_runs,
)
from widedeep.metrics.collection import MetricCollection, SingleMetric, checked_cuts
from widedeep.metrics.ranking import rank_groups
from widedeep.metrics.registry import LabelKind, Undefined, add_metric, ratio
from widedeep.metrics.rows import (
    BINARY_ROW,
    GROUPED_ROW,
    Rows,
    ScoreKind,
    binary_rows,
    checked_score_kind,
)

__all__ = ["BinaryMetric", "BinaryMetrics", "RankingMetrics"]

_RUN = np.dtype([("key", np.float64), ("positive", np.float64), ("negative", np.float64)])


class BinaryMetrics(MetricCollection):
    """Exact metrics of a binary label, whatever the number of rows, in bounded memory.

    The result depends neither on how the rows were cut into updates nor on the memory bound. What
    is undefined is NaN, and ``reasons`` says why: one class only, no rows, no predicted positive.
    A soft label y in (0, 1) counts as two rows with the same score: a positive of weight w·y and a
    negative of weight w·(1 - y).

    - ``auc``: area under the ROC curve; ties count half.
    - ``pr_auc``: average precision Σ (R_i - R_{i-1}) P_i over distinct scores.
    - ``log_loss``: from logits without clipping; probabilities are clipped to [ε, 1 - ε] with
      float64's ε.
    - ``normalized_entropy``: log loss over the entropy of the label's mean (He et al. 2014,
      "Practical Lessons from Predicting Clicks on Ads at Facebook").
    - ``accuracy``: fraction of rows on the right side of 0.5; exactly 0.5 predicts 0.
    - ``accuracy_baseline``: accuracy of always predicting the more frequent class.
    - ``precision``, ``recall``: positives are called at a probability above 0.5.
    - ``calibration``: Σ predictions / Σ labels.
    - ``ece``: expected calibration error over bins of equal mass.
    - ``label_mean``, ``prediction_mean``, ``rows``.
    - ``gauc``: AUC within each group, weighted by impressions.
    - ``ndcg@k``, ``map@k``, ``hit_rate@k``, ``mrr``: means over groups; a row is relevant where its
      label is at least 0.5, and a tie counts with its expected value over all orders of the tied.
    - ``groups``, ``groups_one_class``, ``groups_without_positive``: number of groups, and of those
      left out of ``gauc`` and of the four means.
    - metrics of your own, once they are registered (:func:`widedeep.metrics.register`).

    Args:
        names: Metrics to compute (keys of ``compute``, such as ``"auc"`` or ``"ndcg@5"``);
            sorting is skipped where none needs it; None for all.
        score_kind: ``"logit"`` or ``"probability"``. Any score whose order counts alone may pass
            as a logit.
        k: One or more cuts for the ``@k`` metrics, each 1 to 1,000,000.
        groups: Whether each update brings group ids, for the grouped metrics. Implied by their
            names.
        ece_bins: Bins of the expected calibration error.
        max_rows_in_memory: Rows held before sorted runs are written to disk; a million take about
            120 MB of memory at the peak, and each row 24 bytes of disk (with groups 56).
        spill_directory: Where the runs go; None for the system's temporary directory.

    Raises:
        ConfigError: On an unknown name or a value out of range.

    Example:
        >>> import numpy as np
        >>> metrics = BinaryMetrics(names=["auc", "log_loss", "rows"])
        >>> metrics.update(np.array([2.0, -1.0]), np.array([1, 0]))
        >>> metrics.update(np.array([0.5, 1.0]), np.array([1, 0]))
        >>> {name: round(value, 4) for name, value in metrics.compute().items()}
        {'auc': 0.75, 'log_loss': 0.5569, 'rows': 4.0}
    """

    kind: ClassVar[LabelKind] = "binary"

    def __init__(
        self,
        *,
        names: Sequence[str] | None = None,
        score_kind: ScoreKind = "logit",
        k: int | Sequence[int] = 10,
        groups: bool = False,
        ece_bins: int = 15,
        max_rows_in_memory: int = DEFAULT_MAX_ROWS,
        spill_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if ece_bins < 1:
            raise ConfigError(f"ece_bins: got {ece_bins}, expected 1 or more")
        self._score_kind = checked_score_kind(score_kind)
        self._bins = ece_bins
        self._cuts = checked_cuts([k] if isinstance(k, int) else list(k))
        if names is not None:
            self._cuts = checked_cuts(_named_cuts(names))
        super().__init__(names=names, cuts=self._cuts, groups=groups)
        sorts = self.grouped + self.needs("curve")
        max_rows = max(1, max_rows_in_memory // max(1, sorts)) if max_rows_in_memory > 0 else 0
        self._by_score = self._by_group = None
        if self.needs("curve"):
            self._by_score = SortedRows(BINARY_ROW, ("key",), max_rows, spill_directory)
        if self.grouped:
            self._by_group = SortedRows(GROUPED_ROW, ("group", "key"), max_rows, spill_directory)
        self._totals = BlockedStream(BinaryTotals(self._score_kind), BINARY_ROW)

    def update(
        self,
        scores_B: ArrayLike,
        labels_B: ArrayLike,
        weights_B: ArrayLike | None = None,
        groups_B: ArrayLike | None = None,
    ) -> None:
        """Add scored rows.

        Args:
            scores_B: Logits or probabilities, as ``score_kind`` says.
            labels_B: 0, 1, or a soft label between them.
            weights_B: Sample weights of 0 or more; None for ones.
            groups_B: Group ids, integers or strings; only with ``groups=True``.

        Shape:
            scores_B, labels_B, weights_B, groups_B: (B,) or (B, 1).

        Raises:
            DataError: On a NaN or infinite value, a label outside [0, 1], a negative weight, a
                missing group or unequal lengths, with the row. Nothing of such an update is
                counted.
            ConfigError: Where groups are given but ``groups=False``.
        """
        if groups_B is not None and self._group_keys is None:
            raise ConfigError(
                "groups: got group ids, but no grouped metric is on; pass groups=True"
            )
        rows = binary_rows(
            scores_B,
            labels_B,
            weights_B,
            start=self._rows,
            kind=self._score_kind,
            groups=groups_B,
            group_keys=self._group_keys,
        )
        if self._functions:
            scores = -rows["key"]
            predictions_B = sigmoid(scores) if self._score_kind == "logit" else scores
            keys: NDArray[np.int64] | Literal[0] = rows["group"] if self.grouped else 0
            self._append_to_functions(rows["label"], predictions_B, rows["weight"], keys)
        self._rows += len(rows)
        if self._by_group is not None:
            self._by_group.append(rows)
            rows = rows[["key", "label", "weight"]].astype(BINARY_ROW)
        self._totals.append(rows)
        if self._by_score is not None:
            self._by_score.append(rows)

    def _inputs(self) -> Mapping[str, Any]:
        sums = self._totals.totals().sums()
        inputs: dict[str, Any] = {"sums": sums}
        if self._by_score is not None:
            blocks = self._by_score.blocks()
            inputs["curve"] = score_curve(blocks, sums.weight, self._score_kind, self._bins)
        if self._by_group is not None:
            inputs["ranking"] = rank_groups(self._by_group.blocks(), self._cuts)
        return inputs

    def _merge(self, other: Self) -> None:
        self._totals.merge(other._totals)
        if self._by_score is not None and other._by_score is not None:
            self._by_score.extend(other._by_score)
        if self._by_group is not None and other._by_group is not None:
            self._by_group.extend(other._by_group)


class RankingMetrics(BinaryMetrics):
    """The metrics of :class:`BinaryMetrics` that read the order within groups alone.

    ``gauc``, ``ndcg@k``, ``map@k``, ``hit_rate@k``, ``mrr`` and the counts of groups, for scores
    that mean nothing from one group to another.

    Example:
        >>> measured = RankingMetrics()
        >>> measured.update([5.0, 4.0, 0.1, 0.2], [1, 0, 0, 1], groups_B=[1, 1, 2, 2])
        >>> measured.compute()["gauc"]
        1.0
    """

    kind = "ranking"

    def __init__(self, *, names: Sequence[str] | None = None, k: int | Sequence[int] = 10) -> None:
        super().__init__(names=names, k=k, groups=True)


class BinarySums(NamedTuple):
    """Sums over rows of weight w, label y and probability p; none needs an order."""

    weight: float  # Σ w
    positive: float  # Σ w y
    negative: float  # Σ w (1 - y)
    predictions: float  # Σ w p
    loss: float  # Σ w times the log loss
    correct: float  # weight of the rows on the right side of 0.5
    true_positive: float  # weight of the positives with a probability above 0.5
    predicted_positive: float  # weight of the rows with a probability above 0.5

    @property
    def entropy(self) -> float:
        """Entropy of the labels' mean in nats, 0 for one class."""
        if not (self.positive and self.negative):
            return 0.0
        rates = np.array([self.positive, self.negative]) / self.weight
        return -float(np.sum(rates * np.log(rates)))

    @property
    def missing_class(self) -> str:
        """Which class is missing, in words."""
        return missing_class(self.positive, self.negative)


class BinaryTotals:
    """Running :class:`BinarySums`."""

    def __init__(self, kind: ScoreKind) -> None:
        self._kind = kind
        self._sums = CompensatedSum(len(BinarySums._fields))

    def sums(self) -> BinarySums:
        return BinarySums(*self._sums.values().tolist())

    def merge(self, other: BinaryTotals) -> None:
        self._sums.merge(other._sums)

    def add(self, block: Rows) -> None:
        score, label, weight = -block["key"], block["label"].copy(), block["weight"].copy()
        if self._kind == "logit":
            probability = sigmoid(score)
            # log(1 + exp(z)) - y z, written so that nothing overflows or cancels.
            loss = np.maximum(score, 0.0) - score * label + np.log1p(np.exp(-np.abs(score)))
            predicted = score > 0
        else:
            probability = score
            tiny = np.finfo(np.float64).eps
            inside = np.clip(score, tiny, 1.0 - tiny)
            loss = -(label * np.log(inside) + (1.0 - label) * np.log1p(-inside))
            predicted = score > 0.5
        columns = (
            weight,
            weight * label,
            weight * (1.0 - label),
            weight * probability,
            weight * loss,
            weight * np.where(predicted, label, 1.0 - label),
            weight * label * predicted,
            weight * predicted,
        )
        self._sums.add(np.array([np.sum(column) for column in columns]))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-logits)) without overflow, exact to rounding at both ends."""
    small = np.exp(-np.abs(logits))
    top: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return top


def score_curve(blocks: Iterable[Rows], weight: float, kind: ScoreKind, bins: int) -> ScoreCurve:
    """Return the curve sums of rows that are sorted from the best score to the worst."""
    curve = ScoreCurve(weight, kind, bins)
    for runs in tie_runs(blocks, _as_runs, ("key",)):
        curve.add(runs)
    return curve


def _as_runs(rows: Rows) -> Rows:
    runs: Rows = np.empty(len(rows), dtype=_RUN)
    runs["key"] = rows["key"]
    runs["positive"] = rows["weight"] * rows["label"]
    runs["negative"] = rows["weight"] * (1.0 - rows["label"])
    return runs


class ScoreCurve:
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
        # above: (R,) weight of the rows before each run.
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
        bin_R = np.minimum((middle * count).astype(np.int64), count - 1)
        probability = sigmoid(-key) if self._kind == "logit" else -key
        self._gaps += np.bincount(bin_R, probability * mass - positive, minlength=count)

    @property
    def auc(self) -> float:
        """Area under the ROC curve: Σ over negatives of the positives above, of all pairs."""
        if self._positive == 0 or self._negative == 0:
            return Undefined(missing_class(self._positive, self._negative))
        # Rounding of weighted sums may pass 1 by a unit in the last place.
        return min(1.0, math.fsum(self._wins) / self._positive / self._negative)

    @property
    def average_precision(self) -> float:
        """Σ of the precision at each run times its positives, of all positives."""
        reason = missing_class(self._positive, self._negative)
        return ratio(math.fsum(self._precision), self._positive, reason)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over bins of equal mass."""
        gap = math.fsum(np.abs(self._gaps))
        return ratio(gap, self._weight, missing_class(self._positive, self._negative))


def missing_class(positive: float, negative: float) -> str:
    """Say what is missing where there are no positives or no negatives."""
    if positive == 0 and negative == 0:
        return "there are no rows of positive weight"
    present, missing = ("negative", "positive") if positive == 0 else ("positive", "negative")
    return f"only one class: every row of positive weight is {present}, none is {missing}"


def _named_cuts(names: Sequence[str]) -> list[int]:
    """Return the k of each name such as ``"ndcg@5"``."""
    ends = (name.partition("@")[2] for name in names)
    return [int(end) for end in ends if end.isdecimal()]


_NOTHING_PREDICTED = "no row of positive weight has a probability above 0.5"
# name, value, order in tables, better values, title
_of_curve = partial(add_metric, input="curve")
_of_sums = partial(add_metric, input="sums")

_of_curve("auc", lambda curve: curve.auc, 0, "higher", "AUC", headline=0)
_of_curve("pr_auc", lambda curve: curve.average_precision, 2, "higher", "average precision")
_of_curve("ece", lambda curve: curve.calibration_error, 8, "lower", "expected calibration error")
_of_sums("log_loss", lambda sums: sums.loss / sums.weight, 3, headline=1)
_of_sums(
    "normalized_entropy",
    lambda sums: ratio(sums.loss / sums.weight, sums.entropy, sums.missing_class),
    4,
    "lower",
    "normalised entropy",
)
_of_sums("accuracy", lambda sums: sums.correct / sums.weight, 5, "higher")
_of_sums(
    "accuracy_baseline",
    lambda sums: max(sums.positive, sums.negative) / sums.weight,
    6,
    None,
    "accuracy of one answer for all",
)
_of_sums(
    "precision",
    lambda sums: ratio(sums.true_positive, sums.predicted_positive, _NOTHING_PREDICTED),
    20,
    "higher",
    detail=True,
)
_of_sums(
    "recall",
    lambda sums: ratio(sums.true_positive, sums.positive, sums.missing_class),
    21,
    "higher",
    detail=True,
)
_of_sums(
    "calibration",
    lambda sums: ratio(sums.predictions, sums.positive, sums.missing_class),
    7,
    "nearest_1",
    "calibration (predicted / observed)",
    short="calibration",
    headline=2,
)
_of_sums(
    "label_mean",
    lambda sums: sums.positive / sums.weight,
    90,
    None,
    "mean label",
    kinds=["binary", "ranking"],
)
_of_sums(
    "prediction_mean", lambda sums: sums.predictions / sums.weight, 91, None, "mean prediction"
)


class BinaryMetric(SingleMetric):
    """One of the ``BinaryMetrics``, holding no more than that number needs.

    Args:
        name: A key of ``BinaryMetrics.compute``, such as ``"auc"``, ``"gauc"`` or ``"ndcg@5"``.
        score_kind: ``"logit"`` or ``"probability"``.
        ece_bins: Bins of ``"ece"``.
        max_rows_in_memory: Rows held before sorted runs are written to disk.
        spill_directory: Where the runs go; None for the system's temporary directory.

    Raises:
        ConfigError: On an unknown name or a value out of range.

    Example:
        >>> ndcg = BinaryMetric("ndcg@2")
        >>> ndcg.update([0.9, 0.5, 0.1], [0, 1, 0], groups=["ann", "ann", "ann"])
        >>> round(ndcg.compute(), 4)
        0.6309
        >>> auc = BinaryMetric("auc")
        >>> auc.update([0.9, 0.5], [1, 1])
        >>> auc.compute(), auc.reason
        (nan, 'only one class: every row of positive weight is positive, none is negative')
    """

    def __init__(
        self,
        name: str,
        *,
        score_kind: ScoreKind = "logit",
        ece_bins: int = 15,
        max_rows_in_memory: int = DEFAULT_MAX_ROWS,
        spill_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        metrics = BinaryMetrics(
            names=[name],
            score_kind=score_kind,
            ece_bins=ece_bins,
            max_rows_in_memory=max_rows_in_memory,
            spill_directory=spill_directory,
        )
        super().__init__(name, metrics)
