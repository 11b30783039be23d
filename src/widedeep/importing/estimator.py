"""An estimator of TensorFlow as a trainer of ours: the same scores, and optimizers that go on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from widedeep.errors import CheckpointError, ConfigError, FeatureError
from widedeep.importing.bare_checkpoint import CheckpointEstimator
from widedeep.importing.columns import TableColumn
from widedeep.importing.declaration import Declaration
from widedeep.importing.network import Network, read_network
from widedeep.importing.optimizers import OptimizerState, read_optimizers
from widedeep.importing.saved_model import SavedModel, is_saved_model
from widedeep.importing.tensor_bundle import (
    OBJECT_GRAPH,
    TensorBundle,
    bundle_prefixes,
    find_bundle,
)
from widedeep.importing.warmup import Row, WarmupRequests, read_warmup
from widedeep.importing.weights import (
    EstimatorSource,
    ImportedTensor,
    fill_trainer,
    part_variables,
)
from widedeep.models.config import ModelConfig
from widedeep.models.wide_deep import WideDeep
from widedeep.options import read_section
from widedeep.schema import Schema
from widedeep.training.config import DataConfig, RunConfig, TrainConfig
from widedeep.training.trainer import Trainer

_TOLERANCE = 1e-5  # of the largest logit of a row, or of 1


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A model that was carried over.

    Attributes:
        trainer: Holds the model and its optimizers, and goes on training.
        config: The run that the trainer stands for.
        source: What was understood of the estimator.
        tensors: What became of each variable.
        step: Steps that TensorFlow trained.
        rows: Rows of the warm-up requests, as our requests give them.
        checked: How many of them had answers, which the model's scores equal.
        difference: The largest difference of a logit to theirs.
        notes: What is otherwise than in TensorFlow, one sentence each.
    """

    trainer: Trainer
    config: RunConfig
    source: EstimatorSource
    tensors: Sequence[ImportedTensor]
    step: int
    rows: Sequence[Mapping[str, Any]] = ()
    checked: int = 0
    difference: float = 0.0
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, without model and rows."""
        return {
            "step": self.step,
            "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors],
            "checked": self.checked,
            "difference": self.difference,
            "notes": list(self.notes),
        }


def from_estimator(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    spec: RunConfig | None = None,
    labels: Sequence[str] = ("label",),
    weight: str | None = None,
    lists: Collection[str] = (),
    data: DataConfig | None = None,
    dropout: float = 0.0,
    train: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """Carry over a canned estimator of TensorFlow, without TensorFlow.

    Args:
        path: A SavedModel that ``estimator.export_saved_model`` wrote, or a folder of such in
            folders whose names are numbers: the newest. With ``spec``, a checkpoint alone.
        checkpoint: A checkpoint of the same step, or the folder of the estimator's model, for the
            optimizers' state; without one they start anew.
        spec: For a checkpoint without a SavedModel, which does not say what its rows stand for: a
            configuration whose features are declared as the estimator's columns were.
        labels: Columns of the labels: one, or one for each value of a label of several.
        weight: The column of example weights.
        lists: Columns that hold a list of values in each row; those whose warm-up requests do are
            found by themselves.
        data: Where examples to go on with are.
        dropout: Probability to drop a hidden unit, which a SavedModel does not hold.
        train: Options of :class:`widedeep.training.config.TrainConfig`, such as
            ``{"batch_size": 512, "loss_reduction": "sum"}``: a SavedModel does not hold how it was
            trained. A table of an optimizer is put over what the checkpoint says of it.

    Raises:
        CheckpointError: If a file is missing or damaged, or holds another kind of model.
        FeatureError: If a feature column has no counterpart here.
    """
    if spec is not None:
        bundle = TensorBundle(find_bundle(path))
        _check_kind(bundle)
        source = CheckpointEstimator(bundle, spec, lists).source()
        config = dataclasses.replace(
            source.config,
            data=data or spec.data,
            train=_train_config(source.optimizers, {**_changes(spec.train), **(train or {})}),
        )
        return _carry_over(dataclasses.replace(source, config=config), WarmupRequests(), str(path))
    if not is_saved_model(path):
        raise CheckpointError(
            f"{path}: got no SavedModel (saved_model.pb), expected what "
            "estimator.export_saved_model wrote; a checkpoint alone does not say what its rows "
            "stand for: name a configuration that does (spec=, --spec)"
        )
    model = SavedModel(path)
    warmup = read_warmup(model.warmup) if model.warmup.is_file() else WarmupRequests()
    reader = _SavedEstimator(model, labels, weight, dropout)
    source = reader.source(checkpoint, lists, warmup.rows, data or DataConfig(), train or {})
    return _carry_over(source, warmup, str(model.warmup))


def _open_choices(config: RunConfig) -> list[str]:
    """Return a note of what neither graph nor checkpoint holds, as it is here."""
    choices = [f"losses are reduced by {config.train.loss_reduction!r}"]
    if config.model.hidden_units:
        choices.append(f"dropout is {config.model.dropout:g}")
    choices.append(f"batch_size is {config.train.batch_size!r}")
    return [f"to train on as before, check what TensorFlow does not save: {', '.join(choices)}"]


def _changes(config: TrainConfig) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    plain = TrainConfig()
    names = [entry.name for entry in dataclasses.fields(config)]
    return {n: getattr(config, n) for n in names if getattr(config, n) != getattr(plain, n)}


def _carry_over(source: EstimatorSource, warmup: WarmupRequests, where: str) -> ImportedModel:
    model = WideDeep(source.schema, source.config.model, pretrained=False)
    trainer = Trainer(model, source.config.train, progress=False)
    tensors = fill_trainer(source, trainer)
    step = _step_of(source.bundle)
    trainer.position.updates = step
    notes = [*source.network.notes, *source.optimizers.notes, *_open_choices(source.config)]
    rows = [_our_row(row, source.schema) for row in warmup.rows]
    checked, difference = _check(trainer, source.network, rows, warmup, where)
    if rows and not checked:
        notes.append(f"the {len(rows)} rows of the warm-up requests have no answers to compare")
    return ImportedModel(
        trainer=trainer,
        config=source.config,
        source=source,
        tensors=tensors,
        step=step,
        rows=rows,
        checked=checked,
        difference=difference,
        notes=tuple(notes),
    )


class _SavedEstimator:
    """Understands the estimator of a SavedModel."""

    def __init__(
        self, model: SavedModel, labels: Sequence[str], weight: str | None, dropout: float
    ) -> None:
        self.model, self.network = model, read_network(model)
        self.dropout = dropout
        self.labels, self.weight = tuple(labels), weight
        self.keys = {op: key for op, (key, _) in model.names.items()}
        self.shapes = {op: model.variables.shape(key) for op, key in self.keys.items()}

    def source(
        self,
        checkpoint: str | os.PathLike[str] | None,
        lists: Collection[str],
        rows: Sequence[Row],
        data: DataConfig,
        train: Mapping[str, Any],
    ) -> EstimatorSource:
        untrained = self._untrained_tables()
        frozen = {op for op in self.shapes if op not in self.model.trainable} | set(untrained)
        declaration = Declaration(self.network, self.shapes, frozen)
        schema = self._schema(declaration, declaration.lists(lists, rows))
        bundle = self.model.variables
        slots = None if checkpoint is None else _same_step(checkpoint, bundle)
        optimizers = read_optimizers(slots, part_variables(self.network, self.keys))
        config = _train_config(optimizers, train)
        return EstimatorSource(
            bundle=bundle,
            keys=self.keys,
            network=self.network,
            inputs=declaration.inputs,
            wide=declaration.wide,
            schema=schema,
            config=RunConfig(
                spec=schema.spec,
                data=data,
                model=self._model_config(declaration, config.loss_reduction),
                train=config,
            ),
            slots=slots,
            optimizers=dataclasses.replace(
                optimizers, notes=(*optimizers.notes, *untrained.values(), *declaration.notes())
            ),
        )

    def _untrained_tables(self) -> dict[str, str]:
        """Return the tables that TensorFlow 2 leaves as they began, with a note for each.

        Its estimators train the variables of their networks, and those of shared embeddings are
        made outside.
        """
        return {
            column.variable: f"table {self.keys[column.variable]!r}: TensorFlow 2 never trains "
            "shared embeddings, so it is frozen here too; to train it, warm-start from this run "
            "one whose features do not declare it frozen"
            for _, column in self.network.deep
            if isinstance(column, TableColumn) and not self.keys[column.variable].startswith("dnn/")
        }

    def _n_logits(self) -> int:
        wide = self.network.wide_bias
        bias = wide if self.network.output is None else self.network.output.bias
        return self.shapes[bias][0] if bias is not None else 1

    def _labels(self) -> tuple[str, ...]:
        n_logits = self._n_logits()
        if self.network.head not in ("regression", "poisson") or n_logits == 1:
            if len(self.labels) != 1:
                raise ConfigError(
                    f"got the labels {list(self.labels)} for a {self.network.head} head, expected "
                    "one column"
                )
            return self.labels
        if len(self.labels) == 1:
            return tuple(f"{self.labels[0]}_{i}" for i in range(n_logits))
        if len(self.labels) != n_logits:
            raise ConfigError(
                f"got the labels {list(self.labels)} for {n_logits} logits, expected one column "
                "each, or one name, to which their numbers are put"
            )
        return self.labels

    def _schema(self, declaration: Declaration, lists: Collection[str]) -> Schema:
        head, classes = self.network.head, self.network.classes
        if head == "multilabel" and not classes:
            classes = tuple(str(i) for i in range(self._n_logits()))
        spec = declaration.spec(self._labels(), self.weight, classes)
        kind = pa.string() if classes else pa.float64()
        label_type = pa.list_(pa.string()) if head == "multilabel" else kind
        return declaration.fit(spec, lists, label_type)

    def _model_config(self, declaration: Declaration, loss_reduction: str) -> ModelConfig:
        network = self.network
        head: Any = network.head
        if head == "multiclass" and not network.classes:
            head = {"kind": "multiclass", "classes": self._n_logits()}
        several = head in ("regression", "poisson") and self._n_logits() > 1
        if several and loss_reduction == "mean":  # over the values of a label too
            head = {"kind": head, "loss_weight": 1 / self._n_logits()}
        options: dict[str, Any] = {
            "hidden_units": tuple(self.shapes[layer.kernel][1] for layer in network.layers),
            "wide_combiner": declaration.combiner,
            "head": head,
            "bias_init": "zeros",
            "wide_bias": network.wide_bias is not None,
            "compat": "tensorflow",
        }
        if network.layers:
            options["activation"] = self._one_for_all("activation")
            options["dropout"] = self.dropout
            norm = self._one_for_all("eps")
            if norm is not None:
                eps = round(norm, 9)
                options["batch_norm"] = {"momentum": 0.999, "eps": eps, "biased": True}
        return ModelConfig(**options)

    def _one_for_all(self, option: str) -> Any:
        """Return what all layers have; a tower has one of it."""
        values = [
            (layer.norm and layer.norm.eps) if option == "eps" else layer.activation
            for layer in self.network.layers
        ]
        if any(value != values[0] for value in values):
            raise CheckpointError(
                f"{self.model.path}: its hidden layers differ in their {option}: {values}; a tower "
                "has one for all layers, so the model cannot be carried over"
            )
        return values[0]


def _train_config(optimizers: OptimizerState, options: Mapping[str, Any]) -> TrainConfig:
    """Return how training goes on, with options put over what is known of the optimizers."""
    known: dict[str, Any] = {"schedule": "constant", "early_stopping": False, **optimizers.tables}
    if optimizers.is_older:
        known["loss_reduction"] = "sum"
    for name, value in options.items():
        before = known.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            kinds = [table.get("optimizer", before["optimizer"]) for table in (before, value)]
            value = {**before, **value} if kinds[0] == kinds[1] else value
        known[name] = value
    return read_section(TrainConfig, known, "[train]")


def _check(
    trainer: Trainer,
    network: Network,
    rows: Sequence[Mapping[str, Any]],
    warmup: WarmupRequests,
    where: str,
) -> tuple[int, float]:
    """Compare with the answers to warm-up requests; refuse where they differ."""
    known = warmup.answers.get("logits", {})
    if network.head == "regression" and not known:
        known = warmup.answers.get("predictions", {})
    if not known:
        return 0, 0.0
    numbers = sorted(known)
    logits = trainer.logits([rows[i] for i in numbers])
    expected = np.stack([np.asarray(known[i], np.float64).reshape(-1) for i in numbers])
    differences = np.abs(logits - expected).max(axis=1)
    limits = _TOLERANCE * np.maximum(1.0, np.abs(expected).max(axis=1))
    worst = int((differences / limits).argmax())
    if not differences[worst] <= limits[worst]:
        raise CheckpointError(
            f"{where}: TensorFlow answered the logits {expected[worst].tolist()} to row "
            f"{numbers[worst]}, the model carried over gives {logits[worst].tolist()}; nothing was "
            "written. The requests may be of another version of the model: write them again, or "
            "remove the file; otherwise this is a fault of the importer"
        )
    return len(numbers), float(differences.max())


def _step_of(bundle: TensorBundle) -> int:
    return int(bundle.read("global_step")) if "global_step" in bundle else 0


def _check_kind(bundle: TensorBundle) -> None:
    if OBJECT_GRAPH in bundle:
        raise CheckpointError(
            f"{bundle.index}: got a checkpoint of Keras or tf.train.Checkpoint, expected one of an "
            "estimator"
        )


def _same_step(path: str | os.PathLike[str], model: TensorBundle) -> TensorBundle:
    """Return the checkpoint of the SavedModel's step."""
    step = _step_of(model)
    folder = Path(path)
    prefixes = bundle_prefixes(folder) if folder.is_dir() else [find_bundle(folder)]
    bundles = [TensorBundle(prefix) for prefix in prefixes]
    for bundle in bundles:
        _check_kind(bundle)
        if _step_of(bundle) == step:
            return bundle
    if not bundles:
        find_bundle(folder)
    steps = ", ".join(f"{_step_of(bundle):,}" for bundle in bundles)
    raise CheckpointError(
        f"{path}: got checkpoints of step {steps}, expected step {step:,}, of which the SavedModel "
        f"{model.prefix.parent.parent} is; export the model again, or leave the checkpoint out: "
        "then the optimizers start anew"
    )


def _our_row(row: Row, schema: Schema) -> dict[str, Any]:
    """Return a row of a warm-up request as our requests have it."""
    own: dict[str, Any] = {}
    for name, column in schema.columns.items():
        values = row.get(name)
        if values is None or name not in row:
            continue
        if not column.nested and len(values) > 1:
            raise FeatureError(
                f"column {name!r}: got {len(values)} values in a row, and it holds single values; "
                f"name it among the lists"
            )
        own[name] = values if column.nested else values[0] if values else None
    return own
