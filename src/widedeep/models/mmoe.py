"""Multi-gate mixture of experts: each task mixes shared experts by a gate of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_blocks import mix_experts
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.tasks import Experts, Gate, TasksConfig, TaskTowers
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count, Widths


class MMoETower(nn.Module):
    """Experts that all tasks share, a gate and hidden layers for each task.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: MMoE) -> None:
        super().__init__()
        self.experts = Experts(layout.width, config.experts, config)
        self.gates = nn.ModuleList(
            Gate(layout.width, config.experts, config.gate_units, config) for _ in layout.heads
        )
        self.tasks = TaskTowers(config.hidden_units[-1], layout.heads, config)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        if runs_native(inputs.concat_BX):
            experts = self.experts.outputs(inputs.concat_BX)
            mixed = [mix_experts(gate(inputs.concat_BX), experts) for gate in self.gates]
            native_BC: Tensor = self.tasks(mixed)
            return native_BC
        experts_BEH = self.experts(inputs.concat_BX)
        gates_BTE = torch.stack([gate(inputs.concat_BX) for gate in self.gates], dim=1)
        mixed_BTH = torch.bmm(gates_BTE, experts_BEH)
        logits_BC: Tensor = self.tasks(mixed_BTH.unbind(1))
        return logits_BC


@register_tower
class MMoE(TasksConfig):
    """A multi-gate mixture of experts (Ma et al. 2018, *Modeling Task Relationships*).

    Equation: ``logit_t = w_t . h_t(sum_e g_t(x)_e f_e(x))`` with ``g_t(x) = softmax(W_t x)`` (its
    equations 6 and 7), f_e the experts and h_t the hidden layers of task t. Each label is a task.

    Args:
        experts: E, the number of experts.
        hidden_units: Width of each expert's hidden layers, at least one.
        gate_units: Width of each hidden layer of a gate; empty for the paper's linear gate.
        task_units: Width of each hidden layer of a task's own; empty for a linear layer alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "mmoe"
    network = MMoETower
    experts: Count = 4
    gate_units: Widths = ()
