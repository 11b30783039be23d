"""Product-based neural network: hidden layers over embeddings and products of pairs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.models.blocks import InnerPairs
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower


class KernelPairs(nn.Module):
    """The outer product of each pair of fields, weighed by a matrix: ``v_i' K_ij v_j``.

    Shape:
        (B, F, D) -> (B, P), pairs in the order of ``itertools.combinations``
    """

    def __init__(self, n_fields: int, dim: int) -> None:
        super().__init__()
        n_pairs = n_fields * (n_fields - 1) // 2
        self.rows = list(range(n_fields - 1, 0, -1))  # pairs by their first field
        self.kernels_DPD = nn.Parameter(torch.empty(dim, n_pairs, dim))
        nn.init.uniform_(self.kernels_DPD, -(dim**-0.5), dim**-0.5)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the weighed products, (B, P)."""
        products = []
        fields = fields_BFD.unbind(1)
        for i, kernels_DPD in enumerate(torch.split(self.kernels_DPD, self.rows, dim=1)):
            left_BPD = (fields[i] @ kernels_DPD.flatten(1)).view(-1, *kernels_DPD.shape[1:])
            products.append((left_BPD * fields_BFD[:, i + 1 :]).sum(2))
        return torch.cat(products, dim=1)


class PNNTower(nn.Module):
    """Hidden layers over the embeddings, the products of all pairs, and the numbers.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: PNN) -> None:
        super().__init__()
        self.dim, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
        products: list[nn.Module] = []
        if config.product != "outer":
            products.append(InnerPairs(n_fields))
        if config.product != "inner":
            products.append(KernelPairs(n_fields, self.dim))
        self.products = nn.ModuleList(products)
        n_pairs = n_fields * (n_fields - 1) // 2
        self.hidden = config.hidden_layers(layout.width + len(products) * n_pairs)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        fields_BFD = inputs.fields_BFD(self.dim)
        products = [product(fields_BFD) for product in self.products]
        hidden_BH: Tensor = self.hidden(torch.cat([inputs.concat_BX, *products], dim=1))
        return hidden_BH


@register_tower
class PNN(HiddenConfig):
    """A product-based network (Qu et al. 2016, *Product-based Neural Networks*).

    Equation: ``h_0 = [x; p]``, then hidden layers, with ``p_ij = <v_i, v_j>`` (inner, its equation
    5) and ``p_ij = v_i' K_ij v_j`` (outer) for i < j. The paper leaves open how outer products are
    weighed but for sums over all pairs at once; a matrix a pair is that of Qu et al. 2018, and of
    DeepCTR-Torch.

    Args:
        product: ``"inner"``, ``"outer"`` or ``"both"``.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "pnn"
    network = PNNTower
    product: Literal["inner", "outer", "both"] = "inner"
