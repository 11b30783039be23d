"""Stochastic gradient descent, with momentum or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from widedeep.errors import ConfigError
from widedeep.optim.base import Optimizer, State, Step, check_flag, check_numbers
from widedeep.options import FractionBelow1, Positive


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent, per coordinate: w = w - lr·g. It keeps no state.

    With momentum μ (Sutskever et al. 2013, in the form of PyTorch and of TensorFlow's
    MomentumOptimizer; Keras keeps -lr·b)::

        b = μ·b + g
        w = w - lr·b, or with nesterov w - lr·(g + μ·b)

    It is lazy: b of a row that a batch does not touch does not decay, and the row does not move on.

    Args:
        lr: > 0.
        momentum: μ, 0 <= momentum < 1.
        nesterov: Look a step ahead; with momentum > 0 alone.

    Raises:
        ConfigError: If a hyper-parameter is outside its range.

    Example:
        >>> import torch
        >>> w = torch.ones(3, 1)
        >>> SGD(lr=0.5).update_rows(w, {}, torch.tensor([2]), torch.ones(1, 1))
        0
        >>> w.squeeze(1).tolist()
        [1.0, 1.0, 0.5]
    """

    lr: Positive = 0.05
    momentum: FractionBelow1 = 0.0
    nesterov: bool = False

    kernel: ClassVar[str] = "sgd_rows"

    def __post_init__(self) -> None:
        check_numbers(self)
        check_flag("SGD", "nesterov", self.nesterov)
        if self.nesterov and not self.momentum:
            raise ConfigError("SGD: got nesterov=True without momentum, expected momentum > 0")
        if self.momentum:
            object.__setattr__(self, "kernel", "momentum_rows")

    @property
    def state_names(self) -> tuple[str, ...]:
        """``velocity``, b, where there is momentum."""
        return ("velocity",) if self.momentum else ()

    def kernel_options(self, step: Step) -> dict[str, Any]:
        """Return the rate, and momentum where there is any."""
        momentum = {"momentum": self.momentum, "nesterov": self.nesterov} if self.momentum else {}
        return {"lr": step.lr, **momentum}

    def update_tensors(
        self, weights: Tensor, state: State, rows_U: Tensor | None, grads_UD: Tensor, step: Step
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        rows = slice(None) if rows_U is None else rows_U
        g = grads_UD * step.grad_scale
        if self.momentum:
            velocity = self.momentum * state["velocity"][rows] + g
            state["velocity"][rows] = velocity
            g = g + self.momentum * velocity if self.nesterov else velocity
        weights[rows] = weights[rows] - step.lr * g
        return 0
