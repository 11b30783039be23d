"""A share of the rows: disjoint, complete, the same every time, and whatever the input is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from widedeep.data.sources import RowShare, open_source, row_hashes, split_rows
from widedeep.errors import ConfigError, DataError


def values(data: object) -> list[int]:
    with open_source(data) as source:
        tables = [source.read(fragment) for fragment in source.fragments]
        assert source.num_rows == sum(table.num_rows for table in tables)
        return [value for table in tables for value in table["x"].to_pylist()]


@pytest.fixture
def table() -> pa.Table:
    return pa.table({"x": list(range(20_000)), "job": [f"job {i % 7}" for i in range(20_000)]})


def test_training_and_validation_rows_are_disjoint_and_complete(table: pa.Table) -> None:
    train, valid = split_rows(table, 0.1)
    kept, held = values(train), values(valid)
    assert sorted([*kept, *held]) == list(range(20_000))
    assert kept == sorted(kept)
    # Three standard deviations of a binomial count: sqrt(20000 * 0.1 * 0.9) = 42.
    assert abs(len(held) - 2_000) < 130


def test_the_rows_do_not_depend_on_how_the_table_is_stored(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=317)
    pq.write_table(table.slice(0, 11_111), tmp_path / "part-0.parquet")
    pq.write_table(table.slice(11_111), tmp_path / "part-1.parquet", row_group_size=999)
    wanted = values(split_rows(table, 0.3)[1])
    assert values(split_rows(tmp_path / "a.parquet", 0.3)[1]) == wanted
    assert values(split_rows(str(tmp_path / "part-*.parquet"), 0.3)[1]) == wanted


def test_a_larger_share_holds_the_smaller_one(table: pa.Table) -> None:
    small, large = values(split_rows(table, 0.1)[1]), values(split_rows(table, 0.2)[1])
    assert set(small) < set(large)


def test_another_seed_chooses_other_rows_and_is_no_shift_of_the_first() -> None:
    first, second = row_hashes(0, 1000, 0), row_hashes(0, 1000, 1)
    assert not np.isin(second, first).any()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert (row_hashes(400, 10, 0) == first[400:410]).all()


def test_a_changed_share_is_another_input(table: pa.Table) -> None:
    train, other = split_rows(table, 0.1)[0], split_rows(table, 0.1, seed=1)[0]
    with open_source(train) as one, open_source(other) as two:
        assert one.describe()[0]["name"] != two.describe()[0]["name"]
        assert one.describe()[0]["rows"] == one.num_rows


def test_a_column_of_a_share(table: pa.Table) -> None:
    with open_source(split_rows(table, 0.5)[0], columns=["job"]) as source:
        assert source.arrow_schema.names == ["job"]
        assert source.read(source.fragments[0]).column_names == ["job"]


@pytest.mark.parametrize("by", [None, "job"])
def test_an_error_names_a_row_by_its_place_in_the_file(
    table: pa.Table, tmp_path: Path, by: str | None
) -> None:
    for number, start in enumerate((0, 12_000)):
        part = table.slice(start, 12_000)
        pq.write_table(part, tmp_path / f"{number}.parquet", row_group_size=5_000)
    paths = [str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")]
    share = split_rows(paths, 0.5, by=by)[0]
    with open_source(share) as source:
        fragment = source.fragments[-1]
        last = source.read(fragment)["x"][-1].as_py()
        origin, row = fragment.origin, fragment.first_row + fragment.num_rows - 1
    for text in (f"x (row {row} of {origin}): bad", f"{origin}, row {row:,}, column"):
        with pytest.raises(DataError) as caught, open_source(share):
            raise DataError(text)
        assert f"row {last - 12_000} of {paths[1]}" in str(caught.value)


def test_an_error_names_a_row_of_json_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'\n{{"x": {i}}}\n' for i in range(900)))
    with open_source(split_rows(path, 0.5)[0]) as source:
        fragment = source.fragments[-1]
        row = fragment.first_row + fragment.num_rows - 1
        last = source.read(fragment)["x"][-1].as_py()
        assert source.row_name(fragment.origin, row) == f"line {2 * last + 2:,} of {path}"


def test_an_error_names_a_row_of_csv_by_its_line(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    quoted = "\n".join(f'{i},"two\nlines"' for i in range(9_000))
    path.write_text(f"\nx,job\n{quoted}\n")
    for data in (path, split_rows(path, 0.5)[0]):
        with open_source(data) as source:
            fragment = source.fragments[-1]
            origin, row = fragment.origin, fragment.first_row + fragment.num_rows - 1
            last = source.read(fragment)["x"][-1].as_py()
            assert source.row_name(origin, row) == f"line {2 * last + 3:,} of {path}"


def test_what_can_be_read_only_once_is_refused(table: pa.Table) -> None:
    with pytest.raises(DataError, match="RecordBatchReader, which can be read only once"):
        split_rows(table.to_reader(), 0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match=f"valid_fraction={fraction}, expected 0 < share < 1"):
        split_rows([{"x": 1}], fraction)


def test_a_share_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"from 0\.5 to 0\.4, expected 0 <= start < stop <= 1"):
        RowShare(data=[{"x": 1}], start=0.5, stop=0.4)


# ---- by a column --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_rows_of_one_value_stay_together(tmp_path: Path, suffix: str) -> None:
    requests = [None if i < 12 else f"r{i // 4}" for i in range(4_000)]
    table = pa.table({"x": range(4_000), "request": requests})
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=317)
    train, valid = (values(share) for share in split_rows(path, 0.2, by="request"))
    assert sorted([*train, *valid]) == list(range(4_000))
    assert not {requests[x] for x in train} & {requests[x] for x in valid}
    assert abs(len(valid) - 800) < 160
    assert values(split_rows(path, 0.2, by="request", seed=1)[1]) != valid


@pytest.mark.parametrize(
    "times",
    [
        pa.array(range(1_000), pa.timestamp("s")),
        pa.array([i / 7 for i in range(1_000)]),
        pa.array([f"2024-01-{i // 40 + 1:02d}" for i in range(1_000)]),
    ],
)
def test_the_latest_rows_by_time(times: pa.Array) -> None:
    order = np.random.default_rng(0).permutation(1_000)
    table = pa.table({"x": order, "time": times.take(pa.array(order))})
    train, valid = split_rows(table, 0.2, latest="time")
    assert sorted(values(valid)) == list(range(800, 1_000))
    assert sorted(values(train)) == list(range(800))
    with open_source(valid, columns=["x"]) as source:
        assert source.arrow_schema.names == ["x"]
        assert source.describe()[0]["name"].endswith("share 0 to 0.2 of its rows, latest by time)")


def test_equal_times_are_not_split_and_null_is_old() -> None:
    table = pa.table({"x": range(10), "day": [None, 1, 1, 2, 2, 2, 3, 3, 3, 3]})
    assert values(split_rows(table, 0.2, latest="day")[1]) == [6, 7, 8, 9]
    assert values(split_rows(table, 0.5, latest="day")[1]) == [3, 4, 5, 6, 7, 8, 9]
    assert 0 in values(split_rows(table, 0.8, latest="day")[0])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("tmie", "no column 'tmie' to split by; did you mean 'time'"),
        ("same", "'same' has one value in all rows; name another"),
        ("list", "'list' is of type list<item: int64>, which has no order"),
    ],
)
def test_a_column_that_gives_no_order(column: str, message: str) -> None:
    table = pa.table({"time": [1, 2], "same": [5, 5], "list": [[1], [2]]})
    with pytest.raises(DataError, match=message):
        open_source(split_rows(table, 0.5, latest=column)[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.timestamp("ms"), pa.timestamp("us")),
        (pa.int32(), pa.int64()),
        (pa.decimal128(20, 1), pa.decimal128(22, 3)),
        (pa.float32(), pa.float64()),
    ],
    ids=str,
)
def test_files_that_store_values_otherwise_are_split_as_one(
    one: pa.DataType, other: pa.DataType, tmp_path: Path
) -> None:
    numbers = pa.array(range(100, 150), pa.int64())
    numbers = numbers.cast(pa.int32()) if one == pa.int32() else numbers
    for name, (first, column) in {
        "1": (0, numbers.cast(one)),
        "2": (50, numbers.cast(one)),
    }.items():
        column = column.cast(other) if first else column
        rows = pa.table({"x": pa.array(range(first, first + 50)), "o": column})
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    path = str(tmp_path / "?.parquet")
    latest = values(split_rows(path, 0.2, latest="o")[1])
    assert sorted(latest) == [*range(40, 50), *range(90, 100)]
    train, valid = ({x % 50 for x in values(share)} for share in split_rows(path, 0.3, by="o"))
    assert train and valid and not train & valid


def test_values_of_one_file_beside_nulls_of_another(tmp_path: Path) -> None:
    for name, column in {"1": pa.nulls(50), "2": pa.array(range(50))}.items():
        rows = pa.table({"x": pa.array([int(name)] * 50), "o": column})
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    assert set(values(split_rows(str(tmp_path / "?.parquet"), 0.2, latest="o")[1])) == {2}


def test_a_column_that_names_no_group() -> None:
    table = pa.table({"x": [1, 2], "list": [[1], [2]]})
    with pytest.raises(DataError, match=r"'list' is of type list.* which names no group of rows"):
        open_source(split_rows(table, 0.5, by="list")[0])


def test_one_way_to_split() -> None:
    with pytest.raises(ConfigError, match="both by='a' and latest='b', expected one of them"):
        split_rows([{"a": 1}], 0.5, by="a", latest="b")
