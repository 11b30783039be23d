"""WuKong: layers of factorization machines beside linear compressions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count, Widths


class FactorizationBlock(nn.Module):
    """Hidden layers over the scalar products of all vectors with r mixtures of them.

    ``MLP(norm(flat(V (V' Y))))``, the products in time that is linear in the number of vectors.

    Shape:
        (B, N, D) -> (B, fm_vectors, D)
    """

    def __init__(self, n_vectors: int, dim: int, config: WuKong) -> None:
        super().__init__()
        self.shape = (config.fm_vectors, dim)
        self.mixtures = nn.Linear(n_vectors, config.rank, bias=False)
        self.norm = nn.LayerNorm(n_vectors * config.rank)
        self.hidden = config.hidden_layers(n_vectors * config.rank, config.fm_units)
        self.output = nn.Linear(self.hidden.out_features, config.fm_vectors * dim)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        """Return the block's vectors."""
        mixtures_BDR = self.mixtures(vectors_BND.transpose(1, 2))
        products_BM = self.norm(torch.bmm(vectors_BND, mixtures_BDR).flatten(1))
        vectors: Tensor = self.output(self.hidden(products_BM)).unflatten(1, self.shape)
        return vectors


class WuKongLayer(nn.Module):
    """``norm([factorization(V); W V] + residual)``, the residual mixed where numbers differ.

    Shape:
        (B, N, D) -> (B, fm_vectors + linear_vectors, D)
    """

    def __init__(self, n_vectors: int, dim: int, config: WuKong) -> None:
        super().__init__()
        self.factorization = FactorizationBlock(n_vectors, dim, config)
        self.compress = nn.Linear(n_vectors, config.linear_vectors, bias=False)
        n_out = config.fm_vectors + config.linear_vectors
        self.residual = None if n_out == n_vectors else nn.Linear(n_vectors, n_out, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        """Return the next layer's vectors."""
        vectors_BDN = vectors_BND.transpose(1, 2)
        linear_BLD = self.compress(vectors_BDN).transpose(1, 2)
        both_BND = torch.cat([self.factorization(vectors_BND), linear_BLD], dim=1)
        if self.residual is not None:
            vectors_BND = self.residual(vectors_BDN).transpose(1, 2)
        normed_BND: Tensor = self.norm(both_BND + vectors_BND)
        return normed_BND


class WuKongTower(nn.Module):
    """Layers over the embeddings and a vector of the numbers, then hidden layers.

    Shape:
        DeepInput -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: WuKong) -> None:
        super().__init__()
        numbers = layout.numbers
        self.dim = layout.field_dim(config.name, least=1 if numbers else 2)
        self.numbers = nn.Linear(numbers, self.dim) if numbers else None
        n_vectors = len(layout.fields) + (1 if numbers else 0)
        layers = []
        for _ in range(config.layers):
            layers.append(WuKongLayer(n_vectors, self.dim, config))
            n_vectors = config.fm_vectors + config.linear_vectors
        self.layers = nn.Sequential(*layers)
        self.hidden = config.hidden_layers(n_vectors * self.dim)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        vectors_BND = inputs.fields_BFD(self.dim)
        if self.numbers is not None:
            numbers_B1D = self.numbers(inputs.dense_BK).unsqueeze(1)
            vectors_BND = torch.cat([vectors_BND, numbers_B1D], dim=1)
        hidden_BH: Tensor = self.hidden(self.layers(vectors_BND).flatten(1))
        return hidden_BH


@register_tower
class WuKong(HiddenConfig):
    """Stacked factorization machines (Zhang et al. 2024, *Wukong*).

    Equation: ``V_(l+1) = LN([FMB(V_l); W_l V_l] + V_l)`` (its equation 1), ``FMB(V) =
    MLP(LN(flat(V (V' Y))))`` with Y (N, rank) (its section 3.4), so each layer doubles the order of
    interactions. Where layers change the number of vectors, the residual is mixed by a matrix. Y is
    learned, as FuxiCTR's; that of the paper also depends on the example. The numbers become one
    vector by a linear layer. (FuxiCTR's blocks return plain numbers, not vectors of width D.)

    Args:
        layers: Number of layers.
        fm_vectors: Number of vectors that each factorization block returns.
        linear_vectors: Number of vectors that each linear compression returns.
        rank: Number of mixtures that vectors are multiplied with.
        fm_units: Width of each hidden layer of a factorization block, at least one.
        hidden_units: Width of each hidden layer over all vectors, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "wukong"
    network = WuKongTower
    layers: Count = 2
    fm_vectors: Count = 16
    linear_vectors: Count = 16
    rank: Count = 8
    fm_units: Widths = (128,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fm_units:
            raise self.refusal("got fm_units=[], expected the width of a layer or more")
