"""A sample is a part of the table, spread over it, of the size asked for."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from widedeep.data.profile import sample_rows
from widedeep.errors import DataError


def numbers(rows: int) -> pa.Table:
    return pa.table({"x": list(range(rows)), "job": [f"job {i % 5}" for i in range(rows)]})


@pytest.mark.parametrize("group_rows", [7, 100, 333, 1000])
def test_it_is_spread_from_the_beginning_to_the_end(tmp_path: Path, group_rows: int) -> None:
    pq.write_table(numbers(1000), tmp_path / "t.parquet", row_group_size=group_rows)
    sample = sample_rows(tmp_path / "t.parquet", rows=300)
    x = sample.table["x"].to_pylist()
    assert (len(x), sample.total, sample.complete) == (300, 1000, False)
    assert x == sorted(set(x))
    assert x[0] == 0
    if group_rows < 1000:
        assert x[-1] >= 993


@pytest.mark.parametrize("group_rows", [7, 333])
def test_a_small_table_is_taken_whole(tmp_path: Path, group_rows: int) -> None:
    pq.write_table(numbers(1000), tmp_path / "t.parquet", row_group_size=group_rows)
    sample = sample_rows(tmp_path / "t.parquet", rows=2000)
    assert sample.table["x"].to_pylist() == list(range(1000))
    assert sample.complete


def test_a_csv_is_typed_by_all_of_its_rows(tmp_path: Path) -> None:
    pacsv.write_csv(numbers(1000), tmp_path / "t.csv")
    with open(tmp_path / "t.csv", "a", encoding="utf-8") as file:
        file.write("soon,a\n")
    sample = sample_rows(str(tmp_path / "t.csv"), rows=300)
    assert sample.table.schema.field("x").type == pa.string()
    assert (sample.table.num_rows, sample.total, sample.complete) == (300, 1001, False)
    assert sample_rows(str(tmp_path / "t.csv"), rows=1001).complete


def test_text_is_plain_and_columns_are_chosen(tmp_path: Path) -> None:
    table = numbers(50)
    table = table.set_column(1, "job", table["job"].dictionary_encode())
    sample = sample_rows(table, columns=["job"])
    assert sample.table.schema == pa.schema([("job", pa.string())])


def test_columns_that_are_not_asked_for_may_differ_between_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"job": ["a"], "note": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"job": ["b"], "note": ["x"], "more": [1]}), tmp_path / "2.parquet")
    sample = sample_rows(str(tmp_path / "*.parquet"), columns=["job"])
    assert sample.table["job"].to_pylist() == ["a", "b"]


def test_no_rows() -> None:
    with pytest.raises(DataError, match=r"got no rows; expected at least one example"):
        sample_rows(numbers(0))
