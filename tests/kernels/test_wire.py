"""Rows between ranks: what is packed comes back, rounded to bfloat16 as torch rounds."""

import numpy as np
import pytest
import torch

from widedeep.kernels import (
    CsrBatch,
    Slots,
    group_ids,
    move_rows,
    pack_rows,
    route_rows,
    take_runs,
    unpack_rows,
)
from widedeep.ranks.layout import Layout

BYTES = {"fp32": lambda width: 4 * width, "bf16": lambda width: 2 * width,
         "scaled": lambda width: 2 * width + 1}  # fmt: skip


@pytest.mark.parametrize("format", BYTES)
@pytest.mark.parametrize(("rows", "width", "taken"), [(50, 7, 33), (9000, 16, 8000), (4, 1, 0)])
def test_rows_come_back(rows: int, width: int, taken: int, format: str) -> None:
    rng = np.random.default_rng(rows)
    matrix = rng.normal(size=(rows, 20)).astype(np.float32)[:, :width]
    matrix *= 2.0 ** rng.integers(-90, 90, size=(rows, 1)).astype(np.float32)
    matrix[0] = np.nan
    picks = rng.permutation(rows)[:taken]
    data = np.empty(taken * BYTES[format](width), np.uint8)
    pack_rows(matrix, picks, data, format, 3)
    expected = torch.from_numpy(matrix[picks])
    if format == "bf16":
        halves = expected.bfloat16()
        expected = halves.float()
    other, moved = np.zeros((2, rows, width + 2), np.float32)[:, :, :width]
    unpack_rows(data, picks, other, format, 2)
    move_rows(matrix, picks, moved, picks, format, 2)
    np.testing.assert_array_equal(moved, other)
    in_order = np.empty((taken, width), np.float32)
    unpack_rows(data, None, in_order, format)
    np.testing.assert_array_equal(in_order, other[picks])
    move_rows(matrix, picks, in_order, None, format)
    np.testing.assert_array_equal(in_order, other[picks])
    assert not np.delete(other, picks, axis=0).any()
    if format != "scaled":
        np.testing.assert_array_equal(other[picks], expected.numpy())
        return
    largest = np.abs(matrix[picks]).max(axis=1, initial=0.0, keepdims=True)
    assert np.isnan(other[0]).all() == bool((picks == 0).any())
    assert not (np.abs(other[picks] - matrix[picks]) > largest * 2.0**-15).any()
    again = np.empty_like(data)
    pack_rows(other, picks, again, format)  # what was rounded once stays
    np.testing.assert_array_equal(again, data)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, -0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1e-38, 0.0, -1e-40], [0.0, 0.0, 0.0]),
        ([1.0, np.inf, 2.0], [np.nan] * 3),
        ([3.4028235e38, 1.0, -3.4028235e38], [2.0**128 - 2.0**113, 0.0, 2.0**113 - 2.0**128]),
        ([1.0, 2.0**-14, -(2.0**-15)], [1.0, 2.0**-14, -(2.0**-14)]),
        ([1.9999999, -0.5, 2.0**-16], [2.0 - 2.0**-14, -0.5, 0.0]),
    ],
)
def test_scaled_rows_at_their_limits(row: list[float], expected: list[float]) -> None:
    matrix, data, out = np.array([row], np.float32), np.empty(7, np.uint8), np.empty((1, 3), "f4")
    pack_rows(matrix, np.zeros(1, np.int64), data, "scaled")
    unpack_rows(data, np.zeros(1, np.int64), out, "scaled")
    np.testing.assert_array_equal(out, np.array([expected], np.float32))


def test_rows_outside_and_bytes_of_another_length_are_refused() -> None:
    matrix, data = np.zeros((3, 2), np.float32), np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match=r"rows_n: got rows 3 to 3, expected them in \[0, 3\)"):
        pack_rows(matrix, np.array([3]), data)
    with pytest.raises(ValueError, match="bytes: got length 8, expected 16"):
        unpack_rows(data, np.array([0, 1]), matrix)
    with pytest.raises(ValueError, match="format: got int8, expected fp32, bf16 or scaled"):
        pack_rows(matrix, np.array([0]), data, "int8")


def test_ids_go_to_the_owners_of_their_rows_in_order() -> None:
    rng, ranks = np.random.default_rng(1), 3
    layouts = [Layout("city", 9000, ranks), Layout("job", 40, ranks)]
    runs = [rng.integers(layouts[r % 2].size, size=size) for r, size in enumerate((50, 9, 0, 30))]
    counts, ids = np.array([len(run) for run in runs]), np.concatenate(runs)
    dealt = [np.stack(arrays) for arrays in zip(*(layout.dealt for layout in layouts), strict=True)]
    starts = np.concatenate([[0], np.cumsum(counts)])
    owner, place = (array.astype(np.int16) for array in dealt[:2])
    counts_WR, order, places = route_rows(ids, starts, owner, place, dealt[2])
    owners = np.concatenate([layouts[r % 2].owner_of(run) for r, run in enumerate(runs)])
    np.testing.assert_array_equal(order, np.argsort(owners, kind="stable"))
    expected = np.concatenate([layouts[r % 2].place_of(run) for r, run in enumerate(runs)])
    np.testing.assert_array_equal(places, expected[order])
    run_of = np.repeat(np.arange(4), counts)
    for rank in range(ranks):
        of_rank = np.bincount(run_of[owners == rank], minlength=4)
        np.testing.assert_array_equal(counts_WR[rank], of_rank)
    taken = take_runs(ids, counts, np.array([5, 0, 7, -2]), np.array([True, False, True, True]))
    np.testing.assert_array_equal(taken, np.concatenate([runs[0] + 5, runs[2], runs[3] - 2]))
    with pytest.raises(ValueError, match="starts_R: expected ascending numbers from 0 to 89"):
        route_rows(ids, starts[:-1], owner, place, dealt[2])
    with pytest.raises(ValueError, match="values_n: got length 88, expected 89"):
        take_runs(ids[1:], counts, counts, counts > 0)


def test_numbers_lead_from_ids_to_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, size=60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batch = CsrBatch(rng.integers(9, size=int(offsets[-1])), offsets, None, 3)
    slots = Slots(
        n_features=3, features=[0, 2], tables=[1, 0], table_bases=[0, 9], table_sizes=[9, 9],
        combiners=["sum", "sum"],
    )  # fmt: skip
    groups = group_ids(batch, slots)
    for chosen, tables in ((groups, [0, 1]), (groups.select([1], [100]), [1])):
        numbers = chosen.numbers()
        for slot, table in ((0, 1), (2, 0)):
            if table not in tables:
                continue
            first = chosen.table_starts[tables.index(table)]
            for b in range(20):
                for n in range(offsets[b * 3 + slot], offsets[b * 3 + slot + 1]):
                    row = chosen.rows_U[first + numbers[n]]
                    base = groups.rows_U[0] * 0 + [0, 9][table] + (100 if len(tables) == 1 else 0)
                    assert row - base == batch.ids_N[n]
