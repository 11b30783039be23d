"""Deep & Cross network, version 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import COUNT, COUNTS, check_range

__all__ = ["DCNv2"]


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
        crossed_BX: Tensor = x0_BX * self.up(x_BX if self.down is None else self.down(x_BX)) + x_BX
        return crossed_BX


class DCNv2Tower(nn.Module):
    """Cross layers beside hidden layers, or under them.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> features (B, width)
    """

    def __init__(self, layout: DeepLayout, config: DCNv2) -> None:
        super().__init__()
        self.stacked = config.structure == "stacked"
        self.crosses = nn.ModuleList(
            CrossLayer(layout.width, config.rank) for _ in range(config.layers)
        )
        self.hidden = config.hidden_layers(layout.width) if config.hidden_units else None

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the features: both parts side by side, or the hidden layers' over the crosses."""
        x0_BX = crossed_BX = inputs.concat_BX
        for cross in self.crosses:
            crossed_BX = cross(x0_BX, crossed_BX)
        if self.hidden is None:
            return crossed_BX
        if self.stacked:
            hidden_BH: Tensor = self.hidden(crossed_BX)
            return hidden_BH
        return torch.cat([crossed_BX, self.hidden(x0_BX)], dim=1)


@register_tower
@dataclass(frozen=True, kw_only=True)
class DCNv2(HiddenConfig):
    """Cross layers with a matrix (Wang et al. 2021, *DCN V2*).

    Equation: ``x_(l+1) = x_0 * (W_l x_l + b_l) + x_l`` (its equation 1), ``W_l = U_l V_l`` of rank
    ``rank`` (its equation 3).

    Args:
        layers: Number of cross layers; the paper finds 2 to 3 best.
        rank: Rank of the matrices; None for full ones. The paper takes about a quarter of X.
        structure: ``"parallel"``: hidden layers beside the cross layers; ``"stacked"``: over them.
        hidden_units: Width of each hidden layer; empty for cross layers alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> (B, X + hidden_units[-1]), or (B, hidden_units[-1]) stacked
    """

    name = "dcn_v2"
    layers: int = 3
    rank: int | None = None
    structure: Literal["parallel", "stacked"] = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"tower {self.name!r}"
        check_range(owner, "layers", self.layers, self.layers in COUNTS, COUNT)
        in_range = self.rank is None or self.rank in COUNTS
        check_range(owner, "rank", self.rank, in_range, COUNT)

    def make(self, layout: DeepLayout) -> nn.Module:
        """Return the tower."""
        return DCNv2Tower(layout, self)
