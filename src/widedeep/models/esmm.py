"""Entire space multi-task model: conversion learned over all impressions, through the click."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from widedeep.models.tasks import TasksConfig, TaskTowers
from widedeep.models.tower import DeepInput, DeepLayout, register_tower

__all__ = ["ESMM"]


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
@dataclass(frozen=True, kw_only=True)
class ESMM(TasksConfig):
    """The entire space multi-task model (Ma et al. 2018, *Entire Space Multi-Task Model*).

    Equation: ``p(click and buy) = p(click) p(buy | click)`` over all impressions (its equation 1).
    The tower is a network for each label over the same embeddings; it is the head of the later
    label that multiplies, by its option ``through``.

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
    task_units: tuple[int, ...] = ()

    def make(self, layout: DeepLayout) -> nn.Module:
        """Return the tower."""
        return ESMMTower(layout, self)
