"""Pooled histories: the plain way to read a sequence."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from widedeep.models.histories import Events, History, HistoryConfig
from widedeep.models.history_blocks import AttentionPool, max_pool, mean_pool, weighted_sum
from widedeep.models.tower import register_tower
from widedeep.options import Count


class PooledHistory(nn.Module):
    """One vector of a history, whatever the candidate is.

    Shape:
        Events of (B, T, E) -> (B, E)
    """

    def __init__(self, history: History, config: HistoryPooling) -> None:
        super().__init__()
        self.out_features = history.width
        self.pooling = config.pooling
        attention = config.pooling == "attention"
        self.attention = AttentionPool(history.width, config.attention_width) if attention else None

    def forward(self, events: Events) -> Tensor:
        """Return the pooled history, zeros for an empty one."""
        if self.attention is not None:
            weights_BT = self.attention.weights(events.keys_BTE, events.mask_BT)
            events.leave_weights(weights_BT)
            return weighted_sum(weights_BT, events.keys_BTE)
        pool = mean_pool if self.pooling == "mean" else max_pool
        return pool(events.keys_BTE, events.mask_BT)


@register_tower
class HistoryPooling(HistoryConfig):
    """Pooled histories beside everything else, under hidden layers: DIN's baseline.

    Equation: ``h_0 = [x, pool(e_1, ..., e_T)]`` (Zhou et al. 2018, section 4.2), or with
    ``"attention"``: ``sum_t a_t e_t``, ``a = softmax(u . tanh(W e_t + b))`` (Yang et al. 2016).

    Args:
        pooling: ``"mean"``, ``"max"`` (elementwise) or ``"attention"``.
        attention_width: Width of the attention's hidden layer.
        hidden_units: Width of each hidden layer; empty for none.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) and (B, T, E) -> (B, hidden_units[-1])
    """

    name = "history_pooling"
    pooling: Literal["mean", "max", "attention"] = "mean"
    attention_width: Count = 32

    def summary(self, history: History) -> nn.Module:
        """Return what pools one history."""
        return PooledHistory(history, self)
