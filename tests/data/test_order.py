"""The reading order depends on seed, epoch and fragment sizes, and can be entered anywhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.data.order import EpochPlan, rank_rows
from widedeep.data.sources import Source, open_source
from widedeep.errors import ConfigError


def plan_of(sizes: list[int], **options: int | bool) -> EpochPlan:
    batches = [pa.record_batch({"x": np.zeros(size)}) for size in sizes]
    source = open_source(pa.Table.from_batches(batches, pa.schema([("x", pa.float64())])))
    numbers = {"batch_size": 4, "seed": 0, "epoch": 0, **options}
    return EpochPlan(source, **numbers)  # type: ignore[arg-type]


def order_of(plan: EpochPlan) -> list[tuple[int, int]]:
    """(fragment, row) of every row in reading order."""
    order: list[tuple[int, int]] = []
    for pool in plan.pools:
        rows = [(f.index, row) for f in pool.fragments for row in range(f.num_rows)]
        shuffled = plan.row_order(pool)
        order += rows if shuffled is None else [rows[place] for place in shuffled]
    return order


@pytest.fixture
def many_fragments(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("order") / "t.parquet"
    pq.write_table(pa.table({"x": np.arange(95)}), path, row_group_size=10)
    return str(path)


def test_every_row_is_read_once_whatever_the_pools(many_fragments: str) -> None:
    source = open_source(many_fragments)
    expected = [(f.index, row) for f in source.fragments for row in range(f.num_rows)]
    for pool_rows in (1, 25, 1000):
        plan = EpochPlan(source, batch_size=7, seed=3, epoch=1, pool_rows=pool_rows)
        assert sorted(order_of(plan)) == expected
        assert order_of(plan) != expected
    plain = EpochPlan(source, batch_size=7, seed=3, epoch=1, shuffle=False)
    assert order_of(plain) == expected


def test_order_is_a_function_of_seed_and_epoch(many_fragments: str) -> None:
    def order(seed: int, epoch: int, batch_size: int = 7) -> list[tuple[int, int]]:
        source = open_source(many_fragments)
        plan = EpochPlan(source, batch_size=batch_size, seed=seed, epoch=epoch, pool_rows=30)
        return order_of(plan)

    assert order(5, 2) == order(5, 2) == order(5, 2, batch_size=16)
    orders = [order(5, 2), order(5, 3), order(6, 2), order(2, 5)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_order_is_the_same_in_every_release() -> None:
    plan = plan_of([10], seed=2**64 - 1, epoch=3)
    order = plan.row_order(plan.pools[0])
    assert order is not None
    assert order.tolist() == [5, 8, 0, 7, 4, 1, 9, 2, 3, 6]


def test_permutation_is_uniform() -> None:
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        plan = plan_of([6], epoch=epoch)
        order = plan.row_order(plan.pools[0])
        assert order is not None
        counts[np.arange(6), order] += 1
    # 36 cells of mean 500 and standard deviation 20: five deviations are never reached by chance.
    assert np.abs(counts - 500).max() < 100


@pytest.mark.parametrize(
    ("row_group", "pool_rows", "sizes"),
    [
        (10, 30, [30, 30, 30, 10]),
        (30, 35, [60, 40]),
        (30, 46, [60, 40]),
        (20, 45, [40, 40, 20]),
        (20, 55, [60, 40]),
        (50, 40, [50, 50]),
        (100, 1, [100]),
    ],
)
def test_pools_hold_about_as_many_rows_as_asked(
    row_group: int, pool_rows: int, sizes: list[int], tmp_path: Path
) -> None:
    table = pa.table({"x": np.arange(100)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=row_group)
    source = open_source(tmp_path / "t.parquet")
    seed = first_with_full_groups(source)
    plan = EpochPlan(source, batch_size=7, seed=seed, epoch=0, pool_rows=pool_rows)
    assert [pool.num_rows for pool in plan.pools] == sizes


def first_with_full_groups(source: Source) -> int:
    """A seed that leaves the short row group for last."""
    for seed in range(1000):
        plan = EpochPlan(source, batch_size=7, seed=seed, epoch=0, pool_rows=1)
        if plan.pools[-1].fragments[-1].index == len(source.fragments) - 1:
            return seed
    raise AssertionError("no such seed")


@given(
    n_rows=st.integers(0, 60),
    batch_size=st.integers(1, 70),
    pool_rows=st.integers(1, 70),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_positions_and_boundaries(
    n_rows: int, batch_size: int, pool_rows: int, drop_last: bool, shuffle: bool
) -> None:
    plan = plan_of(
        [n_rows],
        batch_size=batch_size,
        pool_rows=pool_rows,
        drop_last=drop_last,
        shuffle=shuffle,
    )
    full, rest = divmod(n_rows, batch_size)
    assert plan.num_batches == (full if drop_last or not rest else full + 1)
    for batch in range(plan.num_batches):
        first, last = plan.batch_rows(batch)
        position = plan.position(batch)
        assert first == batch * batch_size
        assert last - first == batch_size or (batch == full and last == n_rows)
        assert plan.pools[position.pool].first_row + position.row == first
        assert position.row < plan.pools[position.pool].num_rows


def test_position_is_in_the_pool_that_holds_the_row(many_fragments: str) -> None:
    source = open_source(many_fragments)
    plan = EpochPlan(source, batch_size=7, seed=0, epoch=0, pool_rows=25)
    for batch in range(plan.num_batches):
        position = plan.position(batch)
        assert 0 <= position.row < plan.pools[position.pool].num_rows
        assert plan.pools[position.pool].first_row + position.row == 7 * batch
    with pytest.raises(ConfigError, match="batch 15: this epoch has batches 0 to 13"):
        plan.position(15)


@given(st.integers(0, 50), st.integers(1, 9))
def test_rank_slices_cover_a_batch_once(n_rows: int, world_size: int) -> None:
    slices = [rank_rows(n_rows, rank, world_size) for rank in range(world_size)]
    assert slices[0][0] == 0
    assert slices[-1][1] == n_rows
    assert all(one[1] == other[0] for one, other in pairwise(slices))
    sizes = [stop - start for start, stop in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, expected 1 <= batch_size"),
        ({"pool_rows": 0}, "pool_rows: got 0"),
        ({"seed": -1}, "seed: got -1, expected 0 <= seed < 2"),
        ({"epoch": -1}, "epoch: got -1"),
    ],
)
def test_numbers_out_of_range(option: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of([1], **option)
