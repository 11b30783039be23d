"""Attention over the products of pairs of fields in training, as one operation of torch's graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from widedeep import kernels
from widedeep.kernels.torch_layers import native_threads, runs_native

_MAX_DIM = 256


def can_attend_pairs(fields_BFD: Tensor) -> bool:
    """Tell whether attention over pairs of these fields shall be computed natively."""
    return runs_native(fields_BFD) and fields_BFD.shape[2] <= _MAX_DIM


def attend_pairs(fields_BFD: Tensor, weight_AD: Tensor, bias_A: Tensor, score_A: Tensor) -> Tensor:
    """Return ``sum_p softmax_p(score . relu(weight p + bias)) p`` over the products p = v_i * v_j.

    Shape:
        (B, F, D) -> (B, D)
    """
    pooled_BD: Tensor = _AttendPairs.apply(  # type: ignore[no-untyped-call]
        fields_BFD, weight_AD, bias_A, score_A
    )
    return pooled_BD


class _AttendPairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fields_BFD: Tensor, weight_AD: Tensor, bias_A: Tensor, score_A: Tensor
    ) -> Tensor:
        rows, n_fields, dim = fields_BFD.shape
        pooled_BD = torch.empty(rows, dim)
        attention_BP = torch.empty(rows, n_fields * (n_fields - 1) // 2)
        ctx.threads = native_threads()
        saved = fields_BFD.flatten(1), weight_AD, bias_A, score_A, attention_BP
        ctx.save_for_backward(*saved)
        fields, weight, bias, score, attention = _arrays(*saved)
        kernels.attend_pairs(fields, weight, bias, score, pooled_BD.numpy(), attention, ctx.threads)
        return pooled_BD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        gradients = [torch.empty(tensor.shape) for tensor in saved[:-1]]
        fields, weight, bias, score, attention, grad = _arrays(*saved, grad_BD.contiguous())
        by_fields, by_weight, by_bias, by_score = _arrays(*gradients)
        kernels.attend_pairs_grad(
            fields, weight, bias, score, attention, grad,
            by_fields, by_weight, by_bias, by_score, ctx.threads,
        )  # fmt: skip
        grad_BX, *others = gradients
        return grad_BX.view(len(grad_BD), -1, grad_BD.shape[1]), *others


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)
