"""Learning-rate schedules: one factor for all learning rates of a step."""

from __future__ import annotations

import math
from typing import Literal

_BATCH_SIZES = (16, 512)
_BATCHES = 100  # in an epoch of a small table
# Steps to learn a table in, and the most passes for them: with early stopping, and without.
_STOPPED_STEPS, _STOPPED_EPOCHS = 4000, 100
_FIXED_STEPS, _FIXED_EPOCHS = 1000, 20


def auto_batch_size(rows: int) -> int:
    """Return the batch size of a table: about a hundredth of its rows, a power of two."""
    least, most = _BATCH_SIZES
    nearest = 1 << max(0, round(math.log2(max(rows, 1) / _BATCHES)))
    return min(max(nearest, least), most)


def auto_epochs(rows: int, batch_size: int, *, early_stopping: bool) -> int:
    """Return how many passes give a table enough steps."""
    steps, most = (
        (_STOPPED_STEPS, _STOPPED_EPOCHS) if early_stopping else (_FIXED_STEPS, _FIXED_EPOCHS)
    )
    return min(most, math.ceil(steps / math.ceil(rows / batch_size)))


def rate_factor(
    schedule: Literal["constant", "linear", "cosine", "wsd"],
    step: int,
    total_steps: int | None,
    warmup_steps: int = 0,
    decay_fraction: float = 0.2,
) -> float:
    """Return the factor of a step's learning rates."""
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant" or not total_steps:
        return rise
    done = min(1.0, step / total_steps)
    if schedule == "cosine":
        return rise * 0.5 * (1.0 + math.cos(math.pi * done))
    fall = 1.0 - done
    return rise * (min(1.0, fall / decay_fraction) if schedule == "wsd" else fall)
