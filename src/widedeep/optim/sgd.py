"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from widedeep.optim.base import Optimizer, Step, check_range

__all__ = ["SGD"]


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent: w = w - lr·g. It keeps no state.

    Args:
        lr: > 0.

    Raises:
        ConfigError: If ``lr`` is outside its range.

    Example:
        >>> import torch
        >>> w = torch.ones(3, 1)
        >>> SGD(lr=0.5).update_rows(w, {}, torch.tensor([2]), torch.ones(1, 1))
        0
        >>> w.squeeze(1).tolist()
        [1.0, 1.0, 0.5]
    """

    lr: float = 0.05

    state_names: ClassVar[tuple[str, ...]] = ()
    kernel: ClassVar[str] = "sgd_rows"

    def __post_init__(self) -> None:
        check_range("SGD", "lr", self.lr, lambda x: x > 0, "a number > 0")

    def update_tensors(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        rows_U: Tensor | None,
        grads_UD: Tensor,
        step: Step,
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        rows = slice(None) if rows_U is None else rows_U
        weights[rows] = weights[rows] - step.lr * (grads_UD * step.grad_scale)
        return 0
