"""Mixed logistic regression, also called LS-PLM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widedeep.models.tower import DeepInput, DeepLayout, TowerConfig, register_tower
from widedeep.options import Count


class MLRTower(nn.Module):
    """The logit of a mixture of M logistic regressions.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: MLR) -> None:
        super().__init__()
        self.shape = (layout.n_logits, config.regions)
        self.region = nn.Linear(layout.width, layout.n_logits * config.regions)
        self.expert = nn.Linear(layout.width, layout.n_logits * config.regions)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C): the odds' logarithm, in which softmax's divisor cancels."""
        u_BCM = self.region(inputs.concat_BX).view(-1, *self.shape)
        w_BCM = self.expert(inputs.concat_BX).view(-1, *self.shape)
        # log sigmoid(w) = -softplus(-w), and log(1 - sigmoid(w)) = -softplus(w)
        positive_BC = torch.logsumexp(u_BCM - F.softplus(-w_BCM), dim=2)
        negative_BC = torch.logsumexp(u_BCM - F.softplus(w_BCM), dim=2)
        return positive_BC - negative_BC


@register_tower
class MLR(TowerConfig):
    """Mixed logistic regression, LS-PLM (Gai et al. 2017, *Learning Piece-wise Linear Models*).

    Equation: ``p = sum_m softmax_m(u . x) sigmoid(w_m . x)`` (its equation 2); the tower adds the
    logit of p. Its x is one-hot; here it is all embeddings and numbers, which is the same family
    of functions where embeddings are at least ``2 regions`` wide. Of several logits, each has a
    mixture of its own.

    Args:
        regions: M, the number of linear pieces, at least 1; the paper takes 12.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "mlr"
    network = MLRTower
    regions: Count = 4
