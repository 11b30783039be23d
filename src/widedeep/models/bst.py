"""Behaviour sequence transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.models.histories import Events, History, TargetConfig, required_bound
from widedeep.models.history_blocks import Positions, TransformerLayer, events_after
from widedeep.models.tower import register_tower
from widedeep.options import Count


class BehaviourTransformer(nn.Module):
    """The candidate after its history, under transformer layers: what its own place becomes.

    Shape:
        Events of (B, T, E) and (B, M) -> (B, E)
    """

    def __init__(self, history: History, config: BST) -> None:
        super().__init__()
        self.out_features = width = history.width
        self.pad = width - history.matched
        self.positions = Positions(1 + required_bound(history, config.name), width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.feed_forward or 4 * width, config.dropout)
            for _ in range(config.layers)
        )

    def forward(self, events: Events) -> Tensor:
        """Return the candidate's place, which has taken what it needs from the history."""
        assert events.query_BE is not None
        # The candidate comes first in memory, so that histories may end anywhere, and last in time.
        query_BE = nn.functional.pad(events.query_BE, (0, self.pad))
        values_BTE = torch.cat([query_BE[:, None, :], events.keys_BTE], dim=1)
        mask_BT = torch.cat([torch.ones_like(events.mask_BT[:, :1]), events.mask_BT], dim=1)
        # (B, 1 + T): 0 for the candidate, 1 for the newest event
        position_BT = nn.functional.pad(1 + events_after(events.mask_BT), (1, 0))
        values_BTE = values_BTE + self.positions(position_BT)
        for layer in self.layers:
            values_BTE = layer(values_BTE, mask_BT)
        candidate_BE: Tensor = values_BTE[:, 0]
        return candidate_BE


@register_tower
class BST(TargetConfig):
    """Behaviour sequence transformer (Chen et al. 2019): the history in its order.

    Equation: ``s_0 = [e_1 + p_n, ..., e_n + p_1, e_q + p_0]``, each layer ``norm(s' + ffn(s'))``
    with ``s' = norm(s + attention(s))`` (its equations 1 to 4). A position counts the events up to
    the candidate. Of the last layer the candidate's place goes on to the hidden layers; the paper
    takes all places, which a history of any length does not have.

    Args:
        targets: Sequence to the feature that it is compared with; by default the pooled feature
            that shares its table.
        layers: Number of transformer layers; the paper finds one best.
        heads: Number of heads of the attention.
        feed_forward: Width of the feed-forward layers; None: 4 E.
        hidden_units: Width of each hidden layer over the histories and all other columns.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a unit, also of the transformer, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) and (B, T, E) -> (B, hidden_units[-1])
    """

    name = "bst"
    layers: Count = 1
    heads: Count = 2
    feed_forward: Count | None = None

    def summary(self, history: History) -> nn.Module:
        """Return what sums up one history."""
        return BehaviourTransformer(history, self)
