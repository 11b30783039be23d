"""What is left open in a configuration: chosen by the rows, the passes and the quality asked for.

docs/defaults.md ("Which settings, and why") shows what each choice was measured on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from widedeep.errors import ConfigError
from widedeep.models.tower import EMBEDDING_RATE, registered_towers
from widedeep.models.wide_deep import WideDeep
from widedeep.optim import FTRL, Adagrad, Optimizer, describe_optimizer, make_optimizer
from widedeep.training.config import Quality, RunConfig, TrainConfig
from widedeep.training.dense import DenseOptimizer
from widedeep.training.schedules import PARTS

BEST_MEMBERS = 4
"""Members of an ensemble at quality "best"."""

_BATCH_SIZES = (16, 512)
_BATCHES = 100  # in an epoch of a small table
# Steps to learn a table in, and the most passes for them: with early stopping, and without.
_STOPPED_STEPS, _STOPPED_EPOCHS = 4000, 100
_FIXED_STEPS, _FIXED_EPOCHS = 1000, 20
# L2 of embeddings on a single pass; on several, at batches from this size on.
_ONE_PASS_L2, _MANY_PASSES_L2, _FULL_L2_BATCH = 0.025, 0.3, 256


def auto_batch_size(rows: int) -> int:
    """Return the batch size of a table: about a hundredth of its rows, a power of two."""
    least, most = _BATCH_SIZES
    nearest = 1 << max(0, round(math.log2(max(rows, 1) / _BATCHES)))
    return min(max(nearest, least), most)


def auto_epochs(
    rows: int, batch_size: int, *, early_stopping: bool, quality: Quality = "good"
) -> int:
    """Return how many passes give a table enough steps; "fast": as if nothing would stop them."""
    long = early_stopping and quality != "fast"
    steps, most = (_STOPPED_STEPS, _STOPPED_EPOCHS) if long else (_FIXED_STEPS, _FIXED_EPOCHS)
    return min(most, math.ceil(steps / math.ceil(rows / batch_size)))


def embeddings_optimizer(
    epochs: int = 1, batch_size: int = _FULL_L2_BATCH, *, rate: float = EMBEDDING_RATE
) -> Adagrad:
    """Return the optimizer of embeddings that none is given for, at the rate of their model.

    Rare ids start slowly, then learn ten times as fast as hidden layers, and the rows that a batch
    touches decay. Several passes over the same rows are learned by heart unless they decay more;
    a small batch touches a row for less gradient, and decays it less.
    """
    l2 = _ONE_PASS_L2
    if epochs > 1:
        l2 = max(l2, _MANY_PASSES_L2 * min(1.0, batch_size / _FULL_L2_BATCH))
    return Adagrad(lr=rate, initial_accumulator=0.1, l2=l2)


def at_quality(config: RunConfig) -> RunConfig:
    """Return a run's configuration with the model that its quality means.

    ``"best"`` makes an ensemble of each tower that is none, the standard one too, unless towers
    are joined or there is no deep part. What is an ensemble already stays as it is, and so do two
    towers, of whose vectors a bundle has one set. The members train apart unless they are not the
    only towers, or share what a model learns of numbers.
    """
    model = config.model
    if config.train.quality != "best" or model.join is not None or not config.spec.deep_names:
        return config
    towers = [dict(table) for table in model.deep]
    if model.hidden_units:
        options = ("hidden_units", "activation", "dropout", "batch_norm")
        towers.insert(0, {"name": "mlp", **{name: getattr(model, name) for name in options}})
    kinds = [registered_towers()[table["name"]] for table in towers]
    shares = any(getattr(f, "embedding", None) == "periodic" for f in config.spec.features)
    apart = not shares and not any(kind.has_members or kind.has_vectors for kind in kinds)
    deep = [_as_ensemble(table, apart=apart) for table in towers]
    return dataclasses.replace(
        config, model=dataclasses.replace(model, deep=tuple(deep), hidden_units=())
    )


def _as_ensemble(table: dict[str, Any], *, apart: bool) -> dict[str, Any]:
    tower = registered_towers()[table["name"]]
    if tower.has_members or tower.has_vectors:
        return table
    training = "apart" if apart else "together"
    return {"name": "ensemble", "of": table, "members": BEST_MEMBERS, "training": training}


def adopted_optimizers(
    present: Mapping[str, Any], recorded: Mapping[str, Any], by_default: Mapping[str, bool]
) -> dict[str, Any]:
    """Return the optimizers of a checkpoint where none were given and defaults have changed."""
    adopted = {}
    for group, optimizer in present.items():
        if by_default[group] and recorded.get(group):
            with contextlib.suppress(ConfigError):  # a torch optimizer, which has no table
                stored = make_optimizer(recorded[group])
                if stored != optimizer:
                    adopted[group] = stored
    return adopted


# What Keras's optimizers, by which ``tf.estimator`` trains, have where a table does not say.
_KERAS: Mapping[str, Mapping[str, Any]] = {
    "ftrl": {
        "l1": 0.0,
        "beta": 0.0,
        "initial_accumulator": 0.1,
        "convention": "tensorflow",
        "adapt": 0.0,
    },
    "adagrad": {"lr": 0.001, "initial_accumulator": 0.1, "eps": 1e-7},
    "adam": {"lr": 0.001, "eps": 1e-7},
    "sgd": {"lr": 0.01},
}
# Rates of Ftrl: the largest beside a deep part, and alone.
_JOINT_RATE, _LINEAR_RATE = 0.005, 0.2


def with_compat(config: TrainConfig, model: WideDeep) -> TrainConfig:
    """Return how a model is trained, with what is left open as its ``compat`` says.

    ``"tensorflow"``: options that a table of an optimizer leaves out are Keras's; the rate of Ftrl
    is the smaller of 1/√(wide features) and 0.005, or 0.2 without a deep part; the embeddings and
    layers have Adagrad at 0.001. ``loss_reduction`` holds for tables too. The rate is constant, and
    nothing stops early, unless the configuration says otherwise.
    """
    if model.config.compat is None:
        return dataclasses.replace(config, schedule="wsd") if config.schedule == "auto" else config
    n_wide = max(1, len(model.schema.spec.wide_names))
    highest = _JOINT_RATE if model.towers else _LINEAR_RATE
    ftrl = {"lr": min(highest, n_wide**-0.5)}
    given = config.optimizer_tables
    tables = {"wide": given["wide"], "deep": given["deep"] or {"optimizer": "adagrad"}}
    if config.dense is not None:
        tables["dense"] = given["dense"]
    changes: dict[str, Any] = {group: _as_keras(table, ftrl) for group, table in tables.items()}
    if config.grad_scale == 1.0 and config.loss_reduction == "mean":
        changes["grad_scale"] = "mean"
    if config.schedule == "auto":
        changes["schedule"] = "constant"
    if config.early_stopping == "auto" and config.patience is None and config.monitor is None:
        changes["early_stopping"] = False
    return dataclasses.replace(config, **changes)


class Optimizers(NamedTuple):
    """The optimizer of each part of a model."""

    wide: Optimizer
    deep: Optimizer
    dense: DenseOptimizer


def make_optimizers(
    config: TrainConfig, *, rate: float = EMBEDDING_RATE, **objects: Any
) -> Optimizers:
    """Return the optimizers of a configuration; ``objects`` by part come before its tables.

    ``rate``: of the embeddings where neither says (:attr:`widedeep.WideDeep.embedding_rate`).

    Raises:
        ConfigError: If a table names no optimizer, or an object is none.
    """
    optimizers: dict[str, Any] = {}
    for group in PARTS:
        optimizer, table = objects.get(group), getattr(config, group)
        if optimizer is None and table is not None:
            try:
                optimizer = make_optimizer(table)
            except ConfigError as error:
                raise ConfigError(f"[train] {group}: {error}") from error
        elif optimizer is not None and not (group == "dense" and callable(optimizer)):
            _check_optimizer(group, optimizer)
        optimizers[group] = optimizer
    wide, deep, dense = (optimizers[group] for group in PARTS)
    for group, optimizer in (("wide", wide), ("dense", dense)):
        if isinstance(optimizer, Adagrad) and optimizer.row_wise:
            raise ConfigError(
                f"[train] {group}: got row_wise=true, which is of rows of embeddings; set it in "
                "deep alone"
            )
    if isinstance(deep, Adagrad):
        dense = dense or dataclasses.replace(deep, row_wise=False)
    dense = dense or deep or Adagrad()
    return Optimizers(wide or FTRL(), deep or embeddings_optimizer(rate=rate), dense)


def _check_optimizer(name: str, optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        hint = ", or lambda parameters: torch.optim.AdamW(parameters)" if name == "dense" else ""
        got = repr(optimizer) if isinstance(optimizer, str | type) else "an object"
        raise ConfigError(
            f"got {name}={got} ({type(optimizer).__name__}), expected an optimizer of "
            f"widedeep.optim such as wd.Adagrad(lr=0.05){hint}"
        )


def _as_keras(table: Mapping[str, Any], ftrl: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's table with the options of Keras where it has none of its own."""
    name = table["optimizer"]
    options = {**(ftrl if name == "ftrl" else {}), **_KERAS.get(name, {})}
    if name == "rmsprop" and table.get("momentum"):
        options["convention"] = "tensorflow"
    return {"optimizer": name, **options, **table}


def with_descriptions(config: TrainConfig, optimizers: Optimizers) -> TrainConfig:
    """Return a configuration that names the optimizers in use."""
    return dataclasses.replace(
        config,
        wide=describe_optimizer(optimizers.wide),
        deep=describe_optimizer(optimizers.deep),
        dense=describe_optimizer(optimizers.dense),
    )
