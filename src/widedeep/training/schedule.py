"""Learning-rate schedules: one factor for all learning rates of a step."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["rate_factor"]


def rate_factor(
    schedule: Literal["constant", "linear", "cosine"],
    step: int,
    total_steps: int | None,
    warmup_steps: int = 0,
) -> float:
    """Return the factor of a step's learning rates.

    Args:
        schedule: ``"constant"``, or a ``"linear"`` or ``"cosine"`` decay to 0 at the end of the
            run.
        step: Steps done before this one, from 0.
        total_steps: Steps of the run; without it a decay stays at 1.
        warmup_steps: The factor rises linearly over this many first steps.

    Example:
        >>> [round(rate_factor("linear", step, 4), 2) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> rate_factor("constant", 0, None, warmup_steps=2)
        0.5
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant" or not total_steps:
        return rise
    done = min(1.0, step / total_steps)
    fall = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return rise * fall
