"""What can be proved of two models on one sample: sums by unit, resampled; many tests corrected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_BAGS = 2000
"""Units are put into this many bags at most, which are resampled whole: a resample then costs the
same for any number of rows."""

Floats = NDArray[np.float64]


def bags_of(units_B: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], int]:
    """Return the bag of each row, and how many bags there are."""
    if count <= MOST_BAGS:
        return units_B, count
    bag_of_unit = np.random.default_rng(seed).permutation(count) % MOST_BAGS
    return bag_of_unit[units_B], MOST_BAGS


def resample(bags: int, times: int, seed: int) -> Floats:
    """Return how often each resample draws each bag, (times, bags): a multinomial bootstrap."""
    drawn = np.random.default_rng(seed).multinomial(bags, np.full(bags, 1.0 / bags), size=times)
    return drawn.astype(np.float64)


def placements(
    scores_B: Floats,
    positive_B: Floats,
    negative_B: Floats,
    groups_B: NDArray[np.int64],
    *,
    by_score_B: NDArray[np.intp] | None = None,
) -> tuple[Floats, Floats]:
    """Return each row's place among the other class of its group."""
    order = np.argsort(scores_B) if by_score_B is None else by_score_B
    order = order[np.argsort(_narrow(groups_B)[order], kind="stable")]
    group, score = groups_B[order], scores_B[order]
    new_group = np.r_[True, group[1:] != group[:-1]]
    new_run = new_group | np.r_[True, score[1:] != score[:-1]]
    run = np.cumsum(new_run) - 1
    starts = np.flatnonzero(new_run)
    of_run = np.cumsum(new_group)[starts] - 1
    first_run = np.flatnonzero(np.r_[True, of_run[1:] != of_run[:-1]])
    shares = []
    for weights in (negative_B[order], positive_B[order]):
        in_run = np.add.reduceat(weights, starts)
        before = np.cumsum(in_run) - in_run
        below = before - before[first_run][of_run]
        total = np.add.reduceat(in_run, first_run)[of_run]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares.append((below + 0.5 * in_run) / total)
    below_B, above_B = np.empty_like(scores_B), np.empty_like(scores_B)
    below_B[order] = shares[0][run]
    above_B[order] = 1.0 - shares[1][run]
    return below_B, above_B


def _narrow(groups_B: NDArray[np.int64]) -> NDArray[np.integer]:
    """Few groups as 16 bits, which NumPy sorts by their digits, many times faster."""
    if len(groups_B) and groups_B.min() >= 0 and groups_B.max() < 2**15:
        return groups_B.astype(np.int16)
    return groups_B


def p_above(estimate: float, error: float, limit: float) -> float:
    """Return the one-sided normal p-value of an estimate if the truth is at the limit."""
    if not math.isfinite(estimate) or not math.isfinite(error):
        return 0.0
    if error <= 0:
        return 0.0 if estimate > limit else 1.0
    return 0.5 * math.erfc((estimate - limit) / error / math.sqrt(2.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that none is false by chance (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    found = np.empty(len(p))
    found[order] = np.minimum(raised, 1.0)
    return list(found.tolist())


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected so that few of the tests named are false."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    ranks = np.arange(len(p), 0, -1)
    lowered = np.minimum.accumulate(p[order] * len(p) / ranks) if len(p) else p
    found = np.empty(len(p))
    found[order] = np.minimum(lowered, 1.0)
    return list(found.tolist())
