"""The way back to the best model: old values of the rows that moved since."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class _Journal:
    """Old values of one group of row-aligned tensors."""

    tensors: Mapping[str, Tensor]
    epoch_R: Tensor  # The mark since which each row is in the journal
    rows: list[Tensor] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)


class RollbackLog:
    """Keeps rows as they are first touched after a mark: going back costs those rows alone."""

    def __init__(self) -> None:
        self._journals: dict[str, _Journal] = {}
        self._small: dict[str, Tensor] = {}
        self._small_copy: dict[str, Tensor] = {}
        self._epoch = 0
        self.limit_bytes = math.inf  # Of old rows; beyond it there is no way back
        self._bytes = 0

    @property
    def marked(self) -> bool:
        """True once there is a state to go back to, until the limit is reached."""
        return self._epoch > 0 and self._bytes <= self.limit_bytes

    def track(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a group of tensors that have the same rows (weights and their optimizer state)."""
        first = next(iter(tensors.values()))
        epoch_R = torch.zeros(len(first), dtype=torch.int32, device=first.device)
        self._journals[name] = _Journal(tensors, epoch_R)

    def track_small(self, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors that every step changes as a whole; a mark copies them."""
        self._small.update(tensors)

    def mark(self) -> None:
        """Make the present values those that :meth:`restore` brings back."""
        self._epoch += 1
        self._forget_rows()
        self._small_copy = {name: tensor.detach().clone() for name, tensor in self._small.items()}

    def before_update(self, name: str, rows_U: Tensor) -> None:
        """Keep the rows about to be changed, unless they were kept since the mark."""
        if not self.marked:
            return
        journal = self._journals[name]
        new_rows = rows_U[journal.epoch_R[rows_U] != self._epoch]
        if len(new_rows) == 0:
            return
        journal.epoch_R[new_rows] = self._epoch
        values = {key: tensor[new_rows] for key, tensor in journal.tensors.items()}
        journal.rows.append(new_rows)
        journal.values.append(values)
        self._bytes += sum(tensor.nbytes for tensor in (new_rows, *values.values()))
        if self._bytes > self.limit_bytes:
            self._forget_rows(self._bytes)

    def _forget_rows(self, n_bytes: int = 0) -> None:
        for journal in self._journals.values():
            journal.rows.clear()
            journal.values.clear()
        self._bytes = n_bytes

    def restore(self) -> None:
        """Bring back the values of the last mark. Does nothing if there was none."""
        if not self.marked:
            return
        for journal in self._journals.values():
            for rows, values in zip(journal.rows, journal.values, strict=True):
                for key, old in values.items():
                    journal.tensors[key][rows] = old
        self._forget_rows()
        self._epoch += 1
        with torch.no_grad():
            for name, tensor in self._small.items():
                tensor.copy_(self._small_copy[name])
