"""Weights and optimizer state of an estimator, written into a trainer of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import CheckpointError, FeatureError
from widedeep.importing.columns import (
    CountColumn,
    DenseColumn,
    IdColumn,
    NumberColumn,
    TableColumn,
)
from widedeep.importing.network import Network, WideColumn
from widedeep.importing.optimizers import OptimizerState
from widedeep.importing.tensor_bundle import TensorBundle
from widedeep.schema import Schema
from widedeep.training.config import RunConfig
from widedeep.training.trainer import Trainer

Runs = Sequence[tuple[slice, int]]  # Rows of TensorFlow's, and where they begin among ours
_MISSING_ID, _FIRST_ID = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedTensor:
    """What became of one variable."""

    variable: str  # Its name in TensorFlow's checkpoints
    tensor: str  # Its name in ours
    shape: tuple[int, ...]
    state: tuple[str, ...] = ()  # Slots of its optimizer that came with it
    why: str = ""  # Why the state of its optimizer was left out


@dataclass(frozen=True, kw_only=True)
class EstimatorSource:
    """An estimator that was understood: its variables, and what each is here."""

    bundle: TensorBundle
    keys: Mapping[str, str]  # The name of the tensor, by what the network calls a variable
    network: Network
    inputs: Sequence[tuple[str, DenseColumn]]  # The deep input's parts in order, with our features
    wide: Sequence[tuple[str, WideColumn]]  # The linear columns, with our features
    schema: Schema
    config: RunConfig
    slots: TensorBundle | None  # Where the optimizers' state is
    optimizers: OptimizerState

    def shape(self, variable: str) -> tuple[int, ...]:
        """Return the shape of a variable."""
        return self.bundle.shape(self.keys[variable])


def part_variables(network: Network, keys: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the names of the variables that each part's optimizer moves."""
    wide = {keys[wide.variable] for wide in network.wide}
    if network.wide_bias is not None:
        wide.add(keys[network.wide_bias])
    tables = [column for _, column in network.deep if isinstance(column, TableColumn)]
    layers = [*network.layers, *([] if network.output is None else [network.output])]
    dense = {keys[op] for layer in layers for op in (layer.kernel, layer.bias)}
    norms = [layer.norm for layer in layers if layer.norm is not None]
    dense |= {keys[op] for norm in norms for op in (norm.gamma, norm.beta) if op is not None}
    return {"wide": wide, "deep": {keys[table.variable] for table in tables}, "dense": dense}


def fill_trainer(source: EstimatorSource, trainer: Trainer) -> list[ImportedTensor]:
    """Write weights and state, and return what became of each variable.

    Raises:
        CheckpointError: If a tensor is damaged, or the checkpoint holds some that have no place.
    """
    return _Filler(source, trainer).fill()


class _Filler:
    def __init__(self, source: EstimatorSource, trainer: Trainer) -> None:
        self.source, self.trainer = source, trainer
        self.bundle, self.keys = source.bundle, source.keys

    def fill(self) -> list[ImportedTensor]:
        moves = list(self._moves())
        self._check_all_known({move.variable for move in moves})
        own = self.trainer.state.checkpoint().tensors  # views: what is written moves the model
        for move in moves:
            move.write(own[move.tensor], self.bundle.read(move.variable), False)
        _restart(self.trainer)
        tensors = [self._fill_state(move, own) for move in moves]
        self.trainer.model.recount()
        return tensors

    def _check_all_known(self, known: set[str]) -> None:
        state = {
            s.tensor for slots in self.source.optimizers.slots.values() for s in slots.values()
        }
        state |= set(self.source.optimizers.others)
        rest = sorted(set(self.bundle) - known - state - {"global_step"})
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            raise CheckpointError(
                f"{self.bundle.index}: holds {rest[0]!r}{more}, which no part of the model uses; "
                "it would be carried over in part, and is of another kind of model than a canned "
                "estimator's"
            )

    def _fill_state(self, move: _Move, own: Mapping[str, NDArray[Any]]) -> ImportedTensor:
        slots = []
        for name, slot in self.source.optimizers.slots.get(move.variable, {}).items():
            target = move.state.format(name)
            if self.source.slots is not None and target in own:
                values = self.source.slots.read(slot.tensor)
                move.write(own[target], values if slot.factor == 1 else values * slot.factor, True)
                slots.append(slot.tensor)
        return ImportedTensor(
            variable=move.variable,
            tensor=move.tensor,
            shape=self.bundle.shape(move.variable),
            state=tuple(slots),
            why="" if slots else self.source.optimizers.why,
        )

    def _moves(self) -> Iterator[_Move]:
        network, model = self.source.network, self.trainer.model
        for feature, wide in self.source.wide:
            runs = _runs(wide.column, self.source.shape(wide.variable)[0], _FIRST_ID)
            yield self._move(
                wide.variable,
                f"wide/{feature}",
                ".",
                _rows_writer(runs, None, _missing(wide.column)),
            )
        if network.wide_bias is not None:
            yield self._dense_move(network.wide_bias, "wide_bias", _write)
        slots = {slot.name: slot for slot in model.schema.slots}
        seen = set[str]()
        for feature, column in self.source.inputs:
            if not isinstance(column, TableColumn) or column.variable in seen:
                continue
            seen.add(column.variable)
            n_rows, dim = self.source.shape(column.variable)
            kind = "frozen" if slots[feature].embedding.frozen else "deep"
            runs = _runs(column, n_rows, _FIRST_ID)
            writer = _rows_writer(runs, column.max_norm, _missing(column))
            target = f"{kind}/{dim}/{slots[feature].table}"
            yield self._move(column.variable, target, ".", writer)
        first = self._input_columns()
        for i, layer in enumerate(network.layers):
            name = f"towers.mlp.layers.{i}"
            writer = _write_transposed if i else _columns_writer(first)
            yield self._dense_move(layer.kernel, f"{name}.weight", writer)
            yield self._dense_move(layer.bias, f"{name}.bias", _write)
            if layer.norm is not None:
                norm = f"towers.mlp.norms.{i}"
                for op, part in (
                    (layer.norm.gamma, "weight"),
                    (layer.norm.beta, "bias"),
                    (layer.norm.mean, "running_mean"),
                    (layer.norm.variance, "running_var"),
                ):
                    if op is not None:
                        yield self._dense_move(op, f"{norm}.{part}", _write)
        if network.output is not None:
            yield self._dense_move(network.output.kernel, "outputs.mlp.weight", _write_transposed)
            yield self._dense_move(network.output.bias, "bias", _write)

    def _move(self, op: str, target: str, mark: str, writer: _Writer) -> _Move:
        return _Move(
            variable=self.keys[op],
            tensor=f"{target}{mark}weight",
            state=f"{target}{mark}{{}}",
            write=writer,
        )

    def _dense_move(self, op: str, name: str, writer: _Writer) -> _Move:
        return _Move(
            variable=self.keys[op],
            tensor=f"module/{name}",
            state=f"optimizer/{name}/{{}}",
            write=writer,
        )

    def _input_columns(self) -> NDArray[np.int64]:
        """Return our column of the deep input for each of TensorFlow's, in their order."""
        layout = self.trainer.model.layout.columns
        columns: list[NDArray[np.int64]] = []
        for feature, column in self.source.inputs:
            span = layout[feature]
            own = np.arange(span.start, span.stop)
            if isinstance(column, CountColumn):
                order = np.empty(len(own), np.int64)
                for rows, start in _runs(column, len(own), 0):
                    order[rows] = np.arange(start, start + rows.stop - rows.start)
                own = own[order]
            columns.append(own)
        return np.concatenate([np.empty(0, np.int64), *columns])


_Writer = Callable[[NDArray[Any], NDArray[Any], bool], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Move:
    """Where a variable goes: names of our checkpoint's tensors, and how it is written there."""

    variable: str
    tensor: str
    state: str  # with a gap for the name of the state
    write: _Writer  # target, TensorFlow's tensor, whether it is state


def _write(target: NDArray[Any], source: NDArray[Any], is_state: bool) -> None:
    if source.size != target.size:
        raise CheckpointError(
            f"got a variable of shape {list(source.shape)}, expected {list(target.shape)}; the "
            "model is damaged, export it again"
        )
    target[...] = source.reshape(target.shape)


def _write_transposed(target: NDArray[Any], source: NDArray[Any], is_state: bool) -> None:
    target[...] = source.T


def _columns_writer(columns: NDArray[np.int64]) -> _Writer:
    def write(target: NDArray[Any], source: NDArray[Any], is_state: bool) -> None:
        if source.shape[0] != len(columns) or len(columns) != target.shape[1]:
            raise FeatureError(
                f"got a first layer of {source.shape[0]} inputs, and columns of {len(columns)}; "
                "the model is damaged, export it again"
            )
        target[:, columns] = source.T

    return write


def _missing(column: TableColumn | NumberColumn | CountColumn) -> int | None:
    """Return the id, in TensorFlow's numbers, of a row that lacks the column."""
    return column.column.missing if isinstance(column, TableColumn) else None


def _rows_writer(runs: Runs, max_norm: float | None, missing: int | None) -> _Writer:
    def write(target: NDArray[Any], source: NDArray[Any], is_state: bool) -> None:
        if not is_state:
            target[:_FIRST_ID] = 0.0  # TensorFlow leaves unseen and missing values out
        for rows, start in runs:
            own = target[start : start + rows.stop - rows.start]
            own[...] = source[rows]
            if max_norm is not None and not is_state:
                norms = np.sqrt(np.square(own).sum(axis=1, keepdims=True))
                own *= max_norm / np.maximum(norms, max_norm)
            if missing is not None and rows.start <= missing < rows.stop and not is_state:
                target[_MISSING_ID] = own[missing - rows.start]

    return write


def _runs(column: TableColumn | NumberColumn | CountColumn, n_rows: int, first: int) -> Runs:
    """Return where TensorFlow's rows are among ours: buckets of unseen values come first here."""
    ids = column.column if isinstance(column, (TableColumn, CountColumn)) else None
    if not isinstance(ids, IdColumn) or ids.kind != "vocabulary" or not ids.buckets:
        return [(slice(0, n_rows), first)]
    known = n_rows - ids.buckets
    return [(slice(0, known), first + ids.buckets), (slice(known, n_rows), first)]


def _restart(trainer: Trainer) -> None:
    """Start the optimizers from the weights that were written."""
    step = trainer.step
    for name, table in trainer.model.tables.items():
        if not name.startswith("frozen"):
            table.attach(step.wide if name == "wide" else step.deep)
    for update in (step.dense, step.wide_bias):
        if update is not None:
            update.restart()
