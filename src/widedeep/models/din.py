"""Deep interest network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_layers import runs_native
from widedeep.models.blocks import has_hooks
from widedeep.models.histories import Events, History, TargetConfig
from widedeep.models.history_blocks import DiceLayers, PackedEvents, masked_softmax, weighted_sum
from widedeep.models.tower import register_tower
from widedeep.options import COUNT, COUNTS, check_range


class LocalActivation(nn.Module):
    """The history weighted by what each event says about the candidate.

    Shape:
        Events of (B, T, E) and (B, M) -> (B, E)
    """

    def __init__(self, history: History, config: DIN) -> None:
        super().__init__()
        self.out_features = history.width
        self.matched = history.matched
        self.softmax = config.softmax
        width = history.width + 3 * history.matched
        self.unit = DiceLayers(width, config.attention_units)
        self.score = nn.Linear(config.attention_units[-1], 1)

    def forward(self, events: Events) -> Tensor:
        """Return the sum of the events by their weights, zeros for an empty history."""
        assert events.query_BE is not None
        if runs_native(events.keys_BTE) and not has_hooks(self.unit.layers[0]):
            return self._weigh(events, events.query_BE)
        keys_BTM = events.keys_BTE[:, :, : self.matched]
        query_BTM = events.query_BE[:, None, :].expand_as(keys_BTM)
        pairs = [query_BTM, events.keys_BTE, query_BTM - keys_BTM, query_BTM * keys_BTM]
        scores_BT = self.score(self.unit(torch.cat(pairs, dim=2), events.mask_BT)).squeeze(-1)
        if self.softmax:
            weights_BT = masked_softmax(scores_BT, events.mask_BT)
        else:
            weights_BT = scores_BT.masked_fill(~events.mask_BT, 0.0)
        events.leave_weights(weights_BT)
        return weighted_sum(weights_BT, events.keys_BTE)

    def _weigh(self, events: Events, query_BM: Tensor) -> Tensor:
        """Return the same over the events alone; what the query adds is a product an example."""
        packed = PackedEvents(events.mask_BT)
        keys_NE = packed.select(events.keys_BTE)
        layer = self.unit.layers[0]
        assert isinstance(layer, nn.Linear)
        sizes = [self.matched, self.out_features, self.matched, self.matched]
        of_query, of_key, of_difference, of_product = torch.split(layer.weight, sizes, dim=1)
        unmatched = self.out_features - self.matched
        of_key = of_key - nn.functional.pad(of_difference, (0, unmatched))
        query_BA = nn.functional.linear(query_BM, of_query + of_difference, layer.bias)
        products_NM = packed.repeat(query_BM) * keys_NE[:, : self.matched]
        sums_NA = torch.addmm(packed.repeat(query_BA), keys_NE, of_key.t())
        sums_NA = torch.addmm(sums_NA, products_NM, of_product.t())
        scores_N = self.score(self.unit.from_sums(sums_NA)).squeeze(1)
        if self.softmax:
            weights_BT = masked_softmax(packed.pad(scores_N), events.mask_BT)
            events.leave_weights(weights_BT)
            return weighted_sum(weights_BT, events.keys_BTE)
        if events.attention is not None:
            events.leave_weights(packed.pad(scores_N))
        return packed.sum(scores_N.unsqueeze(1) * keys_NE)


@dataclass(frozen=True, kw_only=True)
class InterestConfig(TargetConfig):
    """A tower over interests, with Dice in its hidden layers."""

    dice: bool = True  # Dice as the activation of the hidden layers; if not, ``activation``

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            f"tower {self.name!r}", "batch_norm", self.batch_norm,
            not (self.dice and self.batch_norm), "false with dice = true",
        )  # fmt: skip

    def output_layers(self, in_features: int) -> nn.Module:
        """Return the hidden layers over histories and other columns."""
        if self.dice:
            return DiceLayers(in_features, self.hidden_units, self.dropout)
        return self.hidden_layers(in_features)


@register_tower
class DIN(InterestConfig):
    """Deep interest network (Zhou et al. 2018): what of a history speaks for this candidate.

    Equation: ``v(q) = sum_t a(q, k_t) k_t`` (its equation 2), with ``a`` a perceptron over ``[q,
    k, q - k, q * k]`` whose weights are not normalised, and Dice (its equation 3).

    Args:
        targets: Sequence to the feature that it is compared with; by default the pooled feature
            that shares its table. Of parallel sequences, those without a target are part of ``k``
            alone.
        attention_units: Width of each hidden layer of ``a``.
        softmax: Normalise the weights over the history; the paper does not, so that how strong an
            interest is stays visible.
        dice: Dice as the activation of the hidden layers; if not, ``activation``.
        hidden_units: Width of each hidden layer over the histories and all other columns.
        activation: Activation of the hidden layers without Dice, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer; without Dice, which normalises by itself.

    Shape:
        (B, X) and (B, T, E) -> (B, hidden_units[-1])
    """

    name = "din"
    attention_units: tuple[int, ...] = (36,)
    softmax: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        owner, units = f"tower {self.name!r}", self.attention_units
        in_range = len(units) > 0 and all(width in COUNTS for width in units)
        check_range(owner, "attention_units", units, in_range, f"one or more widths: {COUNT}")

    def summary(self, history: History) -> nn.Module:
        """Return what sums up one history."""
        return LocalActivation(history, self)
