"""Adagrad: the deep part's optimizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from widedeep.optim.base import (
    AtLeast0,
    Optimizer,
    State,
    Step,
    check_flag,
    check_numbers,
    check_range,
)
from widedeep.options import Positive


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer, name="adagrad"):
    """Adagrad (Duchi et al. 2011), per coordinate: acc = acc + g²; w = w - lr·g / (√acc + eps).

    The defaults are the best of a sweep over one pass of a click log (``benchmarks/``). A small
    start makes a step independent of the scale of the gradients, so batches of 256 and of 2,048
    learn alike, and hidden layers learn as fast from mean as from summed gradients.

    Args:
        lr: > 0.
        initial_accumulator: acc of an untouched weight, >= 0 (TensorFlow: 0.1, PyTorch: 0).
        eps: Added to the root, >= 0 (TensorFlow: 1e-7, PyTorch: 1e-10); > 0 where acc starts
            at 0, so that a gradient of 0 is no step.
        l2: Weight decay, >= 0: l2·w is added to g, as in PyTorch. In a table only the rows that
            a batch touches decay, once a batch.
        row_wise: Keep one acc for each row of a table of embeddings, of the mean of its g², and
            move all of the row by it: the state of a row of D numbers takes 4 bytes in the place
            of 4·D (as FBGEMM's and TorchRec's ``EXACT_ROWWISE_ADAGRAD``). Of embeddings alone.

    Raises:
        ConfigError: If a hyper-parameter is outside its range.

    Example:
        >>> import torch
        >>> adagrad = Adagrad(lr=0.5, initial_accumulator=0.0)
        >>> w = torch.ones(3, 2)
        >>> state = adagrad.initial_state(w)
        >>> adagrad.update_rows(w, state, torch.tensor([1]), torch.full((1, 2), 4.0))
        0
        >>> w[:, 0].tolist()
        [1.0, 0.5, 1.0]
    """

    lr: Positive = 0.02
    initial_accumulator: AtLeast0 = 1e-6
    eps: float = 1e-7
    l2: AtLeast0 = 0.0
    row_wise: bool = False

    state_names: ClassVar[tuple[str, ...]] = ("accumulator",)
    kernel: ClassVar[str] = "adagrad_rows"

    def __post_init__(self) -> None:
        check_numbers(self)
        start = self.initial_accumulator
        check_range(
            "Adagrad", "eps", self.eps, lambda x: x > 0 or (x == 0 and start > 0), "a number > 0"
        )
        check_flag("Adagrad", "row_wise", self.row_wise)

    def state_width(self, name: str, width: int) -> int:
        """Return 1 where the accumulator is a row's."""
        return 1 if self.row_wise else width

    def without_decay(self) -> Adagrad:
        """Return the optimizer with ``l2=0``."""
        return dataclasses.replace(self, l2=0.0) if self.l2 else self

    def start_state(self, weights: Tensor, state: State) -> None:
        """Fill the accumulator."""
        if self.initial_accumulator:
            state["accumulator"].fill_(self.initial_accumulator)

    def update_tensors(
        self, weights: Tensor, state: State, rows_U: Tensor | None, grads_UD: Tensor, step: Step
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        rows = slice(None) if rows_U is None else rows_U
        g = grads_UD * step.grad_scale + self.l2 * weights[rows]
        square = (g * g).mean(dim=1, keepdim=True) if self.row_wise else g * g
        total = state["accumulator"][rows] + square
        state["accumulator"][rows] = total
        weights[rows] = weights[rows] - step.lr * g / (total.sqrt() + self.eps)
        return 0

    def kernel_options(self, step: Step) -> dict[str, Any]:
        """Return the rate, eps and l2."""
        return {"lr": step.lr, "eps": self.eps, "l2": self.l2}
