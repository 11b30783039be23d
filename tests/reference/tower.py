"""The tower in plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def has_bf16_products() -> bool:
    """True: they are emulated."""
    return True


def round_to_bf16(numbers: Floats) -> Floats:
    """Return the nearest bfloat16 numbers, ties to even, as float32."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: Floats = ((bits + up) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def _product(bf16: bool, left: Floats, right: Floats, out: Floats) -> None:
    if bf16:
        left, right = round_to_bf16(left), round_to_bf16(right)
    np.matmul(left, right, out=out)


class TowerGradients:
    """NumPy has computed them all."""

    def wait(self) -> None:
        """Do nothing."""


@dataclass(kw_only=True)
class TowerNorm:
    """Batch norm over the rows of a batch."""

    weight: Floats
    bias: Floats
    weight_grad: Floats
    bias_grad: Floats
    running_mean: Floats
    running_var: Floats
    inverse: Floats
    normed: Floats
    momentum: float = 0.1
    eps: float = 1e-5
    biased: bool = False

    def forward(self, values: Floats) -> None:
        """Normalise in place, and move the running figures."""
        rows = len(values)
        mean, variance = values.mean(0, np.float64), values.var(0, np.float64)
        self.inverse[:] = 1.0 / np.sqrt(variance + self.eps)
        self.normed[:] = (values - mean) * self.inverse
        values[:] = self.normed * self.weight + self.bias
        for running, found in (
            (self.running_mean, mean),
            (self.running_var, variance * (1.0 if self.biased else rows / max(rows - 1, 1))),
        ):
            running += self.momentum * (found - running)

    def backward(self, grad: Floats) -> None:
        """Turn the gradient of the outputs into that of the inputs, in place."""
        self.bias_grad[:] = grad.sum(0, np.float64)
        self.weight_grad[:] = (grad * self.normed).sum(0, np.float64)
        centred = grad - (self.bias_grad + self.normed * self.weight_grad) / len(grad)
        grad[:] = centred * self.weight * self.inverse


@dataclass(kw_only=True)
class TowerLayer:
    """A dense layer, then its activation, dropout and norm."""

    weight: Floats
    output: Floats
    grad: Floats
    weight_grad: Floats
    bias: Floats | None = None
    bias_grad: Floats | None = None
    slope: Floats | None = None
    activation: str = "linear"
    dropout: float = 0.0
    norm: TowerNorm | None = None


_erf = np.vectorize(math.erf, otypes=[np.float64])


def activated(name: str, sums: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an activation, and its derivative."""
    positive = np.where(sums <= 0, 0.0, 1.0)
    negative = np.minimum(sums, 0.0)
    sigmoid = 1.0 / (1.0 + np.exp(-sums))
    normal = 0.5 * (1.0 + _erf(sums / math.sqrt(2))) if name == "gelu" else sums
    density = np.exp(-0.5 * sums * sums) / math.sqrt(2 * math.pi)
    return {
        "linear": (sums, np.ones_like(sums)),
        "relu": (np.where(sums <= 0, 0.0, sums), positive),
        "leaky_relu": (np.where(sums <= 0, 0.01 * sums, sums), np.where(sums <= 0, 0.01, 1.0)),
        "elu": (np.where(sums <= 0, np.expm1(negative), sums),
                np.where(sums <= 0, np.exp(negative), 1.0)),
        "tanh": (np.tanh(sums), 1.0 - np.tanh(sums) ** 2),
        "silu": (sums * sigmoid, sigmoid * (1.0 + sums * (1.0 - sigmoid))),
        "gelu": (sums * normal, normal + sums * density),
    }[name]  # fmt: skip


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def kept(key: int, layer: int, rows: int, width: int, dropout: float) -> NDArray[np.bool_]:
    """Tell which units of a layer stay."""
    whole = (1 << 64) - 1
    layer_key = np.uint64((key + (layer + 1) * 0xD1342543DE82EF95) & whole)
    steps = np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    row_keys = _mixed(layer_key + steps)[:, None]
    low = (row_keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (row_keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    x = (np.arange(width, dtype=np.uint32) ^ low) * high
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x >= np.uint32(int(np.float32(dropout).astype(np.float64) * 2.0**32))


@dataclass(kw_only=True)
class Tower:
    """The native tower's arrays and passes."""

    input_BX: Floats
    layers: Sequence[TowerLayer]
    grad_input_BX: Floats
    bf16: bool = False

    def forward(self, threads: int = 1, key: int = 0) -> None:
        """Fill the outputs of every layer."""
        below = self.input_BX
        for i, layer in enumerate(self.layers):
            out = layer.output
            _product(self.bf16, below, layer.weight.T, out)
            if layer.bias is not None:
                out += layer.bias
            values, slope = activated(layer.activation, out.astype(np.float64))
            factor = kept(key, i, *out.shape, layer.dropout) / (1.0 - layer.dropout)
            out[:] = values * factor
            if layer.slope is not None:
                layer.slope[:] = slope * factor
            if layer.norm is not None:
                layer.norm.forward(out)
            below = out

    def backward(self, threads: int = 1) -> TowerGradients:
        """Fill the gradients, from the last layer to the first."""
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            grad = layer.grad
            if layer.norm is not None:
                layer.norm.backward(grad)
            if layer.slope is not None:
                grad *= layer.slope
            elif layer.activation == "relu":
                grad *= layer.output > 0.0
            below = self.layers[i - 1].output if i else self.input_BX
            _product(self.bf16, grad.T, below, layer.weight_grad)
            if layer.bias_grad is not None:
                np.sum(grad, axis=0, out=layer.bias_grad)
            under = self.layers[i - 1].grad if i else self.grad_input_BX
            _product(self.bf16, grad, layer.weight, under)
        return TowerGradients()


def pair_products(fields: Floats, out_BD: Floats, threads: int = 1) -> None:
    """Sum the products of all pairs, pair by pair."""
    rows, dim = out_BD.shape
    fields_BFD = fields.reshape(rows, fields.shape[1] // dim, dim).astype(np.float64)
    total = np.zeros((rows, dim))
    for i in range(fields_BFD.shape[1]):
        for j in range(i):
            total += fields_BFD[:, i] * fields_BFD[:, j]
    out_BD[:] = total


def pair_products_grad(
    fields: Floats, grad_BD: Floats, fields_grad: Floats, threads: int = 1
) -> None:
    """Multiply the gradient by the sum of all others."""
    rows, dim = grad_BD.shape
    fields_BFD = fields.reshape(rows, fields.shape[1] // dim, dim).astype(np.float64)
    others = fields_BFD.sum(1, keepdims=True) - fields_BFD
    fields_grad[:] = (grad_BD[:, None] * others).reshape(fields.shape)
