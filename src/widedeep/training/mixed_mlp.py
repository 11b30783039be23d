"""The fast path in bfloat16: products of rounded copies, sums and master weights in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.deep import MLP
from widedeep.tables_storage import batch_rows

_LANES = 32  # bfloat16 numbers of a cache line


class MixedMLP:
    """Computes what :class:`widedeep.training.fused_mlp.FusedMLP` does with bfloat16 products."""

    def __init__(self, tower: MLP, output: nn.Linear) -> None:
        assert tower.is_plain
        self.layers = [layer for layer in tower.layers if isinstance(layer, nn.Linear)]
        self.output = output
        self._weights = [_rounded(layer.weight) for layer in self.layers]
        self._biases = [_rounded(layer.bias) for layer in self.layers]
        self._weight_grads = [_rounded(layer.weight) for layer in self.layers]
        self._buffers: dict[str, Tensor] = {}
        self._hidden: list[Tensor] = []
        self._last = torch.empty(0)

    def _buffer(self, name: str, rows: int, width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        held = self._buffers.get(name)
        if held is None or held.shape[0] < rows or held.shape[1] != width:
            if dtype == torch.float32:
                held = batch_rows(rows, width, like.device)
            else:
                lanes = -(-width // _LANES) * _LANES
                held = torch.zeros(rows, lanes, dtype=dtype, device=like.device)[:, :width]
            self._buffers[name] = held
        return held[:rows]

    def _half(self, name: str, like: Tensor, width: int) -> Tensor:
        return self._buffer(name, len(like), width, like, torch.bfloat16)

    @torch.no_grad()
    def forward(self, concat_BX: Tensor) -> Tensor:
        """Return the logits, (B, C), in a buffer that the next call overwrites."""
        hidden = self._half("input", concat_BX, concat_BX.shape[1]).copy_(concat_BX)
        self._hidden = [hidden]
        for i, layer in enumerate(self.layers):
            self._weights[i].copy_(layer.weight)
            self._biases[i].copy_(layer.bias)
            out_BH = self._half(f"hidden.{i}", hidden, layer.out_features)
            torch.addmm(self._biases[i], hidden, self._weights[i].t(), out=out_BH)
            hidden = out_BH.relu_()
            self._hidden.append(hidden)
        rows, width = hidden.shape
        self._last = self._buffer("last", rows, width, hidden, torch.float32).copy_(hidden)
        classes = self.output.out_features
        logits_BC = self._buffer("logits", rows, classes, hidden, torch.float32)
        return torch.mm(self._last, self.output.weight.t(), out=logits_BC)

    @torch.no_grad()
    def backward(self, grad_BC: Tensor) -> Tensor:
        """Write the parameters' gradients into ``.grad``; return the gradient of ``concat_BX``."""
        torch.mm(grad_BC.t(), self._last, out=_grad_of(self.output.weight))
        rows, width = self._last.shape
        wide = self._buffer("grad.last", rows, width, grad_BC, torch.float32)
        below = self._half("grad.rounded", grad_BC, width)
        below.copy_(torch.mm(grad_BC, self.output.weight, out=wide))
        for i in reversed(range(len(self.layers))):
            layer, hidden = self.layers[i], self._hidden[i + 1]
            torch.ops.aten.threshold_backward.grad_input(below, hidden, 0.0, grad_input=below)
            torch.mm(below.t(), self._hidden[i], out=self._weight_grads[i])
            _grad_of(layer.weight).copy_(self._weight_grads[i])
            torch.sum(below, dim=0, dtype=torch.float32, out=_grad_of(layer.bias))
            under = self._half(f"grad.{i}", grad_BC, layer.in_features)
            below = torch.mm(below, self._weights[i], out=under)
        width = self.layers[0].in_features
        return self._buffer("grad.input", rows, width, grad_BC, torch.float32).copy_(below)

    def finish(self) -> None:
        """Do nothing: :meth:`backward` leaves nothing under way."""


def _rounded(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.bfloat16, copy=True)


def _grad_of(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
