"""A tower of dense layers in training: forward and backward over a batch, without autograd.

Layer i computes ``max(0, in @ weights[i].T + biases[i])`` from the layer below it, the last one
``in @ weights[-1].T`` alone: the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from widedeep.kernels.backend import backend
from widedeep.kernels.checks import check_matrix, check_vector

__all__ = ["tower_backward", "tower_forward"]

Floats = NDArray[np.float32]


def tower_forward(
    input_BX: Floats,
    weights: Sequence[Floats],
    biases: Sequence[Floats],
    outputs: Sequence[Floats],
    threads: int = 1,
) -> None:
    """Fill the outputs of every layer.

    Args:
        input_BX: float32 (B, X); rows may lie further apart than X.
        weights: float32 (out, in) of each layer, as ``torch.nn.Linear`` holds them.
        biases: float32 (out,) of each layer but the last, which has none.
        outputs: float32 (B, out) of each layer, filled; the last one gets the logits.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape.

    Example:
        >>> import numpy as np
        >>> hidden, logits = np.empty((1, 2), np.float32), np.empty((1, 1), np.float32)
        >>> tower_forward(
        ...     np.array([[1.0, 2.0]], np.float32),
        ...     [np.array([[1, 1], [-1, 0]], np.float32), np.array([[2, 5]], np.float32)],
        ...     [np.array([0.5, 0.0], np.float32)],
        ...     [hidden, logits],
        ... )
        >>> hidden.tolist(), logits.tolist()
        ([[3.5, 0.0]], [[7.0]])
    """
    _check_layers(input_BX, weights, outputs)
    _check_biases("biases", biases, weights)
    backend.tower_forward(input_BX, list(weights), list(biases), list(outputs), threads)


def tower_backward(
    input_BX: Floats,
    weights: Sequence[Floats],
    outputs: Sequence[Floats],
    grad_logits_BC: Floats,
    grads: Sequence[Floats],
    grad_input_BX: Floats,
    weight_grads: Sequence[Floats],
    bias_grads: Sequence[Floats],
    threads: int = 1,
) -> None:
    """Fill the gradients of the input, the weights and the biases: sums over the batch.

    Args:
        input_BX: float32 (B, X), as :func:`tower_forward` got it.
        weights: float32 (out, in) of each layer.
        outputs: As :func:`tower_forward` filled them.
        grad_logits_BC: float32 (B, C), gradient of the logits.
        grads: float32 (B, out) of each layer but the last, filled with the gradient before its
            rectifier.
        grad_input_BX: float32 (B, X), filled.
        weight_grads: float32 (out, in) of each layer, filled.
        bias_grads: float32 (out,) of each layer but the last, filled.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape.
    """
    rows = len(input_BX)
    _check_layers(input_BX, weights, outputs)
    check_matrix("grad_logits_BC", grad_logits_BC, rows=rows, width=len(weights[-1]))
    if len(grads) != len(weights) - 1:
        raise ValueError(f"grads: got {len(grads)}, expected {len(weights) - 1}")
    for i, grad in enumerate(grads):
        check_matrix(f"grads[{i}]", grad, rows=rows, width=len(weights[i]))
    check_matrix("grad_input_BX", grad_input_BX, rows=rows, width=input_BX.shape[1])
    if len(weight_grads) != len(weights):
        raise ValueError(f"weight_grads: got {len(weight_grads)}, expected {len(weights)}")
    for i, (grad, weight) in enumerate(zip(weight_grads, weights, strict=True)):
        check_matrix(f"weight_grads[{i}]", grad, rows=len(weight), width=weight.shape[1])
    _check_biases("bias_grads", bias_grads, weights)
    backend.tower_backward(
        input_BX, list(weights), list(outputs), grad_logits_BC, list(grads), grad_input_BX,
        list(weight_grads), list(bias_grads), threads,
    )  # fmt: skip


def _check_layers(input_BX: Floats, weights: Sequence[Floats], outputs: Sequence[Floats]) -> None:
    check_matrix("input_BX", input_BX)
    if not weights or len(outputs) != len(weights):
        raise ValueError(
            f"outputs: got {len(outputs)} for {len(weights)} weights, expected one a layer and at "
            "least one layer"
        )
    width = input_BX.shape[1]
    for i, (weight, output) in enumerate(zip(weights, outputs, strict=True)):
        check_matrix(f"weights[{i}]", weight, width=width)
        check_matrix(f"outputs[{i}]", output, rows=len(input_BX), width=len(weight))
        width = len(weight)


def _check_biases(name: str, biases: Sequence[Floats], weights: Sequence[Floats]) -> None:
    if len(biases) != len(weights) - 1:
        raise ValueError(
            f"{name}: got {len(biases)}, expected {len(weights) - 1}: one a layer but the last"
        )
    for i, bias in enumerate(biases):
        check_vector(f"{name}[{i}]", bias, np.float32, len(weights[i]))
