"""Training on a stream of shards: each is scored before it is learned."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from widedeep.errors import CheckpointError, ConfigError, DataError
from widedeep.training.config import auto_batch_size
from widedeep.training.progress import Progress
from widedeep.training.state import History

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer

Shard = tuple[str, object]
_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "rmse", "accuracy")


def fit_stream(
    trainer: Trainer,
    shards: Iterable[Shard],
    *,
    resume: bool = False,
    on_shard: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Learn shards one after another; see :meth:`widedeep.Trainer.fit_stream`."""
    if resume:
        _resume(trainer)
    if trainer.config.batch_size == "auto":
        # Of the data the schema was fitted on: a shard says nothing of the stream's length.
        batch_size = auto_batch_size(trainer.model.schema.rows)
        trainer.config = dataclasses.replace(trainer.config, batch_size=batch_size)
    told = Progress(1, done_steps=0, enabled=trainer.show_progress)
    for shard in shards:
        if not (isinstance(shard, tuple) and len(shard) == 2 and isinstance(shard[0], str)):
            raise ConfigError(f"fit_stream: got the shard {shard!r}, expected (name, data)")
        name, data = shard
        if name in trainer.shards:
            continue
        row = _learn(trainer, name, data)
        if isinstance(row, str):
            told.message(f"{name}: {row}; passed over")
            continue
        trainer.history.add(row)
        told.message(_summary(row))
        if trainer.directory is not None:
            trainer.save_checkpoint()
        if on_shard is not None:
            on_shard(row)
    return trainer.history


def _resume(trainer: Trainer) -> None:
    if trainer.directory is None:
        raise CheckpointError(
            "got resume=True without checkpoints=...; name the directory of the stream's trainer"
        )
    latest = trainer.directory.latest()
    if latest is not None:
        trainer.inputs = []
        trainer.load_checkpoint(latest)


def _learn(trainer: Trainer, name: str, data: object) -> dict[str, Any] | str:
    """Score a shard, then learn it in one pass; return its row of the history, or why not."""
    history, directory, done = trainer.history, trainer.directory, list(trainer.shards)
    shown = trainer.show_progress
    started = time.perf_counter()
    try:
        metrics = trainer.evaluate(data)  # reads all of it: what is damaged is told before learning
    except DataError as error:
        if "without rows" in str(error):
            return "no rows"
        if _is_gone(data):
            return "it has vanished"
        raise
    before = trainer.position
    # The stream's own checkpoints say which shards were learned; within one there is none.
    trainer.directory, trainer.history, trainer.show_progress = None, History(), False
    config = trainer.config
    if config.schedule == "wsd":
        trainer.config = dataclasses.replace(config, schedule="constant")
    try:
        trainer.fit(data)
        loss = trainer.history[-1]["loss"]
    except DataError:
        untouched = trainer.position.updates == before.updates
        trainer.position = before
        if untouched and _is_gone(data):
            return "it has vanished"
        raise
    except BaseException:
        trainer.position = before
        raise
    finally:
        trainer.directory, trainer.history, trainer.show_progress = directory, history, shown
        trainer.config = config
    trainer.shards = [*done, name]
    rows = trainer.position.rows
    trainer.position.rows += before.rows
    trainer.position.step += before.step
    row: dict[str, Any] = {
        "shard": name,
        "step": trainer.position.step,
        "rows": trainer.position.rows,
        "loss": loss,
        "rows_per_s": rows / (time.perf_counter() - started),
    }
    row |= {f"before/{m}": v for m, v in metrics.items() if m.rpartition("/")[2] in _METRICS}
    if trainer.model.wide_table is not None:
        row["nonzero_wide"] = trainer.model.wide_table.nonzero
    return row


def _is_gone(data: object) -> bool:
    """True of a file that is not there any more: nothing of it can be learned, now or later."""
    return isinstance(data, str | os.PathLike) and not os.path.lexists(data)


def _summary(row: dict[str, Any]) -> str:
    shown = [f"{name} {value:.4f}" for name, value in row.items() if name.startswith("before/")]
    return (
        f"{row['shard']}  {row['rows']:,} rows in all  {row['rows_per_s']:,.0f} rows/s  "
        + "  ".join(shown[:3])
    )
