"""Training on a stream of shards: each is scored before it is learned."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from widedeep.callbacks.base import Callbacks
from widedeep.data.paths import file_from_json, file_to_json, is_gone
from widedeep.errors import ConfigError, DataError, data_errors_of
from widedeep.metrics import find_metric
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first
from widedeep.traces import traced
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.defaults import auto_batch_size
from widedeep.training.evaluation import Evaluator
from widedeep.training.grow import grow
from widedeep.training.progress import Progress
from widedeep.training.run import TrainingRun
from widedeep.training.state import History, Position, TrainState

Shard = tuple[str, Any]
_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "rmse", "accuracy")


def fit_stream(
    state: TrainState,
    evaluator: Evaluator,
    shards: Iterable[Shard],
    *,
    directory: CheckpointDirectory | None = None,
    callbacks: Callbacks,
    on_shard: Callable[[dict[str, Any]], None] | None = None,
    show_progress: bool = False,
    grows: bool = False,
    evict_after: int | None = None,
) -> History:
    """Learn shards one after another; see :meth:`widedeep.Trainer.fit_stream`."""
    if state.config.batch_size == "auto":
        # Of the data the schema was fitted on: a shard says nothing of the stream's length.
        lanes = state.ranks.lanes
        batch_size = -(-auto_batch_size(state.model.schema.rows) // lanes) * lanes
        state.config = dataclasses.replace(state.config, batch_size=batch_size)
    progress = Progress(1, done_steps=0, enabled=show_progress)
    for shard in shards:
        if not (isinstance(shard, tuple) and len(shard) == 2 and isinstance(shard[0], str)):
            raise ConfigError(f"fit_stream: got the shard {shard!r}, expected (name, data)")
        name, data = shard
        if name in state.shards:
            continue
        before_learning = partial(grow, state, evaluator, data, evict_after) if grows else None
        row = _learn(state, evaluator, callbacks, name, data, before_learning)
        if isinstance(row, str):
            progress.message(f"{name}: {row}; passed over")
            continue
        state.history.add(row)
        progress.message(_summary(row))
        if directory is not None:
            directory.save(state.checkpoint())
        callbacks.call("on_evaluate", row)
        if on_shard is not None:
            on_shard(row)
        if state.ranks.any(callbacks.stopped):
            progress.message("stopped by a callback")
            break
    callbacks.call("on_end", state.history[-1] if len(state.history) else {})
    return state.history


def shards_of_first(ranks: Ranks, shards: Iterable[Shard]) -> Iterator[Shard]:
    """Yield on every rank the shards that the first one finds; collective."""
    if ranks.size == 1:
        yield from shards
        return
    found = iter(shards if ranks.is_first else ())

    def find() -> tuple[str, object] | None:
        shard = next(found, None)
        if shard is None:
            return None
        name, data = shard
        return name, {"rows": data} if isinstance(data, list) else file_to_json(data)

    while (told := on_first(ranks, find, "a shard")) is not None:
        name, data = told
        yield name, data["rows"] if "rows" in data else file_from_json(data)


@traced("learn shard")
def _learn(
    state: TrainState,
    evaluator: Evaluator,
    callbacks: Callbacks,
    name: str,
    data: object,
    before_learning: Callable[[], None] | None,
) -> dict[str, Any] | str:
    """Score a shard, then learn it in one pass; return its row of the history, or why not."""
    started = time.perf_counter()
    before = state.position
    # A run of its own: the stream's own checkpoints say which shards were learned.
    shard = dataclasses.replace(state, history=History(), position=Position(updates=before.updates))
    opens = True  # what fails then fails on all ranks
    try:
        # Reads all of it: what is damaged is reported before anything is learned.
        with evaluator.open(data, "data to evaluate") as source:
            opens = False
            metrics = evaluator.evaluate(source)
        if before_learning is not None:
            before_learning()
        opens = True
        with evaluator.open(data, "training data") as source:
            opens = False
            shard.inputs = state.inputs = source.describe()
            state.warmup.rows = []
            state.valid_metrics = {}
            TrainingRun(
                shard, evaluator, source, epochs=1, stream_steps=before.step, callbacks=callbacks
            ).train()
    except DataError as error:
        untouched = shard.position.updates == before.updates
        if untouched and "without rows" in str(error):
            return "no rows"
        if untouched and (opens or state.ranks.size == 1) and state.ranks.any(is_gone(data)):
            return "it has vanished"
        with data_errors_of(name):
            raise
    rows = shard.position.rows
    state.shards = [*state.shards, name]
    state.position = dataclasses.replace(
        shard.position, rows=before.rows + rows, step=before.step + shard.position.step
    )
    row: dict[str, Any] = {
        "shard": name,
        "step": state.position.step,
        "rows": state.position.rows,
        "loss": shard.history[-1]["loss"],
        "rows_per_s": rows / (time.perf_counter() - started),
    }
    row |= {f"before/{m}": v for m, v in metrics.items() if _is_tracked(m)}
    if state.model.wide_table is not None:
        own = np.array([state.model.wide_table.nonzero])
        row["nonzero_wide"] = int(np.sum(state.ranks.gather(own)))
    return row


def _is_tracked(name: str) -> bool:
    """Whether the history of a stream shows a metric: the usual ones, and those of one's own."""
    metric = find_metric(name)
    return name.rpartition("/")[2] in _METRICS or (metric is not None and metric.input == "rows")


def _summary(row: dict[str, Any]) -> str:
    metrics = [f"{name} {value:.4f}" for name, value in row.items() if name.startswith("before/")]
    return (
        f"{row['shard']}  {row['rows']:,} rows in all  {row['rows_per_s']:,.0f} rows/s  "
        + "  ".join(metrics[:3])
    )
