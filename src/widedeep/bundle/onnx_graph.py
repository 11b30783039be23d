"""ONNX graphs node by node, and a bundle's towers as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.program import Operation, Program, View
from widedeep.errors import BundleError

OPSET, ML_OPSET = 17, 3
_ML = "ai.onnx.ml"
_LARGEST = 2_000_000_000  # bytes: a protobuf message has less than 2 GiB


class GraphBuilder:
    """A graph that grows node by node; a value is known by its name."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.opset = OPSET
        self._constants: dict[tuple[Any, ...], str] = {}
        self._held: list[NDArray[Any]] = []
        self._bytes = 0

    def input(self, name: str, dtype: type | str, *shape: str | int) -> str:
        """Add an input of the graph."""
        self.inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: type, *shape: str | int) -> None:
        """Make a value an output of the graph."""
        self.nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self.outputs.append(self._value(name, dtype, shape))

    def _value(self, name: str, dtype: type | str, shape: tuple[str | int, ...]) -> Any:
        helper, types = self._onnx.helper, self._onnx.TensorProto
        kind = types.STRING if dtype is str else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, list(shape))

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Return the name of an array in the graph; small equal ones are one."""
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
            self.initializers.append(self._onnx.numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; return the output's name."""
        name = f"{kind}/{len(self.nodes)}"
        node = self._onnx.helper.make_node(kind, inputs, [name], domain=domain, **attributes)
        self.nodes.append(node)
        return name

    def cast(self, value: str, dtype: Any) -> str:
        """Return a value as another type."""
        to = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", value, to=to)

    def look_up(self, value: str, keys: Sequence[Any], ids: Sequence[int], default: int) -> str:
        """Return the id of each text or integer, int64."""
        is_text = isinstance(keys[0], str) if keys else True
        attributes: dict[str, Any] = {
            "keys_strings" if is_text else "keys_int64s": list(keys),
            "values_int64s": list(ids),
            "default_int64": default,
        }
        return self.node("LabelEncoder", value, domain=_ML, **attributes)

    def reshape(self, value: str, *shape: int) -> str:
        """Return a value with another shape, -1 for the rows."""
        return self.node("Reshape", value, self.constant(shape, np.int64))

    def add(self, values: Sequence[str]) -> str:
        """Return the sum of values, from the first to the last."""
        total = values[0]
        for value in values[1:]:
            total = self.node("Add", total, value)
        return total

    def sum_over(self, value: str, axis: int) -> str:
        """Return the sum over one axis, which goes away."""
        return self.node("ReduceSum", value, self.constant([axis], np.int64), keepdims=0)

    def count_at_least(self, value_B: str, points_K: NDArray[np.float64]) -> str:
        """Return how many of some points a number reaches, (B,) int64."""
        reaches_BK = self.node(
            "GreaterOrEqual",
            self.reshape(value_B, -1, 1),
            self.constant(points_K[None], np.float64),
        )
        return self.sum_over(self.cast(reaches_BK, np.int64), 1)

    def interpolate(
        self, value_B: str, points_K: NDArray[np.float64], values_K: NDArray[np.float64]
    ) -> str:
        """Return a function that is linear between points and constant beyond them, float64."""
        if len(points_K) == 1:
            zero_B = self.node("Mul", value_B, self.constant(0.0, np.float64))
            return self.node("Add", zero_B, self.constant(values_K[0], np.float64))
        low, high = (self.constant(end, np.float64) for end in (points_K[0], points_K[-1]))
        inside_B = self.node("Min", self.node("Max", value_B, low), high)
        place_B, fraction_B = self.between(inside_B, points_K)
        start_B = self.node("Gather", self.constant(values_K[:-1], np.float64), place_B)
        rise_B = self.node("Gather", self.constant(np.diff(values_K), np.float64), place_B)
        return self.node("Add", start_B, self.node("Mul", fraction_B, rise_B))

    def between(self, inside_B: str, points_K: NDArray[np.float64]) -> tuple[str, str]:
        """Return the point below a number within their range, and the fraction to the next."""
        place_B = self.count_at_least(inside_B, points_K[1:-1])
        start_B = self.node("Gather", self.constant(points_K[:-1], np.float64), place_B)
        width_B = self.node("Gather", self.constant(np.diff(points_K), np.float64), place_B)
        return place_B, self.node("Div", self.node("Sub", inside_B, start_B), width_B)

    def sigmoid(self, value: str) -> str:
        """Return 1 / (1 + exp(-x)) of float64."""
        one = self.constant(1.0, np.float64)
        powers = self.node("Exp", self.node("Neg", value))
        return self.node("Div", one, self.node("Add", one, powers))

    def softplus(self, value: str) -> str:
        """Return log(1 + exp(x)) of float64."""
        one, zero = (self.constant(number, np.float64) for number in (1.0, 0.0))
        powers = self.node("Exp", self.node("Neg", self.node("Abs", value)))
        tail = self.node("Log", self.node("Add", one, powers))
        return self.node("Add", self.node("Max", value, zero), tail)

    def activation(self, value: str, name: str) -> str:
        """Return a layer's activation of float32."""
        if name == "gelu":
            half = self.node("Mul", value, self.constant(0.5, np.float32))
            root = self.constant(math.sqrt(0.5), np.float32)
            erf = self.node("Erf", self.node("Mul", value, root))
            return self.node("Mul", half, self.node("Add", erf, self.constant(1.0, np.float32)))
        if name == "silu":
            return self.node("Mul", value, self.node("Sigmoid", value))
        kinds = {"relu": "Relu", "elu": "Elu", "tanh": "Tanh", "leaky_relu": "LeakyRelu"}
        return value if name in ("", "none") else self.node(kinds[name], value)

    def merge(self, graph: bytes, inputs: Mapping[str, str], output: str) -> str:
        """Add a whole model, whose inputs are values of this graph; return one of its outputs."""
        model = self._onnx.compose.add_prefix(self._onnx.load_from_string(graph), "towers/")
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = max(OPSET, versions[""])
        for entry in model.graph.input:
            source = inputs[entry.name.removeprefix("towers/")]
            self.nodes.append(self._onnx.helper.make_node("Identity", [source], [entry.name]))
        self.nodes.extend(model.graph.node)
        self.initializers.extend(model.graph.initializer)
        return f"towers/{output}"

    def model(self, metadata: Mapping[str, str], producer_version: str) -> bytes:
        """Return the model, checked, as bytes."""
        helper = self._onnx.helper
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
        self._onnx.checker.check_model(model)
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

    def add(self, inputs: Sequence[str]) -> str:
        """Return the towers' part of the logits, (B, C).

        Args:
            inputs: The columns of the query, the item and the pair, (B, n) each.
        """
        program = self._program.pruned(self._program.output)
        self._values = list(inputs)
        self._sizes = list(program.input_sizes)
        self._is_constant = [False] * len(inputs)
        for name in program.constants:
            array = self._weights[name]
            self._put(self._graph.constant(array[None], np.float32), len(array), constant=True)
        for operation in program.operations:
            sources = [view[0] for view in operation.inputs]
            value, size = self._compute(operation)
            self._put(value, size, constant=all(self._is_constant[v] for v in sources))
        return self._values[program.output]

    def _put(self, value: str, size: int, *, constant: bool) -> None:
        self._values.append(value)
        self._sizes.append(size)
        self._is_constant.append(constant)

    def _compute(self, operation: Operation) -> tuple[str, int]:
        """Return the result of an operation, (B, size)."""
        graph, dims = self._graph, operation.dims
        if operation.kind == "gather":
            return self._side_by_side(operation)
        if operation.kind == "linear":
            return self._linear(operation)
        if operation.kind == "matmul":
            b, m, k, n = dims
            first, second = operation.inputs
            product = graph.node(
                "MatMul", self._seen(first, (b, m, k)), self._seen(second, (b, k, n))
            )
            return graph.reshape(product, -1, b * m * n), b * m * n
        operands = [self._seen(view, dims) for view in operation.inputs]
        lines = math.prod(dims[:-1])
        if operation.kind == "reduce":
            (operand,) = operands
            if operation.function == "sum":
                return graph.reshape(graph.sum_over(operand, -1), -1, lines), lines
            kind = {"max": "ReduceMax", "min": "ReduceMin"}[operation.function]
            value = graph.node(kind, operand, axes=[-1], keepdims=0)
            return graph.reshape(value, -1, lines), lines
        if operation.kind == "top":
            name = f"TopK/{len(graph.nodes)}"
            count = graph.constant([operation.count], np.int64)
            node = graph._onnx.helper.make_node(
                "TopK", [operands[0], count], [name, f"{name}/places"], axis=-1
            )
            graph.nodes.append(node)
            return graph.reshape(name, -1, lines * operation.count), lines * operation.count
        value = self._map(operation.function, operands, operation.numbers)
        return graph.reshape(value, -1, math.prod(dims)), math.prod(dims)

    def _side_by_side(self, operation: Operation) -> tuple[str, int]:
        graph = self._graph
        pieces = [
            self._seen((value, start, (1,)), (count,))
            for value, start, (count,) in operation.inputs
        ]
        constants = [self._is_constant[view[0]] for view in operation.inputs]
        if any(constants) and not all(constants):
            rows = graph.node("Shape", pieces[constants.index(False)], start=0, end=1)
            shape = graph.node("Concat", rows, graph.constant([1], np.int64), axis=0)
            pieces = [
                graph.node("Expand", piece, shape) if is_constant else piece
                for piece, is_constant in zip(pieces, constants, strict=True)
            ]
        size = sum(count for _, _, (count,) in operation.inputs)
        return graph.node("Concat", *pieces, axis=1), size

    def _linear(self, operation: Operation) -> tuple[str, int]:
        graph, value = self._graph, operation.inputs[0][0]
        weight_ON, *bias = (self._weights[name] for name in operation.tensors)
        outputs, inputs = weight_ON.shape
        lines = self._sizes[value] // inputs
        operand = self._values[value]
        if lines > 1:
            operand = graph.reshape(operand, -1, lines, inputs)
        result = graph.node("MatMul", operand, graph.constant(weight_ON.T, np.float32))
        if bias:
            result = graph.node("Add", result, graph.constant(bias[0], np.float32))
        result = graph.activation(result, operation.function)
        return graph.reshape(result, -1, lines * outputs), lines * outputs

    def _seen(self, view: View, dims: Sequence[int]) -> str:
        """Return what a view shows of a value, (B, *dims)."""
        graph = self._graph
        value, offset, strides = view
        places = np.full(tuple(dims), offset, np.int64)
        for axis, (size, stride) in enumerate(zip(dims, strides, strict=False)):
            steps = np.arange(size, dtype=np.int64) * stride
            places += steps.reshape([-1 if axis == i else 1 for i in range(len(dims))])
        name = self._values[value]
        if not np.array_equal(places.ravel(), np.arange(self._sizes[value])):
            name = graph.node("Gather", name, graph.constant(places.ravel()), axis=1)
        return name if len(dims) == 1 else graph.reshape(name, -1, *dims)

    def _map(self, function: str, operands: Sequence[str], numbers: Sequence[float]) -> str:
        graph = self._graph

        def constant(number: float) -> str:
            return graph.constant(number, np.float32)

        if function in _PLAIN:
            return graph.node(_PLAIN[function], *operands)
        if function in _COMPARISONS:
            return graph.cast(graph.node(_COMPARISONS[function], *operands), np.float32)
        first = operands[0]
        special: dict[str, Callable[[], str]] = {
            "log1p": lambda: graph.node("Log", graph.node("Add", first, constant(1.0))),
            "square": lambda: graph.node("Mul", first, first),
            "gelu": lambda: graph.activation(first, "gelu"),
            "silu": lambda: graph.activation(first, "silu"),
            "elu": lambda: graph.node("Elu", first, alpha=float(numbers[0])),
            "leaky_relu": lambda: graph.node("LeakyRelu", first, alpha=float(numbers[0])),
            "clamp": lambda: graph.node(
                "Min", graph.node("Max", first, constant(numbers[0])), constant(numbers[1])
            ),
            "power": lambda: graph.node("Pow", first, constant(numbers[0])),
            "not_equal": lambda: graph.cast(
                graph.node("Not", graph.node("Equal", *operands)), np.float32
            ),
            "add_relu": lambda: graph.node("Relu", graph.add(operands)),
            "add3": lambda: graph.add(operands),
            "add3_relu": lambda: graph.node("Relu", graph.add(operands)),
            "mul_add": lambda: graph.node("Add", graph.node("Mul", *operands[:2]), operands[2]),
            "where": lambda: graph.node(
                "Where",
                graph.node("Not", graph.node("Equal", first, constant(0.0))),
                *operands[1:],
            ),
        }
        if function not in special:
            raise BundleError(
                f"got the operation {function!r}, which has no form in ONNX here; serve the bundle"
            )
        return special[function]()
