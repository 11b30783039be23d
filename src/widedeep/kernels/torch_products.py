"""A linear layer over outer products, which torch alone would keep in memory whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_LINES = 4096  # of outer products at a time: few enough for the cache, enough for threads


def outer_linear(maps_NH: Tensor, fields_NF: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return a linear layer over the outer product of two vectors, for N pairs of them.

    The products, H F numbers a line, are made for some lines at a time, and again for the gradient.

    Args:
        maps_NH: The first vectors.
        fields_NF: The second vectors.
        weight: (outputs, H F).
        bias: (outputs,).

    Shape:
        (N, H), (N, F) -> (N, outputs)

    Example:
        >>> left, right = torch.tensor([[2.0]]), torch.tensor([[3.0, 5.0]])
        >>> outer_linear(left, right, torch.ones(1, 2), torch.ones(1)).tolist()
        [[17.0]]
    """
    out: Tensor = _OuterLinear.apply(  # type: ignore[no-untyped-call]
        maps_NH, fields_NF, weight, bias
    )
    return out


class _OuterLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps_NH: Tensor, fields_NF: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(maps_NH, fields_NF, weight)
        out = maps_NH.new_empty(len(maps_NH), len(weight))
        for lines in _runs(len(maps_NH)):
            products = _outer(maps_NH[lines], fields_NF[lines])
            torch.addmm(bias, products, weight.t(), out=out[lines])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        maps_NH, fields_NF, weight = ctx.saved_tensors
        grad_maps, grad_fields = torch.empty_like(maps_NH), torch.empty_like(fields_NF)
        grad_weight = torch.zeros_like(weight)
        shape = (-1, maps_NH.shape[1], fields_NF.shape[1])
        for lines in _runs(len(maps_NH)):
            grad_weight.addmm_(grad[lines].t(), _outer(maps_NH[lines], fields_NF[lines]))
            grad_NHF = (grad[lines] @ weight).view(shape)
            grad_maps[lines] = torch.bmm(grad_NHF, fields_NF[lines].unsqueeze(2)).squeeze(2)
            grad_fields[lines] = torch.bmm(maps_NH[lines].unsqueeze(1), grad_NHF).squeeze(1)
        return grad_maps, grad_fields, grad_weight, grad.sum(0)


def _outer(maps_NH: Tensor, fields_NF: Tensor) -> Tensor:
    return (maps_NH.unsqueeze(2) * fields_NF.unsqueeze(1)).flatten(1)


def _runs(lines: int) -> Iterator[slice]:
    return (slice(start, start + _LINES) for start in range(0, lines, _LINES))
