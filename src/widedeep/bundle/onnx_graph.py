"""ONNX graphs node by node, and a bundle's towers as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.program import Operation, Program, View
from widedeep.errors import BundleError

OPSET, ML_OPSET = 17, 3
_ML = "ai.onnx.ml"
_LARGEST = 2_000_000_000  # bytes: a protobuf message has less than 2 GiB


class Value:
    """A value of a graph: an operator or a function of it adds a node, and returns its value.

    Numbers and arrays beside it become constants of its type.
    """

    __array_ufunc__ = None  # NumPy leaves ``array * value`` to the value

    def __init__(self, graph: GraphBuilder, name: str, dtype: Any) -> None:
        self.graph, self.name, self.dtype = graph, name, np.dtype(dtype)

    def node(self, kind: str, *others: Operand, dtype: Any = None, **attributes: Any) -> Value:
        """Add a node that reads this value, then others."""
        inputs = [self, *(self._operand(other) for other in others)]
        return self.graph.node(kind, *inputs, dtype=dtype or self.dtype, **attributes)

    def _operand(self, other: Operand) -> Value:
        return other if isinstance(other, Value) else self.graph.constant(other, self.dtype)

    def __add__(self, other: Operand) -> Value:
        return self.node("Add", other)

    def __sub__(self, other: Operand) -> Value:
        return self.node("Sub", other)

    def __rsub__(self, other: Operand) -> Value:
        return self._operand(other) - self

    def __mul__(self, other: Operand) -> Value:
        return self.node("Mul", other)

    def __truediv__(self, other: Operand) -> Value:
        return self.node("Div", other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self._operand(other) / self

    def __matmul__(self, other: Operand) -> Value:
        return self.node("MatMul", other)

    def __ge__(self, other: Operand) -> Value:
        return self.node("GreaterOrEqual", other, dtype=bool)

    def __lt__(self, other: Operand) -> Value:
        return self.node("Less", other, dtype=bool)

    def __and__(self, other: Value) -> Value:
        return self.node("And", other)

    def __or__(self, other: Value) -> Value:
        return self.node("Or", other)

    def __invert__(self) -> Value:
        return self.node("Not")

    def equals(self, other: Operand) -> Value:
        """Tell where the value is another one."""
        return self.node("Equal", other, dtype=bool)

    def is_nan(self) -> Value:
        """Tell where the value is NaN."""
        return self.node("IsNaN", dtype=bool)

    def where(self, yes: Operand, no: Operand) -> Value:
        """Return one value where this one is true, else another; one of them is a `Value`."""
        typed = yes if isinstance(yes, Value) else no
        assert isinstance(typed, Value)
        sides = (typed._operand(yes), typed._operand(no))
        return self.graph.node("Where", self, *sides, dtype=typed.dtype)

    def cast(self, dtype: Any) -> Value:
        """Return the value as another type."""
        to = self.graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", to=to, dtype=dtype)

    def reshape(self, *shape: int) -> Value:
        """Return the value with another shape, -1 for the rows."""
        return self.node("Reshape", self.graph.constant(shape, np.int64))

    def unsqueeze(self, axis: int) -> Value:
        """Return the value with one more axis."""
        return self.node("Unsqueeze", self.graph.constant([axis], np.int64))

    def take(self, index: Value | int | NDArray[np.int64], axis: int = 0) -> Value:
        """Return the entries of an axis at an index."""
        places = index if isinstance(index, Value) else self.graph.constant(index, np.int64)
        return self.node("Gather", places, axis=axis)

    def sum(self, axis: int) -> Value:
        """Return the sum over one axis, which goes away."""
        return self.node("ReduceSum", self.graph.constant([axis], np.int64), keepdims=0)

    def clip(self, low: float, high: float) -> Value:
        """Return the value, or the bound beyond which it lies."""
        return self.node("Max", low).node("Min", high)

    def look_up(self, keys: Sequence[Any], ids: Sequence[int], default: int) -> Value:
        """Return the id of each text or integer, int64."""
        is_text = isinstance(keys[0], str) if keys else True
        attributes: dict[str, Any] = {
            "keys_strings" if is_text else "keys_int64s": list(keys),
            "values_int64s": list(ids),
            "default_int64": default,
        }
        return self.node("LabelEncoder", dtype=np.int64, domain=_ML, **attributes)

    def count_at_least(self, points_K: NDArray[np.float64]) -> Value:
        """Return how many of some points each number (B,) reaches, (B,) int64."""
        return (self.reshape(-1, 1) >= points_K[None]).cast(np.int64).sum(1)

    def interpolate(self, points_K: NDArray[np.float64], values_K: NDArray[np.float64]) -> Value:
        """Return a function of (B,) that is linear between points and constant beyond them."""
        if len(points_K) == 1:
            return self * 0.0 + float(values_K[0])
        place_B, fraction_B = self.clip(points_K[0], points_K[-1]).between(points_K)
        start_B = self.graph.constant(values_K[:-1], np.float64).take(place_B)
        rise_B = self.graph.constant(np.diff(values_K), np.float64).take(place_B)
        return start_B + fraction_B * rise_B

    def between(self, points_K: NDArray[np.float64]) -> tuple[Value, Value]:
        """Return the point below a number within their range, and the fraction to the next."""
        place_B = self.count_at_least(points_K[1:-1])
        start_B = self.graph.constant(points_K[:-1], np.float64).take(place_B)
        width_B = self.graph.constant(np.diff(points_K), np.float64).take(place_B)
        return place_B, (self - start_B) / width_B

    def sigmoid(self) -> Value:
        """Return 1 / (1 + exp(-x)) of float64."""
        return 1.0 / (self.node("Neg").node("Exp") + 1.0)

    def softplus(self) -> Value:
        """Return log(1 + exp(x)) of float64."""
        tail = (self.node("Abs").node("Neg").node("Exp") + 1.0).node("Log")
        return self.node("Max", 0.0) + tail

    def activation(self, name: str) -> Value:
        """Return a layer's activation of float32."""
        if name == "gelu":
            return self * 0.5 * ((self * math.sqrt(0.5)).node("Erf") + 1.0)
        if name == "silu":
            return self * self.node("Sigmoid")
        kinds = {"relu": "Relu", "elu": "Elu", "tanh": "Tanh", "leaky_relu": "LeakyRelu"}
        return self if name in ("", "none") else self.node(kinds[name])


Operand: TypeAlias = Value | float | NDArray[Any]


class GraphBuilder:
    """A graph that grows node by node."""

    def __init__(self) -> None:
        import onnx

        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.opset = OPSET
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._held: list[NDArray[Any]] = []
        self._bytes = 0

    def input(self, name: str, dtype: type | str, *shape: str | int) -> Value:
        """Add an input of the graph."""
        self.inputs.append(self._described(name, dtype, shape))
        return Value(self, name, dtype)

    def output(self, name: str, value: Value, *shape: str | int) -> None:
        """Make a value an output of the graph."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [value.name], [name]))
        self.outputs.append(self._described(name, value.dtype, shape))

    def _described(self, name: str, dtype: Any, shape: tuple[str | int, ...]) -> Any:
        helper, types = self.onnx.helper, self.onnx.TensorProto
        kind = types.STRING if dtype is str else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, list(shape))

    def constant(self, value: Any, dtype: Any = None) -> Value:
        """Return an array in the graph; small equal ones are one."""
        array = np.ascontiguousarray(value, dtype)
        array = array.reshape(np.shape(value))
        small = array.size <= 64
        where = array.tobytes() if small else array.__array_interface__["data"][0]
        key = (array.dtype.str, array.shape, where)
        if key not in self._constants:
            self._held.append(array)  # so that no other comes to lie there
            name = f"constant/{len(self.initializers)}"
            self._bytes += array.nbytes
            if self._bytes > _LARGEST:
                raise BundleError(
                    f"got weights of more than {_LARGEST:,} bytes, which one ONNX file cannot "
                    "hold; serve the bundle, or train with smaller tables"
                )
            self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
            self._constants[key] = Value(self, name, array.dtype)
        return self._constants[key]

    def node(
        self, kind: str, *inputs: Value, dtype: Any, outputs: int = 1, **attributes: Any
    ) -> Value:
        """Add a node; return its first output, of the given type."""
        name = f"{kind}/{len(self.nodes)}"
        names = [name, *(f"{name}/{index}" for index in range(1, outputs))]
        sources = [value.name for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, sources, names, **attributes))
        return Value(self, name, dtype)

    def concat(self, values: Sequence[Value]) -> Value:
        """Return values (B, n) side by side."""
        return values[0] if len(values) == 1 else values[0].node("Concat", *values[1:], axis=1)

    def columns(self, values_B: Sequence[Value]) -> Value:
        """Return values (B,) as the columns of one."""
        return self.concat([value.reshape(-1, 1) for value in values_B])

    def merge(self, graph: bytes, inputs: Mapping[str, Value], output: str) -> Value:
        """Add a whole model, whose inputs are values of this graph; return one of its outputs."""
        model = self.onnx.compose.add_prefix(self.onnx.load_from_string(graph), "towers/")
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = max(OPSET, versions[""])
        for entry in model.graph.input:
            source = inputs[entry.name.removeprefix("towers/")].name
            self.nodes.append(self.onnx.helper.make_node("Identity", [source], [entry.name]))
        self.nodes.extend(model.graph.node)
        self.initializers.extend(model.graph.initializer)
        return Value(self, f"towers/{output}", np.float32)

    def model(self, metadata: Mapping[str, str], producer_version: str) -> bytes:
        """Return the model, checked, as bytes."""
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes, "widedeep", self.inputs, self.outputs, self.initializers
        )
        model = helper.make_model(
            graph,
            producer_name="widedeep",
            producer_version=producer_version,
            opset_imports=[helper.make_opsetid("", self.opset), helper.make_opsetid(_ML, ML_OPSET)],
            ir_version=8,
        )
        helper.set_model_props(model, dict(metadata))
        self.onnx.checker.check_model(model)
        text: bytes = model.SerializeToString()
        return text


# ---- programs -----------------------------------------------------------------------------------

_PLAIN: Mapping[str, str] = {
    "copy": "Identity",
    "neg": "Neg",
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "sign": "Sign",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
}
_COMPARISONS = {"greater": "Greater", "greater_equal": "GreaterOrEqual", "equal": "Equal"}


class ProgramNodes:
    """Adds a bundle's program to a graph; its values are (B, n), and of constants (1, n)."""

    def __init__(
        self, graph: GraphBuilder, program: Program, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._graph, self._program, self._weights = graph, program, weights

    def add(self, inputs: Sequence[Value | None]) -> Value:
        """Return the logits (B, C) of the query's, the item's and the pair's columns."""
        program = self._program.pruned(self._program.output)
        self._values = list(inputs)  # None where there are no columns: no operation reads them
        self._sizes = list(program.input_sizes)
        self._is_constant = [False] * len(inputs)
        for name in program.constants:
            array = self._weights[name]
            self._put(self._graph.constant(array[None], np.float32), len(array), constant=True)
        for operation in program.operations:
            sources = [view[0] for view in operation.inputs]
            value, size = self._compute(operation)
            self._put(value, size, constant=all(self._is_constant[v] for v in sources))
        return self._value(program.output)

    def _put(self, value: Value, size: int, *, constant: bool) -> None:
        self._values.append(value)
        self._sizes.append(size)
        self._is_constant.append(constant)

    def _value(self, number: int) -> Value:
        value = self._values[number]
        assert value is not None
        return value

    def _compute(self, operation: Operation) -> tuple[Value, int]:
        """Return the result of an operation, (B, size)."""
        dims = operation.dims
        if operation.kind == "gather":
            return self._side_by_side(operation)
        if operation.kind == "linear":
            return self._linear(operation)
        if operation.kind == "matmul":
            b, m, k, n = dims
            first, second = operation.inputs
            product = self._seen(first, (b, m, k)) @ self._seen(second, (b, k, n))
            return product.reshape(-1, b * m * n), b * m * n
        operands = [self._seen(view, dims) for view in operation.inputs]
        size = math.prod(dims[:-1])
        if operation.kind == "reduce" and operation.function == "sum":
            value = operands[0].sum(-1)
        elif operation.kind == "reduce":
            kind = {"max": "ReduceMax", "min": "ReduceMin"}[operation.function]
            value = operands[0].node(kind, axes=[-1], keepdims=0)
        elif operation.kind == "top":
            count = self._graph.constant([operation.count], np.int64)
            value = operands[0].node("TopK", count, outputs=2, axis=-1)
            size *= operation.count
        else:
            value = self._map(operation.function, operands, operation.numbers)
            size = math.prod(dims)
        return value.reshape(-1, size), size

    def _side_by_side(self, operation: Operation) -> tuple[Value, int]:
        graph = self._graph
        pieces = [
            self._seen((value, start, (1,)), (count,))
            for value, start, (count,) in operation.inputs
        ]
        constants = [self._is_constant[view[0]] for view in operation.inputs]
        if any(constants) and not all(constants):
            first = pieces[constants.index(False)]
            rows = first.node("Shape", start=0, end=1, dtype=np.int64)
            shape = rows.node("Concat", graph.constant([1], np.int64), axis=0)
            pieces = [
                piece.node("Expand", shape) if is_constant else piece
                for piece, is_constant in zip(pieces, constants, strict=True)
            ]
        return graph.concat(pieces), sum(count for _, _, (count,) in operation.inputs)

    def _linear(self, operation: Operation) -> tuple[Value, int]:
        number = operation.inputs[0][0]
        weight_ON, *bias = (self._weights[name] for name in operation.tensors)
        outputs, inputs = weight_ON.shape
        lines, operand = self._sizes[number] // inputs, self._value(number)
        if lines > 1:
            operand = operand.reshape(-1, lines, inputs)
        result = operand @ weight_ON.T
        if bias:
            result = result + bias[0]
        result = result.activation(operation.function)
        return result.reshape(-1, lines * outputs), lines * outputs

    def _seen(self, view: View, dims: Sequence[int]) -> Value:
        """Return what a view shows of a value, (B, *dims)."""
        number, offset, strides = view
        places = np.full(tuple(dims), offset, np.int64)
        for axis, (size, stride) in enumerate(zip(dims, strides, strict=False)):
            steps = np.arange(size, dtype=np.int64) * stride
            places += steps.reshape([-1 if axis == i else 1 for i in range(len(dims))])
        value = self._value(number)
        if not np.array_equal(places.ravel(), np.arange(self._sizes[number])):
            value = value.take(places.ravel(), axis=1)
        return value if len(dims) == 1 else value.reshape(-1, *dims)

    def _map(self, function: str, operands: Sequence[Value], numbers: Sequence[float]) -> Value:
        first, *others = operands
        if function in _PLAIN:
            return first.node(_PLAIN[function], *others)
        if function in _COMPARISONS:
            return first.node(_COMPARISONS[function], *others, dtype=bool).cast(np.float32)
        special: dict[str, Callable[[], Value]] = {
            "log1p": lambda: (first + 1.0).node("Log"),
            "square": lambda: first * first,
            "gelu": lambda: first.activation("gelu"),
            "silu": lambda: first.activation("silu"),
            "elu": lambda: first.node("Elu", alpha=float(numbers[0])),
            "leaky_relu": lambda: first.node("LeakyRelu", alpha=float(numbers[0])),
            "clamp": lambda: first.clip(numbers[0], numbers[1]),
            "power": lambda: first.node("Pow", numbers[0]),
            "not_equal": lambda: (~first.equals(others[0])).cast(np.float32),
            "add_relu": lambda: (first + others[0]).node("Relu"),
            "add3": lambda: first + others[0] + others[1],
            "add3_relu": lambda: (first + others[0] + others[1]).node("Relu"),
            "mul_add": lambda: first * others[0] + others[1],
            "where": lambda: (~first.equals(0.0)).where(*others),
        }
        if function not in special:
            raise BundleError(
                f"got the operation {function!r}, which has no form in ONNX here; serve the bundle"
            )
        return special[function]()
