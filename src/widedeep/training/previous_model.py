"""PreviousModel: a checkpoint's or bundle's tensors by the names that a warm start uses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.layout import SCHEMA
from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import CheckpointError, ConfigError
from widedeep.models.config import ModelConfig
from widedeep.models.head_config import make_heads
from widedeep.models.layer_options import BatchNorm, batch_norm_options
from widedeep.models.tower import (
    DeepLayout,
    embedding_copies,
    make_layout,
    shared_dim,
    tower_configs,
    tower_table,
)
from widedeep.models.wide_deep import WIDE_BIAS
from widedeep.options import read_section
from widedeep.schema import Schema
from widedeep.training.checkpoint import find_checkpoint, read_checkpoint
from widedeep.training.config import TrainConfig

# A rate or a penalty says how a state is used, not what it holds; FTRL's z is rebuilt for them.
_USE_OPTIONS = ("lr", "eps", "initial_accumulator", "l2", "weight_decay")


def source_columns(schema: Schema, name: str) -> Iterator[str]:
    """Yield the columns that a feature reads, through the parts of a cross."""
    feature = schema.spec.by_name.get(name)
    if feature is None:
        yield name
        return
    yield from feature.input_columns[:1]
    for component in (*feature.part_names, *filter(None, [feature.source_feature])):
        yield from source_columns(schema, component)


def _is_several(schema: Schema, name: str) -> bool:
    """Whether a feature may have several ids, or weights of them, in a row."""
    feature = schema.spec.by_name.get(name)
    columns = [schema.columns.get(column) for column in source_columns(schema, name)]
    nested = any(column is not None and column.nested for column in columns)
    if nested or feature is None:
        return nested
    return feature.weight_column is not None or feature.is_weighted_number


def pooling_change(
    new: Schema, old: Schema, name: str, combiners: tuple[Any, Any] | None = None
) -> str:
    """Return why a feature's ids add up to something else than they did, or ""."""
    for column in source_columns(new, name):
        if new.history.get(column) != old.history.get(column):
            return f"column {column!r} is computed from other events than it was"
    new_feature, old_feature = new.spec.by_name[name], old.spec.by_name[name]
    counted = new_feature.source_feature, old_feature.source_feature
    if counted[0] is not None and counted[1] is not None:  # an indicator, as its source weighs
        new_feature, old_feature = new.spec.by_name[counted[0]], old.spec.by_name[counted[1]]
    weights = tuple(feature.weight_column for feature in (new_feature, old_feature))
    if weights[0] != weights[1]:
        return f"weights {weights[1]!r} became {weights[0]!r}"
    if None not in counted:
        return ""  # counts are sums
    if combiners is None:
        combiners = (new_feature.deep_combiner, old_feature.deep_combiner)
    several = _is_several(new, name) or _is_several(old, name) or None in combiners
    if combiners[0] != combiners[1] and several:
        return f"combiner {combiners[1]!r} became {combiners[0]!r}"
    rules = [feature.unseen_rule for feature in (new_feature, old_feature)]
    if several and rules[0] != rules[1]:
        return f"unseen values of a list: {rules[1]!r} became {rules[0]!r}"
    return ""


def layer_change(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """Return why hidden layers of the same shapes compute something else, or ""."""
    meanings = [
        {"activation": options["activation"], "batch_norm": _norm_eps(options["batch_norm"])}
        for options in (new, old)
    ]
    changes = [
        f"{option} {old[option]!r} became {new[option]!r}"
        for option in ("activation", "batch_norm")
        if meanings[0][option] != meanings[1][option]
    ]
    return "; ".join(changes)


def _norm_eps(batch_norm: BatchNorm) -> float | None:
    """Return what a norm adds to the variance; how fast its figures move changes no output."""
    options = batch_norm_options(batch_norm)
    return None if options is None else options.eps


def state_change(
    group: str,
    new: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    scales: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> str:
    """Return why an optimizer's state is no longer of use, or "" if it is."""
    if old is None:
        return "its state is not known"
    if new["optimizer"] != old["optimizer"]:
        return f"{old['optimizer']} became {new['optimizer']}"
    if str(new["optimizer"]).startswith("torch:"):
        return "the state of a torch optimizer starts anew"
    scale = "loss_reduction" if group == "dense" else "grad_scale"
    if scales[0].get(scale) != scales[1].get(scale):
        return f"{scale} {scales[1].get(scale)!r} became {scales[0].get(scale)!r}"
    if new["optimizer"] == "ftrl":
        return ""
    by_row = [bool(table.get("row_wise")) for table in (old, new)]  # older runs do not say
    if by_row[0] != by_row[1]:
        return f"row_wise {by_row[0]} became {by_row[1]}"
    for option, value in new.items():
        if option not in _USE_OPTIONS and option in old and old[option] != value:
            return f"{option} {old[option]!r} became {value!r}"
    return ""


Tensors = Mapping[str, NDArray[Any]]


def as_floats(numbers: Any) -> NDArray[np.float32]:
    """Return a checkpoint's numbers as float32; those of tables in bfloat16 are stored as bits."""
    array = np.asarray(numbers)
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, np.float32)


@dataclass(frozen=True, slots=True)
class HeadMeaning:
    """What a head's logits mean."""

    kind: str  # ``"binary"``, ``"multiclass"`` or ``"regression"``
    name: str  # ``""`` for a model with one head
    column: str | None  # The label's column
    width: int  # Logit columns
    classes: tuple[str, ...] = ()  # Names in order, if they have names

    def __str__(self) -> str:
        names = f" of {', '.join(map(repr, self.classes[:10]))}" if self.classes else ""
        count = f" of {self.width} classes" if self.width > 1 and not names else names
        return f"{self.kind} {self.column!r}{count}"


@dataclass(frozen=True, kw_only=True)
class PreviousModel:
    """An older model's parameters, and its optimizers' state where it is known."""

    path: Path  # Where it was read
    schema: Schema  # Its schema
    columns: Mapping[str, slice]  # Feature to its columns of the deep input
    # What else a tower reads: features that keep their sequence, and extra inputs
    inputs: Mapping[str, Any]
    # Options of the model that decide what its layers compute: ``activation``, ``batch_norm``,
    # ``wide_combiner``, and by tower the table of its configuration
    options: Mapping[str, Any]
    # Of the gradients that the optimizers' state has seen: ``grad_scale`` and ``loss_reduction``;
    # empty for a bundle
    scales: Mapping[str, Any]
    heads: tuple[HeadMeaning, ...]  # Its heads, in order
    # Of ``wide/FEATURE`` and ``table/TABLE``: ``weight`` and the optimizer's state by name
    rows: Mapping[str, Tensors]
    # Of ``mlp/0/weight``, ``head/weight``, ``bias``, ``tower/...``: the same
    dense: Mapping[str, Tensors]
    # Descriptions by part (``wide``, ``deep``, ``dense``); empty for a bundle, which holds weights
    # alone
    optimizers: Mapping[str, Mapping[str, Any] | None]
    # Logarithm and evidence of each wide feature's rate: (2,) float64 by feature
    rates: Mapping[str, NDArray[np.float64]]
    updates: int = 0  # Steps done, which some optimizers count
    mlp: str = ""  # Why the standard tower's layers cannot be taken; "" if they can


def previous_schema(path: str | os.PathLike[str]) -> Schema:
    """Return the schema of a bundle, a run or a checkpoint."""
    folder = Path(path)
    if (folder / MANIFEST).exists():
        return Schema.load(folder / SCHEMA)
    return Schema.load(find_checkpoint(folder) / "schema.safetensors")


def read_previous_model(path: str | os.PathLike[str]) -> PreviousModel:
    """Read a bundle, a checkpoint, or a run's folder (its best checkpoint, or the newest)."""
    folder = Path(path)
    if (folder / MANIFEST).exists():
        return _from_bundle(folder)
    return _from_checkpoint(find_checkpoint(folder))


def name_of_module(key: str) -> str:
    """Return the name under which a warm start speaks of a parameter."""
    layer = re.fullmatch(r"towers\.mlp\.layers\.(\d+)\.(weight|bias)", key)
    if layer:
        return f"mlp/{layer[1]}/{layer[2]}"
    if key == "outputs.mlp.weight":
        return "head/weight"
    return key if key in ("bias", WIDE_BIAS) else f"tower/{key}"


def _from_bundle(folder: Path) -> PreviousModel:
    bundle = Bundle.load(folder)
    rows = {
        name: {"weight": array}
        for name, array in bundle.weights.items()
        if name.startswith(("wide/", "table/"))
    }
    dense = {n: {"weight": a} for n, a in bundle.weights.items() if n not in rows}
    run = bundle.config.get("model", {}) if isinstance(bundle.config, Mapping) else {}
    mlp = ""
    if run.get("batch_norm"):
        mlp = "a bundle folds batch norm into the layers: start from the checkpoint"
    elif bundle.manifest.engine != "native":
        mlp = "a bundle keeps towers of one's own in a graph: start from the checkpoint"
    return PreviousModel(
        path=folder,
        schema=bundle.schema,
        columns={column.name: slice(column.start, column.stop) for column in bundle.model.deep},
        inputs={"sequences": {}, "extra": {}},
        options={
            "activation": run.get("activation", bundle.model.activation),
            "batch_norm": run.get("batch_norm", False),
            "wide_combiner": bundle.model.wide_combiner,
        },
        scales={},
        heads=tuple(
            HeadMeaning(
                head.kind,
                head.name,
                bundle.schema.spec.labels.get(head.name),
                head.stop - head.start,
                head.classes,
            )
            for head in bundle.model.heads
        ),
        rows=rows,
        dense=dense,
        optimizers={},
        rates={},
        mlp=mlp,
    )


def _from_checkpoint(folder: Path) -> PreviousModel:
    checkpoint = read_checkpoint(folder)
    tables = checkpoint.state["config"]
    try:
        model = read_section(ModelConfig, tables["model"], f"{folder}: [model]")
        train = read_section(TrainConfig, tables["train"], f"{folder}: [train]")
    except ConfigError as error:
        raise CheckpointError(f"{folder}: its configuration cannot be read ({error})") from error
    schema, tensors = checkpoint.schema, checkpoint.tensors
    rows: dict[str, dict[str, NDArray[Any]]] = {}
    dense: dict[str, dict[str, NDArray[Any]]] = {}
    for key, value in tensors.items():
        group, _, key_in_group = key.partition("/")
        if group in ("wide", "deep", "frozen"):
            table, _, slot = key_in_group.rpartition(".")
            if group != "wide":
                table = table.partition("/")[2]
            named = f"wide/{table}" if group == "wide" else f"table/{table}"
            rows.setdefault(named, {})[slot] = value
        elif group == "module":
            dense.setdefault(name_of_module(key_in_group), {})["weight"] = value
        elif group == "optimizer" and "/" in key_in_group:  # not torch's scheduler
            parameter, _, slot = key_in_group.rpartition("/")
            dense.setdefault(name_of_module(parameter), {})[slot] = value
    towers = tower_configs(model.deep)
    dim = shared_dim(schema, model.embedding_dim, towers)
    layout = make_layout(schema, dim, copies=embedding_copies(towers))
    return PreviousModel(
        path=folder,
        schema=schema,
        columns=layout.columns,
        inputs=tower_inputs(layout),
        options=model_options(model),
        scales={"grad_scale": train.grad_scale, "loss_reduction": train.loss_reduction},
        heads=_heads(schema, model, len(dense["bias"]["weight"])),
        rows=rows,
        dense=dense,
        optimizers=train.optimizer_tables,
        rates=_rates(schema, tensors),
        updates=checkpoint.step,
    )


def tower_inputs(layout: DeepLayout) -> dict[str, Any]:
    """Return what a tower reads beside the concatenated columns, and how wide it is."""
    return {
        "sequences": {name: layout.dims[name] for name in layout.sequences},
        "extra": {name: columns.stop - columns.start for name, columns in layout.extra.items()},
    }


def model_options(config: ModelConfig) -> dict[str, Any]:
    """Return the options that decide what layers and wide weights compute."""
    names = ("activation", "wide_combiner", "join")
    towers = {name: tower_table(tower) for name, tower in tower_configs(config.deep).items()}
    own = {name: getattr(config, name) for name in names}
    return {**own, "batch_norm": config.norm, "towers": towers}


def _heads(schema: Schema, config: ModelConfig, n_logits: int) -> tuple[HeadMeaning, ...]:
    labels = schema.spec.labels or {"": "label"}
    try:
        heads = make_heads(schema, config.head_choice)
    except (
        ConfigError
    ):  # a head of one's own: its kind and width are known where it is the only one
        name = next(iter(labels))
        kind = config.head if isinstance(config.head, str) else "own"
        return (HeadMeaning(kind, name, schema.spec.labels.get(name), n_logits),)
    return tuple(head_meaning(schema, head.kind, head.name, head.width) for head in heads)


def head_meaning(schema: Schema, kind: str, name: str, width: int) -> HeadMeaning:
    """Return what a head's logits mean, by the schema's label and classes."""
    classes = tuple(schema.classes.get(name, ()))
    return HeadMeaning(kind, name, schema.spec.labels.get(name), width, classes)


def _rates(schema: Schema, tensors: Tensors) -> dict[str, NDArray[np.float64]]:
    if "rates/log_rates" not in tensors:
        return {}
    names = [slot.name for slot in schema.slots if slot.wide]
    pairs = np.stack([tensors["rates/log_rates"], tensors["rates/evidence"]], axis=1)
    return dict(zip(names, pairs, strict=True))
