"""The standard tower: a multi-layer perceptron over everything in the deep part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from widedeep.models.blocks import HiddenLayers
from widedeep.models.layer_options import (
    Activation,
    BatchNorm,
    batch_norm_options,
    checked_activation,
)
from widedeep.models.tower import DeepInput, DeepLayout, TowerConfig, register_tower
from widedeep.options import FractionBelow1, Widths


class MLPTower(HiddenLayers):
    """Hidden layers over ``concat_BX``.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> (B, hidden_units[-1])

    Example:
        >>> import torch
        >>> tower = MLPTower(4, [8, 2])
        >>> tower(DeepInput(torch.zeros(3, 4), {}, torch.zeros(3, 0))).shape
        torch.Size([3, 2])
    """

    def forward(self, inputs: DeepInput | Tensor) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        return super().forward(inputs.concat_BX if isinstance(inputs, DeepInput) else inputs)


@dataclass(frozen=True, kw_only=True)
class HiddenConfig(TowerConfig):
    """A tower with hidden layers: the options that all of these have."""

    hidden_units: Widths = (256, 128)  # Width of each hidden layer
    activation: Activation = "relu"  # Activation of the hidden layers
    dropout: FractionBelow1 = 0.0  # Probability to drop a hidden unit, 0 <= dropout < 1
    batch_norm: BatchNorm = False  # Normalise each hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"tower {self.name!r}"
        object.__setattr__(self, "activation", checked_activation(self.activation, owner))
        batch_norm_options(self.batch_norm, owner)

    def hidden_layers(
        self,
        in_features: int,
        hidden_units: Sequence[int] | None = None,
        kind: type[HiddenLayers] = HiddenLayers,
    ) -> HiddenLayers:
        """Return hidden layers over an input of this width; None: of the configured widths."""
        return kind(
            in_features,
            self.hidden_units if hidden_units is None else hidden_units,
            activation=self.activation,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
        )


@register_tower
class MLP(HiddenConfig):
    """A multi-layer perceptron over all embeddings and numbers: the deep part of Cheng et al. 2016.

    Equation: ``h_0 = x``, ``h_i = norm(dropout(activation(W_i h_(i-1) + b_i)))``.

    Args:
        hidden_units: Width of each hidden layer, at least one.
        activation: ``"relu"`` (default), ``"gelu"``, ``"tanh"``, ``"elu"``, ``"leaky_relu"`` or
            ``"silu"``, which train and score natively; or, trained by torch, any other of
            ``torch.nn`` that is a function of each number, in snake case (``"relu6"``,
            ``"softplus"``), or a table with options, ``{ name = "leaky_relu",
            negative_slope = 0.2 }``. One with a weight (``"prelu"``) has one for all layers.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer: true, false, or a table, ``{ momentum = 0.99,
            eps = 0.001, biased = true }``. ``momentum`` (0.9) is the share of the moving mean and
            variance that a step keeps, as in TensorFlow (PyTorch's is 1 - momentum); ``eps``
            (1e-5) is added to the variance; ``biased`` (false): the moving variance follows the
            biased variance of batches. ``"tensorflow"``: its estimators' 0.999, 0.001 and true.

    Shape:
        (B, X) -> (B, hidden_units[-1])
    """

    name = "mlp"

    def make(self, layout: DeepLayout) -> nn.Module:
        """Return the tower."""
        return self.hidden_layers(layout.width, kind=MLPTower)
