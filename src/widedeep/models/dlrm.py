"""DLRM: scalar products between embeddings and a vector made of the numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.blocks import InnerPairs
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import PRODUCTS_STD, DeepInput, DeepLayout, register_tower
from widedeep.options import Widths


class DLRMTower(nn.Module):
    """Hidden layers over the numbers' vector and the scalar products of all pairs of vectors.

    Shape:
        DeepInput -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: DLRM) -> None:
        super().__init__()
        numbers = layout.numbers
        self.dim = layout.field_dim(config.name, least=1 if numbers else 2)
        self.bottom = None
        n_vectors, width = len(layout.fields), 0
        if numbers:
            self.bottom = config.hidden_layers(numbers, (*config.bottom_units, self.dim))
            n_vectors, width = n_vectors + 1, self.dim
        self.pairs = InnerPairs(n_vectors)
        self.top = config.hidden_layers(width + n_vectors * (n_vectors - 1) // 2)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last layer of the top, (B, hidden_units[-1])."""
        fields_BFD = inputs.fields_BFD(self.dim)
        if self.bottom is None:
            features = self.pairs(fields_BFD)
        else:
            numbers_BD = self.bottom(inputs.dense_BK)
            products_BP = self.pairs(torch.cat([numbers_BD.unsqueeze(1), fields_BFD], dim=1))
            features = torch.cat([numbers_BD, products_BP], dim=1)
        hidden_BH: Tensor = self.top(features)
        return hidden_BH


@register_tower
class DLRM(HiddenConfig):
    """The deep learning recommendation model (Naumov et al. 2019, *DLRM*).

    Equation: ``MLP([z; <u_i, u_j> for i < j])`` with ``z = MLP(numbers)`` of width D and u = z and
    all embeddings (its section 2.2). Without numbers there is no z.

    Args:
        bottom_units: Width of each hidden layer over the numbers but the last, which has D; the
            paper's for Criteo are (512, 256, 64).
        hidden_units: Width of each hidden layer of the top, at least one.
        activation: Activation of all hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "dlrm"
    embedding_std = PRODUCTS_STD
    network = DLRMTower
    bottom_units: Widths = (512, 256, 64)
