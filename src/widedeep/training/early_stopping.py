"""Early stopping: when to stop, and which model was best."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from widedeep.errors import ConfigError, DataError, show_value
from widedeep.metrics.registry import check_quality_metric, is_better, loss_metric
from widedeep.options import Auto
from widedeep.training.config import TrainConfig
from widedeep.training.schedules import Plateau

__all__ = ["EarlyStopping"]

_PATIENCE = 2  # evaluations; a first rise may be noise, a second one seldom is


class EarlyStopping:
    """Stops training when a validation metric no longer improves; the best model is restored.

    A metric that is not defined (the AUC of one class, a score that is no number) is never the
    best: the first evaluation raises, a later one counts as no improvement and is told.

    Args:
        monitor: A metric of :meth:`widedeep.Trainer.evaluate`, such as ``"auc"``; None: the model's
            loss, which is ``"log_loss"``, ``"rmse"`` for a regression, and for several heads
            ``"loss"``, their sum.
        patience: Evaluations without improvement before stopping, at least 1.
        min_delta: Smallest change that counts as an improvement, at least 0.

    Example:
        >>> import widedeep as wd
        >>> stopping = wd.EarlyStopping(patience=2)
        >>> losses = enumerate([0.5, 0.4, 0.45])
        >>> [stopping.update({"log_loss": value}, step) for step, value in losses]
        [True, True, False]
        >>> stopping.should_stop
        False
    """

    def __init__(
        self, monitor: str | None = None, *, patience: int = _PATIENCE, min_delta: float = 0.0
    ) -> None:
        if monitor is not None and (not isinstance(monitor, str) or not monitor):
            raise ConfigError(f"got monitor={show_value(monitor)}, expected a metric's name")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ConfigError(f"got patience={show_value(patience)}, expected at least 1")
        number = isinstance(min_delta, (int, float)) and not isinstance(min_delta, bool)
        if not number or not 0 <= min_delta < math.inf:
            raise ConfigError(f"got min_delta={show_value(min_delta)}, expected a number >= 0")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_step = 0
        self.without = 0
        self.undefined: str | None = None

    @property
    def should_stop(self) -> bool:
        """True once ``patience`` evaluations brought no improvement."""
        return self.without >= self.patience

    def check_monitor(self, names: Collection[str]) -> None:
        """Refuse a monitor that will not be evaluated, or that says nothing about quality.

        Without a monitor, the model's loss becomes it.

        Raises:
            ConfigError: With the nearest name.
        """
        if self.monitor is None:
            self.monitor = loss_metric(names)
        check_quality_metric(self.monitor, names, "monitor=")

    def update(
        self, metrics: Mapping[str, float], step: int, reasons: Mapping[str, str] | None = None
    ) -> bool:
        """Take an evaluation; return True if it is the best so far.

        Raises:
            ConfigError: If the metric is not among those evaluated.
            DataError: If it is not defined at the first evaluation.
        """
        self.check_monitor(metrics)
        assert self.monitor is not None
        value = metrics[self.monitor]
        self.undefined = None
        if not math.isfinite(value):
            reason = (reasons or {}).get(self.monitor, "the model's scores are no numbers")
            self.undefined = f"{self.monitor} on the validation data is {value:g}: {reason}"
            if self.best is None:
                raise DataError(
                    f"early stopping: {self.undefined}; monitor another metric, give other "
                    "validation data, or lower the learning rates"
                )
        if self._better(value):
            self.best, self.best_step, self.without = value, step, 0
            return True
        self.without += 1
        return False

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.best is None or is_better(self.monitor or "", value, self.best, self.min_delta)

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


def configured_stopping(config: TrainConfig, *, has_valid: bool) -> EarlyStopping | Auto | None:
    """Return the early stopping that a configuration asks for, as ``Trainer.fit`` takes it."""
    check_conditions(config, has_valid=has_valid)
    if config.early_stopping is False:
        return None
    if config.patience is None and config.early_stopping == "auto":
        return EarlyStopping(config.monitor) if has_valid and config.monitor else "auto"
    if not has_valid:
        option = (
            "early_stopping = true" if config.patience is None else f"patience = {config.patience}"
        )
        raise ConfigError(
            f"got {option} under [train] without validation data; write "
            f"valid_fraction = 0.1 or valid = FILE under [data], or drop {option.split()[0]}"
        )
    if config.patience is None:
        return EarlyStopping(config.monitor)
    return EarlyStopping(config.monitor, patience=config.patience)


def check_conditions(
    config: TrainConfig, *, has_valid: bool, names: Collection[str] | None = None
) -> None:
    """Refuse options that look at validation metrics where there are none, or not these.

    Raises:
        ConfigError: With the option.
    """
    looks: dict[str, list[str]] = {"stop_at": list(config.stop_at)} if config.stop_at else {}
    for schedule in config.part_schedules().values():
        if isinstance(schedule, Plateau):
            monitor = schedule.monitor or config.monitor
            looks["the schedule 'plateau'"] = [monitor] if monitor else []
    for option, metrics in looks.items():
        if not has_valid:
            raise ConfigError(
                f"got {option} without validation data to look at; give valid=... (valid = FILE or "
                "valid_fraction = 0.1 under [data]), or drop it"
            )
        for metric in metrics if names is not None else ():
            check_quality_metric(metric, names or (), f"{option} with the metric ")


def reached(targets: Mapping[str, float], metrics: Mapping[str, float]) -> bool:
    """Whether every metric that has a target is as good as it; none that is not defined is."""
    values = {name: metrics.get(name, math.nan) for name in targets}
    return bool(targets) and all(
        math.isfinite(value) and not is_better(name, targets[name], value)
        for name, value in values.items()
    )


def as_stopping(
    choice: EarlyStopping | int | Auto | None,
    *,
    has_valid: bool,
    names: Collection[str] | None = None,
) -> EarlyStopping | None:
    """Return the early stopping of an argument of :meth:`widedeep.Trainer.fit`, or None.

    ``names``: the metrics that the model has; another cannot be looked at.
    """
    if choice is None or choice is False or (choice == "auto" and not has_valid):
        return None
    if not has_valid:
        raise ConfigError("got early_stopping without valid=...; give validation data to decide on")
    stopping = choice if isinstance(choice, EarlyStopping) else EarlyStopping()
    if not isinstance(choice, EarlyStopping | bool) and choice != "auto":
        if not isinstance(choice, int):
            raise ConfigError(
                f"got early_stopping={show_value(choice)}, expected 'auto', False, a patience in "
                "evaluations, or EarlyStopping(...)"
            )
        stopping = EarlyStopping(patience=choice)
    if names is not None:
        stopping.check_monitor(names)
    return stopping


def overfitting(history: Sequence[Mapping[str, Any]], loss: str) -> str | None:
    """Return a sentence if validation got worse, again and again, while training got better."""
    name = f"valid/{loss}"
    rows = [row for row in history if math.isfinite(row.get(name, math.nan))]
    best = min(rows, key=lambda row: row[name], default=None)
    if best is None:
        return None
    later = rows[rows.index(best) + 1 :]
    if len(later) < _PATIENCE or not later[-1]["loss"] < best["loss"]:
        return None
    return (
        f"validation {loss} rose from {best[name]:.4f} (step {best['step']:,}) to "
        f"{later[-1][name]:.4f} (step {later[-1]['step']:,}) while the training loss fell from "
        f"{best['loss']:.4f} to {later[-1]['loss']:.4f}: the model learns its training rows by "
        "heart"
    )
