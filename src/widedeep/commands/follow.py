"""A run that goes on learning: new shards as they land, exports on the way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widedeep.checkpoint import CheckpointDirectory, find_checkpoint, read_checkpoint
from widedeep.commands.run_directory import RunDirectory
from widedeep.commands.train import make_trainer
from widedeep.config import RunConfig
from widedeep.data.follow import follow_folder
from widedeep.trainer import Trainer

__all__ = ["Exports", "follow_run"]


@dataclass(frozen=True, kw_only=True)
class Exports:
    """When a run that follows a folder writes a bundle, beside the one at its end.

    Args:
        rows: Rows learned since the last one; None: not by rows.
        minutes: Time since the last one; None: not by time.
        on_bundle: Called with the bundle's folder and the next shard's file, which the model has
            not learned yet: it can be judged on it.
    """

    rows: int | None = None
    minutes: float | None = None
    on_bundle: Callable[[Path, Path], None] = lambda bundle, shard: None


def follow_run(
    config: RunConfig,
    directory: RunDirectory,
    folder: str | os.PathLike[str],
    *,
    exports: Exports,
    poll_s: float = 1.0,
    idle_s: float | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Learn a folder's Parquet files as they land, from where the run, or its stream, stopped.

    Args:
        config: The run's.
        directory: Of a finished run; the stream's checkpoints lie in ``stream/``.
        folder: Where shards land.
        exports: When bundles are written.
        poll_s: Seconds between looks at the folder.
        idle_s: End after so many seconds without a new shard; None: at Ctrl-C.
        progress: Say on standard error what happens.

    Returns:
        A row of figures for each shard, those of earlier calls too.

    Raises:
        CheckpointError: If the run holds no checkpoint.
        DataError: If a shard's columns or labels do not fit.
        KeyboardInterrupt: On Ctrl-C; nothing that a checkpoint holds is lost.
    """
    trainer = _trainer(config, directory, progress)
    follower = _Follower(trainer, directory, exports, progress)
    shards = follow_folder(
        folder,
        done=trainer.shards,
        poll_s=poll_s,
        idle_s=idle_s,
        told=follower.say,
    )
    try:
        trainer.fit_stream(
            ((name, follower.about_to_learn(file)) for name, file in shards),
        )
    finally:
        directory.write_json(directory.history, trainer.history.rows)
    if follower.is_new:
        follower.export()
    return trainer.history.rows


def _trainer(config: RunConfig, directory: RunDirectory, progress: bool) -> Trainer:
    stream = CheckpointDirectory(directory.stream).latest()
    place = stream or find_checkpoint(directory.path)
    checkpoint = read_checkpoint(place)
    trainer = make_trainer(
        checkpoint.schema, config, checkpoints=directory.stream, progress=progress
    )
    if stream is not None:
        trainer.load_checkpoint(stream)
    else:
        trainer.load_parameters(place)
        trainer.position.updates = checkpoint.step
    return trainer


class _Follower:
    """Counts what was learned since the last bundle."""

    def __init__(
        self, trainer: Trainer, directory: RunDirectory, exports: Exports, progress: bool
    ) -> None:
        self._trainer, self._directory, self._exports = trainer, directory, exports
        self._progress = progress
        self._rows = trainer.position.rows
        self._time = time.monotonic()

    def say(self, line: str) -> None:
        if self._progress:
            print(line, file=sys.stderr, flush=True)

    def about_to_learn(self, file: Path) -> Path:
        """Write a bundle if it is time: the rows of ``file`` are the newest it has not seen."""
        rows, minutes = self._exports.rows, self._exports.minutes
        learned = self._trainer.position.rows - self._rows
        since = (time.monotonic() - self._time) / 60.0
        if learned and (
            (rows is not None and learned >= rows) or (minutes is not None and since >= minutes)
        ):
            self._exports.on_bundle(self.export(), file)
        return file

    def export(self) -> Path:
        """Write what was learned as the run's bundle."""
        bundle, trainer = self._directory.bundle, self._trainer
        trainer.export(bundle, metrics=_latest_metrics(trainer), overwrite=True)
        self.say(f"exported {bundle} after {trainer.position.rows:,} rows")
        self._rows, self._time = trainer.position.rows, time.monotonic()
        return bundle

    @property
    def is_new(self) -> bool:
        """True if something was learned since the last bundle."""
        return self._trainer.position.rows > self._rows


def _latest_metrics(trainer: Trainer) -> dict[str, float]:
    row = trainer.history[-1] if len(trainer.history) else {}
    return {k.removeprefix("before/"): v for k, v in row.items() if k.startswith("before/")}
