"""State of a run: its history, and what a checkpoint keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from widedeep.data.reader import ORDER_VERSION
from widedeep.errors import CheckpointError
from widedeep.models.heads import describe_head
from widedeep.models.wide_deep import WideDeep
from widedeep.training.checkpoint import Checkpoint, as_tensors
from widedeep.training.config import RunConfig

if TYPE_CHECKING:
    from widedeep.training.early_stopping import EarlyStopping
    from widedeep.training.trainer import Trainer


_SHOWN = (
    "epoch",
    "step",
    "rows",
    "loss",
    "rows_per_s",
    "nonzero_wide",
    "valid/auc",
    "valid/log_loss",
    "valid/calibration",
)


class History:
    """Rows of figures, one an evaluation or epoch; printing it shows a table."""

    def __init__(
        self, rows: list[dict[str, Any]] | None = None, warnings: Sequence[str] = ()
    ) -> None:
        self.rows: list[dict[str, Any]] = list(rows or [])
        self.warnings = list(warnings)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row of figures."""
        self.rows.append(row)

    def column(self, name: str) -> list[Any]:
        """Return one figure over time; None where a row has none."""
        return [row.get(name) for row in self.rows]

    def valid_metrics(self, step: int) -> dict[str, float]:
        """Return the validation metrics of the model at a step; none if it was not evaluated."""
        none: dict[str, Any] = {}
        row = next((row for row in reversed(self.rows) if row.get("step") == step), none)
        return {k.removeprefix("valid/"): v for k, v in row.items() if k.startswith("valid/")}

    def live_metrics(self) -> dict[str, float]:
        """Return the metrics of the last shard of a stream, before it was learned."""
        row = self.rows[-1] if self.rows else {}
        return {k.removeprefix("before/"): v for k, v in row.items() if k.startswith("before/")}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __repr__(self) -> str:
        names = [name for name in _SHOWN if any(name in row for row in self.rows)]
        if not names:
            return "History (empty)"
        cells = [names, *([_text(row.get(name)) for name in names] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in cells
        ]
        return "\n".join([*table, *(f"warning: {warning}" for warning in self.warnings)])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@dataclass(slots=True)
class Position:
    """Where a run is: the next batch to learn."""

    epoch: int = 0  # Epochs done
    batch: int = 0  # Batches of the present epoch done
    step: int = 0  # Steps done
    rows: int = 0  # Rows learned
    updates: int = 0  # Steps of all runs of the trainer, which number its optimizers' updates
    # Steps done before the tail: the decay from the best model after an early stop
    tail_start: int = 0
    tail_steps: int = 0  # Steps of the tail; 0 before it
    tail_total: int = 0  # Steps that the run would have had without the tail


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
    for name, table in model.tables.items():
        tensors.update(
            {f"{name}/{key}": value for key, value in as_tensors(table.named_state()).items()}
        )
    tensors.update({f"module/{k}": v for k, v in as_tensors(model.dense_state()).items()})
    tensors.update(
        {f"optimizer/{k}": v for k, v in as_tensors(trainer.step.dense.tensors()).items()}
    )
    if trainer.step.feature_rates is not None:
        rates = as_tensors(trainer.step.feature_rates.tensors())
        tensors.update({f"rates/{k}": v for k, v in rates.items()})
    state = {
        "position": dataclasses.asdict(trainer.position),
        "order": ORDER_VERSION,
        "inputs": trainer.inputs,
        "shards": trainer.shards,
        "history": trainer.history.rows,
        "warnings": trainer.history.warnings,
        "config": run_tables(trainer),
        "warmup": trainer.warmup.rows,
        "stopping": None if stopping is None else stopping.dump(),
        "heads": [describe_head(head) for head in model.heads],
    }
    return Checkpoint(
        step=trainer.position.updates, state=state, tensors=tensors, schema=model.schema
    )


def check_same_order(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Refuse to go on within an epoch whose rows would now come in another order."""
    if not state["position"]["batch"]:
        return
    where = f"the checkpoint of step {state['position']['step']:,} lies within an epoch"
    remedy = "start a new run, or go on from a checkpoint at the end of an epoch"
    if state.get("order", 1) != ORDER_VERSION:
        raise CheckpointError(
            f"{where} of a release of widedeep that read rows in another order: rows would be "
            f"learned twice or not at all; {remedy}, or finish the epoch with that release"
        )
    old, new = state["config"]["train"], run_tables(trainer)["train"]
    for name in ("batch_size", "seed", "shuffle", "pool_rows"):
        if name in old and new[name] not in (old[name], "auto"):
            raise CheckpointError(
                f"{where} with {name} = {old[name]!r}, got {new[name]!r}: rows would be learned "
                f"twice or not at all; give {name} = {old[name]!r}, {remedy}"
            )


def restore(trainer: Trainer, checkpoint: Checkpoint, *, position: bool = True) -> None:
    """Put a checkpoint's state into a trainer."""
    model, tensors = trainer.model, checkpoint.tensors
    trainer.valid_metrics = {}
    _check_heads(model, checkpoint)
    for name, table in model.tables.items():
        table.load_named_state(_part(tensors, name))
    held = {name: value.detach() for name, value in model.dense_state().items()}
    stored = _part(tensors, "module")
    unknown = stored.keys() - held.keys()
    if unknown:
        raise CheckpointError(
            f"got a checkpoint with {min(unknown)!r}, which the model does not have; make the "
            "model with the checkpoint's towers"
        )
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
        warnings = checkpoint.state.get("warnings", [])
        trainer.history = History(list(checkpoint.state["history"]), warnings)
        trainer.shards = list(checkpoint.state.get("shards", []))
        trainer.valid_metrics = trainer.history.valid_metrics(trainer.position.step)


def _check_heads(model: WideDeep, checkpoint: Checkpoint) -> None:
    """Raise a CheckpointError unless the model's heads are those that made the checkpoint."""
    held = [describe_head(head) for head in model.heads]
    stored = checkpoint.state.get("heads", held)  # earlier checkpoints do not say
    if stored != held:
        raise CheckpointError(
            f"got a checkpoint of the heads {', '.join(stored)}, the model's are "
            f"{', '.join(held)}; make the model with the heads of its run"
        )


def _part(tensors: Any, name: str) -> dict[str, NDArray[Any]]:
    lead = f"{name}/"
    return {key[len(lead) :]: value for key, value in tensors.items() if key.startswith(lead)}
