"""FTRL-Proximal: the wide part's optimizer, whose L1 makes weights exactly zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from widedeep.errors import ConfigError, show_value
from widedeep.optim.base import AtLeast0, Optimizer, State, Step, check_numbers
from widedeep.options import Allowed, Positive


@dataclass(frozen=True, kw_only=True)
class FTRL(Optimizer, name="ftrl"):
    """FTRL-Proximal (McMahan et al. 2013, *Ad Click Prediction*, Algorithm 1), per coordinate.

    With the rate α, p = -lr_power, λ1 = l1 and the summed gradient g::

        σ = ((n + g²)^p - n^p) / α
        z = z + g + 2·l2_shrinkage·w - σ·w
        n = n + g²
        w = 0 where |z| <= λ1, else -(z - sign(z)·λ1) / ((β + n^p)/α + λ2)

    The conventions differ in what ``l2`` means, and in nothing else: ``"mcmahan"`` penalises
    l2/2·w², so λ2 = l2; ``"tensorflow"`` (its Ftrl) penalises l2·w², so λ2 = 2·l2. TensorFlow
    starts with ``initial_accumulator=0.1, beta=0``. Its shrinkage enters z alone, not n. Without
    l1, l2, beta and shrinkage this is Adagrad.

    The defaults are the best of a sweep over one pass of a click log (``benchmarks/``). The
    threshold l1 is held against summed example gradients: it keeps weights at 0 that few examples,
    or contradicting ones, speak for.

    A trainer learns a factor of α for each wide feature on the way
    (:class:`widedeep.training.feature_rates.FeatureRates`), so that features which say nothing
    learn slowly and those which say much learn fast; ``adapt=0`` keeps one α for all.

    Weights are proportional to α, so a decaying α would take back what was learned: a trainer's
    ``schedule`` and ``warmup_steps`` scale FTRL's gradients instead, and α stays.

    Args:
        lr: α > 0.
        l1: λ1 >= 0; weights whose |z| stays within it are exactly 0.
        l2: >= 0.
        beta: β >= 0.
        initial_accumulator: n of an untouched weight, >= 0.
        lr_power: <= 0; -0.5 is the paper's.
        l2_shrinkage: >= 0.
        convention: ``"mcmahan"`` or ``"tensorflow"``.
        adapt: Step of the factors' logarithms, >= 0.

    Raises:
        ConfigError: If a hyper-parameter is outside its range.

    Example:
        >>> import torch
        >>> ftrl = FTRL(lr=0.1, l1=1.0, beta=1.0)
        >>> w = torch.zeros(2, 1)
        >>> state = ftrl.initial_state(w)
        >>> ftrl.update_rows(w, state, torch.tensor([0, 1]), torch.tensor([[0.5], [-3.0]]))
        1
        >>> w.squeeze(1).tolist()
        [0.0, 0.05000000074505806]
    """

    lr: Positive = 0.1
    l1: AtLeast0 = 0.3
    l2: AtLeast0 = 0.0
    beta: AtLeast0 = 1.0
    initial_accumulator: AtLeast0 = 0.0
    lr_power: Annotated[float, Allowed(lambda x: x <= 0, "a number <= 0")] = -0.5
    l2_shrinkage: AtLeast0 = 0.0
    convention: Literal["mcmahan", "tensorflow"] = "mcmahan"
    adapt: AtLeast0 = 0.2

    state_names: ClassVar[tuple[str, ...]] = ("z", "n")
    kernel: ClassVar[str] = "ftrl_rows"
    counts_nonzero: ClassVar[bool] = True
    scales_with_lr: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self)
        is_valid = isinstance(self.convention, str) and self.convention in ("mcmahan", "tensorflow")
        if not is_valid:
            text = show_value(self.convention)
            raise ConfigError(f"FTRL: got convention={text}, expected 'mcmahan' or 'tensorflow'")

    @property
    def penalty_factor(self) -> float:
        """λ2 / l2."""
        return 2.0 if self.convention == "tensorflow" else 1.0

    def start_state(self, weights: Tensor, state: State) -> None:
        """Fill n, and z such that the weights stay as they are (see :meth:`z_from_weights`)."""
        if self.initial_accumulator:
            state["n"].fill_(self.initial_accumulator)
        if bool(weights.any()):
            state["z"].copy_(self.z_from_weights(weights, state["n"]))

    def z_from_weights(self, weights: Tensor, n: Tensor, *, factor: float = 1.0) -> Tensor:
        """Return the z that stands for given weights: the equation of w, solved for z.

        z = -w((β + n^p)/α + λ2) - sign(w) λ1. With z = 0 instead, the first update would forget
        the weight, so a warm start that carries weights alone needs this.

        Args:
            weights: Weights to keep.
            n: Their accumulators.
            factor: Factor of α, where a feature has learned one.
        """
        root = n.sqrt() if self.lr_power == -0.5 else n.pow(-self.lr_power)
        curvature = (self.beta + root) / (self.lr * factor) + self.penalty_factor * self.l2
        return -weights * curvature - weights.sign() * self.l1

    def update_tensors(
        self, weights: Tensor, state: State, rows_U: Tensor | None, grads_UD: Tensor, step: Step
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""
        rows = slice(None) if rows_U is None else rows_U
        w, z, n = weights[rows], state["z"][rows], state["n"][rows]
        g = grads_UD * step.grad_scale
        # A tensor: CUDA would multiply by the reciprocal of a number.
        lr = torch.full((1, 1), step.lr, device=g.device)
        if step.rates_U is not None:
            lr = lr * step.rates_U[:, None]
        if step.products_U is not None:
            step.products_U.copy_((g * w).sum(dim=1))
        total = n + g * g
        power = -self.lr_power
        root, old_root = (
            (total.sqrt(), n.sqrt()) if power == 0.5 else (total.pow(power), n.pow(power))
        )
        sigma = (root - old_root) / lr
        linear = z + (g + 2.0 * self.l2_shrinkage * w - sigma * w)
        curvature = (self.beta + root) / lr + self.penalty_factor * self.l2
        moved = -(linear - linear.sign() * self.l1) / curvature
        updated = torch.where(linear.abs() <= self.l1, torch.zeros_like(moved), moved)
        change = torch.count_nonzero(updated) - torch.count_nonzero(w)
        weights[rows], state["z"][rows], state["n"][rows] = updated, linear, total
        return change

    def kernel_options(self, step: Step) -> dict[str, Any]:
        """Return the hyper-parameters as Algorithm 1 has them, and what a step adds to each row."""
        return {
            "lr": step.lr, "l1": self.l1, "l2": self.penalty_factor * self.l2, "beta": self.beta,
            "lr_power": self.lr_power, "shrinkage": 2.0 * self.l2_shrinkage,
            "rates_U": step.rates_U, "products_U": step.products_U,
        }  # fmt: skip
