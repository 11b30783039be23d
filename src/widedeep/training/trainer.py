"""Trainer: reads examples out of core and learns them, one step a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.predictions import Predictions, named_predictions
from widedeep.callbacks.base import Callbacks
from widedeep.callbacks.loggers import make_loggers
from widedeep.data.fragments import check_same_inputs
from widedeep.data.profile import sample_rows
from widedeep.data.sources import Data
from widedeep.data.transform import Transform
from widedeep.errors import CheckpointError, ConfigError
from widedeep.kernels.packed_rows import TableKind
from widedeep.kernels.threads import limit_spinning, usable_cores
from widedeep.metrics.estimator import estimator_metrics
from widedeep.metrics.registry import loss_metric
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import Adagrad, OptimizerChoice, describe_optimizer
from widedeep.options import Auto, as_count, keyword_signature, with_options
from widedeep.ranks.config import DistributedConfig, as_distributed
from widedeep.ranks.ranks import local_threads, ranks_of
from widedeep.schema import Schema
from widedeep.training.attribution import mean_attributions
from widedeep.training.checkpoint import CheckpointDirectory, read_checkpoint
from widedeep.training.config import TrainConfig, WarmStartConfig, Widths
from widedeep.training.defaults import (
    Optimizers,
    adopted_optimizers,
    auto_batch_size,
    auto_epochs,
    embeddings_optimizer,
    make_optimizers,
    with_compat,
    with_descriptions,
)
from widedeep.training.dense import DenseOptimizer, resolve_precision
from widedeep.training.early_stopping import (
    EarlyStopping,
    as_stopping,
    check_conditions,
    configured_stopping,
)
from widedeep.training.evaluation import Evaluator, bundle_model, metric_names
from widedeep.training.export import export_bundle
from widedeep.training.grow import use_schema
from widedeep.training.members import fit_members, members_apart
from widedeep.training.run import TrainingRun
from widedeep.training.schedules import RateSchedules
from widedeep.training.state import History, Position, TrainState, WarmupSample
from widedeep.training.step import TrainStep
from widedeep.training.stream import Shard, fit_stream
from widedeep.training.trainable import check_lanes, check_model
from widedeep.training.warm_start import WarmStart, warm_start

__all__ = ["Trainer"]


class Trainer:
    """Trains a :class:`widedeep.WideDeep` jointly: by default FTRL for wide, Adagrad for deep.

    Args:
        model: The model; it is changed in place.
        config: How it is trained; None: :class:`widedeep.training.config.TrainConfig` with its
            defaults.
        wide: Optimizer of the wide weights: one of :mod:`widedeep.optim`, its name, or a table such
            as ``{"optimizer": "ftrl", "lr": 0.1}``; None: the configuration's, ``FTRL()`` by
            default.
        deep: Optimizer of the embeddings, and of the dense parameters unless ``dense`` is given.
            None: the configuration's, or else
            ``Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025)`` for the embeddings, with up to
            ``l2=0.3`` on several passes (``lr=0.02`` of towers whose logit is a sum of products of
            embeddings, as ``deep_fm``'s), and ``Adagrad()`` for the dense parameters.
        dense: Optimizer of the dense parameters: one of ours, its name or table, or a function of
            the parameters that returns a torch optimizer, such as ``lambda parameters:
            torch.optim.AdamW(parameters, lr=1e-3)``, or a pair of it and a scheduler of
            ``torch.optim.lr_scheduler``: this then decides the rates of the dense part, a step at
            a time, and checkpoints keep it.
        checkpoints: Directory for checkpoints; None writes none.
        keep_last: Checkpoints kept besides the best.
        callbacks: What is called while it trains: objects with some of the methods of
            :class:`widedeep.callbacks.Callback`, such as :class:`widedeep.callbacks.TensorBoard`.
            Those of the configuration's ``log`` come after them.
        progress: False shows nothing.
        distributed: How several processes train the model together: a
            :class:`widedeep.config.DistributedConfig`, or a table: ``{"lanes": 24}``. Each of them,
            launched by torchrun or with ``torch.distributed`` initialised, makes the same calls.
        options: Fields of :class:`widedeep.training.config.TrainConfig` by keyword, such as
            ``batch_size=64``; they come before those of ``config``.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")])
        >>> model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
        >>> trainer = wd.Trainer(model, batch_size=8, progress=False)
        >>> _ = trainer.fit(rows, epochs=20)
        >>> trainer.evaluate(rows)["auc"]
        1.0
    """

    def __init__(
        self,
        model: WideDeep,
        config: TrainConfig | None = None,
        *,
        wide: OptimizerChoice | None = None,
        deep: OptimizerChoice | None = None,
        dense: DenseOptimizer | str | Mapping[str, Any] | None = None,
        checkpoints: str | os.PathLike[str] | None = None,
        keep_last: int = 3,
        callbacks: Sequence[object] = (),
        progress: bool = True,
        distributed: DistributedConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_model(model)
        distributed = as_distributed(distributed)
        objects = {"wide": wide, "deep": deep, "dense": dense}
        tables = {part: x for part, x in objects.items() if isinstance(x, (str, Mapping))}
        objects = {part: x for part, x in objects.items() if x is not None and part not in tables}
        self.objects: dict[str, Any] = objects  # Optimizers that were given as such
        self._members = members_apart(model)
        asked = with_options(config or TrainConfig(), {**options, **tables}, "Trainer")
        self.options = with_compat(asked, model)
        check_lanes(model, self.options, distributed.lanes)
        ranks = ranks_of(distributed)
        optimizers = make_optimizers(self.options, rate=model.embedding_rate, **objects)
        has_deep = "deep" in objects or self.options.deep is not None
        has_dense = has_deep or "dense" in objects or self.options.dense is not None
        self._by_default = {"deep": not has_deep, "dense": not has_dense}
        self.threads = self.options.threads or local_threads()
        limit_spinning(self.threads, usable_cores())
        self.directory: CheckpointDirectory | None = None
        if checkpoints is not None:
            self.directory = CheckpointDirectory(checkpoints, keep_last=keep_last)
        self.callbacks = Callbacks(callbacks, is_first=ranks.is_first).objects
        self.monitors: list[str] = []  # Metrics of fit's validation data
        self._loggers: list[object] | None = None  # Of ``log``, made when training begins
        self.show_progress = progress and ranks.is_first
        resolved = dataclasses.replace(
            self.options,
            precision=resolve_precision(self.options.precision, model.device),
            device=model.device.type,
        )
        columns = Transform(model.schema).columns(targets=False)
        self.state = TrainState(
            model=model,
            step=TrainStep(
                model,
                resolved,
                **optimizers._asdict(),
                threads=self.threads,
                ranks=ranks,
                wire=distributed.wire,
            ),
            config=with_descriptions(resolved, optimizers),
            schedules=RateSchedules(resolved.part_schedules(), warmup_steps=resolved.warmup_steps),
            distributed=distributed,
            warmup=WarmupSample(
                {name: model.schema.columns[name] for name in columns}, resolved.seed
            ),
        )
        self.evaluator = Evaluator(
            model,
            threads=self.threads,
            observe=self.state.warmup.update,
            exchange=self.state.step.exchange,
        )

    # ---- the state of training ------------------------------------------------------------------

    @property
    def model(self) -> WideDeep:
        """The model that is trained."""
        return self.state.model

    @property
    def step(self) -> TrainStep:
        """The step, which holds the optimizers."""
        return self.state.step

    @property
    def config(self) -> TrainConfig:
        """The configuration as checkpoints record it, with numbers where ``"auto"`` was given."""
        return self.state.config

    @property
    def position(self) -> Position:
        """Epochs, batches, steps and rows learned."""
        return self.state.position

    @property
    def history(self) -> History:
        """One row per evaluation or epoch."""
        return self.state.history

    @property
    def shards(self) -> list[str]:
        """The shards of a stream that were learned."""
        return self.state.shards

    @property
    def folder(self) -> Path:
        """The folder of the run: the one that holds ``checkpoints``, else the working folder."""
        return Path() if self.directory is None else self.directory.path.parent

    def config_tables(self) -> dict[str, Any]:
        """Return the resolved configuration as nested tables, as checkpoints record it."""
        return self.state.config_tables()

    @property
    def valid_metrics(self) -> dict[str, float]:
        """Validation metrics of the model as it is; none once it moved."""
        return self.state.valid_metrics

    def fit(
        self,
        data: object,
        *,
        epochs: int | Auto | None = None,
        steps: int | None = None,
        valid: object | None = None,
        eval_every: int | None = None,
        early_stopping: EarlyStopping | int | Auto | None = "auto",
        resume: bool = False,
        cache: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train on ``data``, from the model as it is: a second call goes on learning.

        Args:
            data: A path, a glob, a list of paths, a DataFrame, an Arrow table or reader, or a list
                of dicts.
            epochs: Passes over the data, or ``"auto"``: as many as give 4,000 steps, at most 100,
                with early stopping; as many as give 1,000, at most 20, without. None: the
                configuration's, 1 by default.
            steps: Stop after this many steps, whatever ``epochs`` says.
            valid: Data to evaluate on while training.
            eval_every: Steps between evaluations; None: the configuration's, by default after each
                epoch, and halfway through it where both ``epochs`` and stopping are ``"auto"``.
            early_stopping: Stop when the validation metric no longer improves and go back to the
                best model: :class:`widedeep.EarlyStopping`, or a patience in evaluations.
                ``"auto"`` does as the configuration says: by default it stops where there is
                ``valid`` and more than one evaluation to come; False or None trains to the end.
            resume: Go on from the newest checkpoint of ``checkpoints``, if there is one.
            cache: A folder for the encoded training data, which must be in files: encoded there
                first, unless it holds them already, and read from there in every epoch. It is
                written again when the data or the schema changed, and changes no result. It takes
                1 to 4 bytes an id and 4 a number.

        Returns:
            :attr:`history`, one row an evaluation or epoch, with a warning where validation got
            worse while training got better.

        Raises:
            DataError: If the data has no rows, lacks a column, or holds a label out of range, or
                every row has weight 0; if ``cache`` is given for data in memory, or cannot be
                written.
            CheckpointError: If ``resume`` finds other inputs than the interrupted run had.
            ConfigError: If a number is outside its range, or early stopping lacks ``valid``.
        """
        options = self.options
        if self._members:
            asked: dict[str, Any] = {"epochs": epochs, "steps": steps, "valid": valid}
            asked |= {"eval_every": eval_every, "early_stopping": early_stopping}
            asked |= {"resume": resume, "cache": cache}
            fit_members(self, self._members, data, **asked)
            return self.history
        epochs = options.epochs if epochs is None else epochs
        eval_seconds = options.eval_seconds if eval_every is None else None
        eval_every = options.eval_every if eval_every is None else eval_every
        if epochs != "auto":
            epochs = as_count("epochs", epochs)
        steps = as_count("steps", steps)
        eval_every = as_count("eval_every", eval_every)
        has_valid = valid is not None
        self.monitors = metric_names(self.model) if has_valid else []
        if early_stopping == "auto":
            early_stopping = configured_stopping(options, has_valid=has_valid)
        stopping = as_stopping(early_stopping, has_valid=has_valid, names=self.monitors)
        state = self.state
        self._begin_schedules(has_valid=has_valid)
        callbacks = self.all_callbacks()
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self.evaluator.open(data, "training data"))
            valid_source = None
            if valid is not None:
                valid_source = stack.enter_context(self.evaluator.open(valid, "validation data"))
            state.begin(source)
            recorded = self._resume(stopping) if resume else {}
            passes = self._resolve(source.num_rows, epochs, recorded, stops=stopping is not None)
            # Rows that are learned by heart within a pass or two are best between their ends.
            halfway = passes > 1 and early_stopping == epochs == "auto"
            halfway &= eval_every is eval_seconds is None
            if stopping is not None and halfway:
                stopping.patience *= 2
            if self._by_default["deep"]:
                self._decay_embeddings(passes, goes_on=bool(recorded))
            run = TrainingRun(
                state,
                self.evaluator,
                source,
                epochs=passes,
                steps=steps,
                valid=valid_source,
                stopping=stopping,
                eval_every=eval_every,
                eval_halfway=halfway and stopping is not None,
                eval_seconds=eval_seconds,
                cache=cache,
                directory=self.directory,
                callbacks=callbacks,
                show_progress=self.show_progress,
            )
            if early_stopping == "auto" and not run.evaluates_again:
                run.stopping = stopping = None
            state.config = dataclasses.replace(
                state.config,
                epochs=passes,
                eval_every=eval_every,
                eval_seconds=eval_seconds,
                early_stopping=stopping is not None,
                patience=None if stopping is None or halfway else stopping.patience,
                monitor=None if stopping is None else stopping.monitor,
            )
            with callbacks.around(self):
                run.train()
        return state.history

    def fit_stream(
        self,
        shards: Iterable[Shard],
        *,
        resume: bool = False,
        grow: bool = False,
        evict_after: int | None = None,
        on_shard: Callable[[dict[str, Any]], None] | None = None,
    ) -> History:
        """Learn shards as they come, each in one pass, and score each before it is learned.

        Scores of rows that the model has not seen are what a server would have given: the metrics
        ``before/...`` of the history are honest ones (progressive validation). With ``checkpoints``
        there is one after each shard, which knows the shards learned: ``resume`` goes on behind
        them, with the bits of a run that was never stopped. A shard that cannot be read raises
        before anything of it is learned.

        A stream has no end for rates to decay towards and no validation data: the schedules
        ``"wsd"`` and ``"plateau"`` stay constant here. Schedules with steps of their own count
        those of the stream, others go over each shard.

        The schema stays as it is unless ``grow``: values it does not know count as unseen.

        Args:
            shards: Pairs of a name and data as for :meth:`fit`; names are learned once. May wait
                for the next one, and need not end.
            resume: Go on from the newest checkpoint of ``checkpoints``, if there is one.
            grow: Count the values of each shard after it was scored, and give rows to new ones: a
                value or cross is admitted once it was seen ``min_count`` times, since the schema
                was fitted, and where ``max_size`` is reached the most frequent stay. Numbers,
                classes and all layers stay as they are. A shard that brings new values costs a
                copy of the tables.
            evict_after: With ``grow``: a learned value that so many shards in a row did not hold
                is forgotten before the next one, and with it its crosses; it would have to be
                admitted again. None: never.
            on_shard: Called with each shard's row of the history after its checkpoint.

        Returns:
            :attr:`history`, one row a shard.

        Raises:
            DataError: If a shard cannot be read, or a label is out of range.
            CheckpointError: If ``resume`` finds a checkpoint of another model.
            ConfigError: If a shard is no pair, or ``evict_after`` is given without ``grow``.

        Example:
            >>> import widedeep as wd
            >>> hours = [[{"job": "ab"[i % 2], "y": i % 2} for i in range(64)] for _ in range(9)]
            >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
            >>> model = wd.WideDeep(wd.fit_schema(spec, hours[0]))
            >>> trainer = wd.Trainer(model, batch_size=8, progress=False)
            >>> history = trainer.fit_stream((f"hour {i}", rows) for i, rows in enumerate(hours))
            >>> history[-1]["shard"], history[-1]["before/auc"]
            ('hour 8', 1.0)
        """
        evict_after = as_count("evict_after", evict_after)
        self.monitors = []
        callbacks = self.all_callbacks()
        if evict_after is not None and not grow:
            raise ConfigError(f"got evict_after={evict_after} without grow=True; give both")
        latest = self._latest_checkpoint() if resume else None
        if latest is not None:
            self.state.inputs = []
            schema = Schema.load(latest / "schema.safetensors")
            if grow and schema.spec == self.model.schema.spec:
                use_schema(self.model, self.evaluator, schema, self.state.step.ranks)
            self.load_checkpoint(latest)
        with callbacks.around(self):
            return fit_stream(
                self.state,
                self.evaluator,
                shards,
                directory=self.directory,
                callbacks=callbacks,
                on_shard=on_shard,
                show_progress=self.show_progress,
                grows=grow,
                evict_after=evict_after,
            )

    def all_callbacks(self) -> Callbacks:
        """Those given, and the loggers of the configuration."""
        if self._loggers is None:
            first = self.state.ranks.is_first
            self._loggers = list(make_loggers(self.options.log, self.folder)) if first else []
        return Callbacks([*self.callbacks, *self._loggers])

    def warm_start(
        self,
        path: str | os.PathLike[str],
        *,
        transfer: Sequence[str] = ("*",),
        widths: Widths = "fresh",
    ) -> WarmStart:
        """Take over what an older model learned, before :meth:`fit`.

        Rows of tables move by the values they stand for, so vocabularies may have grown, shrunk or
        changed their order, and features may have come or gone; columns of the first layer move by
        their features. With a checkpoint the optimizers' state moves too. A bundle holds weights
        alone: FTRL's z is rebuilt from them (with z = 0 the first step would forget the weight).
        The deep layers are taken up to the first that does not fit.

        Args:
            path: A bundle, a run's folder (its best checkpoint, or else the newest), or a
                checkpoint.
            transfer: Patterns of the names of tensors to take over, such as
                ``["wide/*", "table/*"]``; see
                :class:`widedeep.training.warm_start.TransferredTensor`. Default: all.
            widths: Embeddings of another width are initialised (``"fresh"``), or projected
                (``"project"``): on the leading singular vectors, or with new columns beside the
                old ones.

        Returns:
            What became of each tensor; prints as a table.

        Raises:
            BundleError: If the bundle is damaged.
            CheckpointError: If there is no model, or the checkpoint is damaged.
            SchemaError: If it has no feature in common with this model.
            ConfigError: If an argument is outside its range.

        Example:
            >>> import widedeep as wd
            >>> def trainer(*jobs):
            ...     rows = [{"job": job, "y": job == "cook"} for job in jobs]
            ...     spec = wd.FeatureSpec(label="y", features=wd.categorical("job"), deep=[])
            ...     model = wd.WideDeep(wd.fit_schema(spec, rows))
            ...     return wd.Trainer(model, batch_size=2, progress=False), rows
            >>> yesterday, rows = trainer("cook", "nurse")
            >>> _ = yesterday.fit(rows, epochs=5)
            >>> _ = yesterday.export("yesterday")
            >>> today, _ = trainer("smith", "nurse", "cook")
            >>> today.warm_start("yesterday").tensors[0].transferred
            4
            >>> bool(today.predict([{"job": "cook"}]) == yesterday.predict([{"job": "cook"}]))
            True
        """
        if self.position.step:
            raise ConfigError(
                f"warm start: got a trainer that has done {self.position.step:,} steps; start a "
                "new one"
            )
        self.state.valid_metrics = {}
        patterns = transfer if isinstance(transfer, str) else tuple(transfer)
        config = WarmStartConfig(path=path, transfer=patterns, widths=widths)  # type: ignore[arg-type]
        return warm_start(self.state, config)

    def _resolve(
        self, rows: int, epochs: int | Auto, recorded: Mapping[str, Any], *, stops: bool
    ) -> int:
        """Put numbers where ``"auto"`` was given: those of the run that is resumed, or new ones."""
        resolved = []
        state = self.state
        batch_size = state.config.batch_size
        if batch_size == "auto":
            batch_size = recorded.get("batch_size", "auto")
            if batch_size == "auto":
                lanes = state.ranks.lanes
                batch_size = -(-auto_batch_size(rows) // lanes) * lanes
            state.config = dataclasses.replace(state.config, batch_size=batch_size)
            resolved.append(f"batches of {batch_size:,} rows")
        if epochs == "auto":
            quality = state.config.quality
            new = auto_epochs(rows, batch_size, early_stopping=stops, quality=quality)
            epochs = int(recorded.get("epochs", new))
            resolved.append(f"{'up to ' if stops else ''}{epochs:,} epochs")
        if resolved:
            self._say(f"auto: {' and '.join(resolved)} for {rows:,} rows")
        return epochs

    def _begin_schedules(self, *, has_valid: bool) -> None:
        """Begin the schedules of a run, and refuse one that has no metric to look at."""
        names = metric_names(self.model)
        check_conditions(self.options, has_valid=has_valid, names=names)
        monitor = self.options.monitor or loss_metric(names)
        dense = self.step.dense
        if dense.follows_metric and not has_valid:
            raise ConfigError("dense: got ReduceLROnPlateau without validation data; give valid")
        dense.check_monitor(monitor)
        if dense.scheduler is not None and "dense" in self.options.schedules:
            raise ConfigError(
                "got schedules of the dense part, and a scheduler of torch's beside its optimizer; "
                "give one of them"
            )
        self.state.schedules.begin(monitor)

    def _decay_embeddings(self, epochs: int, *, goes_on: bool) -> None:
        """Let the embeddings' own optimizer decay rows as this many passes ask for.

        A run that goes on keeps its own, even if it is to be longer than it began.
        """
        state, batch_size = self.state, self.state.config.batch_size
        assert batch_size != "auto"
        optimizer = embeddings_optimizer(epochs, batch_size, rate=self.model.embedding_rate)
        if not goes_on:
            state.step.deep = optimizer  # of the same kind: its state stays
            state.config = dataclasses.replace(state.config, deep=describe_optimizer(optimizer))
        elif isinstance(state.step.deep, Adagrad) and state.step.deep.l2 != optimizer.l2:
            self._say(
                f"note: embeddings go on to decay by l2 = {state.step.deep.l2:g}, with which the "
                f"run began; one of {epochs:,} epochs from the start takes {optimizer.l2:g}"
            )

    def _latest_checkpoint(self) -> Path | None:
        if self.directory is None:
            raise CheckpointError(
                "got resume=True without checkpoints=...; name the directory of the interrupted run"
            )
        return self.directory.latest(self.state.ranks)

    def _resume(self, stopping: EarlyStopping | None) -> Mapping[str, Any]:
        """Go back to the newest checkpoint, if there is one; return the options of its run."""
        latest = self._latest_checkpoint()
        if latest is None:
            return {}
        stored = self.load_checkpoint(latest)
        if stopping is not None and stored.get("stopping"):
            stopping.load(stored["stopping"])
        recorded: Mapping[str, Any] = stored["config"]["train"]
        return recorded

    def load_checkpoint(self, path: str | os.PathLike[str]) -> Mapping[str, Any]:
        """Take parameters, optimizer state and position from a checkpoint.

        Args:
            path: A ``step-*`` directory.

        Returns:
            What the checkpoint says besides: configuration, history, early stopping.

        Raises:
            CheckpointError: If it is damaged, or of another model, schema or precision, or lies
                within an epoch that is now read in another order.
            DataError: If the training data changed since.
        """
        checkpoint = read_checkpoint(path, ranks=self.state.step.ranks)
        if checkpoint.schema != self.model.schema:
            raise CheckpointError(
                f"{path}: got a checkpoint of another schema; make the model with the checkpoint's "
                "schema"
            )
        stored = checkpoint.state["config"]["train"]
        self.state.check_same_lanes(checkpoint.state)
        precision = stored.get("precision", "fp32")
        if precision != self.config.precision:
            raise CheckpointError(
                f"{path}: got a checkpoint of a run in {precision}, but this trainer computes in "
                f"{self.config.precision}; make it with precision={precision!r}"
            )
        # A run that has read nothing, as one that was imported, goes on with any data.
        if self.state.inputs and checkpoint.state["position"]["rows"]:
            check_same_inputs(checkpoint.state["inputs"], self.state.inputs)
            self.state.check_same_order(checkpoint.state)
        self._adopt_optimizers(stored)
        self.state.restore(checkpoint)
        return checkpoint.state

    def _adopt_optimizers(self, recorded: Mapping[str, Any]) -> None:
        """Go on with the optimizers of a checkpoint where none were given: defaults change."""
        state, step = self.state, self.state.step
        present: dict[str, Any] = {"deep": step.deep, "dense": step.dense.optimizer}
        adopted = adopted_optimizers(present, recorded, self._by_default)
        if not adopted:
            return
        optimizers = Optimizers(step.wide, **{**present, **adopted})
        state.config = with_descriptions(state.config, optimizers)
        state.step = step.with_optimizers(wire=state.distributed.wire, **optimizers._asdict())
        self.evaluator.exchange = state.step.exchange
        if self.show_progress:
            names = ", ".join(f"{group}: {optimizer}" for group, optimizer in adopted.items())
            print(f"optimizers of the checkpoint: {names}", file=sys.stderr)

    def save_checkpoint(self, stopping: EarlyStopping | None = None, *, best: bool = False) -> Path:
        """Write a checkpoint of the present state into :attr:`directory`.

        Raises:
            CheckpointError: If the trainer has no directory, or it cannot be written.
        """
        if self.directory is None:
            raise CheckpointError("got no directory; make the trainer with checkpoints='DIR'")
        return self.directory.save(self.state.checkpoint(stopping), best=best)

    # ---- using the model ------------------------------------------------------------------------

    def logits(self, data: object, *, by_modules: bool = False) -> NDArray[np.float32]:
        """Return the logits of every row, (rows, C), in the data's order.

        Args:
            data: As for :meth:`fit`.
            by_modules: Compute a standard tower by its modules, as in training, and not in the
                order in which a bundle does.
        """
        return self.evaluator.logits(data, by_modules=by_modules)

    def predict(self, data: object) -> NDArray[np.float64] | dict[str, NDArray[np.float64]]:
        """Return predictions for every row, in the data's order.

        Args:
            data: As for :meth:`fit`; labels are not needed.

        Returns:
            Probabilities (rows,) for a binary head, (rows, classes) for a multi-class one, values
            (rows,) for a regression; a dict by head name for several heads.
        """
        scores = self._scores(self.logits(data))
        return next(iter(scores.values())) if len(scores) == 1 else scores

    def _scores(self, logits_BC: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        logits = torch.from_numpy(logits_BC).double()
        return {
            head.name: self.model.losses.predictions(index, logits).numpy()
            for index, head in enumerate(self.model.heads)
        }

    def predictions(self, data: object, keys: Iterable[str] | None = None) -> Predictions:
        """Return predictions by the names of ``tf.estimator``: see :meth:`Bundle.predictions`."""
        logits_BC = self.logits(data)
        heads = bundle_model(self.model).heads
        return named_predictions(heads, logits_BC, self._scores(logits_BC), keys)

    def load_parameters(self, path: str | os.PathLike[str]) -> Mapping[str, Any]:
        """Take parameters and optimizer state from a checkpoint, but keep the position.

        Returns:
            What the checkpoint says besides.

        Raises:
            CheckpointError: If it is damaged or of another model.
        """
        checkpoint = read_checkpoint(path, ranks=self.state.step.ranks)
        self.state.restore(checkpoint, position=False)
        return checkpoint.state

    def evaluate(self, data: object) -> dict[str, float]:
        """Return metrics on labelled data.

        Args:
            data: As for :meth:`fit`.

        Returns:
            Metrics by name; prefixed ``head/`` for a model with several heads. See
            :mod:`widedeep.metrics`. With ``compat`` also under ``tf.estimator``'s names.

        Raises:
            DataError: If the data has no rows or lacks a column.
        """
        with self.evaluator.open(data, "data to evaluate") as source:
            metrics: dict[str, float] = self.evaluator.evaluate(source)
        if self.model.config.compat is not None:
            heads = tuple(head.name for head in self.model.heads)
            metrics |= estimator_metrics(metrics, heads)
            metrics["global_step"] = self.position.updates
        return metrics

    def attributions(
        self, data: Data, *, rows: int = 500, steps: int = 16
    ) -> dict[str, dict[str, float]]:
        """Return how much each feature moves the logits of a head: mean absolute attributions.

        Integrated gradients (Sundararajan et al. 2017) from the mean row, over a sample of rows.
        Unlike :func:`widedeep.evaluation.importance.permutation_importance` it tells features of
        one column apart, such as a number, its buckets and their crosses; and it says what the
        model uses, not what helps it.

        Args:
            data: Rows, labelled or not.
            rows: Most rows of the sample.
            steps: Points at which each row's gradient is taken.

        Returns:
            By head and feature, in logits, the largest first.

        Raises:
            DataError: If there are no rows, or they cannot be read.
        """
        transform = self.evaluator.transform
        sample = sample_rows(
            data,
            rows=rows,
            columns=transform.columns(targets=False),
            column_types=self.model.schema.input_types(),
        )
        batch = transform(sample.table, targets=False)
        with self.evaluator.rows_for(batch):
            return mean_attributions(self.model, batch, steps=steps, threads=self.threads)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        metrics: Mapping[str, float] | None = None,
        warmup: Sequence[Mapping[str, Any]] | bool = True,
        calibration: Literal["platt", "isotonic"] | None = None,
        calibrate_on: object | None = None,
        negative_rate: float | None = None,
        posterior: object | None = None,
        items: Data | None = None,
        overwrite: bool = False,
        part_bytes: int | None = None,
        tables: TableKind | None = None,
    ) -> Bundle:
        """Write the model as a bundle that scores without torch.

        Args:
            path: The bundle's directory.
            metrics: Kept in the bundle; None: its validation metrics, if it has not moved since.
            warmup: Rows stored with their scores, which :meth:`Bundle.load` replays: the first
                requests find the bundle warm, and a bundle that scores otherwise is refused. True
                stores up to 8 rows of the training data, chosen by ``seed``, without label and
                weight; a list stores those rows; False none, where no row may leave the data.
            calibration: Fit a calibration on ``calibrate_on``: ``"platt"``, a line through the
                logits, or ``"isotonic"``, a strictly rising curve, for a thousand positives or
                more.
            calibrate_on: Labelled data that the model was not trained on.
            negative_rate: Rate at which negatives were kept in training data without weights;
                scores are corrected by it.
            posterior: Labelled rows, such as the training data: how uncertain the last
                layer is after them is stored, for a ranker that explores by it
                (:class:`widedeep.serving.exploration.Exploration`).
            items: Items whose vectors the bundle keeps, one row per item with the columns of the
                item, for a model with two towers (:class:`widedeep.models.TwoTower`).
            overwrite: Replace a bundle that is already there.
            part_bytes: Most bytes of weights in a file, at least 1 MiB (beyond it, they are written
                in parts, which are scored like one); None: that of ``distributed``, 16 GiB.
            tables: Numbers of the tables of embeddings; None: ``bundle_tables`` of the options.

        Returns:
            The bundle, loaded from ``path``.

        Raises:
            BundleError: If it cannot be written, or something already exists.
        """
        bundle = export_bundle(
            self.state,
            self.evaluator,
            path,
            metrics=metrics,
            warmup=warmup,
            calibration=calibration,
            calibrate_on=calibrate_on,
            negative_rate=negative_rate,
            posterior=posterior,
            items=items,
            overwrite=overwrite,
            part_bytes=part_bytes,
            tables=self.config.bundle_tables if tables is None else tables,
            on_message=self._say,
        )
        Callbacks([*self.callbacks, *(self._loggers or ())]).call("on_export", bundle)
        return bundle

    def _say(self, message: str) -> None:
        if self.show_progress:
            print(message, file=sys.stderr)


Trainer.__signature__ = keyword_signature(Trainer, TrainConfig)  # type: ignore[attr-defined]
