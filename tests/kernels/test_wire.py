"""Rows between ranks: what is packed comes back, rounded to bfloat16 as torch rounds."""

import numpy as np
import pytest
import torch

from widedeep.kernels import CsrBatch, Slots, group_ids, pack_rows, unpack_rows


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("rows", "width", "taken"), [(50, 7, 33), (9000, 16, 8000), (4, 1, 0)])
def test_rows_come_back(rows: int, width: int, taken: int, *, bfloat16: bool) -> None:
    rng = np.random.default_rng(rows)
    matrix = rng.normal(size=(rows, 20)).astype(np.float32)[:, :width]
    matrix[0] = np.nan
    picks = rng.permutation(rows)[:taken]
    data = np.empty(taken * width * (2 if bfloat16 else 4), np.uint8)
    pack_rows(matrix, picks, data, bfloat16, 3)
    expected = torch.from_numpy(matrix[picks])
    if bfloat16:
        halves = expected.bfloat16()
        expected = halves.float()
    other = np.zeros((rows, width + 2), np.float32)[:, :width]
    unpack_rows(data, picks, other, bfloat16, 2)
    np.testing.assert_array_equal(other[picks], expected.numpy())
    assert not np.delete(other, picks, axis=0).any()


def test_rows_outside_and_bytes_of_another_length_are_refused() -> None:
    matrix, data = np.zeros((3, 2), np.float32), np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match=r"rows_n: got rows 3 to 3, expected them in \[0, 3\)"):
        pack_rows(matrix, np.array([3]), data)
    with pytest.raises(ValueError, match="bytes: got length 8, expected 16"):
        unpack_rows(data, np.array([0, 1]), matrix)


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
