"""The settings that an estimator tries on rows left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FEW_ROWS = 5_000
"""Rows up to which each of three parts is left out in turn; of more, one part is."""
MOST_ROWS = 50_000
"""Rows that settings are tried on; of more, as many are sampled."""
_FOLDS = 3
_LEAST_ROWS = 30
_STEPS = 600
# A setting so much worse on the first part is tried on no other.
_HOPELESS = 1.05


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model of a table is made and trained."""

    bins: bool = True  # Numbers are also cut into bins
    weight_decay: float = 1.0  # Weight decay of the dense parameters
    steps: int = _STEPS  # Steps of a run, at least; one pass is never cut


@dataclass(frozen=True, kw_only=True)
class ScoredSetting:
    """A setting and the mean of its losses on rows left out; of one part alone if hopeless."""

    setting: Setting
    loss: float


def validation_splits(
    strata: NDArray[np.int64], fraction: float, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split rows into those that are learned and those left out, alike in their strata."""
    rows = len(strata)
    if rows < _LEAST_ROWS:
        return []
    order = np.random.Generator(np.random.Philox(seed)).permutation(rows)[:MOST_ROWS]
    # Rows in turn, stratum by stratum: each part gets its share of each.
    order = order[np.argsort(strata[order], kind="stable")]
    count = _FOLDS if rows <= FEW_ROWS else max(2, round(1 / fraction))
    turns = range(_FOLDS if rows <= FEW_ROWS else 1)
    fold = np.arange(len(order)) % count
    return [(np.sort(order[fold != turn]), np.sort(order[fold == turn])) for turn in turns]


def search(
    judge: Callable[[Setting, int], float], parts: int, *, bins: bool
) -> tuple[Setting, list[ScoredSetting]]:
    """Try settings from a plain one on, each beside the best before it."""
    tried: list[ScoredSetting] = []
    best: list[float] = []

    def better(setting: Setting) -> bool:
        nonlocal best
        losses: list[float] = []
        for fold in range(parts):
            losses.append(judge(setting, fold))
            if best and losses[0] > _HOPELESS * best[0]:
                break
        tried.append(ScoredSetting(setting=setting, loss=float(np.mean(losses))))
        improved = not best or (len(losses) == parts and np.mean(losses) < np.mean(best))
        best = losses if improved else best
        return bool(improved)

    setting = Setting(bins=False)
    better(setting)
    if bins and better(replace(setting, bins=True)):
        setting = replace(setting, bins=True)
    for decay in (3.0, 0.3):
        if better(replace(setting, weight_decay=decay)):
            setting = replace(setting, weight_decay=decay)
            break
    if parts == 1 and better(replace(setting, steps=3 * setting.steps)):
        setting = replace(setting, steps=3 * setting.steps)
    return setting, tried
