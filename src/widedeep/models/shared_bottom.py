"""Several tasks over one shared network."""

from __future__ import annotations

from torch import Tensor, nn

from widedeep.models.tasks import TasksConfig, TaskTowers
from widedeep.models.tower import DeepInput, DeepLayout, register_tower


class SharedBottomTower(nn.Module):
    """Hidden layers that all tasks share, then each task's own.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: SharedBottom) -> None:
        super().__init__()
        self.bottom = config.hidden_layers(layout.width)
        self.tasks = TaskTowers(self.bottom.out_features, layout.heads, config)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        shared_BH = self.bottom(inputs.concat_BX)
        logits_BC: Tensor = self.tasks([shared_BH] * len(self.tasks.outputs))
        return logits_BC


@register_tower
class SharedBottom(TasksConfig):
    """Tasks that share all but their last layers (Caruana 1997, *Multitask Learning*).

    Equation: ``logit_t = w_t . h_t(f(x))``, f the hidden layers of all tasks, h_t those of task t.
    Each label is a task; the wide part has weights of each task's own.

    Args:
        hidden_units: Width of each shared hidden layer, at least one.
        task_units: Width of each hidden layer of a task's own; empty for a linear layer alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "shared_bottom"
    network = SharedBottomTower
