"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from widedeep import kernels
from widedeep.optim.contract import Optimizer, Step, check_range

__all__ = ["SGD"]


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
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

    def __post_init__(self) -> None:
        check_range("SGD", "lr", self.lr, lambda x: x > 0, "a number > 0")

    def start_state(self, weights: Tensor, state: Mapping[str, Tensor]) -> None:
        """Fill nothing."""

    def update_tensors(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        rows_U: Tensor | None,
        grads_UD: Tensor,
        step: Step,
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        at = slice(None) if rows_U is None else rows_U
        weights[at] = weights[at] - step.lr * (grads_UD * step.grad_scale)
        return 0

    def _update_arrays(
        self,
        weights: NDArray[Any],
        state: Mapping[str, NDArray[Any]],
        rows_U: NDArray[Any] | None,
        grads_UD: NDArray[Any],
        step: Step,
    ) -> int:
        kernels.sgd_rows(
            weights,
            rows_U,
            grads_UD,
            lr=step.lr,
            grad_scale=step.grad_scale,
            threads=step.threads,
        )
        return 0
