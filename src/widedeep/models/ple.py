"""Progressive layered extraction: shared experts, and experts of each task's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widedeep.kernels.torch_blocks import mix_experts
from widedeep.kernels.torch_layers import runs_native
from widedeep.models.tasks import Experts, Gate, TasksConfig, TaskTowers
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Count, Widths


class ExtractionLayer(nn.Module):
    """One level: each task mixes its own experts and the shared ones, the shared state mixes all.

    Shape:
        T + 1 tensors (B, in_features), the shared one last -> T + 1 tensors (B, H), or T of them at
        the last level
    """

    def __init__(self, in_features: int, n_tasks: int, config: PLE, *, last: bool) -> None:
        super().__init__()
        counts = [config.task_experts] * n_tasks + [config.shared_experts]
        self.experts = nn.ModuleList(Experts(in_features, count, config) for count in counts)
        sizes = [config.task_experts + config.shared_experts] * n_tasks
        if not last:
            sizes.append(sum(counts))
        self.gates = nn.ModuleList(
            Gate(in_features, size, config.gate_units, config) for size in sizes
        )

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """Return the next level's states."""
        if runs_native(states[0]):
            return self._mix(states)
        experts = [each(state_BX) for each, state_BX in zip(self.experts, states, strict=True)]
        *own, shared_BEH = experts
        mixtures = [torch.cat([own_BEH, shared_BEH], dim=1) for own_BEH in own]
        mixtures.append(torch.cat(experts, dim=1))
        return [
            torch.bmm(gate(state_BX).unsqueeze(1), mixture_BEH).squeeze(1)
            for gate, state_BX, mixture_BEH in zip(self.gates, states, mixtures, strict=False)
        ]

    def _mix(self, states: list[Tensor]) -> list[Tensor]:
        """Return what a level does, without a copy of its experts side by side."""
        outputs = []
        for experts, state_BX in zip(self.experts, states, strict=True):
            assert isinstance(experts, Experts)
            outputs.append(experts.outputs(state_BX))
        *own, shared = outputs
        mixtures = [[*each, *shared] for each in own]
        mixtures.append([expert_BH for each in outputs for expert_BH in each])
        return [
            mix_experts(gate(state_BX), mixture)
            for gate, state_BX, mixture in zip(self.gates, states, mixtures, strict=False)
        ]


class PLETower(nn.Module):
    """Levels of extraction, then each task's hidden layers.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: PLE) -> None:
        super().__init__()
        self.n_tasks, width = len(layout.heads), config.hidden_units[-1]
        self.levels = nn.ModuleList(
            ExtractionLayer(
                width if level else layout.width,
                self.n_tasks,
                config,
                last=level == config.levels - 1,
            )
            for level in range(config.levels)
        )
        self.tasks = TaskTowers(width, layout.heads, config)

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        states = [inputs.concat_BX] * (self.n_tasks + 1)
        for level in self.levels:
            states = level(states)
        logits_BC: Tensor = self.tasks(states)
        return logits_BC


@register_tower
class PLE(TasksConfig):
    """Progressive layered extraction (Tang et al. 2020, *Progressive Layered Extraction*).

    Equation: at each level ``s_t = g_t(s_t) . [experts_t(s_t); experts_shared(s)]``, and the shared
    state ``s = g(s) . [experts_1(s_1); ..; experts_shared(s)]``, gates ``g = softmax(W s)`` (its
    equations 1 to 6); task t's hidden layers read the last ``s_t``. One level is its customized
    gate control (CGC). Each label is a task.

    Args:
        levels: Number of levels; 1 for CGC.
        shared_experts: Number of experts that all tasks share, at each level.
        task_experts: Number of experts of each task's own, at each level.
        hidden_units: Width of each expert's hidden layers, at least one.
        gate_units: Width of each hidden layer of a gate; empty for the paper's linear gate.
        task_units: Width of each hidden layer of a task's own; empty for a linear layer alone.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "ple"
    network = PLETower
    levels: Count = 2
    shared_experts: Count = 1
    task_experts: Count = 1
    gate_units: Widths = ()
