"""Several tasks: what their models share, a tower and logits of each task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widedeep.models.mlp import HiddenConfig
from widedeep.options import Widths, check_range


@dataclass(frozen=True, kw_only=True)
class TasksConfig(HiddenConfig):
    """A tower for several labels: the options that all of these have."""

    # Width of each hidden layer of a task's own tower; empty for a linear layer alone. Activation,
    # dropout and batch norm are those of the other hidden layers
    task_units: Widths = (64,)

    def __post_init__(self) -> None:
        super().__post_init__()
        owner, units = f"tower {self.name!r}", list(self.hidden_units)
        check_range(owner, "hidden_units", units, len(units) > 0, "one or more widths")

    def layers(self, in_features: int, units: Sequence[int]) -> nn.Module:
        """Return hidden layers of these widths, which are none if there are no widths."""
        return self.hidden_layers(in_features, units) if units else nn.Identity()


class TaskTowers(nn.Module):
    """Hidden layers and a linear layer for each task; a task is a head of the model.

    Args:
        in_features: Width of each task's input.
        heads: Columns of each task among the C logits, as in :class:`DeepLayout`.
        config: Gives the hidden layers.

    Shape:
        T tensors (B, in_features) -> logits (B, C)
    """

    def __init__(self, in_features: int, heads: Mapping[str, slice], config: TasksConfig) -> None:
        super().__init__()
        width = config.task_units[-1] if config.task_units else in_features
        self.hidden = nn.ModuleList(config.layers(in_features, config.task_units) for _ in heads)
        self.outputs = nn.ModuleList(
            nn.Linear(width, columns.stop - columns.start, bias=False) for columns in heads.values()
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits, (B, C)."""
        logits = [
            output(hidden(x_BX))
            for output, hidden, x_BX in zip(self.outputs, self.hidden, inputs, strict=True)
        ]
        return torch.cat(logits, dim=1)


class Experts(nn.Module):
    """E networks of one shape over the same input.

    Shape:
        (B, in_features) -> (B, E, hidden_units[-1])
    """

    def __init__(self, in_features: int, n_experts: int, config: TasksConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(config.hidden_layers(in_features) for _ in range(n_experts))

    def outputs(self, x_BX: Tensor) -> list[Tensor]:
        """Return each expert's last hidden layer, (B, hidden_units[-1])."""
        return [expert(x_BX) for expert in self.experts]

    def forward(self, x_BX: Tensor) -> Tensor:
        """Return the experts' last hidden layers, (B, E, hidden_units[-1])."""
        return torch.stack(self.outputs(x_BX), dim=1)


class Gate(nn.Module):
    """Weights of E experts by an example: ``softmax(W hidden(x))``.

    Shape:
        (B, in_features) -> (B, E), each row a distribution
    """

    def __init__(
        self, in_features: int, n_experts: int, units: Sequence[int], config: TasksConfig
    ) -> None:
        super().__init__()
        self.hidden = config.layers(in_features, units)
        self.output = nn.Linear(units[-1] if units else in_features, n_experts, bias=False)

    def forward(self, x_BX: Tensor) -> Tensor:
        """Return the weights, (B, E)."""
        return torch.softmax(self.output(self.hidden(x_BX)), dim=1)
