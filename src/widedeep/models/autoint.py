"""AutoInt: attention between fields, layer upon layer, and a perceptron beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.blocks import FieldAttention
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count


class AutoIntTower(nn.Module):
    """Attention between fields, beside hidden layers if there are any.

    Shape:
        DeepInput -> features (B, F heads units + hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: AutoInt) -> None:
        super().__init__()
        self.dim = layout.field_dim(config.name, least=2)
        units, dim, layers = config.head_units(self.dim), self.dim, []
        for _ in range(config.layers):
            layers.append(FieldAttention(dim, units, config.heads, scaled=config.scaled))
            dim = config.heads * units
        self.attention = nn.Sequential(*layers)
        self.hidden = config.hidden_layers(layout.width) if config.hidden_units else None

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the attended fields, and the last hidden layer."""
        attended_BA: Tensor = self.attention(inputs.fields_BFD(self.dim)).flatten(1)
        if self.hidden is None:
            return attended_BA
        return torch.cat([attended_BA, self.hidden(inputs.concat_BX)], dim=1)


@register_tower
class AutoInt(HiddenConfig):
    """Self-attention between fields (Song et al. 2019, *AutoInt*).

    Equation: ``v_i' = relu([sum_j a^h_ij V^h v_j for all heads h] + R v_i)`` with ``a^h_ij =
    softmax_j(<Q^h v_i, K^h v_j>)`` (its equations 5 to 8), ``layers`` times. With hidden layers
    beside, which read the numbers too, it is AutoInt+ (its section 5.5), and DeepCTR-Torch's
    default; ``hidden_units=[]`` is AutoInt. For attention over numbers give them an embedding.

    Args:
        layers: Number of attention layers.
        heads: Number of heads of each.
        head_width: Width of each head; None: D / heads, which must be a whole number.
        scaled: Divide scores by the root of ``head_width``; neither the paper nor its peers do.
        hidden_units: Width of each hidden layer beside the attention; empty for none.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, F heads head_width + hidden_units[-1]); embeddings of one
        width D
    """

    name = "autoint"
    network = AutoIntTower
    layers: Count = 3
    heads: Count = 2
    head_width: Count | None = None
    scaled: bool = False

    def head_units(self, dim: int) -> int:
        """Return the width of each head, for embeddings of width D.

        Raises:
            ConfigError: If the heads do not divide D, and no width is given.
        """
        if self.head_width is None and dim % self.heads:
            raise self.refusal(
                f"got heads={self.heads} and embeddings of width {dim}, "
                "expected heads that divide the width; change one of them, or give head_width"
            )
        return self.head_width or dim // self.heads
