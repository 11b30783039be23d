"""Trainer: reads examples out of core and learns them, one step a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.data.batch import Batch
from widedeep.data.fragments import InputRecord, Source, check_same_inputs, origin_of
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import CheckpointError, ConfigError, DataError, show_value
from widedeep.kernels.torch_openmp import limit_spinning
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import FTRL, Adagrad, Optimizer, describe_optimizer, make_optimizer
from widedeep.options import Auto
from widedeep.training.checkpoint import CheckpointDirectory, read_checkpoint
from widedeep.training.config import Precision, TrainConfig, auto_batch_size, auto_epochs
from widedeep.training.dense import DenseOptimizer, DenseUpdate, resolve_precision
from widedeep.training.early_stopping import EarlyStopping, as_stopping
from widedeep.training.evaluation import (
    EVALUATION_ROWS,
    Metrics,
    evaluate_batches,
    evaluating,
    metric_names,
)
from widedeep.training.export import WarmupRows, export_bundle
from widedeep.training.progress import Callback, Callbacks
from widedeep.training.run import TrainingRun
from widedeep.training.state import History, Position, capture, check_same_order, restore
from widedeep.training.step import TrainStep
from widedeep.training.stream import Shard, fit_stream
from widedeep.training.warm_start import WarmStart, warm_start

__all__ = ["Trainer"]

# Rare ids start slowly, then learn ten times as fast as hidden layers, and their rows decay.
_EMBEDDINGS = Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025)


class Trainer:
    """Trains a :class:`widedeep.WideDeep` jointly: by default FTRL for wide, Adagrad for deep.

    Args:
        model: The model; it is changed in place.
        wide: Optimizer of the wide weights; None: ``FTRL()``.
        deep: Optimizer of the embeddings, and of the dense parameters unless ``dense`` is given.
            None: ``Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025)`` for the embeddings and
            ``Adagrad()`` for the dense parameters.
        dense: Optimizer of the dense parameters: one of ours, or a function of the parameters that
            returns a torch optimizer, such as ``lambda parameters: torch.optim.AdamW(parameters,
            lr=1e-3)``.
        batch_size: Examples a step, or ``"auto"``: a hundredth of the rows that are learned first,
            rounded to a power of two from 16 to 512. :attr:`config` holds the number from then on.
        grad_scale: Sparse optimizers get this times the sum of an id's example gradients over the
            batch.
        loss_reduction: ``"mean"`` divides dense gradients by the rows of the batch; ``"sum"`` does
            not.
        clip_norm: Largest norm of the dense gradients; None does not clip.
        schedule: Of all learning rates (of FTRL's gradients: see :class:`widedeep.FTRL`):
            ``"constant"``, ``"linear"`` or ``"cosine"`` decay to 0 at the last step, or ``"wsd"``:
            constant, and linear to 0 over the last ``decay_fraction`` of the steps. Where training
            stops early, ``"wsd"`` then decays from the best model: the run goes on for as many
            steps as would have followed it, and keeps what they bring if validation is better.
        decay_fraction: Share of the steps in which ``"wsd"`` decays, 0 < fraction < 1.
        warmup_steps: Learning rates rise linearly over this many first steps.
        shuffle: Read in a new seeded order each epoch.
        pool_rows: Rows that wait in memory while they are mixed with others from all over the
            input; at any time those of 6 to 16 row groups are mixed. More take more memory, and
            mix better where row groups are large.
        seed: Of the reading order and dropout.
        threads: Threads of kernels and matrix products; None: all the process may use.
        precision: Of the towers' matrix products in training: ``"fp32"``, ``"bf16"`` (master
            weights and optimizer state stay float32), or ``"auto"``: bf16 where the processor
            computes it faster. :attr:`config` holds what was chosen. Evaluation is float32.
        checkpoints: Directory for checkpoints; None writes none.
        checkpoint_every: Steps between checkpoints; None: one an epoch.
        keep_last: Checkpoints kept besides the best.
        callbacks: Objects with some of the methods of
            :class:`widedeep.training.progress.Callback`.
        progress: False shows nothing.

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
        *,
        wide: Optimizer | None = None,
        deep: Optimizer | None = None,
        dense: DenseOptimizer | None = None,
        batch_size: int | Auto = "auto",
        grad_scale: float = TrainConfig().grad_scale,
        loss_reduction: Literal["mean", "sum"] = "mean",
        clip_norm: float | None = None,
        schedule: Literal["constant", "linear", "cosine", "wsd"] = "wsd",
        decay_fraction: float = 0.2,
        warmup_steps: int = 0,
        shuffle: bool = True,
        pool_rows: int = TrainConfig().pool_rows,
        seed: int = 0,
        threads: int | None = None,
        precision: Precision = "fp32",
        checkpoints: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        keep_last: int = 3,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        _check_model(model)
        self.model = model
        self.wide = wide or FTRL()
        self.deep = deep or _EMBEDDINGS
        self.dense_optimizer = dense or deep or Adagrad()
        self._by_default = {"deep": deep is None, "dense": dense is None and deep is None}
        for name, optimizer in (("wide", self.wide), ("deep", self.deep)):
            _check_optimizer(name, optimizer)
        if not callable(self.dense_optimizer):
            _check_optimizer("dense", self.dense_optimizer)
        _check_count("checkpoint_every", checkpoint_every)
        self._precision = resolve_precision(precision, model.device)
        self.config = TrainConfig(
            batch_size=batch_size,
            grad_scale=grad_scale,
            loss_reduction=loss_reduction,
            clip_norm=clip_norm,
            schedule=schedule,
            decay_fraction=decay_fraction,
            warmup_steps=warmup_steps,
            shuffle=shuffle,
            pool_rows=pool_rows,
            seed=seed,
            threads=threads,
            precision=self._precision,
            device=model.device.type,
            wide=describe_optimizer(self.wide),
            deep=describe_optimizer(self.deep),
            dense=describe_optimizer(self.dense_optimizer),
        )
        self.threads = threads or usable_cores()
        limit_spinning(self.threads, usable_cores())
        self.history = History()
        self.valid_metrics: dict[str, float] = {}  # of the model as it is; none once it moved
        self.position = Position()
        self.inputs: list[InputRecord] = []
        self.shards: list[str] = []
        self.directory = (
            None if checkpoints is None else CheckpointDirectory(checkpoints, keep_last=keep_last)
        )
        self.checkpoint_every = checkpoint_every
        self.callbacks = Callbacks(callbacks).objects
        self.show_progress = progress
        self.transform = Transform(model.schema)
        columns = self.transform.columns(targets=False)
        self.warmup = WarmupRows({name: model.schema.columns[name] for name in columns}, seed)
        self.step = self._make_step()

    def _make_step(self) -> TrainStep:
        model, config = self.model, self.config
        dense = DenseUpdate(
            dict(model.named_parameters()), self.dense_optimizer, clip_norm=config.clip_norm
        )
        return TrainStep(
            model,
            wide=self.wide,
            deep=self.deep,
            dense=dense,
            grad_scale=config.grad_scale,
            loss_reduction=config.loss_reduction,
            threads=self.threads,
            precision=self._precision,
            seed=config.seed,
        )

    # ---- training -------------------------------------------------------------------------------

    def fit(
        self,
        data: object,
        *,
        epochs: int | Auto = 1,
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
                with early stopping; as many as give 1,000, at most 20, without.
            steps: Stop after this many steps, whatever ``epochs`` says.
            valid: Data to evaluate on while training.
            eval_every: Steps between evaluations; None: after each epoch.
            early_stopping: Stop when the validation metric no longer improves and go back to the
                best model: :class:`widedeep.EarlyStopping`, or a patience in evaluations.
                ``"auto"`` does it with the defaults where there is ``valid`` and more than one
                evaluation to come; False or None trains to the end.
            resume: Go on from the newest checkpoint of ``checkpoints``, if there is one.
            cache: A folder for the encoded training data, which must be in files: encoded there
                first, unless it holds them already, and read from there in every epoch. It is
                written again when the data or the schema changed, and changes no result. It takes
                16 bytes an id and 4 a number.

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
        if epochs != "auto":
            _check_count("epochs", epochs)
        _check_count("steps", steps)
        _check_count("eval_every", eval_every)
        stopping = as_stopping(early_stopping, has_valid=valid is not None)
        if stopping is not None:
            stopping.check_monitor(metric_names(self.model))
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self.open(data, "training data"))
            valid_source = None
            if valid is not None:
                valid_source = stack.enter_context(self.open(valid, "validation data"))
            self.inputs = source.describe()
            self.position = Position(updates=self.position.updates)
            self.warmup.rows = []
            recorded = self._resume(stopping) if resume else {}
            passes = self._resolve(source.num_rows, epochs, recorded, stops=stopping is not None)
            run = TrainingRun(
                self,
                source,
                valid_source,
                stopping,
                epochs=passes,
                steps=steps,
                eval_every=eval_every,
                cache=cache,
            )
            if early_stopping == "auto" and not run.evaluates_again:
                run.stopping = stopping = None
            self._record(passes, eval_every, stopping)
            stack.enter_context(_numerics(self.threads))
            run.train()
        return self.history

    def fit_stream(
        self,
        shards: Iterable[Shard],
        *,
        resume: bool = False,
        on_shard: Callable[[dict[str, Any]], None] | None = None,
    ) -> History:
        """Learn shards as they come, each in one pass, and score each before it is learned.

        Scores of rows that the model has not seen are what a server would have given: the metrics
        ``before/...`` of the history are honest ones (progressive validation). With ``checkpoints``
        there is one after each shard, which knows the shards learned: ``resume`` goes on behind
        them, with the bits of a run that was never stopped. A shard that cannot be read raises
        before anything of it is learned.

        A stream has no end for rates to decay towards: ``schedule="wsd"`` stays constant here.

        The schema stays as it is: values it does not know count as unseen. Grow it from time to
        time, and start warm.

        Args:
            shards: Pairs of a name and data as for :meth:`fit`; names are learned once. May wait
                for the next one, and need not end.
            resume: Go on from the newest checkpoint of ``checkpoints``, if there is one.
            on_shard: Called with each shard's row of the history after its checkpoint.

        Returns:
            :attr:`history`, one row a shard.

        Raises:
            DataError: If a shard cannot be read, or a label is out of range.
            CheckpointError: If ``resume`` finds a checkpoint of another model.
            ConfigError: If a shard is no pair.

        Example:
            >>> import widedeep as wd
            >>> hours = [[{"job": "ab"[i % 2], "y": i % 2} for i in range(64)] for _ in range(9)]
            >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
            >>> model = wd.WideDeep(wd.fit_schema(spec, hours[0]))
            >>> trainer = wd.Trainer(model, batch_size=8, progress=False)
            >>> found = trainer.fit_stream((f"hour {i}", rows) for i, rows in enumerate(hours))
            >>> found[-1]["shard"], found[-1]["before/auc"]
            ('hour 8', 1.0)
        """
        return fit_stream(self, shards, resume=resume, on_shard=on_shard)

    def warm_start(
        self,
        path: str | os.PathLike[str],
        *,
        carry: Sequence[str] = ("*",),
        widths: Literal["fresh", "project"] = "fresh",
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
            carry: Patterns of names, such as ``["wide/*", "table/*"]``, matched as in
                :class:`widedeep.training.warm_start.Moved`; all if not given.
            widths: What becomes of embeddings of another width: ``"fresh"``, or ``"project"``:
                on the leading singular vectors, or with new columns beside the old ones.

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
            >>> today.warm_start("yesterday").moved[0].found
            4
            >>> bool(today.predict([{"job": "cook"}]) == yesterday.predict([{"job": "cook"}]))
            True
        """
        if self.position.step:
            raise ConfigError(
                f"warm start: got a trainer that has done {self.position.step:,} steps; start a "
                "new one"
            )
        self.valid_metrics = {}
        return warm_start(self, path, carry=carry, widths=widths)

    def open(self, data: object, role: str, *, targets: bool = True) -> Source:
        """Open data with the columns this model needs.

        Args:
            data: As for :meth:`fit`.
            role: What it is, for the error.
            targets: Labels, weights and groups are needed too.

        Raises:
            DataError: If it has no rows or lacks a column.
        """
        source = open_source(
            data, columns=self.transform.columns(targets=targets), column_types=self._column_types()
        )
        if source.num_rows == 0:
            source.close()
            raise DataError(f"got {role} without rows; give at least one example")
        return source

    def _column_types(self) -> dict[str, Any]:
        return self.model.schema.input_types()

    def _resolve(
        self, rows: int, epochs: int | Auto, recorded: Mapping[str, Any], *, stops: bool
    ) -> int:
        """Put numbers where ``"auto"`` was given: those of the run that is resumed, or new ones."""
        resolved = []
        batch_size = self.config.batch_size
        if batch_size == "auto":
            batch_size = recorded.get("batch_size", auto_batch_size(rows))
            self.config = dataclasses.replace(self.config, batch_size=batch_size)
            resolved.append(f"batches of {batch_size:,} rows")
        if epochs == "auto":
            new = auto_epochs(rows, batch_size, early_stopping=stops)
            epochs = int(recorded.get("epochs", new))
            resolved.append(f"{'up to ' if stops else ''}{epochs:,} epochs")
        if resolved and self.show_progress:
            print(f"auto: {' and '.join(resolved)} for {rows:,} rows", file=sys.stderr)
        return epochs

    def _record(self, epochs: int, eval_every: int | None, stopping: EarlyStopping | None) -> None:
        """Keep what ``fit`` was told beside the options: checkpoints and bundles tell of it."""
        self.config = dataclasses.replace(
            self.config,
            epochs=epochs,
            eval_every=eval_every,
            early_stopping=stopping is not None,
            patience=None if stopping is None else stopping.patience,
            monitor=None if stopping is None else stopping.monitor,
        )

    def _resume(self, stopping: EarlyStopping | None) -> Mapping[str, Any]:
        """Go back to the newest checkpoint, if there is one; return the options of its run."""
        if self.directory is None:
            raise CheckpointError(
                "got resume=True without checkpoints=...; name the directory of the interrupted run"
            )
        latest = self.directory.latest()
        if latest is None:
            return {}
        state = self.load_checkpoint(latest)
        if stopping is not None and state.get("stopping"):
            stopping.load(state["stopping"])
        recorded: Mapping[str, Any] = state["config"]["train"]
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
        checkpoint = read_checkpoint(path)
        if checkpoint.schema != self.model.schema:
            raise CheckpointError(
                f"{path}: got a checkpoint of another schema; make the model with the checkpoint's "
                "schema"
            )
        self._check_precision(path, checkpoint.state["config"])
        if self.inputs:
            check_same_inputs(checkpoint.state["inputs"], self.inputs)
            check_same_order(self, checkpoint.state)
        self._adopt_optimizers(checkpoint.state["config"]["train"])
        restore(self, checkpoint)
        return checkpoint.state

    def _adopt_optimizers(self, recorded: Mapping[str, Any]) -> None:
        """Go on with the optimizers of a checkpoint where none were given: defaults change."""
        adopted = {}
        for part, present in (("deep", self.deep), ("dense", self.dense_optimizer)):
            if self._by_default[part] and recorded.get(part):
                with contextlib.suppress(ConfigError):  # a torch optimizer, which has no table
                    optimizer = make_optimizer(recorded[part])
                    if optimizer != present:
                        adopted[part] = optimizer
        if not adopted:
            return
        self.deep = adopted.get("deep", self.deep)
        self.dense_optimizer = adopted.get("dense", self.dense_optimizer)
        self.config = dataclasses.replace(
            self.config,
            deep=describe_optimizer(self.deep),
            dense=describe_optimizer(self.dense_optimizer),
        )
        self.step = self._make_step()
        if self.show_progress:
            named = ", ".join(f"{part}: {optimizer}" for part, optimizer in adopted.items())
            print(f"optimizers of the checkpoint: {named}", file=sys.stderr)

    def _check_precision(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        held = config["train"].get("precision", "fp32")
        if held != self.config.precision:
            raise CheckpointError(
                f"{path}: got a checkpoint of a run in {held}, but this trainer computes in "
                f"{self.config.precision}; make it with precision={held!r}"
            )

    def save_checkpoint(self, stopping: EarlyStopping | None = None, *, best: bool = False) -> Path:
        """Write a checkpoint of the present state into :attr:`directory`.

        Raises:
            CheckpointError: If the trainer has no directory, or it cannot be written.
        """
        if self.directory is None:
            raise CheckpointError("got no directory; make the trainer with checkpoints='DIR'")
        return self.directory.save(capture(self, stopping), best=best)

    # ---- using the model ------------------------------------------------------------------------

    def batches(
        self, source: Source, *, targets: bool, batch_size: int = EVALUATION_ROWS
    ) -> Iterator[Batch]:
        """Encode an open source in its own order, batch by batch."""
        plan = EpochPlan(source, batch_size=batch_size, seed=0, epoch=0, shuffle=False)
        with contextlib.closing(BatchReader(source, self.encoder(targets=targets), plan)) as reader:
            yield from reader

    def encoder(self, *, targets: bool = True) -> Callable[..., Batch]:
        """Return the function that turns a table into a Batch."""

        def encode(table: pa.Table) -> Batch:
            self.warmup.see(table)
            origin, first_row = origin_of(table) or ("the data", 0)
            return self.transform(table, targets=targets, origin=origin, first_row=first_row)

        return encode

    def logits(self, data: object, *, by_modules: bool = False) -> NDArray[np.float32]:
        """Return the logits of every row, (rows, C), in the data's order.

        Args:
            data: As for :meth:`fit`.
            by_modules: Compute a standard tower by its modules, as in training, and not in the
                order in which a bundle does.
        """
        forward = evaluating(self.model, threads=self.threads, by_modules=by_modules)
        with self.open(data, "data to score", targets=False) as source, forward as logits:
            return np.concatenate([logits(b) for b in self.batches(source, targets=False)])

    def predict(self, data: object) -> NDArray[np.float64] | dict[str, NDArray[np.float64]]:
        """Return predictions for every row, in the data's order.

        Args:
            data: As for :meth:`fit`; labels are not needed.

        Returns:
            Probabilities (rows,) for a binary head, (rows, classes) for a multi-class one, values
            (rows,) for a regression; a dict by head name for several heads.
        """
        logits = torch.from_numpy(self.logits(data)).double()
        found = {
            head.name: head.predictions(logits[:, columns]).numpy()
            for head, columns in zip(self.model.heads, self.model.head_slices, strict=True)
        }
        return next(iter(found.values())) if len(found) == 1 else found

    def labelled_logits(
        self, data: object
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the first logit, the first label and the weight of every row."""
        forward = evaluating(self.model, threads=self.threads)
        with self.open(data, "labelled data") as source, forward as logits:
            found = [
                (logits(batch)[:, 0], batch.labels_BL, batch.weight_B)
                for batch in self.batches(source, targets=True)
            ]
        weights = [weight for _, _, weight in found if weight is not None]
        return (
            np.concatenate([logits for logits, _, _ in found]),
            np.concatenate([labels[:, 0] for _, labels, _ in found if labels is not None]),
            np.concatenate(weights) if weights else None,
        )

    def load_parameters(self, path: str | os.PathLike[str]) -> Mapping[str, Any]:
        """Take parameters and optimizer state from a checkpoint, but keep the position.

        Returns:
            What the checkpoint says besides.

        Raises:
            CheckpointError: If it is damaged or of another model.
        """
        checkpoint = read_checkpoint(path)
        restore(self, checkpoint, position=False)
        return checkpoint.state

    def evaluate(self, data: object) -> dict[str, float]:
        """Return metrics on labelled data.

        Args:
            data: As for :meth:`fit`.

        Returns:
            Metrics by name; prefixed ``head/`` for a model with several heads. See
            :mod:`widedeep.metrics`.

        Raises:
            DataError: If the data has no rows or lacks a column.
        """
        with self.open(data, "data to evaluate") as source:
            return self.evaluate_source(source)

    def evaluate_source(self, source: Source) -> Metrics:
        """Return metrics on an open source, which stays open."""
        with evaluating(self.model, threads=self.threads) as logits:
            return evaluate_batches(self.model, logits, self.batches(source, targets=True))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        metrics: Mapping[str, float] | None = None,
        warmup: Sequence[Mapping[str, Any]] | bool = True,
        calibration: Literal["platt", "isotonic"] | None = None,
        calibrate_on: object | None = None,
        negative_rate: float | None = None,
        overwrite: bool = False,
    ) -> Bundle:
        """Write the model as a bundle that scores without torch.

        Args:
            path: The bundle's directory.
            metrics: Kept in the bundle; if not given, the validation metrics of the model as it
                is, none if it has moved since.
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
            overwrite: Replace a bundle that is already there.

        Returns:
            The bundle, loaded from ``path``.

        Raises:
            BundleError: If it cannot be written, or something is there already.
        """
        return export_bundle(
            self,
            path,
            metrics=metrics,
            warmup=warmup,
            calibration=calibration,
            calibrate_on=calibrate_on,
            negative_rate=negative_rate,
            overwrite=overwrite,
        )


def _check_model(model: object) -> None:
    if not isinstance(model, WideDeep):
        raise ConfigError(f"got {type(model).__name__} as the model, expected wd.WideDeep(schema)")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != model.device.type:
            raise ConfigError(
                f"parameter {name!r}: got {parameter.dtype} on {parameter.device}, expected "
                f"float32 on {model.device}, where the model's tables are; give device= to "
                "WideDeep and precision= to Trainer"
            )


def _check_optimizer(name: str, optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        torchs = ", or lambda parameters: torch.optim.AdamW(parameters)" if name == "dense" else ""
        got = repr(optimizer) if isinstance(optimizer, str | type) else "an object"
        raise ConfigError(
            f"got {name}={got} ({type(optimizer).__name__}), expected an optimizer of "
            f"widedeep.optim such as wd.Adagrad(lr=0.05){torchs}"
        )


def _check_count(name: str, count: object) -> None:
    whole = isinstance(count, int) and not isinstance(count, bool)
    if count is not None and not (whole and 1 <= count < 2**63):  # type: ignore[operator]
        raise ConfigError(f"got {name}={show_value(count)}, expected an integer of at least 1")


def usable_cores() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
