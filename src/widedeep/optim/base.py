"""The contract of the optimizers: rows of sparse tables and whole dense parameters.

An optimizer is a frozen value: hyper-parameters and equations. Its state lives beside the weights
it belongs to, as tensors of the same shape, so tables can keep a row's weights and state together.

The gradient g of the equations is ``grad_scale`` times the sum of an id's example gradients over
the batch: duplicates are summed before anything is squared, each touched row moves once, and
untouched rows keep their bits.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor

from widedeep import kernels
from widedeep.errors import ConfigError, nearest, show_value
from widedeep.kernels.torch_device import triton_kernels
from widedeep.kernels.torch_ops import as_array
from widedeep.options import Allowed, allowed_values

State: TypeAlias = Mapping[str, Tensor]
"""State tensors of an optimizer by name, each of the rows of the weights that it belongs to."""
_CLASSES: dict[str, type[Optimizer]] = {}  # by the name that tables give them


@dataclass(frozen=True, kw_only=True)
class Step:
    """Numbers of a single update."""

    lr: float  # Learning rate of this update
    grad_scale: float  # Factor of the gradients
    number: int  # Number of this update, from 1
    threads: int  # Threads of the kernels
    rates_U: Tensor | None = None  # Factor of the rate of each row, or None
    # To be filled with each row's gradient times its weight, or None
    products_U: Tensor | None = None
    rounding: kernels.Rounding | None = None  # How weights in bfloat16 are rounded


class Optimizer(ABC):
    """Hyper-parameters and equations of one optimizer.

    Subclasses are frozen keyword-only dataclasses with a field ``lr``. They name their state, fill
    it, and update by torch operations (:meth:`update_tensors`, on any device); that is all an
    optimizer needs to train, resume and warm-start. ``class Lion(Optimizer, name="lion")`` can be
    named in tables (TOML, checkpoints) as well. Ours have a kernel beside that; a subclass that
    updates otherwise is not updated by a kernel of its base.
    """

    lr: float
    """The learning rate that holds unless an update is given another."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """One tensor of the weights' rows each; a class may give them as an attribute."""
        return ()

    def state_width(self, name: str, width: int) -> int:
        """Return the columns of a state tensor: those of the weights, unless a class narrows it.

        Args:
            name: One of :attr:`state_names`.
            width: Columns of the weights.
        """
        return width

    counts_nonzero: ClassVar[bool] = False
    """True if :meth:`update_rows` returns the change of the weights' non-zero count."""

    scales_with_lr: ClassVar[bool] = False
    """True if weights are made of the state and the present rate, as FTRL's are."""

    kernel: ClassVar[str | None] = None
    """Name of the function in `widedeep.kernels` (and Triton's, if there) that updates rows."""

    by_kernels: ClassVar[bool] = False
    """True if :attr:`kernel` computes what :meth:`update_tensors` does."""

    def __init_subclass__(cls, *, name: str | None = None, **options: object) -> None:
        """Register a name; let no kernel or count of a base replace an update of one's own."""
        super().__init_subclass__(**options)
        if name is not None:
            _CLASSES[name] = cls

        def definer(attribute: str) -> int:
            return next(i for i, base in enumerate(cls.__mro__) if attribute in base.__dict__)

        updates = min(definer("update_tensors"), definer("update_rows"))
        cls.by_kernels = cls.kernel is not None and definer("kernel") <= updates
        if updates < definer("counts_nonzero"):
            cls.counts_nonzero = False

    def apply_schedule(self, factor: float) -> tuple[float, float]:
        """Return the learning rate and the gradients' factor where a schedule has ``factor``.

        Where the weights scale with the rate, a rate that decays would take back what was learned;
        there the gradients fall in its place, and the steps with them.

        Example:
            >>> from widedeep.optim import FTRL, SGD
            >>> SGD(lr=0.5).apply_schedule(0.1), FTRL(lr=0.5).apply_schedule(0.1)
            ((0.05, 1.0), (0.5, 0.1))
        """
        return (self.lr, factor) if self.scales_with_lr else (self.lr * factor, 1.0)

    def without_decay(self) -> Optimizer:
        """Return the optimizer without the weight decay that it applies once an update.

        For tables that have a penalty of their own (option ``l2`` of a feature's embedding).
        """
        return self

    def start_state(self, weights: Tensor, state: State) -> None:  # noqa: B027
        """Fill ``state``, which holds zeros, for weights that were not updated yet.

        Args:
            weights: Present weights.
            state: A tensor of their rows for each of :attr:`state_names`; filled in place.
        """

    def initial_state(self, weights: Tensor) -> dict[str, Tensor]:
        """Return new state for weights that were not updated yet.

        Args:
            weights: Present weights.
        """
        shapes = {n: self.state_width(n, weights.shape[-1]) for n in self.state_names}
        state = {
            name: torch.zeros(*weights.shape[:-1], columns, device=weights.device)
            for name, columns in shapes.items()
        }
        self.start_state(weights, state)
        return state

    def update_rows(
        self,
        weights: Tensor,
        state: State,
        rows_U: Tensor | None,
        grads_UD: Tensor,
        *,
        lr: float | None = None,
        grad_scale: float = 1.0,
        step: int = 1,
        threads: int = 1,
        rates_U: Tensor | None = None,
        products_U: Tensor | None = None,
        rounding: kernels.Rounding | None = None,
    ) -> int | Tensor:
        """Move the given rows once; the others keep their bits.

        Args:
            weights: float32 or bfloat16 (R, D), changed in place. Rows may lie further apart than
                D.
            state: A tensor (R, D), or of :meth:`state_width`, for each of :attr:`state_names`,
                changed in place.
            rows_U: int64 distinct rows, or None for every row.
            grads_UD: float32 summed gradient of each of them.
            lr: Learning rate of this update; None: the optimizer's own.
            grad_scale: Factor of the gradients.
            step: Number of this update, from 1.
            threads: Threads of the kernels; the result does not depend on it.
            rates_U: float32 factor of each row's rate; only :class:`FTRL` reads it.
            products_U: float32, filled by :class:`FTRL` with each row's sum of g times the weight
                before it moved.
            rounding: How weights in bfloat16 are rounded; needed for those alone, on the CPU.

        Returns:
            Change of the non-zero count, 0 unless :attr:`counts_nonzero`.
        """
        numbers = Step(
            lr=self.lr if lr is None else lr,
            grad_scale=grad_scale,
            number=step,
            threads=threads,
            rates_U=rates_U,
            products_U=products_U,
            rounding=rounding,
        )
        if self.by_kernels:
            on_cpu = weights.device.type == "cpu"
            module = kernels if on_cpu else triton_kernels(weights.device)
            if module is not None and hasattr(module, self.kernel or ""):
                change = self._run_kernel(module, weights, state, rows_U, grads_UD, numbers)
                if change is not None:
                    return change
        if rounding is None:
            return self.update_tensors(weights, state, rows_U, grads_UD, numbers)
        rows = slice(None) if rows_U is None else rows_U
        copies = weights[rows].float()
        own = {name: tensor[rows] for name, tensor in state.items()}
        change = self.update_tensors(copies, own, None, grads_UD, numbers)
        half = torch.empty(copies.shape, dtype=torch.bfloat16)
        kernels.round_rows(copies.numpy(), as_array(half), rounding, threads)
        weights[rows] = half
        for name, tensor in own.items():
            state[name][rows] = tensor
        return change

    def _run_kernel(
        self,
        module: ModuleType,
        weights: Tensor,
        state: State,
        rows_U: Tensor | None,
        grads_UD: Tensor,
        step: Step,
    ) -> int | Tensor | None:
        """Run the native kernel over the same memory, or Triton's; None: it cannot."""
        run = getattr(module, self.kernel or "")
        tensors = (weights, *self.kernel_state(state), rows_U, grads_UD)
        options = {"grad_scale": step.grad_scale, **self.kernel_options(step)}
        if module is not kernels:
            change = run(*tensors, **options)
            if change is NotImplemented:
                return None
            return 0 if change is None else cast("int | Tensor", change)
        arrays = (None if tensor is None else as_array(tensor) for tensor in tensors)
        options = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in options.items()}
        if step.rounding is not None:
            options["rounding"] = step.rounding
        count: int | None = run(*arrays, **options, threads=step.threads)
        return count or 0

    def kernel_state(self, state: State) -> tuple[Tensor | None, ...]:
        """Return the state as :attr:`kernel` takes it, after the weights."""
        return tuple(state[name] for name in self.state_names)

    def kernel_options(self, step: Step) -> dict[str, Any]:
        """Return the hyper-parameters that :attr:`kernel` takes by keyword."""
        return {"lr": step.lr}

    def update_dense(
        self,
        parameter: Tensor,
        grad: Tensor,
        state: State,
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
            grad_scale: Factor of the gradient.
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
        self, weights: Tensor, state: State, rows_U: Tensor | None, grads_UD: Tensor, step: Step
    ) -> int | Tensor:
        """Do what :meth:`update_rows` does by torch operations, on any device."""


OptimizerChoice: TypeAlias = Optimizer | str | Mapping[str, Any]
"""An optimizer, its name, or a table as :func:`make_optimizer` takes it."""


def describe_optimizer(optimizer: object) -> dict[str, Any]:
    """Return an optimizer's name and hyper-parameters.

    Args:
        optimizer: A registered one; another of one's own, or a function that makes a torch
            optimizer, is described by its name alone and cannot be made again by
            :func:`make_optimizer`.

    Example:
        >>> from widedeep.optim import Adagrad
        >>> describe_optimizer(Adagrad(lr=0.5))["optimizer"]
        'adagrad'
    """
    for name, kind in _CLASSES.items():
        if type(optimizer) is kind:
            values = {field: getattr(optimizer, field) for field in _field_names(kind)}
            plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
            return {"optimizer": name, **plain}
    if isinstance(optimizer, Optimizer):
        return {"optimizer": type(optimizer).__qualname__}
    return {"optimizer": f"torch: {getattr(optimizer, '__qualname__', type(optimizer).__name__)}"}


def make_optimizer(table: str | Mapping[str, Any]) -> Optimizer:
    """Make the optimizer that a name or a table describes.

    Args:
        table: A name (``"ftrl"``, ``"adagrad"``, ``"sgd"``, ``"adam"``, ``"rmsprop"`` or another
            registered one), or a table of it as ``optimizer`` and hyper-parameters; those not named
            keep their defaults.

    Raises:
        ConfigError: If the name or a key is unknown, or a value is outside its range.

    Example:
        >>> make_optimizer({"optimizer": "sgd", "lr": 0.5})
        SGD(lr=0.5, momentum=0.0, nesterov=False)
    """
    table = {"optimizer": table} if isinstance(table, str) else table
    name = table.get("optimizer")
    if not isinstance(name, str) or name not in _CLASSES:
        raise ConfigError(
            f"got optimizer={show_value(name)}; {nearest(show_value(name), _CLASSES)}"
        )
    kind = _CLASSES[name]
    fields = _field_names(kind)
    for key in table:
        if key != "optimizer" and key not in fields:
            raise ConfigError(
                f"optimizer {name!r}: got the unknown key {show_value(key)}; "
                f"{nearest(str(key), fields)}"
            )
    return kind(**{key: value for key, value in table.items() if key != "optimizer"})


def _field_names(kind: type[Optimizer]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]


def check_range(
    owner: str, name: str, value: float, allowed: Callable[[float], bool], expected: str
) -> None:
    """Raise ConfigError unless a hyper-parameter is a finite number in its range."""
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not abs(value) < math.inf or not allowed(value):
        raise ConfigError(f"{owner}: got {name}={show_value(value)}, expected {expected}")
    if abs(value) > 1e30:  # what float32 holds, with room for a product
        raise ConfigError(f"{owner}: got {name}={show_value(value)}, expected at most 1e30")


def check_numbers(optimizer: Optimizer) -> None:
    """Raise ConfigError for a hyper-parameter outside the range that its annotation says."""
    for name, allowed in allowed_values(type(optimizer)).items():
        expected = allowed.text.format(name=name)
        check_range(
            type(optimizer).__name__, name, getattr(optimizer, name), allowed.test, expected
        )


AtLeast0 = Annotated[float, Allowed(lambda x: x >= 0, "a number >= 0")]


def check_flag(owner: str, name: str, value: object) -> None:
    """Raise ConfigError unless a hyper-parameter is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{owner}: got {name}={show_value(value)}, expected true or false")
