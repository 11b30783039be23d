"""MaskNet: blocks that multiply what they read by a mask made of the example."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from widedeep.models.blocks import linear
from widedeep.models.layer_options import make_activation
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Allowed, Count


class FieldNorm(nn.Module):
    """Normalises each field's embedding by itself; the numbers go on as they are.

    Shape:
        DeepInput with ``fields_BFD`` (B, F, D) -> (B, X)
    """

    def __init__(self, n_fields: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight_FD = nn.Parameter(torch.ones(n_fields, dim))
        self.bias_FD = nn.Parameter(torch.zeros(n_fields, dim))

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the normalised input."""
        normed_BFD = nn.functional.layer_norm(inputs.fields_BFD(self.dim), (self.dim,))
        normed_BFD = torch.addcmul(self.bias_FD, normed_BFD, self.weight_FD)
        return torch.cat([normed_BFD.flatten(1), inputs.dense_BK], dim=1)


class MaskBlock(nn.Module):
    """``act(norm(W (mask * h)))`` with ``mask = W_2 relu(W_1 x + b_1) + b_2``.

    Shape:
        x (B, X), h (B, in_features) -> (B, units)
    """

    def __init__(self, width: int, in_features: int, units: int, config: MaskNet) -> None:
        super().__init__()
        aggregated = max(1, int(config.reduction_ratio * in_features))
        self.aggregate = nn.Linear(width, aggregated)
        self.project = nn.Linear(aggregated, in_features)
        self.linear = nn.Linear(in_features, units, bias=False)
        self.norm = nn.LayerNorm(units)
        self.act = make_activation(config.activation)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BX: Tensor, hidden_BH: Tensor) -> Tensor:
        """Return the block's output, (B, units)."""
        mask_BH = linear(self.project, torch.relu(linear(self.aggregate, x_BX)))
        masked_BH: Tensor = self.drop(self.act(self.norm(linear(self.linear, mask_BH * hidden_BH))))
        return masked_BH


class SerialMaskNet(nn.Module):
    """Mask blocks, each over the one before.

    Shape:
        DeepInput -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: MaskNet) -> None:
        super().__init__()
        self.norm = FieldNorm(len(layout.fields), layout.field_dim(config.name))
        widths = [layout.width, *config.hidden_units]
        self.blocks = nn.ModuleList(
            MaskBlock(layout.width, a, b, config) for a, b in itertools.pairwise(widths)
        )

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last block's output."""
        hidden_BH: Tensor = self.norm(inputs)
        for block in self.blocks:
            hidden_BH = block(inputs.concat_BX, hidden_BH)
        return hidden_BH


class ParallelMaskNet(nn.Module):
    """Mask blocks side by side, and hidden layers over all of them.

    Shape:
        DeepInput -> features (B, hidden_units[-1])
    """

    def __init__(self, layout: DeepLayout, config: MaskNet) -> None:
        super().__init__()
        self.norm = FieldNorm(len(layout.fields), layout.field_dim(config.name))
        self.blocks = nn.ModuleList(
            MaskBlock(layout.width, layout.width, config.block_units, config)
            for _ in range(config.blocks)
        )
        self.hidden = config.hidden_layers(config.blocks * config.block_units)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer."""
        normed_BX = self.norm(inputs)
        blocks = [block(inputs.concat_BX, normed_BX) for block in self.blocks]
        hidden_BH: Tensor = self.hidden(torch.cat(blocks, dim=1))
        return hidden_BH


@register_tower
class MaskNet(HiddenConfig):
    """Instance-guided masks (Wang et al. 2021, *MaskNet*).

    Equation: a block is ``relu(LN(W (mask * h)))`` with ``mask = W_2 relu(W_1 x + b_1) + b_2`` of
    the whole input x (its equations 4 to 9). Blocks stand in a row, the first over the embeddings,
    each normalised by itself; or side by side, all over these, under hidden layers. Numbers are
    part of x, and masked without a norm of their own.

    Args:
        structure: ``"parallel"`` or ``"serial"``.
        blocks: Number of blocks, if they are parallel.
        block_units: Width of each of these.
        reduction_ratio: Width of W_1's output, in widths of the mask, above 0, at most 100.
        hidden_units: Width of each hidden layer over parallel blocks; of each serial block.
        activation: Activation of blocks and hidden layers, see :class:`MLP`.
        dropout: Probability to drop a unit of those, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer; serial blocks have their layer norm instead.

    Shape:
        (B, F, D) and numbers -> (B, hidden_units[-1]); embeddings of one width D
    """

    name = "masknet"
    structure: Literal["parallel", "serial"] = "parallel"
    blocks: Count = 3
    block_units: Count = 64
    reduction_ratio: Annotated[float, Allowed(lambda x: 0 < x <= 100, "0 < {name} <= 100")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure == "serial" and (self.batch_norm or not self.hidden_units):
            raise self.refusal(
                f"got structure='serial' with hidden_units={list(self.hidden_units)} and "
                f"batch_norm={self.batch_norm}, expected a width for each block, and no batch norm "
                "beside the layer norm of blocks"
            )

    def make(self, layout: DeepLayout) -> nn.Module:
        """Return the tower."""
        kind = SerialMaskNet if self.structure == "serial" else ParallelMaskNet
        return kind(layout, self)
