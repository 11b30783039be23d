"""Grouping: the same groups from C++ and NumPy, whatever the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests import reference
from tests.kernels.random_batches import RandomBatch, batches, make_batch
from widedeep.kernels import CsrBatch, Groups, IdOutOfRangeError, Slots, group_ids

FIELDS = ("rows_U", "table_starts", "starts_U", "order", "cells")


def group(batch: RandomBatch, threads: int = 1) -> Groups:
    return group_ids(batch.csr, batch.slots_at(), threads)


def same(one: Groups, other: Any) -> bool:
    return one.is_single == other.is_single and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS
    )


@given(batch=batches())
def test_equals_the_reference_with_any_number_of_threads(batch: RandomBatch) -> None:
    native = group(batch)
    assert same(native, group(batch, threads=3))
    assert same(native, reference.group_ids(batch.csr, batch.slots_at()))


@given(batch=batches())
def test_every_occurrence_is_listed_once_under_its_row(batch: RandomBatch) -> None:
    groups = group(batch)
    table_of_feature = dict(zip(batch.slots.tolist(), batch.tables.tolist(), strict=True))
    expected: dict[int, list[int]] = {}
    for n in range(len(batch.ids)):
        cell = int(np.searchsorted(batch.offsets, n, side="right")) - 1
        table = table_of_feature.get(cell % batch.n_features)
        if table is not None:
            expected.setdefault(int(batch.bases[table] + batch.ids[n]), []).append(n)
    got = {
        int(row): groups.order[groups.starts_U[u] : groups.starts_U[u + 1]].tolist()
        for u, row in enumerate(groups.rows_U)
    }
    assert got == expected


def slots(features: list[int], bases: list[int], sizes: list[int], n: int) -> Slots:
    return Slots(
        n_features=n, features=features, tables=list(range(len(features))), table_bases=bases,
        table_sizes=sizes, combiners=["sum"] * len(features),
    )  # fmt: skip


def test_ids_beyond_32_bits_are_told_apart() -> None:
    low, high = 5, 5 + 2**32
    batch = CsrBatch(np.array([low, high, low]), np.array([0, 1, 2, 3]), None, 1)
    groups = group_ids(batch, slots([0], [0], [2**40], 1))
    assert groups.rows_U.tolist() == [low, high]
    assert groups.order.tolist() == [0, 2, 1]


@pytest.mark.parametrize("bad", [-1, 10, 2**62])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_id_outside_its_table_is_named(bad: int, threads: int) -> None:
    batch = CsrBatch(np.array([3, 4, 5, bad, 7, bad]), np.arange(7), None, 2)
    with pytest.raises(IdOutOfRangeError) as error:
        group_ids(batch, slots([0, 1], [0, 10], [10, 10], 2), threads)
    assert (error.value.slot, error.value.example, error.value.id) == (1, 1, bad)
    assert f"slot 1 of example 1 holds id {bad}, outside [0, 10)" in str(error.value)


@pytest.mark.parametrize("offsets", [[0, 2, 1], [0, 1, 4], [-1, 1, 2], [0, 3, 3][::-1]], ids=str)
def test_offsets_that_do_not_ascend_are_an_error(offsets: list[int]) -> None:
    batch = make_batch(0, n_examples=2, n_features=1, longest=0, with_values=False)
    batch.offsets = np.array(offsets)
    with pytest.raises(ValueError, match=r"offsets_BF: slot 0 of example \d spans"):
        group(batch)


def test_wrong_arrays_are_named() -> None:
    batch = make_batch(0, n_examples=3, n_features=2, longest=2, with_values=False)
    with pytest.raises(ValueError, match="ids_N: got int32 of shape"):
        CsrBatch(batch.ids.astype(np.int32), batch.offsets, None, 2)
    with pytest.raises(ValueError, match="ids_N: not contiguous"):
        CsrBatch(np.arange(8)[::2], batch.offsets, None, 2)
    with pytest.raises(ValueError, match="values_N: got length 1, expected"):
        CsrBatch(batch.ids, batch.offsets, np.zeros(1, np.float32), 2)
    with pytest.raises(ValueError, match="offsets_BF: got length 7 for 4 features"):
        CsrBatch(batch.ids, batch.offsets, None, 4)
    with pytest.raises(ValueError, match=r"features: got \[1, 0\], expected ascending"):
        slots([1, 0], [0, 0], [1, 1], 2)
    with pytest.raises(ValueError, match=r"tables: got \[0, 1\], expected numbers in \[0, 1\)"):
        slots([0, 1], [0], [1], 2)
    with pytest.raises(ValueError, match="batch: got 2 features, the slots have 3"):
        group_ids(batch.csr, slots([0], [0], [100], 3))


@pytest.mark.parametrize("tables", [[1, 2], [0, 2], [3, 1], [2], []], ids=str)
def test_selected_tables_keep_their_occurrences(tables: list[int]) -> None:
    batch = make_batch(3, n_examples=30, n_features=4, longest=2, with_values=False)
    batch.slots, batch.tables = np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32)
    batch.sizes, batch.combiners = np.full(4, 5_000), np.zeros(4, np.int8)
    batch.bases = np.arange(4) * 5_000
    groups = group(batch)
    selected = groups.select(tables, [7] * len(tables))
    expected = []
    for table in tables:
        for u in range(int(groups.table_starts[table]), int(groups.table_starts[table + 1])):
            place = slice(groups.starts_U[u], groups.starts_U[u + 1])
            expected.append((groups.rows_U[u] + 7, groups.order[place], groups.cells[place]))
    assert len(selected) == len(expected) == int(selected.table_starts[-1])
    for u, (row, order, cells) in enumerate(expected):
        place = slice(selected.starts_U[u], selected.starts_U[u + 1])
        assert selected.rows_U[u] == row
        assert np.array_equal(selected.order[place], order)
        assert np.array_equal(selected.cells[place], cells)
