"""UndoLog: go back to the best model at the cost of the rows touched since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class _Journal:
    """Old values of one group of row-aligned tensors."""

    tensors: Mapping[str, Tensor]
    epoch_R: Tensor
    rows: list[Tensor] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)


class UndoLog:
    """Remembers rows as they are first touched after a mark, so that :meth:`undo` restores them."""

    def __init__(self) -> None:
        self._journals: dict[str, _Journal] = {}
        self._small: dict[str, Tensor] = {}
        self._small_copy: dict[str, Tensor] = {}
        self._epoch = 0

    @property
    def marked(self) -> bool:
        """True once there is a state to go back to."""
        return self._epoch > 0

    def watch(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a group of tensors that have the same rows (weights and their optimizer state)."""
        first = next(iter(tensors.values()))
        epochs = torch.zeros(len(first), dtype=torch.int32, device=first.device)
        self._journals[name] = _Journal(tensors, epochs)

    def watch_small(self, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors that every step changes as a whole; a mark copies them."""
        self._small.update(tensors)

    def mark(self) -> None:
        """Make the present values those that :meth:`undo` brings back."""
        self._epoch += 1
        for journal in self._journals.values():
            journal.rows.clear()
            journal.values.clear()
        self._small_copy = {name: tensor.detach().clone() for name, tensor in self._small.items()}

    def before_update(self, name: str, rows_U: Tensor) -> None:
        """Remember the rows about to be changed, unless they were remembered since the mark."""
        if not self.marked:
            return
        journal = self._journals[name]
        fresh = rows_U[journal.epoch_R[rows_U] != self._epoch]
        if len(fresh) == 0:
            return
        journal.epoch_R[fresh] = self._epoch
        journal.rows.append(fresh)
        journal.values.append({key: tensor[fresh] for key, tensor in journal.tensors.items()})

    def undo(self) -> None:
        """Bring back the values of the last mark. Does nothing if there was none."""
        if not self.marked:
            return
        for journal in self._journals.values():
            for rows, values in zip(journal.rows, journal.values, strict=True):
                for key, old in values.items():
                    journal.tensors[key][rows] = old
            journal.rows.clear()
            journal.values.clear()
        self._epoch += 1
        with torch.no_grad():
            for name, tensor in self._small.items():
                tensor.copy_(self._small_copy[name])
