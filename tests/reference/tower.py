"""The tower's kernels in plain NumPy; see `widedeep.kernels.tower`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["tower_backward", "tower_forward"]

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


def tower_forward(
    bf16: bool,
    input_BX: Floats,
    weights: Sequence[Floats],
    biases: Sequence[Floats],
    outputs: Sequence[Floats],
    threads: int,
) -> None:
    """Fill the outputs of every layer."""
    below = input_BX
    for weight, output, bias in zip(weights, outputs, [*biases, None], strict=True):
        _product(bf16, below, weight.T, output)
        if bias is not None:
            output += bias
            np.maximum(output, 0.0, out=output)
        below = output


def tower_backward(
    bf16: bool,
    input_BX: Floats,
    weights: Sequence[Floats],
    outputs: Sequence[Floats],
    grad_logits_BC: Floats,
    grads: Sequence[Floats],
    grad_input_BX: Floats,
    weight_grads: Sequence[Floats],
    bias_grads: Sequence[Floats],
    threads: int,
) -> TowerGradients:
    """Fill the gradients, from the last layer to the first."""
    grad = grad_logits_BC
    for i in reversed(range(len(weights))):
        _product(bf16, grad.T, outputs[i - 1] if i else input_BX, weight_grads[i])
        if i < len(bias_grads):
            np.sum(grad, axis=0, out=bias_grads[i])
        under = grads[i - 1] if i else grad_input_BX
        _product(bf16, grad, weights[i], under)
        if i:
            under *= outputs[i - 1] > 0.0
        grad = under
    return TowerGradients()


class TowerGradients:
    """Nothing is under way: NumPy has computed them all."""

    def wait(self) -> None:
        """Do nothing."""
