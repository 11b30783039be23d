"""Deep interest evolution network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from widedeep.kernels.torch_layers import runs_native
from widedeep.models.din import InterestConfig
from widedeep.models.histories import Events, History
from widedeep.models.history_blocks import GRU, PackedEvents, masked_softmax
from widedeep.models.tower import register_tower
from widedeep.options import Count, NotNegative


class NextEvent(nn.Module):
    """The auxiliary loss: the interest after an event tells the next event from a sampled one.

    Shape:
        N events of B examples, (N, H), (N, E) -> (B,)
    """

    def __init__(self, state_width: int, event_width: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.layer = nn.Linear(state_width, event_width, bias=False)

    def forward(self, packed: PackedEvents, interests_NH: Tensor, keys_NE: Tensor) -> Tensor:
        """Return the mean over each example's events that have a next one, 0 without any."""
        sampled_N = torch.randint(max(1, len(keys_NE)), (len(keys_NE),), device=keys_NE.device)
        guess_NE = self.layer(interests_NH)
        next_NE, other_NE = keys_NE.roll(-1, dims=0), keys_NE[sampled_N]
        is_last_N = torch.zeros(len(keys_NE), dtype=torch.bool, device=keys_NE.device)
        is_last_N[packed.ends_B[packed.counts_B > 0] - 1] = True
        of_next_N = softplus(-(guess_NE * next_NE).sum(1))
        of_other_N = softplus((guess_NE * other_NE).sum(1))
        # An event that equals the next one is no negative.
        of_other_N = of_other_N.masked_fill((other_NE == next_NE).all(dim=1), 0.0)
        losses_N1 = (of_next_N + of_other_N).masked_fill(is_last_N, 0.0)[:, None]
        steps_B = (packed.counts_B - 1).clamp(min=1)
        losses_B: Tensor = self.weight * packed.sum(losses_N1)[:, 0] / steps_B
        return losses_B


class InterestEvolution(nn.Module):
    """Interests after each event, and how those that matter for the candidate evolve.

    Shape:
        Events of (B, T, E) and (B, M) -> (B, H)
    """

    def __init__(self, history: History, config: DIEN) -> None:
        super().__init__()
        self.out_features = config.state_width
        self.extractor = GRU(history.width, config.state_width)
        self.relevance = nn.Linear(history.matched, config.state_width, bias=False)
        self.evolution = GRU(config.state_width, config.state_width)
        self.next_event = None
        if config.next_event_weight:
            self.next_event = NextEvent(config.state_width, history.width, config.next_event_weight)

    def forward(self, events: Events) -> Tensor:
        """Return the last state of the evolution, zeros for an empty history."""
        assert events.query_BE is not None
        standard = self.extractor.is_standard and self.evolution.is_standard
        if runs_native(events.keys_BTE) and standard:
            return self._evolve(events, events.query_BE)
        interests_BTH = self.extractor(events.keys_BTE, events.mask_BT)
        if self.next_event is not None and events.own_losses is not None:
            packed = PackedEvents(events.mask_BT)
            states_NH, keys_NE = packed.select(interests_BTH), packed.select(events.keys_BTE)
            events.own_losses.append(self.next_event(packed, states_NH, keys_NE))
        scores_BT = (interests_BTH @ self.relevance(events.query_BE)[:, :, None]).squeeze(-1)
        weights_BT = masked_softmax(scores_BT, events.mask_BT)
        events.leave_weights(weights_BT)
        last_BH: Tensor = self.evolution(interests_BTH, events.mask_BT, weights_BT)[:, -1]
        return last_BH

    def _evolve(self, events: Events, query_BE: Tensor) -> Tensor:
        """Return the same over the events alone, without the padding between histories."""
        packed = PackedEvents(events.mask_BT)
        keys_NE = packed.select(events.keys_BTE)
        interests_NH = self.extractor.states(packed, keys_NE)
        if self.next_event is not None and events.own_losses is not None:
            events.own_losses.append(self.next_event(packed, interests_NH, keys_NE))
        scores_N = (interests_NH * packed.repeat(self.relevance(query_BE))).sum(1)
        weights_BT = masked_softmax(packed.pad(scores_N), events.mask_BT)
        events.leave_weights(weights_BT)
        return packed.last(self.evolution.states(packed, interests_NH, packed.select(weights_BT)))


@register_tower
class DIEN(InterestConfig):
    """Deep interest evolution network (Zhou et al. 2019): interests change, and one leads here.

    Equation: a GRU over the history gives interests ``h_t`` (its equations 1 to 4); ``a_t =
    softmax_t(h_t W e_q)`` (equation 9); a GRU over the interests whose update gate is ``a_t u_t``
    (AUGRU, equations 14 and 15) ends in what the hidden layers read.

    With ``next_event_weight`` the loss of its equations 6 and 7 is added in training: ``-log s(p) -
    log s(n)`` with ``p = h_t V e_{t+1}`` for the next event, ``n = -h_t V e`` for another event of
    the batch, drawn at random, and ``s`` the sigmoid; the mean over a history's events. (In the
    paper V is missing, and negatives come from all items.) It moves embeddings and the first GRU by
    what users did next, whatever the label says; the reported loss is the heads' alone, and V is no
    part of a bundle.

    Args:
        targets: Sequence to the feature that it is compared with; by default the pooled feature
            that shares its table.
        state_width: H, width of both GRUs.
        next_event_weight: Factor of the auxiliary loss, at least 0; the paper's code takes 1.
        dice: Dice as the activation of the hidden layers; if not, ``activation``.
        hidden_units: Width of each hidden layer over the histories and all other columns.
        activation: Activation of the hidden layers without Dice, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer; without Dice, which normalises by itself.

    Shape:
        (B, X) and (B, T, E) -> (B, hidden_units[-1])
    """

    name = "dien"
    state_width: Count = 32
    next_event_weight: NotNegative = 0.0

    def summary(self, history: History) -> nn.Module:
        """Return what sums up one history."""
        return InterestEvolution(history, self)
