"""Callbacks that act on what an evaluation says: keep a bundle, prune a trial."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from widedeep.callbacks.base import Callback, RunningTrainer
from widedeep.errors import ConfigError, extra_imports
from widedeep.metrics.registry import check_quality_metric, is_better, loss_metric

if TYPE_CHECKING:
    import optuna


class ModelCheckpoint(Callback):
    """Exports a bundle where an evaluation is the best so far, or after each.

    What training resumes from are the checkpoints of ``Trainer(checkpoints=...)``; this writes
    models that can be scored and served while the training goes on. Several ranks write
    it together.

    Args:
        path: Folder of the bundle, which a later one replaces; ``{step}`` and ``{epoch}`` in it
            make it another folder for each: ``"bundles/step-{step}"``.
        monitor: Validation metric that decides, such as ``"auc"``; None: the model's loss.
        best_only: False exports after each evaluation, and needs no validation data.

    Raises:
        ConfigError: Before the first step, if no such metric will be evaluated.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
        >>> best = wd.callbacks.ModelCheckpoint("best_bundle", monitor="auc")
        >>> trainer = wd.Trainer(model, callbacks=[best], batch_size=8, progress=False)
        >>> _ = trainer.fit(rows, epochs=9, valid=rows)
        >>> wd.Bundle.load("best_bundle").metrics["auc"] == best.best == 1.0
        True
    """

    every_rank = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        monitor: str | None = None,
        best_only: bool = True,
    ) -> None:
        self.path = os.fspath(path)
        self.monitor = monitor
        self.best_only = best_only
        self.best: float | None = None
        """The best value of the metric so far."""
        try:
            self.path.format(step=0, epoch=0)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"callback ModelCheckpoint: got path={self.path!r}, expected no braces but "
                "{step} and {epoch}"
            ) from error

    def on_begin(self, trainer: RunningTrainer) -> None:
        """Keep the trainer; what earlier evaluations of a resumed run reached counts."""
        self._trainer = trainer
        self.best = None
        if self.best_only:
            self._metric = _checked_monitor(self.monitor, trainer, "ModelCheckpoint")
            for row in trainer.history if trainer.position.step else ():
                self._improves(row)

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """Export the model as it is."""
        if self.best_only and not self._improves(metrics):
            return
        values = {k.removeprefix("valid/"): v for k, v in metrics.items() if "valid/" in k}
        path = self.path.format(step=metrics["step"], epoch=metrics.get("epoch", 0))
        self._trainer.export(path, metrics=values, overwrite=True)

    def _improves(self, row: dict[str, Any]) -> bool:
        value = row.get(f"valid/{self._metric}", math.nan)
        if not math.isfinite(value):
            return False
        better = self.best is None or is_better(self._metric, value, self.best)
        self.best = value if better else self.best
        return better


class OptunaPruning(Callback):
    """Reports each evaluation to a trial of Optuna, and ends a training that it prunes.

    Args:
        trial: The trial that the objective function was given.
        monitor: Validation metric that is reported, such as ``"auc"``; None: the model's loss. The
            study's direction must be the metric's.

    Raises:
        ConfigError: Before the first step, if no such metric will be evaluated.
        optuna.TrialPruned: From :meth:`widedeep.Trainer.fit`, where the trial is pruned.

    Example:
        >>> import optuna
        >>> import widedeep as wd
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> schema = wd.fit_schema(spec, rows)
        >>> def objective(trial):
        ...     wide = wd.FTRL(lr=trial.suggest_float("lr", 0.01, 1.0, log=True))
        ...     pruning = wd.callbacks.OptunaPruning(trial, "log_loss")
        ...     model = wd.WideDeep(schema, hidden_units=[4])
        ...     trainer = wd.Trainer(model, wide=wide, callbacks=[pruning], progress=False)
        ...     return trainer.fit(rows, epochs=3, valid=rows)[-1]["valid/log_loss"]
        >>> optuna.logging.disable_default_handler()
        >>> study = optuna.create_study(direction="minimize")
        >>> study.optimize(objective, n_trials=2)
        >>> len(study.trials[0].intermediate_values)
        3
    """

    def __init__(self, trial: optuna.Trial, monitor: str | None = None) -> None:
        with extra_imports():
            import optuna  # noqa: F401
        self.trial = trial
        self.monitor = monitor

    def on_begin(self, trainer: RunningTrainer) -> None:
        """Check the monitor."""
        self._metric = _checked_monitor(self.monitor, trainer, "OptunaPruning")

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """Report the metric; the step of the report is the step of the training."""
        import optuna

        value = metrics[f"valid/{self._metric}"]
        self.trial.report(value, metrics["step"])
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"{self._metric} {value:.5g} at step {metrics['step']:,}")


def _checked_monitor(monitor: str | None, trainer: RunningTrainer, callback: str) -> str:
    """Return the validation metric that a callback looks at; None: the model's loss."""
    names = trainer.monitors
    if not names:
        raise ConfigError(
            f"callback {callback}: got no validation data to look at; give fit(..., valid=...)"
        )
    metric = loss_metric(names) if monitor is None else monitor
    check_quality_metric(metric, names, "monitor=")
    return metric
