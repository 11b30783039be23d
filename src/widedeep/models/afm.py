"""Attentional factorization machine: each pair's product has a weight by attention."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.blocks import PairAttention
from widedeep.models.tower import DeepInput, DeepLayout, TowerConfig, register_tower
from widedeep.options import Count, FractionBelow1


class AFMTower(nn.Module):
    """All pairs' products, pooled by attention.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> features (B, D)
    """

    reads_numbers = False

    def __init__(self, layout: DeepLayout, config: AFM) -> None:
        super().__init__()
        self.dim = layout.field_dim(config.name, least=2)
        self.pool = PairAttention(self.dim, config.attention_units)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the pooled products, (B, D)."""
        pooled_BD: Tensor = self.drop(self.pool(inputs.fields_BFD(self.dim)))
        return pooled_BD


@register_tower
class AFM(TowerConfig):
    """An attentional factorization machine (Xiao et al. 2017, *Attentional FM*).

    Equation: ``sum_(i<j) a_ij (v_i * v_j)`` with ``a = softmax(h . relu(W (v_i * v_j) + b))`` over
    all pairs (its equations 4 to 6). The vector p that makes it a logit is the model's output
    layer, the terms of first order are the wide part's; numbers without an embedding are not read.

    Args:
        attention_units: Width of the attention's hidden layer.
        dropout: Probability to drop a dimension of the pooled product, 0 <= dropout < 1.

    Shape:
        (B, F, D) -> (B, D); embeddings of one width D
    """

    name = "afm"
    network = AFMTower
    attention_units: Count = 8
    dropout: FractionBelow1 = 0.0
