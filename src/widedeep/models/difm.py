"""Dual input-aware factorization machine: fields weighed bit by bit and vector by vector."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.blocks import FieldAttention
from widedeep.models.ifm import WeighedFM
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import PAIRS_RATE, DeepInput, DeepLayout, register_tower
from widedeep.options import Count


class DIFMTower(nn.Module):
    """A factorization machine, its fields weighed by attention and by hidden layers.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> logits (B, C)
    """

    returns = "logits"
    reads_numbers = False

    def __init__(self, layout: DeepLayout, config: DIFM) -> None:
        super().__init__()
        self.dim, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
        self.attention = FieldAttention(self.dim, config.attention_units, config.heads)
        attended = n_fields * config.attention_units * config.heads
        self.by_vector = nn.Linear(attended, n_fields, bias=False)
        self.hidden = config.hidden_layers(n_fields * self.dim)
        self.by_bit = nn.Linear(self.hidden.out_features, n_fields)
        nn.init.ones_(self.by_bit.bias)  # at the start a factorization machine
        self.fm = WeighedFM(n_fields, self.dim, layout.n_logits)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        fields_BFD = inputs.fields_BFD(self.dim)
        vector_BF = self.by_vector(self.attention(fields_BFD).flatten(1))
        bit_BF = self.by_bit(self.hidden(fields_BFD.flatten(1)))
        logits_BC: Tensor = self.fm(fields_BFD, vector_BF + bit_BF)
        return logits_BC


@register_tower
class DIFM(HiddenConfig):
    """A dual input-aware factorization machine (Lu et al. 2020, *A Dual Input-aware FM*).

    Equation: ``logit = sum_i m_i w_i + sum_(i<j) <m_i v_i, m_j v_j>`` with ``m = P_vec attention(v)
    + P_bit MLP(v) + b`` (its equations 9 to 13, where b is 0: factors that start there leave
    products of order four, of which embeddings do not learn; here b starts at 1). Attention is that
    of :class:`AutoInt`. The weight of first order is a linear function of the embedding, as in
    :class:`IFM`. Numbers without an embedding are not read.

    Args:
        attention_units: Width of each head of the attention between fields.
        heads: Number of heads.
        hidden_units: Width of each hidden layer of the bit-wise network, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) -> logits (B, C); embeddings of one width D
    """

    name = "difm"
    embedding_rate = PAIRS_RATE
    network = DIFMTower
    attention_units: Count = 8
    heads: Count = 4
