"""A transformer encoder over histories."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from widedeep.models.histories import Events, History, HistoryConfig, required_bound
from widedeep.models.history_blocks import (
    Positions,
    TransformerLayer,
    events_after,
    max_pool,
    mean_pool,
)
from widedeep.models.tower import register_tower
from widedeep.options import Count


class EncodedHistory(nn.Module):
    """A history under transformer layers, pooled.

    Shape:
        Events of (B, T, E) -> (B, E)
    """

    def __init__(self, history: History, config: HistoryTransformer) -> None:
        super().__init__()
        self.out_features = width = history.width
        self.pooling = config.pooling
        self.positions = Positions(required_bound(history, config.name), width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.feed_forward or 4 * width, config.dropout)
            for _ in range(config.layers)
        )

    def forward(self, events: Events) -> Tensor:
        """Return the pooled places, zeros for an empty history."""
        mask_BT = events.mask_BT
        after_BT = events_after(mask_BT)
        values_BTE = events.keys_BTE + self.positions(after_BT)
        for layer in self.layers:
            values_BTE = layer(values_BTE, mask_BT)
        if self.pooling == "last":
            return mean_pool(values_BTE, mask_BT & (after_BT == 0))
        return (mean_pool if self.pooling == "mean" else max_pool)(values_BTE, mask_BT)


@register_tower
class HistoryTransformer(HistoryConfig):
    """A transformer encoder over each history (Vaswani et al. 2017), whatever the candidate is.

    Equation: ``s_0 = [e_t + p_(n - t)]``, each layer ``norm(s' + ffn(s'))`` with ``s' = norm(s +
    attention(s))``, then a pool over places. Since no candidate enters, a user's history is encoded
    once for all candidates of a request in principle; with one, see :class:`BST`.

    Args:
        layers: Number of transformer layers.
        heads: Number of heads of the attention.
        feed_forward: Width of the feed-forward layers; None: 4 E.
        pooling: ``"mean"``, ``"max"``, or ``"last"`` for the newest event's place.
        hidden_units: Width of each hidden layer over the histories and all other columns.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a unit, also of the transformer, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) and (B, T, E) -> (B, hidden_units[-1])
    """

    name = "history_transformer"
    layers: Count = 2
    heads: Count = 2
    feed_forward: Count | None = None
    pooling: Literal["mean", "max", "last"] = "mean"

    def summary(self, history: History) -> nn.Module:
        """Return what sums up one history."""
        return EncodedHistory(history, self)
