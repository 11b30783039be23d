"""xDeepFM: a compressed interaction network beside a perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_layers import runs_native
from widedeep.kernels.torch_products import outer_linear
from widedeep.models.layer_options import Activation, checked_activation, make_activation
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Widths


class CompressedInteraction(nn.Module):
    """Maps that are weighed sums of products of the last layer's maps with all fields.

    All products of one example and one dimension are a line of a matrix, and all lines meet all
    weights in one product.

    Args:
        n_fields: Number of fields.
        units: Number of maps of each layer.
        split_half: Pass half of a layer's maps to the next one, and the others to the output;
            otherwise all go both ways.
        activation: Activation of the maps, or ``"none"``.

    Shape:
        (B, F, D) -> (B, maps), summed over dimensions
    """

    def __init__(
        self, n_fields: int, units: tuple[int, ...], split_half: bool, activation: Activation
    ) -> None:
        super().__init__()
        self.passed: list[int] = []  # maps of each layer that the next one multiplies
        self.widths: list[int] = []  # maps of each layer in the output
        layers, n_maps = [], n_fields
        for index, width in enumerate(units):
            layers.append(nn.Linear(n_maps * n_fields, width))
            is_last = index == len(units) - 1
            n_maps = width // 2 if split_half and not is_last else width
            self.passed.append(0 if is_last else n_maps)
            self.widths.append(width - n_maps if split_half and not is_last else width)
        self.layers = nn.ModuleList(layers)
        self.act = make_activation(activation)

    @property
    def out_features(self) -> int:
        """Number of maps in the output."""
        return sum(self.widths)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the sum of each map, (B, maps)."""
        fields_BDF = fields_BFD.transpose(1, 2).contiguous()
        maps_BDH, sums = fields_BDF, []
        for layer, n_passed, width in zip(self.layers, self.passed, self.widths, strict=True):
            maps_BDH = self.act(_weighed_products(layer, maps_BDH, fields_BDF))
            if 0 < n_passed < maps_BDH.shape[2]:
                maps_BDH, own_BDH = torch.split(maps_BDH, [n_passed, width], dim=2)
            else:
                own_BDH = maps_BDH
            sums.append(own_BDH.sum(1))
        return torch.cat(sums, dim=1)


def _weighed_products(layer: nn.Module, maps_BDH: Tensor, fields_BDF: Tensor) -> Tensor:
    """Return a linear layer over the products of all maps with all fields, by dimension."""
    assert isinstance(layer, nn.Linear)
    if runs_native(maps_BDH) and not torch.is_autocast_enabled("cpu"):
        rows, dim, _ = maps_BDH.shape
        lines = maps_BDH.flatten(0, 1), fields_BDF.flatten(0, 1)
        return outer_linear(*lines, layer.weight, layer.bias).view(rows, dim, -1)
    products_BDHF = maps_BDH.unsqueeze(3) * fields_BDF.unsqueeze(2)
    out: Tensor = layer(products_BDHF.flatten(2))
    return out


class XDeepFMTower(nn.Module):
    """A compressed interaction network beside hidden layers.

    Shape:
        DeepInput -> features (B, maps + hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: XDeepFM) -> None:
        super().__init__()
        self.dim = layout.field_dim(config.name, least=2)
        self.cin = CompressedInteraction(
            len(layout.fields), config.cin_units, config.split_half, config.cin_activation
        )
        self.hidden = config.hidden_layers(layout.width) if config.hidden_units else None

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return both parts side by side."""
        maps_BH: Tensor = self.cin(inputs.fields_BFD(self.dim))
        if self.hidden is None:
            return maps_BH
        return torch.cat([maps_BH, self.hidden(inputs.concat_BX)], dim=1)


@register_tower
class XDeepFM(HiddenConfig):
    """A compressed interaction network beside a perceptron (Lian et al. 2018, *xDeepFM*).

    Equation: ``X^k_h = act(sum_(i,j) W^(k,h)_ij (X^(k-1)_i * X^0_j) + b^k_h)`` with the fields as
    X^0, ``p^k_h = sum_d X^k_hd`` (its equations 6 and 7, which have no bias); each layer raises the
    order by one. The features are [p; MLP(x)]. That half of a layer's maps goes on, the other half
    to the output, and ReLU, are DeepCTR-Torch's; ``split_half=False`` and
    ``cin_activation="none"`` are the paper's best, and FuxiCTR's.

    Args:
        cin_units: Number of maps of each layer.
        split_half: Pass half of a layer's maps on, and only the others to the output.
        cin_activation: Activation of the maps, see :class:`MLP`; ``"none"`` for none.
        hidden_units: Width of each hidden layer; empty for the interactions alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, maps + hidden_units[-1]); embeddings of one width D
    """

    name = "xdeepfm"
    network = XDeepFMTower
    cin_units: Widths = (128, 128)
    split_half: bool = True
    cin_activation: Activation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"tower {self.name!r}"
        object.__setattr__(self, "cin_activation", checked_activation(self.cin_activation, owner))
        if not self.cin_units:
            raise self.refusal("got cin_units=[], expected the width of a layer or more")
        if self.split_half and 1 in self.cin_units[:-1]:
            raise self.refusal(
                f"got cin_units={list(self.cin_units)} and split_half, expected at least "
                "2 maps in each layer but the last: half of them go on; or set split_half=false"
            )
