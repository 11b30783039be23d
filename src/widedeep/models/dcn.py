"""Deep & Cross networks: with vectors, with matrices, and with a mixture of low-rank experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.models.blocks import linear
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count


class VectorCrosses(nn.Module):
    """Cross layers with a vector: ``x_(l+1) = x_0 (w_l . x_l) + b_l + x_l``.

    Each layer's output is a multiple of x_0 plus the biases so far, ``x_l = a_l x_0 + c_l`` (Lian
    et al. 2018, theorem 3.1). So one product of x_0 with all vectors is all that has the input's
    width, and layers are steps of one number an example: ``a_(l+1) = a_l + a_l (w_l . x_0) + w_l .
    c_l``.

    Shape:
        (B, X) -> (B, X)
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weight_LX = nn.Parameter(torch.empty(layers, width))
        self.bias_LX = nn.Parameter(torch.zeros(layers, width))
        nn.init.xavier_normal_(self.weight_LX)

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Return the last layer's output."""
        products_BL = x0_BX @ self.weight_LX.t()
        sums_LX = self.bias_LX.cumsum(0)
        shifts_L = (self.weight_LX[1:] * sums_LX[:-1]).sum(1)
        scale_B1 = 1 + products_BL[:, :1]
        for layer in range(1, len(self.weight_LX)):
            product_B1 = products_BL[:, layer : layer + 1]
            scale_B1 = scale_B1 + scale_B1 * product_B1 + shifts_L[layer - 1]
        return scale_B1 * x0_BX + sums_LX[-1]


class CrossLayer(nn.Module):
    """``x0 * (W x + b) + x``, with ``W = U V`` of a rank below the full one where it is given.

    Shape:
        (B, X), (B, X) -> (B, X)
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(width if rank is None else rank, width)

    def forward(self, x0_BX: Tensor, x_BX: Tensor) -> Tensor:
        """Return the next layer's input."""
        projected_BX = linear(self.up, x_BX if self.down is None else self.down(x_BX))
        return torch.addcmul(x_BX, x0_BX, projected_BX)


class ExpertLayer(nn.Module):
    """A cross layer whose matrix is a mixture of experts of low rank.

    ``x0 * (sum_i g_i U_i tanh(C_i tanh(V_i x)) + b) + x`` with weights g that sum to one: the
    experts' U stand side by side, so that one product mixes them.

    Shape:
        (B, X), (B, X), gates (B, E) -> (B, X)
    """

    def __init__(self, width: int, experts: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, experts * rank, bias=False)
        self.core_ERR = nn.Parameter(torch.empty(experts, rank, rank))
        self.up = nn.Linear(experts * rank, width)
        nn.init.uniform_(self.core_ERR, -((3 / rank) ** 0.5), (3 / rank) ** 0.5)

    def forward(self, x0_BX: Tensor, x_BX: Tensor, gates_BE: Tensor) -> Tensor:
        """Return the next layer's input."""
        low_BER = torch.tanh(linear(self.down, x_BX)).view(-1, *self.core_ERR.shape[:2])
        core_BER = torch.tanh(torch.einsum("ber,ers->bes", low_BER, self.core_ERR))
        mixed_BX = linear(self.up, (core_BER * gates_BE.unsqueeze(2)).flatten(1))
        return torch.addcmul(x_BX, x0_BX, mixed_BX)


class MatrixCrosses(nn.ModuleList):
    """Cross layers with a matrix, one after the other.

    Shape:
        (B, X) -> (B, X)
    """

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Return the last layer's output."""
        crossed_BX = x0_BX
        for layer in self:
            crossed_BX = layer(x0_BX, crossed_BX)
        return crossed_BX


class ExpertCrosses(nn.Module):
    """Cross layers with a mixture of experts; the gates are shared by all layers.

    Shape:
        (B, X) -> (B, X)
    """

    def __init__(self, width: int, layers: int, experts: int, rank: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.layers = nn.ModuleList(ExpertLayer(width, experts, rank) for _ in range(layers))

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Return the last layer's output."""
        crossed_BX = x0_BX
        for layer in self.layers:
            gates_BE = torch.softmax(self.gate(crossed_BX), dim=1)
            crossed_BX = layer(x0_BX, crossed_BX, gates_BE)
        return crossed_BX


class CrossTower(nn.Module):
    """Cross layers beside hidden layers, or under them.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> features (B, width)
    """

    def __init__(self, layout: DeepLayout, config: CrossConfig) -> None:
        super().__init__()
        self.stacked = config.structure == "stacked"
        self.crosses = config.crosses(layout.width)
        self.hidden = config.hidden_layers(layout.width) if config.hidden_units else None

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the features: both parts side by side, or the hidden layers' over the crosses."""
        crossed_BX: Tensor = self.crosses(inputs.concat_BX)
        if self.hidden is None:
            return crossed_BX
        if self.stacked:
            hidden_BH: Tensor = self.hidden(crossed_BX)
            return hidden_BH
        return torch.cat([crossed_BX, self.hidden(inputs.concat_BX)], dim=1)


@dataclass(frozen=True, kw_only=True)
class CrossConfig(HiddenConfig):
    """A tower of cross layers: the options that all of these have."""

    network = CrossTower
    layers: Count = 3  # Number of cross layers
    # ``"parallel"``: hidden layers beside the cross layers; ``"stacked"``: over them
    structure: Literal["parallel", "stacked"] = "parallel"

    def crosses(self, width: int) -> nn.Module:
        """Return the cross layers, (B, X) -> (B, X): those of :meth:`layer` with a matrix."""
        return MatrixCrosses(self.layer(width) for _ in range(self.layers))

    def layer(self, width: int) -> nn.Module:
        """Return a cross layer, (B, X), (B, X) -> (B, X)."""
        raise NotImplementedError


@register_tower
class DCN(CrossConfig):
    """A Deep & Cross network (Wang et al. 2017, *Deep & Cross Network for Ad Click Predictions*).

    Equation: ``x_(l+1) = x_0 (w_l . x_l) + b_l + x_l`` (its equation 3), beside hidden layers. With
    ``cross="matrix"`` it is :class:`DCNv2` of full rank.

    Args:
        layers: Number of cross layers.
        cross: ``"vector"`` or ``"matrix"``.
        structure: ``"parallel"``: hidden layers beside the cross layers; ``"stacked"``: over them.
        hidden_units: Width of each hidden layer; empty for cross layers alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> (B, X + hidden_units[-1]), or (B, hidden_units[-1]) stacked
    """

    name = "dcn"
    cross: Literal["vector", "matrix"] = "vector"

    def crosses(self, width: int) -> nn.Module:
        """Return the cross layers."""
        return (
            VectorCrosses(width, self.layers) if self.cross == "vector" else super().crosses(width)
        )

    def layer(self, width: int) -> nn.Module:
        """Return a cross layer with a matrix."""
        return CrossLayer(width, None)


@register_tower
class DCNv2(CrossConfig):
    """Cross layers with a matrix (Wang et al. 2021, *DCN V2*).

    Equation: ``x_(l+1) = x_0 * (W_l x_l + b_l) + x_l`` (its equation 1), ``W_l = U_l V_l`` of rank
    ``rank`` (its equation 3).

    Args:
        layers: Number of cross layers; the paper finds 2 to 3 best.
        rank: Rank of the matrices; None for full ones. The paper takes about a quarter of X; one
            above X is allowed, and no better than full ones.
        structure: ``"parallel"``: hidden layers beside the cross layers; ``"stacked"``: over them.
        hidden_units: Width of each hidden layer; empty for cross layers alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> (B, X + hidden_units[-1]), or (B, hidden_units[-1]) stacked
    """

    name = "dcn_v2"
    rank: Count | None = None

    def layer(self, width: int) -> nn.Module:
        """Return a cross layer."""
        return CrossLayer(width, self.rank)


@register_tower
class DCNMix(CrossConfig):
    """Cross layers with a mixture of low-rank experts (Wang et al. 2021, *DCN V2*, section 3.3).

    Equation: ``x_(l+1) = sum_i g_i(x_l) x_0 * (U_i tanh(C_i tanh(V_i x_l)) + b) + x_l`` (its
    equation 4), with ``g = softmax(G x_l)``. The paper leaves the gates and the functions open;
    softmax over gates that all layers share, and tanh, are those of DeepCTR-Torch and FuxiCTR.

    Args:
        layers: Number of cross layers.
        experts: Number of experts of each layer.
        rank: Rank of each expert's matrix; one above X is allowed, and no better than X.
        structure: ``"parallel"``: hidden layers beside the cross layers; ``"stacked"``: over them.
        hidden_units: Width of each hidden layer; empty for cross layers alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> (B, X + hidden_units[-1]), or (B, hidden_units[-1]) stacked
    """

    name = "dcn_mix"
    experts: Count = 4
    rank: Count = 32

    def crosses(self, width: int) -> nn.Module:
        """Return the cross layers."""
        return ExpertCrosses(width, self.layers, self.experts, self.rank)
