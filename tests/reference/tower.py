"""The tower in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class Tower:
    """The native tower's arrays and passes."""

    input_BX: Floats
    weights: Sequence[Floats]
    biases: Sequence[Floats]
    outputs: Sequence[Floats]
    grad_logits_BC: Floats
    grads: Sequence[Floats]
    grad_input_BX: Floats
    weight_grads: Sequence[Floats]
    bias_grads: Sequence[Floats]
    bf16: bool = False

    def forward(self, threads: int = 1) -> None:
        """Fill the outputs of every layer."""
        below = self.input_BX
        biases = [*self.biases, None]
        for weight, output, bias in zip(self.weights, self.outputs, biases, strict=True):
            _product(self.bf16, below, weight.T, output)
            if bias is not None:
                output += bias
                np.maximum(output, 0.0, out=output)
            below = output

    def backward(self, threads: int = 1) -> TowerGradients:
        """Fill the gradients, from the last layer to the first."""
        grad = self.grad_logits_BC
        for i in reversed(range(len(self.weights))):
            below = self.outputs[i - 1] if i else self.input_BX
            _product(self.bf16, grad.T, below, self.weight_grads[i])
            if i < len(self.bias_grads):
                np.sum(grad, axis=0, out=self.bias_grads[i])
            under = self.grads[i - 1] if i else self.grad_input_BX
            _product(self.bf16, grad, self.weights[i], under)
            if i:
                under *= self.outputs[i - 1] > 0.0
            grad = under
        return TowerGradients()
