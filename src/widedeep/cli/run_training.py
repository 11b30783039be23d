"""A run from its configuration to its bundle, and on with new shards; it imports torch."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from widedeep._version import __version__
from widedeep.bundle.manifest import MANIFEST
from widedeep.bundle.posterior import ranked_head
from widedeep.callbacks.loggers import make_loggers
from widedeep.cli.prepare import fit_run_schema, prepared_schema
from widedeep.cli.runs import RunDirectory, training_data
from widedeep.data import topics
from widedeep.data.fragments import InputRecord
from widedeep.data.paths import follow_folder, local_files
from widedeep.data.reuse import reuse_inputs
from widedeep.errors import RanksError, WideDeepError
from widedeep.gate.config import GateConfig
from widedeep.models.wide_deep import WideDeep, checked_device
from widedeep.publish import Candidate, ContinuousPublisher
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.ranks.shared import on_first
from widedeep.schema import Schema
from widedeep.training.checkpoint import CheckpointDirectory, find_checkpoint, read_checkpoint
from widedeep.training.config import FollowConfig, RunConfig, WarmStartConfig
from widedeep.training.defaults import at_quality, make_optimizers
from widedeep.training.early_stopping import configured_stopping
from widedeep.training.evaluation import bundle_model
from widedeep.training.export import check_items
from widedeep.training.grow import check_widths
from widedeep.training.previous_model import previous_schema
from widedeep.training.stream import Shard, shards_of_first
from widedeep.training.trainer import Trainer
from widedeep.training.warm_start import WarmStart


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """Results of a finished run."""

    directory: RunDirectory  # Where it is
    schema: Schema  # What turns rows into ids
    # By data set: ``"valid"`` and ``"test"``, those that were given
    metrics: Mapping[str, Mapping[str, float]]
    history: list[dict[str, Any]]  # A row of figures for each epoch or evaluation
    steps: int  # Steps trained
    rows: int  # Rows trained, over all epochs
    seconds: float  # Spent in training, of this call alone
    warm: WarmStart | None = None  # What a warm start took over
    # Bytes that a rank sent in steps for each of its examples, on the average, in this call
    sent_bytes: float = 0.0


def make_trainer(
    schema: Schema,
    config: RunConfig,
    *,
    checkpoints: str | os.PathLike[str] | None = None,
    progress: bool = True,
    restored: bool = False,
) -> Trainer:
    """Return a trainer, with its model, as a configuration describes them.

    ``restored``: its weights are to come from a checkpoint, and no pretrained vectors are read.
    """
    config = at_quality(config)
    pretrained: Literal[False] | None = False if restored else None
    model = WideDeep(schema, config.model, device=config.train.device, pretrained=pretrained)
    for name, rows in model.pretrained.items() if progress else ():
        print(f"pretrained {name}: {rows}", file=sys.stderr)
    return Trainer(
        model,
        config.train,
        checkpoints=checkpoints,
        progress=progress,
        distributed=config.distributed,
    )


@reuse_inputs()
def train_run(
    config: RunConfig,
    directory: RunDirectory,
    *,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    warm: WarmStartConfig | None = None,
    grows: bool = False,
) -> TrainedRun:
    """Train as a configuration says, evaluate, and export a bundle.

    ``grows``: the model will get rows for new values of shards.
    """
    with directory:
        train, valid = training_data(config)
        # A mistake there is reported before the long way through the data.
        configured_stopping(config.train, has_valid=valid is not None)
        make_optimizers(config.train)
        checked_device(config.train.device)
        make_loggers(config.train.log, directory.path)
        ranks = ranks_of(config.distributed)
        progress = progress and ranks.is_first
        if resume:
            on_first(ranks, partial(directory.check_same_config, config))
        elif not force:
            on_first(ranks, directory.check_free)
        schema, inputs = _run_schema(
            config, directory, ranks, resume=resume, progress=progress, warm=warm, grows=grows
        )
        goes_on = resume and CheckpointDirectory(directory.checkpoints).latest(ranks) is not None
        trainer = make_trainer(
            schema,
            config,
            checkpoints=directory.checkpoints,
            progress=progress,
            restored=goes_on,
        )
        if config.train.posterior:
            ranked_head(bundle_model(trainer.model))  # a head without one is told of at once
        check_items(trainer.model, config.data.items)
        started_warm = None
        if warm is not None and goes_on:
            directory.check_warm_start(warm.path)
        elif warm is not None:
            started_warm = trainer.warm_start(warm.path, transfer=warm.transfer, widths=warm.widths)
            if progress:
                print(started_warm, file=sys.stderr)
        ranks.barrier()  # all of them have read what is replaced now
        begin = partial(_begin, config, directory, schema, inputs, started_warm)
        on_first(ranks, partial(begin, clear=not resume, force=force))
        started = time.perf_counter()
        trainer.fit(
            train,
            valid=valid,
            resume=resume,
            cache=directory.encoded if directory.encoded.exists() else None,
        )
        seconds = time.perf_counter() - started
        run = _finish(trainer, config, directory, seconds)
        return dataclasses.replace(run, warm=started_warm)


def _begin(
    config: RunConfig,
    directory: RunDirectory,
    schema: Schema,
    inputs: list[InputRecord] | None,
    started_warm: WarmStart | None,
    *,
    clear: bool,
    force: bool,
) -> None:
    """Write what a run's folder holds before the first step."""
    directory.hold()
    if clear and not force:
        directory.check_free()  # again: another process may have trained here meanwhile
    if clear:
        # Only now: what is wrong with data or configuration costs no earlier run.
        directory.clear()
    if inputs is not None:
        directory.save_schema(schema, inputs)
    elif not directory.schema.exists():
        schema.save(directory.schema)
    directory.save_config(config)
    if started_warm is not None:
        directory.write_json(directory.warm_start, started_warm.to_json())


def _run_schema(
    config: RunConfig,
    directory: RunDirectory,
    ranks: Ranks,
    *,
    resume: bool,
    progress: bool,
    warm: WarmStartConfig | None,
    grows: bool,
) -> tuple[Schema, list[InputRecord] | None]:
    """Return the schema to train with, and the record of its inputs if it was just fitted."""
    latest = CheckpointDirectory(directory.checkpoints).begun(ranks) if resume else None
    if latest is not None:
        # The run's own, whatever the data is now: that is compared when the run goes on.
        schema, inputs, origin = Schema.load(latest / "schema.safetensors"), None, "of the run"
    else:
        grow = None if warm is None else previous_schema(warm.path)
        prepared = prepared_schema(config, directory, ranks) if grow is None else None
        if prepared is not None:
            schema, inputs, origin = prepared, None, "as prepared"
        else:
            schema, inputs = fit_run_schema(config, progress, grow, ranks.patient())
            origin = f"fitted on {schema.rows:,} rows"
    if grows:
        check_widths(schema)
    if progress:
        if resume and latest is None:
            print(f"nothing to resume in {directory.path}; starting anew", file=sys.stderr)
        print(f"schema: {directory.schema} ({origin})", file=sys.stderr)
        for note in schema.notes:
            print(f"note: {note}", file=sys.stderr)
    return schema, inputs


def _finish(
    trainer: Trainer,
    config: RunConfig,
    directory: RunDirectory,
    seconds: float,
) -> TrainedRun:
    metrics = {"valid": trainer.valid_metrics} if trainer.valid_metrics else {}
    if config.data.test is not None:
        metrics["test"] = trainer.evaluate(config.data.test)
    trainer.export(
        directory.bundle,
        metrics=metrics.get("test", metrics.get("valid", {})),
        posterior=training_data(config)[0] if config.train.posterior else None,
        items=config.data.items,
        overwrite=True,
    )
    _write_attributions(trainer, config, directory)
    step, ranks = trainer.step, trainer.state.ranks
    sent = int(np.sum(ranks.gather(np.array([step.sent_bytes]))))
    run = TrainedRun(
        directory=directory,
        schema=trainer.model.schema,
        metrics=metrics,
        history=trainer.history.rows,
        steps=trainer.position.step,
        rows=trainer.position.rows,
        seconds=seconds,
        sent_bytes=sent / max(1, step.learned_rows),
    )
    on_first(ranks, partial(_write_results, run))
    return run


def _write_results(run: TrainedRun) -> None:
    directory = run.directory
    directory.write_json(directory.history, run.history)
    # Last: a run with metrics is finished.
    directory.write_json(
        directory.metrics,
        {
            **run.metrics,
            "steps": run.steps,
            "rows": run.rows,
            "schema": run.schema.fingerprint,
            "widedeep": __version__,
        },
    )


def _write_attributions(trainer: Trainer, config: RunConfig, directory: RunDirectory) -> None:
    """Write how much each feature moves the logits of test, else validation rows, for a report."""
    held_out = config.data.test if config.data.test is not None else training_data(config)[1]
    attributions = None if held_out is None else trainer.attributions(held_out)

    def write() -> None:
        directory.attributions.unlink(missing_ok=True)  # they may be of an older model
        if attributions is not None:
            directory.write_json(directory.attributions, attributions)

    on_first(trainer.state.ranks, write)


# ---- on with new shards -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Results of following a folder."""

    shards: list[dict[str, Any]]  # A row of figures for each shard, those of earlier calls too
    candidates: list[Candidate]  # What the gate said of each candidate, those of earlier calls too
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
) -> Followed:
    """Learn a folder's Parquet files as they land, from where the run, or its stream, stopped."""
    ranks = ranks_of(config.distributed)
    progress = ranks.is_first

    def say(line: str) -> None:
        if progress:
            print(line, file=sys.stderr, flush=True)

    if config.train.posterior:
        say(
            "note: posterior = true, but bundles that follow shards hold none: the rows are not "
            "kept; write one that does with widedeep export --posterior DATA"
        )
    trainer = _trainer(config, directory, ranks, progress)
    files: Iterable[Shard] = ()
    if not ranks.is_first:
        pass  # the first rank looks, and tells the others
    elif str(folder).startswith(topics.SCHEME):
        topic = topics.Topic.of_url(str(folder), follow.kafka)
        columns = trainer.evaluator.transform.columns()
        files = topics.follow_topic(topic, columns, done=trainer.shards, idle_s=idle_s, notify=say)
    else:
        files = follow_folder(folder, done=trainer.shards, poll_s=poll_s, idle_s=idle_s, notify=say)
        files = _own_told(files, config, say)
    files = shards_of_first(ranks, files)
    publisher = _publisher(trainer, config, directory, follow, gate, say)
    exporter = _Exporter(trainer, config, directory, follow, say)
    try:
        trainer.fit_stream(
            exporter.shards(files) if publisher is None else publisher.shards(files),
            grow=follow.grow,
            evict_after=follow.evict_after,
        )
    finally:
        if ranks.is_first:
            directory.write_json(directory.history, trainer.history.rows)
    if on_first(ranks, lambda: exporter.is_new):
        exporter.export()
    metrics = on_first(ranks, directory.read_metrics)
    return Followed(
        shards=trainer.history.rows,
        candidates=[] if publisher is None else publisher.candidates,
        metrics={name: metrics[name] for name in ("valid", "test") if name in metrics},
    )


def _own_told(
    files: Iterable[Shard], config: RunConfig, say: Callable[[str], None]
) -> Iterator[Shard]:
    """Yield shards; say so of one that the run has learned, or is judged on."""
    paths = {"training": config.data.train, "validation": config.data.valid}
    paths["test"] = config.data.test
    roles = {file: role for role, data in paths.items() if data for file in local_files(data)}
    for name, data in files:
        role = next((roles[file] for file in local_files(data) if file in roles), None)
        if role is not None:
            say(f"note: {name} is the run's {role} data too")
        yield name, data


def _trainer(config: RunConfig, directory: RunDirectory, ranks: Ranks, progress: bool) -> Trainer:
    stream = CheckpointDirectory(directory.stream).latest(ranks)
    folder = stream or Path(on_first(ranks, lambda: str(find_checkpoint(directory.path))))
    checkpoint = read_checkpoint(folder, ranks=ranks)
    trainer = make_trainer(
        checkpoint.schema,
        config,
        checkpoints=directory.stream,
        progress=progress,
        restored=True,
    )
    if stream is not None:
        trainer.load_checkpoint(stream)
    else:
        trainer.load_parameters(folder)
        trainer.position.updates = checkpoint.step
    return trainer


def _publisher(
    trainer: Trainer,
    config: RunConfig,
    directory: RunDirectory,
    follow: FollowConfig,
    gate: GateConfig | None,
    say: Callable[[str], None],
) -> ContinuousPublisher | None:
    if follow.publish is None:
        return None
    return ContinuousPublisher(
        trainer,
        follow.publish,
        bundle=directory.candidate,
        every_rows=follow.export_rows,
        every_minutes=follow.export_minutes,
        judge_rows=follow.judge_rows,
        full_every=follow.full_every,
        patch_precision=follow.patch_precision,
        items=config.data.items,
        gate=gate,
        on_message=say,
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
            if on_first(self._trainer.state.ranks, self._is_time):
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
        """Export the model as the run's bundle."""
        bundle, trainer = self._directory.bundle, self._trainer
        metrics = self._metrics()
        live = trainer.history.live_metrics()
        of_bundle = metrics.get("test") or metrics.get("valid") or live
        items = self._config.data.items
        trainer.export(bundle, metrics=of_bundle, items=items, overwrite=True)
        stream = {"shards": len(trainer.shards), "rows": trainer.position.rows, "before": live}

        def write() -> None:
            before = self._directory.read_metrics().items()
            others = {name: v for name, v in before if name not in ("valid", "test", "stream")}
            written = {**metrics, **others, "stream": stream}
            self._directory.write_json(self._directory.metrics, written)

        on_first(trainer.state.ranks, write)
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
            _write_attributions(self._trainer, self._config, self._directory)
        except RanksError:
            raise
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
