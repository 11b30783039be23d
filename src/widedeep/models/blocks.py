"""Blocks that towers are built from: hidden layers, and the sums and products of fields."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError, nearest

Activation = Literal["relu", "gelu", "tanh", "elu", "leaky_relu", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module's result is more than that of its ``forward``."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or "forward" in vars(module)


class HiddenLayers(nn.Module):
    """Linear layers, each with activation, dropout, batch norm (in this order).

    Args:
        in_features: Width of the input.
        hidden_units: Width of each layer, at least one.
        activation: ``"relu"`` (default), ``"gelu"``, ``"tanh"``, ``"elu"``, ``"leaky_relu"`` or
            ``"silu"``.
        dropout: Probability to drop a unit, 0 <= dropout < 1.
        batch_norm: Normalise after dropout, as TensorFlow's DNN estimators do.
        generator: Source of the initial weights (Glorot uniform; biases 0).

    Shape:
        (B, in_features) -> (B, hidden_units[-1])

    Raises:
        ConfigError: If an option is outside its range.
    """

    def __init__(
        self,
        in_features: int,
        hidden_units: Sequence[int],
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ConfigError(
                f"got activation={activation!r}; {nearest(str(activation), _ACTIVATIONS)}"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"got dropout={dropout}, expected 0 <= dropout < 1")
        if not hidden_units or min(hidden_units) < 1:
            raise ConfigError(
                f"got hidden_units={list(hidden_units)}, expected one or more widths of at least 1"
            )
        self.activation = activation
        self.dropout = dropout
        self.hidden_units = tuple(hidden_units)
        widths = [in_features, *hidden_units]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = (
            nn.ModuleList(nn.BatchNorm1d(width) for width in hidden_units) if batch_norm else None
        )
        self.act = _ACTIVATIONS[activation]()
        self.drop = nn.Dropout(dropout)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.hidden_units[-1]

    @property
    def is_standard(self) -> bool:
        """True if its modules are those it was made with: what a bundle computes by itself.

        A hook, or another module in place of one, makes it compute something else.
        """
        expected: list[tuple[nn.Module, type[nn.Module]]] = [
            (self.act, _ACTIVATIONS[self.activation]),
            (self.drop, nn.Dropout),
        ]
        expected += [(layer, nn.Linear) for layer in self.layers]
        expected += [(norm, nn.BatchNorm1d) for norm in self.norms or ()]
        as_made = all(type(module) is kind and not has_hooks(module) for module, kind in expected)
        return as_made and not has_hooks(self)

    @property
    def is_plain(self) -> bool:
        """True for ReLU without dropout and batch norm: what the fast path computes by hand."""
        return (
            self.is_standard
            and self.activation == "relu"
            and self.drop.p == 0
            and self.norms is None
            and all(parameter.requires_grad for parameter in self.parameters())
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        for i, layer in enumerate(self.layers):
            hidden = self.drop(self.act(layer(hidden)))
            if self.norms is not None:
                hidden = self.norms[i](hidden)
        return hidden


def pair_products(fields_BFD: Tensor) -> Tensor:
    """Return the sum over all pairs of fields of their elementwise products, in linear time.

    ``sum_(i<j) v_i * v_j = 1/2 ((sum_i v_i)^2 - sum_i v_i^2)`` (Rendle 2010, lemma 3.1).

    Shape:
        (B, F, D) -> (B, D)
    """
    return 0.5 * (fields_BFD.sum(1).square() - fields_BFD.square().sum(1))
