"""TrainingRun: one call of fit, from its first batch to the best model."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from widedeep.callbacks.base import Callbacks
from widedeep.data.batch import Batch
from widedeep.data.encoded import EncodedRows, encoded_rows
from widedeep.data.fragments import Source
from widedeep.data.packed import PackedExamples
from widedeep.data.reader import BLOCK_ROWS, BatchReader, EpochPlan, is_small, large_fragments
from widedeep.data.requests import RequestBatch, RequestSource, request_encoder
from widedeep.errors import DataError, RowError
from widedeep.metrics.registry import loss_metric
from widedeep.ranks.shared import on_first
from widedeep.traces import traced
from widedeep.training.checkpoint import CheckpointDirectory, read_checkpoint
from widedeep.training.early_stopping import EarlyStopping, overfitting, reached
from widedeep.training.evaluation import Evaluator, Metrics
from widedeep.training.progress import Progress, RecentScores
from widedeep.training.state import Position, TrainState
from widedeep.training.step import DenseResult

_SLOW = 1.5
"""How much longer than most a rank computes of which the progress line tells."""
_NO_WEIGHT = (
    "weight {!r}: got 0 in every row of the training data, from which nothing is learned; give "
    "some rows a weight above 0, or leave weight= out of the spec"
)


@dataclass(eq=False, repr=False)
class TrainingRun:
    """Reads batches, steps, evaluates, checkpoints, and shows how it goes."""

    state: TrainState
    evaluator: Evaluator
    source: Source
    _: KW_ONLY
    epochs: int
    steps: int | None = None
    valid: Source | None = None
    stopping: EarlyStopping | None = None
    eval_every: int | None = None
    eval_halfway: bool = False
    eval_seconds: float | None = None
    cache: str | os.PathLike[str] | None = None
    directory: CheckpointDirectory | None = None
    stream_steps: int | None = None  # Those of a stream before this shard of it
    callbacks: Callbacks = field(default_factory=lambda: Callbacks([]))
    show_progress: bool = False

    def __post_init__(self) -> None:
        state, stopping, show_progress = self.state, self.stopping, self.show_progress
        position, batch_size = state.position, state.config.batch_size
        assert batch_size != "auto"
        self.rows = self.evaluator.by_requests(self.source)  # What batches are cut from
        self.batch_size, self.pool_rows = batch_size, state.config.pool_rows
        if isinstance(self.rows, RequestSource):  # a batch is a fixed number of whole requests
            self.batch_size = self.rows.requests_of(batch_size)
            self.pool_rows = self.rows.requests_of(self.pool_rows)
            self.cache = None
        per_epoch = math.ceil(self.rows.num_rows / self.batch_size)
        self.total_steps = min(per_epoch * self.epochs, self.steps or per_epoch * self.epochs)
        has_more = position.tail_total < self.total_steps and not (
            stopping and stopping.should_stop
        )
        if stopping is None or has_more:
            position.tail_steps = 0  # resumed with more epochs: the tail was not the end
        # Batch of an epoch after which the model is evaluated too; 0: none
        self.halfway = per_epoch // 2 if self.eval_halfway else 0
        between = min(per_epoch, self.eval_every or self.halfway or per_epoch)
        between = between if self.eval_seconds is None else 0
        self.evaluates_again = self.total_steps > between
        self.ranks = state.ranks
        # What is encoded of few rows is kept for the next pass, by fragment.
        lanes = self.ranks.lanes
        self._fragments: dict[int, Any] | None = {} if is_small(self.source, lanes) else None
        self._valid_fragments: dict[int, Any] | None = (
            None if self.valid is None or not is_small(self.valid, lanes) else {}
        )
        self.progress = self._new_progress()
        self.interrupt = DeferredInterrupt(announce=show_progress, terminates=self.ranks.size > 1)
        self._stop = False  # Whether a callback ends the run, as rank 0 says
        self._calls_back = self.ranks.any(bool(self.callbacks.objects))
        self._interrupts = False  # Whether one of several ranks was told to end
        self._busy_R = np.zeros(self.ranks.size)  # Seconds that each rank computed
        self._waited = 0.0
        self.recent = RecentScores()
        self.encoded = None if self.cache is None else self._encoded_rows(self.cache)
        # A tensor, read when the loss is asked for: a device is not waited for in every step.
        self._losses = torch.zeros((), dtype=torch.float64, device=state.model.device)
        self._rows = self._epoch_weight = 0.0
        self._at_once = 1  # Batches that the reader yields as one
        self._started = self._evaluated = self._saved = time.perf_counter()
        self._rows_before, self._stepped = position.rows, self._started
        # Rows of earlier calls of fit are those of other runs; a resumed run goes on with its own.
        self._first_row = 0 if position.step else len(state.history)
        self._best_position = position

    def _new_progress(self) -> Progress:
        return Progress(
            self._last_step, done_steps=self.state.position.step, enabled=self.show_progress
        )

    def _encoded_rows(self, cache: str | os.PathLike[str]) -> EncodedRows:
        transform, source, ranks = self.evaluator.transform, self.source, self.ranks
        # The others find what the first one wrote.
        is_new = on_first(ranks, lambda: encoded_rows(cache, transform, source)[1], "encoded rows")
        encoded, _ = encoded_rows(cache, transform, source)
        status = f"written, {self.source.num_rows:,} rows" if is_new else "as they were"
        size = f"{encoded.nbytes >> 20:,} MiB"
        self.progress.message(f"encoded rows: {encoded.path} ({status}; {size})")
        return encoded

    @traced("fit")
    def train(self) -> None:
        """Train to the end, to an early stop, or to Ctrl-C (which saves a checkpoint first)."""
        state, config = self.state, self.state.config
        if self.stopping is not None:
            has_files = self.directory is not None  # The best model's checkpoint among them
            state.step.keep_best(config.rollback_bytes if has_files else math.inf)
            self._count_resumed_evaluation(self.stopping)
        note = large_fragments(self.source, config.pool_rows) if config.shuffle else None
        if note is not None:
            self.progress.message(f"note: {note}")
        if self.stopping is not None:
            for line in state.schedules.outwaited(self.stopping.patience):
                self.progress.message(f"note: {line}")
        if state.position.step and self._done():
            self.progress.message(self._nothing_left())
        state.model.train()
        try:
            with _numerics(state.step.threads), self.interrupt:
                while not self._done() or self._start_tail():
                    self._epoch()
        except KeyboardInterrupt:
            if not self.interrupt.forced:
                self._interrupted()
            raise
        self._finish()

    def _count_resumed_evaluation(self, stopping: EarlyStopping) -> None:
        """Count the last evaluation of a run that is resumed, which had no early stopping."""
        state = self.state
        if stopping.best is not None or not state.valid_metrics or not state.position.step:
            return
        if stopping.update(state.valid_metrics, state.position.step):
            self._mark_best()
            if self.directory is not None:
                self._save(self.directory, best=True)

    def _save(self, directory: CheckpointDirectory, *, best: bool = False) -> str:
        path = str(directory.save(self.state.checkpoint(self.stopping), best=best))
        self._saved = time.perf_counter()
        return path

    @property
    def _last_step(self) -> int:
        position = self.state.position
        in_tail = position.tail_steps > 0
        return position.tail_start + position.tail_steps if in_tail else self.total_steps

    def _done(self) -> bool:
        position = self.state.position
        stopped = self.stopping is not None and self.stopping.should_stop
        return (
            (stopped and not position.tail_steps)
            or position.step >= self._last_step
            or self._called_off
            or self._reached
        )

    @property
    def _called_off(self) -> bool:
        """Whether a callback ends the run; a shard of a stream is learned to its end."""
        return self._stop and self.stream_steps is None

    @property
    def _reached(self) -> bool:
        """Whether the model as it is has what the run was to reach."""
        state = self.state
        evaluated = self.valid is not None and state.position.step > 0
        return evaluated and reached(state.config.stop_at, state.valid_metrics)

    def _nothing_left(self) -> str:
        """Why a run that is resumed learns no more."""
        fact = f"nothing is left to learn after {self.state.position.step:,} steps: "
        if self.stopping is not None and self.stopping.should_stop:
            return (
                f"{fact}early stopping has ended the run ({self.stopping.without} evaluations "
                f"without a better {self.stopping.monitor}); raise patience, or set "
                "early_stopping = false, to go on"
            )
        return f"{fact}all epochs were; give more of them to go on"

    def _start_tail(self) -> bool:
        """Go back to the best model, if its rates had not decayed, and decay them from there."""
        position, stopping, wsd = self.state.position, self.stopping, self.state.schedules.wsd
        if wsd is None or stopping is None or position.tail_steps or self._called_off:
            return False
        fraction = wsd.decay_fraction
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
        self.progress = self._new_progress()
        return True

    def _mark_best(self) -> None:
        self.state.step.mark_best()
        self._best_position = dataclasses.replace(self.state.position)

    def _epoch(self) -> None:
        state, config, position = self.state, self.state.config, self.state.position
        plan = EpochPlan(
            self.rows,
            batch_size=self.batch_size,
            seed=config.seed,
            epoch=position.epoch,
            shuffle=config.shuffle,
            pool_rows=self.pool_rows,
            lanes=self.ranks.lanes,
        )
        if self.ranks.is_first:
            state.warmup.select(plan)
        if self.encoded is not None or not plan.pools:  # the first lane reads nothing
            state.warmup.read(self.source)
        if state.step.feature_rates is not None:
            state.step.feature_rates.frozen = position.epoch > 0
        # An epoch that is resumed has weight of its own before this.
        self._epoch_weight = 0.0 if position.batch == 0 else math.inf
        self._at_once = self._batches_at_once()
        reader = BatchReader(
            self.rows,
            self._row_encoder(),
            plan,
            start_batch=position.batch,
            encoded=None if self.encoded is None else self.encoded.read,
            lanes=self.ranks.lanes_of(),
            batches_at_once=self._at_once,
            fragments=self._fragments,
        )
        with reader:
            for batches in reader:
                left: Batch | None = batches
                while left is not None:
                    left = self._steps_of(left, plan)
                    last = position.batch == plan.num_batches
                    if self._epoch_weight == 0 and (last or position.step >= self._last_step):
                        raise DataError(_NO_WEIGHT.format(state.model.schema.spec.weight))
                    if last:
                        position.epoch, position.batch = position.epoch + 1, 0
                    self._after_step(epoch_done=last)
                    self.interrupt.check(self._interrupts if self.ranks.size > 1 else None)
                    if self._done():
                        return

    def _row_encoder(self) -> Callable[[pa.Table], Batch | PackedExamples | RequestBatch]:
        """Return what encodes rows: packed where they are shuffled one by one."""
        if isinstance(self.rows, RequestSource):
            return request_encoder(self.evaluator.encoder())
        if not self.state.config.shuffle:
            return self.evaluator.encoder()
        return self.evaluator.packer([slot.size for slot in self.state.model.schema.slots])

    def _batches_at_once(self) -> int:
        """How many batches the reader yields as one: a block of rows, where runs are learned."""
        if self.ranks.lanes > 1 or isinstance(self.rows, RequestSource):
            return 1
        return max(1, BLOCK_ROWS // self.batch_size) if self.state.step.program.fits else 1

    def _steps_ahead(self) -> int:
        """Return how many steps may be done before something looks at the model, or at a step."""
        config, step = self.state.config, self.state.position.step
        clocks = [s for s in (self.eval_seconds, config.checkpoint_seconds) if s is not None]
        if min(clocks, default=1.0) < 1.0:  # a run takes a tenth of it
            return 1
        ahead = self._last_step - step
        if self.state.position.batch < self.halfway:
            ahead = min(ahead, self.halfway - self.state.position.batch)
        for every in (self.eval_every, config.checkpoint_every):
            if every:
                ahead = min(ahead, every - step % every)
        called = self.callbacks.steps_ahead(step + (self.stream_steps or 0))
        return ahead if called is None else min(ahead, called)

    def _steps_of(self, batches: Batch, plan: EpochPlan) -> Batch | None:
        """Learn one or more batches, or say which row of which file cannot be; return the rest."""
        number, rows = self.state.position.batch, self.batch_size
        run, rest = batches, None
        if self._at_once > 1:
            run = batches.slice(0, self._steps_ahead() * rows)
        try:
            steps = self._step(run, plan)
        except RowError as error:
            where = f"batch {number + 1} of epoch {plan.epoch + 1}, example {error.row}"
            if not isinstance(self.rows, RequestSource):
                lanes = self.ranks.lanes_of()
                origin, row = plan.batch_row(number, error.row, lanes, run.lane_starts)
                where = f"row {row} of {origin}, in {where}"
            raise error.at(where) from None
        if self._at_once > 1 and steps * rows < len(batches):
            rest = batches.slice(steps * rows, len(batches))
        return rest

    def _step(self, batch: Batch, plan: EpochPlan) -> int:
        """Do the steps of a run of batches; return how many were done."""
        state, position = self.state, self.state.position
        n = 1 if self._at_once == 1 else -(-len(batch) // self.batch_size)
        tails_S = None
        if position.tail_steps:
            done_S = np.arange(position.step, position.step + n) - position.tail_start
            tails_S = 1.0 - done_S / position.tail_steps
        rates_S3 = state.schedules.rates_of(
            n, position.step, self.total_steps, before=self.stream_steps, tails_S=tails_S
        )
        batch_rows = len(batch) if n == 1 else self.batch_size
        step = position.updates + 1
        result = state.step.run(batch, max(1, batch_rows), rates_S3=rates_S3, step=step)
        if result.steps < n:
            batch = batch.slice(0, result.steps * batch_rows)
        state.valid_metrics = {}
        position.step += result.steps
        position.updates += result.steps
        first = plan.batch_rows(position.batch)[0]
        last = plan.batch_rows(position.batch + result.steps - 1)[1]
        position.batch += result.steps
        position.rows += len(batch) if self.ranks.lanes == 1 else last - first
        self._count(batch, result)
        return result.steps

    def _count(self, batch: Batch, result: DenseResult) -> None:
        state, losses_B = self.state, result.losses_B
        total: float | torch.Tensor
        if self.ranks.lanes > 1:
            total, weight = self._lane_totals(batch, losses_B)
        elif result.totals_S is not None and result.weights_S is not None:
            total, weight = self._run_totals(batch, result.totals_S, result.weights_S)
        elif batch.weight_B is None:
            total, weight = losses_B.sum(), float(len(batch))
        else:
            weight = float(torch.from_numpy(batch.weight_B).sum())
            total = (losses_B * state.model.batch_tensor(batch, "weight_B")).sum()
        self._losses += total
        self._rows += weight
        self._epoch_weight += weight
        (head, *others) = state.model.heads
        if not others and head.kind == "binary" and head.follows_link:
            assert batch.labels_BL is not None
            self.recent.add(result.logits_BC[:, 0].clone(), batch.labels_BL[:, 0].copy())
        step = state.position.step + (self.stream_steps or 0)
        if self.callbacks.wants_step(step):
            metrics = {
                "step": step,
                "epoch": state.position.epoch + 1,
                "rows": state.position.rows,
                "loss": float(total) / weight if weight else 0.0,
            }
            self.callbacks.call("on_step", metrics)
        if self._calls_back:
            self._stop = self.ranks.any(self.callbacks.stopped)
        if self.progress.due():
            self.progress.show(self._progress_row())

    def _run_totals(
        self, batch: Batch, totals_S: torch.Tensor, weights_S: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """Count all steps of a run but the last, whose loss and weight are returned."""
        before, last = slice(0, len(totals_S) - 1), len(totals_S) - 1
        self._losses.fill_(_added(float(self._losses), totals_S[before]))
        if batch.weight_B is None:
            rows = last * self.batch_size
            self._rows += rows
            self._epoch_weight += rows
            return totals_S[last], float(len(batch) - rows)
        self._rows = _added(self._rows, weights_S[before])
        self._epoch_weight = _added(self._epoch_weight, weights_S[before])
        return totals_S[last], float(weights_S[last])

    def _lane_totals(self, batch: Batch, losses_B: torch.Tensor) -> tuple[float, float]:
        """Return the loss and the weight of all rows, added lane after lane on every rank."""
        ranks, starts = self.ranks, batch.lane_starts
        assert starts is not None
        own = np.zeros((len(starts) - 1, 4))
        weight_B = np.ones(len(batch)) if batch.weight_B is None else batch.weight_B
        losses = losses_B.double().numpy() * weight_B
        for number, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
            own[number, :2] = losses[start:stop].sum(), weight_B[start:stop].sum(dtype=np.float64)
        own[:, 2] = self.interrupt.pending
        now = time.perf_counter()
        own[0, 3] = now - self._stepped - (ranks.waited_seconds - self._waited)
        lanes = ranks.lane_sums(own)
        self._stepped, self._waited = time.perf_counter(), ranks.waited_seconds
        self._interrupts = bool(lanes[:, 2].any())
        self._busy_R += [lanes[ranks.lanes_of(rank), 3].sum() for rank in range(ranks.size)]
        total, weight = np.add.reduce(lanes[:, :2])
        return float(total), float(weight)

    def _loss(self) -> float:
        return float(self._losses) / self._rows if self._rows else float("nan")

    def _progress_row(self) -> dict[str, Any]:
        position, wide = self.state.position, self.state.model.wide_table
        return {
            "epoch": position.epoch + 1,
            "step": position.step,
            "rows": position.rows - self._rows_before,
            "loss": self._loss(),
            "auc": self.recent.auc(),
            "nonzero_wide": None if wide is None or self.ranks.size > 1 else wide.nonzero,
            "slow": self._slow_rank(),
        }

    def _slow_rank(self) -> str | None:
        """Name the rank for which the others wait, if it computes much longer than most."""
        busy_R, slowest = self._busy_R, int(self._busy_R.argmax())
        self._busy_R = np.zeros(self.ranks.size)
        typical = float(np.median(busy_R))
        if self.ranks.size == 1 or busy_R[slowest] < _SLOW * typical:
            return None
        host = self.ranks.hosts[slowest]
        return f"slow: rank {slowest} ({host}), {busy_R[slowest] / max(typical, 1e-9):.1f}x"

    def _after_step(self, *, epoch_done: bool) -> None:
        config, step, directory = self.state.config, self.state.position.step, self.directory
        if self.eval_seconds is not None:
            evaluates = self._is_over(self._evaluated, self.eval_seconds)
        else:
            evaluates = epoch_done or bool(self.eval_every and step % self.eval_every == 0)
            evaluates |= self.halfway > 0 and self.state.position.batch == self.halfway
        if config.checkpoint_seconds is not None:
            saves = self._is_over(self._saved, config.checkpoint_seconds)
        else:
            saves = step % config.checkpoint_every == 0 if config.checkpoint_every else epoch_done
        evaluates |= step >= self._last_step or self._called_off
        if evaluates or epoch_done or saves:
            self._check_losses()
        improved = self._evaluate() if evaluates else False
        last = step >= self._last_step or self._called_off
        if directory is not None and (improved or last or saves):
            self._save(directory, best=improved)

    def _is_over(self, since: float, seconds: float) -> bool:
        """Tell whether a time is over, by the clock of the first rank."""
        return self.ranks.any(self.ranks.is_first and time.perf_counter() - since >= seconds)

    def _check_losses(self) -> None:
        """Stop a run on a device before its checkpoint or best model is replaced by numbers lost.

        On a processor the step itself stops, before anything is moved.
        """
        if not math.isfinite(float(self._losses)):
            raise DataError(
                f"the training loss is {float(self._losses):g} since the evaluation before step "
                f"{self.state.position.step:,}; checkpoints are as they were: lower the learning "
                "rates, or train on the processor (device='cpu'), which names the row"
            )

    def _evaluate(self) -> bool:
        """Add a row to the history; return True if the model is the best so far."""
        state, position = self.state, self.state.position
        seconds = time.perf_counter() - self._started
        row: dict[str, Any] = {
            "epoch": position.epoch if position.batch == 0 else position.epoch + 1,
            "step": position.step,
            "rows": position.rows,
            "loss": self._loss(),
            "rows_per_s": (position.rows - self._rows_before) / seconds,
        }
        if state.model.wide_table is not None:
            own = np.array([state.model.wide_table.nonzero])
            row["nonzero_wide"] = int(np.sum(self.ranks.gather(own)))
        self._losses.zero_()
        self._rows = 0.0
        improved, notes = False, []
        if self.valid is not None:
            metrics = self.evaluator.evaluate(self.valid, self._valid_fragments)
            state.valid_metrics = dict(metrics)
            row.update({f"valid/{name}": value for name, value in metrics.items()})
            # First: what the schedules know belongs to the model that is marked as the best.
            notes = state.schedules.update(metrics)
            state.step.dense.observe(metrics[state.schedules.monitor])
            improved = self._judge(metrics, notes)
        state.history.add(row)
        for line in (_summary(row), *notes):
            self.progress.message(line)
        if self.valid is not None and not state.history.warnings:
            self._warn_of_overfitting(loss_metric(state.valid_metrics))
        if self.stream_steps is None:  # of a shard the stream tells more
            self.callbacks.call("on_evaluate", row)
        self._stop = self.ranks.any(self.callbacks.stopped)
        self._evaluated = time.perf_counter()
        return improved

    def _judge(self, metrics: Metrics, notes: list[str]) -> bool:
        """Return True, and mark the model, if it is the best so far or has reached the targets."""
        stopping, step, improved = self.stopping, self.state.position.step, False
        if stopping is not None:
            improved = stopping.update(metrics, step, metrics.reasons)
            if stopping.undefined is not None:
                notes.append(f"note: {stopping.undefined}; it counts as no improvement")
        if self._reached:
            targets, improved = self.state.config.stop_at, True
            values = (f"{name} {metrics[name]:.5g} (to {targets[name]:g})" for name in targets)
            notes.append(f"reached {', '.join(values)}: training stops")
            if stopping is not None:  # it is kept, whatever early stopping says of another
                value = metrics[stopping.monitor or ""]
                stopping.best = value if math.isfinite(value) else None
                stopping.best_step = step
        if improved and stopping is not None:
            self._mark_best()
        return improved

    def _warn_of_overfitting(self, loss: str) -> None:
        history = self.state.history
        warning = overfitting(history.rows[self._first_row :], loss)
        if warning is None:
            return
        remedy = "train fewer epochs, or leave early_stopping on, which keeps the best model"
        warning += f"; {remedy}" if self.stopping is None else "; the best model is kept"
        history.warnings.append(warning)
        self.progress.message(f"warning: {warning}")

    def _interrupted(self) -> None:
        if self.directory is None:
            self.progress.message(
                "interrupted; nothing was saved (give checkpoints='DIR' to be able to resume)"
            )
            return
        path = self._save(self.directory)
        self.progress.message(
            f"interrupted; saved {path}; fit(..., resume=True) goes on from there"
        )

    def _finish(self) -> None:
        stopping, history = self.stopping, self.state.history
        if stopping is not None and stopping.best is not None:
            if stopping.best_step != self.state.position.step:
                self._restore_best()
            self.progress.message(
                f"best {stopping.monitor} {stopping.best:.5f} at step {stopping.best_step:,}"
            )
        if self.stream_steps is None:
            self.callbacks.call("on_end", history[-1] if len(history) else {})

    def _restore_best(self) -> None:
        state = self.state
        if not state.step.ranks.any(not state.step.has_best):
            state.step.restore_best()
        elif self.directory is not None:
            best = self.directory.best(state.step.ranks)
            if best is not None:
                checkpoint = read_checkpoint(best, ranks=state.step.ranks)
                state.restore(checkpoint, position=False)
                self._best_position = Position(**checkpoint.state["position"])
                state.step.mark_best()
        assert self.stopping is not None
        state.valid_metrics = state.history.valid_metrics(self.stopping.best_step)


def _added(total: float, terms_S: torch.Tensor) -> float:
    """Add terms to a total, one after the other."""
    return float(np.cumsum(np.append(total, terms_S.double().numpy()))[-1])


def _summary(row: dict[str, Any]) -> str:
    parts = [
        f"epoch {row['epoch']}",
        f"step {row['step']:,}",
        f"{row['rows_per_s']:,.0f} rows/s",
        f"loss {row['loss']:.4f}",
    ]
    titles = {"log_loss": "loss", "rmse": "rmse", "auc": "auc", "accuracy": "accuracy"}
    valid = [
        f"{title} {row[f'valid/{name}']:.4f}"
        for name, title in titles.items()
        if f"valid/{name}" in row
    ]
    if valid:
        parts.append(f"valid {' '.join(valid[:2])}")
    if "nonzero_wide" in row:
        parts.append(f"wide {row['nonzero_wide']:,}")
    return "  ".join(parts)


@contextlib.contextmanager
def _numerics(threads: int) -> Iterator[None]:
    """Run with this many torch threads and without denormal numbers, which are far slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


class DeferredInterrupt:
    """Defers the first Ctrl-C until :meth:`check`; a second one interrupts at once."""

    def __init__(self, *, announce: bool = False, terminates: bool = False) -> None:
        self._announce = announce
        self._signals = [signal.SIGINT, signal.SIGTERM] if terminates else [signal.SIGINT]
        self._before: dict[int, Any] = {}
        self._ignores = False
        self.pending = False
        """True once a signal came."""
        self.forced = False
        """True if a second Ctrl-C interrupted, perhaps in the middle of a step."""

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is not threading.main_thread():
            return self
        # A script that starts a program in the background lets it ignore Ctrl-C, not what else ends
        # it, which may come by this handler too.
        self._ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        usual = (signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL)
        signals = [one for one in self._signals if signal.getsignal(one) in usual]
        self._before = {one: signal.signal(one, self._defer) for one in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _defer(self, number: int, frame: FrameType | None) -> Any:
        if number == signal.SIGINT and self._ignores:
            return
        if self.pending and len(self._signals) > 1:
            return  # the ranks end together, and a launcher repeats the signals of a terminal
        if self.pending:
            self.forced = True
            raise KeyboardInterrupt
        self.pending = True
        if self._announce:
            # print may be under way in the very thread that is interrupted here.
            more = "" if len(self._signals) > 1 else " (Ctrl-C again: stop at once, save nothing)"
            text = f"\nfinishing this step, then saving{more}\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())

    def check(self, agreed: bool | None = None) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed; ``agreed``: whether the ranks say so."""
        if self.pending if agreed is None else agreed:
            self.pending = False
            raise KeyboardInterrupt
