"""From batches to logits: native layers, native programs, or towers run by ONNX Runtime."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.layout import BundleModel, BundleSequence, DeepColumn
from widedeep.bundle.program import TowerProgram, dense_forward
from widedeep.data.batch import Batch, Cells
from widedeep.errors import BundleError, SchemaError
from widedeep.features.spec import feature_side
from widedeep.kernels import ScoreProgram, Scorer
from widedeep.schema import Schema

_OUTPUT = "logits_BC"
_SHARE, _ATTENTION, _VECTOR = "share/", "attention/", "vector/"
_SIDES = ("query", "item", "both")


@dataclass(frozen=True, kw_only=True)
class TowerParts:
    """What explains the towers' part of the logits."""

    # What each tower adds, (B, C); empty for a single one
    shares: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    # Weights of the places of a sequence, (B, T), by ``TOWER/SEQUENCE``
    attention: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


class TowerGraph:
    """A graph from the gathered deep input to the towers' part of the logits."""

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        n_logits: int,
        extra: Mapping[str, int],
        sequences: Sequence[BundleSequence] = (),
    ) -> None:
        # In memory: the file may be replaced before another number of threads needs a session.
        self._graph = path.read_bytes()
        self._runtime = _runtime()
        self._sessions: dict[int, Any] = {}
        self._lock = threading.Lock()
        session = self._session(1)
        offered = {"concat_BX": [width], **{f"extra/{name}": [n] for name, n in extra.items()}}
        for sequence in sequences:
            offered |= sequence_shapes(sequence)
        self._inputs = [entry.name for entry in session.get_inputs()]
        for entry in session.get_inputs():
            if entry.name not in offered or entry.shape[1:] != offered[entry.name]:
                raise BundleError(
                    f"{path}: got the input {entry.name!r} of shape {entry.shape}, expected "
                    f"{offered} with B rows; export the towers with this version of widedeep"
                )
        outputs = session.get_outputs()
        names = [entry.name for entry in outputs]
        self._explaining = [n for n in names if n.startswith((_SHARE, _ATTENTION))]
        self.vectors = {
            entry.name.removeprefix(_VECTOR): int(entry.shape[1] or 0)
            for entry in outputs
            if entry.name.startswith(_VECTOR) and isinstance(entry.shape[1], int)
        }
        vectors = [_VECTOR + side for side in self.vectors]
        roles = (_OUTPUT, *self._explaining, *vectors)
        for entry in outputs:
            is_known = names.count(_OUTPUT) == 1 and entry.name in roles
            is_logits = not entry.name.startswith((_ATTENTION, _VECTOR))
            if not is_known or (is_logits and entry.shape[1:] not in ([n_logits], [None])):
                raise BundleError(
                    f"{path}: got the output {entry.name!r} of shape {entry.shape}, expected "
                    f"'{_OUTPUT}' of shape (B, {n_logits})"
                )

    def _session(self, threads: int) -> Any:
        with self._lock:
            if threads not in self._sessions:
                options = self._runtime.SessionOptions()
                options.intra_op_num_threads = threads
                options.inter_op_num_threads = 1
                try:
                    self._sessions[threads] = self._runtime.InferenceSession(
                        self._graph, options, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:  # ONNX Runtime has no base class of its own
                    raise BundleError(
                        f"ONNX Runtime cannot read the towers: {error}; install a newer one "
                        "(pip install -U 'widedeep[onnx]'), or export again"
                    ) from error
            return self._sessions[threads]

    def run(self, inputs: Mapping[str, NDArray[Any]], *, threads: int = 1) -> NDArray[np.float32]:
        """Return the towers' part of the logits, (B, C)."""
        session = self._session(threads)
        logits_BC: NDArray[np.float32]
        (logits_BC,) = session.run([_OUTPUT], {name: inputs[name] for name in self._inputs})
        return logits_BC

    def vector(self, side: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the vectors of a side, (B, D)."""
        vectors_BD: NDArray[np.float32]
        feed = {name: inputs[name] for name in self._inputs}
        (vectors_BD,) = self._session(1).run([_VECTOR + side], feed)
        return vectors_BD

    def explain(self, inputs: Mapping[str, NDArray[Any]]) -> TowerParts:
        """Return what explains the towers' part of the logits."""
        names = self._explaining
        arrays: list[NDArray[np.float32]] = []
        if names:
            arrays = self._session(1).run(names, {name: inputs[name] for name in self._inputs})
        return _tower_parts(dict(zip(names, arrays, strict=True)))


def _tower_parts(arrays: Mapping[str, NDArray[np.float32]]) -> TowerParts:
    """Return the outputs that explain a graph's or a program's first one."""

    def named(lead: str) -> dict[str, NDArray[np.float32]]:
        return {n.removeprefix(lead): a for n, a in arrays.items() if n.startswith(lead)}

    return TowerParts(shares=named(_SHARE), attention=named(_ATTENTION))


def share_output(tower: str) -> str:
    """Return the name of a graph's output that is what a tower adds to the logits."""
    return _SHARE + tower


def attention_output(sequence: str) -> str:
    """Return the name of a graph's output that is a tower's weights of a sequence's places."""
    return _ATTENTION + sequence


def vector_output(side: str) -> str:
    """Return the name of the output with the vectors of a side, ``"query"`` or ``"item"``."""
    return _VECTOR + side


def sequence_shapes(sequence: BundleSequence) -> dict[str, list[int]]:
    """Return the inputs of a graph that hold a sequence, and their shapes after B.

    Embeddings, zeros in padding; True where a place holds an id; weights, zeros in padding.
    """
    name, places = f"sequence/{sequence.name}", sequence.maxlen
    return {name: [places, sequence.width], f"{name}/mask": [places], f"{name}/weights": [places]}


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError(
            "this bundle has towers without a native form, which ONNX Runtime computes, and it is "
            "not installed; run: pip install 'widedeep[onnx]'"
        ) from error
    return onnxruntime


_FLOATS_PER_BLOCK = 1 << 23  # of padded sequences: 32 MB


class Forward:
    """Computes logits, float32, with the sums in the fixed order of the kernels' scorer."""

    def __init__(
        self,
        schema: Schema,
        model: BundleModel,
        weights: Mapping[str, NDArray[np.float32]],
        graph: TowerGraph | None = None,
        new_scorer: Callable[[int, int, int], Scorer] = Scorer,
        program: TowerProgram | None = None,
    ) -> None:
        self._graph, self._program = graph, program
        self._bias_C = weights["bias"]
        self._extra = {name: schema.dense_layout[name] for name in schema.spec.extra}
        slots = [slot.name for slot in schema.slots]
        tables = {slot.name: weights.get(f"table/{slot.table}") for slot in schema.slots}
        # Each sequence with its slot and its table
        self._sequences = [(s, slots.index(s.name), tables[s.name]) for s in model.sequences]
        self.scorer = scorer = new_scorer(len(slots), schema.n_dense, model.n_logits)
        for name in _query_first(schema, sorted(model.wide, key=slots.index)):
            is_item = feature_side(schema.spec, name) != "query"
            slot = slots.index(name)
            combiner = schema.slots[slot].wide_combiner(model.wide_combiner)
            scorer.add_wide(slot, weights[f"wide/{name}"], combiner, item=is_item)

        def add(columns: Iterable[DeepColumn], scorer: Scorer = scorer) -> None:
            add_inputs(scorer.add_dense, scorer.add_embedding, schema, columns, weights, slots)

        self._vector_scorers: dict[str, Scorer] = {}

        def add_program(scorer: Scorer, native: ScoreProgram) -> None:
            for columns, own in zip(
                stage_columns(schema, model), stage_sequences(schema, model), strict=True
            ):
                add(columns, scorer)
                add_sequences(scorer.add_sequence, own, tables, slots)
            scorer.set_program(native)

        if program is not None:
            _check_inputs(program, schema, model)
            add_program(scorer, program.native)
            for side, (native, width) in program.vectors().items():
                vector_scorer = new_scorer(len(slots), schema.n_dense, width)
                add_program(vector_scorer, native)
                self._vector_scorers[side] = vector_scorer
        elif graph is not None:
            add(model.deep)
        elif model.deep:
            _add_tower(scorer, add, schema, model, weights)

    def parts(
        self, batch: Batch, *, threads: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the wide and the deep part of the logits, each (B, C)."""
        arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
        try:
            wide_BC, deep_BC = self.scorer.forward(*arrays, threads=threads)
            if self._graph is not None:
                deep_BC = self._run_graph(self._graph, batch, threads)
        except ValueError as error:
            raise SchemaError(
                f"the batch does not fit the model ({error}); encode rows with the bundle's schema"
            ) from error
        return wide_BC, np.zeros_like(wide_BC) if deep_BC is None else deep_BC

    def explain(self, batch: Batch) -> TowerParts:
        """Return what explains the towers' part of the logits of a few rows."""
        if self._program is not None:
            arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
            return _tower_parts(self._program.shares(self.scorer.concat(*arrays, threads=1)))
        if self._graph is None:
            return TowerParts()
        return self._graph.explain(self._graph_inputs(batch, 1))

    def _run_graph(self, graph: TowerGraph, batch: Batch, threads: int) -> NDArray[np.float32]:
        floats = sum(s.maxlen * s.width for s, _, _ in self._sequences)
        rows = max(1, _FLOATS_PER_BLOCK // floats) if floats else max(1, len(batch))
        starts = range(0, max(1, len(batch)), rows)
        blocks = [batch if len(starts) == 1 else batch.slice(i, i + rows) for i in starts]
        return np.concatenate(
            [graph.run(self._graph_inputs(block, threads), threads=threads) for block in blocks]
        )

    def _graph_inputs(self, batch: Batch, threads: int) -> dict[str, NDArray[Any]]:
        arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
        inputs: dict[str, NDArray[Any]] = {
            "concat_BX": self.scorer.concat(*arrays, threads=threads)
        }
        for name, columns in self._extra.items():
            inputs[f"extra/{name}"] = np.ascontiguousarray(batch.dense_BK[:, columns])
        for sequence, slot, table in self._sequences:
            assert table is not None  # as check_weights saw
            inputs |= _padded(sequence, batch.cells(slot), table)
        return inputs

    @property
    def vector_sides(self) -> frozenset[str]:
        """Sides that have vectors: ``"query"`` and ``"item"`` of a two-tower model, else none."""
        return frozenset(self._vector_scorers if self._graph is None else self._graph.vectors)

    def vectors(self, side: str, batch: Batch, *, threads: int = 1) -> NDArray[np.float32]:
        """Return the vectors of a side, (B, D)."""
        if self._graph is not None:
            return self._graph.vector(side, self._graph_inputs(batch, threads))
        arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
        _, vectors_BD = self._vector_scorers[side].forward(*arrays, threads=threads)
        assert vectors_BD is not None
        return vectors_BD

    def logits(self, batch: Batch, *, threads: int = 1) -> NDArray[np.float32]:
        """Return the logits, (B, C)."""
        wide_BC, deep_BC = self.parts(batch, threads=threads)
        wide_BC += deep_BC
        wide_BC += self._bias_C
        return wide_BC


def _padded(
    sequence: BundleSequence, cells: Cells, table: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Return the inputs of :func:`sequence_shapes` for a batch."""
    if cells.longest > sequence.maxlen or int(cells.ids_N.max(initial=0)) >= len(table):
        raise ValueError(
            f"sequence {sequence.name!r}: got {cells.longest} ids up to "
            f"{cells.ids_N.max(initial=0)}, expected at most {sequence.maxlen} below {len(table)}"
        )
    rows, places_N = len(cells.offsets) - 1, cells.places(sequence.maxlen)
    values = np.zeros((rows * sequence.maxlen, sequence.width), np.float32)
    mask, weights = np.zeros(len(values), np.bool_), np.zeros(len(values), np.float32)
    values[places_N] = table[cells.ids_N]
    mask[places_N] = True
    weights[places_N] = 1.0 if cells.values_N is None else cells.values_N
    arrays = (values, mask, weights)
    shapes = sequence_shapes(sequence)
    return {
        name: array.reshape(rows, *shape)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True)
    }


class TowerForward:
    """Computes the standard tower from its concatenated input, bit for bit as :class:`Forward`."""

    def __init__(
        self, schema: Schema, model: BundleModel, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._scorer = scorer = Scorer(0, model.width, model.n_logits)

        def add(columns: Iterable[DeepColumn]) -> None:
            for column in columns:
                scorer.add_dense(column.start, column.stop - column.start)

        _add_tower(scorer, add, schema, model, weights)

    def logits(self, concat_BX: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
        """Return the deep part of the logits, (B, C)."""
        return dense_forward(self._scorer, np.ascontiguousarray(concat_BX), threads=threads)


def _add_tower(
    scorer: Scorer,
    add_columns: Callable[[Iterable[DeepColumn]], None],
    schema: Schema,
    model: BundleModel,
    weights: Mapping[str, NDArray[np.float32]],
) -> None:
    """Add the standard tower: the query's inputs, the item's, and the layers over both."""
    by_name = {column.name: column for column in model.deep}
    ordered = [by_name[name] for name in _query_first(schema, by_name)]
    query = [c for c in ordered if feature_side(schema.spec, c.name) == "query"]
    item = ordered[len(query) :]
    add_columns(query)
    if item:
        scorer.start_item_inputs()
        add_columns(item)
    for layer in tower_layers(model, weights, ordered):
        scorer.add_layer(*layer)


def add_inputs(
    add_dense: Callable[[int, int], None],
    add_embedding: Callable[[int, NDArray[np.float32], str], None],
    schema: Schema,
    columns: Iterable[DeepColumn],
    weights: Mapping[str, NDArray[np.float32]],
    slots: Sequence[str],
) -> None:
    """Add columns of the deep input to a scorer whose slots are these features."""
    tables = {slot.name: slot.table for slot in schema.slots}
    for column in columns:
        if column.source == "dense":
            add_dense(schema.dense_layout[column.name].start, column.stop - column.start)
        else:
            table = weights[f"table/{tables[column.name]}"]
            add_embedding(slots.index(column.name), table, column.combiner or "sum")


def tower_layers(
    model: BundleModel,
    weights: Mapping[str, NDArray[np.float32]],
    ordered: Sequence[DeepColumn],
) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None, str]]:
    """Return weights, bias and activation of each layer, the head last."""
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32] | None, str]] = [
        (weights[f"mlp/{i}/weight"], weights[f"mlp/{i}/bias"], model.activation)
        for i in range(len(model.hidden_units))
    ]
    layers.append((weights["head/weight"], None, "none"))
    # (X,) column of the model's input for each input of the first layer, as they are summed
    inputs = np.concatenate([np.arange(column.start, column.stop) for column in ordered])
    weight_HX, bias_H, activation = layers[0]
    layers[0] = np.ascontiguousarray(weight_HX[:, inputs]), bias_H, activation
    return layers


def stage_columns(schema: Schema, model: BundleModel) -> list[list[DeepColumn]]:
    """Return the columns of the query's, the item's and the pair's inputs of a program.

    Extra dense tensors follow the columns of the deep input.
    """
    columns, start = list(model.deep), model.width
    for name in schema.spec.extra:
        own = schema.dense_layout[name]
        stop = start + own.stop - own.start
        columns.append(DeepColumn(name=name, source="dense", start=start, stop=stop))
        start = stop
    return [[c for c in columns if feature_side(schema.spec, c.name) == s] for s in _SIDES]


def _check_inputs(program: TowerProgram, schema: Schema, model: BundleModel) -> None:
    """Raise a :class:`BundleError` unless a program reads what the model has in each stage."""
    got, expected = list(program.program.input_sizes), []
    for columns, own in zip(
        stage_columns(schema, model), stage_sequences(schema, model), strict=True
    ):
        shapes = [shape for sequence in own for shape in sequence_shapes(sequence).values()]
        expected.append(sum(c.stop - c.start for c in columns) + sum(map(math.prod, shapes)))
    if got != expected:
        raise BundleError(
            f"program: got {got} inputs of the query, the item and both, expected {expected}; "
            "export the model again"
        )


def stage_sequences(schema: Schema, model: BundleModel) -> list[list[BundleSequence]]:
    """Return the sequences of the three stages, which follow their columns."""
    sequences = model.sequences
    return [[s for s in sequences if feature_side(schema.spec, s.name) == side] for side in _SIDES]


def add_sequences(
    add_sequence: Callable[[int, NDArray[np.float32], int], None],
    sequences: Iterable[BundleSequence],
    tables: Mapping[str, NDArray[np.float32] | None],
    slots: Sequence[str],
) -> None:
    """Add sequences to a scorer whose slots are these features."""
    for sequence in sequences:
        table = tables[sequence.name]
        assert table is not None  # as check_weights saw
        add_sequence(slots.index(sequence.name), table, sequence.maxlen)


def _query_first(schema: Schema, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: _SIDES.index(feature_side(schema.spec, name)))
