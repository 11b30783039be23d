"""TrainingRun: one call of fit, from its first batch to the best model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from widedeep.data.batch import Batch
from widedeep.data.encoded import EncodedRows, encoded_rows
from widedeep.data.fragments import Source
from widedeep.data.reader import BatchReader, EpochPlan, large_fragments
from widedeep.errors import DataError
from widedeep.kernels.torch_twins import to_device
from widedeep.training.config import rate_factor
from widedeep.training.early_stopping import EarlyStopping, loss_metric, overfitting
from widedeep.training.progress import Callbacks, Progress, RecentScores
from widedeep.training.state import Position
from widedeep.training.step import StepResult

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer


_NO_WEIGHT = (
    "weight {!r}: got 0 in every row of the training data, from which nothing is learned; give "
    "some rows a weight above 0, or leave weight= out of the spec"
)


class TrainingRun:
    """Reads batches, steps, evaluates, checkpoints, and shows how it goes."""

    def __init__(
        self,
        trainer: Trainer,
        source: Source,
        valid: Source | None,
        stopping: EarlyStopping | None,
        *,
        epochs: int,
        steps: int | None,
        eval_every: int | None,
        cache: str | os.PathLike[str] | None,
    ) -> None:
        self.trainer = trainer
        self.source = source
        self.valid = valid
        self.stopping = stopping
        self.epochs = epochs
        self.eval_every = eval_every
        batch_size = trainer.config.batch_size
        assert batch_size != "auto"
        self.batch_size = batch_size
        per_epoch = math.ceil(source.num_rows / batch_size)
        self.total_steps = min(per_epoch * epochs, steps or per_epoch * epochs)
        if trainer.position.tail_total and trainer.position.tail_total < self.total_steps:
            trainer.position.tail_steps = 0  # resumed with more epochs: the tail was not the end
        self.evaluates_again = self.total_steps > min(per_epoch, eval_every or per_epoch)
        self.progress = Progress(
            self._last_step, done_steps=trainer.position.step, enabled=trainer.show_progress
        )
        self.interrupt = HeldInterrupt(announce=trainer.show_progress)
        self.recent = RecentScores()
        self.callbacks = Callbacks(trainer.callbacks)
        self.encoded = None if cache is None else self._encoded_rows(cache)
        # A tensor, read when a figure is asked for: a device is not waited for in every step.
        self._losses = torch.zeros((), dtype=torch.float64, device=trainer.model.device)
        self._rows = self._weight = 0.0
        self._started = time.perf_counter()
        self._rows_before = trainer.position.rows
        # Rows of earlier calls of fit are those of other runs; a resumed run goes on with its own.
        self._first_row = 0 if trainer.position.step else len(trainer.history)
        self._best_position = trainer.position

    def _encoded_rows(self, cache: str | os.PathLike[str]) -> EncodedRows:
        found, new = encoded_rows(cache, self.trainer.transform, self.source)
        told = f"written, {self.source.num_rows:,} rows" if new else "as they were"
        self.progress.message(f"encoded rows: {found.path} ({told}; {found.nbytes >> 20:,} MiB)")
        return found

    def _tell_large_fragments(self) -> None:
        config = self.trainer.config
        note = large_fragments(self.source, config.pool_rows) if config.shuffle else None
        if note is not None:
            self.progress.message(f"note: {note}")

    def train(self) -> None:
        """Train to the end, to an early stop, or to Ctrl-C (which saves a checkpoint first)."""
        trainer = self.trainer
        if self.stopping is not None:
            trainer.step.keep_best()
            self._keep_resumed()
        self._tell_large_fragments()
        trainer.model.train()
        try:
            with self.interrupt:
                while not self._done() or self._start_tail():
                    self._epoch()
        except KeyboardInterrupt:
            if not self.interrupt.forced:
                self._interrupted()
            raise
        self._finish()

    def _keep_resumed(self) -> None:
        """Count the last evaluation of a run that is resumed, which had no early stopping."""
        trainer, stopping = self.trainer, self.stopping
        if stopping is None or stopping.best is not None or not trainer.valid_metrics:
            return
        if trainer.position.step and stopping.update(trainer.valid_metrics, trainer.position.step):
            self._mark_best()
            if trainer.directory is not None:
                trainer.save_checkpoint(stopping, best=True)

    @property
    def _last_step(self) -> int:
        position = self.trainer.position
        return position.tail_start + position.tail_steps or self.total_steps

    def _done(self) -> bool:
        position = self.trainer.position
        stopped = self.stopping is not None and self.stopping.should_stop
        return (stopped and not position.tail_steps) or position.step >= self._last_step

    def _start_tail(self) -> bool:
        """Go back to the best model, if its rates had not decayed, and decay them from there."""
        trainer, position, stopping = self.trainer, self.trainer.position, self.stopping
        if trainer.config.schedule != "wsd" or stopping is None or position.tail_steps:
            return False
        fraction = trainer.config.decay_fraction
        stable = self.total_steps * (1 - fraction)
        if not 0 < stopping.best_step <= stable or stopping.best_step == position.step:
            return False
        self._restore_best()
        position.epoch, position.batch = self._best_position.epoch, self._best_position.batch
        position.tail_start, position.tail_total = position.step, self.total_steps
        position.tail_steps = max(1, round(stopping.best_step * fraction / (1 - fraction)))
        self.progress.message(
            f"{stopping.monitor} improves no more; the rates decay over {position.tail_steps:,} "
            f"steps from the best model (step {stopping.best_step:,})"
        )
        self.progress = Progress(
            self._last_step, done_steps=position.step, enabled=trainer.show_progress
        )
        return True

    def _mark_best(self) -> None:
        self.trainer.step.mark_best()
        self._best_position = dataclasses.replace(self.trainer.position)

    def _rate(self) -> float:
        """The factor of the present step's learning rates."""
        position, config = self.trainer.position, self.trainer.config
        if position.tail_steps:
            return 1.0 - (position.step - position.tail_start) / position.tail_steps
        return rate_factor(
            config.schedule,
            position.step,
            self.total_steps,
            config.warmup_steps,
            config.decay_fraction,
        )

    def _epoch(self) -> None:
        trainer, position = self.trainer, self.trainer.position
        plan = EpochPlan(
            self.source,
            batch_size=self.batch_size,
            seed=trainer.config.seed,
            epoch=position.epoch,
            shuffle=trainer.config.shuffle,
            pool_rows=trainer.config.pool_rows,
        )
        trainer.warmup.choose(plan)
        if self.encoded is not None:
            trainer.warmup.read(self.source)
        if trainer.step.feature_rates is not None:
            trainer.step.feature_rates.frozen = position.epoch > 0
        # An epoch that is resumed has weight of its own before this.
        self._weight = 0.0 if position.batch == 0 else math.inf
        reader = BatchReader(
            self.source,
            trainer.encoder(),
            plan,
            start_batch=position.batch,
            encoded=None if self.encoded is None else self.encoded.read,
        )
        with contextlib.closing(reader):
            for batch in reader:
                self._step(batch)
                last = position.batch == plan.num_batches
                if self._weight == 0 and (last or position.step >= self._last_step):
                    raise DataError(_NO_WEIGHT.format(trainer.model.schema.spec.weight))
                if last:
                    position.epoch, position.batch = position.epoch + 1, 0
                self._after_step(epoch_done=last)
                self.interrupt.check()
                if self._done():
                    return

    def _step(self, batch: Batch) -> None:
        trainer, position = self.trainer, self.trainer.position
        result = trainer.step(batch, rate=self._rate(), step=position.updates + 1)
        trainer.valid_metrics = {}
        position.step += 1
        position.updates += 1
        position.batch += 1
        position.rows += len(batch)
        self._count(batch, result)

    def _count(self, batch: Batch, result: StepResult) -> None:
        losses = result.losses_B
        if batch.weight_B is None:
            total, weight = losses.sum(), float(len(batch))
        else:
            weight = float(torch.from_numpy(batch.weight_B).sum())
            total = (losses * to_device(batch.weight_B, losses.device)).sum()
        self._losses += total
        self._rows += weight
        self._weight += weight
        (head, *others) = self.trainer.model.heads
        if not others and head.kind == "binary" and head.follows_link:
            assert batch.labels_BL is not None
            self.recent.add(result.logits_BC[:, 0].clone(), batch.labels_BL[:, 0].copy())
        if self.callbacks.see_steps:
            figures = {
                "step": self.trainer.position.step,
                "epoch": self.trainer.position.epoch + 1,
                "rows": self.trainer.position.rows,
                "loss": float(total) / weight if weight else 0.0,
            }
            self.callbacks.tell("on_step", figures)
        if self.progress.due():
            self.progress.show(self._figures())

    def _loss(self) -> float:
        return float(self._losses) / self._rows if self._rows else float("nan")

    def _figures(self) -> dict[str, Any]:
        position, wide = self.trainer.position, self.trainer.model.wide_table
        return {
            "epoch": position.epoch + 1,
            "step": position.step,
            "rows": position.rows - self._rows_before,
            "loss": self._loss(),
            "auc": self.recent.auc(),
            "nonzero_wide": None if wide is None else wide.nonzero,
        }

    def _after_step(self, *, epoch_done: bool) -> None:
        trainer, step = self.trainer, self.trainer.position.step
        evaluate = step % self.eval_every == 0 if self.eval_every else epoch_done
        last = step >= self._last_step
        improved = self._evaluate() if evaluate or last or epoch_done else False
        every = trainer.checkpoint_every
        if trainer.directory is not None and (
            improved or last or (step % every == 0 if every else epoch_done)
        ):
            trainer.save_checkpoint(self.stopping, best=improved)

    def _evaluate(self) -> bool:
        """Add a row to the history; return True if the model is the best so far."""
        trainer = self.trainer
        seconds = time.perf_counter() - self._started
        row: dict[str, Any] = {
            "epoch": trainer.position.epoch
            if trainer.position.batch == 0
            else trainer.position.epoch + 1,
            "step": trainer.position.step,
            "rows": trainer.position.rows,
            "loss": self._loss(),
            "rows_per_s": (trainer.position.rows - self._rows_before) / seconds,
        }
        if trainer.model.wide_table is not None:
            row["nonzero_wide"] = trainer.model.wide_table.nonzero
        self._losses.zero_()
        self._rows = 0.0
        improved = False
        if self.valid is not None:
            metrics = trainer.evaluate_source(self.valid)
            trainer.valid_metrics = dict(metrics)
            row.update({f"valid/{name}": value for name, value in metrics.items()})
            if self.stopping is not None:
                improved = self.stopping.update(metrics, trainer.position.step, metrics.reasons)
                if self.stopping.undefined is not None:
                    self.progress.message(
                        f"note: {self.stopping.undefined}; it counts as no improvement"
                    )
                if improved:
                    self._mark_best()
        trainer.history.add(row)
        self.progress.message(_summary(row))
        if self.valid is not None and not trainer.history.warnings:
            self._warn_of_overfitting(loss_metric(trainer.valid_metrics))
        self.callbacks.tell("on_evaluate", row)
        return improved

    def _warn_of_overfitting(self, loss: str) -> None:
        history = self.trainer.history
        warning = overfitting(history.rows[self._first_row :], loss)
        if warning is None:
            return
        remedy = "train fewer epochs, or leave early_stopping on, which keeps the best model"
        warning += f"; {remedy}" if self.stopping is None else "; the best model is kept"
        history.warnings.append(warning)
        self.progress.message(f"warning: {warning}")

    def _interrupted(self) -> None:
        trainer = self.trainer
        if trainer.directory is None:
            self.progress.message(
                "interrupted; nothing was saved (give checkpoints='DIR' to be able to resume)"
            )
            return
        place = trainer.save_checkpoint(self.stopping)
        self.progress.message(
            f"interrupted; saved {place}; fit(..., resume=True) goes on from there"
        )

    def _finish(self) -> None:
        trainer = self.trainer
        if self.stopping is not None and self.stopping.best is not None:
            if self.stopping.best_step != trainer.position.step:
                self._restore_best()
            self.progress.message(
                f"best {self.stopping.monitor} {self.stopping.best:.5f} at step "
                f"{self.stopping.best_step:,}"
            )
        row = trainer.history[-1] if len(trainer.history) else {}
        self.callbacks.tell("on_end", row)

    def _restore_best(self) -> None:
        trainer = self.trainer
        if trainer.step.undo.marked:
            trainer.step.restore_best()
        elif trainer.directory is not None:
            best = trainer.directory.best()
            if best is not None:
                state = trainer.load_parameters(best)
                self._best_position = Position(**state["position"])
                trainer.step.mark_best()
        assert self.stopping is not None
        trainer.valid_metrics = trainer.history.valid_metrics(self.stopping.best_step)


def _summary(row: dict[str, Any]) -> str:
    parts = [
        f"epoch {row['epoch']}",
        f"step {row['step']:,}",
        f"{row['rows_per_s']:,.0f} rows/s",
        f"loss {row['loss']:.4f}",
    ]
    shown = {"log_loss": "loss", "rmse": "rmse", "auc": "auc", "accuracy": "accuracy"}
    valid = [f"{said} {row[f'valid/{n}']:.4f}" for n, said in shown.items() if f"valid/{n}" in row]
    if valid:
        parts.append(f"valid {' '.join(valid[:2])}")
    if "nonzero_wide" in row:
        parts.append(f"wide {row['nonzero_wide']:,}")
    return "  ".join(parts)


class HeldInterrupt:
    """Holds the first Ctrl-C back until :meth:`check`; a second one interrupts at once."""

    def __init__(self, *, announce: bool = False) -> None:
        self._announce = announce
        self._pending = False
        self._holds = False
        self.forced = False
        """True if a second Ctrl-C interrupted, perhaps in the middle of a step."""

    def __enter__(self) -> HeldInterrupt:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._hold)
            self._holds = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._holds = False

    def _hold(self, number: int, frame: FrameType | None) -> Any:
        if self._pending:
            self.forced = True
            raise KeyboardInterrupt
        self._pending = True
        if self._announce:
            # print may be under way in the very thread that is interrupted here.
            text = "\nfinishing this step, then saving (Ctrl-C again: stop at once, save nothing)\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt
