"""The fast path on the CPU: the standard ReLU tower and its logit layer in our own kernels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep import kernels
from widedeep.deep import MLP
from widedeep.tables_storage import batch_rows

__all__ = ["NativeMLP"]

Floats = NDArray[np.float32]
_CPU = torch.device("cpu")


class NativeMLP:
    """Computes a plain :class:`widedeep.deep.MLP` and its output layer by `widedeep.kernels.tower`.

    Buffers are kept between steps. A row's logits do not depend on the batch, nor any result on
    the number of threads.

    Args:
        tower: A tower whose :attr:`~widedeep.deep.MLP.is_plain` is true.
        output: The linear layer from the last hidden units to the C logits, without bias.
        threads: Threads of the kernels.

    Shape:
        concat_BX (B, X) -> logits (B, C); gradient of the logits (B, C) -> gradient of concat_BX
        (B, X)
    """

    def __init__(self, tower: MLP, output: nn.Linear, *, threads: int = 1) -> None:
        assert tower.is_plain
        self.threads = threads
        self.hidden = [layer for layer in tower.layers if isinstance(layer, nn.Linear)]
        self.layers = [*self.hidden, output]
        self._capacity = 0
        self._resize(1)

    def _resize(self, rows: int) -> None:
        if rows <= self._capacity:
            return
        self._capacity = rows

        def room(widths: list[int]) -> list[Tensor]:
            return [batch_rows(rows, width, _CPU) for width in widths]

        self._outputs = room([layer.out_features for layer in self.layers])
        self._grads = room([layer.out_features for layer in self.hidden])
        self._grad_input = batch_rows(rows, self.layers[0].in_features, _CPU)

    def _outputs_of(self, rows: int) -> list[Floats]:
        return [out[:rows].numpy() for out in self._outputs]

    @torch.no_grad()
    def forward(self, concat_BX: Tensor) -> Tensor:
        """Return the logits, (B, C), in a buffer that the next call overwrites."""
        rows = len(concat_BX)
        self._resize(rows)
        self._input = concat_BX.numpy()
        kernels.tower_forward(
            self._input,
            [layer.weight.numpy() for layer in self.layers],
            [layer.bias.numpy() for layer in self.hidden],
            self._outputs_of(rows),
            self.threads,
        )
        return self._outputs[-1][:rows]

    @torch.no_grad()
    def backward(self, grad_BC: Tensor) -> Tensor:
        """Write the parameters' gradients into ``.grad`` and return the gradient of ``concat_BX``.

        Args:
            grad_BC: Gradient of the logits of the last :meth:`forward`.

        Returns:
            (B, X), in a buffer that the next call overwrites.
        """
        rows = len(grad_BC)
        grad_BX = self._grad_input[:rows]
        kernels.tower_backward(
            self._input,
            [layer.weight.numpy() for layer in self.layers],
            self._outputs_of(rows),
            grad_BC.numpy(),
            [grad[:rows].numpy() for grad in self._grads],
            grad_BX.numpy(),
            [_grad_of(layer.weight) for layer in self.layers],
            [_grad_of(layer.bias) for layer in self.hidden],
            self.threads,
        )
        return grad_BX


def _grad_of(parameter: Tensor) -> Floats:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    found: Floats = parameter.grad.numpy()
    return found
