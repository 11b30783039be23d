"""Adam, lazy on sparse tables."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from widedeep.errors import ConfigError, show_value
from widedeep.optim.base import AtLeast0, Optimizer, State, Step, check_numbers, check_range
from widedeep.options import Positive


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer, name="adam"):
    """Adam (Kingma & Ba 2015, the form before section 2.1), lazy: untouched moments do not decay.

    With t the number of the update, over the whole table or parameter, whenever a row was first
    touched (as TensorFlow's and PyTorch's sparse Adam)::

        m = β1·m + (1 - β1)·g
        v = β2·v + (1 - β2)·g²
        w = (1 - lr·weight_decay)·w - lr·√(1 - β2ᵗ)/(1 - β1ᵗ) · m / (√v + eps)

    Args:
        lr: > 0.
        betas: Decay of m and of v, each 0 <= beta < 1.
        eps: Added to the root, > 0.
        weight_decay: Decoupled weight decay (Loshchilov & Hutter 2019), >= 0. In a table only the
            rows that a batch touches decay, once a batch.

    Raises:
        ConfigError: If a hyper-parameter is outside its range.

    Example:
        >>> import torch
        >>> adam = Adam(lr=0.1)
        >>> w = torch.zeros(2, 1)
        >>> state = adam.initial_state(w)
        >>> adam.update_rows(w, state, torch.tensor([1]), torch.full((1, 1), 3.0), step=1)
        0
        >>> [round(x, 4) for x in w.squeeze(1).tolist()]
        [0.0, -0.1]
    """

    lr: Positive = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: AtLeast0 = 0.0

    state_names: ClassVar[tuple[str, ...]] = ("mean", "square")
    kernel: ClassVar[str] = "adam_rows"

    def __post_init__(self) -> None:
        check_numbers(self)
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise ConfigError(f"Adam: got betas={show_value(self.betas)}, expected two numbers")
        object.__setattr__(self, "betas", tuple(self.betas))  # a list, where it comes from TOML
        for beta in self.betas:
            check_range("Adam", "betas", beta, lambda x: 0 <= x < 1, "two numbers, 0 <= beta < 1")

    def without_decay(self) -> Adam:
        """Return the optimizer with ``weight_decay=0``."""
        return dataclasses.replace(self, weight_decay=0.0) if self.weight_decay else self

    def update_tensors(
        self, weights: Tensor, state: State, rows_U: Tensor | None, grads_UD: Tensor, step: Step
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        rows = slice(None) if rows_U is None else rows_U
        beta1, beta2 = self.betas
        g = grads_UD * step.grad_scale
        mean = beta1 * state["mean"][rows] + (1 - beta1) * g
        square = beta2 * state["square"][rows] + (1 - beta2) * (g * g)
        state["mean"][rows], state["square"][rows] = mean, square
        rate, decay = self._rate_and_decay(step)
        weights[rows] = decay * weights[rows] - rate * mean / (square.sqrt() + self.eps)
        return 0

    def kernel_options(self, step: Step) -> dict[str, Any]:
        """Return the rate with its corrections, both betas, eps and the weights' decay."""
        rate, decay = self._rate_and_decay(step)
        beta1, beta2 = self.betas
        return {"rate": rate, "beta1": beta1, "beta2": beta2, "eps": self.eps, "decay": decay}

    def _rate_and_decay(self, step: Step) -> tuple[float, float]:
        beta1, beta2 = self.betas
        rate = step.lr * math.sqrt(1 - beta2**step.number) / (1 - beta1**step.number)
        return rate, 1 - step.lr * self.weight_decay
