"""Rules of single logical tables in an update: their rate, penalty and largest norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from widedeep.optim import Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRule:
    """How the rows of one logical table move, where it is otherwise than the optimizer says."""

    rate: float = 1.0  # Factor of the learning rate
    frozen: bool = False  # The rows stay as they are
    l2: float | None = None  # Penalty of each occurrence, in the place of the optimizer's decay
    max_norm: float | None = None  # Longest row after an update

    def of(self, optimizer: Optimizer) -> Optimizer:
        """Return the optimizer of such rows."""
        return optimizer if self.l2 is None else optimizer.without_decay()

    def scaled(
        self, optimizer: Optimizer, lr: float | None, grad_scale: float
    ) -> tuple[float | None, float]:
        """Return rate and gradients' factor: scaled as a schedule scales them."""
        if self.rate == 1.0:
            return lr, grad_scale
        if optimizer.scales_with_lr:
            return lr, grad_scale * self.rate
        return (optimizer.lr if lr is None else lr) * self.rate, grad_scale


def with_penalty(
    grads_UD: Tensor, weight: Tensor, rows_U: Tensor, counts_U: Tensor, l2: float
) -> Tensor:
    """Return summed gradients with those of l2/2·|w|² for each occurrence of a row w."""
    factors_U = counts_U.to(grads_UD.dtype) * l2
    return grads_UD + factors_U[:, None] * weight[rows_U]


def limit_norms(weight: Tensor, rows_U: Tensor, max_norm: float) -> None:
    """Scale rows back to a Euclidean norm where they are longer."""
    rows_UD = weight[rows_U].float()
    factors_U = (max_norm / torch.linalg.vector_norm(rows_UD, dim=1)).clamp(max=1.0)
    weight[rows_U] = (rows_UD * factors_U[:, None]).to(weight.dtype)
