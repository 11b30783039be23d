"""Reading in lanes: whatever ranks read which of them, batches hold the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widedeep.data.batch import Batch
from widedeep.data.fragments import Fragment, origin_of
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source

N_ROWS = 103


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lanes") / "rows.parquet"
    pq.write_table(pa.table({"row": np.arange(N_ROWS)}), path, row_group_size=10)
    return path


def encode(table: pa.Table) -> Batch:
    """One feature whose id is the row; the reader says where the table begins."""
    rows = table["row"].to_numpy()
    if len(rows):
        assert origin_of(table)[1] == rows[0]  # type: ignore[index]
    return Batch(rows, np.arange(len(rows) + 1), rows[:, None].astype(np.float32))


def lane_rows(batch: Batch) -> list[list[int]]:
    assert batch.lane_starts is not None
    return [lane.dense_BK[:, 0].astype(int).tolist() for lane in batch.lanes()]


@settings(max_examples=40)
@given(
    lanes=st.integers(2, 9),
    ranks=st.integers(1, 9),
    per_lane=st.integers(1, 30),
    pool_rows=st.integers(1, 110),
    start=st.integers(0, 200),
    shuffle=st.booleans(),
    cached=st.booleans(),
)
def test_batches_do_not_depend_on_who_reads_them(
    path: Path,
    lanes: int,
    ranks: int,
    per_lane: int,
    pool_rows: int,
    start: int,
    shuffle: bool,
    cached: bool,
) -> None:
    ranks = min(ranks, lanes)
    with open_source(path) as source:

        def whole(fragment: Fragment) -> Batch:
            assert not fragment.skipped
            return encode(source.read(fragment))

        plan = EpochPlan(
            source, batch_size=per_lane * lanes, seed=1, epoch=2, pool_rows=pool_rows,
            shuffle=shuffle, lanes=lanes,
        )  # fmt: skip
        start %= plan.num_batches + 1
        read = whole if cached else None
        together = [lane_rows(batch) for batch in BatchReader(source, encode, plan)]
        assert sorted(row for batch in together for lane in batch for row in lane) == [
            *range(N_ROWS)
        ]
        sizes = [sum(map(len, batch)) for batch in together]
        assert all(size == plan.batch_size for size in sizes[:-1])
        if not shuffle:
            rows = [row for lane in range(lanes) for batch in together for row in batch[lane]]
            assert rows == list(range(N_ROWS))
        own = [range(lanes * rank // ranks, lanes * (rank + 1) // ranks) for rank in range(ranks)]
        readers = [
            BatchReader(source, encode, plan, start_batch=start, encoded=read, lanes=lanes_of)
            for lanes_of in own
        ]
        apart = zip(*readers, strict=True)
        assert [
            [lane for batch in batches for lane in lane_rows(batch)] for batches in apart
        ] == together[start:]


def test_a_rank_decodes_its_own_rows_alone(path: Path) -> None:
    encoded = 0

    def counting(table: pa.Table) -> Batch:
        nonlocal encoded
        encoded += table.num_rows
        return encode(table)

    with open_source(path) as source:
        plan = EpochPlan(source, batch_size=24, seed=1, epoch=0, lanes=8)
        own = sum(len(b) for b in BatchReader(source, counting, plan, lanes=range(3, 4)))
    assert own == encoded == N_ROWS * 4 // 8 - N_ROWS * 3 // 8


def test_lanes_without_a_row_have_empty_batches(path: Path) -> None:
    with open_source(pa.table({"row": np.arange(2)})) as source:
        plan = EpochPlan(source, batch_size=5, seed=1, epoch=0, lanes=5)
        assert plan.num_batches == 1
        counts = []
        for lane in range(5):
            (batch,) = BatchReader(source, encode, plan, lanes=range(lane, lane + 1))
            assert batch.dense_BK.shape[1] == 1
            counts.append(len(batch))
        assert sum(counts) == 2


def test_the_row_of_an_error_is_found_in_its_lane(path: Path) -> None:
    with open_source(path) as source:
        plan = EpochPlan(source, batch_size=30, seed=3, epoch=1, lanes=6, pool_rows=20)
        lanes = range(2, 5)
        for number, batch in enumerate(BatchReader(source, encode, plan, lanes=lanes)):
            for row in range(len(batch)):
                _, place = plan.batch_row(number, row, lanes, batch.lane_starts)
                assert place == batch.dense_BK[row, 0]


def test_fragments_are_mixed_over_the_lanes() -> None:
    rows = 4096
    with open_source(pa.table({"row": np.arange(rows)}).to_batches(max_chunksize=64)) as source:
        plan = EpochPlan(source, batch_size=256, seed=0, epoch=0, lanes=8, pool_rows=256)
        means = [b.dense_BK.mean() / rows for b in BatchReader(source, encode, plan)]
    assert np.std(means) < 0.1  # batches of consecutive rows: .29
