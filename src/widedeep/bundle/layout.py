"""BundleModel: what scoring must know of a model beside its schema and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import BundleError
from widedeep.kernels.score import ACTIVATIONS
from widedeep.options import check_types
from widedeep.schema import Schema

__all__ = ["BundleHead", "BundleModel", "DeepColumn", "Engine", "check_weights"]

Engine = Literal["native", "onnx"]
HeadKind = Literal["binary", "multiclass", "regression"]
Link = Literal["identity", "sigmoid", "softmax", "exp"]
# The first is that of a head that names none.
LINKS: Mapping[str, tuple[Link, ...]] = {
    "binary": ("sigmoid",),
    "multiclass": ("softmax",),
    "regression": ("identity", "exp", "sigmoid"),
}
WideCombiner = Literal["sum", "mean", "sqrtn"]
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleHead:
    """One head's columns among the logits.

    Args:
        name: ``""`` for a model with one head.
        kind: ``"binary"``, ``"multiclass"`` or ``"regression"``.
        start: First column.
        stop: One past the last column.
        classes: Names of the classes in order, if they have names.
        own_link: From logits to scores, where it is not the kind's: ``"exp"`` or ``"sigmoid"`` for
            a regression.
    """

    name: str
    kind: HeadKind
    start: int
    stop: int
    classes: tuple[str, ...] = ()
    own_link: Link | None = None

    def __post_init__(self) -> None:
        check_types(self, f"head {self.name!r}", BundleError)
        if self.link not in LINKS[self.kind]:
            raise BundleError(
                f"head {self.name!r}: got link={self.link!r} for a {self.kind} head, expected one "
                f"of {LINKS[self.kind]}"
            )
        least, most = (2, self.stop) if self.kind == "multiclass" else (1, 1)
        if not least <= self.stop - self.start <= most:
            raise BundleError(
                f"head {self.name!r}: got columns {self.start} to {self.stop} for a "
                f"{self.kind} head, expected {'two or more' if least == 2 else 'one'}"
            )

    @property
    def link(self) -> Link:
        """From logits to scores: the kind's first of :data:`LINKS`, or another of them."""
        return self.own_link or LINKS[self.kind][0]


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
    combiner: WideCombiner | None = None

    def __post_init__(self) -> None:
        check_types(self, f"deep column {self.name!r}", BundleError)


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleModel:
    """A model's shape: heads, hidden layers, and which feature goes where.

    Args:
        heads: They share out the logits' columns in order.
        activation: Of the hidden layers: ``"relu"``, ``"gelu"``, ``"tanh"``, ``"elu"``,
            ``"leaky_relu"``, ``"silu"`` or ``"none"``.
        hidden_units: Width of each hidden layer of the standard tower; empty without one.
        wide: Features of the wide part.
        wide_combiner: How a feature's several weights are combined; numbers are summed.
        deep: Features of the concatenated deep input, in column order, without gaps.

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

    def __post_init__(self) -> None:
        check_types(self, "model", BundleError)
        if self.activation not in ACTIVATIONS:
            raise BundleError(f"got activation={self.activation!r}, expected one of {ACTIVATIONS}")
        _check_contiguous("head", self.heads)
        _check_contiguous("deep column", self.deep)
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
        """Return the model as plain lists and dicts."""
        value = asdict(self)
        for head in value["heads"]:
            if head["own_link"] is None:  # as earlier versions wrote it
                del head["own_link"]
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
            }
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise BundleError(
                f"got a model description that does not fit this version ({error}); export again"
            ) from error


def _check_contiguous(what: str, ranges: tuple[BundleHead, ...] | tuple[DeepColumn, ...]) -> None:
    at = 0
    for entry in ranges:
        if entry.start != at or entry.stop <= entry.start:
            raise BundleError(
                f"{what} {entry.name!r}: got columns {entry.start} to {entry.stop}, "
                f"expected one or more from {at} on"
            )
        at = entry.stop


def check_weights(
    schema: Schema, model: BundleModel, weights: Mapping[str, NDArray[Any]], engine: Engine
) -> None:
    """Raise a :class:`BundleError` unless all weights are there, finite, and of their shapes."""
    expected = _expected_shapes(schema, model, weights, engine)
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


def check_finite(weights: Mapping[str, NDArray[Any]]) -> None:
    """Raise a :class:`BundleError` that names the first tensor with a NaN or an infinity."""
    for name, array in weights.items():
        for start in range(0, len(array), _ROWS_AT_ONCE):
            rows = array[start : start + _ROWS_AT_ONCE]
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                raise BundleError(
                    f"tensor {name!r} (row {start + int(finite.argmin())}): got NaN or infinity, "
                    "expected finite numbers; the training diverged: lower its learning rates"
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
    if engine == "native" and model.deep:
        inputs = model.width
        for layer, units in enumerate(model.hidden_units):
            shapes[f"mlp/{layer}/weight"] = (units, inputs)
            shapes[f"mlp/{layer}/bias"] = (units,)
            inputs = units
        shapes["head/weight"] = (model.n_logits, inputs)
    return shapes


def _of_width(schema: Schema, column: DeepColumn) -> slice:
    start = schema.dense_layout[column.name].start if column.name in schema.dense_layout else 0
    return slice(start, start + column.stop - column.start)
