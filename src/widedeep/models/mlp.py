"""The deep part: a tower's input, its layout, and the standard multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError, nearest
from widedeep.schema import Schema, Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLayout:
    """The deep part's input, known before any tower is made."""

    width: int  # X, columns of ``concat_BX``
    # Feature to its columns; pooled embeddings first, then the dense numbers
    columns: Mapping[str, slice]
    dense: slice  # The dense numbers' columns as one slice
    dense_columns: tuple[int, ...]  # Column of ``Batch.dense_BK`` for each column of ``dense``
    dims: Mapping[str, int]  # Feature to its embedding width, sequences too
    sequences: tuple[str, ...]  # Features that keep their sequence
    # Feature to its columns of ``Batch.dense_BK``, for :attr:`widedeep.FeatureSpec.extra`
    extra: Mapping[str, slice]


def auto_dim(size: int) -> int:
    """Return an embedding width for a vocabulary: 1.6 x size^0.56, at most 64, at least 2."""
    return max(2, min(64, round(1.6 * math.pow(size, 0.56))))


def _dim(slot: Slot, default: int | Literal["auto"]) -> int:
    if slot.embedding_dim is not None:
        return slot.embedding_dim
    return auto_dim(slot.size) if default == "auto" else default


def make_layout(schema: Schema, embedding_dim: int | Literal["auto"]) -> DeepLayout:
    """Lay out the deep input of a schema."""
    deep = [slot for slot in schema.slots if slot.deep]
    dims = {slot.name: _dim(slot, embedding_dim) for slot in deep}
    columns: dict[str, slice] = {}
    column = 0
    for slot in deep:
        if slot.combiner is not None:
            columns[slot.name] = slice(column, column + dims[slot.name])
            column += dims[slot.name]
    start = column
    dense_columns: list[int] = []
    for name, places in schema.dense_layout.items():
        if name in schema.spec.deep_names and name not in schema.spec.extra:
            columns[name] = slice(column, column + places.stop - places.start)
            dense_columns += range(places.start, places.stop)
            column += places.stop - places.start
    return DeepLayout(
        width=column,
        columns=columns,
        dense=slice(start, column),
        dense_columns=tuple(dense_columns),
        dims=dims,
        sequences=tuple(slot.name for slot in deep if slot.combiner is None),
        extra={name: schema.dense_layout[name] for name in schema.spec.extra},
    )


Activation = Literal["relu", "gelu", "tanh", "elu", "leaky_relu", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """The unpooled embeddings of a feature with ``combiner=None``.

    Args:
        values_ND: One row an id, of all examples one after the other.
        offsets: int64 of length B + 1; example b's rows are ``values_ND[offsets[b]:offsets[b +
            1]]``.
    """

    values_ND: Tensor
    offsets: Tensor


@dataclass(frozen=True, slots=True)
class DeepInput:
    """What a tower is called with.

    Args:
        concat_BX: Pooled embeddings and dense numbers in one buffer.
        layout: Feature to its columns in ``concat_BX``.
        sequences: Feature to its unpooled embeddings, for features with ``combiner=None``.
        dense_BK: The dense columns of ``concat_BX``.
        extra: Dense tensors of :attr:`widedeep.FeatureSpec.extra` by name, for encoders.
    """

    concat_BX: Tensor
    layout: Mapping[str, slice]
    dense_BK: Tensor
    sequences: Mapping[str, SequenceInput] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module's result is more than that of its ``forward``."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or "forward" in vars(module)


class MLP(nn.Module):
    """The standard tower: linear layers, each with activation, dropout, batch norm (in this order).

    Args:
        in_features: X, the width of ``concat_BX``.
        hidden_units: Width of each layer, at least one.
        activation: ``"relu"`` (default), ``"gelu"``, ``"tanh"``, ``"elu"``, ``"leaky_relu"`` or
            ``"silu"``.
        dropout: Probability to drop a unit, 0 <= dropout < 1.
        batch_norm: Normalise after dropout, as TensorFlow's DNN estimators do.
        generator: Source of the initial weights (Glorot uniform; biases 0).

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> (B, hidden_units[-1])

    Raises:
        ConfigError: If an option is outside its range.

    Example:
        >>> import torch
        >>> tower = MLP(4, [8, 2])
        >>> tower(DeepInput(torch.zeros(3, 4), {}, torch.zeros(3, 0))).shape
        torch.Size([3, 2])
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

        A subclass, a hook, or another module in place of one is asked for what it computes.
        """
        expected: list[tuple[nn.Module, type[nn.Module]]] = [
            (self, MLP),
            (self.act, _ACTIVATIONS[self.activation]),
            (self.drop, nn.Dropout),
        ]
        expected += [(layer, nn.Linear) for layer in self.layers]
        expected += [(norm, nn.BatchNorm1d) for norm in self.norms or ()]
        return all(type(module) is kind and not has_hooks(module) for module, kind in expected)

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

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        hidden = inputs.concat_BX
        for i, layer in enumerate(self.layers):
            hidden = self.drop(self.act(layer(hidden)))
            if self.norms is not None:
                hidden = self.norms[i](hidden)
        return hidden
