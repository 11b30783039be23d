"""Attentional factorization machine: each pair's product has a weight by attention."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.blocks import PairAttention
from widedeep.models.tower import (
    PAIRS_RATE,
    DeepInput,
    DeepLayout,
    TowerConfig,
    register_tower,
)
from widedeep.options import Count, FractionBelow1


class AFMTower(nn.Module):
    """All pairs' products, summed with weights by attention.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> features (B, D)
    """

    reads_numbers = False

    def __init__(self, layout: DeepLayout, config: AFM) -> None:
        super().__init__()
        self.dim = layout.field_dim(config.name, least=2)
        self.attention = PairAttention(self.dim, config.attention_units)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the pooled products, (B, D)."""
        fields_BFD = inputs.fields_BFD(self.dim)
        n_pairs = fields_BFD.shape[1] * (fields_BFD.shape[1] - 1) / 2
        pooled_BD: Tensor = self.drop(n_pairs * self.attention(fields_BFD))
        return pooled_BD


@register_tower
class AFM(TowerConfig):
    """An attentional factorization machine (Xiao et al. 2017, *Attentional FM*).

    Equation: ``sum_(i<j) a_ij (v_i * v_j)`` with ``a = P softmax(h . relu(W (v_i * v_j) + b))``
    over all P pairs (its equations 4 to 6 times P: the paper's mean of the products is so small
    at the start that embeddings do not learn, their sum is a factorization machine's). The vector p
    that makes it a logit is the model's output layer, the terms of first order are the wide part's;
    numbers without an embedding are not read.

    Args:
        attention_units: Width of the attention's hidden layer.
        dropout: Probability to drop a dimension of the pooled product, 0 <= dropout < 1.

    Shape:
        (B, F, D) -> (B, D); embeddings of one width D
    """

    name = "afm"
    embedding_rate = PAIRS_RATE
    network = AFMTower
    attention_units: Count = 8
    dropout: FractionBelow1 = 0.0
