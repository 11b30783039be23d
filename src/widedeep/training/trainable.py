"""Which models can be trained, and which of them with batches that are cut into lanes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from widedeep.errors import ConfigError
from widedeep.models.blocks import has_hooks
from widedeep.models.two_tower import TwoTowerTower
from widedeep.models.wide_deep import WideDeep
from widedeep.training.config import TrainConfig

_COMPUTED = ("forward", "gather", "wide_logits", "deep_logits", "member_logits", "tower_logits")


def check_model(model: object) -> None:
    """Refuse what is no model, one that would compute otherwise, and parameters of another type."""
    if not isinstance(model, WideDeep):
        raise ConfigError(f"got {type(model).__name__} as the model, expected wd.WideDeep(schema)")
    _check_methods(model)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != model.device.type:
            raise ConfigError(
                f"parameter {name!r}: got {parameter.dtype} on {parameter.device}, expected "
                f"float32 on {model.device}, where the model's tables are; give device= to "
                "WideDeep and precision= to Trainer"
            )


def _check_methods(model: WideDeep) -> None:
    """Refuse a model that changes what training, predicting and exporting do without it."""
    changed = [
        f"{type(model).__name__}.{name} of your own"
        for name in _COMPUTED
        if name in vars(model) or getattr(type(model), name) is not getattr(WideDeep, name)
    ]
    if has_hooks(model):
        changed.append("a hook on the model")
    if changed:
        raise ConfigError(
            f"got {', '.join(changed)}, which training, predictions and bundles would not call; "
            "compute it in a tower (WideDeep's towers= or deep=) or a head (head=)"
        )


def check_lanes(model: WideDeep, config: TrainConfig, lanes: int) -> None:
    """Refuse what looks across the examples of a batch where each lane would see its own alone.

    Raises:
        ConfigError: With the reason and what to do.
    """
    if lanes == 1:
        return
    size = config.batch_size
    if size != "auto" and size % lanes:
        raise ConfigError(
            f"got batch_size = {size:,} with distributed.lanes = {lanes}, expected a multiple of "
            f"the lanes, such as {-(-size // lanes) * lanes:,}"
        )
    for reason in _reasons(model):
        raise ConfigError(
            f"got distributed.lanes = {lanes}, but {reason}, and a lane is only a part of the "
            "batch; train it with lanes = 1, in one process"
        )


def _reasons(model: WideDeep) -> Iterator[str]:
    if model.device.type != "cpu":
        yield f"the model is on {model.device}, and rows are exchanged between processors alone"
    for head in model.heads:
        if head.reads_requests:
            yield f"the loss of head {head.name!r} compares the examples of a request"
    for name, module in model.named_modules():
        if isinstance(module, TwoTowerTower):
            yield f"{name} learns from the other examples of a batch (in-batch softmax)"
    states = model.dense_state()  # not the rows of tables, which would be made for it
    for name, _ in model.named_buffers():
        if name in states:  # running statistics of batch norm, Dice and the like
            yield f"{name} follows the statistics of whole batches"
