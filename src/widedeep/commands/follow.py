"""A run that goes on learning: new shards as they land, exports on the way, through the gate."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widedeep.bundle.manifest import MANIFEST
from widedeep.commands.run_data import training_data
from widedeep.commands.run_directory import RunDirectory
from widedeep.commands.train import make_trainer
from widedeep.data.follow import follow_folder
from widedeep.errors import WideDeepError
from widedeep.gate.config import GateConfig
from widedeep.publish import Attempt, LivePublisher
from widedeep.training.checkpoint import CheckpointDirectory, find_checkpoint, read_checkpoint
from widedeep.training.config import FollowConfig, RunConfig
from widedeep.training.stream import Shard
from widedeep.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What came of following."""

    shards: list[dict[str, Any]]  # A row of figures for each shard, those of earlier calls too
    attempts: list[Attempt]  # What the gate said of each candidate, those of earlier calls too
    # Of the model in the run's bundle, by data set; see :class:`_Exporter`
    metrics: Mapping[str, Mapping[str, float]]


def follow_run(
    config: RunConfig,
    directory: RunDirectory,
    folder: str | os.PathLike[str],
    *,
    follow: FollowConfig,
    gate: GateConfig | None = None,
    poll_s: float = 1.0,
    idle_s: float | None = None,
    progress: bool = True,
) -> Followed:
    """Learn a folder's Parquet files as they land, from where the run, or its stream, stopped."""

    def say(line: str) -> None:
        if progress:
            print(line, file=sys.stderr, flush=True)

    trainer = _trainer(config, directory, progress)
    files = follow_folder(folder, done=trainer.shards, poll_s=poll_s, idle_s=idle_s, told=say)
    publisher = _publisher(trainer, directory, follow, gate, say)
    exporter = _Exporter(trainer, config, directory, follow, say)
    try:
        trainer.fit_stream(exporter.shards(files) if publisher is None else publisher.shards(files))
    finally:
        directory.write_json(directory.history, trainer.history.rows)
    if exporter.is_new:
        exporter.export()
    metrics = directory.read_metrics()
    return Followed(
        shards=trainer.history.rows,
        attempts=[] if publisher is None else publisher.attempts,
        metrics={name: metrics[name] for name in ("valid", "test") if name in metrics},
    )


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


def _publisher(
    trainer: Trainer,
    directory: RunDirectory,
    follow: FollowConfig,
    gate: GateConfig | None,
    say: Callable[[str], None],
) -> LivePublisher | None:
    if follow.publish is None:
        return None
    return LivePublisher(
        trainer,
        follow.publish,
        bundle=directory.candidate,
        every_rows=follow.export_rows,
        every_minutes=follow.export_minutes,
        judge_rows=follow.judge_rows,
        gate=gate,
        told=say,
    )


class _Exporter:
    """Writes the run's bundle: every so often where nothing is published, and at the end."""

    def __init__(
        self,
        trainer: Trainer,
        config: RunConfig,
        directory: RunDirectory,
        follow: FollowConfig,
        say: Callable[[str], None],
    ) -> None:
        self._trainer, self._directory, self._follow, self._say = trainer, directory, follow, say
        self._config = config
        self._rows = trainer.position.rows
        self._time = time.monotonic()

    def shards(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        """Yield the shards, and write the bundle between them if it is time."""
        for shard in shards:
            if self._is_time():
                self.export()
            yield shard

    def _is_time(self) -> bool:
        rows, minutes = self._follow.export_rows, self._follow.export_minutes
        learned = self._trainer.position.rows - self._rows
        since = (time.monotonic() - self._time) / 60.0
        return learned > 0 and (
            (rows is not None and learned >= rows) or (minutes is not None and since >= minutes)
        )

    def export(self) -> Path:
        """Write what was learned as the run's bundle."""
        bundle, trainer = self._directory.bundle, self._trainer
        metrics = self._metrics()
        live = trainer.history.live_metrics()
        of_bundle = metrics.get("test") or metrics.get("valid") or live
        trainer.export(bundle, metrics=of_bundle, overwrite=True)
        before = self._directory.read_metrics().items()
        others = {name: value for name, value in before if name not in ("valid", "test", "stream")}
        stream = {"shards": len(trainer.shards), "rows": trainer.position.rows, "before": live}
        self._directory.write_json(self._directory.metrics, {**metrics, **others, "stream": stream})
        self._say(f"exported {bundle} after {trainer.position.rows:,} rows")
        self._rows, self._time = trainer.position.rows, time.monotonic()
        return bundle

    def _metrics(self) -> dict[str, dict[str, float]]:
        """Evaluate the model as it is on the configuration's validation and test data."""
        metrics: dict[str, dict[str, float]] = {}
        try:
            sets = {"valid": training_data(self._config)[1], "test": self._config.data.test}
            for name, data in sets.items():
                if data is not None:
                    metrics[name] = dict(self._trainer.evaluate(data))
        except WideDeepError as error:  # a stream outlives files
            self._say(f"not all metrics could be measured anew: {error}")
        return metrics

    @property
    def is_new(self) -> bool:
        """True if something was learned since the last bundle, by a run that was killed too."""
        return self._trainer.position.rows > self._rows or self._is_bundle_older()

    def _is_bundle_older(self) -> bool:
        checkpoints = [path.stat().st_mtime_ns for path in self._directory.stream.glob("*")]
        manifest = self._directory.bundle / MANIFEST
        return not manifest.is_file() or manifest.stat().st_mtime_ns < max(checkpoints, default=0)
