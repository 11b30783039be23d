"""All metrics of a binary label, in one pass over a stream of any length."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from widedeep.errors import ConfigError, nearest
from widedeep.metrics.curve import CURVE_NAMES, curve_numbers, one_class, sigmoid
from widedeep.metrics.ranking import GROUP_COUNTS, LARGEST_K, ranking_numbers
from widedeep.metrics.rows import (
    BINARY_ROW,
    GROUPED_ROW,
    GroupKeys,
    Rows,
    ScoreKind,
    binary_rows,
    checked_score_kind,
)
from widedeep.metrics.spill import DEFAULT_MAX_ROWS, SortedRows
from widedeep.metrics.sums import CompensatedSum, FixedBlocks, Numbers

__all__ = ["BinaryMetrics"]

_MEANS = (
    "log_loss",
    "normalized_entropy",
    "accuracy",
    "accuracy_baseline",
    "precision",
    "recall",
    "calibration",
    "label_mean",
    "prediction_mean",
    "rows",
)
_PER_GROUP = ("gauc", "mrr", *GROUP_COUNTS)
_CUT = ("ndcg", "map", "hit_rate")


class BinaryMetrics:
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
    - ``accuracy``: share of rows on the right side of 0.5; exactly 0.5 predicts 0.
    - ``accuracy_baseline``: accuracy of always predicting the more frequent class.
    - ``precision``, ``recall``: positives are called at a probability above 0.5.
    - ``calibration``: Σ predictions / Σ labels.
    - ``ece``: expected calibration error over bins of equal mass.
    - ``label_mean``, ``prediction_mean``, ``rows``.
    - ``gauc``: AUC within each group, weighted by impressions.
    - ``ndcg@k``, ``map@k``, ``hit_rate@k``, ``mrr``: means over groups; a row is relevant where its
      label is at least 0.5, and a tie counts with its expected value over all orders of the tied.
    - ``groups``, ``groups_one_class``, ``groups_without_positive``: how many there are, and how
      many are left out of ``gauc`` and of the four means.

    Args:
        names: The metrics wanted (keys of ``compute``, such as ``"auc"`` or ``"ndcg@5"``), so that
            nothing is sorted which is not needed; None for all.
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
        self._kind = checked_score_kind(score_kind)
        self._bins = ece_bins
        self._cuts = _checked_cuts([k] if isinstance(k, int) else list(k))
        if names is not None:
            self._cuts = _checked_cuts(_named_cuts(names))
        everything = [*CURVE_NAMES, *_MEANS, *_group_names(self._cuts)]
        self._names = _checked_names(names, everything, groups=groups)
        grouped = groups or any(name in _group_names(self._cuts) for name in self._names)
        sorts = grouped + any(name in CURVE_NAMES for name in self._names)
        held = max(1, max_rows_in_memory // max(1, sorts)) if max_rows_in_memory > 0 else 0
        self._by_score = self._by_group = None
        if any(name in CURVE_NAMES for name in self._names):
            self._by_score = SortedRows(BINARY_ROW, ("key",), held, spill_directory)
        if grouped:
            self._by_group = SortedRows(GROUPED_ROW, ("group", "key"), held, spill_directory)
        self._group_keys = GroupKeys() if grouped else None
        self._totals = FixedBlocks(_BinaryTotals(self._kind), BINARY_ROW)
        self._rows = 0
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Why a number of the last ``compute`` is NaN, by name."""
        return dict(self._reasons)

    @property
    def grouped(self) -> bool:
        """Whether updates must bring group ids."""
        return self._group_keys is not None

    def update(
        self,
        scores_B: ArrayLike,
        labels_B: ArrayLike,
        weights_B: ArrayLike | None = None,
        groups_B: ArrayLike | None = None,
    ) -> None:
        """Take rows into account.

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
            seen=self._rows,
            kind=self._kind,
            groups=groups_B,
            group_keys=self._group_keys,
        )
        self._rows += len(rows)
        if self._by_group is not None:
            self._by_group.append(rows)
            rows = rows[["key", "label", "weight"]].astype(BINARY_ROW)
        self._totals.append(rows)
        if self._by_score is not None:
            self._by_score.append(rows)

    def compute(self) -> dict[str, float]:
        """Return the metrics of all rows so far; more updates may follow."""
        totals = self._totals.totals()
        numbers = totals.numbers(self._rows)
        if self._by_score is not None:
            blocks = self._by_score.blocks()
            numbers.merge(curve_numbers(blocks, totals.weight, self._kind, self._bins))
        if self._by_group is not None:
            numbers.merge(ranking_numbers(self._by_group.blocks(), self._cuts))
        self._reasons = {
            name: reason for name, reason in numbers.reasons.items() if name in self._names
        }
        return {name: numbers.values[name] for name in self._names}


class _BinaryTotals:
    """Sums that need no order."""

    def __init__(self, kind: ScoreKind) -> None:
        self._kind = kind
        self._sums = CompensatedSum(8)

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self._sums.values()[0])

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

    def numbers(self, rows: int) -> Numbers:
        weight, positive, negative, predictions, loss, right, hits, called = (
            self._sums.values().tolist()
        )
        numbers = Numbers()
        numbers.put("rows", rows)
        reason = one_class(positive, negative)
        if weight == 0:
            numbers.undefined([name for name in _MEANS if name != "rows"], reason)
            return numbers
        numbers.put("log_loss", loss / weight)
        numbers.put("accuracy", right / weight)
        numbers.put("accuracy_baseline", max(positive, negative) / weight)
        numbers.put("label_mean", positive / weight)
        numbers.put("prediction_mean", predictions / weight)
        entropy = 0.0
        if positive and negative:
            rates = np.array([positive, negative]) / weight
            entropy = -float(np.sum(rates * np.log(rates)))
        numbers.ratio("normalized_entropy", loss / weight, entropy, reason)
        numbers.ratio("calibration", predictions, positive, reason)
        numbers.ratio("recall", hits, positive, reason)
        nothing_called = "no row of positive weight has a probability above 0.5"
        numbers.ratio("precision", hits, called, nothing_called)
        return numbers


def _group_names(cuts: tuple[int, ...]) -> list[str]:
    return [*_PER_GROUP, *(f"{name}@{k}" for k in cuts for name in _CUT)]


def _named_cuts(names: Sequence[str]) -> list[int]:
    """Return the k of each name such as ``"ndcg@5"``."""
    ends = (name.partition("@")[2] for name in names)
    return [int(end) for end in ends if end.isdecimal()]


def _checked_cuts(cuts: list[int]) -> tuple[int, ...]:
    for k in cuts:
        if not 1 <= k <= LARGEST_K:
            raise ConfigError(f"k: got {k}, expected 1 to {LARGEST_K}")
    return tuple(sorted(set(cuts)))


def _checked_names(names: Sequence[str] | None, known: list[str], *, groups: bool) -> list[str]:
    """Return the metrics to compute, or raise ConfigError for one that does not exist."""
    if names is None:
        ungrouped = [*CURVE_NAMES, *_MEANS]
        return known if groups else ungrouped
    for name in names:
        if name not in known:
            shown = [*known, *(f"{cut}@10" for cut in _CUT)]
            raise ConfigError(f"names: got {name!r}, no metric; {nearest(name, shown)}")
    return list(names)
