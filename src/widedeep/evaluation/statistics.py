"""Paired bootstrap comparison of two models: metrics, differences, p-values, corrections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.evaluation.compare import ComparedRows, HeadScores
from widedeep.metrics.regression import poisson_deviances

Floats = NDArray[np.float64]

MAX_CLUSTERS = 2000
"""Units are put into at most this many clusters, which are resampled whole: the time of a resample
does not depend on the number of rows."""
LOSSES = ("log_loss", "squared_error", "poisson_deviance")
"""Mean loss of a head; the squared error of a regression, the deviance of counts and amounts."""

_MIN_DEFINED = 0.9  # fraction of the resamples
_CALIBRATION_BINS = 10
_GAIN_POINTS = 20


def bootstrap_clusters(
    units_B: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.int64], int]:
    """Return the cluster of each row, and the number of clusters."""
    if count <= MAX_CLUSTERS:
        return units_B, count
    cluster_U = np.random.default_rng(seed).permutation(count) % MAX_CLUSTERS  # (units,)
    return cluster_U[units_B], MAX_CLUSTERS


def resample(clusters: int, times: int, seed: int) -> Floats:
    """Return how often each resample draws each cluster, (times, clusters): a multinomial."""
    chances = np.full(clusters, 1.0 / clusters)
    draws = np.random.default_rng(seed).multinomial(clusters, chances, size=times)
    return draws.astype(np.float64)


def placements(
    scores_B: Floats,
    positive_B: Floats,
    negative_B: Floats,
    groups_B: NDArray[np.int64],
    *,
    by_score_B: NDArray[np.intp] | None = None,
) -> tuple[Floats, Floats]:
    """Return each row's placement among the other class of its group, ties counted half.

    ``below_B``: weight fraction of the group's negatives with a lower score; ``above_B``: of its
    positives with a higher one. The mean of ``below_B`` over positives is the AUC.
    """
    order = np.argsort(scores_B) if by_score_B is None else by_score_B
    order = order[np.argsort(_narrow(groups_B)[order], kind="stable")]  # (B,) by group, then score
    group, score = groups_B[order], scores_B[order]
    new_group = np.r_[True, group[1:] != group[:-1]]
    # A run is the rows of one group with equal scores.
    new_run = new_group | np.r_[True, score[1:] != score[:-1]]
    run_B = np.cumsum(new_run) - 1  # (B,) run of each sorted row
    starts = np.flatnonzero(new_run)  # (R,) first row of each run
    group_R = np.cumsum(new_group)[starts] - 1  # (R,) group of each run
    first_run = np.flatnonzero(np.r_[True, group_R[1:] != group_R[:-1]])  # (G,) of each group
    fractions = []  # of the weight below each run, (R,): of the negatives, of the positives
    for weights in (negative_B[order], positive_B[order]):
        in_run = np.add.reduceat(weights, starts)
        before = np.cumsum(in_run) - in_run
        below = before - before[first_run][group_R]
        total = np.add.reduceat(in_run, first_run)[group_R]
        with np.errstate(divide="ignore", invalid="ignore"):
            fractions.append((below + 0.5 * in_run) / total)
    below_B, above_B = np.empty_like(scores_B), np.empty_like(scores_B)
    below_B[order] = fractions[0][run_B]
    above_B[order] = 1.0 - fractions[1][run_B]
    return below_B, above_B


def _narrow(groups_B: NDArray[np.int64]) -> NDArray[np.integer]:
    """Return few groups as 16 bits, which NumPy radix-sorts many times faster."""
    if len(groups_B) and groups_B.min() >= 0 and groups_B.max() < 2**15:
        return groups_B.astype(np.int16)
    return groups_B


def p_value_at_limit(estimate: float, error: float, limit: float) -> float:
    """Return the one-sided normal p-value of an estimate if the truth is at the limit."""
    if not math.isfinite(estimate) or not math.isfinite(error):
        return 0.0
    if error <= 0:
        return 0.0 if estimate > limit else 1.0
    return 0.5 * math.erfc((estimate - limit) / error / math.sqrt(2.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the family-wise error rate (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(raised, 1.0)
    return list(corrected.tolist())


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the false discovery rate (Benjamini and Hochberg 1995)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    ranks = np.arange(len(p), 0, -1)
    lowered = np.minimum.accumulate(p[order] * len(p) / ranks) if len(p) else p
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(lowered, 1.0)
    return list(corrected.tolist())


class BootstrapComparison:
    """Metrics of both models and of their differences, with resamples by cluster of units."""

    def __init__(self, rows: ComparedRows, *, resamples: int, seed: int) -> None:
        self.rows = rows
        self._clusters_B, self._clusters = bootstrap_clusters(rows.units_B, rows.n_units, seed)
        self._draws = resample(self._clusters, resamples, seed)  # (resamples, clusters)
        self._weighted_B = rows.weight_B > 0
        # Rows of the current head in order of each model's scores: sorted once for all slices.
        self._by_score: dict[str, NDArray[np.intp]] = {}

    def by_cluster(self, values_B: Floats, codes_B: NDArray[np.int64] | None, codes: int) -> Floats:
        """Sum rows by cluster and code: (clusters, codes)."""
        cell_B = self._clusters_B if codes_B is None else self._clusters_B * codes + codes_B
        sums = np.bincount(cell_B, values_B, self._clusters * codes).astype(np.float64)
        return sums.reshape(self._clusters, codes)

    def sums(
        self, values_B: Floats, codes_B: NDArray[np.int64] | None = None, codes: int = 1
    ) -> tuple[Floats, Floats]:
        """Return the sum of rows by code, (codes,), and of each resample, (resamples, codes)."""
        sums = self.by_cluster(values_B, codes_B, codes)
        return sums.sum(axis=0), self._draws @ sums

    def sort(self, head: HeadScores) -> None:
        """Take a head's weights, and sort the rows by its scores, before it is measured."""
        self.rows = replace(self.rows, weight_B=head.weight_B)
        self._weighted_B = head.weight_B > 0
        ordered = head.head.kind in ("binary", "ranking")
        models = model_scores(head) if ordered else {}
        self._by_score = {name: np.argsort(v, kind="stable") for name, v in models.items()}

    def curves(self, head: HeadScores) -> dict[str, list[list[float]]]:
        """Return the calibration curve of each model of a sorted head."""
        if head.head.kind != "binary":
            return {}
        return {
            name: calibration_curve(
                head.labels_B, model_scores(head)[name], self.rows.weight_B, by_score_B
            )
            for name, by_score_B in self._by_score.items()
        }

    def has_ratio(self, head: HeadScores) -> bool:
        """Whether predicted / observed is a measure: for labels that are counts or amounts."""
        labels = head.labels_B[self._weighted_B]
        amounts = head.head.kind not in ("multiclass", "ranking")
        return amounts and not (len(labels) and labels.min() < 0)

    def measure(
        self, head: HeadScores, codes_B: NDArray[np.int64], codes: int, *, slices: bool
    ) -> list[dict[str, Any]]:
        """Return both models' metrics and their differences, one entry per code."""
        weight_B, labels_B = self.rows.weight_B, head.labels_B
        binary = head.head.kind == "binary"
        weights, resampled_weights = self.sums(weight_B, codes_B, codes)
        labels, resampled_labels = self.sums(weight_B * labels_B, codes_B, codes)
        by_model: dict[str, dict[str, tuple[Floats, Floats]]] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, scores_B in model_scores(head).items():
                loss, resampled_loss = self.sums(
                    weight_B * head.losses(name, scores_B), codes_B, codes
                )
                measures = {
                    loss_measure(head): (loss / weights, resampled_loss / resampled_weights)
                }
                if self.has_ratio(head):
                    total, resampled = self.sums(weight_B * scores_B, codes_B, codes)
                    measures["calibration"] = (total / labels, resampled / resampled_labels)
                if binary:
                    measures["auc"] = self._auc(head, name, codes_B, codes)
                grouped = not slices and self.rows.groups_B is not None
                if grouped and head.head.kind in ("binary", "ranking"):
                    measures["gauc"] = self._gauc(head, name)
                by_model[name] = measures
            rate = labels / weights
            constant = self._constant(head, codes_B, codes, weights)
            return [
                _differences(
                    by_model,
                    code,
                    rate=float(rate[code]) if binary else None,
                    constant=float(constant[code]),
                )
                for code in range(codes)
            ]

    def _constant(
        self, head: HeadScores, codes_B: NDArray[np.int64], codes: int, weights: Floats
    ) -> Floats:
        """Return the loss of the best constant in each code: mean label or class fractions."""
        weight_B, labels_B = self.rows.weight_B, head.labels_B
        if "constant" in head.row_losses:
            return np.bincount(codes_B, weight_B * head.row_losses["constant"], codes) / weights
        if head.head.kind == "multiclass":
            classes = int(labels_B.max()) + 1
            cell_B = codes_B * classes + labels_B.astype(np.int64)
            counts = np.bincount(cell_B, weight_B, codes * classes).reshape(codes, classes)
            fractions: Floats = counts / weights[:, None]  # (codes, classes)
            logs = np.log(np.where(fractions > 0, fractions, 1.0))
            return np.asarray(-(fractions * logs).sum(axis=1))
        mean = np.bincount(codes_B, weight_B * labels_B, codes) / weights
        if head.is_amount:
            deviance_B = weight_B * poisson_deviances(mean[codes_B], labels_B)
            return np.asarray(np.bincount(codes_B, deviance_B, codes) / weights)
        if head.head.kind == "regression":
            squared_B = weight_B * (labels_B - mean[codes_B]) ** 2
            return np.asarray(np.bincount(codes_B, squared_B, codes) / weights)
        return _entropy(mean)

    def _placements(
        self, head: HeadScores, name: str, groups_B: NDArray[np.int64]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Return each row's weight as a positive, as a negative, and its placements."""
        weight_B = self.rows.weight_B
        positive_B, negative_B = weight_B * head.labels_B, weight_B * (1.0 - head.labels_B)
        scores_B, by_score_B = model_scores(head)[name], self._by_score[name]
        below_B, above_B = placements(
            scores_B, positive_B, negative_B, groups_B, by_score_B=by_score_B
        )
        return positive_B, negative_B, below_B, above_B

    def _auc(
        self, head: HeadScores, name: str, codes_B: NDArray[np.int64], codes: int
    ) -> tuple[Floats, Floats]:
        """Return the AUC within each code, and its resamples by each row's influence (Hájek)."""
        positive_B, negative_B, below_B, above_B = self._placements(head, name, codes_B)
        positive = np.bincount(codes_B, positive_B, codes)
        negative = np.bincount(codes_B, negative_B, codes)
        auc = np.bincount(codes_B, np.nan_to_num(below_B) * positive_B, codes) / positive
        auc[(positive == 0) | (negative == 0)] = np.nan
        influence_B = (below_B - auc[codes_B]) * positive_B / positive[codes_B]
        influence_B += (above_B - auc[codes_B]) * negative_B / negative[codes_B]
        _, change = self.sums(np.nan_to_num(influence_B), codes_B, codes)
        return auc, auc + change

    def _gauc(self, head: HeadScores, name: str) -> tuple[Floats, Floats]:
        """Return the weighted mean AUC within groups; a group is in its first row's cluster."""
        assert self.rows.groups_B is not None
        weight_B = self.rows.weight_B
        _, first, groups_B = np.unique(self.rows.groups_B, return_index=True, return_inverse=True)
        positive_B, negative_B, below_B, _ = self._placements(head, name, groups_B)
        count = len(first)
        positive = np.bincount(groups_B, positive_B, count)
        auc = np.bincount(groups_B, np.nan_to_num(below_B) * positive_B, count) / positive
        has_both = (positive > 0) & (np.bincount(groups_B, negative_B, count) > 0)
        weight = np.where(has_both, np.bincount(groups_B, weight_B, count), 0.0)
        cluster_G = self._clusters_B[first]
        columns = (weight * np.nan_to_num(auc), weight)
        # (clusters, 2): weighted AUC and weight
        sums = np.stack([np.bincount(cluster_G, v, self._clusters) for v in columns], 1)
        resampled = self._draws @ sums
        total = sums.sum(axis=0)
        return total[:1] / total[1:], resampled[:, :1] / resampled[:, 1:]


def is_defined(change: Mapping[str, float]) -> bool:
    """Whether a difference and its interval are finite numbers."""
    return all(math.isfinite(change[key]) for key in ("worse", "error", "low", "high"))


def calibration_curve(
    labels_B: Floats, scores_B: Floats, weight_B: Floats, by_score_B: NDArray[np.intp] | None = None
) -> list[list[float]]:
    """Return mean score, mean label and weight of each tenth of the rows by score."""
    if by_score_B is None:
        by_score_B = np.argsort(scores_B, kind="stable")
    points = []
    for rows in np.array_split(by_score_B, _CALIBRATION_BINS):
        total = float(weight_B[rows].sum())
        if total > 0:
            means = [float((v[rows] * weight_B[rows]).sum() / total) for v in (scores_B, labels_B)]
            points.append([*means, total])
    return points


def model_scores(head: HeadScores) -> dict[str, Floats]:
    """Return the scores of the candidate, and of the serving model if there is one."""
    models = {"candidate": head.candidate_B}
    return models if head.serving_B is None else {**models, "serving": head.serving_B}


def loss_measure(head: HeadScores) -> str:
    """Return the name of a head's mean loss."""
    if head.is_amount:
        return "poisson_deviance"
    return "squared_error" if head.head.kind == "regression" else "log_loss"


def _entropy(rate: Floats) -> Floats:
    rate = np.clip(rate, 1e-15, 1 - 1e-15)
    entropy: Floats = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return entropy


def _differences(
    by_model: Mapping[str, Mapping[str, tuple[Floats, Floats]]],
    code: int,
    *,
    rate: float | None,
    constant: float,
) -> dict[str, Any]:
    """Return both models' metrics of one code, and by how much the candidate is worse."""
    entry: dict[str, Any] = {"changes": {}}
    if rate is not None:
        entry["label_mean"] = rate
    for name, metrics in by_model.items():
        entry[name] = {metric: float(value[code]) for metric, (value, _) in metrics.items()}
        loss = next(entry[name][loss] for loss in LOSSES if loss in metrics)
        entry[name]["normalized_loss"] = loss / constant if constant > 0 else math.nan
        if "calibration" in metrics:
            value, resampled = metrics["calibration"]
            entry[name]["calibration_distance"] = float(_distance(value)[code])
            entry[name]["calibration_error"] = _spread(_logs(resampled)[:, code])
    if "serving" not in by_model:
        return entry
    for metric, (value, resampled) in by_model["candidate"].items():
        base, base_resampled = by_model["serving"][metric]
        if metric in LOSSES:
            worse, changes = value / base - 1.0, resampled / base_resampled - 1.0
        elif metric == "calibration":
            worse = _distance(value) - _distance(base)
            changes = _distance(resampled) - _distance(base_resampled)
        else:
            worse, changes = base - value, base_resampled - resampled
        column = changes[:, code]
        error = _spread(column)
        low, high = (
            np.quantile(column[np.isfinite(column)], [0.025, 0.975])
            if math.isfinite(error)
            else (math.nan, math.nan)
        )
        entry["changes"][metric] = {
            "worse": float(worse[code]),
            "error": error,
            "low": float(low),
            "high": float(high),
        }
    return entry


def _spread(values: Floats) -> float:
    """Return the standard deviation of resamples; NaN where too many of them are undefined."""
    finite = values[np.isfinite(values)]
    return float(finite.std()) if len(finite) >= _MIN_DEFINED * len(values) else math.nan


def _logs(ratio: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(ratio, 1e-12))
    return logs


def _distance(ratio: Floats) -> Floats:
    distance: Floats = np.abs(_logs(ratio))
    return distance


def gain_curve(labels_B: Floats, scores_B: Floats, weight_B: Floats) -> list[list[float]]:
    """Return (fraction of rows from the top, fraction of the positives among them)."""
    _, rank_B = np.unique(-scores_B, return_inverse=True)  # (B,) rank of the row's score
    rows = np.cumsum(np.bincount(rank_B, weight_B))
    positives = np.cumsum(np.bincount(rank_B, weight_B * labels_B))
    if not positives[-1] > 0:
        return []
    fractions = np.arange(_GAIN_POINTS + 1) / _GAIN_POINTS
    across, up = (np.concatenate([[0.0], sums / sums[-1]]) for sums in (rows, positives))
    return [
        [x, y]
        for x, y in zip(fractions.tolist(), np.interp(fractions, across, up).tolist(), strict=True)
    ]
