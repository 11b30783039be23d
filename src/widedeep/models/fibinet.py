"""FiBiNET: bilinear products of all pairs of fields, plain and with fields weighed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_blocks import bilinear_products
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.blocks import FieldGates, hadamard_pairs, has_hooks
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import PRODUCTS_STD, DeepInput, DeepLayout, register_tower
from widedeep.options import Count

Bilinear = Literal["all", "each", "interaction"]


class BilinearPairs(nn.Module):
    """The bilinear product of each pair of fields: ``v_i W * v_j``.

    Shape:
        (B, F, D) -> (B, P, D), pairs in the order of ``itertools.combinations``
    """

    def __init__(self, n_fields: int, dim: int, kind: Bilinear) -> None:
        super().__init__()
        self.kind = kind
        self.rows = list(range(n_fields - 1, 0, -1))  # pairs by their first field
        matrices = {"all": 1, "each": n_fields - 1, "interaction": sum(self.rows)}[kind]
        self.weight_DWD = nn.Parameter(torch.empty(dim, matrices, dim))
        nn.init.uniform_(self.weight_DWD, -((3 / dim) ** 0.5), (3 / dim) ** 0.5)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the products, (B, P, D)."""
        if self.kind == "all":
            return hadamard_pairs(fields_BFD[:, :-1] @ self.weight_DWD[:, 0], fields_BFD)
        pieces = [1] * len(self.rows) if self.kind == "each" else self.rows
        weights = torch.split(self.weight_DWD, pieces, dim=1)
        products = []
        for i, (field_BD, weight_DWD) in enumerate(
            zip(fields_BFD[:, :-1].unbind(1), weights, strict=True)
        ):
            left_BWD = (field_BD @ weight_DWD.flatten(1)).view(-1, *weight_DWD.shape[1:])
            products.append(left_BWD * fields_BFD[:, i + 1 :])
        return torch.cat(products, dim=1)


class FiBiNETTower(nn.Module):
    """Hidden layers over bilinear products of the fields, plain and weighed, and the numbers.

    The products of weighed fields are the plain ones times both weights.

    Shape:
        DeepInput -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: FiBiNET) -> None:
        super().__init__()
        self.dim, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
        self.gates = FieldGates(n_fields, max(1, n_fields // config.reduction))
        self.pairs = BilinearPairs(n_fields, self.dim, config.bilinear)
        products = n_fields * (n_fields - 1) * self.dim
        self.hidden = config.hidden_layers(products + layout.numbers)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        fields_BFD = inputs.fields_BFD(self.dim)
        native = runs_native(fields_BFD) and not has_hooks(self.pairs)
        if native and self.pairs.kind == "interaction":
            features = bilinear_products(
                fields_BFD, self.pairs.weight_DWD, self.gates(fields_BFD), inputs.dense_BK
            )
            native_BH: Tensor = self.hidden(features)
            return native_BH
        plain_BPD = self.pairs(fields_BFD)
        weighed_BPD = plain_BPD * hadamard_pairs(self.gates(fields_BFD).unsqueeze(2))
        products = [weighed_BPD.flatten(1), plain_BPD.flatten(1), inputs.dense_BK]
        hidden_BH: Tensor = self.hidden(torch.cat(products, dim=1))
        return hidden_BH


@register_tower
class FiBiNET(HiddenConfig):
    """Weighed fields and bilinear products (Huang et al. 2019, *FiBiNET*).

    Equation: ``a = relu(W_2 relu(W_1 z))`` with ``z_i = mean_d v_id`` weighs fields (its equations
    1 to 4); ``p_ij = v_i W * v_j`` and ``q_ij = a_i v_i W * a_j v_j`` for i < j (its equations 5 to
    7); hidden layers over [q; p; numbers]. That both sides have the same W is left open by the
    paper, and so in DeepCTR-Torch (FuxiCTR learns two). The terms of first order are the wide
    part's.

    Args:
        bilinear: One W for ``"all"`` pairs, for ``"each"`` first field, or for each
            ``"interaction"``.
        reduction: How many fields share a unit of W_1's output.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "fibinet"
    embedding_std = PRODUCTS_STD
    network = FiBiNETTower
    bilinear: Bilinear = "interaction"
    reduction: Count = 3
