"""Blocks that towers are built from: hidden layers, and the sums and products of fields."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from widedeep.errors import ConfigError
from widedeep.kernels import torch_layers
from widedeep.kernels.torch_blocks import field_attention
from widedeep.kernels.torch_layers import (
    BiasedBatchNorm,
    DenseLayer,
    dense_layers,
    runs_native,
)
from widedeep.kernels.torch_pairs import attend_pairs, can_attend_pairs
from widedeep.models.layer_options import (
    ACTIVATIONS,
    NATIVE_ACTIVATIONS,
    Activation,
    BatchNorm,
    BatchNormOptions,
    batch_norm_options,
    make_activation,
)

_Norm = nn.BatchNorm1d | None


def _make_norm(width: int, options: BatchNormOptions) -> nn.BatchNorm1d:
    kind = BiasedBatchNorm if options.biased else nn.BatchNorm1d
    return kind(width, eps=options.eps, momentum=1.0 - options.momentum)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module's result is more than that of its ``forward``."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or "forward" in vars(module)


def _normed(norm: nn.Module, hidden: Tensor) -> Tensor:
    """Normalise; a batch of one example, which has no variance, by the running figures."""
    one_row = norm.training and len(hidden) == 1
    if not (one_row and isinstance(norm, nn.BatchNorm1d)):
        out: Tensor = norm(hidden)
        return out
    return nn.functional.batch_norm(
        hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


class HiddenLayers(nn.Module):
    """Linear layers, each with activation, dropout, batch norm (in this order).

    Args:
        in_features: Width of the input.
        hidden_units: Width of each layer, at least one.
        activation: As :class:`widedeep.models.MLP` takes it; one with a weight has one for all
            layers.
        dropout: Probability to drop a unit, 0 <= dropout < 1.
        batch_norm: Normalise after dropout, as TensorFlow's DNN estimators do; see
            :class:`widedeep.models.MLP`.
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
        batch_norm: BatchNorm = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
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
        norm = batch_norm_options(batch_norm)
        self.norms = (
            None if norm is None else nn.ModuleList(_make_norm(w, norm) for w in hidden_units)
        )
        self.act = make_activation(activation)
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
        """True if our kernels compute what its modules do: what a bundle computes by itself.

        An activation that they do not have, a hook, or another module in place of one, makes it
        compute something else.
        """
        if self.activation not in NATIVE_ACTIVATIONS:
            return False
        expected: list[tuple[nn.Module, tuple[type[nn.Module], ...]]] = [
            (self.act, (getattr(nn, ACTIVATIONS[self.activation]),)),
            (self.drop, (nn.Dropout,)),
        ]
        expected += [(layer, (nn.Linear,)) for layer in self.layers]
        expected += [(norm, (nn.BatchNorm1d, BiasedBatchNorm)) for norm in self.norms or ()]
        as_made = all(type(module) in kinds and not has_hooks(module) for module, kinds in expected)
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

    @property
    def dense_layers(self) -> list[DenseLayer] | None:
        """What the native tower computes in training, or None where it does not know a layer."""
        if not self.is_standard:
            return None
        assert isinstance(self.activation, str)
        norms = [None] * len(self.layers) if self.norms is None else list(self.norms)
        dropout = self.drop.p if self.drop.training else 0.0
        layers = [
            DenseLayer(cast(nn.Linear, linear), self.activation, dropout, cast(_Norm, norm))
            for linear, norm in zip(self.layers, norms, strict=True)
        ]
        return layers if all(layer.is_known for layer in layers) else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the last hidden layer, (B, hidden_units[-1])."""
        if runs_native(hidden) and hidden.dim() == 2 and self.training:
            layers = self.dense_layers
            if layers is not None and (self.norms is None or len(hidden) > 1):
                return dense_layers(layers, hidden)
        for i, layer in enumerate(self.layers):
            hidden = self.drop(self.act(layer(hidden)))
            if self.norms is not None:
                hidden = _normed(self.norms[i], hidden)
        return hidden


_WIDE = 128  # from which our products are the faster ones


def linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """Return what a linear layer computes: in a training step, by our products where it is wide.

    Shape:
        (B, X) -> (B, H)
    """
    wide = min(layer.in_features, layer.out_features) >= _WIDE and hidden.dim() == 2
    if wide and runs_native(hidden) and type(layer) is nn.Linear and not has_hooks(layer):
        return dense_layers([DenseLayer(layer)], hidden)
    out: Tensor = layer(hidden)
    return out


def pair_products(fields_BFD: Tensor) -> Tensor:
    """Return the sum over all pairs of fields of their elementwise products, in linear time.

    ``sum_(i<j) v_i * v_j = 1/2 ((sum_i v_i)^2 - sum_i v_i^2)`` (Rendle 2010, lemma 3.1).

    Shape:
        (B, F, D) -> (B, D)
    """
    if runs_native(fields_BFD):
        return torch_layers.pair_products(fields_BFD)
    return 0.5 * (fields_BFD.sum(1).square() - fields_BFD.square().sum(1))


class PairSum(nn.Module):
    """From the products of pairs, summed, to logits.

    One logit is the plain sum over dimensions, as in the papers. Several logits share the products,
    and each learns a weight for each dimension.

    Shape:
        (B, D) -> (B, C)
    """

    def __init__(self, dim: int, n_logits: int) -> None:
        super().__init__()
        self.weight_CD = nn.Parameter(torch.ones(n_logits, dim)) if n_logits > 1 else None

    def forward(self, products_BD: Tensor) -> Tensor:
        """Return the logits, (B, C)."""
        if self.weight_CD is None:
            return products_BD.sum(1, keepdim=True)
        return products_BD @ self.weight_CD.t()


def hadamard_pairs(left_BFD: Tensor, right_BFD: Tensor | None = None) -> Tensor:
    """Return the elementwise product of each pair of fields, P = F (F - 1) / 2 of them.

    Pairs (i, j) with i < j are in the order of ``itertools.combinations``. One field at a time is
    multiplied with all that follow it: copies of both sides would be most of the work.

    Shape:
        (B, F, D) -> (B, P, D)
    """
    right_BFD = left_BFD if right_BFD is None else right_BFD
    n_fields = right_BFD.shape[1]
    return torch.cat(
        [left_BFD[:, i : i + 1] * right_BFD[:, i + 1 :] for i in range(n_fields - 1)], dim=1
    )


class InnerPairs(nn.Module):
    """The scalar product of each pair of fields, P = F (F - 1) / 2 of them, by one product.

    Shape:
        (B, F, D) -> (B, P), pairs in the order of ``itertools.combinations``
    """

    upper_P: Tensor

    def __init__(self, n_fields: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(n_fields, n_fields, 1)
        self.register_buffer("upper_P", rows * n_fields + columns, persistent=False)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the products, (B, P)."""
        gram_BFF = torch.bmm(fields_BFD, fields_BFD.transpose(1, 2))
        return gram_BFF.flatten(1).index_select(1, self.upper_P)


class FieldAwarePairs(nn.Module):
    """The products ``v_(i,j) * v_(j,i)``: each field has an embedding for each other field.

    Field i's embeddings stand in the order of the other fields: those for the fields before it,
    then those for the fields after it. So both sides of all pairs are runs of neighbours.

    Shape:
        (B, F, F - 1, k) -> (B, P, k), pairs in the order of ``itertools.combinations``
    """

    by_row_P: Tensor

    def __init__(self, n_fields: int) -> None:
        super().__init__()
        self.runs = [run for i in range(n_fields) for run in (i, n_fields - 1 - i)]
        by_column = [(i, j) for j in range(n_fields) for i in range(j)]
        position = {pair: index for index, pair in enumerate(by_column)}
        by_row = [position[pair] for pair in itertools.combinations(range(n_fields), 2)]
        self.register_buffer("by_row_P", torch.tensor(by_row), persistent=False)

    def forward(self, aware_BFGK: Tensor) -> Tensor:
        """Return the products, (B, P, k)."""
        runs = torch.split(aware_BFGK.flatten(1, 2), self.runs, dim=1)
        later_BPK = torch.cat(runs[1::2], dim=1)  # v_(i,j) with i < j, by i
        earlier_BPK = torch.cat(runs[0::2], dim=1)  # v_(j,i) with i < j, by j
        return later_BPK * earlier_BPK.index_select(1, self.by_row_P)


class PairAttention(nn.Module):
    """The products of all pairs of fields, pooled by attention: ``softmax_p(h . relu(W p + b))``.

    Shape:
        (B, F, D) -> (B, D)
    """

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, units)
        self.score = nn.Linear(units, 1, bias=False)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the weighted mean of the products, (B, D)."""
        as_made = not (has_hooks(self.hidden) or has_hooks(self.score))
        if as_made and can_attend_pairs(fields_BFD):
            weights = self.hidden.weight, self.hidden.bias, self.score.weight[0]
            return attend_pairs(fields_BFD, *weights)
        products_BPD = hadamard_pairs(fields_BFD)
        scores_BP1 = self.score(torch.relu(self.hidden(products_BPD)))
        weights_B1P = torch.softmax(scores_BP1, dim=1).transpose(1, 2)
        return torch.bmm(weights_B1P, products_BPD).squeeze(1)


class FieldAttention(nn.Module):
    """Each field asks all fields: attention of several heads, plus a linear residual, then ReLU.

    Song et al. 2019, *AutoInt*, equations 5 to 8. Queries, keys, values and the residual are
    columns of one product.

    Args:
        dim: D, the width of the embeddings.
        units: Width of each head.
        heads: Number of heads.
        scaled: Divide scores by the root of ``units``; the paper's scalar products are not scaled.

    Shape:
        (B, F, D) -> (B, F, heads * units)
    """

    def __init__(self, dim: int, units: int, heads: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.units, self.heads = units, heads
        self.scale = units**-0.5 if scaled else 1.0
        # Rows: queries, keys, values, residual
        self.weight = nn.Parameter(torch.empty(4 * heads * units, dim))
        for part in self.weight.detach().chunk(4):
            nn.init.xavier_uniform_(part)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return one vector a field, (B, F, heads * units)."""
        projected = nn.functional.linear(fields_BFD, self.weight)
        if runs_native(projected):
            return field_attention(projected, self.heads, self.scale)
        *parts, residual = projected.chunk(4, dim=2)
        shape = (-1, fields_BFD.shape[1], self.heads, self.units)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in parts)
        # (B, heads, F, units) each
        scores_BHFF = query @ key.transpose(2, 3)
        scores_BHFF = scores_BHFF if self.scale == 1 else self.scale * scores_BHFF
        mixed = (torch.softmax(scores_BHFF, dim=3) @ value).transpose(1, 2).flatten(2)
        return torch.relu(mixed + residual)


class FieldGates(nn.Module):
    """A weight for each field, by squeeze and excitation: ``relu(W_2 relu(W_1 mean_d v_i))``.

    Huang et al. 2019, *FiBiNET*, equations 2 and 3.

    Shape:
        (B, F, D) -> (B, F)
    """

    def __init__(self, n_fields: int, units: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(n_fields, units, bias=False)
        self.excite = nn.Linear(units, n_fields, bias=False)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return the weights, (B, F)."""
        return torch.relu(self.excite(torch.relu(self.squeeze(fields_BFD.mean(2)))))
