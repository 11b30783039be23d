"""Convolutional click prediction model: convolutions over neighbouring fields."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_blocks import field_convolution
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.blocks import has_hooks
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import COUNT, COUNTS, Allowed

Counts = Annotated[tuple[int, ...], Allowed(COUNTS.__contains__, f"numbers: {COUNT} each")]
_MAX_FIELDS = 256  # that our kernel counts


class FieldConvolution(nn.Module):
    """A convolution over fields, alike for all dimensions, whose k largest values go on.

    Args:
        n_in: Number of maps of the input.
        n_out: Number of filters.
        width: Number of neighbouring fields that a filter reads; ends are padded with zeros.
        k: How many values go on, largest first; at most the number of fields.

    Shape:
        (B, n_in, D, F) -> (B, n_out, D, k)
    """

    def __init__(self, n_in: int, n_out: int, width: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.pad = nn.ZeroPad2d(((width - 1) // 2, width // 2, 0, 0))
        self.filters = nn.Conv2d(n_in, n_out, (1, width))

    def forward(self, maps_BNDF: Tensor) -> Tensor:
        """Return the k largest values of each map and dimension."""
        values_BNDF = torch.tanh(self.filters(self.pad(maps_BNDF)))
        return values_BNDF.topk(self.k, dim=3).values


class CCPMTower(nn.Module):
    """Convolutions over fields, then hidden layers over what they let through, and the numbers.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: CCPM) -> None:
        super().__init__()
        self.dim, n_fields = layout.field_dim(config.name, least=2), len(layout.fields)
        maps, size, depth = 1, n_fields, len(config.filters)
        convolutions = []
        for layer, (filters, width) in enumerate(
            zip(config.filters, config.kernel_widths, strict=True), 1
        ):
            fraction = 1 - (layer / depth) ** (depth - layer)
            k = min(size, 3 if layer == depth else max(1, int(fraction * n_fields)))
            convolutions.append(FieldConvolution(maps, filters, min(width, size), k))
            maps, size = filters, k
        self.convolutions = nn.Sequential(*convolutions)
        self.hidden = config.hidden_layers(maps * self.dim * size + layout.numbers)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        fields_BFD = inputs.fields_BFD(self.dim)
        standard = not any(has_hooks(module) for module in self.convolutions.modules())
        if standard and runs_native(fields_BFD) and fields_BFD.shape[1] <= _MAX_FIELDS:
            maps_BM = self._convolve(fields_BFD)
        else:
            maps_BM = self.convolutions(fields_BFD.transpose(1, 2).unsqueeze(1)).flatten(1)
        hidden_BH: Tensor = self.hidden(torch.cat([maps_BM, inputs.dense_BK], dim=1))
        return hidden_BH

    def _convolve(self, fields_BFD: Tensor) -> Tensor:
        """Return what the convolutions do, by our kernel."""
        maps_BNFD = fields_BFD.unsqueeze(1)
        for layer in self.convolutions:
            assert isinstance(layer, FieldConvolution) and layer.filters.bias is not None
            weight_NMW = layer.filters.weight.squeeze(2)
            maps_BNFD = field_convolution(maps_BNFD, weight_NMW, layer.filters.bias, layer.k)
        return maps_BNFD.transpose(2, 3).flatten(1)


@register_tower
class CCPM(HiddenConfig):
    """Convolutions over fields (Liu et al. 2015, *A Convolutional Click Prediction Model*).

    Equation: l layers of ``tanh(convolution)`` and flexible pooling, which keeps ``k_i = (1 -
    (i/l)^(l-i)) F`` values after layer i, and 3 after the last (its section 3.3); then hidden
    layers, with the numbers beside. A filter is shared by all dimensions, and the values that are
    kept stand in descending order, as in DeepCTR-Torch: the paper's own order of the fields would
    jump where two values are equal. Fields are neighbours in the order of declaration.

    Args:
        kernel_widths: Number of neighbouring fields that each layer's filters read.
        filters: Number of filters of each layer.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "ccpm"
    network = CCPMTower
    kernel_widths: Counts = (6, 5)
    filters: Counts = (4, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.filters) != len(self.kernel_widths) or not self.filters:
            raise self.refusal(
                f"got {len(self.kernel_widths)} kernel_widths and {len(self.filters)} "
                "filters, expected one of each for every layer, and at least one layer"
            )
