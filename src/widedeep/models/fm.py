"""Factorization machine."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.blocks import PairSum, pair_products
from widedeep.models.tower import (
    PAIRS_RATE,
    DeepInput,
    DeepLayout,
    TowerConfig,
    register_tower,
)


class FMTower(nn.Module):
    """The sum of all pairs of fields' scalar products, weighted by dimension for further logits.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> logits (B, C)
    """

    returns = "logits"
    reads_numbers = False

    def __init__(self, layout: DeepLayout, config: TowerConfig) -> None:
        super().__init__()
        self.dim = layout.field_dim(config.name, least=2)
        self.output = PairSum(self.dim, layout.n_logits)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        logits_BC: Tensor = self.output(pair_products(inputs.fields_BFD(self.dim)))
        return logits_BC


@register_tower
class FM(TowerConfig):
    """A factorization machine of second order (Rendle 2010, *Factorization Machines*, equation 1).

    Equation: ``logit = sum_(i<j) <v_i, v_j>``, computed in linear time as
    ``1/2 sum_d ((sum_i v_id)^2 - sum_i v_id^2)`` (its lemma 3.1). The terms of first order are the
    wide part's. Of several logits, each learns a weight for each of the D dimensions.

    Shape:
        (B, F, D) -> logits (B, C); embeddings of one width D
    """

    name = "fm"
    network = FMTower
    embedding_rate = PAIRS_RATE
