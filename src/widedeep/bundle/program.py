"""Program: a model's towers as operations that the native scorer computes row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import BundleError
from widedeep.kernels import ScoreProgram, Scorer

View: TypeAlias = tuple[int, int, tuple[int, ...]]
"""A value, an offset into it, and a stride for each dimension of the operation."""

STAGES = ("query", "item", "pair")
DIMS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One operation; its result is the next value.

    Args:
        kind: ``"map"``: a function of each number; ``"reduce"``: over the last dimension;
            ``"top"``: the largest numbers of the last dimension, in falling order; ``"matmul"``:
            products within a row, dimensions (b, m, k, n), views (b, m, k) and (b, k, n);
            ``"linear"``: a dense layer; ``"gather"``: pieces of values side by side.
        stage: Owner of the result: the query (0), the item (1), or the pair of both (2).
        function: The function of a map or reduction, the activation of a linear operation.
        dims: Four dimensions of a map, reduction or product.
        inputs: Views. Of a gather, ``(value, first number, (length,))``.
        numbers: Parameters of a map.
        count: How many numbers of each line ``"top"`` takes.
        tensors: Weight (outputs, inputs) and bias (outputs,), if any, of a linear operation.
    """

    kind: Literal["map", "reduce", "top", "matmul", "linear", "gather"]
    stage: int
    inputs: tuple[View, ...]
    function: str = ""
    dims: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    tensors: tuple[str, ...] = ()
    count: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        return {
            key: value
            for key, value in asdict(self).items()
            if value not in ("", (), 0) or key == "stage"
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Operations over values of fixed size a row; values are numbered in order.

    Args:
        input_sizes: Columns of the query's, the item's and the pair's features: values 0, 1 and 2.
        constants: Names of the tensors (n,) that are the next values.
        operations: Operations, each the next value.
        output: The value with the towers' part of the logits, (C,).
        tensors: Shape of every tensor by name.
        shares: Values that explain the output by name: ``share/TOWER``, what one of several towers
            adds to the logits, (C,), and ``attention/TOWER/SEQUENCE``, weights of its places;
            ``vector/query`` and ``vector/item``, (D,), are what candidates are retrieved by.
    """

    input_sizes: tuple[int, ...]
    constants: tuple[str, ...]
    operations: tuple[Operation, ...]
    output: int
    tensors: Mapping[str, tuple[int, ...]]
    shares: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the program as lists and dicts."""
        return {
            "input_sizes": self.input_sizes,
            "constants": self.constants,
            "operations": [operation.to_json() for operation in self.operations],
            "output": self.output,
            "tensors": self.tensors,
            **({"shares": self.shares} if self.shares else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Program:
        """Read what :meth:`to_json` gave.

        Raises:
            BundleError: If a key is missing or unknown.
        """
        try:
            operations = []
            for table in value["operations"]:
                views = tuple((v, offset, tuple(rest)) for v, offset, rest in table["inputs"])
                lists = {key: tuple(table[key]) for key in _LISTS if key in table}
                operations.append(Operation(**{**table, **lists, "inputs": views}))
            fields = {
                **value,
                "input_sizes": tuple(value["input_sizes"]),
                "constants": tuple(value["constants"]),
                "operations": tuple(operations),
                "tensors": {name: tuple(shape) for name, shape in value["tensors"].items()},
            }
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"got a program that does not fit this version ({error}); export again"
            ) from error

    def pruned(self, output: int) -> Program:
        """Return the program that computes another value, or what this one does without need.

        Raises:
            BundleError: If an operation reads what is not before it.
        """
        first = len(self.input_sizes) + len(self.constants)  # value of the first operation
        used = {output}
        for value in range(first + len(self.operations) - 1, first - 1, -1):
            reads = [view[0] for view in self.operations[value - first].inputs]
            if value in used and not all(0 <= read < value for read in reads):
                raise BundleError(f"program, operation {value - first}: it reads values {reads}")
            used.update(reads if value in used else ())
        read_values = [
            value for value in range(first, first + len(self.operations)) if value in used
        ]
        numbers = dict(
            zip([*range(first), *read_values], range(first + len(read_values)), strict=True)
        )
        if output not in numbers:
            raise BundleError(f"program: got the output {output}, expected one of its values")
        operations = []
        for value in read_values:
            operation = self.operations[value - first]
            views = tuple((numbers[view[0]], *view[1:]) for view in operation.inputs)
            operations.append(replace(operation, inputs=views))
        return replace(self, operations=tuple(operations), output=numbers[output], shares={})

    def native(self, weights: Mapping[str, NDArray[np.float32]]) -> ScoreProgram:
        """Return the program ready to run, with these tensors.

        Raises:
            BundleError: If an operation is unknown or does not fit its values.
        """
        if len(self.input_sizes) != len(STAGES):
            raise BundleError(f"program: got {len(self.input_sizes)} inputs, expected 3")
        what = "its inputs"
        try:
            native = ScoreProgram(self.input_sizes)
            for name in self.constants:
                what = f"the constant {name!r}"
                native.add_constant(weights[name])
            for index, operation in enumerate(self.operations):
                what = f"operation {index} ({operation.kind} {operation.function})"
                _add(native, operation, weights)
            what = f"the output {self.output}"
            native.finish(self.output)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise BundleError(f"program, {what}: {error}; export the model again") from error
        return native


_VECTOR = "vector/"
_LISTS = ("dims", "numbers", "tensors")


def _add(
    native: ScoreProgram, operation: Operation, weights: Mapping[str, NDArray[np.float32]]
) -> None:
    stage, function, dims = operation.stage, operation.function, list(operation.dims)
    inputs = [(value, offset, list(strides)) for value, offset, strides in operation.inputs]
    if operation.kind == "map":
        native.add_map(stage, function, dims, inputs, *operation.numbers)
    elif operation.kind == "reduce":
        (view,) = inputs
        native.add_reduce(stage, function, dims, view)
    elif operation.kind == "top":
        (view,) = inputs
        native.add_top(stage, operation.count, dims, view)
    elif operation.kind == "matmul":
        left, right = inputs
        native.add_matmul(stage, dims, left, right)
    elif operation.kind == "linear":
        ((value, _, _),) = inputs
        weight, bias = operation.tensors[0], operation.tensors[1:]
        bias_N = weights[bias[0]] if bias else None
        native.add_linear(stage, value, weights[weight], bias_N, function or "none")
    elif operation.kind == "gather":
        native.add_gather(stage, [(value, start, n) for value, start, (n,) in operation.inputs])
    else:
        raise ValueError("got an operation that this version does not know")


class TowerProgram:
    """A bundle's program with its tensors.

    Attributes:
        native: The program ready to run.
        program: Its description.
    """

    def __init__(self, program: Program, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.program, self._weights = program, weights
        self.native = program.pruned(program.output).native(weights)
        for name, value in program.shares.items():
            if program.pruned(value).operations[-1].kind != "gather":
                raise BundleError(f"program: got the value {value} of {name!r}; export again")

    def vectors(self) -> dict[str, tuple[ScoreProgram, int]]:
        """Return the programs of the query's and the item's vector, with their width."""
        return {
            name.removeprefix(_VECTOR): self._program_of(value)
            for name, value in self.program.shares.items()
            if name.startswith(_VECTOR)
        }

    def shares(self, inputs_BX: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the values that explain the logits of a few rows, by name.

        Args:
            inputs_BX: Inputs of the query's, the item's and the pair's stage side by side.
        """
        results = {}
        for name, value in self.program.shares.items():
            if name.startswith(_VECTOR):
                continue
            program, size = self._program_of(value)
            scorer = Scorer(0, inputs_BX.shape[1], size)
            scorer.add_dense(0, inputs_BX.shape[1])
            scorer.set_program(program)
            results[name] = dense_forward(scorer, inputs_BX, threads=1)
        return results

    def _program_of(self, value: int) -> tuple[ScoreProgram, int]:
        """Return the program of a value that a gather makes, and its width."""
        program = self.program.pruned(value)
        width = sum(view[2][0] for view in program.operations[-1].inputs)
        return program.native(self._weights), width


def dense_forward(
    scorer: Scorer, inputs_BX: NDArray[np.float32], *, threads: int
) -> NDArray[np.float32]:
    """Return the deep part, (B, C), of a scorer that reads no ids."""
    no_ids, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
    _, deep_BC = scorer.forward(no_ids, offsets, None, inputs_BX, threads=threads)
    assert deep_BC is not None
    return deep_BC
