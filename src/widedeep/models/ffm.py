"""Field-aware factorization machine, and a perceptron over its products."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError
from widedeep.models.blocks import FieldAwarePairs, PairSum
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import (
    PRODUCTS_STD,
    DeepInput,
    DeepLayout,
    TowerConfig,
    register_tower,
)
from widedeep.options import Count


def aware_fields(layout: DeepLayout, config: TowerConfig, dim: int) -> int:
    """Return F, if all fields have embeddings of the width that a field-aware tower demands.

    Raises:
        ConfigError: If there are fewer than two fields, or embeddings of another width.
    """
    width, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
    expected = config.embedding_dim(n_fields)
    if width != expected:
        raise ConfigError(
            f"tower {config.name!r}: got embeddings of width {width}, expected {expected}, which "
            f"is {dim} for each of {expected // dim if expected else 0} partners of a feature; "
            "drop embedding_dim from the features, and set dim of the tower"
        )
    return n_fields


class FFMTower(nn.Module):
    """The sum of all pairs of fields' scalar products, each by the embeddings for the other field.

    Shape:
        DeepInput with F embeddings of width (F - 1) k -> logits (B, C)
    """

    returns = "logits"
    reads_numbers = False

    def __init__(self, layout: DeepLayout, config: FFM) -> None:
        super().__init__()
        n_fields = aware_fields(layout, config, config.dim)
        self.shape = (n_fields, n_fields - 1, config.dim)
        self.pairs = FieldAwarePairs(n_fields)
        self.output = PairSum(config.dim, layout.n_logits)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        aware_BFGK = inputs.fields_BFD(self.shape[1] * self.shape[2]).view(-1, *self.shape)
        logits_BC: Tensor = self.output(self.pairs(aware_BFGK).sum(1))
        return logits_BC


@register_tower
class FFM(TowerConfig):
    """A field-aware factorization machine (Juan et al. 2016, *Field-aware Factorization Machines*).

    Equation: ``logit = sum_(i<j) <v_(i,j), v_(j,i)>`` (its equation 4), ``v_(i,j)`` the embedding
    of feature i's value for feature j. So embeddings are ``(F - 1) dim`` wide. The terms of first
    order are the wide part's, and numbers without an embedding are not read. Of several logits,
    each learns a weight for each of the k dimensions.

    Args:
        dim: k, the width of the embedding for one other feature; the paper takes 4.

    Shape:
        (B, F, (F - 1) k) -> logits (B, C)
    """

    name = "ffm"
    network = FFMTower
    embedding_rate = 0.05  # as PAIRS_RATE, of embeddings each for one other field
    dim: Count = 4

    def embedding_dim(self, fields: int) -> int | None:
        """Return the width of embeddings that declare none: k for each other feature."""
        return max(1, fields - 1) * self.dim


class DeepFFMTower(nn.Module):
    """Hidden layers over the products of a field-aware factorization machine, and the numbers.

    Shape:
        DeepInput with F embeddings of width (F - 1) k -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: DeepFFM) -> None:
        super().__init__()
        n_fields = aware_fields(layout, config, config.dim)
        self.shape = (n_fields, n_fields - 1, config.dim)
        self.inner = config.product == "inner"
        self.pairs = FieldAwarePairs(n_fields)
        n_pairs = n_fields * (n_fields - 1) // 2
        products = n_pairs * (1 if self.inner else config.dim)
        self.hidden = config.hidden_layers(products + layout.numbers)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        aware_BFGK = inputs.fields_BFD(self.shape[1] * self.shape[2]).view(-1, *self.shape)
        products_BPK = self.pairs(aware_BFGK)
        products = products_BPK.sum(2) if self.inner else products_BPK.flatten(1)
        hidden_BH: Tensor = self.hidden(torch.cat([products, inputs.dense_BK], dim=1))
        return hidden_BH


@register_tower
class DeepFFM(HiddenConfig):
    """A perceptron over field-aware products (Zhang et al. 2019, *FAT-DeepFFM*, section 3.1).

    Equation: ``h_0 = [v_(i,j) * v_(j,i) for i < j; numbers]``, then hidden layers; ``v_(i,j)`` as
    in :class:`FFM`. The attention that the paper puts before it is left out.

    Args:
        dim: k, the width of the embedding for one other feature.
        product: ``"hadamard"``: elementwise products; ``"inner"``: scalar products, k times fewer.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, (F - 1) k) and numbers -> (B, hidden_units[-1])
    """

    name = "deep_ffm"
    network = DeepFFMTower
    embedding_std = PRODUCTS_STD
    dim: Count = 4
    product: Literal["hadamard", "inner"] = "hadamard"

    def embedding_dim(self, fields: int) -> int | None:
        """Return the width of embeddings that declare none: k for each other feature."""
        return max(1, fields - 1) * self.dim
