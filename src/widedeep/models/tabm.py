"""TabM: an ensemble of perceptrons that share their matrices."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
from torch import Tensor, nn

from widedeep.models.layer_options import Activation, checked_activation, make_activation
from widedeep.models.tower import DeepInput, DeepLayout, Returns, TowerConfig, register_tower
from widedeep.options import Count, FractionBelow1, Widths


class EnsembleLinear(nn.Module):
    """A linear layer of M members: ``s_m * (W (r_m * x)) + b_m``, with one W for all.

    Wen et al. 2020, *BatchEnsemble*, equation 5, as TabM takes it.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        members: M.
        first: Whether members part here: r starts as random signs. In later layers it starts as 1,
            as s does everywhere.

    Shape:
        (B, M, in_features), or (B, 1, in_features) for all members -> (B, M, out_features)
    """

    def __init__(self, in_features: int, out_features: int, members: int, *, first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.r = nn.Parameter(torch.ones(members, in_features))
        self.s = nn.Parameter(torch.ones(members, out_features))
        self.bias = nn.Parameter(torch.zeros(members, out_features))
        nn.init.xavier_uniform_(self.weight)
        if first:
            with torch.no_grad():
                self.r.bernoulli_(0.5).mul_(2.0).sub_(1.0)

    def forward(self, x_BMI: Tensor) -> Tensor:
        """Return the layer's output, (B, M, out_features)."""
        out_BMO: Tensor = ((x_BMI * self.r) @ self.weight.t()) * self.s + self.bias
        return out_BMO


class TabMTower(nn.Module):
    """M perceptrons with shared matrices, scaling vectors and outputs of their own.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits of each member (B, M, C)
    """

    returns: ClassVar[Returns] = "members"

    def __init__(self, layout: DeepLayout, config: TabM) -> None:
        super().__init__()
        widths = (layout.width, *config.hidden_units)
        self.layers = nn.ModuleList(
            EnsembleLinear(a, b, config.members, first=index == 0)
            for index, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.act = make_activation(config.activation)
        self.drop = nn.Dropout(config.dropout)
        bound = (6.0 / (widths[-1] + layout.n_logits)) ** 0.5  # Glorot, for each member by itself
        output_MHC = torch.empty(config.members, widths[-1], layout.n_logits)
        self.output = nn.Parameter(output_MHC.uniform_(-bound, bound))

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the members' logits, (B, M, C)."""
        hidden_BMH = inputs.concat_BX.unsqueeze(1)  # (B, 1, X)
        for layer in self.layers:
            hidden_BMH = self.drop(self.act(layer(hidden_BMH)))
        logits_MBC = hidden_BMH.transpose(0, 1) @ self.output
        return logits_MBC.transpose(0, 1)


@register_tower
class TabM(TowerConfig):
    """An ensemble of perceptrons in one (Gorishniy, Kotelnikov and Babenko 2024, *TabM*).

    Equation: ``h_m = dropout(activation(s_m * (W (r_m * h_m)) + b_m))`` for each of M members m, W
    shared. Each member is trained by its own loss, and the logits that are scored are the members'
    mean. The paper takes the mean of probabilities, which is no sum of a tower and a wide part.

    Args:
        members: M; the paper takes 32.
        hidden_units: Width of each hidden layer, at least one.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.

    Shape:
        (B, X) -> logits (B, M, C)
    """

    name = "tabm"
    network = TabMTower
    has_members = True
    members: Count = 32
    hidden_units: Widths = (256, 128)
    activation: Activation = "relu"
    dropout: FractionBelow1 = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"tower {self.name!r}"
        object.__setattr__(self, "activation", checked_activation(self.activation, owner))
        if not self.hidden_units:
            raise self.refusal("got no hidden_units, expected at least one width")
