"""DeepFM: a factorization machine and a perceptron over the same embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.fm import FMTower
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import PAIRS_RATE, DeepInput, DeepLayout, register_tower


class DeepFMTower(nn.Module):
    """The factorization machine's logits plus a linear function of the last hidden layer.

    Shape:
        DeepInput -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: DeepFM) -> None:
        super().__init__()
        self.fm = FMTower(layout, config)
        self.hidden = config.hidden_layers(layout.width)
        self.output = nn.Linear(self.hidden.out_features, layout.n_logits, bias=False)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        logits_BC: Tensor = self.fm(inputs) + self.output(self.hidden(inputs.concat_BX))
        return logits_BC


@register_tower
class DeepFM(HiddenConfig):
    """A factorization machine and a perceptron that share embeddings (Guo et al. 2017, *DeepFM*).

    Equation: ``logit = FM(v) + w . MLP(x)`` (its equation 1); the terms of first order are the wide
    part's.

    Args:
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> logits (B, C); embeddings of one width D
    """

    name = "deep_fm"
    embedding_rate = PAIRS_RATE
    network = DeepFMTower
