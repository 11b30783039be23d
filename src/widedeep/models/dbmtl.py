"""Tasks in a chain: a later task's network reads what the earlier ones made of an example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from widedeep.errors import nearest
from widedeep.models.tasks import TasksConfig
from widedeep.models.tower import DeepInput, DeepLayout, register_tower
from widedeep.options import Widths


class DBMTLTower(nn.Module):
    """Shared hidden layers, each task's own, and layers that link a task to earlier ones.

    Shape:
        DeepInput with ``concat_BX`` (B, X) -> logits (B, C)
    """

    returns = "logits"

    def __init__(self, layout: DeepLayout, config: DBMTL) -> None:
        super().__init__()
        self.links = config.checked_links(list(layout.heads))
        self.bottom = config.hidden_layers(layout.width)
        shared = self.bottom.out_features
        own = config.task_units[-1] if config.task_units else shared
        self.own, self.linked, self.outputs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        widths: list[int] = []
        for earlier, columns in zip(self.links, layout.heads.values(), strict=True):
            self.own.append(config.layers(shared, config.task_units))
            units = config.link_units if earlier else ()
            sources = own + sum(widths[task] for task in earlier)
            self.linked.append(config.layers(sources, units))
            widths.append(units[-1] if units else sources)
            self.outputs.append(nn.Linear(widths[-1], columns.stop - columns.start, bias=False))

    def forward(self, inputs: DeepInput) -> Tensor:
        """Return the logits, (B, C)."""
        shared_BH = self.bottom(inputs.concat_BX)
        states: list[Tensor] = []
        for earlier, own, linked in zip(self.links, self.own, self.linked, strict=True):
            sources = [own(shared_BH), *(states[task] for task in earlier)]
            states.append(linked(torch.cat(sources, dim=1)))
        logits = [output(state) for output, state in zip(self.outputs, states, strict=True)]
        return torch.cat(logits, dim=1)


@register_tower
class DBMTL(TasksConfig):
    """Linked tasks (Wang et al. 2019, *Deep Bayesian Multi-Target Learning*).

    Equation: ``logit_t = w_t . z_t`` with ``z_t = r_t([h_t(f(x)); z_s for each earlier s])``: the
    paper's factors ``P(l_t | l_s, x)``, with the earlier tasks' last layers in place of their
    labels, which a server does not have. f are the shared hidden layers, h_t those of task t, r_t
    those that link it. Each label is a task, in the order of the labels.

    Args:
        links: Earlier tasks by the task that reads them, such as ``{ buy = ["click"] }``; a task
            that is not named reads none. None: each reads all earlier ones.
        hidden_units: Width of each shared hidden layer, at least one.
        task_units: Width of each hidden layer of a task's own; empty: the shared layer itself.
        link_units: Width of each hidden layer over a task's own layer and those it reads; empty to
            put them side by side.
        activation: Activation of the hidden layers, see :class:`MLP`.
        dropout: Probability to drop a hidden unit, 0 <= dropout < 1.
        batch_norm: Normalise each hidden layer.

    Shape:
        (B, X) -> logits (B, C)
    """

    name = "dbmtl"
    network = DBMTLTower
    links: Mapping[str, tuple[str, ...]] | None = None
    link_units: Widths = (32,)

    def checked_links(self, tasks: list[str]) -> list[list[int]]:
        """Return the indices of the earlier tasks that each task reads.

        Raises:
            ConfigError: If a name is no task's, or a later task's.
        """
        if self.links is None:
            return [list(range(task)) for task in range(len(tasks))]
        for name in (*self.links, *(each for names in self.links.values() for each in names)):
            if name not in tasks:
                raise self.refusal(f"got links with {name!r}; {nearest(name, tasks)}")
        links = [[tasks.index(name) for name in self.links.get(task, ())] for task in tasks]
        for task, earlier in enumerate(links):
            if max(earlier, default=-1) >= task:
                raise self.refusal(
                    f"got links.{tasks[task]} = {list(self.links[tasks[task]])}, expected "
                    f"labels before it: {', '.join(tasks[:task]) or 'it is the first'}; put the "
                    "labels into the order in which they happen"
                )
        return links
