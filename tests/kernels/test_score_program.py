"""Programs: any of them computes what plain NumPy does, and a ranking has a batch's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.reference.program import run_program
from widedeep.bundle.program import Operation, Program
from widedeep.errors import BundleError
from widedeep.kernels import RankScorer, Scorer
from widedeep.training.program_builder import Elements, ProgramBuilder

Tensors = dict[str, NDArray[np.float32]]
UNARY = ("relu", "sigmoid", "tanh", "square", "silu", "neg", "gelu", "sin", "abs", "softplus")


@st.composite
def programs(draw: Any, stages: int = 3) -> tuple[Program, Tensors, int]:
    """A random program over fields of the query, the item (and the pair); and its width."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fields, dim = draw(st.integers(2, 5)), draw(st.sampled_from([1, 3, 4, 17]))
    owners = [draw(st.integers(0, stages - 1)) for _ in range(fields)]
    sizes = [owners.count(stage) * dim for stage in range(3)]
    builder = ProgramBuilder(sizes)
    by_stage = [list(builder.elements(value).reshape(-1, dim)) for value in range(3)]
    x: Elements = np.stack([by_stage[owner].pop(0) for owner in owners])  # (fields, dim)
    known: list[Elements] = [x]
    for _ in range(draw(st.integers(1, 7))):
        value = known[draw(st.integers(0, len(known) - 1))]
        match draw(st.integers(0, 7)):
            case 0:
                new = builder.map(UNARY[draw(st.integers(0, len(UNARY) - 1))], value)
            case 1:
                other = known[draw(st.integers(0, len(known) - 1))]
                factor = value.reshape(-1)[:1] if other.shape != value.shape else other
                new = builder.map(
                    draw(st.sampled_from(["add", "mul", "sub", "max"])), value, factor
                )
            case 2:
                axis = draw(st.integers(0, value.ndim - 1))
                function = draw(st.sampled_from(["sum", "max", "min"]))
                reduced = builder.reduce(function, np.moveaxis(value, axis, -1))
                new = reduced.reshape(-1, 1)
            case 3:
                units = draw(st.sampled_from([1, 5, 20]))
                weight = rng.normal(size=(units, value.shape[-1])).astype(np.float32)
                bias = rng.normal(size=units).astype(np.float32) if draw(st.booleans()) else None
                new = builder.linear(value.reshape(-1, value.shape[-1]), weight / 3, bias)
            case 4:
                new = builder.matmul(value[None], value.T[None])[0]
            case 5:
                new = value.T
            case 6:
                constant = builder.constant(rng.normal(size=value.shape).astype(np.float32))
                new = np.concatenate([builder.map("mul", value, constant), constant])
            case _:
                new = builder.top(value, draw(st.integers(1, value.shape[-1])))
        known.append(new)
    output = builder.linear(
        known[-1].reshape(1, -1), rng.normal(size=(2, known[-1].size)).astype(np.float32), None
    )
    program, tensors = builder.finish(output)
    return program, tensors, sum(sizes)


def scorer_of(program: Program, tensors: Tensors, width: int) -> Scorer:
    scorer = Scorer(0, width, 2)
    scorer.add_dense(0, width)
    scorer.set_program(program.native(tensors))
    return scorer


def deep_of(scorer: Scorer, inputs: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
    no_ids, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
    _, deep = scorer.forward(no_ids, offsets, None, inputs, threads=threads)
    assert deep is not None
    return deep


@given(programs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_program_computes_what_numpy_does(made: tuple[Program, Tensors, int], seed: int) -> None:
    program, tensors, width = made
    inputs = np.random.default_rng(seed).normal(size=(70, width)).astype(np.float32) / 2
    scorer = scorer_of(program, tensors, width)
    deep = deep_of(scorer, inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = run_program(program, tensors, inputs)
    usual = np.abs(expected).max(axis=1) < 1e6
    scale = np.maximum(1.0, np.abs(expected[usual])).max(initial=1.0)
    np.testing.assert_allclose(deep[usual], expected[usual], atol=2e-4 * scale, rtol=1e-3)
    # A row by itself, on two threads, and read back from JSON: the same bits.
    np.testing.assert_array_equal(deep_of(scorer, inputs, threads=2), deep)
    np.testing.assert_array_equal(deep_of(scorer, inputs[31:32]), deep[31:32])
    again = Program.from_json(program.to_json())
    np.testing.assert_array_equal(deep_of(scorer_of(again, tensors, width), inputs), deep)


@given(programs(stages=2), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_ranking_has_the_bits_of_a_batch(made: tuple[Program, Tensors, int], seed: int) -> None:
    program, tensors, width = made
    sizes = program.input_sizes
    rng = np.random.default_rng(seed)
    query = np.tile(rng.normal(size=(1, sizes[0])), (80, 1))
    items = rng.normal(size=(30, sizes[1]))
    positions = rng.integers(0, 30, 80)
    rows = np.concatenate([query, items[positions]], axis=1).astype(np.float32)
    expected = deep_of(scorer_of(program, tensors, width), rows)

    ranker = RankScorer((0, 0, 0), width, 2)
    ranker.add_dense("query", 0, sizes[0])
    ranker.add_dense("item", sizes[0], sizes[1])
    ranker.set_program(program.native(tensors))
    no_ids, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)

    def sums(side: str, dense: NDArray[np.float32]) -> tuple[Any, Any]:
        return ranker.sums(side, no_ids, offsets, None, dense, threads=1)

    whole_items = np.zeros((30, width), np.float32)
    whole_items[:, sizes[0] :] = items
    _, deep = ranker.rank(
        *sums("query", rows[:1]), *sums("item", whole_items), None, positions, no_ids, offsets,
        threads=2,
    )  # fmt: skip
    np.testing.assert_array_equal(deep, expected)


def map_of(function: str, inputs: NDArray[np.float32]) -> tuple[Program, NDArray[np.float32]]:
    """A program of one function, and what it makes of the numbers."""
    numbers, n = (1.0,) if function == "elu" else (), len(inputs)
    changes = {"function": function, "numbers": numbers, "dims": (1, 1, 1, n)}
    program = Program(
        input_sizes=(n, 0, 0),
        constants=(),
        operations=(operation(**changes),),
        output=3,
        tensors={},
    )
    scorer = Scorer(0, n, n)
    scorer.add_dense(0, n)
    scorer.set_program(program.native({}))
    return program, deep_of(scorer, inputs[None])[0]


FUNCTIONS = {  # with their values at -inf, -200, 200 and inf
    "exp": (0.0, 0.0, np.inf, np.inf),
    "sigmoid": (0.0, 0.0, 1.0, 1.0),
    "tanh": (-1.0, -1.0, 1.0, 1.0),
    "elu": (-1.0, -1.0, 200.0, np.inf),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_exact_to_a_few_units_over_their_range(function: str) -> None:
    inputs = np.linspace(-87, 88, 20_000).astype(np.float32)
    inputs = np.concatenate([inputs, np.linspace(-1, 1, 2001).astype(np.float32), [1e-30]])
    program, values = map_of(function, inputs.astype(np.float32))
    expected = run_program(program, {}, inputs[None])[0]
    assert (np.abs(values - expected) <= 4 * np.spacing(np.float32(np.abs(expected)))).all()
    _, ends = map_of(function, np.array([-np.inf, -200, 200, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(ends, [*FUNCTIONS[function], np.nan])


def operation(**changes: Any) -> Operation:
    fields: dict[str, Any] = {
        "kind": "map",
        "stage": 2,
        "function": "relu",
        "dims": (1, 1, 1, 4),
        "inputs": ((0, 0, (0, 0, 0, 1)),),
    }
    return Operation(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "frobnicate"}, "'frobnicate', which is not known"),
        ({"inputs": ((0, 1, (0, 0, 0, 1)),)}, "ends outside of its value"),
        ({"inputs": ((0, 0, (0, 0, 2**62, 1)),)}, "the stride"),
        ({"inputs": ((0, -1, (0, 0, 0, 1)),)}, "an offset outside"),
        ({"inputs": ((9, 0, (0, 0, 0, 1)),)}, "the value 9"),
        ({"inputs": ((4, 0, (0, 0, 0, 1)),)}, "the value 4"),
        ({"inputs": ()}, "0 inputs, expected 1"),
        ({"stage": 1}, "of another stage"),
        ({"stage": 3}, "the stage 0, 1 or 2"),
        ({"dims": (1, 1, 4)}, "four dimensions"),
        ({"dims": (2**40, 2**40, 1, 1)}, "the dimension"),
        ({"kind": "fold"}, "does not know"),
        ({"kind": "gather", "inputs": ((0, 3, (2,)),)}, "segment outside"),
        ({"kind": "linear", "tensors": ("w",), "function": "none"}, "another stage|own stage"),
        ({"kind": "reduce", "function": "mean"}, "'mean', which is not known"),
        ({"kind": "matmul", "dims": (1, 2, 2, 2)}, "not enough values"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    program = Program(
        input_sizes=(4, 4, 0),
        constants=(),
        operations=(operation(**changes),),
        output=3,
        tensors={"w": (1, 4)},
    )
    with pytest.raises(BundleError, match=message):
        program.native({"w": np.zeros((1, 4), np.float32)})
