"""The fast path on the CPU: the standard ReLU tower and its logit layer in our own kernels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widedeep.deep import MLP
from widedeep.kernels import TowerArrays, TowerGradients, tower_backward, tower_forward
from widedeep.tables_storage import batch_rows

Floats = NDArray[np.float32]
_CPU = torch.device("cpu")


class NativeMLP:
    """Computes a plain :class:`widedeep.deep.MLP` and its output layer by the native tower."""

    def __init__(
        self, tower: MLP, output: nn.Linear, *, threads: int = 1, bf16: bool = False
    ) -> None:
        assert tower.is_plain
        self.threads = threads
        self.bf16 = bf16
        hidden = [layer for layer in tower.layers if isinstance(layer, nn.Linear)]
        self._weights = [layer.weight for layer in (*hidden, output)]
        self._biases = [layer.bias for layer in hidden]
        self._inputs = self._weights[0].shape[1]
        self._capacity = 0
        self._arrays: TowerArrays | None = None
        self._addresses: tuple[int, ...] = ()
        self._under_way: TowerGradients | None = None
        self._logits = self._grad_BX = torch.empty(0)

    def _prepare(self, concat_BX: Tensor) -> TowerArrays:
        """Return the arrays for a batch: those of the last one if everything lies where it did."""
        parameters = (*self._weights, *self._biases)
        addresses = (
            len(concat_BX), concat_BX.data_ptr(), concat_BX.stride(0),
            *(p.data_ptr() for p in parameters),
            *(0 if p.grad is None else p.grad.data_ptr() for p in parameters),
        )  # fmt: skip
        if self._arrays is None or addresses != self._addresses:
            self._addresses, self._arrays = addresses, self._make(concat_BX)
        return self._arrays

    def _make(self, concat_BX: Tensor) -> TowerArrays:
        rows = len(concat_BX)
        if rows > self._capacity:
            self._capacity = rows
            widths = [len(weight) for weight in self._weights]
            self._outputs = [batch_rows(rows, width, _CPU) for width in widths]
            self._grads = [batch_rows(rows, width, _CPU) for width in widths]
            self._grad_input = batch_rows(rows, self._inputs, _CPU)
        self._logits = self._outputs[-1][:rows]
        self._grad_BX = self._grad_input[:rows]
        grads = [grad[:rows].numpy() for grad in self._grads]
        return TowerArrays(
            input_BX=concat_BX.detach().numpy(),
            weights=[weight.detach().numpy() for weight in self._weights],
            biases=[bias.detach().numpy() for bias in self._biases],
            outputs=[out[:rows].numpy() for out in self._outputs],
            grad_logits_BC=grads[-1],
            grads=grads[:-1],
            grad_input_BX=self._grad_BX.numpy(),
            weight_grads=[_grad_of(weight) for weight in self._weights],
            bias_grads=[_grad_of(bias) for bias in self._biases],
            bf16=self.bf16,
        )

    def forward(self, concat_BX: Tensor) -> Tensor:
        """Return the logits, (B, C), in a buffer that the next call overwrites."""
        self.finish()
        tower_forward(self._prepare(concat_BX), self.threads)
        return self._logits

    def backward(self, grad_BC: Tensor) -> Tensor:
        """Return the gradient of ``concat_BX``; ``finish`` leaves the parameters' in ``.grad``."""
        assert self._arrays is not None
        self._arrays.grad_logits_BC[:] = grad_BC.numpy()
        self._under_way = tower_backward(self._arrays, self.threads)
        return self._grad_BX

    def finish(self) -> None:
        """Wait for the gradients that :meth:`backward` left to other threads."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None


def _grad_of(parameter: Tensor) -> Floats:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    found: Floats = parameter.grad.numpy()
    return found
