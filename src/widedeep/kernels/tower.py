"""A tower of dense layers in training: forward and backward over a batch, without autograd.

Layer i computes ``max(0, in @ weights[i].T + biases[i])`` from the layer below it, the last one
``in @ weights[-1].T`` alone: the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep import _native
from widedeep.kernels.checks import check_matrix, check_vector

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TowerArrays:
    """The arrays of a tower over one batch, checked once: a training step uses them again.

    Rows of the matrices that have B of them may lie further apart than their width.

    Args:
        input_BX: float32 (B, X).
        weights: float32 (out, in) of each layer, as ``torch.nn.Linear`` holds them.
        biases: float32 (out,) of each layer but the last, which has none.
        outputs: float32 (B, out) of each layer; the last one's are the logits.
        grad_logits_BC: float32 (B, C).
        grads: float32 (B, out) of each layer but the last: the gradient before its rectifier.
        grad_input_BX: float32 (B, X).
        weight_grads: float32 (out, in) of each layer.
        bias_grads: float32 (out,) of each layer but the last.
        bf16: Round the factors of products to bfloat16; sums and all arrays stay float32.

    Raises:
        ValueError: If an array has another type or shape, or the processor has no
            :func:`has_bf16_products`.
    """

    input_BX: Floats
    weights: list[Floats]
    biases: list[Floats]
    outputs: list[Floats]
    grad_logits_BC: Floats
    grads: list[Floats]
    grad_input_BX: Floats
    weight_grads: list[Floats]
    bias_grads: list[Floats]
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.bf16 and not has_bf16_products():
            raise ValueError("bf16: got True, but this processor lacks AVX512_BF16; leave it out")
        layers = len(self.weights)
        for name, arrays, count in (
            ("weights", self.weights, max(layers, 1)),
            ("outputs", self.outputs, layers),
            ("weight_grads", self.weight_grads, layers),
            ("biases", self.biases, layers - 1),
            ("grads", self.grads, layers - 1),
            ("bias_grads", self.bias_grads, layers - 1),
        ):
            if len(arrays) != count:
                raise ValueError(f"{name}: got {len(arrays)} for {layers} layers, expected {count}")
        check_matrix("input_BX", self.input_BX)
        rows, width = self.input_BX.shape
        check_matrix("grad_input_BX", self.grad_input_BX, rows=rows, width=width)
        for i, weight in enumerate(self.weights):
            check_matrix(f"weights[{i}]", weight, width=width)
            width = len(weight)
            check_matrix(f"outputs[{i}]", self.outputs[i], rows=rows, width=width)
            check_matrix(
                f"weight_grads[{i}]", self.weight_grads[i], rows=width, width=weight.shape[1]
            )
            if i + 1 < layers:
                check_matrix(f"grads[{i}]", self.grads[i], rows=rows, width=width)
                check_vector(f"biases[{i}]", self.biases[i], np.float32, width)
                check_vector(f"bias_grads[{i}]", self.bias_grads[i], np.float32, width)
        check_matrix("grad_logits_BC", self.grad_logits_BC, rows=rows, width=width)

    @classmethod
    def make(
        cls,
        input_BX: Floats,
        weights: Sequence[Floats],
        biases: Sequence[Floats],
        *,
        bf16: bool = False,
    ) -> TowerArrays:
        """Return the arrays of a tower, with room for everything that is computed.

        Args:
            input_BX: The batch.
            weights: Of each layer.
            biases: Of each layer but the last.
            bf16: Round the factors of products.
        """

        def room(width: int) -> Floats:
            return np.zeros((len(input_BX), width), np.float32)

        return cls(
            input_BX=input_BX,
            weights=list(weights),
            biases=list(biases),
            outputs=[room(len(w)) for w in weights],
            grad_logits_BC=room(len(weights[-1])),
            grads=[room(len(w)) for w in weights[:-1]],
            grad_input_BX=np.zeros_like(input_BX),
            weight_grads=[np.zeros_like(w) for w in weights],
            bias_grads=[np.zeros_like(b) for b in biases],
            bf16=bf16,
        )


def has_bf16_products() -> bool:
    """Tell whether towers can be computed in bfloat16 here (AVX512_BF16, and it is in use)."""
    return bool(_native.has_bf16_products())


def tower_forward(tower: TowerArrays, threads: int = 1) -> None:
    """Fill the outputs of every layer.

    Args:
        tower: Its arrays.
        threads: Threads to use; the result does not depend on it.

    Example:
        >>> import numpy as np
        >>> tower = TowerArrays.make(
        ...     np.array([[1.0, 2.0]], np.float32),
        ...     [np.array([[1, 1], [-1, 0]], np.float32), np.array([[2, 5]], np.float32)],
        ...     [np.array([0.5, 0.0], np.float32)],
        ... )
        >>> tower_forward(tower)
        >>> [output.tolist() for output in tower.outputs]
        [[[3.5, 0.0]], [[7.0]]]
    """
    _native.tower_forward(
        tower.bf16, tower.input_BX, tower.weights, tower.biases, tower.outputs, threads
    )


class TowerGradients:
    """The weights' and biases' gradients of a tower, which other threads are computing.

    Args:
        tower: The arrays they read and write; left alone until :meth:`wait` has returned.
        under_way: What the backend waits for.
    """

    def __init__(self, tower: TowerArrays, under_way: Any) -> None:
        self._under_way = under_way  # first: it must go before the arrays it writes to
        self._tower = tower

    def wait(self) -> None:
        """Help with what is left, and return when all of them are there."""
        self._under_way.wait()


def tower_backward(tower: TowerArrays, threads: int = 1) -> TowerGradients:
    """Fill the gradient of the input, and begin with those of the weights and biases.

    Nothing below the tower needs the latter: other threads sum them over the batch while the
    caller goes on, for instance with the rows of the embeddings.

    Args:
        tower: Its arrays, after :func:`tower_forward` and with the gradient of the logits.
        threads: Threads to use; the result does not depend on it.

    Returns:
        What to wait for before the gradients are read or anything here is changed.
    """
    under_way = _native.tower_backward(
        tower.bf16, tower.input_BX, tower.weights, tower.outputs, tower.grad_logits_BC, tower.grads,
        tower.grad_input_BX, tower.weight_grads, tower.bias_grads, threads,
    )  # fmt: skip
    return TowerGradients(tower, under_way)


def logistic_loss(
    logits_B: NDArray[np.float32],
    labels_B: NDArray[np.float32],
    losses_B: NDArray[np.float32],
    grads_B: NDArray[np.float32],
) -> None:
    """Cross-entropy of a logit z and a label y, and its derivative sigmoid(z) - y.

    Args:
        logits_B: float32 logits.
        labels_B: float32 labels in [0, 1].
        losses_B: float32, filled with max(z, 0) - z y + log(1 + exp(-abs(z))).
        grads_B: float32, filled.

    Raises:
        ValueError: If an array has another type or length.

    Example:
        >>> import numpy as np
        >>> losses, grads = np.empty(2, np.float32), np.empty(2, np.float32)
        >>> logistic_loss(np.float32([0, 100]), np.float32([1, 0]), losses, grads)
        >>> losses.round(3).tolist(), grads.tolist()
        ([0.6930000185966492, 100.0], [-0.5, 1.0])
    """
    check_vector("logits_B", logits_B, np.float32)
    for name, array in (("labels_B", labels_B), ("losses_B", losses_B), ("grads_B", grads_B)):
        check_vector(name, array, np.float32, len(logits_B))
    _native.logistic_loss(logits_B, labels_B, losses_B, grads_B)
