"""A formula over the scores of several heads and numbers of the items, to rank by."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, nearest, show_value
from widedeep.kernels.score import power, score_function

__all__ = ["Formula"]

Numbers = NDArray[np.float64]
ValueOf: TypeAlias = Callable[[str, str | None], Numbers]
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.divide,
    ast.Pow: power,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
# Function to how it is computed and the number of its arguments; None: two or more
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int | None]] = {
    "abs": (np.abs, 1),
    "exp": (partial(score_function, "exp"), 1),
    "log": (partial(score_function, "log"), 1),
    "log1p": (partial(score_function, "log1p"), 1),
    "sqrt": (np.sqrt, 1),
    "min": (lambda *values: np.minimum.reduce(np.broadcast_arrays(*values)), None),
    "max": (lambda *values: np.maximum.reduce(np.broadcast_arrays(*values)), None),
}
# Operation to its step in a program
_STEPS: Mapping[object, str] = {
    **{ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"},
    **{ast.Pow: "power", ast.USub: "negate", "abs": "absolute", "sqrt": "root"},
    **{"min": "minimum", "max": "maximum", "exp": "exp", "log": "log", "log1p": "log1p"},
}
_ALLOWED = (
    f"names, numbers, + - * / **, brackets, and the functions {', '.join(sorted(_FUNCTIONS))}"
)
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class FormulaProgram:
    """A formula as steps of a stack machine, for the native server."""

    steps: list[tuple[str, int, float]]  # Kind, index of a head or column, value of a constant
    columns: list[str]  # The columns of an item's numbers that it reads


class Formula:
    """Arithmetic over names, computed item by item in float64.

    Args:
        text: Names (of heads, or of columns of the items), numbers, ``+ - * / **``, brackets, and
            ``abs exp log log1p sqrt min max``. A class of a multi-class head is
            ``head["class"]``.

    Attributes:
        text: The formula as it was given.
        names: The names in it, each once, in the order of their first use.

    Raises:
        ConfigError: If it is no such formula, or names nothing.

    Example:
        >>> import numpy as np
        >>> formula = Formula("click * buy * log1p(price)")
        >>> formula.names
        ('click', 'buy', 'price')
        >>> values = {"click": [0.1, 0.2], "buy": [0.5, 0.5], "price": [0.0, 1.0]}
        >>> formula.values(lambda name, class_name: np.array(values[name])).round(4).tolist()
        [0.0, 0.0693]
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise ConfigError(
                f"rank_by: got {len(text):,} characters, expected at most {_LONGEST:,}"
            )
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refusal(show_value(text), getattr(error, "msg", str(error))) from error
        references = list(self._references(self._tree))
        self.names = tuple(dict.fromkeys(name for name, _ in references))
        if not self.names:
            raise self._refusal(show_value(text), "it names no head")
        self.classes = {name: label for name, label in references if label is not None}

    def __repr__(self) -> str:
        return f"Formula({self.text!r})"

    def _refusal(self, got: str, reason: str) -> ConfigError:
        return ConfigError(f"rank_by: got {got} ({reason}), expected {_ALLOWED}")

    def _references(self, node: ast.expr) -> Iterator[tuple[str, str | None]]:
        """Yield each name, with the class asked for; refuse everything that is no arithmetic."""
        match node:
            case ast.Name(id=name):
                yield name, None
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(label))):
                yield name, label
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                return
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                if isinstance(op, ast.Div) and isinstance(right, ast.Constant) and not right.value:
                    raise self._refusal(self._source(node), "it divides by zero")
                yield from self._references(left)
                yield from self._references(right)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
                yield from self._references(operand)
            case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]):
                self._check_call(node, function, len(arguments))
                for argument in arguments:
                    yield from self._references(argument)
            case _:
                raise self._refusal(self._source(node), "no arithmetic")

    def _check_call(self, node: ast.expr, function: str, arguments: int) -> None:
        if function not in _FUNCTIONS:
            raise self._refusal(self._source(node), nearest(function, _FUNCTIONS))
        expected = _FUNCTIONS[function][1]
        if arguments != expected and (expected is not None or arguments < 2):
            least = "two or more arguments" if expected is None else f"{expected} argument"
            raise self._refusal(self._source(node), f"{function} takes {least}")

    def _source(self, node: ast.expr) -> str:
        return show_value(ast.get_source_segment(self.text.strip(), node) or self.text)

    def values(self, value_of: ValueOf) -> Numbers:
        """Return the formula's value of each item; NaN where it has none.

        A division by zero, a logarithm of a negative number, an overflow or a missing number have
        no value.

        Args:
            value_of: Function from a name, and the class asked for, to its values (B,).
        """
        return self._values(self._tree, value_of)

    def program(self, heads: Mapping[str, int | None]) -> FormulaProgram | None:
        """Return steps that compute the same bits; None for a head that they do not know.

        Args:
            heads: Index of each head among those that the steps know; None for another head.
        """
        program = FormulaProgram([], [])
        return program if self._add_steps(self._tree, program, heads) else None

    def _add_steps(
        self,
        node: ast.expr,
        program: FormulaProgram,
        heads: Mapping[str, int | None],
    ) -> bool:
        match node:
            case _ if not any(self._references(node)):
                value = float(self._values(node, _no_values))
                program.steps.append(("constant", 0, value))
                return True
            case ast.Name(id=name) if name not in heads:
                if name not in program.columns:
                    program.columns.append(name)
                program.steps.append(("column", program.columns.index(name), 0.0))
                return True
            case ast.Name(id=name) if heads[name] is not None:
                program.steps.append(("head", heads[name] or 0, 0.0))
                return True
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._add_steps(operand, program, heads)
        operation, operands = _operation(node)
        if operation not in _STEPS:
            return False
        for index, operand in enumerate(operands):
            if not self._add_steps(operand, program, heads):
                return False
            if index or len(operands) == 1:
                program.steps.append((_STEPS[operation], 0, 0.0))
        return True

    def _values(self, node: ast.expr, value_of: ValueOf) -> Numbers:
        with np.errstate(all="ignore"):
            return self._evaluate(node, value_of)

    def _evaluate(self, node: ast.expr, value_of: ValueOf) -> Numbers:
        values = np.asarray(self._computed(node, value_of), dtype=np.float64)
        # Here, not at the end: one by infinity would be 0.
        return np.where(np.isfinite(values), values, np.nan)

    def _computed(self, node: ast.expr, value_of: ValueOf) -> Any:
        match node:
            case ast.Name(id=name):
                return value_of(name, None)
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=label)):
                return value_of(name, str(label))
            case ast.Constant(value=number):
                return np.float64(number)  # type: ignore[arg-type]  # checked above
            case ast.BinOp(left=left, op=op, right=right):
                operands = (self._evaluate(side, value_of) for side in (left, right))
                return _OPERATORS[type(op)](*operands)
            case ast.UnaryOp(op=op, operand=operand):
                return _SIGNS[type(op)](self._evaluate(operand, value_of))
            case ast.Call(func=ast.Name(id=function), args=arguments):
                compute, _ = _FUNCTIONS[function]
                return compute(*(self._evaluate(argument, value_of) for argument in arguments))
        raise AssertionError(node)  # refused when the formula was read


def _no_values(name: str, label: str | None) -> Numbers:
    raise AssertionError(name)  # a formula without names asks for none


def _operation(node: ast.expr) -> tuple[object, list[ast.expr]]:
    """Return a node's operation, as ``_STEPS`` names it, and its operands."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return type(op), [left, right]
        case ast.UnaryOp(op=op, operand=operand):
            return type(op), [operand]
        case ast.Call(func=ast.Name(id=function), args=arguments):
            return function, arguments
    return None, []
