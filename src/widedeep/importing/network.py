"""An estimator's network, read from its graph: linear part, hidden layers, head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from widedeep.data.protobuf import UNREADABLE
from widedeep.errors import CheckpointError
from widedeep.importing.columns import (
    ColumnReader,
    CountColumn,
    DenseColumn,
    NumberColumn,
    TableColumn,
)
from widedeep.importing.saved_model import GraphReader, Op, SavedModel

HeadKind = Literal["binary", "multiclass", "multilabel", "regression", "poisson"]
_PREDICT = "tensorflow/serving/predict"
_ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Elu": "elu",
    "Selu": "selu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """Batch normalisation behind a layer: the operations that hold its variables."""

    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A hidden layer: the operations that hold its variables, and what follows it."""

    kernel: str
    bias: str
    activation: str | Mapping[str, Any] = "identity"
    norm: Norm | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WideColumn:
    """A column of the linear part, and the operation that holds its weights."""

    name: str
    column: TableColumn | NumberColumn | CountColumn
    variable: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What an estimator computes."""

    head: HeadKind = "binary"
    classes: tuple[str, ...] = ()  # Names of the classes; none where they are numbers
    wide: tuple[WideColumn, ...] = ()
    wide_bias: str | None = None
    # The input's parts in their order, with their names
    deep: tuple[tuple[str, DenseColumn], ...] = ()
    layers: tuple[Layer, ...] = ()
    output: Layer | None = None  # The deep part's logits
    notes: tuple[str, ...] = ()  # What is otherwise here than one may expect


def read_network(model: SavedModel) -> Network:
    """Read the network of a SavedModel's signature ``predict``.

    Raises:
        CheckpointError: If it is not that of an estimator of linear and deep parts.
        FeatureError: If a column is computed in a way that has no counterpart.
    """
    try:
        return _Reader(model).read()
    except UNREADABLE as error:
        raise CheckpointError(
            f"{model.path}: cannot follow its graph ({type(error).__name__}: {error}); it is "
            "damaged, or of a form that no canned estimator has: export it again"
        ) from error


class _Reader(GraphReader):
    def __init__(self, model: SavedModel) -> None:
        super().__init__(model)
        signatures = [s for s in model.signatures.values() if s.method == _PREDICT]
        named = [s for s in signatures if {"logits", "predictions"} & set(s.outputs)]
        if not named:
            raise CheckpointError(
                f"{model.path}: got signatures {sorted(model.signatures)} without 'logits' or "
                "'predictions', expected the SavedModel of a canned estimator (LinearClassifier, "
                "DNNRegressor, DNNLinearCombinedClassifier, ...); export it with "
                "estimator.export_saved_model"
            )
        self.outputs = named[0].outputs
        self.columns = ColumnReader(model, named[0].inputs)

    def read(self) -> Network:
        logits = self.outputs.get("logits", self.outputs.get("predictions", ""))
        for output_tensor in self.outputs.values():
            self.graph.check_no_circle(output_tensor)
        network = Network()
        for part in self._parts(logits):
            if self._is_linear(part):
                wide, wide_bias = self._linear(part)
                network = replace(network, wide=wide, wide_bias=wide_bias)
            else:
                output, layers, deep = self._deep(part)
                network = replace(network, output=output, layers=layers, deep=deep)
        head, classes = self._head(logits)
        return replace(network, head=head, classes=classes, notes=tuple(self.columns.notes))

    def _parts(self, logits: str) -> list[Op]:
        op, _ = self.graph.source(logits)
        if op.kind in ("AddV2", "Add"):
            return self.graph.inputs(op)
        return [op]

    def _is_linear(self, part: Op) -> bool:
        self._expect(part, "BiasAdd")
        return self._variable(part.inputs[1]).endswith("bias_weights")

    # ---- the linear part ------------------------------------------------------------------------

    def _linear(self, part: Op) -> tuple[tuple[WideColumn, ...], str]:
        total, _ = self.graph.source(part.inputs[0])
        sums = total.inputs if total.kind == "AddN" else (part.inputs[0],)
        columns = tuple(self._wide_column(tensor) for tensor in sums)
        return columns, self._holder(part.inputs[1])

    def _wide_column(self, tensor: str) -> WideColumn:
        op, _ = self.graph.source(tensor)
        name = _column_name(op.name, "weighted_sum")
        if op.kind == "MatMul":
            column = self.columns.dense(op.inputs[0], name)
            if isinstance(column, TableColumn):
                raise CheckpointError(
                    f"{self.model.path}: the linear part has the embedding {name!r}, which has no "
                    "counterpart; put its categorical column into the linear part instead, and "
                    "train the model again"
                )
            return WideColumn(name=name, column=column, variable=self._holder(op.inputs[1]))
        table = self.columns.dense(tensor, name)
        if not isinstance(table, TableColumn):
            self._refuse(op)
        return WideColumn(name=name, column=table, variable=table.variable)

    # ---- the deep part --------------------------------------------------------------------------

    def _deep(
        self, part: Op
    ) -> tuple[Layer, tuple[Layer, ...], tuple[tuple[str, DenseColumn], ...]]:
        product = self._op(part.inputs[0], "MatMul")
        output = Layer(kernel=self._holder(product.inputs[1]), bias=self._holder(part.inputs[1]))
        layers: list[Layer] = []
        tensor = product.inputs[0]
        while (layer := self._layer(tensor)) is not None:
            layers.append(layer[0])
            tensor = layer[1]
        return output, tuple(reversed(layers)), self._deep_columns(tensor)

    def _layer(self, tensor: str) -> tuple[Layer, str] | None:
        """Return a hidden layer that gives a tensor, and its input; None for the first input."""
        op, _ = self.graph.source(tensor)
        norm, hidden = self._norm(op)
        activation, linear = self._activation(hidden)
        if linear.kind != "BiasAdd":
            return None
        product = self._op(linear.inputs[0], "MatMul")
        layer = Layer(
            kernel=self._holder(product.inputs[1]),
            bias=self._holder(linear.inputs[1]),
            activation=activation,
            norm=norm,
        )
        return layer, product.inputs[0]

    def _norm(self, op: Op) -> tuple[Norm | None, Op]:
        """Read ``h * (gamma / sqrt(variance + eps)) + (beta - mean * ...)``."""
        if op.kind not in ("AddV2", "Add"):
            return None, op
        scaled, moved = self.graph.inputs(op)
        if (scaled.kind, moved.kind) != ("Mul", "Sub"):
            self._refuse(op)
        hidden, factor = self.graph.inputs(scaled)
        gamma, root = None, factor
        if factor.kind == "Mul":
            root, _ = self.graph.source(factor.inputs[0])
            gamma = self._holder(factor.inputs[1])
        self._expect(root, "Rsqrt")
        shifted = self._op(root.inputs[0], "AddV2", "Add")
        eps = self.graph.constant(shifted.inputs[1])
        product = self._op(moved.inputs[1], "Mul")
        if eps is None:
            self._refuse(shifted)
        norm = Norm(
            gamma=gamma,
            beta=self._holder(moved.inputs[0]),
            mean=self._holder(product.inputs[0]),
            variance=self._holder(shifted.inputs[0]),
            eps=float(eps.reshape(())),
        )
        return norm, hidden

    def _activation(self, op: Op) -> tuple[str | Mapping[str, Any], Op]:
        """Read an activation, and the linear layer before it."""
        if op.kind in _ACTIVATIONS:
            return _ACTIVATIONS[op.kind], self.graph.source(op.inputs[0])[0]
        if op.kind == "LeakyRelu":
            slope = round(op.real("alpha", 0.2), 7)
            inner = self.graph.source(op.inputs[0])[0]
            return {"name": "leaky_relu", "negative_slope": slope}, inner
        if op.kind == "Mul":
            return self._product_activation(op)
        if op.kind in ("BiasAdd", "ConcatV2", "Reshape"):
            return "identity", op
        self._refuse(op)

    def _product_activation(self, op: Op) -> tuple[str, Op]:
        """Read ``x * sigmoid(x)``, or ``x / 2 * (1 + erf(x / sqrt(2)))``."""
        first, second = self.graph.inputs(op)
        if second.kind == "Sigmoid":
            inner, _ = self.graph.source(second.inputs[0])
            if inner.kind == "Mul":  # by a beta of 1
                factor, inner = self._factor(inner)
                if factor != 1.0:
                    self._refuse(op)
            if inner is first:
                return "silu", inner
        if first.kind == "Mul" and second.kind in ("AddV2", "Add"):
            half, inner = self._factor(first)
            one, error = self._factor(second)
            if (half, one, error.kind) == (0.5, 1.0, "Erf"):
                scaled, _ = self.graph.source(error.inputs[0])
                root = self.graph.constant(scaled.inputs[1]) if scaled.kind == "RealDiv" else None
                is_root = root is not None and abs(float(root) ** 2 - 2.0) < 1e-6
                if is_root and self.graph.source(scaled.inputs[0])[0] is inner:
                    return "gelu", inner
        self._refuse(op)

    def _factor(self, op: Op) -> tuple[float, Op]:
        """Return a constant and what it is multiplied by, or added to."""
        values = [self.graph.constant(tensor) for tensor in op.inputs]
        for value, other in zip(values, reversed(op.inputs), strict=True):
            if value is not None and value.size == 1:
                return float(value.reshape(())), self.graph.source(other)[0]
        self._refuse(op)

    def _deep_columns(self, tensor: str) -> tuple[tuple[str, DenseColumn], ...]:
        op, _ = self.graph.source(tensor)
        if op.kind == "ConcatV2":
            tensors = op.inputs[:-1]
        else:
            self._expect(op, "Reshape")
            tensors = (op.name,)
        names = [_column_name(self.graph.source(tensor)[0].name, "Reshape") for tensor in tensors]
        return tuple(
            (name, self.columns.dense(tensor, name))
            for name, tensor in zip(names, tensors, strict=True)
        )

    # ---- the head -------------------------------------------------------------------------------

    def _head(self, logits: str) -> tuple[HeadKind, tuple[str, ...]]:
        if "probabilities" not in self.outputs:
            return self._regression(logits), ()
        if self._op(self.outputs["probabilities"], "Sigmoid", "Softmax").kind == "Sigmoid":
            return "multilabel", self._classes()
        return ("binary" if "logistic" in self.outputs else "multiclass"), self._classes()

    def _regression(self, logits: str) -> HeadKind:
        predictions, _ = self.graph.source(self.outputs["predictions"])
        if predictions is self.graph.source(logits)[0]:
            return "regression"
        if predictions.kind in ("Exp", "Sigmoid"):
            return "poisson" if predictions.kind == "Exp" else "binary"
        raise CheckpointError(
            f"{self.model.path}: its predictions are {predictions.kind} of the logits (operation "
            f"{predictions.name!r}), and only those of the heads for regression and Poisson "
            "regression, the logits and their exponentials, can be carried over"
        )

    def _classes(self) -> tuple[str, ...]:
        """Return the names of classes, where they are more than their numbers."""
        if "classes" not in self.outputs:
            return ()
        op, _ = self.graph.source(self.outputs["classes"])
        if op.kind == "LookupTableFindV2":
            table, _ = self.graph.source(op.inputs[0])
            fills = self.graph.consumers.get(table.name, [])
            imports = [fill for fill in fills if fill.kind == "LookupTableImportV2"]
            names = self.graph.constant(imports[0].inputs[2]) if imports else None
            if names is not None:
                return tuple(name.decode("utf-8", "replace") for name in names.tolist())
        return ()

    # ---- variables ------------------------------------------------------------------------------

    def _holder(self, tensor: str) -> str:
        """Return the operation that holds a variable."""
        op, _ = self.graph.source(tensor)
        if op.kind == "ConcatV2":  # of a variable in parts
            op, _ = self.graph.source(op.inputs[0])
        if op.name not in self.model.names:
            self._refuse(op)
        return op.name

    def _variable(self, tensor: str) -> str:
        """Return the name of a variable's tensor in checkpoints."""
        return self.model.names[self._holder(tensor)][0]

    def _refuse(self, op: Op) -> NoReturn:
        raise CheckpointError(
            f"{self.model.path}: got {op.kind} (operation {op.name!r}) where a canned estimator "
            "has a linear part, a hidden layer, an activation or batch normalisation; a network of "
            "other operations cannot be carried over"
        )


def _column_name(operation: str, last: str) -> str:
    """Return a column's name, which is the scope of the operation that gives it."""
    scope = re.sub(rf"(/{last}(_\d+)?)+(/.*)?$", "", operation)
    name = scope.rpartition("/")[2]
    return re.sub(r"_\d+$", "", name) if last == "Reshape" else name
