"""Input-aware factorization machine: every example weighs its own fields."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.blocks import PairSum, pair_products
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import PAIRS_RATE, DeepInput, DeepLayout, register_tower


class WeighedFM(nn.Module):
    """A factorization machine of both orders whose fields have a weight an example.

    Shape:
        fields (B, F, D), factors (B, F) -> logits (B, C)
    """

    def __init__(self, n_fields: int, dim: int, n_logits: int) -> None:
        super().__init__()
        self.first_order = nn.Linear(n_fields * dim, n_logits, bias=False)
        self.second_order = PairSum(dim, n_logits)

    def forward(self, fields_BFD: Tensor, factors_BF: Tensor) -> Tensor:
        """Return the logits, (B, C)."""
        weighed_BFD = fields_BFD * factors_BF.unsqueeze(2)
        products_BD = pair_products(weighed_BFD)
        logits_BC: Tensor = self.first_order(weighed_BFD.flatten(1)) + self.second_order(
            products_BD
        )
        return logits_BC


class IFMTower(nn.Module):
    """A factorization machine, its fields weighed by hidden layers over all of them.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> logits (B, C)
    """

    returns = "logits"
    reads_numbers = False

    def __init__(self, layout: DeepLayout, config: IFM) -> None:
        super().__init__()
        self.dim, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
        self.hidden = config.hidden_layers(n_fields * self.dim)
        self.factors = nn.Linear(self.hidden.out_features, n_fields, bias=False)
        self.fm = WeighedFM(n_fields, self.dim, layout.n_logits)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        fields_BFD = inputs.fields_BFD(self.dim)
        scores_BF = self.factors(self.hidden(fields_BFD.flatten(1)))
        factors_BF = fields_BFD.shape[1] * torch.softmax(scores_BF, dim=1)
        logits_BC: Tensor = self.fm(fields_BFD, factors_BF)
        return logits_BC


@register_tower
class IFM(HiddenConfig):
    """An input-aware factorization machine (Yu et al. 2019, *An Input-aware FM*).

    Equation: ``logit = sum_i m_i w_i + sum_(i<j) <m_i v_i, m_j v_j>`` with ``m = F softmax(P
    MLP(v))`` (its equations 5 to 10). The weight of first order is a linear function of the
    embedding, ``w_i = <a_i, v_i>``; weights a value that no example changes are the wide part's.
    Numbers without an embedding are not read.

    Args:
        hidden_units: Width of each hidden layer of the network that weighs fields, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) -> logits (B, C); embeddings of one width D
    """

    name = "ifm"
    embedding_rate = PAIRS_RATE
    network = IFMTower
