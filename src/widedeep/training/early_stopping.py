"""Early stopping: when to stop, and which model was best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from widedeep.errors import ConfigError, nearest

__all__ = ["EarlyStopping", "as_stopping"]

_HIGHER_IS_BETTER = (
    "auc",
    "pr_auc",
    "accuracy",
    "precision",
    "recall",
    "gauc",
    "r2",
    "ndcg",
    "map",
    "hit_rate",
    "mrr",
    "top",
)


class EarlyStopping:
    """Stops training when a validation metric no longer improves; the best model is restored.

    Args:
        monitor: A metric of :meth:`widedeep.Trainer.evaluate`, such as ``"log_loss"`` or ``"auc"``.
        patience: Evaluations without improvement before stopping, at least 1.
        min_delta: Smallest change that counts as an improvement, at least 0.

    Example:
        >>> stopping = EarlyStopping(patience=2)
        >>> losses = enumerate([0.5, 0.4, 0.45])
        >>> [stopping.update({"log_loss": value}, step) for step, value in losses]
        [True, True, False]
        >>> stopping.should_stop
        False
    """

    def __init__(
        self, monitor: str = "log_loss", *, patience: int = 2, min_delta: float = 0.0
    ) -> None:
        if patience < 1:
            raise ConfigError(f"got patience={patience}, expected at least 1")
        if min_delta < 0:
            raise ConfigError(f"got min_delta={min_delta}, expected a number >= 0")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_step = 0
        self.without = 0

    @property
    def should_stop(self) -> bool:
        """True once ``patience`` evaluations brought no improvement."""
        return self.without >= self.patience

    def update(self, metrics: Mapping[str, float], step: int) -> bool:
        """Take an evaluation; return True if it is the best so far.

        Raises:
            ConfigError: If the metric is not among those evaluated.
        """
        if self.monitor not in metrics:
            raise ConfigError(
                f"got monitor={self.monitor!r}, which was not evaluated; "
                f"{nearest(self.monitor, metrics)}"
            )
        value = metrics[self.monitor]
        if self._better(value):
            self.best, self.best_step, self.without = value, step, 0
            return True
        self.without += 1
        return False

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        name = self.monitor.rpartition("/")[2]
        if name.startswith(_HIGHER_IS_BETTER):
            return value > self.best + self.min_delta
        if name == "calibration":
            return abs(value - 1) < abs(self.best - 1) - self.min_delta
        return value < self.best - self.min_delta

    def dump(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "without": self.without}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the state :meth:`dump` returned."""
        self.best, self.best_step, self.without = (
            state["best"],
            state["best_step"],
            state["without"],
        )


def as_stopping(wanted: EarlyStopping | int | None, *, has_valid: bool) -> EarlyStopping | None:
    """Return the early stopping asked for: itself, one with that patience, or None.

    Raises:
        ConfigError: If there is no validation data to decide on.
    """
    if wanted is None:
        return None
    if not has_valid:
        raise ConfigError("got early_stopping without valid=...; give validation data to decide on")
    return wanted if isinstance(wanted, EarlyStopping) else EarlyStopping(patience=wanted)
