"""The one contract of the optimizers: rows of sparse tables and whole dense parameters.

An optimizer is a frozen value: hyper-parameters and equations. Its state lives beside the weights
it belongs to, as tensors of the same shape, so tables can keep a row's weights and state together.

The gradient g of the equations is ``grad_scale`` times the sum of an id's example gradients over
the batch: duplicates are summed before anything is squared, each touched row moves once, and
untouched rows keep their bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.errors import ConfigError, show_value
from widedeep.kernels.torch_device import triton_kernels

__all__ = ["Optimizer", "Step", "check_range"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a single update is told beside its arrays."""

    lr: float  # Learning rate of this update
    grad_scale: float  # What gradients are multiplied by
    number: int  # Number of this update, from 1
    threads: int  # Threads of the kernels
    rates_U: Tensor | None = None  # Factor of the rate of each row, or None
    # To be filled with each row's gradient times its weight, or None
    products_U: Tensor | None = None


class Optimizer(ABC):
    """Hyper-parameters and equations of one optimizer.

    Subclasses are frozen keyword-only dataclasses with a field ``lr``. They name their state, fill
    it, and update by torch operations (:meth:`update_tensors`, on any device). Ours have kernels
    beside that; a subclass that updates otherwise is not updated by a kernel of its base.
    """

    lr: float
    """The learning rate that holds unless an update is given another."""

    state_names: ClassVar[tuple[str, ...]] = ()
    """One tensor of the weights' shape each."""

    counts_nonzero: ClassVar[bool] = False
    """True if :meth:`update_rows` returns the change of the weights' non-zero count."""

    scales_with_lr: ClassVar[bool] = False
    """True if weights are made of the state and the present rate, as FTRL's are."""

    by_kernels: ClassVar[bool] = False
    """True if kernels compute what :meth:`update_tensors` does."""

    def __init_subclass__(cls, **options: object) -> None:
        """Let no kernel or count of a base class stand in for an update of one's own."""
        super().__init_subclass__(**options)

        def definer(name: str) -> int:
            return next(i for i, base in enumerate(cls.__mro__) if name in base.__dict__)

        updates = min(definer("update_tensors"), definer("update_rows"))
        cls.by_kernels = definer("_update_arrays") <= updates
        if updates < definer("counts_nonzero"):
            cls.counts_nonzero = False

    def apply_schedule(self, factor: float) -> tuple[float, float]:
        """Return the learning rate and the factor of the gradients where a schedule has ``factor``.

        Where the weights follow the rate, a rate that decays would take back what was learned;
        there the gradients fall in its place, and the steps with them.

        Example:
            >>> from widedeep.optim import FTRL, SGD
            >>> SGD(lr=0.5).apply_schedule(0.1), FTRL(lr=0.5).apply_schedule(0.1)
            ((0.05, 1.0), (0.5, 0.1))
        """
        return (self.lr, factor) if self.scales_with_lr else (self.lr * factor, 1.0)

    @abstractmethod
    def start_state(self, weights: Tensor, state: Mapping[str, Tensor]) -> None:
        """Fill ``state``, which holds zeros, for weights that were not updated yet.

        Args:
            weights: Present weights.
            state: A tensor of their shape for each of :attr:`state_names`; filled in place.
        """

    def initial_state(self, weights: Tensor) -> dict[str, Tensor]:
        """Return new state for weights that were not updated yet.

        Args:
            weights: Present weights.
        """
        state = {name: torch.zeros_like(weights) for name in self.state_names}
        self.start_state(weights, state)
        return state

    def update_rows(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        rows_U: Tensor | None,
        grads_UD: Tensor,
        *,
        lr: float | None = None,
        grad_scale: float = 1.0,
        step: int = 1,
        threads: int = 1,
        rates_U: Tensor | None = None,
        products_U: Tensor | None = None,
    ) -> int | Tensor:
        """Move the given rows once; the others keep their bits.

        Args:
            weights: float32 (R, D), changed in place. Rows may lie further apart than D.
            state: A tensor of that shape for each of :attr:`state_names`, changed in place.
            rows_U: int64 distinct rows, or None for every row.
            grads_UD: float32 summed gradient of each of them.
            lr: Learning rate of this update; None: the optimizer's own.
            grad_scale: What gradients are multiplied by.
            step: Number of this update, from 1.
            threads: Threads of the kernels; the result does not depend on it.
            rates_U: float32 factor of each row's rate; only :class:`FTRL` reads it.
            products_U: float32, filled by :class:`FTRL` with each row's sum of g times the weight
                before it moved.

        Returns:
            Change of the non-zero count, 0 unless :attr:`counts_nonzero`.
        """
        told = Step(
            lr=self.lr if lr is None else lr,
            grad_scale=grad_scale,
            number=step,
            threads=threads,
            rates_U=rates_U,
            products_U=products_U,
        )
        if weights.device.type != "cpu" or not self.by_kernels:
            found = triton_kernels(weights.device) if self.by_kernels else None
            if found is not None:
                change = self._update_triton(found, weights, state, rows_U, grads_UD, told)
                if change is not None:
                    return change
            return self.update_tensors(weights, state, rows_U, grads_UD, told)
        return self._update_arrays(
            weights.numpy(),
            {name: tensor.numpy() for name, tensor in state.items()},
            None if rows_U is None else rows_U.numpy(),
            grads_UD.numpy(),
            told,
        )

    def update_dense(
        self,
        parameter: Tensor,
        grad: Tensor,
        state: Mapping[str, Tensor],
        *,
        lr: float | None = None,
        grad_scale: float = 1.0,
        step: int = 1,
        threads: int = 1,
    ) -> None:
        """Move a whole dense parameter of any shape.

        Args:
            parameter: float32, changed in place.
            grad: float32 gradient of its shape.
            state: From :meth:`initial_state`, changed in place.
            lr: Learning rate of this update; None: the optimizer's own.
            grad_scale: What the gradient is multiplied by.
            step: Number of this update, from 1.
            threads: Threads of the kernels; the result does not depend on it.
        """
        rows = len(parameter) if parameter.ndim > 1 else 1
        self.update_rows(
            parameter.detach().view(rows, -1),
            {name: tensor.view(rows, -1) for name, tensor in state.items()},
            None,
            grad.detach().reshape(rows, -1),
            lr=lr,
            grad_scale=grad_scale,
            step=step,
            threads=threads,
        )

    @abstractmethod
    def update_tensors(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        rows_U: Tensor | None,
        grads_UD: Tensor,
        step: Step,
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""

    def _update_triton(
        self,
        kernels: ModuleType,
        weights: Tensor,
        state: Mapping[str, Tensor],
        rows_U: Tensor | None,
        grads_UD: Tensor,
        step: Step,
    ) -> int | Tensor | None:
        """Do it by :mod:`widedeep.kernels.torch_triton`, or return None where it cannot."""
        return None

    def _update_arrays(
        self,
        weights: NDArray[Any],
        state: Mapping[str, NDArray[Any]],
        rows_U: NDArray[Any] | None,
        grads_UD: NDArray[Any],
        step: Step,
    ) -> int:
        """Do it by a kernel."""
        raise NotImplementedError


def check_range(
    owner: str, name: str, value: float, allowed: Callable[[float], bool], expected: str
) -> None:
    """Raise ConfigError unless a hyper-parameter is a finite number in its range."""
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not abs(value) < math.inf or not allowed(value):
        raise ConfigError(f"{owner}: got {name}={show_value(value)}, expected {expected}")
    if abs(value) > 1e30:  # what float32 holds, with room for a product
        raise ConfigError(f"{owner}: got {name}={show_value(value)}, expected at most 1e30")
