"""Blocks of models in training, each as one operation of torch's graph, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from widedeep import kernels
from widedeep.kernels.torch_layers import native_threads


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().view(-1).numpy()


def gru_states(
    events_NE: Tensor,
    mask_BT: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    state_weight: Tensor,
    weights_N: Tensor | None = None,
) -> Tensor:
    """Return the states of a gated recurrent unit after each event.

    The equations are those of :class:`widedeep.models.history_blocks.GRU`.

    Args:
        events_NE: The events that the mask lets through, history after history.
        mask_BT: bool.
        input_weight: (3 H, E): update, reset, candidate.
        input_bias: (3 H,).
        state_weight: (3 H, H).
        weights_N: Factor of each event's update gate.

    Shape:
        (N, E), bool (B, T) -> (N, H)
    """
    states_NH: Tensor = _GRUStates.apply(  # type: ignore[no-untyped-call]
        events_NE, mask_BT, input_weight, input_bias, state_weight, weights_N
    )
    return states_NH


class _GRUStates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        events_NE: Tensor,
        mask_BT: Tensor,
        input_weight: Tensor,
        input_bias: Tensor,
        state_weight: Tensor,
        weights_N: Tensor | None,
    ) -> Tensor:
        width, events = state_weight.shape[1], len(events_NE)
        inputs_NG = torch.addmm(input_bias, events_NE, input_weight.t())
        states_NH, saved = torch.empty(events, width), torch.empty(events, 4 * width)
        ctx.steps, ctx.threads = mask_BT.shape[1], max(1, native_threads())
        ctx.mask = mask_BT.to(torch.uint8).contiguous()
        kernels.gru(
            ctx.mask.view(-1).numpy(), ctx.steps, _flat(inputs_NG),
            state_weight.detach().contiguous().numpy(),
            None if weights_N is None else _flat(weights_N),
            states_NH.view(-1).numpy(), saved.view(-1).numpy(), ctx.threads,
        )  # fmt: skip
        ctx.save_for_backward(
            events_NE, input_weight, state_weight, weights_N, inputs_NG, states_NH, saved
        )
        return states_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
        events_NE, input_weight, state_weight, weights_N, inputs_NG, states_NH, saved = (
            ctx.saved_tensors
        )
        by_inputs, by_products = torch.empty_like(inputs_NG), torch.empty_like(inputs_NG)
        by_weights = None if weights_N is None else torch.empty(len(events_NE))
        kernels.gru_grad(
            ctx.mask.view(-1).numpy(), ctx.steps, _flat(inputs_NG),
            state_weight.detach().contiguous().numpy(),
            None if weights_N is None else _flat(weights_N),
            states_NH.detach().view(-1).numpy(), saved.view(-1).numpy(), _flat(grad_NH),
            by_inputs.view(-1).numpy(), by_products.view(-1).numpy(),
            None if by_weights is None else by_weights.numpy(), ctx.threads,
        )  # fmt: skip
        # A state is multiplied for the event after it, but the last one of a history.
        before_NH = torch.zeros_like(states_NH)
        before_NH[1:] = states_NH[:-1]
        counts_B = ctx.mask.sum(1, dtype=torch.int64)
        firsts_B = (counts_B.cumsum(0) - counts_B)[counts_B > 0]
        before_NH[firsts_B] = 0.0
        return (
            by_inputs @ input_weight if ctx.needs_input_grad[0] else None,
            None,
            by_inputs.t() @ events_NE,
            by_inputs.sum(0),
            by_products.t() @ before_NH,
            by_weights,
        )


def field_attention(projected: Tensor, heads: int, scale: float) -> Tensor:
    """Return ``relu(softmax(scale q . k) v + residual)`` of every field, by head.

    Shape:
        (B, F, 4 A) -> (B, F, A)
    """
    out: Tensor = _FieldAttention.apply(projected, heads, scale)  # type: ignore[no-untyped-call]
    return out


class _FieldAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, heads: int, scale: float) -> Tensor:
        rows, fields, width = projected.shape
        projected = projected.contiguous()
        out = torch.empty(rows, fields, width // 4)
        ctx.shape, ctx.threads = (fields, heads, width // (4 * heads), scale), native_threads() or 1
        _, _, units, _ = ctx.shape
        kernels.field_attention(
            _flat(projected), fields, heads, units, scale, out.view(-1).numpy(), ctx.threads
        )
        ctx.save_for_backward(projected, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projected, out = ctx.saved_tensors
        by_projected = torch.empty_like(projected)
        fields, heads, units, scale = ctx.shape
        kernels.field_attention_grad(
            _flat(projected), fields, heads, units, scale, out.detach().view(-1).numpy(),
            _flat(grad), by_projected.view(-1).numpy(), ctx.threads,
        )  # fmt: skip
        return by_projected, None, None


def field_convolution(maps_BMFD: Tensor, weight_NMW: Tensor, bias_N: Tensor, k: int) -> Tensor:
    """Return the k largest values over fields of ``tanh(convolution)``, largest first.

    Ends are padded with zeros, the one more of an even width on the right.

    Args:
        maps_BMFD: M maps of F fields, at most 256.
        weight_NMW: N filters over W neighbouring fields.
        bias_N: Their biases.
        k: At most F.

    Shape:
        (B, M, F, D) -> (B, N, k, D)
    """
    values: Tensor = _FieldConvolution.apply(  # type: ignore[no-untyped-call]
        maps_BMFD, weight_NMW, bias_N, k
    )
    return values


class _FieldConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps_BMFD: Tensor, weight_NMW: Tensor, bias_N: Tensor, k: int) -> Tensor:
        rows, _, _, dim = maps_BMFD.shape
        maps_BMFD = maps_BMFD.contiguous()
        out = torch.empty(rows, len(bias_N), k, dim)
        positions = torch.empty(out.shape, dtype=torch.uint8)
        width = weight_NMW.shape[2]
        ctx.k, ctx.threads = k, native_threads() or 1
        kernels.field_convolution(
            _flat(maps_BMFD), rows, _flat(weight_NMW), _flat(bias_N), dim, width, k,
            out.view(-1).numpy(), positions.view(-1).numpy(), ctx.threads,
        )  # fmt: skip
        ctx.save_for_backward(maps_BMFD, weight_NMW, bias_N, out, positions)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps_BMFD, weight_NMW, bias_N, out, positions = ctx.saved_tensors
        by_maps, by_weight, by_bias = (
            torch.empty(tensor.shape) for tensor in (maps_BMFD, weight_NMW, bias_N)
        )
        dim, width = maps_BMFD.shape[3], weight_NMW.shape[2]
        kernels.field_convolution_grad(
            _flat(maps_BMFD), len(maps_BMFD), _flat(weight_NMW), _flat(bias_N), dim, width, ctx.k,
            out.detach().view(-1).numpy(), positions.view(-1).numpy(), _flat(grad),
            by_maps.view(-1).numpy(), by_weight.view(-1).numpy(), by_bias.numpy(), ctx.threads,
        )  # fmt: skip
        return by_maps, by_weight, by_bias, None


def bilinear_products(
    fields_BFD: Tensor, weight_DPD: Tensor, gates_BF: Tensor, numbers_BK: Tensor
) -> Tensor:
    """Return bilinear products of all pairs of fields, weighed and plain, and the numbers.

    ``[a_i a_j (v_i W_ij * v_j); v_i W_ij * v_j; numbers]``, pairs in the order of
    ``itertools.combinations``.

    Args:
        fields_BFD: Two fields or more.
        weight_DPD: W of each pair.
        gates_BF: a, the weight of each field.
        numbers_BK: What stands behind the products.

    Shape:
        (B, F, D), (D, P, D), (B, F), (B, K) -> (B, 2 P D + K)
    """
    out: Tensor = _BilinearProducts.apply(  # type: ignore[no-untyped-call]
        fields_BFD, weight_DPD, gates_BF, numbers_BK
    )
    return out


def _pairs_by_first(n_fields: int, dim: int) -> list[tuple[int, slice, slice]]:
    """Return each pair's first field with its pairs, and their columns."""
    runs, start = [], 0
    for field in range(n_fields - 1):
        stop = start + n_fields - 1 - field
        runs.append((field, slice(start, stop), slice(start * dim, stop * dim)))
        start = stop
    return runs


class _BilinearProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fields_BFD: Tensor, weight_DPD: Tensor, gates_BF: Tensor, numbers_BK: Tensor
    ) -> Tensor:
        rows, n_fields, dim = fields_BFD.shape
        width = weight_DPD.shape[1] * dim
        left, out = torch.empty(rows, width), torch.empty(rows, 2 * width + numbers_BK.shape[1])
        for field, pairs, columns in _pairs_by_first(n_fields, dim):
            torch.mm(fields_BFD[:, field], weight_DPD[:, pairs].flatten(1), out=left[:, columns])
        ctx.threads = native_threads() or 1
        ctx.save_for_backward(fields_BFD, weight_DPD, gates_BF, numbers_BK, left)
        kernels.bilinear_products(
            left.numpy(), fields_BFD.detach().flatten(1).numpy(),
            gates_BF.detach().contiguous().numpy(), numbers_BK.detach().numpy(), out.numpy(),
            ctx.threads,
        )  # fmt: skip
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        fields_BFD, weight_DPD, gates_BF, numbers_BK, left = ctx.saved_tensors
        rows, n_fields, dim = fields_BFD.shape
        by_left, by_gates = torch.empty(left.shape), torch.empty(gates_BF.shape)
        by_fields, by_weight = torch.empty(rows, n_fields, dim), torch.empty(weight_DPD.shape)
        grad = grad.contiguous()
        kernels.bilinear_products_grad(
            left.numpy(), fields_BFD.detach().flatten(1).numpy(),
            gates_BF.detach().contiguous().numpy(), numbers_BK.detach().numpy(), grad.numpy(),
            by_left.numpy(), by_fields.view(rows, -1).numpy(), by_gates.numpy(), ctx.threads,
        )  # fmt: skip
        for field, pairs, columns in _pairs_by_first(n_fields, dim):
            matrix, gradient = weight_DPD[:, pairs].flatten(1), by_left[:, columns]
            by_fields[:, field].addmm_(gradient, matrix.t())
            by_weight[:, pairs] = (fields_BFD[:, field].t() @ gradient).view(dim, -1, dim)
        return by_fields, by_weight, by_gates, grad[:, 2 * left.shape[1] :]


def dice(sums_NH: Tensor, alpha_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return Dice of sums, and their means and variances over the rows, which have no gradient.

    The equation is that of :class:`widedeep.models.history_blocks.Dice`.

    Args:
        sums_NH: One row or more.
        alpha_H: Slope of what is off.
        epsilon: Added to the variance.

    Shape:
        (N, H), (H,) -> (N, H), (H,), (H,)
    """
    result: tuple[Tensor, Tensor, Tensor] = _Dice.apply(  # type: ignore[no-untyped-call]
        sums_NH, alpha_H, epsilon
    )
    return result


class _Dice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sums_NH: Tensor, alpha_H: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean_H, variance_H = (
            torch.empty(tensor.shape) for tensor in (sums_NH, alpha_H, alpha_H)
        )
        ctx.epsilon, ctx.threads = epsilon, native_threads() or 1
        kernels.dice(
            _flat(sums_NH), _flat(alpha_H), mean_H.numpy(), variance_H.numpy(), epsilon,
            out.view(-1).numpy(), ctx.threads,
        )  # fmt: skip
        ctx.save_for_backward(sums_NH, alpha_H, mean_H, variance_H)
        ctx.mark_non_differentiable(mean_H, variance_H)
        return out, mean_H, variance_H

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        sums_NH, alpha_H, mean_H, variance_H = ctx.saved_tensors
        by_sums, by_alpha = torch.empty(sums_NH.shape), torch.empty(alpha_H.shape)
        kernels.dice_grad(
            _flat(sums_NH), _flat(alpha_H), mean_H.numpy(), variance_H.numpy(), ctx.epsilon,
            _flat(grad), by_sums.view(-1).numpy(), by_alpha.numpy(), ctx.threads,
        )  # fmt: skip
        return by_sums, by_alpha, None


def exp_norm(
    logs_BDF: Tensor, exponents_JF: Tensor, weight_J: Tensor, bias_J: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch norm of ``exp(exponents logs)``, and its moments, which have no gradient.

    Args:
        logs_BDF: One number or more by dimension and field.
        exponents_JF: Their weights in each neuron.
        weight_J: Weight of the norm, over examples and dimensions.
        bias_J: Its bias.
        epsilon: Added to the variance.

    Shape:
        (B, D, F), (J, F) -> (B, J, D), mean (J,), variance (J,)
    """
    result: tuple[Tensor, Tensor, Tensor] = _ExpNorm.apply(  # type: ignore[no-untyped-call]
        logs_BDF, exponents_JF, weight_J, bias_J, epsilon
    )
    return result


class _ExpNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logs_BDF: Tensor,
        exponents_JF: Tensor,
        weight_J: Tensor,
        bias_J: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, dim, _ = logs_BDF.shape
        values = logs_BDF.flatten(0, 1) @ exponents_JF.t()
        out = torch.empty(rows, len(exponents_JF), dim)
        mean_J, variance_J = torch.empty(weight_J.shape), torch.empty(weight_J.shape)
        ctx.epsilon, ctx.threads = epsilon, native_threads() or 1
        kernels.exp_norm(
            values.view(-1).numpy(), _flat(weight_J), _flat(bias_J), dim, mean_J.numpy(),
            variance_J.numpy(), epsilon, out.view(-1).numpy(), ctx.threads,
        )  # fmt: skip
        ctx.save_for_backward(logs_BDF, exponents_JF, weight_J, bias_J, values, mean_J, variance_J)
        ctx.mark_non_differentiable(mean_J, variance_J)
        return out, mean_J, variance_J

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logs_BDF, exponents_JF, weight_J, bias_J, values, mean_J, variance_J = ctx.saved_tensors
        by_sums = torch.empty(values.shape)
        by_weight, by_bias = torch.empty(weight_J.shape), torch.empty(weight_J.shape)
        kernels.exp_norm_grad(
            values.view(-1).numpy(), _flat(weight_J), _flat(bias_J), logs_BDF.shape[1],
            mean_J.numpy(), variance_J.numpy(), ctx.epsilon, _flat(grad),
            by_sums.view(-1).numpy(), by_weight.numpy(), by_bias.numpy(), ctx.threads,
        )  # fmt: skip
        by_logs = (by_sums @ exponents_JF).view(logs_BDF.shape)
        return by_logs, by_sums.t() @ logs_BDF.flatten(0, 1), by_weight, by_bias, None


def aware_products(input_BX: Tensor, fields: int, dim: int) -> Tensor:
    """Return what fields copy, the scalar products of their pairs, and the numbers after them.

    Args:
        input_BX: (F, F, D) numbers of each example, as :class:`widedeep.models.onn.ONN` has them,
            then K numbers.
        fields: F.
        dim: D.

    Shape:
        (B, F F D + K) -> (B, F D + F (F - 1) / 2 + K)
    """
    out: Tensor = _AwareProducts.apply(input_BX, fields, dim)  # type: ignore[no-untyped-call]
    return out


class _AwareProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_BX: Tensor, fields: int, dim: int) -> Tensor:
        rows, width = input_BX.shape
        pairs = fields * (fields - 1) // 2
        out = torch.empty(rows, width - fields * (fields - 1) * dim + pairs)
        ctx.fields, ctx.dim, ctx.threads = fields, dim, native_threads() or 1
        ctx.save_for_backward(input_BX)
        kernels.aware_products(input_BX.detach().numpy(), fields, dim, out.numpy(), ctx.threads)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (input_BX,) = ctx.saved_tensors
        by_input = torch.empty(input_BX.shape)
        kernels.aware_products_grad(
            input_BX.detach().numpy(), ctx.fields, ctx.dim, grad.contiguous().numpy(),
            by_input.numpy(), ctx.threads,
        )  # fmt: skip
        return by_input, None, None


def mix_experts(gates_BE: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Return ``sum_e g_e f_e`` without a copy of the experts' outputs side by side.

    Shape:
        (B, E), E times (B, H) -> (B, H)
    """
    mixed_BH: Tensor = _MixExperts.apply(gates_BE, *experts)  # type: ignore[no-untyped-call]
    return mixed_BH


class _MixExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates_BE: Tensor, *experts: Tensor) -> Tensor:
        ctx.save_for_backward(gates_BE, *experts)
        mixed_BH = gates_BE[:, :1] * experts[0]
        for e, expert_BH in enumerate(experts[1:], 1):
            mixed_BH.addcmul_(gates_BE[:, e : e + 1], expert_BH)
        return mixed_BH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BH: Tensor) -> tuple[Tensor, ...]:
        gates_BE, *experts = ctx.saved_tensors
        by_gates = [(grad_BH * expert_BH).sum(1) for expert_BH in experts]
        by_experts = [gates_BE[:, e : e + 1] * grad_BH for e in range(len(experts))]
        return torch.stack(by_gates, dim=1), *by_experts
