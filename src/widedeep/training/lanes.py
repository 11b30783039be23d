"""Which runs keep their meaning when each batch is cut into lanes."""

from __future__ import annotations

from collections.abc import Iterator

from widedeep.errors import ConfigError
from widedeep.models.two_tower import TwoTowerTower
from widedeep.models.wide_deep import WideDeep
from widedeep.training.config import TrainConfig

TRAINS_IN_LANES = False


def check_lanes(model: WideDeep, config: TrainConfig, lanes: int) -> None:
    """Refuse what looks across the examples of a batch where each lane would see its own alone.

    Raises:
        ConfigError: With the reason and what to do.
    """
    if lanes == 1:
        return
    if not TRAINS_IN_LANES:
        raise ConfigError(
            f"got distributed.lanes = {lanes}, but this release trains in one process alone; leave "
            "distributed.lanes at 1, and launch one process"
        )
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
    states = model.state_dict()
    for name, _ in model.named_buffers():
        if name in states:  # running statistics of batch norm, Dice and the like
            yield f"{name} follows the statistics of whole batches"
