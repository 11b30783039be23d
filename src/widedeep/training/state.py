"""State of a run: its position, history and model, and what a checkpoint keeps of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from widedeep.bundle.plain_json import plain
from widedeep.data.fragments import Fragment, InputRecord, Source, origin_of
from widedeep.data.reader import ORDER_VERSION, EpochPlan
from widedeep.errors import BundleError, CheckpointError
from widedeep.models.head_config import describe_head
from widedeep.models.wide_deep import WideDeep
from widedeep.page import charts, framed_page, note, training_charts
from widedeep.page import table as page_table
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first
from widedeep.schema import ColumnType
from widedeep.training.checkpoint import Checkpoint, as_arrays
from widedeep.training.config import RunConfig, TrainConfig
from widedeep.training.early_stopping import EarlyStopping
from widedeep.training.schedules import RateSchedules
from widedeep.training.step import TrainStep

_COLUMNS = (
    "member",
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
        names = [name for name in _COLUMNS if any(name in row for row in self.rows)]
        if not names:
            return "History (empty)"
        cells = [names, *([_text(row.get(name)) for name in names] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in cells
        ]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        names = [name for name in _COLUMNS if any(name in row for row in self.rows)]
        cells = [[_text(row.get(name)) for name in names] for row in self.rows]
        blocks = charts(*training_charts(self.rows)) if len(self.rows) > 1 else ""
        rows = page_table(names, cells, numbers=names) if names else note("empty")
        return framed_page("Training", [blocks, rows, *map(note, self.warnings)])


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


WARMUP_ROWS = 8
SAMPLE_ROWS = 256  # on which an export compares the bundle with the trained model


class WarmupSample:
    """Rows kept from a fragment that training reads anyway: keeping them costs no reading."""

    def __init__(self, columns: Mapping[str, ColumnType], seed: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sample: pa.Table | None = None
        """More of them, as they were read; never written anywhere."""
        self._types = columns
        self._columns = list(columns)
        self._seed = seed
        self._fragment: Fragment | None = None  # The one to keep rows of

    def select(self, plan: EpochPlan) -> None:
        """Wait for the first fragment of an epoch, unless rows are kept already."""
        if not self.rows:
            self._fragment = plan.first_fragment()

    def read(self, source: Source) -> None:
        """Read the fragment waited for, which nobody else will."""
        if self._fragment is not None:
            self.update(source.read(self._fragment, self._columns))

    def update(self, table: pa.Table) -> None:
        """Keep rows of a table if it is the fragment waited for."""
        kept = self._fragment
        if kept is None or origin_of(table) != (kept.origin, kept.first_row):
            return
        self._fragment = None
        picks = np.random.default_rng(self._seed).permutation(table.num_rows)[:SAMPLE_ROWS]
        # Slices, for Arrow cannot take rows of every type (of string views, for one).
        columns = table.select(self._columns)
        self.sample = pa.concat_tables([columns.slice(row, 1) for row in picks.tolist()])
        columns = pa.table({name: self._column(table, name) for name in self._columns})
        first = np.sort(picks[:WARMUP_ROWS]).tolist()
        rows = [columns.slice(row, 1).to_pylist()[0] for row in first]
        self.rows = [row for row in map(_storable, rows) if row is not None]

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        """Where the schema knows no unit of its times, they are microseconds and no text."""
        column = table.column(name)
        is_time = pa.types.is_temporal(column.type)
        if is_time and self._types[name].storage is None:
            return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return column


def _storable(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row as JSON holds it, or None where it cannot."""
    try:
        storable: dict[str, Any] = plain(row, "row")
    except BundleError:
        return None
    return storable


@dataclass(kw_only=True)
class TrainState:
    """A run at one step: all that a checkpoint keeps, and all that a step changes."""

    model: WideDeep
    step: TrainStep  # Moves the model; holds the optimizers and the state of the dense ones
    config: TrainConfig  # With numbers where ``"auto"`` was given
    warmup: WarmupSample
    schedules: RateSchedules
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    position: Position = field(default_factory=Position)
    history: History = field(default_factory=History)
    inputs: list[InputRecord] = field(default_factory=list)  # Training files and their sizes
    shards: list[str] = field(default_factory=list)  # Shards of a stream that were learned
    # Of a stream that evicts: shards in a row without each value, by vocabulary
    idle: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    # Validation metrics of the model as it is; none once it moved
    valid_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def ranks(self) -> Ranks:
        """The processes that train this model."""
        return self.step.ranks

    def config_tables(self) -> dict[str, Any]:
        """Return the resolved configuration as nested tables, for checkpoints and bundles."""
        model = self.model
        config = RunConfig(
            spec=model.schema.spec,
            model=model.config,
            train=self.config,
            distributed=self.distributed,
        )
        return config.to_table()

    def begin(self, source: Source) -> None:
        """Record the training data of a run that begins; ranks that differ are refused."""
        own = {"threads", "log"}  # which each rank may have as it likes
        facts = {"schema": self.model.schema.fingerprint} | {
            f"{section}.{key}": json.dumps(value, default=lambda one: type(one).__name__)
            for section, table in self.config_tables().items()
            if section in ("model", "train", "distributed")
            for key, value in table.items()
            if key not in own
        }
        self.ranks.check_alike(facts, "; train by one configuration")
        self.inputs = on_first(self.ranks, source.describe, "the inputs")
        self.position = Position(updates=self.position.updates)
        self.warmup.rows = []

    def checkpoint(self, stopping: EarlyStopping | None = None) -> Checkpoint:
        """Return a checkpoint whose tensors are views: write it before the next step."""
        groups: dict[str, Mapping[str, Any]] = {
            **{name: table.named_state() for name, table in self.model.tables.items()},
            "module": self.model.dense_state(),
            "optimizer": self.step.dense_tensors(),
        }
        if self.step.feature_rates is not None:
            groups["rates"] = self.step.feature_rates.tensors()
        if self.idle:
            groups["idle"] = self.idle
        tensors = {
            f"{prefix}/{name}": array
            for prefix, group in groups.items()
            for name, array in as_arrays(group).items()
        }
        state = {
            "position": dataclasses.asdict(self.position),
            "order": ORDER_VERSION,
            "inputs": self.inputs,
            "shards": self.shards,
            "history": self.history.rows,
            "warnings": self.history.warnings,
            "config": self.config_tables(),
            "warmup": self.warmup.rows,
            "stopping": None if stopping is None else stopping.dump(),
            "schedules": self.schedules.dump(),
            "heads": [describe_head(head) for head in self.model.heads],
        }
        ranks = self.step.ranks
        sharded = self.model.tables.items() if ranks.size > 1 else ()
        return Checkpoint(
            step=self.position.updates,
            state=state,
            tensors=tensors,
            schema=self.model.schema,
            ranks=ranks,
            tables={
                f"{prefix}/{name}": (name.rpartition(".")[0], table.sizes[name.rpartition(".")[0]])
                for prefix, table in sharded
                for name in table.named_state()
            },
        )

    def restore(self, checkpoint: Checkpoint, *, position: bool = True) -> None:
        """Take a checkpoint's tensors, and its position and history unless told not to."""
        tensors = checkpoint.tensors
        self.valid_metrics = {}
        _check_heads(self.model, checkpoint)
        for name, table in self.model.tables.items():
            table.load_named_state(_with_prefix(tensors, name), self.step.ranks)
        _restore_modules(self.model, _with_prefix(tensors, "module"))
        self.step.load_dense_tensors(_with_prefix(tensors, "optimizer"))
        self.warmup.rows = list(checkpoint.state.get("warmup", []))
        if self.step.feature_rates is not None:
            self.step.feature_rates.load_tensors(_with_prefix(tensors, "rates"))
        self.idle = _with_prefix(tensors, "idle")
        if position:
            self.position = Position(**checkpoint.state["position"])
            warnings = checkpoint.state.get("warnings", [])
            self.history = History(list(checkpoint.state["history"]), warnings)
            self.shards = list(checkpoint.state.get("shards", []))
            self.valid_metrics = self.history.valid_metrics(self.position.step)
            self.schedules.load(checkpoint.state.get("schedules", {}))

    def check_same_lanes(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on with sums over a batch in another order."""
        lanes = state["config"].get("distributed", {}).get("lanes", 1)
        if lanes != self.ranks.lanes:
            raise CheckpointError(
                f"got a checkpoint of a run with distributed.lanes = {lanes}, but this trainer has "
                f"{self.ranks.lanes}, with which batches are summed in another order; go on with "
                f"lanes = {lanes}, on as many ranks as that or fewer"
            )

    def check_same_order(self, state: Mapping[str, Any]) -> None:
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
        old, new = state["config"]["train"], self.config_tables()["train"]
        for name in ("batch_size", "seed", "shuffle", "pool_rows"):
            if name in old and new[name] not in (old[name], "auto"):
                raise CheckpointError(
                    f"{where} with {name} = {old[name]!r}, got {new[name]!r}: rows would be "
                    f"learned twice or not at all; give {name} = {old[name]!r}, {remedy}"
                )


def _restore_modules(model: WideDeep, tensors: Mapping[str, NDArray[Any]]) -> None:
    parameters = {name: value.detach() for name, value in model.dense_state().items()}
    unknown = tensors.keys() - parameters.keys()
    if unknown:
        raise CheckpointError(
            f"got a checkpoint with {min(unknown)!r}, which the model does not have; make the "
            "model with the checkpoint's towers"
        )
    for name, value in parameters.items():
        if name not in tensors or tuple(tensors[name].shape) != tuple(value.shape):
            raise CheckpointError(
                f"the checkpoint's {name!r} is missing or has another shape than the model's "
                f"{tuple(value.shape)}; make the model with the checkpoint's configuration"
            )
        value.copy_(torch.from_numpy(np.array(tensors[name])))


def _check_heads(model: WideDeep, checkpoint: Checkpoint) -> None:
    """Raise a CheckpointError unless the model's heads are those that made the checkpoint."""
    heads = [describe_head(head) for head in model.heads]
    stored = checkpoint.state.get("heads", heads)  # earlier checkpoints do not say
    if stored != heads:
        raise CheckpointError(
            f"got a checkpoint of the heads {', '.join(stored)}, the model's are "
            f"{', '.join(heads)}; make the model with the heads of its run"
        )


def _with_prefix(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the tensors named ``prefix/...`` by the names that follow."""
    start = len(prefix) + 1
    return {k[start:]: value for k, value in tensors.items() if k.startswith(f"{prefix}/")}
