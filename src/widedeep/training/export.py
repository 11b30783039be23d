"""From a trained model to a bundle: its towers as a program or as ONNX, agreement of scores."""

from __future__ import annotations

import copy
import io
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep.bundle import Bundle, BundleSequence, write_bundle
from widedeep.bundle.calibration import Calibration, PriorCorrection, fit_isotonic, fit_platt
from widedeep.bundle.graph import (
    Forward,
    attention_output,
    sequence_shapes,
    share_output,
    stage_columns,
    stage_sequences,
    vector_output,
)
from widedeep.bundle.items import item_ids
from widedeep.bundle.layout import LINKS
from widedeep.bundle.program import Program
from widedeep.bundle.weights import SharedWeights
from widedeep.bundle.write import check_path, round_bundle
from widedeep.data.batch import Batch
from widedeep.data.fragments import column_stream
from widedeep.data.made_up_rows import made_up_rows
from widedeep.data.sources import Data, open_source
from widedeep.data.transform import Transform
from widedeep.errors import BundleError
from widedeep.features.spec import item_columns
from widedeep.kernels import Scorer
from widedeep.kernels.packed_rows import TableKind
from widedeep.kernels.torch_ops import Float64Scorer
from widedeep.models.tower import DeepInput, PaddedSequence
from widedeep.models.two_tower import TwoTowerTower
from widedeep.models.wide_deep import WideDeep, add_logits
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import shared_failures
from widedeep.traces import traced
from widedeep.training.evaluation import (
    Evaluator,
    bundle_model,
    bundle_weights,
    evaluating,
    standard_tower,
)
from widedeep.training.state import TrainState
from widedeep.training.trace_towers import NotExpressible, trace_towers

_MADE_UP = "the rows made up from the schema"
_ITEMS_AT_ONCE = 16_384  # that are checked before training


_TOLERANCE = 1e-6  # of max(1, |score|)
_ONNX_TOLERANCE = 1e-4  # its products are summed in an order of their own
_ROWS_ALONE = 4
_ROUNDING = 16.0  # times the bundle's own against float64: what float32 may explain
Floats = NDArray[Any]
ByHead = Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerLogits:
    """What the trainer computes of some rows, for the bundle to agree with."""

    title: str  # What the rows are
    data: Any
    logits_BC: NDArray[np.float32]


def trainer_logits(
    state: TrainState, evaluator: Evaluator, rows: Sequence[Mapping[str, Any]]
) -> list[TrainerLogits]:
    """Score a sample of the training data, the warm-up rows and rows made up; all ranks call it."""
    return [
        TrainerLogits(title=title, data=data, logits_BC=_exact_logits(evaluator, data))
        for title, data in _comparison_data(state, evaluator.transform, rows)
    ]


def check_agreement(
    model: WideDeep,
    bundle: Bundle,
    comparisons: Sequence[TrainerLogits],
    calibration: Mapping[str, Calibration],
    path: Path,
) -> None:
    """Score rows by a bundle that was just read from disk, and compare with its trainer."""
    for expected in comparisons:
        scores = _check_heads(model, bundle, expected.logits_BC, calibration, path)
        batches, where = list(bundle.batches(expected.data)), f"{path}: of {expected.title}"
        _check_logits(model, bundle, batches, expected.logits_BC, scores, where)
        if bundle.manifest.engine != "native":
            _check_alone(bundle, expected.data, where)


def _comparison_data(
    state: TrainState, transform: Transform, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    sample = _shared_table(state.step.ranks, state.warmup.sample)
    if sample is not None:
        yield "a sample of the training data", sample
    if rows:
        columns = transform.columns(targets=False)
        yield "the warm-up rows", [{name: row.get(name) for name in columns} for row in rows]
    made_up = made_up_rows(transform)
    if made_up:
        yield _MADE_UP, made_up
    elif sample is None and not rows:
        raise BundleError(
            "got no rows to compare the bundle with its trainer on; give warmup=[...] a few"
        )


def _shared_table(ranks: Ranks, table: pa.Table | None) -> pa.Table | None:
    """Return the first rank's table on all ranks."""
    if ranks.size == 1:
        return table
    sink = io.BytesIO()
    if ranks.is_first and table is not None:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    data = ranks.broadcast(sink.getvalue(), "a sample of the training data")
    return pa.ipc.open_stream(data).read_all() if data else None


def _exact_logits(evaluator: Evaluator, data: object) -> NDArray[np.float32]:
    """Return the model's logits, in full float32 on any device; all ranks call it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return evaluator.logits(data, by_modules=True)
    finally:
        torch.set_float32_matmul_precision(before)


def _check_heads(
    model: WideDeep,
    bundle: Bundle,
    logits_BC: NDArray[np.float32],
    calibration: Mapping[str, Calibration],
    path: Path,
) -> ByHead:
    """Hold each head's predictions against the bundle's scores of the same logits."""
    expected: dict[str, Floats] = {}
    all_logits = torch.from_numpy(logits_BC).double()
    for index, (own, head) in enumerate(zip(model.heads, bundle.model.heads, strict=True)):
        predictions = model.losses.predictions(index, all_logits).numpy()
        logits = all_logits[:, model.head_slices[index]].numpy()
        scores = head.scores(logits_BC)
        name = f"head {head.name!r} ({type(own).__name__})".replace("head ''", "the head")
        other_shape = predictions.shape != scores.shape
        row = 0 if other_shape else _worst_row(predictions, scores, _TOLERANCE)
        if row >= 0:
            got = "another shape" if other_shape else f"{predictions[row]}"
            raise BundleError(
                f"{path}: not written: {name} predicts {got} where the bundle would score "
                f"{scores[row]} (row 0 of these logits: {logits[0].tolist()}), for a bundle knows "
                f"its link {head.link!r} alone; give the head the link that its predictions() are "
                f"({', '.join(map(repr, LINKS[head.kind]))}), or serve the model from its "
                "checkpoint"
            )
        expected[head.name] = scores
        if head.name in calibration:
            expected[head.name] = calibration[head.name].probabilities(logits[:, 0])
            stored = head.scores(logits_BC, bundle.calibration.get(head.name))
            if (row := _worst_row(expected[head.name], stored, 0.0)) >= 0:
                raise BundleError(
                    f"{path}: not written: {name} is calibrated to "
                    f"{expected[head.name][row]}, as read from disk to {stored[row]} (row {row})"
                )
    return expected


def _float64_logits(model: WideDeep, bundle: Bundle, batch: Batch) -> NDArray[np.float64]:
    """Return the logits in float64: what rounding moved is the difference to the bundle's."""
    new_scorer = cast("type[Scorer]", Float64Scorer)
    if bundle.manifest.engine == "native":
        exact = Forward(bundle.schema, bundle.model, bundle.weights, new_scorer=new_scorer)
        return cast("NDArray[np.float64]", exact.logits(batch))
    wide_part = replace(bundle.model, deep=())
    wide = Forward(bundle.schema, wide_part, bundle.weights, new_scorer=new_scorer)
    with evaluating(model), torch.no_grad():
        deep_BC = _copied(model, torch.float64).deep_logits(_in_float64(model, model.gather(batch)))
    assert deep_BC is not None
    logits_BC: NDArray[np.float64] = wide.logits(batch) + deep_BC.numpy()
    return logits_BC


def _in_float64(model: WideDeep, inputs: DeepInput) -> DeepInput:
    concat_BX = inputs.concat_BX.cpu().double()
    sequences = {
        name: replace(
            sequence,
            values_ND=sequence.values_ND.cpu().double(),
            offsets=sequence.offsets.cpu(),
            ids_N=None if sequence.ids_N is None else sequence.ids_N.cpu(),
            weights_N=None if sequence.weights_N is None else sequence.weights_N.cpu().double(),
        )
        for name, sequence in inputs.sequences.items()
    }
    return replace(
        inputs,
        concat_BX=concat_BX,
        dense_BK=concat_BX[:, model.gathered.dense],
        sequences=sequences,
        extra={name: x.cpu().double() for name, x in inputs.extra.items()},
    )


def _check_logits(
    model: WideDeep,
    bundle: Bundle,
    batches: Sequence[Batch],
    logits_BC: NDArray[np.float32],
    scores: ByHead,
    where: str,
) -> None:
    bundle_BC = np.concatenate([bundle.logits(batch) for batch in batches])
    engine, divided = bundle.manifest.engine, model.shard[1] > 1
    limit = _ONNX_TOLERANCE if engine == "onnx" else _TOLERANCE
    if engine == "graph" and divided:  # in float64 it would take the rows of all ranks
        limit *= _ROUNDING
    row = _worst_row(logits_BC, bundle_BC, limit)
    if row >= 0 and (engine == "native" or (engine == "graph" and not divided)):
        exact_BC = np.concatenate([_float64_logits(model, bundle, batch) for batch in batches])
        rounding = _ROUNDING * float(np.abs(bundle_BC - exact_BC).max(initial=0.0))
        row = _worst_row(logits_BC, bundle_BC, limit, rounding)
    if row < 0:
        return
    heads = bundle.scores_of(bundle_BC)
    by_head = heads if isinstance(heads, dict) else {bundle.model.heads[0].name: heads}
    differs_B = np.abs(logits_BC - bundle_BC).max(axis=1) > limit
    comparison = "; ".join(
        f"{name + ': ' if name else ''}the trainer predicts {scores[name][row]}, the bundle scores "
        f"{column[row]}"
        for name, column in by_head.items()
    )
    raise BundleError(
        f"{where}, row {row} and {int(differs_B.sum()) - 1} more of {len(differs_B)} score "
        f"otherwise than the trainer predicts: {comparison} (logits {logits_BC[row].tolist()} and "
        f"{bundle_BC[row].tolist()}); the bundle was not written. A part of the model that a "
        "bundle does not carry, such as a tower that draws numbers or was changed by hand, makes "
        "such a difference"
    )


def _check_alone(bundle: Bundle, data: Any, where: str) -> None:
    """Refuse a tower that looks across rows: a score would depend on what else is asked."""

    def logits(rows: Any) -> Floats:
        return np.concatenate([bundle.logits(batch) for batch in bundle.batches(rows)])

    beside_BC = logits(data[:_ROWS_ALONE])
    alone_BC = np.concatenate([logits(data[row : row + 1]) for row in range(len(beside_BC))])
    row = _worst_row(beside_BC, alone_BC, _ONNX_TOLERANCE)
    if row >= 0:
        raise BundleError(
            f"{where}, row {row} has the logits {alone_BC[row].tolist()} alone and "
            f"{beside_BC[row].tolist()} beside others; the bundle was not written. A tower looks "
            "across the rows of a batch, as a mean over dim 0 does: compute each row's output from "
            "that row (nn.BatchNorm1d does so when it scores)"
        )


def _worst_row(expected: Floats, actual: Floats, limit: float, rounding: float = 0.0) -> int:
    """Return the row that differs most beyond the limit, or -1; what is not finite differs."""
    allowed = np.maximum(limit * np.maximum(1.0, np.abs(expected)), rounding)
    with np.errstate(invalid="ignore"):
        excess = np.abs(np.float64(expected) - actual) - allowed
    excess = np.nan_to_num(excess, nan=np.inf).reshape(len(excess), -1).max(axis=1)
    row = int(excess.argmax())
    return row if excess[row] > 0 else -1


def _copied(model: WideDeep, dtype: torch.dtype) -> WideDeep:
    """Return a model with towers of its own, on the CPU."""
    model = copy.copy(model)
    model._modules = {
        name: None if module is None else copy.deepcopy(module).to("cpu", dtype)
        for name, module in model._modules.items()
    }
    return model


class _Towers(nn.Module):
    """A model's towers as a module of plain tensors, which notes the sequences that they read."""

    def __init__(self, model: WideDeep) -> None:
        super().__init__()
        if model.device.type != "cpu":
            model = _copied(model, torch.float32)
        self.towers = model.towers
        self.outputs = model.outputs
        self.join = model.join
        self.numbers = model.numbers
        self.sequences: set[str] = set()
        self._model = [model]  # in a list: not a submodule

    def inputs(self) -> dict[str, Tensor]:
        """Return an example of two rows, by the names that the graph's inputs have."""
        layout = self._model[0].gathered
        example = {"concat_BX": torch.zeros(2, layout.width)}
        for name, columns in layout.extra.items():
            example[f"extra/{name}"] = torch.zeros(2, columns.stop - columns.start)
        for name in layout.sequences:
            places, width = layout.maxlen.get(name, 1), layout.dims[name]
            sequence = BundleSequence(name=name, width=width, maxlen=places)
            values, mask, weights = sequence_shapes(sequence)
            example[values] = torch.zeros(2, places, width)
            example[mask] = torch.ones(2, places, dtype=torch.bool)
            example[weights] = torch.ones(2, places)
        return example

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the towers' part of the logits, (B, C)."""
        logits_BC = self._model[0].deep_logits(self.deep_input(*tensors))
        assert logits_BC is not None
        return logits_BC

    def parts(self, inputs: DeepInput) -> dict[str, Tensor]:
        """Return what each tower adds to the logits, (B, C) or (B, M, C)."""
        return self._model[0].tower_logits(inputs)

    def deep_input(self, *tensors: Tensor) -> DeepInput:
        """Return the input of towers that these tensors make."""
        layout = self._model[0].gathered
        inputs = iter(tensors)
        concat_BX = next(inputs)
        return DeepInput(
            concat_BX=concat_BX,
            layout=layout.columns,
            dense_BK=concat_BX[:, layout.dense],
            extra={name: next(inputs) for name in layout.extra},
            sequences={
                name: PaddedSequence(name, next(inputs), next(inputs), next(inputs), self.sequences)
                for name in layout.sequences
            },
        )


class _ExplainedTowers(nn.Module):
    """The towers' part of the logits, its shares, their attention, and vectors of two towers."""

    def __init__(self, towers: _Towers, shares: Sequence[str]) -> None:
        super().__init__()
        self.towers = towers
        self.shares = shares
        self.attention: list[str] = []  # names of the weights, once it was called
        self.vectors: list[str] = []  # sides that have a vector, once it was called

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the sum, several towers' shares (B, C), weights (B, T) and vectors (B, D)."""
        attention: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        inputs = self.towers.deep_input(*tensors)
        inputs = replace(inputs, attention=attention, vectors=vectors)
        parts = list(self.towers.parts(inputs).values())
        means = [part if part.dim() == 2 else part.mean(dim=1) for part in parts]
        total = add_logits(means)
        assert total is not None
        self.attention, self.vectors = list(attention), list(vectors)
        shares = means if self.shares else ()
        return total, *shares, *attention.values(), *vectors.values()

    def names(self) -> list[str]:
        """Return the names of the results after the first, once it was called."""
        return [
            *map(share_output, self.shares),
            *map(attention_output, self.attention),
            *map(vector_output, self.vectors),
        ]


def tower_graph(model: WideDeep) -> tuple[bytes, frozenset[str]]:
    """Return the towers of a model as a serialised ONNX graph, and the sequences that they read."""
    names = ", ".join(repr(name) for name in model.towers)
    towers = _Towers(model).eval()
    example = towers.inputs()
    explained = _ExplainedTowers(towers, model.shares).eval()
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.no_grad():
                explained(*example.values())
            outputs = ["logits_BC", *explained.names()]
            torch.onnx.export(
                explained,
                tuple(example.values()),
                buffer,  # type: ignore[arg-type]  # this exporter takes files too
                input_names=list(example),
                output_names=outputs,
                dynamic_axes={name: {0: "B"} for name in [*example, *outputs]},
                dynamo=False,
            )
    except ImportError as error:
        raise BundleError(
            f"exporting towers {names} needs ONNX; run: pip install 'widedeep[onnx]'"
        ) from error
    except Exception as error:
        raise BundleError(f"towers {names} cannot be exported to ONNX: {error}") from error
    for name in sorted(towers.sequences - model.layout.maxlen.keys()):
        raise BundleError(
            f"towers {names} read the sequence {name!r} of any length, and a bundle's graph has "
            f"shapes of one length; give the feature a bound (maxlen=50) and train again, or serve "
            "the model from its checkpoint"
        )
    return buffer.getvalue(), frozenset(towers.sequences)


def tower_program(
    model: WideDeep, sequences: frozenset[str] | None = None
) -> tuple[Program, dict[str, NDArray[np.float32]], frozenset[str]]:
    """Return the towers of a model as a bundle's program, its tensors, and the sequences it reads.

    Raises:
        NotExpressible: If a tower does what a program has no operation for.
    """
    bounded = frozenset(model.gathered.maxlen)
    offered = bounded if sequences is None else sequences
    towers = _Towers(model).eval()
    elements, sizes = _input_elements(model, offered)
    inputs = towers.inputs()
    traced = _ExplainedTowers(towers, model.shares).eval()
    own = [elements.get(name) for name in inputs]
    program, tensors = trace_towers(traced, list(inputs.values()), own, sizes, traced.names)
    read = frozenset(towers.sequences)
    if not read <= bounded:
        raise NotExpressible(f"the sequences {sorted(read - bounded)} of any length")
    return (program, tensors, read) if read == offered else tower_program(model, read)


def _input_elements(
    model: WideDeep, sequences: frozenset[str]
) -> tuple[dict[str, NDArray[np.int64]], list[int]]:
    """Return the elements of the towers' inputs by name, and the sizes of the three stages."""
    described = bundle_model(model, sequences)
    stages = zip(
        stage_columns(model.schema, described),
        stage_sequences(model.schema, described),
        strict=True,
    )
    columns: dict[int, int] = {}  # Element by column of the deep input, extra tensors last
    elements: dict[str, NDArray[np.int64]] = {}
    end, sizes = 0, []
    for own_columns, own_sequences in stages:
        start = end
        for column in own_columns:
            columns |= {place: end + i for i, place in enumerate(range(column.start, column.stop))}
            end += column.stop - column.start
        for sequence in own_sequences:
            for name, shape in sequence_shapes(sequence).items():
                size = math.prod(shape)
                elements[name] = np.arange(end, end + size).reshape(shape)
                end += size
        sizes.append(end - start)
    ordered = np.array([columns[place] for place in range(len(columns))], np.int64)
    width = model.gathered.width
    elements["concat_BX"] = ordered[:width]
    for name, span in model.gathered.extra.items():
        stop = width + span.stop - span.start
        elements[f"extra/{name}"] = ordered[width:stop]
        width = stop
    return elements, sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerDescription:
    """Towers as a bundle holds them: a program, or else an ONNX graph."""

    program: Program | None = None
    # Tensors of the program
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    onnx: bytes | None = None
    sequences: frozenset[str] = frozenset()  # Sequences that the towers read
    why_onnx: str = ""  # What no native operation can say


def describe_towers(model: WideDeep) -> TowerDescription:
    """Return the towers of a model as native operations where those can say it."""
    try:
        program, tensors, sequences = tower_program(model)
    except NotExpressible as error:
        graph, sequences = tower_graph(model)
        return TowerDescription(onnx=graph, sequences=sequences, why_onnx=str(error))
    return TowerDescription(program=program, tensors=tensors, sequences=sequences)


@traced("export")
def export_bundle(
    state: TrainState,
    evaluator: Evaluator,
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float] | None,
    warmup: Sequence[Mapping[str, Any]] | bool,
    calibration: Literal["platt", "isotonic"] | None,
    calibrate_on: object | None,
    negative_rate: float | None,
    posterior: object | None,
    items: Data | None,
    overwrite: bool,
    part_bytes: int | None = None,
    tables: TableKind = "fp32",
    on_message: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Write a trained model as a bundle; see :meth:`widedeep.Trainer.export`."""
    model = state.model
    if tables not in get_args(TableKind):
        raise BundleError(f"got tables={tables!r}, expected one of {get_args(TableKind)}")
    item_table, item_id = _items(model, items)
    custom = len(model.towers) > 0 and standard_tower(model) is None
    described = TowerDescription()
    if custom:
        with evaluating(model):
            described = describe_towers(model)
    if described.onnx is not None:
        names = ", ".join(repr(name) for name in model.towers)
        on_message(
            f"note: towers {names} go through ONNX Runtime, several times slower than natively "
            f"(not native: {described.why_onnx})"
        )
    if metrics is None:
        metrics = state.valid_metrics if state.step.is_current else {}
    ranks = state.step.ranks
    rows = _warmup_rows(state, warmup)
    if warmup is True:  # the first rank has read them
        rows = ranks.broadcast(list(rows), "warm-up rows")
    comparisons = trainer_logits(state, evaluator, rows)
    curve = _calibration(evaluator, calibration, calibrate_on, negative_rate)
    curves = {} if curve is None else {model.heads[0].name: curve}
    weights = {**bundle_weights(model, described.sequences), **described.tensors}
    write = partial(
        write_bundle,
        schema=model.schema,
        weights=SharedWeights(weights=weights, ranks=ranks, layouts=_layouts(model, ranks)),
        model=bundle_model(model, described.sequences),
        metrics=dict(metrics),
        warmup_rows=rows,
        config=state.config_tables(),
        calibration=curves,
        engine="native" if not custom else "graph" if described.onnx is None else "onnx",
        onnx=described.onnx,
        program=described.program,
        posterior_rows=posterior,
        items=item_table,
        item_id=item_id,
        part_bytes=state.distributed.part_bytes if part_bytes is None else part_bytes,
        check=lambda bundle: check_agreement(model, bundle, comparisons, curves, Path(path)),
    )
    if tables == "fp32" or not _reads_embeddings(model, weights, tables, on_message):
        return write(path, overwrite=overwrite)
    with shared_failures(ranks):
        if ranks.is_first:
            check_path(path, overwrite)
    target = Path(path)
    exact = target.with_name(f".{target.name}.fp32")  # agrees with the trainer to its last digits
    try:
        bundle = write(exact, overwrite=True)
        with shared_failures(ranks):
            if ranks.is_first:
                rows = [c.data for c in comparisons if c.title != _MADE_UP]
                rounded = round_bundle(bundle, target, tables, rows=rows, overwrite=overwrite)
                on_message(str(rounded.rounding))
    finally:
        if ranks.is_first:
            shutil.rmtree(exact, ignore_errors=True)
    return Bundle.load(target, verify=False)


def _reads_embeddings(
    model: WideDeep, weights: Iterable[str], tables: str, on_message: Callable[[str], None]
) -> bool:
    if model.towers and any(name.startswith("table/") for name in weights):
        return True
    on_message(f"note: the model reads no embeddings: there is nothing to keep in {tables}")
    return False


def _layouts(model: WideDeep, ranks: Ranks) -> dict[str, Layout]:
    """Return how the rows of tables are divided, by the names of a bundle's weights."""
    return {
        f"{'wide' if name == 'wide' else 'table'}/{logical}": layout
        for name, table in (model.tables.items() if ranks.size > 1 else ())
        for logical, layout in table.layouts.items()
    }


def check_items(model: WideDeep, items: Data | None) -> None:
    """Raise an error for items whose vectors a bundle could not keep, before training."""
    table, column = _items(model, items)
    if table is not None and column is not None:
        item_ids(table, column)
        transform = Transform(model.schema)
        for start in range(0, table.num_rows, _ITEMS_AT_ONCE):
            transform.rows(table.slice(start, _ITEMS_AT_ONCE).to_pylist())


def _items(model: WideDeep, items: Data | None) -> tuple[pa.Table | None, str | None]:
    """Read the items whose vectors a bundle keeps, and name the column of their ids."""
    if items is None:
        return None, None
    names = [tower.item for tower in model.towers.values() if isinstance(tower, TwoTowerTower)]
    if not names:
        raise BundleError(
            "got items for a model without two towers, which has no vectors of items; leave them "
            "out, or train it with deep = { name = 'two_tower' } among its towers"
        )
    spec = model.schema.spec
    column = spec.by_name[names[0]].input_columns[0]
    columns = sorted(item_columns(spec))
    with open_source(items, columns=columns, column_types=model.schema.input_types()) as source:
        chunks = [pa.Table.from_batches(chunk.to_batches()) for chunk in column_stream(source)]
    if not chunks:
        raise BundleError("the items: got no rows, expected one per item")
    return pa.concat_tables(chunks), column


def _warmup_rows(
    state: TrainState, warmup: Sequence[Mapping[str, Any]] | bool
) -> Sequence[Mapping[str, Any]]:
    if isinstance(warmup, bool):
        return state.warmup.rows if warmup else []
    rows = list(warmup) if isinstance(warmup, Sequence) else [None]
    if not all(isinstance(row, Mapping) for row in rows):
        raise BundleError(
            f"got warmup={warmup!r}, expected a list of rows (dicts), True for rows of the "
            "training data, or False for none"
        )
    return warmup


def _calibration(
    evaluator: Evaluator, kind: str | None, data: object | None, negative_rate: float | None
) -> Any:
    if kind is None and negative_rate is None:
        return None
    heads = evaluator.model.heads
    if len(heads) != 1 or heads[0].kind != "binary" or not heads[0].follows_link:
        raise BundleError(
            "calibration and negative_rate are for a model with one binary head; leave them out"
        )
    if kind is not None and negative_rate is not None:
        raise BundleError(
            "got calibration and negative_rate; a calibration fitted on real data corrects the "
            "rate too: give one"
        )
    if negative_rate is not None:
        return PriorCorrection(rate=negative_rate)
    if data is None:
        raise BundleError(
            f"got calibration={kind!r} without calibrate_on=...; give labelled data kept from "
            "training"
        )
    logits_B, labels_B, weight_B = evaluator.labelled_logits(data)
    if kind == "platt":
        return fit_platt(logits_B, labels_B, weight_B)
    if kind == "isotonic":
        return fit_isotonic(logits_B, labels_B, weight_B)
    raise BundleError(f"got calibration={kind!r}, expected 'platt' or 'isotonic'")
