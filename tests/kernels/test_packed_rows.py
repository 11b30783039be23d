"""Packed tables: near what was packed, the same numbers wherever they are read."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from tests.kernels.score_cases import Case, build, random_case
from widedeep import _native
from widedeep.kernels.packed_rows import PackedKind, PackedTable, TooLarge, row_blocks
from widedeep.kernels.score import from_bfloat16

ROOT = Path(__file__).resolve().parents[2]
KINDS: tuple[PackedKind, ...] = ("bf16", "int8", "int4")
KIND = st.sampled_from(KINDS)
TABLES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.one_of(
        st.floats(-899, 899, width=32, allow_subnormal=True),
        st.sampled_from([0.0, -0.0, 1e-39, -1.5e-8, 3e-8, 1e-30, 0.5]),
    ),
)


def oracle(table: PackedTable) -> NDArray[np.float64]:
    """What native/packed_rows.hpp says of the bytes, in float64."""
    width = table.shape[1]
    if table.kind == "bf16":
        return from_bfloat16(table.bytes_RB.view(np.uint16)).astype(np.float64)
    byte_R = table.bytes_RB[:, 0].astype(np.float64)
    step_R1 = np.where(byte_R > 0, (8 + byte_R % 8) / 8 * 2.0 ** (byte_R // 8 - 25), 0)[:, None]
    codes = table.bytes_RB[:, 1:]
    if table.kind == "int8":
        return step_R1 * codes.view(np.int8)
    halves = np.concatenate([codes & 15, codes >> 4], axis=1)[:, :width]
    return step_R1 * (halves.astype(np.float64) - 7.5)


@given(table=TABLES, kind=KIND)
def test_numbers_move_by_half_a_step_at_most(table: NDArray[np.float32], kind: PackedKind) -> None:
    packed = PackedTable.pack(table, kind)
    assert packed.shape == table.shape
    numbers = np.asarray(packed)
    np.testing.assert_array_equal(numbers, oracle(packed).astype(np.float32))
    if table.size == 0:
        return
    moved_R = np.abs(numbers.astype(np.float64) - table).max(axis=1)
    largest_R = np.abs(table).max(axis=1).astype(np.float64)
    if kind == "bf16":
        assert (moved_R <= largest_R * 2.0**-8 + 2.0**-126).all()
        return
    # A step is at most an eighth more than the least that reaches the largest number.
    least = 2.0**-25 * 1.125
    step_R = np.maximum(largest_R / (127 if kind == "int8" else 7.5), least / 1.125) * 1.125
    assert (moved_R <= 0.5 * step_R * (1 + 1e-6)).all()
    assert not numbers[largest_R == 0].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [0, 1, 2, 3, 15, 16, 33])
def test_rows_are_read_by_number_slice_mask_and_array(kind: PackedKind, width: int) -> None:
    table = np.random.default_rng(0).normal(0, 0.1, (50, width)).astype(np.float32)
    packed = PackedTable.pack(table, kind)
    numbers = np.asarray(packed)
    assert (packed.size, len(packed), packed.nbytes) == (table.size, 50, packed.bytes_RB.nbytes)
    keys = (3, -1, slice(2, 40, 3), numbers[:, 0] > 0 if width else slice(0), [[1, 2], [49, -50]])
    for key in keys:
        np.testing.assert_array_equal(packed[key], numbers[key])
    if width:
        np.testing.assert_array_equal(packed[:, 0], numbers[:, 0])
    np.testing.assert_array_equal(np.concatenate(list(row_blocks(packed))), numbers)
    np.testing.assert_array_equal(np.stack(list(packed)), numbers)
    with pytest.raises(ValueError, match="ids_N"):
        packed[[50]]


def test_rows_of_one_number_keep_it() -> None:
    same = np.repeat(np.array([[0.3], [-0.02], [0.0]], np.float32), 6, axis=1)
    for kind, limit in (("bf16", 0.004), ("int8", 0.005), ("int4", 0.07)):
        numbers = np.asarray(PackedTable.pack(same, kind))
        assert (np.ptp(numbers, axis=1) == 0).all()
        np.testing.assert_allclose(numbers, same, rtol=limit)


@pytest.mark.parametrize(("kind", "most"), [("int8", 15_240.0), ("int4", 900.0)])
def test_a_number_that_no_step_reaches_is_refused(
    kind: Literal["int8", "int4"], most: float
) -> None:
    table = np.zeros((3, 2), np.float32)
    table[1] = most
    assert np.abs(np.asarray(PackedTable.pack(table, kind))).max() == most
    table[1] = most * 1.1
    with pytest.raises(TooLarge, match=rf"{kind} holds numbers up to {most:,g}") as caught:
        PackedTable.pack(table, kind)
    assert caught.value.row == 1
    largest = np.full((1, 2), np.finfo(np.float32).max)
    assert np.isfinite(np.asarray(PackedTable.pack(largest, "bf16"))).all()


def test_bytes_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="got rows of 5 bytes, expected 4 for 6 numbers in int4"):
        PackedTable(np.zeros((2, 5), np.uint8), "int4", 6)


def scored(case: Case, end: int) -> NDArray[np.float32]:
    scorer = build(_native.Scorer(case.n_slots, case.n_dense, case.n_classes), case)
    wide, deep = scorer.forward(*case.rows(0, end), threads=2)
    assert deep is not None
    return np.concatenate([wide, deep, scorer.concat(*case.rows(0, end), threads=2)], axis=1)


@given(seed=st.integers(0, 2**32), kind=KIND, weighted=st.booleans())
def test_a_scorer_reads_packed_rows_as_their_numbers(
    seed: int, kind: PackedKind, weighted: bool
) -> None:
    case = random_case(seed, n_rows=20, weighted=weighted)
    packed = [(slot, PackedTable.pack(t, kind), how) for slot, t, how in case.embeddings]
    packed[0] = (*packed[0][:2], "max")
    plain = [(slot, np.asarray(table), how) for slot, table, how in packed]
    got = scored(replace(case, embeddings=packed), 20)
    np.testing.assert_array_equal(got, scored(replace(case, embeddings=plain), 20))


SCRIPT = """
import sys
import numpy as np
from widedeep.kernels.packed_rows import PackedTable
table = np.random.default_rng(0).normal(0, 0.3, (300, 37)).astype(np.float32)
np.save(sys.argv[1], [np.asarray(PackedTable.pack(table, k)) for k in ("bf16", "int8", "int4")])
"""


def test_all_instruction_sets_read_the_same_bits(tmp_path: Path) -> None:
    names = ["baseline", "avx2", "avx512"]
    arrays_of = []
    for isa in names[: names.index(_native.isa()) + 1]:
        environment = {**os.environ, "WIDEDEEP_ISA": isa, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        file = tmp_path / f"{isa}.npy"
        subprocess.run([sys.executable, "-c", SCRIPT, file], env=environment, check=True)
        arrays_of.append(np.load(file))
    for array in arrays_of:
        np.testing.assert_array_equal(array, arrays_of[0])
