"""Entire space multi-task model: conversion learned over all impressions, through the click."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from widedeep.models.head_base import Head
from widedeep.models.heads import Binary
from widedeep.models.tasks import TasksConfig, TaskTowers
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Widths


class ESMMTower(nn.Module):
    """A network for each task, which share the embeddings alone.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: ESMM) -> None:
        super().__init__()
        self.bottoms = nn.ModuleList(config.hidden_layers(layout.width) for _ in layout.heads)
        self.tasks = TaskTowers(config.hidden_units[-1], layout.heads, config)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        logits_BC: Tensor = self.tasks([bottom(inputs.concat_BX) for bottom in self.bottoms])
        return logits_BC


@register_tower
class ESMM(TasksConfig):
    """The entire space multi-task model (Ma et al. 2018, *Entire Space Multi-Task Model*).

    Equation: ``p(click and buy) = p(click) p(buy | click)`` over all impressions (its equation 1).
    The tower is a network for each of two labels over the same embeddings. The product, of whole
    logits with their wide parts, is the second label's head: it goes ``through`` the first label
    unless a head of the model says otherwise.

    Args:
        hidden_units: Width of each hidden layer of a task's network, at least one.
        task_units: Further hidden layers; empty by default.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "esmm"
    network = ESMMTower
    task_units: Widths = ()

    def link_heads(self, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        """Let the second label's probability be a product with the first one's.

        Raises:
            ConfigError: If there are not two binary heads, and none goes through another.
        """
        if any(isinstance(head, Binary) and head.through is not None for head in heads):
            return heads
        if len(heads) != 2 or not all(isinstance(head, Binary) for head in heads):
            kinds = ", ".join(f"{head.name} {head.kind}".strip() for head in heads)
            raise self.refusal(
                f"got the heads {kinds}, expected two binary ones, such as "
                "label = ['click', 'buy']; link others by heads.buy = { kind = 'binary', "
                "through = 'click' }"
            )
        first, second = heads
        assert isinstance(second, Binary)
        return first, replace(second, through=first.name)
