"""A run's state, to and from a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from widedeep.checkpoint import Checkpoint, as_tensors
from widedeep.config import RunConfig
from widedeep.errors import CheckpointError
from widedeep.model import WideDeep
from widedeep.tables import EmbeddingTable
from widedeep.training.history import History

if TYPE_CHECKING:
    from widedeep.trainer import Trainer
    from widedeep.training.early_stopping import EarlyStopping

__all__ = ["Position", "capture", "restore", "run_tables"]


@dataclass(slots=True)
class Position:
    """Where a run is: the next batch to learn.

    Args:
        epoch: Epochs done.
        batch: Batches of the present epoch done.
        step: Steps done.
        rows: Rows learned.
        updates: Steps of all runs of the trainer, which number its optimizers' updates.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    rows: int = 0
    updates: int = 0


def _tables(model: WideDeep) -> dict[str, EmbeddingTable]:
    tables = {f"deep/{dim}": table for dim, table in model.deep_tables.items()}
    return tables if model.wide_table is None else {"wide": model.wide_table, **tables}


def run_tables(trainer: Trainer) -> dict[str, Any]:
    """Return the resolved configuration of a run as nested tables, for checkpoints and bundles."""
    config = RunConfig(
        spec=trainer.model.schema.spec, model=trainer.model.config, train=trainer.config
    )
    return config.to_table()


def capture(trainer: Trainer, stopping: EarlyStopping | None = None) -> Checkpoint:
    """Return a checkpoint of a trainer's state, of views: write it before the next step."""
    model = trainer.model
    tensors: dict[str, NDArray[Any]] = {}
    for name, table in _tables(model).items():
        tensors.update(
            {f"{name}/{key}": value for key, value in as_tensors(table.named_state()).items()}
        )
    tensors.update({f"module/{k}": v for k, v in as_tensors(model.state_dict()).items()})
    tensors.update(
        {f"optimizer/{k}": v for k, v in as_tensors(trainer.step.dense.tensors()).items()}
    )
    if trainer.step.feature_rates is not None:
        rates = as_tensors(trainer.step.feature_rates.tensors())
        tensors.update({f"rates/{k}": v for k, v in rates.items()})
    tensors["random/torch"] = torch.random.get_rng_state().numpy()
    if model.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(model.device).numpy()
    state = {
        "position": dataclasses.asdict(trainer.position),
        "inputs": trainer.inputs,
        "shards": trainer.shards,
        "history": trainer.history.rows,
        "config": run_tables(trainer),
        "warmup": trainer.warmup.rows,
        "stopping": None if stopping is None else stopping.dump(),
    }
    return Checkpoint(
        step=trainer.position.updates, state=state, tensors=tensors, schema=model.schema
    )


def restore(trainer: Trainer, checkpoint: Checkpoint, *, position: bool = True) -> None:
    """Put a checkpoint's state into a trainer.

    Args:
        trainer: Its model must have the checkpoint's shape.
        checkpoint: As read from disk.
        position: Take position, history and random state too; False for parameters alone.

    Raises:
        CheckpointError: If a tensor is missing or has another shape.
    """
    model, tensors = trainer.model, checkpoint.tensors
    for name, table in _tables(model).items():
        table.load_named_state(_part(tensors, name))
    held = model.state_dict()
    stored = _part(tensors, "module")
    for key, value in held.items():
        if key not in stored or tuple(stored[key].shape) != tuple(value.shape):
            raise CheckpointError(
                f"the checkpoint's {key!r} is missing or has another shape than the model's "
                f"{tuple(value.shape)}; "
                "make the model with the checkpoint's configuration"
            )
        value.copy_(torch.from_numpy(np.array(stored[key])))
    trainer.step.dense.load_tensors(_part(tensors, "optimizer"))
    trainer.warmup.rows = list(checkpoint.state.get("warmup", []))
    if trainer.step.feature_rates is not None:
        trainer.step.feature_rates.load_tensors(_part(tensors, "rates"))
    if position:
        trainer.position = Position(**checkpoint.state["position"])
        trainer.history = History(list(checkpoint.state["history"]))
        trainer.shards = list(checkpoint.state.get("shards", []))
        torch.random.set_rng_state(torch.from_numpy(np.array(tensors["random/torch"])))
        if model.device.type == "cuda" and "random/cuda" in tensors:
            held_state = torch.from_numpy(np.array(tensors["random/cuda"]))
            torch.cuda.set_rng_state(held_state, model.device)


def _part(tensors: Any, name: str) -> dict[str, NDArray[Any]]:
    lead = f"{name}/"
    return {key[len(lead) :]: value for key, value in tensors.items() if key.startswith(lead)}
