"""A bundle's directory: what each file holds, and the description of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.calibration import Calibration, calibration_from_json, calibration_to_json
from widedeep.bundle.formula import Formula
from widedeep.bundle.items import ItemVectors
from widedeep.bundle.manifest import Engine, Manifest
from widedeep.bundle.plain_json import read_json, write_json
from widedeep.bundle.program import Program
from widedeep.bundle.weights import weight_files
from widedeep.data.batch import Batch
from widedeep.errors import BundleError
from widedeep.features import Combiner
from widedeep.files import map_tensors
from widedeep.kernels import lognormal_mean
from widedeep.kernels.packed_rows import PackedKind, PackedTable
from widedeep.kernels.score import ACTIVATIONS, score_function, sigmoid
from widedeep.options import check_types, check_value
from widedeep.schema import Schema, Slot

SCHEMA = "schema.safetensors"
CONFIG = "config.json"
METRICS = "metrics.json"
WARMUP = "warmup.json"
CALIBRATION = "calibration.json"
POSTERIOR = "posterior.safetensors"
GRAPH = "graph.onnx"

LabelKind = Literal["binary", "multiclass", "multilabel", "regression", "amount", "ranking"]
HeadKind = Literal["binary", "multiclass", "multilabel", "regression", "ranking"]
Link = Literal["identity", "sigmoid", "softmax", "exp", "expm1", "softplus", "ziln"]
# The default link of each kind comes first.
LINKS: Mapping[str, tuple[Link, ...]] = {
    "binary": ("sigmoid",),
    "multiclass": ("softmax",),
    "multilabel": ("sigmoid",),
    "regression": ("identity", "exp", "sigmoid", "expm1", "softplus", "ziln"),
    "ranking": ("identity",),
}
# Links of numbers that cannot be negative: counts and amounts.
AMOUNT_LINKS = ("exp", "softplus", "ziln")
WideCombiner = Literal["sum", "mean", "sqrtn"]
_ROWS_PER_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleHead:
    """One head's columns among the logits.

    Args:
        name: ``""`` for a model with one head.
        kind: ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"regression"`` or ``"ranking"``.
        start: First column.
        stop: One past the last column.
        classes: Names of the classes in order, if they have names.
        own_link: Link from logits to scores, where it is not the kind's default: ``"exp"``,
            ``"expm1"``, ``"softplus"``, ``"sigmoid"`` or ``"ziln"`` for a regression.
        through: Logit column of a binary head whose probability is a factor of this one's.
    """

    name: str
    kind: HeadKind
    start: int
    stop: int
    classes: tuple[str, ...] = ()
    own_link: Link | None = None
    through: int | None = None

    def __post_init__(self) -> None:
        check_types(self, f"head {self.name!r}", BundleError)
        if self.link not in LINKS[self.kind]:
            raise BundleError(
                f"head {self.name!r}: got link={self.link!r} for a {self.kind} head, expected one "
                f"of {LINKS[self.kind]}"
            )
        least, most = (2, self.stop) if self.kind == "multiclass" else (1, 1)
        if self.kind == "multilabel":
            most = self.stop
        if self.link == "ziln":
            least = most = 3
        if not least <= self.stop - self.start <= most:
            count = str(least) if least == most else f"{least} or more"
            raise BundleError(
                f"head {self.name!r}: got columns {self.start} to {self.stop} for a "
                f"{self.kind} head, expected {count}"
            )
        if self.through is not None and self.kind != "binary":
            raise BundleError(f"head {self.name!r}: got through for a {self.kind} head")

    @property
    def link(self) -> Link:
        """Link from logits to scores."""
        return self.own_link or LINKS[self.kind][0]

    @property
    def by_class(self) -> bool:
        """Whether a row has a score for each class."""
        return self.kind in ("multiclass", "multilabel")

    @property
    def label_kind(self) -> LabelKind:
        """Kind of labels whose metrics apply; ``"amount"`` for numbers of at least 0."""
        return "amount" if self.link in AMOUNT_LINKS else self.kind

    def scores(
        self, logits_BC: NDArray[np.float32], calibration: Calibration | None = None
    ) -> NDArray[np.float64]:
        """Return the scores of a model's logits: (B,), or (B, classes) for a head by class.

        Args:
            logits_BC: Logits of all heads.
            calibration: Calibration of the head, instead of its link.
        """
        columns = logits_BC[:, self.start : self.stop]
        logits = np.ascontiguousarray(columns, dtype=np.float64)
        if calibration is not None:
            return calibration.probabilities(logits[:, 0])
        link = self.link
        if link == "softmax":
            return _softmax(logits)
        if link == "ziln":
            return lognormal_mean(logits)
        if link == "sigmoid":
            if self.kind == "multilabel":
                return sigmoid(logits.ravel()).reshape(logits.shape)
            scores = sigmoid(logits[:, 0])
            if self.through is not None:
                scores *= sigmoid(logits_BC[:, self.through].astype(np.float64))
            return scores
        return logits[:, 0] if link == "identity" else score_function(link, logits[:, 0])

    def targets(
        self, schema: Schema, batch: Batch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the head's labels, NaN where a row has none, and the rows' weights for it."""
        assert batch.labels_BL is not None
        labels = batch.labels_BL[:, schema.label_layout[self.name]]
        column = schema.weight_columns.get(self.name)
        weight_B = batch.weight_B
        if column is not None:
            own_B = np.nan_to_num(batch.labels_BL[:, column], nan=0.0)
            weight_B = own_B if weight_B is None else own_B * weight_B
        return labels if self.kind == "multilabel" else labels[:, 0], weight_B


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    # Class after class: an order that does not depend on the number of rows.
    total = np.zeros(len(powers))
    for column in powers.T:
        total += column
    probabilities: NDArray[np.float64] = powers / total[:, None]
    return probabilities


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepColumn:
    """One feature's columns in the concatenated deep input.

    Args:
        name: The feature.
        source: ``"table"`` for a pooled embedding, ``"dense"`` for dense numbers.
        start: First column.
        stop: One past the last column.
        combiner: How a table's rows are pooled; None for dense numbers.
    """

    name: str
    source: Literal["table", "dense"]
    start: int
    stop: int
    combiner: Combiner | None = None

    def __post_init__(self) -> None:
        check_types(self, f"deep column {self.name!r}", BundleError)


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleSequence:
    """A sequence that the towers read: its embeddings, padded to one length.

    Args:
        name: The feature.
        width: D, width of its embeddings.
        maxlen: T, the places; a shorter sequence leaves zeros in the last ones.
    """

    name: str
    width: int
    maxlen: int

    def __post_init__(self) -> None:
        check_types(self, f"sequence {self.name!r}", BundleError)
        if self.width < 1 or self.maxlen < 1:
            raise BundleError(
                f"sequence {self.name!r}: got width={self.width} and maxlen={self.maxlen}, "
                "expected at least 1; export the model again"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleModel:
    """A model's shape: heads, hidden layers, and which feature goes where.

    Args:
        heads: Heads; their columns follow each other without a gap.
        activation: Activation of the hidden layers: ``"relu"``, ``"gelu"``, ``"tanh"``, ``"elu"``,
            ``"leaky_relu"``, ``"silu"`` or ``"none"``.
        hidden_units: Width of each hidden layer of the standard tower; empty without one.
        wide: Features of the wide part.
        wide_combiner: How a feature's several weights are combined; numbers are summed.
        deep: Features of the concatenated deep input, in column order, without gaps.
        towers: Number of weights of each tower beside the standard one, its output layer included;
            ``join`` is what joins them, ``numbers`` what turns numbers into fields.
        rank_by: Formula that a ranker ranks by (:class:`widedeep.bundle.formula.Formula`); None:
            the score of one head.
        sequences: Sequences that the towers read, beside the concatenated deep input.

    Example:
        >>> model = BundleModel(heads=(BundleHead(name="", kind="binary", start=0, stop=1),),
        ...                     wide=("job",))
        >>> BundleModel.from_json(model.to_json()) == model
        True
    """

    heads: tuple[BundleHead, ...]
    activation: str = "relu"
    hidden_units: tuple[int, ...] = ()
    wide: tuple[str, ...] = ()
    wide_combiner: WideCombiner = "sum"
    deep: tuple[DeepColumn, ...] = ()
    towers: Mapping[str, int] = field(default_factory=dict)
    rank_by: str | None = None
    sequences: tuple[BundleSequence, ...] = ()

    def __post_init__(self) -> None:
        check_types(self, "model", BundleError)
        if self.activation not in ACTIVATIONS:
            raise BundleError(f"got activation={self.activation!r}, expected one of {ACTIVATIONS}")
        _check_contiguous("head", self.heads)
        _check_contiguous("deep column", self.deep)
        binary = {head.start for head in self.heads if head.kind == "binary"}
        for head in self.heads:
            if head.through is not None and head.through not in binary - {head.start}:
                raise BundleError(
                    f"head {head.name!r}: got through={head.through}, expected the column of "
                    "another binary head"
                )
        if self.rank_by is not None:
            Formula(self.rank_by)
        if not self.heads:
            raise BundleError("got a model without a head, expected at least one")

    @property
    def n_logits(self) -> int:
        """C, the number of logit columns."""
        return self.heads[-1].stop

    @property
    def width(self) -> int:
        """X, the columns of the concatenated deep input."""
        return self.deep[-1].stop if self.deep else 0

    def to_json(self) -> dict[str, Any]:
        """Return the model as lists and dicts."""
        value = asdict(self)
        for head in value["heads"]:
            for name in ("own_link", "through"):  # as earlier versions wrote it
                if head[name] is None:
                    del head[name]
        for name in ("towers", "rank_by", "sequences"):  # as earlier versions wrote it
            if not value[name]:
                del value[name]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BundleModel:
        """Read what :meth:`to_json` gave.

        Raises:
            BundleError: If a key is missing, unknown or has a value outside its range.
        """
        try:
            heads = [{**head, "classes": tuple(head["classes"])} for head in value["heads"]]
            fields = {
                **value,
                "heads": tuple(BundleHead(**head) for head in heads),
                "deep": tuple(DeepColumn(**column) for column in value["deep"]),
                "hidden_units": tuple(value["hidden_units"]),
                "wide": tuple(value["wide"]),
                "sequences": tuple(BundleSequence(**s) for s in value.get("sequences", ())),
            }
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise BundleError(
                f"got a model description that does not fit this version ({error}); export again"
            ) from error


def _check_contiguous(what: str, ranges: tuple[BundleHead, ...] | tuple[DeepColumn, ...]) -> None:
    column = 0
    for entry in ranges:
        if entry.start != column or entry.stop <= entry.start:
            raise BundleError(
                f"{what} {entry.name!r}: got columns {entry.start} to {entry.stop}, "
                f"expected one or more from {column} on"
            )
        column = entry.stop


def check_weights(
    schema: Schema,
    model: BundleModel,
    weights: Mapping[str, NDArray[Any]],
    engine: Engine,
    program: Program | None = None,
) -> None:
    """Raise a :class:`BundleError` unless the weights have the model's names and shapes."""
    if (engine == "graph") != (program is not None):
        article = "without" if program is None else "with"
        raise BundleError(f"got engine={engine!r} {article} a program; export the model again")
    expected = _expected_shapes(schema, model, weights, engine)
    if program is not None:
        expected |= program.tensors
    for name in expected.keys() - weights.keys():
        raise BundleError(f"tensor {name!r} is missing from the weights; export the model again")
    for name in weights.keys() - expected.keys():
        raise BundleError(f"got tensor {name!r}, which the model has no use for; leave it out")
    for name, shape in expected.items():
        array = weights[name]
        if array.dtype != np.float32 or array.shape != shape:
            raise BundleError(
                f"tensor {name!r}: got {array.dtype} of shape {array.shape}, expected float32 "
                f"of shape {shape}; the weights belong to another schema or model"
            )


def check_finite(
    weights: Mapping[str, NDArray[Any]],
    row_of: Callable[[str, int], int] = lambda name, row: row,
) -> None:
    """Raise a :class:`BundleError` that names the first tensor with a NaN or an infinity."""
    for name, array in weights.items():
        for start in range(0, len(array), _ROWS_PER_BLOCK):
            rows = array[start : start + _ROWS_PER_BLOCK]
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                row = row_of(name, start + int(finite.argmin()))
                raise BundleError(
                    f"tensor {name!r} (row {row}): got NaN or infinity, expected finite numbers; "
                    "the training diverged: lower its learning rates"
                )


def _expected_shapes(
    schema: Schema, model: BundleModel, weights: Mapping[str, NDArray[Any]], engine: Engine
) -> dict[str, tuple[int, ...]]:
    slots = {slot.name: slot for slot in schema.slots}
    shapes: dict[str, tuple[int, ...]] = {"bias": (model.n_logits,)}
    for name in model.wide:
        if name not in slots or not slots[name].wide:
            raise BundleError(f"feature {name!r} is not in the wide part of the schema")
        shapes[f"wide/{name}"] = (slots[name].size, model.n_logits)
    for column in model.deep:
        width = column.stop - column.start
        if column.source == "table":
            if column.name not in slots or not slots[column.name].deep:
                raise BundleError(f"feature {column.name!r} is not in the deep part of the schema")
            slot = slots[column.name]
            shapes[f"table/{slot.table}"] = (slot.size, width)
        elif schema.dense_layout.get(column.name, slice(0, 0)) != _of_width(schema, column):
            raise BundleError(f"feature {column.name!r} has no {width} dense columns in the schema")
    for sequence in model.sequences:
        slot = _sequence_slot(sequence, slots)
        shapes[f"table/{slot.table}"] = (slot.size, sequence.width)
    if engine == "native" and model.deep:
        inputs = model.width
        for layer, units in enumerate(model.hidden_units):
            shapes[f"mlp/{layer}/weight"] = (units, inputs)
            shapes[f"mlp/{layer}/bias"] = (units,)
            inputs = units
        shapes["head/weight"] = (model.n_logits, inputs)
    return shapes


def _sequence_slot(sequence: BundleSequence, slots: Mapping[str, Slot]) -> Slot:
    slot = slots.get(sequence.name)
    if slot is None or not slot.deep or slot.combiner or slot.maxlen != sequence.maxlen:
        raise BundleError(
            f"feature {sequence.name!r} keeps no sequence of {sequence.maxlen} values in the "
            "schema; export the model again"
        )
    return slot


def _of_width(schema: Schema, column: DeepColumn) -> slice:
    start = schema.dense_layout[column.name].start if column.name in schema.dense_layout else 0
    return slice(start, start + column.stop - column.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """Rows with the scores that they had when the bundle was written."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # Raw rows, as a request gives them
    # By head, one score (or one list of class scores) per row
    scores: Mapping[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How tables of embeddings were rounded, and what that changed.

    A score changes by its distance from the unrounded model's, relative to max(1, |score|).

    Args:
        tables: Numbers of the tables: ``"bf16"``, ``"int8"`` or ``"int4"``.
        rows: Rows that were scored before and after; 0 if there were none.
        mean: Mean change of their scores.
        worst: Largest change of a score.
    """

    tables: PackedKind
    rows: int = 0
    mean: float = 0.0
    worst: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, "rounding", BundleError)

    def __str__(self) -> str:
        if not self.rows:
            return f"tables in {self.tables}"
        return (
            f"tables in {self.tables}: of {self.rows:,} rows, scores changed by {self.mean:.2g} "
            f"on average, {self.worst:.2g} at most"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleContents:
    """What a bundle's files hold."""

    schema: Schema
    model: BundleModel
    weights: Mapping[str, NDArray[np.float32]]
    config: Mapping[str, Any]  # Resolved configuration of the run
    metrics: Mapping[str, Any]
    calibration: Mapping[str, Calibration]  # By head
    warmup: Warmup = field(default_factory=Warmup)
    program: Program | None = None  # Towers of the engine "graph"
    # Of the last layer's weights, as fit_posterior returns it; empty without one
    posterior: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    items: ItemVectors | None = None  # Vectors of items, for retrieval
    rounding: Rounding | None = None  # None: tables of embeddings are float32


def write_contents(path: Path, contents: BundleContents) -> None:
    """Write the files into a directory, but for the weights and the warm-up rows."""
    # A served model has no use for values that its vocabularies leave out.
    contents.schema.without_tails().write(path / SCHEMA)
    config = {"run": contents.config, "model": contents.model.to_json()}
    if contents.program is not None:
        config["program"] = contents.program.to_json()
    write_json(path / CONFIG, config, "config")
    write_json(path / METRICS, contents.metrics, "metrics")
    write_calibration(path, contents.calibration)


def write_calibration(path: Path, calibration: Mapping[str, Calibration]) -> None:
    """Write the calibrations by head; nothing without any."""
    if calibration:
        curves = {head: calibration_to_json(curve) for head, curve in calibration.items()}
        write_json(path / CALIBRATION, curves, "calibration")


def write_warmup(path: Path, warmup: Warmup) -> None:
    """Write the warm-up rows and their scores."""
    write_json(path / WARMUP, {"rows": warmup.rows, "scores": warmup.scores}, "warmup")


def read_contents(path: Path, manifest: Manifest) -> BundleContents:
    """Read the files of a bundle, in the format that its manifest names."""
    schema = Schema.load(path / SCHEMA)
    if schema.fingerprint != manifest.schema_fingerprint:
        raise BundleError(
            f"{path / SCHEMA}: got the schema {schema.fingerprint[:12]}, the manifest "
            f"names {manifest.schema_fingerprint[:12]}: it is another model's; export again"
        )
    config = read_json(path / CONFIG)
    check_value(config, Mapping[str, Mapping[str, Any]], CONFIG)
    metrics = read_json(path / METRICS)
    check_value(metrics, Mapping[str, Any], METRICS)
    model, engine = BundleModel.from_json(config["model"]), manifest.engine
    weights = map_tensors(*weight_files(path))
    rounding = Rounding(**config["rounding"]) if "rounding" in config else None
    if rounding is not None:
        shapes = _expected_shapes(schema, model, weights, engine)
        weights = _packed_tables(weights, shapes, rounding.tables)
    contents = BundleContents(
        schema=schema,
        model=model,
        weights=weights,
        config=config["run"],
        metrics=metrics,
        calibration=_read_calibration(path / CALIBRATION),
        warmup=read_warmup(path),
        program=Program.from_json(config["program"]) if "program" in config else None,
        posterior=map_tensors(path / POSTERIOR) if (path / POSTERIOR).exists() else {},
        items=ItemVectors.read(path),
        rounding=rounding,
    )
    check_weights(schema, contents.model, contents.weights, engine, contents.program)
    return contents


def _packed_tables(
    weights: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], kind: PackedKind
) -> dict[str, NDArray[Any]]:
    """Return the weights, with the tables' bytes as tables of the widths expected."""
    packed = dict(weights)
    for name, array in weights.items():
        if name.startswith("table/") and name in shapes:
            if array.dtype != np.uint8 or array.ndim != 2:
                raise BundleError(
                    f"tensor {name!r}: got {array.dtype} of shape {array.shape}, expected rows of "
                    f"bytes in {kind}"
                )
            try:
                packed[name] = PackedTable(array, kind, shapes[name][1]).as_array()
            except ValueError as error:
                raise BundleError(f"tensor {name!r}: {error}") from error
    return packed


def _read_calibration(file: Path) -> dict[str, Calibration]:
    if not file.exists():
        return {}
    curves = read_json(file)
    check_value(curves, Mapping[str, Any], CALIBRATION)
    return {head: calibration_from_json(curve) for head, curve in curves.items()}


def read_warmup(path: Path) -> Warmup:
    """Return the warm-up rows; none while the bundle is being written."""
    file = path / WARMUP
    if not file.exists():
        return Warmup()
    value = read_json(file)
    check_value(value, Mapping[str, Any], WARMUP)
    check_value(value["rows"], list[Mapping[str, Any]], f"{WARMUP}: rows")
    scores = Mapping[str, list[float] | list[list[float]]]
    check_value(value["scores"], scores, f"{WARMUP}: scores")
    return Warmup(rows=value["rows"], scores=value["scores"])
