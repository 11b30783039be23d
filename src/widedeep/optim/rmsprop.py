"""RMSProp, lazy on sparse tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from widedeep.errors import ConfigError, show_value
from widedeep.optim.base import AtLeast0, Optimizer, State, Step, check_flag, check_numbers
from widedeep.options import FractionBelow1, Positive


@dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer, name="rmsprop"):
    """RMSProp (Tieleman & Hinton 2012, lecture 6.5 of *Neural Networks for Machine Learning*).

    Per coordinate, with d = v, or d = v - m² if ``centered`` (Graves 2013, equations 38 to 41)::

        v = decay·v + (1 - decay)·g²
        m = decay·m + (1 - decay)·g

    The conventions differ where eps stands, and in whether momentum adds up steps or what they are
    made of::

        "pytorch"      b = momentum·b + g / (√d + eps)        w = w - lr·b
        "tensorflow"   b = momentum·b + lr·g / √(d + eps)     w = w - b

    PyTorch's RMSprop is the first, with ``decay=0.99, eps=1e-8``, and so is Keras's without
    momentum. TensorFlow's RMSPropOptimizer is the second, with ``eps=1e-10,
    initial_accumulator=1.0``, and so is Keras's with momentum.

    It is lazy: v, m and b of a row that a batch does not touch do not decay. (Keras without
    momentum lets v of all rows of a table decay at every step.)

    Args:
        lr: > 0.
        decay: Share of v and m that a step keeps, 0 <= decay < 1.
        momentum: Share of b that a step keeps, 0 <= momentum < 1; 0 keeps no b.
        eps: > 0.
        centered: Divide by the root of the variance of g instead of that of its square.
        initial_accumulator: v of an untouched weight, >= 0.
        convention: ``"pytorch"`` or ``"tensorflow"``.

    Raises:
        ConfigError: If a hyper-parameter is outside its range.

    Example:
        >>> import torch
        >>> rmsprop = RMSProp(lr=0.1, decay=0.75)
        >>> w = torch.zeros(2, 1)
        >>> state = rmsprop.initial_state(w)
        >>> rmsprop.update_rows(w, state, torch.tensor([1]), torch.full((1, 1), 3.0))
        0
        >>> [round(x, 4) for x in w.squeeze(1).tolist()]  # 0.1 * 3 / sqrt(0.25 * 9)
        [0.0, -0.2]
    """

    lr: Positive = 1e-3
    decay: FractionBelow1 = 0.9
    momentum: FractionBelow1 = 0.0
    eps: Positive = 1e-7
    centered: bool = False
    initial_accumulator: AtLeast0 = 0.0
    convention: Literal["pytorch", "tensorflow"] = "pytorch"

    kernel: ClassVar[str] = "rmsprop_rows"

    def __post_init__(self) -> None:
        check_numbers(self)
        check_flag("RMSProp", "centered", self.centered)
        if self.convention not in ("pytorch", "tensorflow"):
            text = show_value(self.convention)
            raise ConfigError(f"RMSProp: got convention={text}, expected 'pytorch' or 'tensorflow'")

    @property
    def state_names(self) -> tuple[str, ...]:
        """``square``, v; ``mean``, m, if it is centered; ``velocity``, b, with momentum."""
        mean = ("mean",) if self.centered else ()
        return ("square", *mean, *(("velocity",) if self.momentum else ()))

    def start_state(self, weights: Tensor, state: State) -> None:
        """Fill v."""
        if self.initial_accumulator:
            state["square"].fill_(self.initial_accumulator)

    def kernel_state(self, state: State) -> tuple[Tensor | None, ...]:
        """Return v, m and b, None where it has none."""
        return tuple(state.get(name) for name in ("square", "mean", "velocity"))

    def kernel_options(self, step: Step) -> dict[str, Any]:
        """Return the rate, both shares, eps and where it stands."""
        return {
            "lr": step.lr, "decay": self.decay, "momentum": self.momentum, "eps": self.eps,
            "eps_in_root": self.convention == "tensorflow",
        }  # fmt: skip

    def update_tensors(
        self, weights: Tensor, state: State, rows_U: Tensor | None, grads_UD: Tensor, step: Step
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        rows = slice(None) if rows_U is None else rows_U
        g = grads_UD * step.grad_scale
        spread = self.decay * state["square"][rows] + (1 - self.decay) * (g * g)
        state["square"][rows] = spread
        if self.centered:
            mean = self.decay * state["mean"][rows] + (1 - self.decay) * g
            state["mean"][rows] = mean
            spread = (spread - mean * mean).clamp_(min=0.0)  # rounding may go below
        is_inside = self.convention == "tensorflow"
        change = g / ((spread + self.eps).sqrt() if is_inside else spread.sqrt() + self.eps)
        change = step.lr * change if is_inside else change
        if self.momentum:
            change = self.momentum * state["velocity"][rows] + change
            state["velocity"][rows] = change
        weights[rows] = weights[rows] - (change if is_inside else step.lr * change)
        return 0
