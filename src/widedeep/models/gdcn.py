"""Gated Deep & Cross network: each cross layer has a gate that filters what it crosses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.blocks import linear
from widedeep.models.dcn import CrossConfig
from widedeep.models.tower import register_tower


class GatedCrossLayer(nn.Module):
    """``x0 * (W x + b) * sigmoid(G x) + x``.

    Shape:
        (B, X), (B, X) -> (B, X)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross = nn.Linear(width, width)
        self.gate = nn.Linear(width, width, bias=False)

    def forward(self, x0_BX: Tensor, x_BX: Tensor) -> Tensor:
        """Return the next layer's input."""
        gated_BX = linear(self.cross, x_BX) * linear(self.gate, x_BX).sigmoid()
        return torch.addcmul(x_BX, x0_BX, gated_BX)


@register_tower
class GDCN(CrossConfig):
    """A gated Deep & Cross network (Wang et al. 2023, *Towards Deeper, Lighter CTR Prediction*).

    Equation: ``x_(l+1) = x_0 * (W_l x_l + b_l) * sigmoid(G_l x_l) + x_l`` (its equation 2). GDCN-P
    is ``structure="parallel"``, GDCN-S is ``structure="stacked"``.

    Args:
        layers: Number of cross layers.
        structure: ``"parallel"``: hidden layers beside the cross layers; ``"stacked"``: over them.
        hidden_units: Width of each hidden layer; empty for cross layers alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> (B, X + hidden_units[-1]), or (B, hidden_units[-1]) stacked
    """

    name = "gdcn"

    def layer(self, width: int) -> nn.Module:
        """Return a cross layer."""
        return GatedCrossLayer(width)
