"""Programs in plain NumPy, in float64: what the native executor must come close to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from widedeep.bundle.program import Operation, Program, View

__all__ = ["run_program"]

Floats = NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])

_MAPS: dict[str, Any] = {
    "copy": lambda a: a,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "reciprocal": np.reciprocal,
    "square": np.square,
    "sign": np.sign,
    "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "gelu": lambda a: 0.5 * a * (1 + _erf(a * math.sqrt(0.5))),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "softplus": lambda a: np.logaddexp(0, a),
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "add_relu": lambda a, b: np.maximum(a + b, 0),
    "add3": lambda a, b, c: a + b + c,
    "add3_relu": lambda a, b, c: np.maximum(a + b + c, 0),
    "mul_add": lambda a, b, c: a * b + c,
    "where": lambda a, b, c: np.where(a != 0, b, c),
}
_WITH_NUMBERS: dict[str, Any] = {
    "elu": lambda a, alpha: np.where(a > 0, a, alpha * np.expm1(np.minimum(a, 0))),
    "leaky_relu": lambda a, slope: np.where(a > 0, a, slope * a),
    "clamp": np.clip,
    "power": np.power,
}
_REDUCTIONS: dict[str, Any] = {"sum": np.sum, "max": np.max, "min": np.min}


def run_program(
    program: Program, tensors: Mapping[str, NDArray[Any]], inputs: NDArray[Any]
) -> Floats:
    """Return the output of a program for rows that hold the inputs of all stages side by side."""
    values: list[Floats] = []
    ends = np.cumsum(program.input_sizes)
    values += np.split(inputs.astype(np.float64), ends[:-1], axis=1)
    rows = len(inputs)
    values += [np.tile(tensors[n].astype(np.float64), (rows, 1)) for n in program.constants]
    for operation in program.operations:
        result = _compute(operation, values, tensors)
        values.append(np.asarray(result, np.float64).reshape(rows, -1))
    return values[program.output]


def _compute(
    operation: Operation, values: list[Floats], tensors: Mapping[str, NDArray[Any]]
) -> Any:
    dims = operation.dims
    if operation.kind == "gather":
        pieces = [values[v][:, start : start + n] for v, start, (n,) in operation.inputs]
        return np.concatenate(pieces, axis=1)
    if operation.kind == "linear":
        weight, *bias = (tensors[name].astype(np.float64) for name in operation.tensors)
        lines = values[operation.inputs[0][0]].reshape(-1, weight.shape[1])
        result = lines @ weight.T + (bias[0] if bias else 0.0)
        return np.maximum(result, 0) if operation.function == "relu" else result
    if operation.kind == "matmul":
        b, m, k, n = dims
        left, right = operation.inputs
        return _seen(values, left, (b, m, k)) @ _seen(values, right, (b, k, n))
    operands = [_seen(values, view, dims) for view in operation.inputs]
    if operation.kind == "reduce":
        return _REDUCTIONS[operation.function](operands[0], axis=-1)
    if operation.kind == "top":
        return -np.sort(-operands[0], axis=-1)[..., : operation.count]
    if operation.function in _WITH_NUMBERS:
        return _WITH_NUMBERS[operation.function](*operands, *operation.numbers)
    return _MAPS[operation.function](*operands)


def _seen(values: list[Floats], view: View, dims: tuple[int, ...]) -> Floats:
    value, offset, strides = view
    rows = np.ascontiguousarray(values[value])
    steps = (rows.strides[0], *(8 * stride for stride in strides[: len(dims)]))
    return as_strided(rows[:, offset:], (len(rows), *dims), steps, writeable=False)
