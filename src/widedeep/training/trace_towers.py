"""Towers as a bundle's program: what they do to a few rows, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from widedeep.bundle.program import Program
from widedeep.training.program_builder import Elements, ProgramBuilder

_ROWS = 3  # traced; no tower may do with one row what depends on another
_NEXT_ROW = 1 << 40  # between the elements of one row and those of the next


class NotExpressible(Exception):
    """An operation that a program does not have."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A tensor that depends on the input: its elements, with those of all traced rows."""

    elements: Elements


Value: TypeAlias = Any
"""A :class:`Numbers`, or a plain argument; a constant is a tensor."""


def trace_towers(
    towers: nn.Module,
    inputs: Sequence[Tensor],
    elements: Sequence[Elements | None],
    sizes: Sequence[int],
    names: Callable[[], Sequence[str]] = tuple,
) -> tuple[Program, dict[str, NDArray[np.float32]]]:
    """Return the program of a module of plain tensors, and its constants by name.

    Args:
        towers: In evaluation mode.
        inputs: One tensor of few rows for each argument.
        elements: Elements of each argument's numbers among the inputs of the three stages; None
            for a constant.
        sizes: Columns of the three stages' inputs.
        names: Returns the names of the results after the first, once they are there.

    Raises:
        NotExpressible: If it does what a program has no operation for.
    """
    rows = [torch.cat([x[:1]] * _ROWS) for x in inputs]
    tracer = _Tracer(ProgramBuilder(sizes))
    with torch.no_grad(), tracer:
        for x, own in zip(rows, elements, strict=True):
            if own is not None:
                tracer.remember(x, Numbers(_for_rows(own)))
        try:
            outputs = torch.func.functionalize(towers)(*rows)
        except NotExpressible:
            raise
        except Exception as error:
            raise NotExpressible(f"it cannot be traced ({error})") from error
    return tracer.finish(outputs if isinstance(outputs, tuple) else (outputs,), names())


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation on tensors; what does not depend on the input is a constant."""

    def __init__(self, builder: ProgramBuilder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = builder
        # By the tensor's identity; the tensor is kept, so that no other takes it
        self._numbers: dict[int, tuple[Tensor, Numbers]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds

    def remember(self, tensor: Tensor, numbers: Numbers) -> None:
        """Take a tensor for these numbers from now on."""
        if tuple(tensor.shape) != numbers.elements.shape:
            raise NotExpressible(f"a shape of {numbers.elements.shape} for {tensor.shape}")
        self._numbers[id(tensor)] = tensor, numbers

    def finish(
        self, outputs: Sequence[Tensor], shares: Sequence[str]
    ) -> tuple[Program, dict[str, NDArray[np.float32]]]:
        """Return the program that computes results, (rows, C)."""
        results = []
        for output in outputs:
            if id(output) not in self._numbers:
                raise NotExpressible("a result that does not depend on the input")
            elements = self._numbers[id(output)][1].elements
            if elements.shape[:1] != (_ROWS,) or not self._is_by_row(elements):
                raise NotExpressible("an operation over several rows at once")
            results.append(elements[0].reshape(-1))
        return self.builder.finish(results[0], dict(zip(shares, results[1:], strict=True)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and add it to the program if it depends on the input."""
        options = kwargs or {}
        symbolic = tree_map(self._known, (args, options))
        if not any(isinstance(leaf, Numbers) for leaf in tree_leaves(symbolic)):
            return func(*args, **options)
        name = str(func.overloadpacket).removeprefix("aten.").removeprefix("prims.")
        name = _plain_copy(name, args)
        if name in _SHAPED_LIKE:
            return func(*args, **options)
        if func._schema.is_mutable:  # within an operation of torch: a module's own are rewritten
            numbers = self._numbers_of(func, name.rstrip("_"), *symbolic)
            if numbers is None or args[0]._is_view():
                raise NotExpressible(f"the operation {func}")
            func(*args, **options)
            self.remember(args[0], numbers)
            return args[0]
        numbers = self._numbers_of(func, name, *symbolic)
        if numbers is None:
            known = get_decompositions([func])
            if func not in known:
                raise NotExpressible(f"the operation {func}")
            with self:
                return known[func](*args, **options)
        result = func(*args, **options)
        if isinstance(result, Tensor):
            self.remember(result, numbers)
        else:
            for tensor, own in zip(result, numbers, strict=True):
                if own is not None:
                    self.remember(tensor, own)
        return result

    def _numbers_of(self, func: Any, name: str, arguments: Any, options: Any) -> Any:
        """Add an operation to the program; None for one without a form of its own here."""
        if name in _MOVES:
            if name == "index" and not isinstance(arguments[0], Numbers):
                return self.looked_up(*arguments)
            return self._move(getattr(torch.ops.aten, name), arguments, options)
        if name in _OPERATIONS:
            return _OPERATIONS[name](self, *arguments, **options)
        return None

    def _known(self, value: Value) -> Value:
        is_known = isinstance(value, Tensor) and id(value) in self._numbers
        return self._numbers[id(value)][1] if is_known else value

    # ---- elements of all rows, and of one -------------------------------------------------------

    def all_elements(self, value: Value) -> Elements:
        """Return a value's elements, with those of all rows."""
        if isinstance(value, Numbers):
            return value.elements
        if not isinstance(value, Tensor):
            value = torch.tensor(float(value))
        return self.builder.constant(value.detach().to(torch.float32).numpy())

    def _is_by_row(self, elements: Elements) -> bool:
        first, varies = elements[0], elements[0] >= 0
        for row in range(1, _ROWS):
            own = elements[row]
            if not np.array_equal(own[varies], first[varies] + row * _NEXT_ROW):
                return False
            if (own[~varies] >= 0).any():
                return False
            if not np.array_equal(own[~varies], first[~varies]):
                numbers = self.builder.constant_values
                if not np.array_equal(numbers(own[~varies]), numbers(first[~varies])):
                    return False
        return bool((first < _NEXT_ROW).all())

    def split(
        self, *operands: Elements, keep: int = 0
    ) -> tuple[list[Elements], Callable[[Elements], Numbers]]:
        """Return the operands of one row and the way back to all rows.

        The operands agree in all dimensions but the last ``keep``, which are no rows.
        """
        shape = operands[0].shape[: operands[0].ndim - keep]
        ways: list[tuple[tuple[int, ...], int]]
        ways = [((), axis) for axis in range(len(shape)) if shape[axis] == _ROWS]
        if shape and shape[0] % _ROWS == 0:  # rows and another dimension as one
            others = shape[0] // _ROWS
            ways += [((_ROWS, others), 0), ((others, _ROWS), 1)]
        for first, axis in ways:
            moved = [_rows_first(operand, first, axis) for operand in operands]
            if all(self._is_by_row(operand) for operand in moved):
                return [operand[0] for operand in moved], partial(_as_before, first, axis)
        raise NotExpressible("an operation over several rows at once")

    # ---- operations -----------------------------------------------------------------------------

    def _move(self, target: Any, arguments: tuple[Value, ...], options: dict[str, Value]) -> Value:
        """Run an operation that only moves numbers on the elements."""
        # Constants of any type are numbers there; elsewhere whole ones are indices.
        joins = target.__name__.split(".")[0] in ("cat", "stack", "slice_scatter", "select_scatter")

        def as_tensor(value: Value) -> Value:
            if isinstance(value, Numbers):
                return torch.from_numpy(np.ascontiguousarray(value.elements))
            if isinstance(value, Tensor) and (value.is_floating_point() or joins):
                return torch.from_numpy(self.all_elements(value))
            return value

        options = {key: value for key, value in options.items() if key not in _OF_TYPE}
        moved = tree_map(as_tensor, (arguments, options))
        result = target(*moved[0], **moved[1])
        if isinstance(result, (list, tuple)):
            return [Numbers(piece.numpy()) for piece in result]
        return Numbers(result.numpy())

    def map(self, function: str, *operands: Value, numbers: Sequence[float] = ()) -> Numbers:
        """Apply a function to each number, with operands broadcast."""
        together = np.broadcast_arrays(*(self.all_elements(operand) for operand in operands))
        rows, whole = self.split(*together)
        return whole(self.builder.map(function, *rows, numbers=numbers))

    def reduce(self, function: str, x: Value, dims: Any = None, keepdim: bool = False) -> Numbers:
        """Reduce dimensions; none means all."""
        elements = self.all_elements(x)
        axes = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
        axes = sorted(axis % elements.ndim for axis in axes) or list(range(elements.ndim))
        kept = [axis for axis in range(elements.ndim) if axis not in axes]
        shape = [elements.shape[axis] for axis in kept]
        (rows,), whole = self.split(elements.transpose(*kept, *axes).reshape(*shape, -1), keep=1)
        reduced = whole(self.builder.reduce(function, rows)).elements
        return Numbers(np.expand_dims(reduced, tuple(axes)) if keepdim else reduced)

    def mean(self, x: Value, dims: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
        """Return the mean over dimensions."""
        total = self.reduce("sum", x, dims, keepdim)
        count = self.all_elements(x).size // max(1, total.elements.size)
        return self.map("mul", total, 1.0 / count)

    def variance(
        self, x: Value, dims: Any = None, correction: float | None = 1, keepdim: bool = False
    ) -> Numbers:
        """Return the variance over dimensions."""
        centred = self.map("sub", x, self.mean(x, dims, True))
        total = self.reduce("sum", self.map("square", centred), dims, keepdim)
        count = self.all_elements(x).size // max(1, total.elements.size)
        return self.map("mul", total, 1.0 / (count - (1 if correction is None else correction)))

    def softmax(self, x: Value, dim: int, *_: Any) -> Numbers:
        """Return the softmax over a dimension."""
        powers = self.map("exp", self.map("sub", x, self.reduce("max", x, dim, True)))
        return self.map("div", powers, self.reduce("sum", powers, dim, True))

    def log_softmax(self, x: Value, dim: int, *_: Any) -> Numbers:
        """Return the logarithm of the softmax over a dimension."""
        shifted = self.map("sub", x, self.reduce("max", x, dim, True))
        total = self.reduce("sum", self.map("exp", shifted), dim, True)
        return self.map("sub", shifted, self.map("log", total))

    def logsumexp(self, x: Value, dims: Any, keepdim: bool = False) -> Numbers:
        """Return the logarithm of the sum of powers over dimensions."""
        most = self.reduce("max", x, dims, True)
        total = self.reduce("sum", self.map("exp", self.map("sub", x, most)), dims, keepdim)
        if not keepdim:
            most = self.reduce("max", x, dims)
        return self.map("add", self.map("log", total), most)

    def top(
        self, x: Value, count: int, dim: int = -1, largest: bool = True, in_order: bool = True
    ) -> tuple[Numbers, None]:
        """Return the largest numbers of a dimension, without their places."""
        if not largest:
            raise NotExpressible("the smallest numbers of a dimension")
        (rows,), whole = self.split(np.moveaxis(self.all_elements(x), dim, -1), keep=1)
        result = whole(self.builder.top(rows, count)).elements
        return Numbers(np.moveaxis(result, -1, dim)), None

    def pad(self, x: Value, widths: Sequence[int], fill: float = 0.0) -> Numbers:
        """Put constants around the last dimensions."""
        constant = int(self.all_elements(float(fill)))
        elements = torch.from_numpy(np.ascontiguousarray(self.all_elements(x)))
        return Numbers(nn.functional.pad(elements, list(widths), value=constant).numpy())

    def convolution(
        self,
        x: Value,
        weight: Value,
        bias: Value,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        _: Any,
        groups: int,
    ) -> Numbers:
        """Convolve (B, C, ...) with constant filters: a product with each window."""
        if isinstance(weight, Numbers) or transposed or groups != 1 or max(dilation) > 1:
            raise NotExpressible("a convolution that is transposed, dilated or in groups")
        widths = [width for own in reversed(padding) for width in (own, own)]
        windows = torch.from_numpy(np.ascontiguousarray(self.pad(x, widths).elements))
        spatial = range(2, windows.ndim)
        for axis, size, step in zip(spatial, weight.shape[2:], stride, strict=True):
            windows = windows.unfold(axis, size, step)
        lines = windows.permute(0, *spatial, 1, *range(windows.ndim - len(spatial), windows.ndim))
        flat = lines.reshape(*lines.shape[: 1 + len(spatial)], -1)
        result = self.linear(Numbers(flat.numpy()), weight.reshape(len(weight), -1).T, bias)
        return Numbers(np.moveaxis(result.elements, -1, 1))

    def layer_norm(
        self, x: Value, shape: Sequence[int], weight: Value, bias: Value, epsilon: float
    ) -> tuple[Numbers, None, None]:
        """Normalise the last dimensions."""
        axes = [-1 - i for i in range(len(shape))]
        centred = self.map("sub", x, self.mean(x, axes, True))
        variance = self.mean(self.map("square", centred), axes, True)
        deviation = self.map("sqrt", self.map("add", variance, epsilon))
        normed = self.map("div", centred, deviation)
        return self._scaled(normed, weight, bias), None, None

    def _scaled(self, x: Numbers, weight: Value, bias: Value) -> Numbers:
        if weight is not None and bias is not None:
            return self.map("mul_add", x, weight, bias)
        x = x if weight is None else self.map("mul", x, weight)
        return x if bias is None else self.map("add", x, bias)

    def batch_norm(
        self, x: Value, weight: Value, bias: Value, mean: Tensor, variance: Tensor, *rest: Any
    ) -> tuple[Numbers, None, None]:
        """Normalise by stored statistics."""
        epsilon = float(rest[-1])
        if len(rest) == 3 and rest[0]:
            raise NotExpressible("a batch norm in training")
        scale = 1.0 / torch.sqrt(variance.double() + epsilon)
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale
        shift = shift if bias is None else shift + bias.double()
        further = (1,) * (self.all_elements(x).ndim - 2)
        shape = (1, -1, *further)
        return self._scaled(x, scale.reshape(shape), shift.reshape(shape)), None, None

    def linear(self, lines: Value, weight: Value, bias: Value = None) -> Numbers:
        """Multiply lines (..., K) by a constant (K, N), and add a bias (N,)."""
        if isinstance(weight, Numbers) or not isinstance(weight, Tensor):
            raise NotExpressible("a product of several rows")
        (rows,), whole = self.split(self.all_elements(lines), keep=1)
        shape = rows.shape[:-1]
        weight_NK = weight.detach().to(torch.float32).numpy().T
        plain = bias is not None and not isinstance(bias, Numbers) and bias.ndim == 1
        bias_N = bias.detach().to(torch.float32).numpy() if plain else None
        flat = self.builder.linear(rows.reshape(-1, rows.shape[-1]), weight_NK, bias_N)
        result = whole(flat.reshape(*shape, len(weight_NK)))
        return result if bias is None or plain else self.map("add", result, bias)

    def addmm(
        self, bias: Value, lines: Value, weight: Value, *, beta: float = 1, alpha: float = 1
    ) -> Numbers:
        """Return ``bias + lines @ weight``."""
        if (alpha, beta) != (1, 1):
            raise NotExpressible("a product with a factor")
        return self.linear(lines, weight, bias)

    def bmm(self, left: Value, right: Value) -> Numbers:
        """Multiply matrices within each row, or the rows by a constant matrix for each group."""
        if isinstance(left, Numbers) and isinstance(right, Tensor):
            groups = [
                self.linear(Numbers(lines), weight)
                for lines, weight in zip(left.elements, right, strict=True)
            ]
            return Numbers(np.stack([group.elements for group in groups]))
        left_el, right_el = self.all_elements(left), self.all_elements(right)
        own = left_el.shape[0] // _ROWS
        split = [x.reshape(_ROWS, own, *x.shape[1:]) for x in (left_el, right_el)]
        if own * _ROWS != left_el.shape[0] or not all(self._is_by_row(x) for x in split):
            raise NotExpressible("a product of several rows")
        result = self.builder.matmul(split[0][0], split[1][0])
        return Numbers(_for_rows(result).reshape(-1, *result.shape[1:]))

    def power(self, x: Value, exponent: Value) -> Numbers:
        """Raise to a constant power."""
        if not isinstance(x, Numbers):
            return self.map("exp", self.map("mul", exponent, math.log(float(x))))
        if isinstance(exponent, Numbers):
            return self.map("exp", self.map("mul", exponent, self.map("log", x)))
        known = {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal"}
        if isinstance(exponent, Tensor):
            raise NotExpressible("a power for each number")
        name = known.get(float(exponent))
        return self.map(name, x) if name else self.map("power", x, numbers=[float(exponent)])

    def clamp(self, x: Value, least: Any = None, most: Any = None) -> Numbers:
        """Bound numbers."""
        x = x if least is None else self.map("max", x, least)
        return x if most is None else self.map("min", x, most)

    def where(self, condition: Value, x: Value, y: Value) -> Numbers:
        """Choose by a condition; a constant one moves numbers only."""
        if isinstance(condition, Numbers):
            return self.map("where", condition, x, y)
        chosen = [self.all_elements(x), self.all_elements(y)]
        return Numbers(np.where(condition.numpy(), *chosen))

    def scaled(self, function: str, x: Value, y: Value, alpha: float = 1) -> Numbers:
        """Return ``x + alpha y`` or ``x - alpha y``."""
        return self.map(function, x, y if alpha == 1 else self.map("mul", y, float(alpha)))

    def elu(self, x: Value, alpha: float, scale: float, input_scale: float) -> Numbers:
        """Return the exponential linear unit."""
        if input_scale != 1:
            raise NotExpressible("an exponential unit with a scale of its input")
        unit = self.map("elu", x, numbers=[float(alpha)])
        return unit if scale == 1 else self.map("mul", unit, float(scale))

    def prelu(self, x: Value, weight: Value) -> Numbers:
        """Return the rectifier with a learned slope below zero."""
        return self.map("where", self.map("greater", x, 0.0), x, self.map("mul", x, weight))

    def softplus(self, x: Value, beta: float) -> Numbers:
        """Return ``log(1 + e^(beta x)) / beta``."""
        if beta == 1:
            return self.map("softplus", x)
        curve = self.map("softplus", self.map("mul", x, float(beta)))
        return self.map("mul", curve, 1.0 / float(beta))

    def hard_sigmoid(self, x: Value) -> Numbers:
        """Return ``x / 6 + 1/2``, bounded by 0 and 1."""
        return self.clamp(self.map("add", self.map("mul", x, 1.0 / 6.0), 0.5), 0.0, 1.0)

    def log_sigmoid(self, x: Value) -> tuple[Numbers, None]:
        """Return the logarithm of the logistic function."""
        return self.map("neg", self.map("softplus", self.map("neg", x))), None

    def extreme(self, function: str, x: Value, dim: Any, keepdim: bool) -> Any:
        """Return the largest or smallest number; of a dimension, as a pair without its index."""
        if isinstance(dim, Numbers | Tensor):
            return self.map(function, x, dim)
        result = self.reduce(function, x, dim, keepdim)
        return result if dim is None else (result, None)

    def baddbmm(self, bias: Value, left: Value, right: Value, beta: Any, alpha: Any) -> Numbers:
        """Return ``beta bias + alpha left @ right``, batch by batch."""
        product = self.bmm(left, right)
        product = product if alpha == 1 else self.map("mul", product, float(alpha))
        if beta == 0:
            return product
        return self.map("add", product, bias if beta == 1 else self.map("mul", bias, float(beta)))

    def looked_up(self, table: Tensor, indices: Sequence[Value]) -> Numbers:
        """Return rows of a constant by computed indices: a product with ones at the indices."""
        if len(indices) != 1 or not isinstance(indices[0], Numbers) or table.dim() != 2:
            raise NotExpressible("a look-up by several indices")
        return self.embedding(table, indices[0])

    def embedding(self, table: Value, indices: Value, *_: Any) -> Numbers:
        """Return rows of a constant table (P, D) by computed indices."""
        if isinstance(table, Numbers):
            raise NotExpressible("a look-up in what depends on the input")
        places = torch.arange(len(table), dtype=torch.float32)
        at_index = self.map("equal", Numbers(indices.elements[..., None]), places)
        return self.linear(at_index, table)

    def cumulative(self, x: Value, dim: int, **_: Any) -> Numbers:
        """Return the sums up to each number of a dimension."""
        elements = np.moveaxis(self.all_elements(x), dim, -1)
        steps = torch.triu(torch.ones(elements.shape[-1], elements.shape[-1]))
        return Numbers(np.moveaxis(self.linear(Numbers(elements), steps).elements, -1, dim))

    def converted(self, x: Numbers, dtype: torch.dtype | None) -> Numbers:
        """Return numbers of another type; all are float32 here, and conditions are 1 or 0."""
        if dtype not in (None, torch.float32, torch.bool):
            raise NotExpressible(f"a conversion to {dtype}")
        return self.map("not_equal", x, 0.0) if dtype == torch.bool else x

    def filled(self, x: Value, source: Value) -> Numbers:
        """Return the source's numbers in the shape of another tensor."""
        shape = x.elements.shape if isinstance(x, Numbers) else tuple(x.shape)
        return Numbers(np.broadcast_to(self.all_elements(source), shape))

    def gelu(self, x: Value, approximate: str = "none") -> Numbers:
        """Return the Gaussian error unit, or what approximates it by a hyperbolic tangent."""
        if approximate == "none":
            return self.map("gelu", x)
        cubed = self.map("mul", self.map("square", x), x)
        inner = self.map("add", x, self.map("mul", cubed, 0.044715))
        curve = self.map("tanh", self.map("mul", inner, math.sqrt(2.0 / math.pi)))
        return self.map("mul", self.map("mul", x, 0.5), self.map("add", curve, 1.0))


def _plain_copy(name: str, arguments: Sequence[Any]) -> str:
    """Return another name for what makes whole numbers or conditions floats: they are here."""
    is_whole = name == "_to_copy" and not arguments[0].is_floating_point()
    return "clone" if is_whole else name


def _rows_first(elements: Elements, first: tuple[int, ...], axis: int) -> Elements:
    """Return elements with the rows as first dimension, after parting the first one."""
    parted = elements.reshape(*first, *elements.shape[1:]) if first else elements
    return np.moveaxis(parted, axis, 0)


def _as_before(first: tuple[int, ...], axis: int, result: Elements) -> Numbers:
    """Return all rows of a result where :func:`_rows_first` found them."""
    parted = np.moveaxis(_for_rows(result), 0, axis)
    return Numbers(parted.reshape(-1, *parted.shape[2:]) if first else parted)


def _for_rows(elements: Elements) -> Elements:
    """Return the elements of all rows from those of one; constants are the same in each."""
    steps = np.arange(_ROWS).reshape(-1, *(1,) * elements.ndim) * _NEXT_ROW
    return np.where(elements >= 0, elements + steps, elements)


# Operations that move numbers, and do nothing else.
_MOVES = frozenset(
    [
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "squeeze"),
        *("unsqueeze", "slice", "select", "cat", "stack", "index", "index_select", "split"),
        *("unsafe_split", "unsafe_chunk"),
        *("split_with_sizes", "unbind", "clone", "alias", "detach", "flip", "repeat", "roll"),
        *("diagonal", "slice_scatter", "select_scatter", "lift_fresh_copy", "unfold"),
    ]
)
_OF_TYPE = ("dtype", "layout", "device", "pin_memory", "non_blocking")
# Their result does not depend on the numbers that they are given.
_SHAPED_LIKE = frozenset(
    ["zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full"]
)


def _unary(function: str) -> Callable[..., Numbers]:
    return lambda tracer, x, **_: tracer.map(function, x)


def _binary(function: str) -> Callable[..., Numbers]:
    return lambda tracer, x, y: tracer.map(function, x, y)


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{
        name: _unary(name)
        for name in (
            *("neg", "abs", "exp", "log", "log1p", "sqrt", "reciprocal", "sign", "relu"),
            *("sigmoid", "tanh", "silu", "erf", "sin", "cos", "square"),
        )
    },
    **{name: _binary(name) for name in ("mul", "div")},
    "add": lambda tracer, x, y, alpha=1: tracer.scaled("add", x, y, alpha),
    "sub": lambda tracer, x, y, alpha=1: tracer.scaled("sub", x, y, alpha),
    "rsub": lambda tracer, x, y, alpha=1: tracer.scaled("sub", y, x, alpha),
    "rsqrt": lambda tracer, x: tracer.map("reciprocal", tracer.map("sqrt", x)),
    "expm1": lambda tracer, x: tracer.map("elu", x, numbers=[1.0]),
    "_to_copy": lambda tracer, x, dtype=None, **_: tracer.converted(x, dtype),
    "copy": lambda tracer, x, source, *_: tracer.filled(x, source),
    "fill": lambda tracer, x, source: tracer.filled(x, source),
    "maximum": _binary("max"),
    "minimum": _binary("min"),
    "gt": _binary("greater"),
    "ge": _binary("greater_equal"),
    "lt": lambda tracer, x, y: tracer.map("greater", y, x),
    "le": lambda tracer, x, y: tracer.map("greater_equal", y, x),
    "eq": _binary("equal"),
    "ne": _binary("not_equal"),
    "logical_not": lambda tracer, x: tracer.map("equal", x, 0.0),
    "bitwise_not": lambda tracer, x: tracer.map("equal", x, 0.0),
    "logical_and": _binary("mul"),
    "bitwise_and": _binary("mul"),
    "logical_or": _binary("max"),
    "bitwise_or": _binary("max"),
    "where": _Tracer.where,
    "masked_fill": lambda tracer, x, mask, value: tracer.where(mask, value, x),
    "clamp": _Tracer.clamp,
    "clamp_min": _Tracer.clamp,
    "clamp_max": lambda tracer, x, most: tracer.clamp(x, None, most),
    "hardtanh": lambda tracer, x, least=-1.0, most=1.0: tracer.clamp(x, least, most),
    "pow": _Tracer.power,
    "gelu": _Tracer.gelu,
    "elu": lambda tracer, x, alpha=1.0, scale=1.0, input_scale=1.0: tracer.elu(
        x, alpha, scale, input_scale
    ),
    "leaky_relu": lambda tracer, x, slope=0.01: tracer.map("leaky_relu", x, numbers=[slope]),
    "_prelu_kernel": lambda tracer, x, weight: tracer.prelu(x, weight),
    "softplus": lambda tracer, x, beta=1, threshold=20: tracer.softplus(x, beta),
    "hardsigmoid": _Tracer.hard_sigmoid,
    "hardswish": lambda tracer, x: tracer.map("mul", x, tracer.hard_sigmoid(x)),
    "log_sigmoid_forward": _Tracer.log_sigmoid,
    # Without training, the mean of its slopes
    "rrelu_with_noise": lambda tracer, x, noise, least=1 / 8, most=1 / 3, *_: tracer.map(
        "leaky_relu", x, numbers=[(least + most) / 2]
    ),
    "sum": lambda tracer, x, dims=None, keepdim=False, **_: tracer.reduce("sum", x, dims, keepdim),
    "amax": lambda tracer, x, dims=None, keepdim=False: tracer.reduce("max", x, dims, keepdim),
    "amin": lambda tracer, x, dims=None, keepdim=False: tracer.reduce("min", x, dims, keepdim),
    "max": lambda tracer, x, dim=None, keepdim=False: tracer.extreme("max", x, dim, keepdim),
    "min": lambda tracer, x, dim=None, keepdim=False: tracer.extreme("min", x, dim, keepdim),
    "mean": _Tracer.mean,
    "var": _Tracer.variance,
    "logsumexp": _Tracer.logsumexp,
    "topk": _Tracer.top,
    "constant_pad_nd": _Tracer.pad,
    "convolution": _Tracer.convolution,
    "cumsum": _Tracer.cumulative,
    "embedding": _Tracer.embedding,
    "_softmax": _Tracer.softmax,
    "_log_softmax": _Tracer.log_softmax,
    "native_layer_norm": _Tracer.layer_norm,
    "native_batch_norm": _Tracer.batch_norm,
    "_native_batch_norm_legit": _Tracer.batch_norm,
    "_native_batch_norm_legit_no_training": _Tracer.batch_norm,
    "cudnn_batch_norm": _Tracer.batch_norm,
    "mm": _Tracer.linear,
    "addmm": _Tracer.addmm,
    "bmm": _Tracer.bmm,
    "baddbmm": lambda tracer, bias, x, y, beta=1, alpha=1: tracer.baddbmm(bias, x, y, beta, alpha),
}
