"""The reading order depends on seed, epoch and fragment sizes, and can be entered anywhere."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.data.reading_order import reading_order
from widedeep.data.fragments import table_input
from widedeep.data.reader import EpochPlan, large_fragments
from widedeep.data.sources import Source, open_source
from widedeep.errors import ConfigError


def source_of(sizes: list[int]) -> Source:
    """A source with fragments of these sizes."""
    tables = [pa.table({"x": np.zeros(size)}) for size in sizes]
    return Source([table_input(table, str(number)) for number, table in enumerate(tables)])


def plan_of(sizes: list[int], **options: int | bool) -> EpochPlan:
    numbers = {"batch_size": 4, "seed": 0, "epoch": 0, **options}
    return EpochPlan(source_of(sizes), **numbers)  # type: ignore[arg-type]


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
        assert sorted(reading_order(plan)) == expected
        assert reading_order(plan) != expected
    plain = EpochPlan(source, batch_size=7, seed=3, epoch=1, shuffle=False)
    assert reading_order(plain) == expected


def test_order_is_a_function_of_seed_and_epoch(many_fragments: str) -> None:
    def order(seed: int, epoch: int, batch_size: int = 7) -> list[tuple[int, int]]:
        source = open_source(many_fragments)
        plan = EpochPlan(source, batch_size=batch_size, seed=seed, epoch=epoch, pool_rows=30)
        return reading_order(plan)

    assert order(5, 2) == order(5, 2) == order(5, 2, batch_size=16)
    orders = [order(5, 2), order(5, 3), order(6, 2), order(2, 5)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_order_is_the_same_in_every_release(many_fragments: str) -> None:
    plan = plan_of([10], seed=2**64 - 1, epoch=3)
    assert [row for _, row in reading_order(plan)] == [5, 8, 0, 7, 4, 1, 9, 2, 3, 6]
    source = open_source(many_fragments)
    plan = EpochPlan(source, batch_size=7, seed=3, epoch=1, pool_rows=12)
    expected = [(2, 0), (3, 8), (6, 6), (9, 2), (2, 8), (3, 4), (6, 5), (3, 0)]
    assert reading_order(plan)[:8] == expected


def test_rows_are_permuted_uniformly() -> None:
    counts = np.zeros((6, 6))
    for epoch in range(2000):
        order = reading_order(plan_of([6], epoch=epoch))
        counts[np.arange(6), [row for _, row in order]] += 1
    # 36 cells of mean 333 and standard deviation 17: five deviations are never reached by chance.
    assert np.abs(counts - 2000 / 6).max() < 83


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    pool_rows=st.integers(1, 300),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1),
)
def test_every_row_of_any_fragments_is_read_once(
    sizes: list[int], pool_rows: int, seed: int, epoch: int
) -> None:
    source = source_of(sizes)
    assert [fragment.num_rows for fragment in source.fragments] == sizes
    plan = EpochPlan(source, batch_size=7, seed=seed, epoch=epoch, pool_rows=pool_rows)
    assert all(pool.num_rows > 0 for pool in plan.pools)
    assert [pool.first_row for pool in plan.pools] == [
        sum(earlier.num_rows for earlier in plan.pools[: pool.index]) for pool in plan.pools
    ]
    expected = [(number, row) for number, size in enumerate(sizes) for row in range(size)]
    assert sorted(reading_order(plan)) == expected


def mean_times(plan: EpochPlan, sizes: list[int], n_stretches: int) -> NDArray[np.float64]:
    """The mean place in the input, from 0 to 1, of the rows of each stretch of the epoch."""
    starts = np.cumsum([0, *sizes])
    rows = [starts[fragment] + row for fragment, row in reading_order(plan)]
    return np.array([part.mean() for part in np.array_split(np.array(rows), n_stretches)]) / len(
        rows
    )


@pytest.mark.parametrize(
    ("sizes", "furthest"),
    [
        ([25] * 800, 0.03),  # pool_rows is 1,000
        ([125] * 160, 0.04),
        ([250] * 80, 0.08),
        ([1000] * 20, 0.2),
        ([4000] * 5, 0.2),
        ([20_000], 0.06),
        ([4000, *[25] * 480, 4000], 0.2),
        ([3, 2000, 1, 1, 500, 2000, 10, 10] * 4, 0.2),
    ],
)
def test_no_part_of_an_epoch_is_early_or_late_in_the_input(
    sizes: list[int], furthest: float
) -> None:
    plans = [plan_of(sizes, seed=1, epoch=epoch, pool_rows=1000) for epoch in range(6)]
    means = np.stack([mean_times(plan, sizes, 40) for plan in plans])
    # In the order of the input they would go from 0 to 1.
    assert np.abs(means - 0.5).max() < furthest
    assert np.abs(means[:, -3:] - 0.5).max() < 0.1
    assert abs(np.polyfit(np.linspace(0, 1, 40), means.mean(axis=0), 1)[0]) < 0.1


@pytest.mark.parametrize(
    ("size", "most_rows"), [(10, 1000), (250, 2000), (1000, 6000), (4000, 24_000)]
)
def test_few_rows_wait_in_memory(size: int, most_rows: int) -> None:
    sizes = [size] * (40_000 // size)
    plan = plan_of(sizes, pool_rows=1000)
    waiting = 0
    opened: set[int] = set()
    for pool in plan.pools:
        new = {share.fragment.index for share in pool.segments} - opened
        opened |= new
        waiting += sum(sizes[index] for index in new)
        assert waiting <= most_rows
        waiting -= pool.num_rows
    assert waiting == 0


def test_row_groups_too_large_to_mix_many_are_told() -> None:
    assert large_fragments(source_of([500] * 40), 1000) is None
    assert large_fragments(source_of([2000] * 6), 1000) is None  # all are mixed
    told = large_fragments(source_of([2000] * 7), 1000)
    assert told is not None
    assert "row groups hold up to 2,000 rows, so rows are mixed over 6 of 7 at a time" in told
    assert large_fragments(source_of([2000] * 7), 4000) is None


@given(
    n_rows=st.integers(0, 60),
    batch_size=st.integers(1, 70),
    pool_rows=st.integers(1, 70),
    shuffle=st.booleans(),
)
def test_positions_and_boundaries(
    n_rows: int, batch_size: int, pool_rows: int, shuffle: bool
) -> None:
    plan = plan_of(
        [n_rows],
        batch_size=batch_size,
        pool_rows=pool_rows,
        shuffle=shuffle,
    )
    full, rest = divmod(n_rows, batch_size)
    assert plan.num_batches == full + (rest > 0)
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
