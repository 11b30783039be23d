"""Neural factorization machine: hidden layers over the pooled products of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.blocks import pair_products
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import FractionBelow1


class NFMTower(nn.Module):
    """Hidden layers over the sum of all pairs' products, and the numbers.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: NFM) -> None:
        super().__init__()
        self.dim = layout.field_dim(config.name, least=2)
        self.drop = nn.Dropout(config.pooling_dropout)
        self.hidden = config.hidden_layers(self.dim + layout.numbers)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        pooled_BD = self.drop(pair_products(inputs.fields_BFD(self.dim)))
        hidden_BH: Tensor = self.hidden(torch.cat([pooled_BD, inputs.dense_BK], dim=1))
        return hidden_BH


@register_tower
class NFM(HiddenConfig):
    """A neural factorization machine (He & Chua 2017, *Neural Factorization Machines*).

    Equation: ``h_0 = [sum_(i<j) v_i * v_j; numbers]`` (its equation 4), then hidden layers. The
    paper has no numbers; here they stand beside the pooled products, as in DeepCTR-Torch.

    Args:
        pooling_dropout: Probability to drop a pooled product, 0 <= pooling_dropout < 1.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "nfm"
    network = NFMTower
    pooling_dropout: FractionBelow1 = 0.0
