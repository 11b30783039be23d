"""A run from its configuration to its bundle: schema, model, training, evaluation, export."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from widedeep import __version__
from widedeep.bundle import Bundle
from widedeep.commands.run_data import training_data
from widedeep.commands.run_directory import RunDirectory
from widedeep.config import config_from_tables
from widedeep.data.encoded import EncodedRows, encoded_rows
from widedeep.data.fit import declared_types, fit_schema
from widedeep.data.fragments import InputRecord
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, CheckpointError, ConfigError, DataError
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import make_optimizer
from widedeep.options import Auto
from widedeep.schema import Schema
from widedeep.training.checkpoint import CheckpointDirectory, find_checkpoint, read_checkpoint
from widedeep.training.config import RunConfig, TrainConfig
from widedeep.training.early_stopping import EarlyStopping
from widedeep.training.previous_model import old_schema
from widedeep.training.trainer import Trainer
from widedeep.training.warm_start import WarmStart


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What a run came to."""

    directory: RunDirectory  # Where it is
    schema: Schema  # What turns rows into ids
    # By data set: ``"valid"`` and ``"test"``, those that were given
    metrics: Mapping[str, Mapping[str, float]]
    history: list[dict[str, Any]]  # A row of figures for each epoch or evaluation
    steps: int  # Steps trained
    rows: int  # Rows trained, over all epochs
    seconds: float  # Spent in training, of this call alone
    warm: WarmStart | None = None  # What a warm start took over


@dataclass(frozen=True, kw_only=True)
class WarmFrom:
    """An older model to start from."""

    path: str | os.PathLike[str]  # A bundle, a run's folder, or a checkpoint
    carry: tuple[str, ...] = ("*",)  # Patterns of the names of tensors to take over
    widths: Literal["fresh", "project"] = "fresh"  # What becomes of embeddings of another width


def prepare_schema(config: RunConfig, directory: RunDirectory, *, progress: bool = False) -> Schema:
    """Fit the schema of a run and keep it in its folder."""
    schema, inputs = _fit(config, progress)
    directory.save_schema(schema, inputs)
    return schema


def encode_rows(
    config: RunConfig, directory: RunDirectory, schema: Schema
) -> tuple[EncodedRows, bool]:
    """Encode the training rows into the run's folder, unless it holds them already."""
    train, _ = training_data(config)
    transform = Transform(schema)
    types = schema.input_types()
    with open_source(train, columns=transform.columns(), column_types=types) as source:
        return encoded_rows(directory.encoded, transform, source)


def _fit(
    config: RunConfig, progress: bool, grow: Schema | None = None
) -> tuple[Schema, list[InputRecord]]:
    inputs = _inputs(config)
    train, _ = training_data(config)
    shown = progress and sys.stderr.isatty()
    return fit_schema(config.spec, train, progress=shown, grow=grow), inputs


def _inputs(config: RunConfig) -> list[InputRecord]:
    train, _ = training_data(config)
    types = declared_types(config.spec)
    with open_source(train, columns=_needed_columns(config), column_types=types) as source:
        if not source.num_rows:
            raise DataError(f"{config.data.train}: got no training rows; give at least one example")
        return source.describe()


def _prepared_schema(config: RunConfig, directory: RunDirectory) -> Schema | None:
    """The schema in the folder, if it was fitted for these features on these inputs."""
    if directory.fitted_inputs() != _inputs(config):
        return None
    schema = Schema.load(directory.schema)
    return schema if schema.spec == config.spec else None


def _needed_columns(config: RunConfig) -> list[str]:
    spec = config.spec
    more = [*spec.labels.values(), spec.weight, spec.group]
    return [*spec.columns(), *(name for name in more if name is not None)]


def make_trainer(
    schema: Schema,
    config: RunConfig,
    *,
    checkpoints: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Trainer:
    """Return a trainer, with its model, as a configuration describes them."""
    train = config.train
    optimizers = _optimizers(train)
    trainer = Trainer(
        WideDeep.from_config(schema, config.model, train.device),
        wide=optimizers["wide"],
        deep=optimizers["deep"],
        dense=optimizers["dense"],
        batch_size=train.batch_size,
        grad_scale=train.grad_scale,
        loss_reduction=train.loss_reduction,
        clip_norm=train.clip_norm,
        schedule=train.schedule,
        decay_fraction=train.decay_fraction,
        warmup_steps=train.warmup_steps,
        shuffle=train.shuffle,
        pool_rows=train.pool_rows,
        seed=train.seed,
        threads=train.threads,
        precision=train.precision,
        checkpoints=checkpoints,
        progress=progress,
    )
    # A checkpoint and a bundle tell of the run, so they hold what only ``fit`` is told, too.
    trainer.config = dataclasses.replace(
        trainer.config,
        epochs=train.epochs,
        early_stopping=train.early_stopping,
        patience=train.patience,
        monitor=train.monitor,
        eval_every=train.eval_every,
    )
    return trainer


def _optimizers(train: TrainConfig) -> dict[str, Any]:
    """Return the optimizer of each part; None for a dense part that follows the deep one."""
    made: dict[str, Any] = {}
    for part, table in (("wide", train.wide), ("deep", train.deep), ("dense", train.dense)):
        try:
            made[part] = None if table is None else make_optimizer(table)
        except ConfigError as error:
            raise ConfigError(f"[train] {part}: {error}") from error
    return made


def train_run(
    config: RunConfig,
    directory: RunDirectory,
    *,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    warm: WarmFrom | None = None,
) -> TrainedRun:
    """Train as a configuration says, evaluate, and export a bundle."""
    train, valid = training_data(config)
    stopping = early_stopping(config.train, has_valid=valid is not None)
    _optimizers(config.train)  # a mistake there is told before the long way through the data
    if resume:
        directory.check_same_config(config)
    elif not force:
        directory.check_free()
    schema, inputs = _run_schema(config, directory, resume=resume, progress=progress, warm=warm)
    trainer = make_trainer(schema, config, checkpoints=directory.checkpoints, progress=progress)
    started_warm = None
    if warm is not None and not (resume and CheckpointDirectory(directory.checkpoints).steps()):
        started_warm = trainer.warm_start(warm.path, carry=warm.carry, widths=warm.widths)
        if progress:
            print(started_warm, file=sys.stderr)
    if not resume:
        # Only now: what is wrong with data or configuration costs no earlier run.
        directory.clear()
    if inputs is not None:
        directory.save_schema(schema, inputs)
    elif not directory.schema.exists():
        schema.save(directory.schema)
    directory.save_config(config)
    if started_warm is not None:
        directory.write_json(directory.warm_start, started_warm.to_json())
    started = time.perf_counter()
    trainer.fit(
        train,
        epochs=config.train.epochs,
        valid=valid,
        eval_every=config.train.eval_every,
        early_stopping=stopping,
        resume=resume,
        cache=directory.encoded if directory.encoded.exists() else None,
    )
    seconds = time.perf_counter() - started
    run = _finish(trainer, config, directory, seconds)
    return dataclasses.replace(run, warm=started_warm)


def _run_schema(
    config: RunConfig,
    directory: RunDirectory,
    *,
    resume: bool,
    progress: bool,
    warm: WarmFrom | None,
) -> tuple[Schema, list[InputRecord] | None]:
    """Return the schema to train with, and what it was fitted on if it was fitted just now."""
    latest = CheckpointDirectory(directory.checkpoints).latest() if resume else None
    if latest is not None:
        # The run's own, whatever the data is now: that is compared when the run goes on.
        schema, inputs, told = Schema.load(latest / "schema.safetensors"), None, "of the run"
    else:
        grow = None if warm is None else old_schema(warm.path)
        found = _prepared_schema(config, directory) if grow is None else None
        if found is not None:
            schema, inputs, told = found, None, "as prepared"
        else:
            schema, inputs = _fit(config, progress, grow)
            told = f"fitted on {schema.rows:,} rows"
    if progress:
        if resume and latest is None:
            print(f"nothing to resume in {directory.path}; starting anew", file=sys.stderr)
        print(f"schema: {directory.schema} ({told})", file=sys.stderr)
    return schema, inputs


def early_stopping(train: TrainConfig, *, has_valid: bool) -> EarlyStopping | Auto | None:
    """Return the early stopping that a configuration asks for, as ``Trainer.fit`` takes it."""
    if train.early_stopping is False:
        return None
    if train.patience is None and train.early_stopping == "auto":
        return EarlyStopping(train.monitor) if has_valid and train.monitor else "auto"
    if not has_valid:
        option = (
            "early_stopping = true" if train.patience is None else f"patience = {train.patience}"
        )
        raise ConfigError(
            f"got {option} under [train] without validation data; write "
            f"valid_fraction = 0.1 or valid = FILE under [data], or drop {option.split()[0]}"
        )
    if train.patience is None:
        return EarlyStopping(train.monitor)
    return EarlyStopping(train.monitor, patience=train.patience)


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
        overwrite=True,
    )
    directory.write_json(directory.history, trainer.history.rows)
    run = TrainedRun(
        directory=directory,
        schema=trainer.model.schema,
        metrics=metrics,
        history=trainer.history.rows,
        steps=trainer.position.step,
        rows=trainer.position.rows,
        seconds=seconds,
    )
    # Last: a run with metrics is finished.
    directory.write_json(
        directory.metrics,
        {
            **metrics,
            "steps": run.steps,
            "rows": run.rows,
            "schema": run.schema.fingerprint,
            "widedeep": __version__,
        },
    )
    return run


def export_checkpoint(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[Bundle, Path]:
    """Write a run's best (or newest) checkpoint, or any checkpoint, as a bundle."""
    if Path(out).exists() and not overwrite:
        raise BundleError(f"{out}: is there already; name another folder, or add --force")
    place = find_checkpoint(path)
    checkpoint = read_checkpoint(place)
    config = config_from_tables(checkpoint.state["config"], origin=str(place))
    # What a GPU trained is exported anywhere.
    here = dataclasses.replace(config, train=dataclasses.replace(config.train, device="cpu"))
    try:
        trainer = make_trainer(checkpoint.schema, here, progress=False)
    except ConfigError as error:
        raise CheckpointError(
            f"{place}: its trainer cannot be made from its configuration ({error}); export it "
            "where it was made: trainer.export(...)"
        ) from error
    known = {f"module/{name}" for name in trainer.model.dense_state()}
    unknown = {n for n in checkpoint.tensors if n.startswith("module/")} - known
    if unknown:
        raise CheckpointError(
            f"{place}: holds {sorted(unknown)[0]!r}, part of a tower that the configuration does "
            "not describe; export it where it was made: trainer.export(...)"
        )
    trainer.load_checkpoint(place)
    trainer.config = dataclasses.replace(trainer.config, device=config.train.device)
    return trainer.export(out, overwrite=overwrite), place
