"""Off-policy evaluation: what a model's rankings would earn, estimated from an explored log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import DataError
from widedeep.evaluation.compare import ByHead, ComparedRows, HeadScores
from widedeep.evaluation.logged_rankings import LoggedRankings
from widedeep.evaluation.statistics import bootstrap_clusters, resample

__all__ = ["ESTIMATORS", "estimate_policies", "policy_values"]

Floats = NDArray[np.float64]

ESTIMATORS = {
    "dr": "doubly robust",
    "snips": "self-normalised inverse propensity",
    "ips": "inverse propensity",
    "clipped": "clipped inverse propensity",
    "direct": "the model's own prediction",
}
"""Estimators by name, with their titles, those to be trusted first."""
LEAST_ESS = 100
"""Fewer effective rows than this say too little of a policy."""
_SURE = 3.29  # standard errors: two-sided, one in a thousand
_PERCENTILES = (0.025, 0.975)


class UndefinedPrediction(DataError):
    """A model's prediction is no number."""


def estimate_policies(
    log: LoggedRankings,
    rewards_B: ArrayLike,
    models: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    units_B: NDArray[np.int64] | None = None,
    clip: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Estimate the reward per request if each model had ranked the log's requests.

    A model ranks a request's rows by its scores, equal ones drawn, not as they stand in the log,
    and shows as many as were shown. Every estimate
    assumes that an item's reward at a place does not depend on the other items (the item-position
    model of Li et al. 2018, *Offline Evaluation of Ranking Policies with Click Models*), and that
    the rows hold all candidates. With w = [the model gives the item the place it had] / propensity:

    - ``ips``: mean of Σ w r (Horvitz and Thompson 1952).
    - ``snips``: at each place Σ w r / Σ w (Swaminathan and Joachims 2015), added up.
    - ``clipped``: as ``ips`` with w at most ``clip`` (Ionides 2008).
    - ``direct``: Σ q over the model's own list; q is its prediction, times observed / predicted at
      the place where neither is ever below 0.
    - ``dr``: direct + mean of Σ w (r - q) (Dudík et al. 2011): right if the propensities or the
      predictions are, and of little variance where the predictions are good.

    Args:
        log: How the rows were ranked; requests without propensities are left out.
        rewards_B: Reward of each row, finite; not read where the row was not shown. NaN: not known;
            its request is left out.
        models: By name, the scores to rank by, and the predicted rewards (B,).
        units_B: Unit of each row that is resampled whole (a user), from 0; None: requests.
        clip: Largest weight of ``clipped``, at least 1; None: √requests.
        resamples: Bootstrap resamples for the 95 % intervals.
        seed: Bootstrap seed.

    Returns:
        ``requests``, ``explored`` (those with propensities), ``slots`` (rows that were shown),
        ``clip``, ``logged`` (the log's own reward), ``models``, and ``change`` of the first model
        against the second: by how much less it earns, relative, by ``dr``; NaN where a resample
        of the second earns 0 or less, to which nothing is relative. An estimate has
        ``value``, ``low``, ``high``; a model also ``ess`` (effective rows, (Σw)² / Σw²),
        ``agreement`` (of places), ``weight_mean`` (1 if the log is whole) and ``problem``.

    Raises:
        DataError: If no request is left, or the scores are no numbers.

    Example:
        >>> import pyarrow as pa
        >>> log = LoggedRankings.of_columns(
        ...     pa.chunked_array([["a", "a", "b", "b"]]),
        ...     pa.chunked_array([[1, None, 1, None]]),
        ...     pa.chunked_array([[0.5, None, 0.5, None]]),
        ... )
        >>> best = ([2.0, 1.0, 1.0, 2.0], [0.2, 0.1, 0.1, 0.2])
        >>> estimate = estimate_policies(log, [1, 0, 0, 0], {"new": best})
        >>> estimate["models"]["new"]["ips"]["value"], estimate["logged"]["value"]
        (1.0, 0.5)
    """
    rewards_B = np.asarray(rewards_B, np.float64)
    # Requests with propensities whose shown rows all have a reward.
    unknown_B = (log.position_B > 0) & np.isnan(rewards_B)
    keep_B = log.explored_B & (np.bincount(log.request_B, unknown_B)[log.request_B] == 0)
    if not keep_B.any():
        raise DataError("no request has propensities and rewards; there is nothing to estimate")
    total, log = log.requests, log.of_requests(keep_B)
    count = int(log.request_B.max()) + 1
    clip = math.sqrt(count) if clip is None else clip
    first_R = np.unique(log.request_B, return_index=True)[1]
    units_R = np.arange(count) if units_B is None else np.asarray(units_B)[keep_B][first_R]
    _, units_R = np.unique(units_R, return_inverse=True)
    clusters_R, clusters = bootstrap_clusters(units_R, int(units_R.max()) + 1, seed)
    draws = resample(clusters, resamples, seed)
    rewards_B = np.where(log.position_B > 0, rewards_B[keep_B], 0.0)
    resampler = _Resampler(clusters_R, clusters, draws)
    policies = {}
    for name, (scores, predicted) in models.items():
        scores_B, predicted_B = (np.asarray(v, np.float64)[keep_B] for v in (scores, predicted))
        if not np.isfinite(predicted_B).all():
            raise UndefinedPrediction(
                f"{name}: a prediction is NaN or infinite; a model cannot be judged by it"
            )
        policies[name] = _Policy(log, rewards_B, scores_B, predicted_B, resampler, clip)
    value = resampler.mean(_per_request(log, rewards_B, count))
    result = {
        "requests": total,
        "explored": count,
        "slots": int(np.count_nonzero(log.position_B)),
        "clip": clip,
        "logged": _interval(*value),
        "models": {name: policy.summary() for name, policy in policies.items()},
    }
    if len(policies) > 1:
        new, old = (policy.values["dr"] for policy in list(policies.values())[:2])
        earns = old[0] > 0 and bool((old[1] > 0).all())
        base, bases = old if earns else (math.nan, np.full_like(old[1], math.nan))
        worse = _interval(1.0 - new[0] / base, 1.0 - new[1] / bases)
        result["change"] = {"worse": worse.pop("value"), **worse}
    return result


def policy_values(rows: ComparedRows, *, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return :func:`estimate_policies` by head: its label is the reward; {} without propensities.

    Raises:
        DataError: If no request is left to estimate from.
    """
    if rows.rankings is None:
        return {}
    return {
        head.head.name: estimate_policies(
            rows.rankings,
            np.where(head.weight_B > 0, head.labels_B, np.nan),
            {
                model: (order_B, _predicted(head, rows.served_scores[model]))
                for model, order_B in rows.rank_scores.items()
            },
            units_B=None if rows.unit is None else rows.units_B,
            resamples=resamples,
            seed=seed,
        )
        for head in rows.heads
        if not head.head.by_class
    }


def _predicted(head: HeadScores, scores: ByHead) -> Floats:
    """Return the reward that a model predicts for each row; 0 where its score is no reward."""
    scores_B = scores[head.head.name]
    return np.zeros(len(scores_B)) if head.head.kind == "ranking" else scores_B


@dataclass(frozen=True, slots=True)
class _Resampler:
    """Means over requests, and of resamples of their clusters."""

    clusters_R: NDArray[np.int64]
    clusters: int
    draws: Floats  # (resamples, clusters)

    def sums(self, values_R: Floats) -> tuple[float, Floats]:
        by_cluster = np.bincount(self.clusters_R, values_R, self.clusters)
        return float(by_cluster.sum()), self.draws @ by_cluster

    def mean(self, values_R: Floats) -> tuple[float, Floats]:
        (total, resampled), (count, counts) = (
            self.sums(values) for values in (values_R, np.ones(len(values_R)))
        )
        return total / count, resampled / counts


class _Policy:
    """What one model's rankings would earn, by each estimator."""

    def __init__(
        self,
        log: LoggedRankings,
        rewards_B: Floats,
        scores_B: Floats,
        predicted_B: Floats,
        resampler: _Resampler,
        clip: float,
    ) -> None:
        request_B, position_B = log.request_B, log.position_B
        shown_B, rank_B = position_B > 0, log.order(np.nan_to_num(scores_B, nan=-np.inf))
        count, last = len(resampler.clusters_R), int(position_B.max())
        self.match_B = shown_B & (rank_B == position_B)
        w_B = np.where(self.match_B, 1.0 / np.where(shown_B, log.propensity_B, 1.0), 0.0)
        slots_RK = np.zeros((count, last + 1), bool)  # (requests, places): shown there
        slots_RK[request_B[shown_B], position_B[shown_B]] = True
        # The model's item for each place that was filled, and its predicted reward there.
        place_B = np.where(rank_B <= last, rank_B, 0)
        own_B = slots_RK[request_B, place_B]
        observed, predicted = (
            np.bincount(position_B, np.where(shown_B, values, 0.0), last + 1)
            for values in (rewards_B, predicted_B)
        )
        ratio_K = np.ones(last + 1)
        if predicted_B.min() >= 0 and rewards_B.min() >= 0:  # else sums cancel: no scale is told
            np.divide(observed, predicted, out=ratio_K, where=predicted > 0)

        def by_request(values_B: Floats) -> Floats:
            return _per_request(log, values_B, count)

        direct_R = by_request(np.where(own_B, predicted_B * ratio_K[place_B], 0.0))
        residual_B = w_B * (rewards_B - predicted_B * ratio_K[position_B])
        self.values = {
            "dr": resampler.mean(direct_R + by_request(residual_B)),
            "snips": _self_normalised(log, w_B, rewards_B, slots_RK, resampler),
            "ips": resampler.mean(by_request(w_B * rewards_B)),
            "clipped": resampler.mean(by_request(np.minimum(w_B, clip) * rewards_B)),
            "direct": resampler.mean(direct_R),
        }
        weights, slots = (resampler.sums(by_request(v)) for v in (w_B, shown_B.astype(np.float64)))
        self.weight_mean = weights[0] / slots[0], weights[1] / slots[1]
        self.ess = float(w_B.sum() ** 2 / max((w_B**2).sum(), 1e-300))
        self.agreement = float(self.match_B.sum() / shown_B.sum())

    def problem(self) -> str | None:
        """Return why the estimates are not to be trusted; None: nothing speaks against them."""
        mean, error = self.weight_mean[0], float(self.weight_mean[1].std())
        if mean - _SURE * error > 1.02:
            return (
                f"the weights add up to {mean:.3g} per place, expected 1: the log lacks candidates "
                "that were not shown, or its propensities are not of an item at a place"
            )
        if self.ess < LEAST_ESS:
            return (
                f"what the log shows of this ranking is worth {self.ess:,.0f} rows, expected at "
                f"least {LEAST_ESS}: explore more, or take a longer log"
            )
        if mean + _SURE * error < 0.98:
            return (
                f"the log's policy never shows about {1 - mean:.0%} of what this model would show; "
                "the weighted estimates count nothing for it"
            )
        return None

    def summary(self) -> dict[str, Any]:
        """Return the estimates as plain values."""
        return {
            **{name: _interval(*self.values[name]) for name in ESTIMATORS},
            "ess": self.ess,
            "agreement": self.agreement,
            "weight_mean": _interval(*self.weight_mean),
            "problem": self.problem(),
        }


def _per_request(log: LoggedRankings, values_B: Floats, count: int) -> Floats:
    sums: Floats = np.bincount(log.request_B, values_B, count).astype(np.float64)
    return sums


def _self_normalised(
    log: LoggedRankings,
    w_B: Floats,
    rewards_B: Floats,
    slots_RK: NDArray[np.bool_],
    resampler: _Resampler,
) -> tuple[float, Floats]:
    """Return the sum over places of the weighted mean reward there, and of each resample."""
    count, places = slots_RK.shape
    total, resampled = 0.0, np.zeros(len(resampler.draws))
    requests = resampler.sums(np.ones(count))
    for place in range(1, places):
        there_B = np.where(log.position_B == place, w_B, 0.0)
        sums = [
            resampler.sums(_per_request(log, values_B, count))
            for values_B in (there_B * rewards_B, there_B)
        ]
        filled = resampler.sums(slots_RK[:, place].astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            one, many = (
                np.asarray(reward / weight * slots / rows)
                for reward, weight, slots, rows in zip(*sums, filled, requests, strict=True)
            )
        total, resampled = total + float(one), resampled + many
    return total, resampled


def _interval(value: float, resampled: Floats) -> dict[str, float]:
    """Return an estimate with its bootstrap's standard error and 95 % interval."""
    if not (math.isfinite(value) and np.isfinite(resampled).all()):
        return {"value": value, "error": math.nan, "low": math.nan, "high": math.nan}
    low, high = np.quantile(resampled, _PERCENTILES)
    return {
        "value": float(value),
        "error": float(resampled.std()),
        "low": float(low),
        "high": float(high),
    }
