"""From operations on tensors to a bundle's program, split into the query's and the item's part.

A tensor is an array of numbers ("elements") that stand for a row's numbers, so that whatever moves
data (views, permutations, slices, concatenations) is done on these arrays and costs nothing later.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.program import DIMS, Operation, Program, View

Elements: TypeAlias = NDArray[np.int64]
"""Element e >= 0: a number of a value; -1 - c: number c of the constants."""

Pattern: TypeAlias = list[tuple[int, NDArray[np.int64]]]
"""The columns of each stage in a line."""

QUERY, ITEM, PAIR, CONSTANT = 0, 1, 2, 3
_MOST_PATTERNS = 8
_FEW_OUTPUTS = 4
_SIGNS = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "add3": (1.0, 1.0, 1.0)}
_FUSED = {"add": "add_relu", "add3": "add3_relu"}


class ProgramBuilder:
    """Adds operations; their results are elements again.

    An operation on numbers of the query alone belongs to the query, on the item's alone to the
    item. Sums over both (linear operations too) are split: the query's part, then the item's, then
    the rest. What is linear in a sum of both is taken of its terms, ``W (q - i) = W q - W i``; and
    a weighted sum of a cross layer ``x + a * (L x)``, with ``a`` of no pair, as ``(w + L' (w * a))
    . x``, whose first factor is linear in ``a``: the last one costs a candidate no matrix.
    """

    def __init__(self, input_sizes: Sequence[int]) -> None:
        self._input_sizes = tuple(input_sizes)
        self._sizes: list[int] = []
        self._stages: list[int] = []
        self._starts: list[int] = []
        self._operations: dict[int, Operation] = {}
        self._constants: dict[int, NDArray[np.float32]] = {}
        self._known: dict[bytes, int] = {}
        self._tensors: dict[str, NDArray[np.float32]] = {}
        self._pool: list[NDArray[np.float32]] = []
        self._pool_size = 0
        self._gathers: dict[bytes, int] = {}
        # By the value that it is: terms with their signs; both factors; a linear operation
        self._sums: dict[int, list[tuple[float, Elements]]] = {}
        self._products: dict[int, tuple[Elements, Elements]] = {}
        self._layers: dict[bytes, tuple[Elements, NDArray[np.float32], Any]] = {}
        for stage, size in enumerate(input_sizes):
            self._add_value(stage, size)

    # ---- values and constants -------------------------------------------------------------------

    def _add_value(self, stage: int, size: int) -> int:
        start = self._starts[-1] + self._sizes[-1] if self._starts else 0
        self._starts.append(start)
        self._sizes.append(size)
        self._stages.append(stage)
        return len(self._sizes) - 1

    def elements(self, value: int) -> Elements:
        """Return the elements of a value, (size,)."""
        return np.arange(self._starts[value], self._starts[value] + self._sizes[value])

    def constant(self, numbers: NDArray[np.float32]) -> Elements:
        """Return elements that stand for constants, of their shape."""
        flat = np.ascontiguousarray(numbers, np.float32).reshape(-1)
        start, self._pool_size = self._pool_size, self._pool_size + flat.size
        self._pool.append(flat)
        return (-1 - np.arange(start, self._pool_size)).reshape(np.shape(numbers))

    def constant_values(self, elements: Elements) -> NDArray[np.float32]:
        """Return the numbers that constant elements stand for."""
        if len(self._pool) > 1:
            self._pool = [np.concatenate(self._pool)]
        pool = self._pool[0] if self._pool else np.zeros(0, np.float32)
        return pool[-1 - elements]

    def _values_of(self, elements: Elements) -> NDArray[np.int64]:
        """Return the value that each element (not constant) belongs to."""
        return np.searchsorted(np.array(self._starts), elements, side="right") - 1

    def _stages_of(self, elements: Elements) -> NDArray[np.int64]:
        stages = np.full(elements.shape, CONSTANT)
        varies = elements >= 0
        # Of several values that start at one place, all but the last are empty.
        stages[varies] = np.array(self._stages)[self._values_of(elements[varies])]
        return stages

    # ---- views ----------------------------------------------------------------------------------

    def _strided(self, elements: Elements) -> tuple[int, int, list[int]] | None:
        """Return value, offset and strides of elements that are a strided view of one value."""
        first = int(elements.flat[0])
        if first < 0:
            return None
        value = int(self._values_of(np.array([first]))[0])
        start, size = self._starts[value], self._sizes[value]
        strides, expected = [], np.full((1,) * elements.ndim, first)
        for axis, length in enumerate(elements.shape):
            index = [0] * elements.ndim
            index[axis] = min(1, length - 1)
            stride = int(elements[tuple(index)]) - first
            strides.append(stride)
            steps = np.arange(length) * stride
            expected = expected + steps.reshape(
                [-1 if a == axis else 1 for a in range(elements.ndim)]
            )
        inside = (
            first - start + sum(s * (n - 1) for s, n in zip(strides, elements.shape, strict=True))
        )
        fits = min(strides, default=0) >= 0 and inside < size and np.array_equal(elements, expected)
        return (value, first - start, strides) if fits else None

    def _constant_view(self, elements: Elements) -> tuple[int, int, list[int]]:
        numbers = self.constant_values(elements)
        for axis in range(numbers.ndim):
            first = numbers.take([0], axis=axis)
            if numbers.shape[axis] > 1 and (numbers == first).all():
                numbers = first
        value = self._constant(numbers)
        strides, step = [0] * numbers.ndim, 1
        for axis in reversed(range(numbers.ndim)):
            strides[axis] = step if numbers.shape[axis] > 1 else 0
            step *= numbers.shape[axis]
        return value, 0, strides

    def _constant(self, numbers: NDArray[np.float32]) -> int:
        flat = np.ascontiguousarray(numbers).reshape(-1)
        key = flat.tobytes()
        if key not in self._known:
            self._known[key] = self._add_value(CONSTANT, flat.size)
            self._constants[self._known[key]] = flat
        return self._known[key]

    def _view(self, elements: Elements, stage: int) -> tuple[int, int, list[int]]:
        """Return a view of these elements, gathered first where they do not lie in strides."""
        if (elements < 0).all():
            return self._constant_view(elements)
        view = self._strided(elements)
        if view is not None:
            return view
        gathered = self.elements(self._gather(elements.reshape(-1), stage))
        view = self._strided(gathered.reshape(elements.shape))
        assert view is not None
        return view

    def _gather(self, elements: Elements, stage: int) -> int:
        """Return a value of a stage (or of its own, if it is uniform) that holds these elements."""
        key = stage.to_bytes(1, "little") + elements.tobytes()
        if key in self._gathers:
            return self._gathers[key]
        value = self._whole_value(elements, stage)
        if value is None:
            pieces = self._segments(elements)
            operation = Operation(kind="gather", stage=stage, inputs=tuple(pieces))
            value = self._add(operation, elements.size)
        self._gathers[key] = value
        return value

    def _whole_value(self, elements: Elements, stage: int) -> int | None:
        view = self._strided(elements)
        if view is None or view[1] != 0 or (view[2] != [1] and elements.size > 1):
            return None
        whole = self._sizes[view[0]] == elements.size and self._stages[view[0]] == stage
        return view[0] if whole else None

    def _segments(self, elements: Elements) -> list[View]:
        is_constant = elements < 0
        sources = np.full(elements.size, -1)
        places = np.zeros(elements.size, np.int64)
        if is_constant.any():
            value = self._constant(self.constant_values(elements[is_constant]))
            sources[is_constant] = value
            places[is_constant] = np.arange(int(is_constant.sum()))
        values = self._values_of(elements[~is_constant])
        sources[~is_constant] = values
        places[~is_constant] = elements[~is_constant] - np.array(self._starts)[values]
        breaks = (np.diff(sources) != 0) | (np.diff(places) != 1)
        firsts = np.flatnonzero(np.concatenate([[True], breaks]))
        lengths = np.diff(np.append(firsts, elements.size))
        return [
            (int(sources[first]), int(places[first]), (int(length),))
            for first, length in zip(firsts, lengths, strict=True)
        ]

    def _add(self, operation: Operation, size: int) -> int:
        value = self._add_value(operation.stage, size)
        self._operations[value] = operation
        return value

    # ---- operations -----------------------------------------------------------------------------

    def map(self, function: str, *operands: Elements, numbers: Sequence[float] = ()) -> Elements:
        """Apply a function to each number; operands are broadcast."""
        operands = tuple(np.broadcast_arrays(*operands))
        if function == "mul":
            for one, other in (operands, operands[::-1]):
                if (one < 0).all() and (self.constant_values(one) == 1).all():
                    return other
        stages = self._joined([self._stages_of(operand) for operand in operands])
        found = np.unique(stages)
        if len(found) == 1:
            return self._map(function, int(found[0]), operands, numbers)
        result = np.empty(stages.shape, np.int64)
        for stage in found.tolist():
            mask = stages == stage
            pieces = tuple(operand[mask] for operand in operands)
            result[mask] = self._map(function, stage, pieces, numbers)
        return result

    @staticmethod
    def _joined(stages: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        joined = stages[0]
        for other in stages[1:]:
            differ = np.where(joined == other, joined, PAIR)
            joined = np.where(
                joined == CONSTANT, other, np.where(other == CONSTANT, joined, differ)
            )
        return joined

    def _map(
        self,
        function: str,
        stage: int,
        operands: tuple[Elements, ...],
        numbers: Sequence[float],
    ) -> Elements:
        stage = PAIR if stage == CONSTANT else stage
        shape = operands[0].shape
        views = [self._view(operand, stage) for operand in operands]
        dims, strides = _collapsed(list(shape), [view[2] for view in views])
        if len(dims) > DIMS:
            flat = tuple(operand.reshape(-1) for operand in operands)
            return self._map(function, stage, flat, numbers).reshape(shape)
        inputs = tuple(
            (value, offset, _padded(own, 0))
            for (value, offset, _), own in zip(views, strides, strict=True)
        )
        operation = Operation(
            kind="map",
            stage=stage,
            function=function,
            dims=_padded(dims, 1),
            inputs=inputs,
            numbers=tuple(numbers),
        )
        value = self._add(operation, math.prod(shape))
        if stage == PAIR and function in _SIGNS:
            terms = (operand.reshape(-1) for operand in operands)
            self._sums[value] = list(zip(_SIGNS[function], terms, strict=True))
        elif stage == PAIR and function == "mul":
            self._products[value] = operands[0].reshape(-1), operands[1].reshape(-1)
        return self.elements(value).reshape(shape)

    def reduce(self, function: str, elements: Elements) -> Elements:
        """Reduce the last dimension by ``"sum"``, ``"max"`` or ``"min"``."""
        shape = elements.shape[:-1]
        lines = elements.reshape(-1, elements.shape[-1])
        result = np.empty(len(lines), np.int64)
        for rows, pattern in self._patterns(lines):
            own = elements if len(rows) == len(lines) else lines[rows]
            parts = []
            for stage, columns in pattern:
                piece = own[..., columns]
                parts.append(self._reduce(function, stage, piece).reshape(-1))
            result[rows] = self._combined(function, parts)
        return result.reshape(shape)

    def _patterns(
        self, lines: Elements
    ) -> list[tuple[NDArray[np.int64], list[tuple[int, Elements]]]]:
        """Group lines by whose their numbers are: lines, and the columns of each stage."""
        stages = self._stages_of(lines)
        stages[stages == CONSTANT] = PAIR
        unique, inverse = np.unique(stages, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        if len(unique) > _MOST_PATTERNS:
            return [(np.arange(len(lines)), [(PAIR, np.arange(lines.shape[1]))])]
        groups = []
        for index, pattern in enumerate(unique):
            columns = [(s, np.flatnonzero(pattern == s)) for s in (QUERY, ITEM, PAIR)]
            groups.append((np.flatnonzero(inverse == index), [c for c in columns if c[1].size]))
        return groups

    def _combined(self, function: str, parts: list[Elements]) -> Elements:
        function = "add" if function == "sum" else function
        if len(parts) == 3 and function == "add":
            return self.map("add3", *parts)
        total = parts[0]
        for part in parts[1:]:
            total = self.map(function, total, part)
        return total

    def _reduce(self, function: str, stage: int, elements: Elements) -> Elements:
        if elements.shape[-1] == 1:
            return elements[..., 0]
        return self._fold("reduce", function, stage, elements, 0)[..., 0]

    def top(self, elements: Elements, count: int) -> Elements:
        """Return the largest numbers of the last dimension, in falling order."""
        stages = np.unique(self._stages_of(elements))
        stages = stages[stages != CONSTANT]
        stage = int(stages[0]) if len(stages) == 1 else PAIR
        return self._fold("top", "", stage, elements, count)

    def _fold(
        self, kind: Literal["reduce", "top"], function: str, stage: int, x: Elements, count: int
    ) -> Elements:
        view = self._view(x, stage)
        outer, strides = _collapsed(list(x.shape[:-1]), [view[2][:-1]])
        if len(outer) > DIMS - 1:
            lines = self.elements(self._gather(x.reshape(-1), stage)).reshape(-1, x.shape[-1])
            return self._fold(kind, function, stage, lines, count).reshape(*x.shape[:-1], -1)
        operation = Operation(
            kind=kind,
            stage=stage,
            function=function,
            dims=(*_padded(outer, 1, DIMS - 1), x.shape[-1]),
            inputs=((view[0], view[1], (*_padded(strides[0], 0, DIMS - 1), view[2][-1])),),
            count=count,
        )
        shape = (*x.shape[:-1], max(count, 1))
        return self.elements(self._add(operation, math.prod(shape))).reshape(shape)

    def linear(
        self, lines: Elements, weight_NK: NDArray[np.float32], bias_N: NDArray[np.float32] | None
    ) -> Elements:
        """Multiply lines (M, K) by a constant matrix and add a bias: (M, N)."""
        result = None
        if len(lines) == 1 and len(weight_NK) <= _FEW_OUTPUTS:
            result = self._with_product(lines[0], weight_NK, bias_N)
        if result is None:
            result = self._plain_linear(lines, weight_NK, bias_N)
        if len(lines) == 1:
            self._layers[result.tobytes()] = lines[0], weight_NK, bias_N
        return result

    def _plain_linear(
        self, lines: Elements, weight_NK: NDArray[np.float32], bias_N: NDArray[np.float32] | None
    ) -> Elements:
        own, own_weight, own_bias = self._by_terms(lines, weight_NK, bias_N)
        result = np.empty((len(lines), len(weight_NK)), np.int64)
        for rows, pattern in self._patterns(own):
            result[rows] = self._linear(own[rows], pattern, own_weight, own_bias)
        return result

    def _terms(self, elements: Elements) -> list[tuple[float, Elements]] | None:
        """Return terms of no pair whose signed sum a line of elements is, or None."""
        if not (self._stages_of(elements) == PAIR).any():
            return [(1.0, elements)]
        values = np.unique(self._values_of(elements[elements >= 0]))
        if len(values) > 1 or (elements < 0).any() or int(values[0]) not in self._sums:
            return None
        places = elements - self._starts[values[0]]
        terms = []
        for sign, term in self._sums[int(values[0])]:
            own = self._terms(term[places])
            if own is None:
                return None
            terms += [(sign * other, x) for other, x in own]
        return terms

    def _by_terms(
        self, lines: Elements, weight_NK: NDArray[np.float32], bias_N: NDArray[np.float32] | None
    ) -> tuple[Elements, NDArray[np.float32], NDArray[np.float32] | None]:
        """Replace the columns that are sums over query and item by their terms.

        Columns with the same elements become one, and constants a part of the bias.
        """
        columns: dict[bytes, tuple[Elements, NDArray[np.float64]]] = {}
        bias = np.zeros(len(weight_NK)) if bias_N is None else bias_N.astype(np.float64)
        for column, weight_N in zip(lines.T, weight_NK.T.astype(np.float64), strict=True):
            for sign, term in self._terms(column) or [(1.0, column)]:
                if (term < 0).all():
                    numbers = self.constant_values(term)
                    if (numbers == numbers[0]).all():
                        bias = bias + sign * weight_N * numbers[0]
                        continue
                key = term.tobytes()
                before = columns[key][1] if key in columns else 0.0
                columns[key] = term, before + sign * weight_N
        if not columns:
            return lines, weight_NK, bias_N
        weight = np.stack([own for _, own in columns.values()], axis=1).astype(np.float32)
        own_bias = bias.astype(np.float32) if bias_N is not None or bias.any() else None
        return np.stack([term for term, _ in columns.values()], axis=1), weight, own_bias

    def _with_product(
        self, line_K: Elements, weight_NK: NDArray[np.float32], bias_N: NDArray[np.float32] | None
    ) -> Elements | None:
        """Return the sums (1, N) of a line with a cross layer ``x + a * (L x + b)``, or None."""
        for value, terms in self._sums.items():
            size, first = self._sizes[value], np.flatnonzero(line_K == self._starts[value])
            span = np.arange(size) + (first[0] if len(first) else len(line_K))
            is_plain = len(terms) == 2 and terms[0][0] == terms[1][0] == 1
            if not is_plain or span[-1] >= len(line_K):
                continue
            if not np.array_equal(line_K[span], self.elements(value)):
                continue
            for (_, x), (_, product) in itertools.permutations(terms):
                sums_N = self._product_sums(x, product, weight_NK[:, span])
                if sums_N is None:
                    continue
                rest, weight_NR = np.delete(line_K, span), np.delete(weight_NK, span, axis=1)
                if len(rest):
                    others = self._plain_linear(rest[None], weight_NR, bias_N)
                    return self.map("add", others, sums_N)
                bias = np.zeros(len(weight_NK), np.float32) if bias_N is None else bias_N
                return self.map("add", sums_N[None], self.constant(bias))
        return None

    def _product_sums(
        self, x: Elements, product: Elements, weight_NJ: NDArray[np.float32]
    ) -> Elements | None:
        """Return ``sum_j w_j (x + a * (L x + b))_j`` for each row of weights, if a is of no pair.

        It is ``(w + L' (w * a)) . x + (w * b) . a``, whose first factor is linear in a.
        """
        value = int(self._values_of(product[:1])[0]) if product[0] >= 0 else -1
        if value not in self._products or not np.array_equal(product, self.elements(value)):
            return None
        for a, layer in itertools.permutations(self._products[value]):
            if layer.tobytes() not in self._layers or (self._stages_of(a) == PAIR).any():
                continue
            source, weight_JK, bias_J = self._layers[layer.tobytes()]
            while source.tobytes() in self._layers and self._layers[source.tobytes()][2] is None:
                source, inner, _ = self._layers[source.tobytes()]
                weight_JK = weight_JK @ inner
            if not np.array_equal(source, x) or self._terms(x) is not None:
                return None
            sums = []
            for weight_J in weight_NJ:
                factor = self._plain_linear(a[None], (weight_JK * weight_J[:, None]).T, weight_J)
                sums.append(self.reduce("sum", self.map("mul", x, factor[0])))
            total = np.stack(sums)
            if bias_J is None:
                return total
            shift = self._plain_linear(a[None], weight_NJ * bias_J, None)
            return self.map("add", total, shift[0])
        return None

    def _linear(
        self,
        lines: Elements,
        pattern: Pattern,
        weight_NK: NDArray[np.float32],
        bias_N: NDArray[np.float32] | None,
    ) -> Elements:
        last = pattern[-1][0]
        parts = []
        for stage, columns in pattern:
            own = bias_N if len(pattern) == 1 or (stage == last == PAIR) else None
            parts.append(self._layer(stage, lines[:, columns], weight_NK[:, columns], own))
        if len(parts) > 1 and last != PAIR and bias_N is not None:
            parts.append(np.broadcast_to(self.constant(bias_N), parts[0].shape))
        return self._combined("sum", parts)

    def _layer(
        self,
        stage: int,
        lines: Elements,
        weight_NK: NDArray[np.float32],
        bias_N: NDArray[np.float32] | None,
    ) -> Elements:
        tensors = [self._tensor(weight_NK)]
        if bias_N is not None:
            tensors.append(self._tensor(bias_N))
        own, places = np.unique(lines, axis=0, return_inverse=True)
        if len(own) == len(lines):
            own, places = lines, np.arange(len(lines))
        operation = Operation(
            kind="linear",
            stage=stage,
            inputs=((self._gather(own.reshape(-1), stage), 0, ()),),
            tensors=tuple(tensors),
        )
        shape = (len(own), len(weight_NK))
        result = self.elements(self._add(operation, math.prod(shape))).reshape(shape)
        return result[places.reshape(-1)]

    def _tensor(self, array: NDArray[np.float32]) -> str:
        array = np.ascontiguousarray(array, np.float32)
        name = f"program/{len(self._tensors)}"
        self._tensors[name] = array
        return name

    def matmul(self, left: Elements, right: Elements) -> Elements:
        """Multiply (b, m, k) by (b, k, n) within a row: (b, m, n)."""
        stages = {*np.unique(self._stages_of(left)), *np.unique(self._stages_of(right))}
        stages -= {CONSTANT}
        stage = int(stages.pop()) if len(stages) == 1 else PAIR
        b, m, k = left.shape
        n = right.shape[2]
        left_view, right_view = self._view(left, stage), self._view(right, stage)
        if n > 1 and right_view[2][2] != 1:  # the native product walks along lines
            value = self._gather(self.map("copy", right).reshape(-1), stage)
            right_view = self._view(self.elements(value).reshape(right.shape), stage)
        operation = Operation(
            kind="matmul",
            stage=stage,
            dims=(b, m, k, n),
            inputs=tuple((v, o, _padded_last(s)) for v, o, s in (left_view, right_view)),
        )
        return self.elements(self._add(operation, b * m * n)).reshape(b, m, n)

    # ---- the end --------------------------------------------------------------------------------

    def finish(
        self, output: Elements, shares: Mapping[str, Elements] = MappingProxyType({})
    ) -> tuple[Program, dict[str, NDArray[np.float32]]]:
        """Return the program that computes these elements, and its tensors by name."""
        ends = [
            self._add(
                Operation(kind="gather", stage=PAIR, inputs=tuple(self._segments(x.reshape(-1)))),
                x.size,
            )
            for x in (output, *shares.values())
        ]
        self._fuse_products(self._used_from(ends))
        self._fuse_rectifiers(self._used_from(ends))
        used = self._used_from(ends)
        constants = [value for value in self._constants if value in used]
        operations = [value for value in self._operations if value in used]
        numbers = {0: 0, 1: 1, 2: 2}
        numbers |= {value: 3 + i for i, value in enumerate([*constants, *operations])}
        tensors: dict[str, NDArray[np.float32]] = {}
        renamed: dict[str, str] = {}
        for name in (n for v in operations for n in self._operations[v].tensors):
            if name not in renamed:
                renamed[name] = f"program/{len(renamed)}"
                tensors[renamed[name]] = self._tensors[name]
        names = tuple(f"program/constant/{i}" for i in range(len(constants)))
        tensors |= {n: self._constants[v] for n, v in zip(names, constants, strict=True)}
        program = Program(
            input_sizes=self._input_sizes,
            constants=names,
            operations=tuple(
                _renumbered(self._operations[v], numbers, renamed) for v in operations
            ),
            output=numbers[ends[0]],
            shares={n: numbers[end] for n, end in zip(shares, ends[1:], strict=True)},
            tensors={name: array.shape for name, array in tensors.items()},
        )
        return program, tensors

    def _used_from(self, ends: Sequence[int]) -> dict[int, int]:
        """Return how many views read each value that the last ones need."""
        used = dict.fromkeys(ends, 1)
        for value in sorted(self._operations, reverse=True):
            if value in used:
                for view in self._operations[value].inputs:
                    used[view[0]] = used.get(view[0], 0) + 1
        return used

    def _fuse_products(self, used: dict[int, int]) -> None:
        """Let a sum compute the product that it alone reads."""
        for value, operation in list(self._operations.items()):
            if value not in used or operation.function != "add":
                continue
            for place, (source, offset, strides) in enumerate(operation.inputs):
                before = self._operations.get(source)
                if before is None or used[source] != 1 or before.function != "mul":
                    continue
                whole = offset == 0 and strides == _row_major(operation.dims)
                if before.stage != operation.stage or not whole:
                    continue
                other = operation.inputs[1 - place]
                joined = _in_dims(operation.dims, [other], before.dims, before.inputs)
                if math.prod(before.dims) == math.prod(operation.dims) and joined is not None:
                    dims, (addend, *factors) = joined
                    inputs = (*factors, addend)
                    fused = replace(operation, function="mul_add", dims=dims, inputs=inputs)
                    self._operations[value] = fused
                    break

    def _fuse_rectifiers(self, used: dict[int, int]) -> None:
        """Let the operation before a rectifier do its work, where nothing else reads its result."""
        for value, operation in list(self._operations.items()):
            if value not in used or operation.function != "relu" or operation.kind != "map":
                continue
            ((source, offset, strides),) = operation.inputs
            before = self._operations.get(source)
            whole = offset == 0 and operation.dims == (1, 1, 1, self._sizes[source])
            if before is None or used[source] != 1 or not whole or strides[3] not in (0, 1):
                continue
            if before.stage != operation.stage:
                continue
            if before.kind == "linear" and not before.function:
                self._operations[value] = replace(before, function="relu")
            elif before.kind == "map" and before.function in _FUSED:
                self._operations[value] = replace(before, function=_FUSED[before.function])


def _collapsed(dims: list[int], strides: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring dimensions that all operands walk through as one; drop those of one."""
    merged_dims: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, length in enumerate(dims):
        if length == 1:
            continue
        own = [operand[axis] for operand in strides]
        joins = bool(merged_dims) and all(
            before[-1] == stride * length for before, stride in zip(merged, own, strict=True)
        )
        if joins:
            merged_dims[-1] *= length
        else:
            merged_dims.append(length)
        for before, stride in zip(merged, own, strict=True):
            if joins:
                before[-1] = stride
            else:
                before.append(stride)
    return merged_dims, merged


def _row_major(dims: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of numbers side by side; 0 for dimensions of one."""
    steps = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    return tuple(step if n > 1 else 0 for step, n in zip(steps, dims, strict=True))


def _in_dims(
    dims: tuple[int, ...], views: Sequence[View], other: tuple[int, ...], others: Sequence[View]
) -> tuple[tuple[int, ...], list[View]] | None:
    """Return the dimensions and views of two operations over the same numbers as one's."""

    def expanded(view: View, to: tuple[int, ...]) -> View:
        return view[0], view[1], tuple(view[2][-1] * step for step in _row_major(to))

    if dims == other:
        return dims, [*views, *others]
    if max(dims) == math.prod(dims):
        return other, [*(expanded(view, other) for view in views), *others]
    if max(other) == math.prod(other):
        return dims, [*views, *(expanded(view, dims) for view in others)]
    return None


def _padded(numbers: Sequence[int], fill: int, length: int = DIMS) -> tuple[int, ...]:
    return (*(fill,) * (length - len(numbers)), *numbers)


def _padded_last(strides: Sequence[int]) -> tuple[int, ...]:
    return (*strides, *(0,) * (DIMS - len(strides)))


def _renumbered(operation: Operation, numbers: dict[int, int], names: dict[str, str]) -> Operation:
    inputs = tuple((numbers[value], offset, rest) for value, offset, rest in operation.inputs)
    return replace(operation, inputs=inputs, tensors=tuple(names[n] for n in operation.tensors))
