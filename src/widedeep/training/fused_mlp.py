"""The fast path: the standard ReLU tower and its logit layer, forward and backward by hand.

The same products as autograd makes, into buffers that are kept between steps: no graph, no
allocation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.deep import MLP
from widedeep.tables_storage import batch_rows


class FusedMLP:
    """Computes a plain :class:`widedeep.deep.MLP` and its output layer without autograd."""

    def __init__(self, tower: MLP, output: nn.Linear) -> None:
        assert tower.is_plain
        self.layers = [layer for layer in tower.layers if isinstance(layer, nn.Linear)]
        self.output = output
        self._buffers: dict[str, Tensor] = {}
        self._hidden: list[Tensor] = []

    def _buffer(self, name: str, rows: int, width: int, like: Tensor) -> Tensor:
        held = self._buffers.get(name)
        if held is None or held.shape[0] < rows or held.shape[1] != width:
            held = batch_rows(rows, width, like.device).to(like.dtype)
            self._buffers[name] = held
        return held[:rows]

    @torch.no_grad()
    def forward(self, concat_BX: Tensor) -> Tensor:
        """Return the logits, (B, C), in a buffer that the next call overwrites."""
        rows = len(concat_BX)
        hidden = concat_BX
        self._hidden = [hidden]
        for i, layer in enumerate(self.layers):
            out_BH = self._buffer(f"hidden.{i}", rows, layer.out_features, hidden)
            torch.addmm(layer.bias, hidden, layer.weight.t(), out=out_BH)
            hidden = out_BH.relu_()
            self._hidden.append(hidden)
        logits_BC = self._buffer("logits", rows, self.output.out_features, hidden)
        return torch.mm(hidden, self.output.weight.t(), out=logits_BC)

    @torch.no_grad()
    def backward(self, grad_BC: Tensor) -> Tensor:
        """Write the parameters' gradients into ``.grad``; return the gradient of ``concat_BX``."""
        rows = len(grad_BC)
        _grad_into(self.output.weight, grad_BC.t(), self._hidden[-1])
        weight = self.output.weight
        grad = grad_BC
        for i in reversed(range(len(self.layers))):
            layer, hidden = self.layers[i], self._hidden[i + 1]
            below = self._buffer(f"grad.{i}", rows, layer.out_features, grad_BC)
            torch.mm(grad, weight, out=below)
            torch.ops.aten.threshold_backward.grad_input(below, hidden, 0.0, grad_input=below)
            _grad_into(layer.weight, below.t(), self._hidden[i])
            _sum_into(layer.bias, below)
            grad, weight = below, layer.weight
        grad_BX = self._buffer("grad.input", rows, weight.shape[1], grad_BC)
        return torch.mm(grad, weight, out=grad_BX)

    def finish(self) -> None:
        """Do nothing: :meth:`backward` leaves nothing under way."""


def _grad_into(parameter: Tensor, left: Tensor, right: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    torch.mm(left, right, out=parameter.grad)


def _sum_into(parameter: Tensor, grad_BH: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    torch.sum(grad_BH, dim=0, out=parameter.grad)
