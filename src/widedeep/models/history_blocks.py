"""Blocks over histories: each takes the places that hold something, and ignores the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_blocks import dice, gru_states
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.blocks import has_hooks, linear


def mean_pool(values_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over the places that hold something, zeros where none does.

    Shape:
        (B, T, D), bool (B, T) -> (B, D)
    """
    mask_BT1 = mask_BT[:, :, None]
    total_BD = values_BTD.masked_fill(~mask_BT1, 0.0).sum(1)
    return total_BD / mask_BT1.sum(1).clamp(min=1)


def max_pool(values_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the elementwise maximum over the places that hold something, zeros where none does.

    Shape:
        (B, T, D), bool (B, T) -> (B, D)
    """
    lowest = torch.finfo(values_BTD.dtype).min
    largest_BD = values_BTD.masked_fill(~mask_BT[:, :, None], lowest).amax(1)
    return largest_BD.masked_fill(~mask_BT.any(1, keepdim=True), 0.0)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last axis, of the places that hold something alone.

    Where none does, all weights are 0.

    Shape:
        (..., T), bool (..., T) -> (..., T)
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)


def weighted_sum(weights_BT: Tensor, values_BTD: Tensor) -> Tensor:
    """Return ``sum_t w_t v_t``.

    Shape:
        (B, T), (B, T, D) -> (B, D)
    """
    return (weights_BT[:, None, :] @ values_BTD).squeeze(1)


class PackedEvents:
    """The N events of a batch's histories one after the other, without the padding between."""

    def __init__(self, mask_BT: Tensor) -> None:
        self.mask_BT = mask_BT
        self.place_N = mask_BT.flatten().nonzero().squeeze(1)
        self.counts_B = mask_BT.sum(1)
        self.ends_B = self.counts_B.cumsum(0)

    def select(self, values: Tensor) -> Tensor:
        """Return the events' rows: (B, T, ...) -> (N, ...)."""
        rows: Tensor = _TakeRows.apply(values.flatten(0, 1), self.place_N)  # type: ignore[no-untyped-call]
        return rows

    def repeat(self, values_BE: Tensor) -> Tensor:
        """Return each event's example's row: (B, E) -> (N, E)."""
        rows: Tensor = _RepeatRows.apply(values_BE, self.counts_B)  # type: ignore[no-untyped-call]
        return rows

    def sum(self, values_NE: Tensor) -> Tensor:
        """Return the sum of each example's events: (N, E) -> (B, E)."""
        total_BE: Tensor = _SumRows.apply(values_NE, self.counts_B)  # type: ignore[no-untyped-call]
        return total_BE

    def pad(self, values_N: Tensor, value: float = 0.0) -> Tensor:
        """Return one number a place, ``value`` in padding: (N,) -> (B, T)."""
        padded = values_N.new_full((self.mask_BT.numel(),), value)
        return padded.index_copy(0, self.place_N, values_N).view(self.mask_BT.shape)

    def last(self, values_NE: Tensor) -> Tensor:
        """Return each example's last event, zeros where there is none: (N, E) -> (B, E)."""
        holds_B = self.counts_B > 0
        last_BE = values_NE.new_zeros(len(holds_B), values_NE.shape[1])
        rows: Tensor = _TakeRows.apply(values_NE, self.ends_B[holds_B] - 1)  # type: ignore[no-untyped-call]
        return last_BE.index_copy(0, holds_B.nonzero().squeeze(1), rows)

    def fill(self, values_NE: Tensor) -> Tensor:
        """Return the last event's row at each place, zeros before the first: -> (B, T, E)."""
        first_B1 = (self.ends_B - self.counts_B)[:, None]
        row_BT = first_B1 + self.mask_BT.cumsum(1)
        row_BT = row_BT.masked_fill(row_BT == first_B1, 0)
        padded = torch.cat([values_NE.new_zeros(1, values_NE.shape[1]), values_NE])
        filled: Tensor = nn.functional.embedding(row_BT, padded)
        return filled


class _TakeRows(torch.autograd.Function):
    """Rows by their numbers, each taken once: the gradient is a copy, no sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, row_N: Tensor) -> Tensor:
        ctx.shape = values.shape
        ctx.save_for_backward(row_N)
        return values.index_select(0, row_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.saved_tensors[0], grad), None


class _RepeatRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_BE: Tensor, counts_B: Tensor) -> Tensor:
        ctx.save_for_backward(counts_B)
        return values_BE.repeat_interleave(counts_B, dim=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.segment_reduce(grad, "sum", lengths=ctx.saved_tensors[0], axis=0), None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_NE: Tensor, counts_B: Tensor) -> Tensor:
        ctx.save_for_backward(counts_B)
        return torch.segment_reduce(values_NE, "sum", lengths=counts_B, axis=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.repeat_interleave(ctx.saved_tensors[0], dim=0), None


class AttentionPool(nn.Module):
    """``sum_t a_t v_t`` with ``a = softmax(u . tanh(W v_t + b))`` (Yang et al. 2016, eq. 5-7).

    Shape:
        (B, T, D), bool (B, T) -> (B, D)
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer, self.score = nn.Linear(width, hidden), nn.Linear(hidden, 1, bias=False)

    def weights(self, values_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the weight of each place, (B, T)."""
        scores_BT = self.score(torch.tanh(self.layer(values_BTD))).squeeze(-1)
        return masked_softmax(scores_BT, mask_BT)

    def forward(self, values_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the weighted sum."""
        return weighted_sum(self.weights(values_BTD, mask_BT), values_BTD)


class Dice(nn.Module):
    """``p s + (1 - p) alpha s`` with ``p = sigmoid((s - E[s]) / sqrt(Var[s] + eps))``.

    Zhou et al. 2018, equation 3: E and Var are the batch's in training, over the places that hold
    something, and moving averages afterwards; alpha is learned and starts at 0.

    Args:
        width: H, width of the layer.
        momentum: What a batch adds to the moving averages.

    Shape:
        (..., H), bool (...) -> (..., H)
    """

    epsilon = 1e-8
    mean_H: Tensor
    variance_H: Tensor

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.alpha_H = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean_H", torch.zeros(width))
        self.register_buffer("variance_H", torch.ones(width))

    def forward(self, sums: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the activations."""
        if self.training and mask is None and sums.dim() == 2 and len(sums) and runs_native(sums):
            out, mean_H, variance_H = dice(sums, self.alpha_H, self.epsilon)
            self._follow(mean_H, variance_H, torch.tensor(1.0))
            return out
        mean_H, variance_H = self.mean_H, self.variance_H
        if self.training:
            mean_H, variance_H = self._moments(sums, mask)
        scale_H = (variance_H + self.epsilon).rsqrt()
        if not self.training:  # constants together: fewer operations in a bundle
            gate = (sums * scale_H - mean_H * scale_H).sigmoid()
            return sums * (gate * (1 - self.alpha_H) + self.alpha_H)
        gate = ((sums - mean_H) * scale_H).sigmoid()
        return sums * (gate + (1 - gate) * self.alpha_H)

    def _moments(self, sums: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        flat = sums.flatten(0, -2)
        weight = torch.ones_like(flat[:, :1])
        if mask is not None:
            weight = mask.reshape(-1, 1).to(sums.dtype)
            flat = flat.masked_fill(~mask.reshape(-1, 1), 0.0)
        count = weight.sum().clamp(min=1)
        mean_H = flat.sum(0) / count
        variance_H = ((flat - mean_H).square() * weight).sum(0) / count
        self._follow(mean_H, variance_H, weight.sum().clamp(max=1))
        return mean_H, variance_H

    @torch.no_grad()
    def _follow(self, mean_H: Tensor, variance_H: Tensor, found: Tensor) -> None:
        """Move the averages, unless a batch has no place (``found`` is 0)."""
        step = self.momentum * found
        self.mean_H += step * (mean_H - self.mean_H)
        self.variance_H += step * (variance_H - self.variance_H)


class DiceLayers(nn.Module):
    """Linear layers, each with :class:`Dice` and dropout.

    Shape:
        (..., in_features), bool (...) -> (..., hidden_units[-1])
    """

    def __init__(self, in_features: int, hidden_units: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [in_features, *hidden_units]
        self.out_features = widths[-1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.dices = nn.ModuleList(Dice(width) for width in hidden_units)
        self.drop = nn.Dropout(dropout)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the last layer."""
        return self.from_sums(self._linear(0, hidden), mask)

    def from_sums(self, sums: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the last layer from the first one's sums, before its activation."""
        hidden: Tensor = self.drop(self.dices[0](sums, mask))
        for i in range(1, len(self.layers)):
            hidden = self.drop(self.dices[i](self._linear(i, hidden), mask))
        return hidden

    def _linear(self, i: int, hidden: Tensor) -> Tensor:
        layer = self.layers[i]
        assert isinstance(layer, nn.Linear)
        return linear(layer, hidden)


class GRU(nn.Module):
    """A gated recurrent unit over a history, step by step (Cho et al. 2014; Zhou et al. 2019).

    ``u = sigmoid(W_u x_t + U_u h + b_u)``, ``r = sigmoid(W_r x_t + U_r h + b_r)``, ``c = tanh(W_c
    x_t + r * U_c h + b_c)``, ``h_t = (1 - u) h + u c``. Attention scales the update gate:
    ``u' = a_t u`` (AUGRU, equation 14 of Zhou et al. 2019). A place that holds nothing leaves the
    state as it is.

    Args:
        in_features: Width of an event.
        width: H, width of the state.

    Shape:
        (B, T, in_features), bool (B, T), weights (B, T) -> (B, T, H)
    """

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(in_features, 3 * width)
        self.state = nn.Linear(width, 3 * width, bias=False)

    def forward(
        self, events_BTE: Tensor, mask_BT: Tensor, weights_BT: Tensor | None = None
    ) -> Tensor:
        """Return the state after each event; past an example's last one, the last state."""
        if runs_native(events_BTE) and self.is_standard:
            packed = PackedEvents(mask_BT)
            weights_N = None if weights_BT is None else packed.select(weights_BT)
            return packed.fill(self.states(packed, packed.select(events_BTE), weights_N))
        inputs_BTG = self.input(events_BTE)  # G = 3 H: update, reset and candidate
        # len() is no part of a graph
        state_BH = inputs_BTG.new_zeros(inputs_BTG.shape[0], self.width)
        states = []
        for step in range(mask_BT.shape[1]):
            update, reset, candidate = inputs_BTG[:, step].chunk(3, dim=1)
            of_update, of_reset, of_candidate = self.state(state_BH).chunk(3, dim=1)
            update_BH = torch.sigmoid(update + of_update)
            reset_BH = torch.sigmoid(reset + of_reset)
            candidate_BH = torch.tanh(candidate + reset_BH * of_candidate)
            if weights_BT is not None:
                update_BH = weights_BT[:, step, None] * update_BH
            update_BH = update_BH.masked_fill(~mask_BT[:, step, None], 0.0)
            state_BH = (1 - update_BH) * state_BH + update_BH * candidate_BH
            states.append(state_BH)
        return torch.stack(states, dim=1)

    @property
    def is_standard(self) -> bool:
        """True if no hook makes it compute something else."""
        return not any(has_hooks(module) for module in (self, self.input, self.state))

    def states(
        self, packed: PackedEvents, events_NE: Tensor, weights_N: Tensor | None = None
    ) -> Tensor:
        """Return the state after each event, (N, H), by our kernel."""
        layer = self.input
        return gru_states(
            events_NE, packed.mask_BT, layer.weight, layer.bias, self.state.weight, weights_N
        )


class SelfAttention(nn.Module):
    """Multi-head attention of each place to all that hold something (Vaswani et al. 2017, 3.2).

    Shape:
        (B, T, E), bool (B, T) -> (B, T, E)
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, -(-width // heads)
        self.input = nn.Linear(width, 3 * heads * self.head_width)
        self.output = nn.Linear(heads * self.head_width, width)

    def forward(self, values_BTE: Tensor, mask_BT: Tensor) -> Tensor:
        """Return what each place takes from the others; where none holds anything, the bias."""
        examples, steps, _ = values_BTE.shape
        parts = self.input(values_BTE).view(examples, steps, 3, self.heads, self.head_width)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, head_width)
        scores = queries @ keys.transpose(2, 3) / self.head_width**0.5
        weights = masked_softmax(scores, mask_BT[:, None, None, :].expand_as(scores))
        taken_BTE: Tensor = self.output((weights @ values).transpose(1, 2).flatten(2))
        return taken_BTE


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward layer, each added and normalised (Vaswani et al. 2017).

    ``s = norm(x + drop(attention(x)))``, ``norm(s + drop(W_2 leaky_relu(W_1 s + b_1) + b_2))``, as
    Chen et al. 2019 (equations 3 and 4) have it.

    Shape:
        (B, T, E), bool (B, T) -> (B, T, E)
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.inner, self.outer = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, values_BTE: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the next layer's input."""
        values_BTE = self.norms[0](values_BTE + self.drop(self.attention(values_BTE, mask_BT)))
        inner = nn.functional.leaky_relu(self.inner(values_BTE))
        added_BTE: Tensor = self.norms[1](values_BTE + self.drop(self.outer(inner)))
        return added_BTE


def events_after(mask_BT: Tensor) -> Tensor:
    """Return how many events come after each place: 0 for the newest one.

    Shape:
        bool (B, T) -> int64 (B, T)
    """
    mask_BT = mask_BT.long()
    return mask_BT.sum(1, keepdim=True) - mask_BT.cumsum(1)


class Positions(nn.Module):
    """A learned vector for each position.

    Positions are counted from the newest event, so that one that is older for some users is not
    another event: what a longer history is cut to reads the same.

    Shape:
        int64 (B, T) -> (B, T, E)
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions_BT: Tensor) -> Tensor:
        """Return the vectors; what stands in padding means nothing."""
        return self.weight[positions_BT]
