"""The tower's kernels in plain NumPy; see `widedeep.kernels.tower`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["tower_backward", "tower_forward"]

Floats = NDArray[np.float32]


def tower_forward(
    input_BX: Floats,
    weights: Sequence[Floats],
    biases: Sequence[Floats],
    outputs: Sequence[Floats],
    threads: int,
) -> None:
    """Fill the outputs of every layer."""
    below = input_BX
    for weight, output, bias in zip(weights, outputs, [*biases, None], strict=True):
        np.matmul(below, weight.T, out=output)
        if bias is not None:
            output += bias
            np.maximum(output, 0.0, out=output)
        below = output


def tower_backward(
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
        np.matmul(grad.T, outputs[i - 1] if i else input_BX, out=weight_grads[i])
        if i < len(bias_grads):
            np.sum(grad, axis=0, out=bias_grads[i])
        under = grads[i - 1] if i else grad_input_BX
        np.matmul(grad, weights[i], out=under)
        if i:
            under *= outputs[i - 1] > 0.0
        grad = under
    return TowerGradients()


class TowerGradients:
    """Nothing is under way: NumPy has computed them all."""

    def wait(self) -> None:
        """Do nothing."""
