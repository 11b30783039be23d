"""Batches do not depend on threads, delays, prefetch or where reading starts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import widedeep as wd
from tests.data.reading_order import reading_order
from tests.data.schemas import make_schema
from widedeep.data.batch import Batch
from widedeep.data.reader import BatchReader, EpochPlan, _close_readers
from widedeep.data.sources import Source, open_source
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError, WideDeepError

N_ROWS = 97


def encode(table: pa.Table) -> Batch:
    """Two slots: a list of `row % 4` ids, and the row's number."""
    rows = np.asarray(table["row"], np.int64)
    lengths = np.stack([rows % 4, np.ones_like(rows)], axis=1).reshape(-1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(
        ids_N=np.repeat(np.repeat(rows, 2), lengths),
        offsets_BF=offsets,
        dense_BK=rows[:, None].astype(np.float32),
        labels_BL=(rows[:, None] % 2).astype(np.float32),
    )


def rows_in(batch: Batch) -> list[int]:
    """The batch's rows, after checking that every array speaks of the same ones."""
    rows = batch.dense_BK[:, 0].astype(np.int64)
    again = encode(pa.table({"row": rows}))
    assert np.array_equal(again.ids_N, batch.ids_N)
    assert batch.labels_BL is not None
    assert np.array_equal(again.labels_BL, batch.labels_BL)
    if len(batch):
        assert np.array_equal(again.offsets_BF, batch.offsets_BF)
    return [int(row) for row in rows]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "rows.parquet"
    pq.write_table(pa.table({"row": np.arange(N_ROWS)}), path, row_group_size=10)
    return path


@pytest.fixture
def source(path: Path) -> Iterator[Source]:
    with open_source(path) as source:
        yield source


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def plan_for(source: Source, **options: bool | int) -> EpochPlan:
    numbers = {"batch_size": 8, "seed": 1, "epoch": 0, "pool_rows": 25, **options}
    return EpochPlan(source, **numbers)  # type: ignore[arg-type]


def expected_batches(source: Source, plan: EpochPlan) -> list[list[int]]:
    """The plan carried out plainly, all at once."""
    rows = [source.read(fragment)["row"].to_pylist() for fragment in source.fragments]
    order = [rows[fragment][row] for fragment, row in reading_order(plan)]
    limits = [plan.batch_rows(batch) for batch in range(plan.num_batches)]
    return [order[first:last] for first, last in limits]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8, 10, 30, 97, 200])
def test_batches_are_the_plan(source: Source, shuffle: bool, batch_size: int) -> None:
    plan = plan_for(source, shuffle=shuffle, batch_size=batch_size)
    expected = expected_batches(source, plan)
    assert sorted(row for batch in expected for row in batch) == list(range(N_ROWS))
    assert [rows_in(batch) for batch in BatchReader(source, encode, plan)] == expected
    if not shuffle:
        assert [row for batch in expected for row in batch] == list(range(N_ROWS))


@given(
    batch_size=st.integers(1, 50),
    pool_rows=st.integers(1, 110),
    start=st.integers(0, 200),
    shuffle=st.booleans(),
    block_rows=st.integers(1, 40),
    threads=st.integers(1, 3),
)
def test_batches_are_the_plan_in_every_shape(
    path: Path,
    batch_size: int,
    pool_rows: int,
    start: int,
    shuffle: bool,
    block_rows: int,
    threads: int,
) -> None:
    with open_source(path) as source, pytest.MonkeyPatch.context() as patch:
        patch.setattr("widedeep.data.reader.BLOCK_ROWS", block_rows)
        plan = plan_for(
            source,
            batch_size=batch_size,
            pool_rows=pool_rows,
            shuffle=shuffle,
        )
        start %= plan.num_batches + 1
        reader = BatchReader(source, encode, plan, start_batch=start, threads=threads)
        assert [rows_in(batch) for batch in reader] == expected_batches(source, plan)[start:]


def test_resume_at_every_batch_gives_the_same_rest(source: Source) -> None:
    for shuffle in (True, False):
        plan = plan_for(source, shuffle=shuffle)
        whole = [rows_in(batch) for batch in BatchReader(source, encode, plan)]
        for start in range(plan.num_batches + 1):
            rest = BatchReader(source, encode, plan, start_batch=start)
            assert [rows_in(batch) for batch in rest] == whole[start:]


def test_resume_does_not_read_what_came_before(source: Source) -> None:
    read: list[int] = []

    def watched(table: pa.Table) -> Batch:
        read.extend(table["row"].to_pylist())
        return encode(table)

    plan = plan_for(source, pool_rows=8)
    start = plan.num_batches - 1
    list(BatchReader(source, watched, plan, start_batch=start))
    pools = plan.pools[plan.position(start).pool :]
    needed = {share.fragment.index: share.fragment for pool in pools for share in pool.segments}
    assert len(read) == sum(fragment.num_rows for fragment in needed.values()) < N_ROWS * 0.7


def delayed(seed: int) -> Callable[[pa.Table], Batch]:
    chance = random.Random(seed)

    def slow(table: pa.Table) -> Batch:
        time.sleep(chance.random() * 0.004)
        return encode(table)

    return slow


@pytest.mark.parametrize("shuffle", [True, False])
def test_delays_threads_and_prefetch_change_nothing(source: Source, shuffle: bool) -> None:
    plan = plan_for(source, shuffle=shuffle)
    expected = expected_batches(source, plan)
    chance = random.Random(0)
    for threads in (1, 2, 5):
        for prefetch in (1, 2, 9):
            reader = BatchReader(
                source, delayed(threads * 10 + prefetch), plan, prefetch=prefetch, threads=threads
            )
            seen = []
            for batch in reader:
                time.sleep(chance.random() * 0.001)
                seen.append(rows_in(batch))
            assert seen == expected


def test_a_reader_can_be_read_twice(source: Source) -> None:
    reader = BatchReader(source, encode, plan_for(source))
    assert [rows_in(b) for b in reader] == [rows_in(b) for b in reader]


def test_leaving_early_ends_the_threads_promptly(source: Source) -> None:
    encoded = 0

    def counting(table: pa.Table) -> Batch:
        nonlocal encoded
        encoded += 1
        time.sleep(0.005)
        return encode(table)

    with BatchReader(source, counting, plan_for(source, batch_size=1), threads=2) as reader:
        for batch in reader:
            assert len(batch) == 1
            break
    assert encoded < N_ROWS / 2


@pytest.mark.parametrize("few", [N_ROWS, N_ROWS - 1])
@pytest.mark.parametrize("close", [BatchReader.close, lambda _: _close_readers()])
def test_close_and_the_end_of_python_end_an_iteration_that_is_held(
    source: Source,
    few: int,
    close: Callable[[BatchReader], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("widedeep.data.reader.BLOCK_ROWS", few)
    reader = BatchReader(source, encode, plan_for(source, batch_size=1))
    batches = iter(reader)
    next(batches)
    in_background = any(thread.name == "widedeep-batches" for thread in threading.enumerate())
    assert in_background == (few < N_ROWS)
    close(reader)
    assert all(thread.name != "widedeep-batches" for thread in threading.enumerate())
    if in_background:
        assert list(batches) == []


@pytest.mark.parametrize("few", [N_ROWS, N_ROWS - 1])
def test_an_error_behind_arrives_after_the_batches_before_it(
    source: Source, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widedeep.data.reader.BLOCK_ROWS", few)
    plan = plan_for(source, shuffle=False, batch_size=10)

    def failing(table: pa.Table) -> Batch:
        if pc.max(table["row"]).as_py() >= 45:
            raise DataError("row 45: got 'x', expected a number")
        return encode(table)

    for threads in (1, 3):
        seen = []
        with pytest.raises(DataError, match="row 45: got 'x', expected a number"):
            for batch in BatchReader(source, failing, plan, threads=threads):
                seen.extend(rows_in(batch))
        assert seen == list(range(40))


@pytest.mark.parametrize("shuffle", [True, False])
def test_fragments_that_were_encoded_give_the_same_batches(source: Source, shuffle: bool) -> None:
    n_encoded = 0

    def counting(table: pa.Table) -> Batch:
        nonlocal n_encoded
        n_encoded += table.num_rows
        return encode(table)

    fragments: dict[int, Any] = {}
    for epoch in range(3):
        plan = plan_for(source, shuffle=shuffle, batch_size=7, epoch=epoch)
        wanted = [rows_in(batch) for batch in BatchReader(source, encode, plan)]
        found = BatchReader(source, counting, plan, fragments=fragments)
        assert [rows_in(batch) for batch in found] == wanted
    assert n_encoded == N_ROWS


def test_a_file_that_vanishes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "gone.parquet"
    pq.write_table(pa.table({"row": np.arange(10)}), path)
    with open_source(path) as source:
        path.unlink()
        with pytest.raises(DataError, match=r"gone\.parquet: row group 0 cannot be read"):
            list(BatchReader(source, encode, plan_for(source)))


@pytest.mark.parametrize(("pool_rows", "most_rows"), [(100, 200), (400, 600)])
def test_few_rows_are_alive(pool_rows: int, most_rows: int, tmp_path: Path) -> None:
    n_encoded = n_seen = most = 0

    def counting(table: pa.Table) -> Batch:
        nonlocal n_encoded, most
        n_encoded += table.num_rows
        most = max(most, n_encoded - n_seen)
        return encode(table)

    pq.write_table(pa.table({"row": np.arange(3000)}), tmp_path / "t.parquet", row_group_size=30)
    with open_source(tmp_path / "t.parquet") as source:
        plan = plan_for(source, pool_rows=pool_rows, batch_size=10)
        for batch in BatchReader(source, counting, plan, prefetch=1, threads=2):
            time.sleep(0.0005)
            n_seen += len(batch)
    assert most <= most_rows
    assert n_seen == n_encoded == 3000


def test_numbers_alone_are_shuffled_too(source: Source) -> None:
    def encode_numbers(table: pa.Table) -> Batch:
        dense = np.asarray(table["row"], np.float32)[:, None]
        ids, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
        return Batch(ids_N=ids, offsets_BF=offsets, dense_BK=dense)

    plan = plan_for(source)
    batches = list(BatchReader(source, encode_numbers, plan))
    rows = [batch.dense_BK[:, 0].astype(int).tolist() for batch in batches]
    assert rows == expected_batches(source, plan)
    assert {batch.n_slots for batch in batches} == {0}


def test_no_rows_make_no_batch() -> None:
    source = open_source({"row": np.zeros(0, np.int64)})
    assert list(BatchReader(source, encode, plan_for(source))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: got 0"),
        ({"prefetch": 0}, "prefetch: got 0"),
        ({"start_batch": 14}, "batch 14: this epoch has batches 0 to 12"),
    ],
)
def test_numbers_out_of_range(source: Source, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchReader(source, encode, plan_for(source), **options)


def test_a_bad_value_is_told_with_its_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "ages.parquet"
    pq.write_table(pa.table({"age": [1.0, 2.0, 3.0, float("inf")]}), path, row_group_size=2)
    transform = Transform(
        make_schema([wd.numeric("age", transform="none")], kinds={"age": "float"})
    )
    with open_source(path) as source:
        reader = BatchReader(source, transform, plan_for(source))
        with pytest.raises(WideDeepError, match=r"row 3 of .*ages\.parquet"):
            for _ in reader:
                pass


def in_order_of_time(kind: str, folder: Path) -> object:
    """20,000 rows in order of time, as one of the things that data may be."""
    table = pa.table({"row": np.arange(20_000)})
    if kind == "table":
        return table
    if kind == "reader":
        return table.to_reader(max_chunksize=999)
    if kind == "files":
        for number in range(40):
            pq.write_table(table.slice(number * 500, 500), folder / f"{number:02d}.parquet")
        return folder
    if kind == "csv":
        pacsv.write_csv(table, folder / "t.csv")
        return folder / "t.csv"
    rows = {"one row group": 20_000, "row groups": 250, "large row groups": 1000}[kind]
    pq.write_table(table, folder / "t.parquet", row_group_size=rows)
    return folder / "t.parquet"


@pytest.mark.parametrize(
    "kind",
    ["table", "reader", "files", "csv", "one row group", "row groups", "large row groups"],
)
def test_batches_know_nothing_of_the_order_of_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a million rows are under the sizes that are built in.
    monkeypatch.setattr("widedeep.data.fragments.TABLE_FRAGMENT_ROWS", 125)
    monkeypatch.setattr("widedeep.data.fragments.ROW_GROUP_ROWS", 250)
    monkeypatch.setattr("widedeep.data.parquet_input.MAX_ROW_GROUP_ROWS", 4000)
    with open_source(in_order_of_time(kind, tmp_path)) as source:
        plan = plan_for(source, batch_size=100, pool_rows=1000)
        batches = [rows_in(batch) for batch in BatchReader(source, encode, plan)]
    assert sorted(chain(*batches)) == list(range(20_000))
    times = np.array([np.mean(batch) for batch in batches]) / 20_000
    drift, start = np.polyfit(np.linspace(0, 1, len(times)), times, 1)
    # In order of time 1 and 0; the mean of 100 rows strays by 0.03.
    assert abs(drift) < 0.1
    assert abs(start + drift / 2 - 0.5) < 0.005
    assert abs(times[-20:].mean() - 0.5) < 0.06
    assert times.std() < (0.07 if kind == "large row groups" else 0.05)
