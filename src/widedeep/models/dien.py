"""Deep interest evolution network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from widedeep.kernels.torch_layers import runs_native
from widedeep.models.din import InterestConfig
from widedeep.models.histories import Events, History
from widedeep.models.history_blocks import GRU, PackedEvents, masked_softmax
from widedeep.models.tower import register_tower
from widedeep.options import COUNT, COUNTS, check_range

__all__ = ["DIEN"]


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

    def forward(self, events: Events) -> Tensor:
        """Return the last state of the evolution, zeros for an empty history."""
        assert events.query_BE is not None
        standard = self.extractor.is_standard and self.evolution.is_standard
        if runs_native(events.keys_BTE) and standard:
            return self._evolve(events, events.query_BE)
        interests_BTH = self.extractor(events.keys_BTE, events.mask_BT)
        scores_BT = (interests_BTH @ self.relevance(events.query_BE)[:, :, None]).squeeze(-1)
        weights_BT = masked_softmax(scores_BT, events.mask_BT)
        events.leave_weights(weights_BT)
        last_BH: Tensor = self.evolution(interests_BTH, events.mask_BT, weights_BT)[:, -1]
        return last_BH

    def _evolve(self, events: Events, query_BE: Tensor) -> Tensor:
        """Return the same over the events alone, without the padding between histories."""
        packed = PackedEvents(events.mask_BT)
        interests_NH = self.extractor.states(packed, packed.select(events.keys_BTE))
        scores_N = (interests_NH * packed.repeat(self.relevance(query_BE))).sum(1)
        weights_BT = masked_softmax(packed.pad(scores_N), events.mask_BT)
        events.leave_weights(weights_BT)
        return packed.last(self.evolution.states(packed, interests_NH, packed.select(weights_BT)))


@register_tower
@dataclass(frozen=True, kw_only=True)
class DIEN(InterestConfig):
    """Deep interest evolution network (Zhou et al. 2019): interests change, and one leads here.

    Equation: a GRU over the history gives interests ``h_t`` (its equations 1 to 4); ``a_t =
    softmax_t(h_t W e_q)`` (equation 9); a GRU over the interests whose update gate is ``a_t u_t``
    (AUGRU, equations 14 and 15) ends in what the hidden layers read.

    The paper's auxiliary loss, which tells the next event from a sampled one, is not part of it:
    a tower has no loss of its own.

    Args:
        targets: Sequence to the feature that it is compared with; by default the pooled feature
            that shares its table.
        state_width: H, width of both GRUs.
        dice: Dice as the activation of the hidden layers; if not, ``activation``.
        hidden_units: Width of each hidden layer over the histories and all other columns.
        activation: Activation of the hidden layers without Dice, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer; without Dice, which normalises by itself.

    Shape:
        (B, X) and (B, T, E) -> (B, hidden_units[-1])
    """

    name = "dien"
    state_width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range = self.state_width in COUNTS
        check_range(f"tower {self.name!r}", "state_width", self.state_width, in_range, COUNT)

    def summary(self, history: History) -> nn.Module:
        """Return what sums up one history."""
        return InterestEvolution(history, self)
