"""The forward pass: near the reference in float64, and the same bits however rows are cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kernels.score_cases import Case, build, random_case
from tests.reference import score as reference_score
from widedeep import _native
from widedeep.kernels import Scorer
from widedeep.kernels.score import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 2, 7, 200, 1000)


def native(case: Case) -> _native.Scorer:
    return build(_native.Scorer(case.n_slots, case.n_dense, case.n_classes), case)


def reference(case: Case) -> reference_score.Scorer:
    empty = reference_score.Scorer(case.n_slots, case.n_dense, case.n_classes, np.float64)
    return build(empty, case)


def sums(scorer: _native.Scorer, case: Case, begin: int, end: int, threads: int) -> NDArray:
    wide, deep = scorer.forward(*case.rows(begin, end), threads=threads)
    return wide if deep is None else np.concatenate([wide, deep], axis=1)


@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(0, 40),
    n_classes=st.sampled_from([1, 2, 7, 16, 17, 40]),
    hidden=st.sampled_from([(), (1,), (16,), (33, 5), (70, 64, 18)]),
    activation=st.sampled_from(ACTIVATIONS),
    combiner=st.sampled_from(["sum", "mean", "sqrtn"]),
    weighted=st.booleans(),
)
def test_sums_are_those_of_float64(
    seed: int,
    n_rows: int,
    n_classes: int,
    hidden: tuple[int, ...],
    activation: str,
    combiner: str,
    weighted: bool,
) -> None:
    case = random_case(
        seed,
        n_rows=n_rows,
        n_classes=n_classes,
        hidden=hidden,
        activation=activation,
        combiner=combiner,
        weighted=weighted,
    )
    expected = reference(case).forward(*case.rows(0, n_rows), threads=1)
    found = native(case).forward(*case.rows(0, n_rows), threads=2)
    for want, got in zip(expected, found, strict=True):
        assert (want is None) == (got is None)
        if want is not None and got is not None:
            np.testing.assert_array_less(np.abs(got - want), 1e-6 * np.maximum(1, np.abs(want)))
            assert got.shape == (n_rows, n_classes)


@given(seed=st.integers(0, 2**32), weighted=st.booleans())
def test_inputs_of_the_deep_part_are_those_of_the_reference(seed: int, weighted: bool) -> None:
    case = random_case(seed, n_rows=9, weighted=weighted)
    expected = reference(case).concat(*case.rows(0, 9), threads=1)
    found = native(case).concat(*case.rows(0, 9), threads=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_classes", [1, 3, 20])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_row_has_the_same_bits_in_any_batch(n_classes: int, activation: str) -> None:
    case = random_case(
        5, n_rows=max(SIZES), n_classes=n_classes, hidden=(130, 40), activation=activation
    )
    scorer = native(case)
    whole = sums(scorer, case, 0, case.n_rows, threads=1)
    for size in SIZES:
        for threads in (1, 2, 5):
            parts = [
                sums(scorer, case, begin, min(begin + size, case.n_rows), threads)
                for begin in range(0, case.n_rows, size)
            ]
            assert np.array_equal(np.concatenate(parts), whole), (size, threads)


def fused(sum_: NDArray[np.float32], a: NDArray, b: NDArray) -> NDArray[np.float32]:
    """Multiply and add with one rounding: float64 holds the product of two float32."""
    return (sum_.astype(np.float64) + a.astype(np.float64) * b.astype(np.float64)).astype("f4")


def in_two_steps(sum_: NDArray[np.float32], a: NDArray, b: NDArray) -> NDArray[np.float32]:
    return sum_ + a * b


def in_order(case: Case) -> NDArray[np.float32]:
    """The deep part, input after input, as the order of summation says it."""
    add = in_two_steps if _native.isa() == "baseline" else fused
    hidden = native(case).concat(*case.rows(0, case.n_rows), threads=1)
    ends = [case.split, hidden.shape[1]]
    for weight, bias, activation in case.layers:
        total = None
        begin = 0
        for end in ends:
            partial = np.zeros((case.n_rows, len(weight)), np.float32)
            for k in range(begin, end):
                partial = add(partial, hidden[:, k : k + 1], weight[None, :, k])
            total = partial if total is None else total + partial
            begin = end
        hidden = total if bias is None else total + bias
        hidden = np.maximum(hidden, 0) if activation == "relu" else hidden
        ends = [hidden.shape[1]]
    return hidden


def test_sums_run_query_inputs_first_then_item_inputs() -> None:
    case = random_case(11, n_rows=30, n_classes=3, hidden=(50, 21))
    assert 0 < case.split < native(case).concat(*case.rows(0, 1), threads=1).shape[1]
    _, deep = native(case).forward(*case.rows(0, 30), threads=1)
    assert np.array_equal(deep, in_order(case))


def dense_only(weight: NDArray[np.float32], dense: NDArray[np.float32]) -> NDArray[np.float32]:
    """The deep part of a model that is one layer over dense numbers."""
    scorer = _native.Scorer(0, dense.shape[1], len(weight))
    scorer.add_dense(0, dense.shape[1])
    scorer.add_layer(weight, None, "none")
    no_ids, no_cells = np.zeros(0, np.int64), np.zeros(1, np.int64)
    _, deep = scorer.forward(no_ids, no_cells, None, dense, threads=1)
    assert deep is not None
    return deep


@given(seed=st.integers(0, 2**32), n_rows=st.integers(1, 30), alive=st.floats(0, 1))
def test_inputs_that_are_zero_leave_the_bits_of_a_row(seed: int, n_rows: int, alive: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(75, 40)).astype(np.float32)
    dense = rng.normal(size=(n_rows, 40)).astype(np.float32)
    dense[:, rng.random(40) > alive] = 0
    dense[rng.random(dense.shape) > alive] = -0.0
    add = in_two_steps if _native.isa() == "baseline" else fused
    expected = np.zeros((n_rows, 75), np.float32)
    for k in range(40):
        expected = add(expected, dense[:, k : k + 1], weight[None, :, k])
    together = dense_only(weight, dense)
    assert np.array_equal(together, expected)
    alone = np.concatenate([dense_only(weight, row[None]) for row in dense])
    assert alone.tobytes() == together.tobytes()


def test_an_infinite_weight_times_zero_is_no_number() -> None:
    weight = np.ones((70, 3), np.float32)
    weight[5, 1] = np.inf
    deep = dense_only(weight, np.array([[1, 0, 2]], np.float32))
    assert np.isnan(deep[0, 5])
    assert np.array_equal(np.delete(deep[0], 5), np.full(69, 3, np.float32))


def test_wide_sums_run_query_slots_first_then_item_slots() -> None:
    scorer = _native.Scorer(4, 0, 1)
    # Whichever order other than (1e8 + 1) + (1 - 1e8) is taken, the result is another.
    for slot, weight in enumerate([1e8, 1.0, 1.0, -1e8]):
        scorer.add_wide(slot, np.array([[weight]], np.float32), "sum", item=slot >= 2)
    ids, offsets = np.zeros(4, np.int64), np.arange(5)
    wide, deep = scorer.forward(ids, offsets, None, np.zeros((1, 0), np.float32), threads=1)
    one, large = np.float32(1), np.float32(1e8)
    assert deep is None
    assert wide[0, 0] == (large + one) + (one - large)


SCRIPT = """
import sys, numpy as np
from tests.kernels.test_score import in_order, native, random_case, sums
case = random_case(7, n_rows=41, n_classes=3, hidden=(70, 20))
whole = sums(native(case), case, 0, 41, 2)
for size in (1, 2, 7):
    parts = [sums(native(case), case, b, min(b + size, 41), 1) for b in range(0, 41, size)]
    assert np.array_equal(np.concatenate(parts), whole), size
assert np.array_equal(whole[:, 3:], in_order(case))
np.save(sys.argv[1], whole)
"""


def test_each_instruction_set_keeps_the_order(tmp_path: Path) -> None:
    names = ["baseline", "avx2", "avx512"]
    supported = names[: names.index(_native.isa()) + 1]
    found = {}
    for isa in supported:
        environment = {**os.environ, "WIDEDEEP_ISA": isa, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        place = tmp_path / f"{isa}.npy"
        subprocess.run([sys.executable, "-c", SCRIPT, place], env=environment, check=True)
        found[isa] = np.load(place)
    for isa in supported:
        np.testing.assert_allclose(found[isa], found["baseline"], atol=2e-6)
    if "avx512" in supported:
        assert np.array_equal(found["avx512"], found["avx2"])


def test_an_id_outside_its_table_is_named() -> None:
    case = random_case(1, n_rows=3)
    ids, offsets, values, dense = case.rows(0, 3)
    ids = ids.copy()
    ids[-1] = 10**6
    slot = int(np.searchsorted(offsets, len(ids) - 1, side="right") - 1) % case.n_slots
    for scorer in (native(case), reference(case)):
        with pytest.raises(ValueError, match=rf"slot {slot}: got id .*1000000.*does not have"):
            scorer.forward(ids, offsets, values, dense, threads=1)


def test_offsets_that_fall_or_reach_outside_are_refused() -> None:
    case = random_case(1, n_rows=3)
    ids, offsets, values, dense = case.rows(0, 3)
    falling = offsets.copy()
    falling[1] = offsets[-1] + 1
    scorer = native(case)
    with pytest.raises(ValueError, match="expected rising offsets"):
        scorer.forward(ids, falling, values, dense, threads=1)
    with pytest.raises(ValueError, match="expected 0 to the number of ids"):
        scorer.forward(ids[:-1], offsets, values, dense, threads=1)
    with pytest.raises(ValueError, match="other feature slots or dense columns"):
        scorer.forward(ids, offsets[:-1], values, dense, threads=1)


def test_layers_must_fit_one_another() -> None:
    scorer = Scorer(1, 2, 1)
    scorer.add_dense(0, 2)
    with pytest.raises(ValueError, match="one column of the layer's weight an input"):
        scorer.add_layer(np.zeros((4, 3), np.float32), None, "relu")
    scorer.add_layer(np.zeros((4, 2), np.float32), None, "relu")
    dense = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="one last unit a class"):
        scorer.forward(np.zeros(0, np.int64), np.zeros(2, np.int64), None, dense, threads=1)
