"""Logistic regression over the deep part's input."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.tower import DeepInput, DeepLayout, TowerConfig, register_tower


class LRTower(nn.Module):
    """One linear layer.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: LR) -> None:
        super().__init__()
        self.output = nn.Linear(layout.width, layout.n_logits, bias=False)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        logits_BC: Tensor = self.output(inputs.concat_BX)
        return logits_BC


class NumbersTower(nn.Module):
    """A linear term of the numbers, beside towers that read embeddings alone.

    Shape:
        DeepInput with ``dense_BK`` (B, K) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.output = nn.Linear(layout.numbers, layout.n_logits, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        logits_BC: Tensor = self.output(inputs.dense_BK)
        return logits_BC


@register_tower
class LR(TowerConfig):
    """A linear function of all embeddings and numbers (Richardson et al. 2007).

    Equation: ``logit = w . x``; the bias is the model's. Beside the wide part it gives the deep
    part's numbers, which are in no wide sum, a weight each.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "lr"
    network = LRTower
