"""FinalMLP: two perceptrons over differently gated input, fused by a bilinear form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError, nearest
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count, Widths


class FeatureGates(nn.Module):
    """The input times ``2 sigmoid(MLP(context))``, with a context of features or a learned one.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> (B, X)
    """

    def __init__(self, layout: DeepLayout, config: FinalMLP, context: tuple[str, ...]) -> None:
        super().__init__()
        self.columns = [layout.columns[name] for name in context]
        width = sum(columns.stop - columns.start for columns in self.columns)
        width = width or config.gate_units[0]
        self.context = None if context else nn.Parameter(torch.randn(1, width))
        self.hidden = config.hidden_layers(width, config.gate_units)
        self.output = nn.Linear(self.hidden.out_features, layout.width)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the gated input, (B, X)."""
        x_BX = inputs.concat_BX
        if self.context is None:
            context = torch.cat([x_BX[:, columns] for columns in self.columns], dim=1)
        else:
            context = self.context  # (1, width), the same for all examples
        gates: Tensor = 2 * self.output(self.hidden(context)).sigmoid()
        return x_BX * gates


class BilinearFusion(nn.Module):
    """Logits of two vectors: both linear, and bilinear in each of several heads.

    ``b + w_1 . x + w_2 . y + sum_h x_h' W_h y_h``, with x_h and y_h the heads' shares of both.

    Shape:
        (B, n_left), (B, n_right) -> (B, C)
    """

    def __init__(self, n_left: int, n_right: int, heads: int, n_logits: int) -> None:
        super().__init__()
        self.shape = (heads, n_logits, n_right // heads)
        self.linear = nn.Linear(n_left + n_right, n_logits)
        # For each head, (n_left / heads) x (C n_right / heads)
        self.weight_HLR = nn.Parameter(
            torch.empty(heads, n_left // heads, n_logits * n_right // heads)
        )
        bound = (6 * heads / (n_left + n_right)) ** 0.5
        nn.init.uniform_(self.weight_HLR, -bound, bound)

    def forward(self, left_BL: Tensor, right_BR: Tensor) -> Tensor:
        """Return the logits, (B, C)."""
        heads, _, n_right = self.shape
        left_BHL = left_BL.reshape(-1, heads, self.weight_HLR.shape[1])
        mapped_BHM = torch.einsum("bhl,hlm->bhm", left_BHL, self.weight_HLR)
        right_BHCR = right_BR.reshape(-1, heads, 1, n_right)
        products_BHCR = mapped_BHM.reshape(-1, *self.shape) * right_BHCR
        linear_BC = self.linear(torch.cat([left_BL, right_BR], dim=1))
        logits_BC: Tensor = linear_BC + products_BHCR.sum((1, 3))
        return logits_BC


class FinalMLPTower(nn.Module):
    """Two streams of hidden layers, and their bilinear fusion.

    Shape:
        DeepInput -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: FinalMLP) -> None:
        super().__init__()
        contexts = {
            option: getattr(config, option) for option in ("first_context", "second_context")
        }
        for option, feature in ((o, name) for o, names in contexts.items() for name in names):
            if feature not in layout.columns:
                raise ConfigError(
                    f"tower {config.name!r}: got {option} with {feature!r}, expected features of "
                    f"the deep part; {nearest(feature, layout.columns)}"
                )
        self.gates = None
        if config.gate_units:
            gates = (FeatureGates(layout, config, names) for names in contexts.values())
            self.gates = nn.ModuleList(gates)
        self.first = config.hidden_layers(layout.width)
        self.second = config.hidden_layers(layout.width, config.second_units or None)
        self.fusion = BilinearFusion(
            self.first.out_features, self.second.out_features, config.heads, layout.n_logits
        )

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        first_BX = second_BX = inputs.concat_BX
        if self.gates is not None:
            first_BX, second_BX = (gate(inputs) for gate in self.gates)
        logits_BC: Tensor = self.fusion(self.first(first_BX), self.second(second_BX))
        return logits_BC


@register_tower
class FinalMLP(HiddenConfig):
    """Two perceptrons and their bilinear fusion (Mao et al. 2023, *FinalMLP*).

    Equation: ``logit = b + w_1 . o_1 + w_2 . o_2 + sum_h o_1h' W_h o_2h`` (its equations 8 and 9)
    with ``o_s = MLP_s(x * 2 sigmoid(MLP(c_s)))`` (its equations 5 to 7). The context c_s is learned
    where no features are named, as in FuxiCTR. The terms of first order are the wide part's.

    Args:
        hidden_units: Width of each hidden layer of the first stream, at least one.
        second_units: The same of the second stream; empty: as the first one.
        heads: Number of heads of the fusion, which divides the last widths of both streams.
        gate_units: Width of each hidden layer of the gates; empty for no gates.
        first_context: Features that the first stream's gates read, such as the user's.
        second_context: Features that the second stream's gates read, such as the item's.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "finalmlp"
    network = FinalMLPTower
    second_units: Widths = ()
    heads: Count = 1
    gate_units: Widths = (64,)
    first_context: tuple[str, ...] = ()
    second_context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = [units[-1] for units in (self.hidden_units, self.second_units) if units]
        if any(width % self.heads for width in widths):
            raise self.refusal(
                f"got heads={self.heads} and streams whose last widths are {widths}, "
                "expected heads that divide them; change one of them"
            )
        if not self.gate_units and (self.first_context or self.second_context):
            raise self.refusal(
                "got a context and no gate_units, which read it; give gate_units, or "
                "drop first_context and second_context"
            )
