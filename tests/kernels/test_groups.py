"""Grouping: the same groups from C++ and NumPy, whatever the threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests import reference
from tests.kernels.random_batches import RandomBatch, batches, make_batch
from widedeep.kernels import Groups, IdOutOfRangeError, group_ids

FIELDS = ("rows_U", "table_starts", "starts_U", "order", "cells")


def group(batch: RandomBatch, threads: int = 1) -> Groups:
    return group_ids(
        batch.ids, batch.offsets, batch.n_features, batch.slots, batch.tables, batch.bases,
        batch.sizes, threads,
    )  # fmt: skip


def same(one: Groups, other: Groups) -> bool:
    return one.single == other.single and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS
    )


@given(batch=batches())
def test_equals_the_reference_with_any_number_of_threads(batch: RandomBatch) -> None:
    native = group(batch)
    assert same(native, group(batch, threads=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("widedeep.kernels.sparse._native", reference)
        assert same(native, group(batch))


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


def test_ids_beyond_32_bits_are_told_apart() -> None:
    low, high = 5, 5 + 2**32
    groups = group_ids(
        np.array([low, high, low]),
        np.array([0, 1, 2, 3]),
        1,
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.zeros(1, np.int64),
        np.array([2**40]),
    )
    assert groups.rows_U.tolist() == [low, high]
    assert groups.order.tolist() == [0, 2, 1]


@pytest.mark.parametrize("bad", [-1, 10, 2**62])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_id_outside_its_table_is_named(bad: int, threads: int) -> None:
    ids = np.array([3, 4, 5, bad, 7, bad])
    with pytest.raises(IdOutOfRangeError) as error:
        group_ids(
            ids,
            np.arange(7),
            2,
            np.array([0, 1], np.int32),
            np.array([0, 1], np.int32),
            np.array([0, 10]),
            np.array([10, 10]),
            threads,
        )
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
        group_ids(
            batch.ids.astype(np.int32), batch.offsets, 2, batch.slots, batch.tables,
            batch.bases, batch.sizes,
        )  # fmt: skip
    with pytest.raises(ValueError, match="offsets_BF: got length 7 for 4 features"):
        group_ids(batch.ids, batch.offsets, 4, batch.slots, batch.tables, batch.bases, batch.sizes)
    with pytest.raises(ValueError, match=r"slots: got \[1, 0\], expected ascending"):
        group_ids(
            batch.ids, batch.offsets, 2, np.array([1, 0], np.int32), np.zeros(2, np.int32),
            batch.bases, batch.sizes,
        )  # fmt: skip


@pytest.mark.parametrize("tables", [[1, 2], [0, 2], [3, 1], [2], []], ids=str)
def test_selected_tables_keep_their_occurrences(tables: list[int]) -> None:
    batch = make_batch(3, n_examples=30, n_features=4, longest=2, with_values=False)
    batch.slots, batch.tables = np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32)
    batch.sizes = np.full(4, 5_000)
    batch.bases = np.arange(4) * 5_000
    groups = group(batch)
    selected = groups.select(tables, np.full(len(tables), 7))
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
