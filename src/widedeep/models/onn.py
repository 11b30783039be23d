"""Operation-aware neural network: embeddings for each operation that a value takes part in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_blocks import aware_products
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.blocks import FieldAwarePairs
from widedeep.models.ffm import aware_fields
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import PRODUCTS_STD, DeepInput, DeepLayout, register_tower
from widedeep.options import Count


class ONNTower(nn.Module):
    """Hidden layers over copies of the fields and scalar products of operation-aware embeddings.

    Shape:
        DeepInput with F embeddings of width F k -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: ONN) -> None:
        super().__init__()
        n_fields = aware_fields(layout, config, config.dim)
        self.shape = (n_fields, n_fields, config.dim)
        self.pairs = FieldAwarePairs(n_fields)
        products = n_fields * (n_fields - 1) // 2
        self.hidden = config.hidden_layers(n_fields * config.dim + products + layout.numbers)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        if runs_native(inputs.concat_BX):
            features = aware_products(inputs.concat_BX, self.shape[0], self.shape[2])
            native_BH: Tensor = self.hidden(features)
            return native_BH
        by_operation_BFFK = inputs.fields_BFD(self.shape[1] * self.shape[2]).view(-1, *self.shape)
        copies_BFK = by_operation_BFFK[:, :, 0]
        products_BP = self.pairs(by_operation_BFFK[:, :, 1:]).sum(2)
        features = torch.cat([copies_BFK.flatten(1), products_BP, inputs.dense_BK], dim=1)
        hidden_BH: Tensor = self.hidden(features)
        return hidden_BH


@register_tower
class ONN(HiddenConfig):
    """An operation-aware network (Yang et al. 2019, *Operation-aware Neural Networks*).

    Equation: ``h_0 = [v_(i,copy) for all i; <v_(i,j), v_(j,i)> for i < j; numbers]``, then hidden
    layers (its section 3). A value has one embedding to be copied and one for the product with each
    other feature, so embeddings are ``F dim`` wide. The paper normalises every layer
    (``batch_norm=True``).

    Args:
        dim: k, the width of the embedding for one operation.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, F k) and numbers -> (B, hidden_units[-1])
    """

    name = "onn"
    network = ONNTower
    embedding_std = PRODUCTS_STD
    dim: Count = 4

    def embedding_dim(self, fields: int) -> int | None:
        """Return the width of embeddings that declare none: k for each operation."""
        return max(1, fields) * self.dim
