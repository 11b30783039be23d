"""Rows brought into the order of their ids, and dealt to their owners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ranks.threads import run_threads
from widedeep.ranks import rows as rows_module
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.rows import ShardedRows, collect_rows, deal_rows, fetch_rows

SIZE = 9_500  # two blocks and a bit


def table() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((SIZE, 3), np.float32)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_rows_are_dealt_and_collected(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_WINDOW_BYTES", 12 * 700)  # several windows
    whole = table()
    layout = Layout("city", SIZE, world)
    collected = np.full_like(whole, np.nan)
    times = np.zeros(SIZE, int)

    def deal_and_collect(ranks: Ranks) -> NDArray[Any]:
        records = np.zeros((layout.rows_of(ranks.rank), 5), np.float32)
        own = records[:, 1:4]  # as in a table: a part of each record

        def write(first: int, rows: NDArray[Any]) -> None:
            collected[first : first + len(rows)] = rows
            times[first : first + len(rows)] += 1

        deal_rows(ranks, layout, whole, own)
        collect_rows(ranks, layout, own, write)
        ids = np.random.default_rng(ranks.rank).integers(0, SIZE, 50 * ranks.rank)
        assert np.array_equal(fetch_rows(ranks, layout, own, ids), whole[ids])
        assert not records[:, [0, 4]].any()
        return own

    parts = run_threads(world, deal_and_collect)
    for rank, part in enumerate(parts):
        assert np.array_equal(part, whole[layout.ids_of(rank)])
    assert np.array_equal(collected, whole)
    assert (times == 1).all()


@pytest.mark.parametrize("size", [1, 5, 4096, SIZE])
def test_parts_are_read_as_one_array(size: int) -> None:
    whole, layout = table()[:size], Layout("city", size, 4)
    sharded = ShardedRows(layout, [whole[layout.ids_of(rank)] for rank in range(4)])
    assert (sharded.shape, sharded.dtype, len(sharded)) == (whole.shape, whole.dtype, size)
    assert np.array_equal(np.asarray(sharded), whole)
    ids = np.random.default_rng(1).integers(0, size, 300)
    assert np.array_equal(sharded[ids], whole[ids])
    assert np.array_equal(sharded[size // 3 : size - 1 : 2], whole[size // 3 : size - 1 : 2])
    assert np.array_equal(sharded.read(size // 2, size), whole[size // 2 :])
