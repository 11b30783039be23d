"""Every kind of input gives the same rows, and every damaged one a message that names it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.data.fragments import ROW_GROUP_ROWS, check_same_inputs, column_stream, origin_of
from widedeep.data.profile import sample_rows
from widedeep.data.sources import Source, open_source
from widedeep.errors import DataError

TYPES = {"age": pa.float64(), "job": pa.string()}


def census(n: int = 10) -> pa.Table:
    jobs = ["Sales", None, "Tech", ""]
    ages = [None if row % 7 == 3 else float(row) for row in range(n)]
    return pa.table({"age": ages, "job": [jobs[row % 4] for row in range(n)]})


def rows_of(source: Source) -> list[dict[str, Any]]:
    return [row for fragment in source.fragments for row in source.read(fragment).to_pylist()]


def _parquet(table: pa.Table, folder: Path) -> Path:
    pq.write_table(table, folder / "t.parquet", row_group_size=4)
    return folder / "t.parquet"


def _folder(table: pa.Table, folder: Path) -> Path:
    pq.write_table(table.slice(0, 6), folder / "part-0.parquet")
    (folder / "day").mkdir()
    pq.write_table(table.slice(6), folder / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    pq.write_table(table, folder / "_temporary" / "half.parquet")
    return folder


def _glob(table: pa.Table, folder: Path) -> str:
    _folder(table, folder)
    return str(folder / "part-*.parquet")


def _paths(table: pa.Table, folder: Path) -> list[str | Path]:
    _folder(table, folder)
    return [folder / "part-0.parquet", str(folder / "part-1.parquet")]


def _csv(table: pa.Table, folder: Path) -> Path:
    pacsv.write_csv(table, folder / "t.csv")
    return folder / "t.csv"


def _feather(table: pa.Table, folder: Path) -> Path:
    feather.write_feather(table, folder / "t.feather", chunksize=3)
    return folder / "t.feather"


def _arrow_stream(table: pa.Table, folder: Path) -> Path:
    with pa.ipc.new_stream(folder / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return folder / "t.arrow"


def _batch_generator(table: pa.Table, folder: Path) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches(max_chunksize=3)


def _duckdb(table: pa.Table, folder: Path) -> Any:
    return duckdb.connect().from_arrow(table)


class StreamExporter:
    """Nothing but the C stream interface, as a foreign library offers it."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


KINDS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "parquet": _parquet,
    "folder": _folder,
    "glob": _glob,
    "paths": _paths,
    "csv": _csv,
    "feather": _feather,
    "arrow stream file": _arrow_stream,
    "table": lambda table, folder: table,
    "batch": lambda table, folder: table.combine_chunks().to_batches()[0],
    "batches": lambda table, folder: table.to_batches(max_chunksize=3),
    "generator": _batch_generator,
    "reader": lambda table, folder: table.to_reader(max_chunksize=3),
    "exporter": lambda table, folder: StreamExporter(table),
    "duckdb": _duckdb,
    "pandas": lambda table, folder: table.to_pandas(),
    "polars": lambda table, folder: pl.from_arrow(table),
    "dicts": lambda table, folder: table.to_pylist(),
    "columns": lambda table, folder: table.to_pydict(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows_twice(kind: str, tmp_path: Path) -> None:
    table = census()
    with open_source(KINDS[kind](table, tmp_path), column_types=TYPES) as source:
        assert source.num_rows == 10
        assert source.arrow_schema == pa.schema(TYPES)
        assert rows_of(source) == table.to_pylist()
        assert rows_of(source) == table.to_pylist()
        assert source.describe()[0]["rows"] in (10, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_named_columns_come_in_the_order_asked(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind](census(), tmp_path)
    with open_source(data, columns=["job", "age"], column_types=TYPES) as source:
        assert source.read(source.fragments[0]).column_names == ["job", "age"]
        only_age = source.read(source.fragments[-1], ["age"])
        assert only_age.column_names == ["age"]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_column_is_named_with_the_nearest(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'jib'; did you mean 'job'\?"):
        open_source(KINDS[kind](census(), tmp_path), columns=["jib"], column_types=TYPES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "data: got int; expected a path"),
        ([], "got an empty list"),
        ([1, 2], r"data\[0\]: got a int"),
        (["a.parquet", 3], r"data\[1\]: got a int in a list of paths"),
        (pa.array([1, 2]), "is no table"),
        ({"a": [1], "b": [1, 2]}, "different numbers of rows"),
        ([{"a": 1}, {"a": "x"}], "column 'a' has no single type"),
        (pd.DataFrame({"a": [1, "x"]}), "column 'a' has no single type"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns are named 'a'"),
        (pa.table([[1], [2]], names=["a", "a"]), "two columns are named 'a'"),
        (pa.table([[1], [2]], names=["a", "a"]).to_reader(), "two columns are named 'a'"),
        (iter([]), "yielded no batch"),
        (iter([pa.record_batch({"a": [1]}), 3]), "yielded a int"),
    ],
)
def test_what_is_no_table_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(data)


def test_missing_unmatched_and_unknown_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    for data, message in [
        (tmp_path / "none.parquet", r"none\.parquet: no such file"),
        (str(tmp_path / "*.parquet"), r"\*\.parquet: no file matches"),
        (tmp_path / "a.xlsx", r"unknown kind of file '\.xlsx'"),
        (tmp_path, r"a folder without \.parquet files"),
    ]:
        with pytest.raises(DataError, match=message):
            open_source(data)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_parquet_is_named(damage: str, tmp_path: Path) -> None:
    path = _parquet(census(), tmp_path)
    good = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": good[:-50], "text": b"age,job\n1,x\n"}[damage])
    with pytest.raises(DataError, match=r"t\.parquet: not a complete Parquet file.*write it again"):
        open_source(path)


def test_damaged_row_group_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = _parquet(census(), tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = bytes(196)
    path.write_bytes(damaged)
    source = open_source(path)
    with pytest.raises(DataError, match=r"t\.parquet: row group 0 cannot be read"):
        source.read(source.fragments[0])


def test_file_that_changes_during_a_run_is_an_error(tmp_path: Path) -> None:
    path = _parquet(census(), tmp_path)
    source = open_source(path)
    pq.write_table(census(20), path, row_group_size=4)
    with pytest.raises(DataError, match=r"t\.parquet: changed while being read"):
        source.read(source.fragments[0])


def test_truncated_arrow_file_is_named(tmp_path: Path) -> None:
    path = _feather(census(), tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.feather: not a complete Arrow file"):
        open_source(path)


def _two_files(one: pa.Table, other: pa.Table, folder: Path) -> list[Path]:
    pq.write_table(one, folder / "one.parquet")
    pq.write_table(other, folder / "two.parquet")
    return [folder / "one.parquet", folder / "two.parquet"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (pa.table({"age": [1.0]}), r"two\.parquet: no column 'job'"),
        (census().append_column("x", [list(range(10))]), r"two\.parquet: extra column 'x'"),
        (
            pa.table({"age": ["1"], "job": ["x"]}),
            r"two\.parquet: column 'age' is string, but double",
        ),
    ],
)
def test_files_that_disagree_are_named(other: pa.Table, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_source(_two_files(census(), other, tmp_path))


def test_extra_and_reordered_columns_do_no_harm_to_named_ones(tmp_path: Path) -> None:
    other = pa.table({"x": [9], "job": ["Tech"], "age": [1.0]})
    source = open_source(_two_files(census(1), other, tmp_path), columns=["age", "job"])
    assert rows_of(source) == [{"age": 0.0, "job": "Sales"}, {"age": 1.0, "job": "Tech"}]


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
        (pa.array([1], pa.uint32()), pa.array([-1], pa.int8()), pa.int64()),
        (pa.array([1], pa.float32()), pa.array([0.5]), pa.float64()),
        (pa.array(["a"]), pa.array(["a"]).dictionary_encode(), pa.string()),
        (pa.array([None], pa.null()), pa.array([5]), pa.int64()),
        (pa.array([["a"]]), pa.array([["b"]], pa.large_list(pa.large_string())), None),
        (pa.array([1], pa.timestamp("s")), pa.array([2], pa.timestamp("us")), pa.timestamp("us")),
        (
            pa.array([1], pa.timestamp("ms", "UTC")),
            pa.array([2], pa.timestamp("s", "+00:00")),
            pa.timestamp("ms", "UTC"),
        ),
        (
            pa.array([Decimal("1.5")], pa.decimal128(3, 1)),
            pa.array([Decimal("20.25")], pa.decimal128(5, 2)),
            pa.decimal128(5, 2),
        ),
        (pa.array([[1.5]], pa.list_(pa.float32(), 1)), pa.array([[2.5]]), pa.list_(pa.float64())),
        (pa.array([[None]], pa.list_(pa.null())), pa.array([["a"]]), pa.list_(pa.string())),
    ],
)
def test_widths_and_encodings_are_unified(
    one: pa.Array, other: pa.Array, agreed: pa.DataType | None, tmp_path: Path
) -> None:
    files = _two_files(pa.table({"v": one}), pa.table({"v": other}), tmp_path)
    source = open_source(files)
    assert source.arrow_schema.field("v").type == (agreed or pa.list_(pa.string()))
    assert [row["v"] for row in rows_of(source)] == one.to_pylist() + other.to_pylist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array([1.5])),
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1], pa.uint64()), pa.array([1])),
        (pa.array([True]), pa.array([1])),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC"))),
        (
            pa.array([1], pa.timestamp("us", "Europe/Rome")),
            pa.array([1], pa.timestamp("us", "UTC")),
        ),
        (pa.array([Decimal(1)], pa.decimal128(38, 0)), pa.array([Decimal("0.5")])),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([["a"]]), pa.array(["a"])),
    ],
)
def test_types_of_other_values_are_refused(one: pa.Array, other: pa.Array, tmp_path: Path) -> None:
    files = _two_files(pa.table({"v": one}), pa.table({"v": other}), tmp_path)
    for pair in (files, files[::-1]):
        with pytest.raises(DataError, match=r"column 'v' is .* in .*(one|two)\.parquet"):
            open_source(pair)


def _latin1(kind: pa.DataType) -> pa.Array:
    """Rows 'ab' and the bytes of a word in Latin-1, which no type of text checks."""
    data = pa.array([b"ab", "thé".encode("latin-1")], pa.binary())
    plain = pa.Array.from_buffers(pa.string(), 2, data.buffers())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays([0, 1, 2], plain)
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays([0, 1], plain)
    return data if kind == pa.binary() else plain


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.binary(), pa.list_(pa.string()), pa.dictionary(pa.int32(), pa.string())],
)
@pytest.mark.parametrize("form", ["table", "parquet", "reader", "feather"])
def test_bytes_that_are_no_utf8_are_named(kind: pa.DataType, form: str, tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2], "v": _latin1(kind)})
    source = open_source(KINDS[form](table, tmp_path), columns=["v"])
    with pytest.raises(DataError, match=r"row 1, column 'v': got b'th\\xe9', which is not UTF-8"):
        rows_of(source)


_WORDS = pa.array(["a", "b", None, "a", "c"])
_LISTS = [["a"], None, ["b", "a"], [], ["c"]]


def _views(dictionary: pa.DictionaryArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        dictionary.indices, dictionary.dictionary.cast(pa.string_view())
    )


@pytest.mark.parametrize(
    "column",
    [
        pc.run_end_encode(_WORDS),
        pc.run_end_encode(pa.array([7, 7, None, 9, 9])),
        pa.RunEndEncodedArray.from_arrays([2, 4, 5], pa.array(["a", "b", None], pa.string_view())),
        pa.RunEndEncodedArray.from_arrays([2, 5], pa.array(["a", "b"]).dictionary_encode()),
        _views(_WORDS.dictionary_encode()),
        pa.array(_LISTS, pa.list_view(pa.string())),
        pa.array(_LISTS, pa.large_list_view(pa.string_view())),
        pa.array([[1], None, [2, 1], [], [3]], pa.list_view(pa.int8())),
        pa.ListArray.from_arrays([0, 1, 2, 3, 4, 5], _views(_WORDS.dictionary_encode())),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("form", ["table", "slice", "batches", "arrow", "catalogue"])
def test_any_encoding_of_arrow_gives_its_values(
    column: pa.Array, form: str, tmp_path: Path
) -> None:
    table, expected = pa.table({"id": [1, 2, 3, 4, 5], "x": column}), column.to_pylist()
    data: Any = table
    if form == "slice":
        data, expected = table.slice(2), expected[2:]
    elif form == "batches":
        data = iter([table.slice(0, 3), table.slice(3)])
    elif form == "arrow":
        data = tmp_path / "x.arrow"
        with pa.ipc.new_file(data, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif form == "catalogue":
        found = wd.Catalogue(table, id_column="id").table["x"]
        assert found.to_pylist() == expected
        return
    with open_source(data) as source:
        tables = [source.read(fragment) for fragment in source.fragments]
        assert pa.concat_tables(tables)["x"].to_pylist() == expected
        source.describe()
    assert sample_rows(table).table["x"].to_pylist() == column.to_pylist()


def test_pictures_that_nobody_names_pass() -> None:
    table = pa.table({"picture": [b"\xff\xd8"], "x": [1]})
    assert rows_of(open_source(table)) == table.to_pylist()


HALF = "half \ud83d"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"a": "x"}, {"a": HALF}], r"column 'a', row 1: got text with half of a surrogate pair"),
        ({"a": ["x", HALF]}, "column 'a', row 1: got text with half"),
        ([{"a": ["x"]}, {"a": [HALF]}], "column 'a', row 1: got text with half"),
        ({HALF: [1]}, "name with half of a surrogate pair"),
        ([{HALF: 1}], "name with half of a surrogate pair"),
        ([{"a": 2**64}], "column 'a' holds a whole number beyond 64 bits; write it as text"),
        ({"a": [1, -(2**70)]}, "beyond 64 bits"),
        (pd.DataFrame({"a": pd.Series([1, 2**70], dtype=object)}), "beyond 64 bits"),
        ([{"a": 2**53 + 1}, {"a": 0.5}], "column 'a' has no single type"),
        ([{0: 1, "0": 2}], r"two columns are named '0' \(0 and '0'\)"),
        ({0: [1], "0": [2]}, "two columns are named '0'"),
        ({"job": "Sales"}, "got text, expected a list of values, one a row"),
        (
            [{"t": datetime(2020, 1, 1)}, {"t": datetime(2020, 1, 1, tzinfo=UTC)}],
            "column 't' mixes times with a zone and times without",
        ),
        (pd.DataFrame({"a": [object()]}), "column 'a' has no single type"),
        (pd.DataFrame({"a": [1j]}), "column 'a' has no single type"),
        ([{"a": True}, {"a": 2}], "column 'a' has no single type"),
        (iter([pa.record_batch({"a": [7]}), pa.record_batch({"a": ["007"]})]), "batch 1: column"),
        (iter([pa.record_batch({"a": [1]}), pa.record_batch({"a": [1.5]})]), "batch 1: column"),
        (iter([pa.record_batch({"a": [1]}), pa.record_batch({"b": [1]})]), "no column 'a'"),
        (
            iter([pa.record_batch({"a": pa.array([1], pa.int8())}), pa.record_batch({"a": [300]})]),
            "but int8 in the first batch; yield one type, the widest",
        ),
    ],
)
def test_values_without_a_place_in_a_column(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(data)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, pd.NA], [1, None]),
        (["x", pd.NA, float("nan")], ["x", None, None]),
        ([1, pd.NaT], [1, None]),
        ([datetime(2020, 1, 1), pd.NaT], [datetime(2020, 1, 1), None]),
        ([True, pd.NA, None], [True, None, None]),
    ],
)
def test_marks_of_a_missing_value_are_null(values: list[Any], expected: list[Any]) -> None:
    for data in ([{"a": value} for value in values], {"a": values}):
        assert [row["a"] for row in rows_of(open_source(data))] == expected
    frame = pd.DataFrame({"a": pd.Series(values, dtype=object)})
    assert [row["a"] for row in rows_of(open_source(frame))] == expected


def test_keys_that_are_no_text_keep_their_values() -> None:
    assert rows_of(open_source([{0: 1, "b": 2}, {0: 3}])) == [{"0": 1, "b": 2}, {"0": 3, "b": None}]


def test_text_of_parquet_comes_as_dictionaries(tmp_path: Path) -> None:
    table = census().append_column("tags", [[["a", "b"], []] * 5])
    source = open_source(_parquet(table, tmp_path))
    read = source.read(source.fragments[0])
    assert pa.types.is_dictionary(read.schema.field("job").type)
    assert pa.types.is_dictionary(read.schema.field("tags").type.value_type)
    assert read.column("tags").to_pylist() == [["a", "b"], [], ["a", "b"], []]


def test_text_without_a_dictionary_stays_plain(tmp_path: Path) -> None:
    pq.write_table(census(), tmp_path / "t.parquet", use_dictionary=False)
    source = open_source(tmp_path / "t.parquet")
    assert source.read(source.fragments[0]).schema.field("job").type == pa.string()


def test_large_row_groups_are_rewritten_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widedeep.data.parquet_input.MAX_ROW_GROUP_ROWS", 1000)
    table = census(ROW_GROUP_ROWS + 10)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1 << 20)
    with open_source(tmp_path / "t.parquet") as source:
        assert [fragment.num_rows for fragment in source.fragments] == [ROW_GROUP_ROWS, 10]
        assert rows_of(source) == table.to_pylist()
        assert source.describe()[0]["bytes"] == (tmp_path / "t.parquet").stat().st_size


def test_tables_in_memory_are_cut_into_fragments() -> None:
    source = open_source(pa.table({"x": np.arange(300_000)}))
    assert [fragment.num_rows for fragment in source.fragments] == [32_768] * 9 + [5_088]
    assert source.read(source.fragments[2])["x"][0].as_py() == 65_536
    assert [table.num_rows for table in column_stream(source)] == [32_768] * 9 + [5_088]


def test_fragments_say_where_they_come_from(tmp_path: Path) -> None:
    source = open_source(_paths(census(), tmp_path))
    origins = [origin_of(source.read(fragment)) for fragment in source.fragments]
    assert origins == [
        (str(tmp_path / "part-0.parquet"), 0),
        (str(tmp_path / "part-1.parquet"), 0),
    ]
    parquet = open_source(_parquet(census(), tmp_path))
    assert [origin_of(parquet.read(f))[1] for f in parquet.fragments] == [0, 4, 8]  # type: ignore[index]


def test_no_rows_are_told_by_their_number(tmp_path: Path) -> None:
    for kind in ("parquet", "csv", "feather", "table", "reader", "pandas", "polars", "columns"):
        with open_source(KINDS[kind](census().slice(0, 0), tmp_path), column_types=TYPES) as empty:
            assert empty.num_rows == 0
            assert empty.arrow_schema.names == ["age", "job"]
            assert empty.fragments == ()


def test_csv_types_come_from_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('zip,age,note\n00501,1,NA\n,2.5,""\n')
    types = {"zip": pa.string(), "age": pa.float64(), "note": pa.string()}
    with open_source(path, column_types=types) as source:
        assert rows_of(source) == [
            {"zip": "00501", "age": 1.0, "note": "NA"},
            {"zip": None, "age": 2.5, "note": ""},
        ]


def test_csv_types_hold_beyond_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widedeep.data.csv_input.BLOCK_BYTES", 64)
    path = tmp_path / "t.csv"
    path.write_text("code\n" + "\n".join(["12"] * 100 + ["x7"]))
    with open_source(path, column_types={"code": pa.string()}) as source:
        assert rows_of(source)[-1] == {"code": "x7"}
    with open_source(path) as source:
        assert source.arrow_schema.field("code").type == pa.string()
    types = {"code": pa.float64()}
    with pytest.raises(
        DataError, match=r"t\.csv, line 102, column 'code': got 'x7', expected a num"
    ):
        open_source(path, column_types=types)


def test_csv_files_share_types_whatever_their_order(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("v,w\n0.5,a\n")
    (tmp_path / "2.csv").write_text("w,v\nb,3\n")
    with open_source(str(tmp_path / "*.csv")) as source:
        assert rows_of(source) == [{"v": 0.5, "w": "a"}, {"v": 3.0, "w": "b"}]
        assert [record["name"] for record in source.describe()] == ["1.csv", "2.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: an empty file; expected a header line"),
        ("age,job\n1\n", r"t.csv, line 2: got 1 field, expected 2 as in the header"),
        ("age,age\n1,2\n", "two columns are named 'age'"),
        ("age,job\nn/a,x\n", r"t.csv, line 2, column 'age': got 'n/a', expected a number or"),
    ],
)
def test_damaged_csv_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "t.csv", column_types=TYPES)


def test_null_in_a_frame_and_vectors_in_columns() -> None:
    frame = pd.DataFrame({"x": [1.0, np.nan], "c": pd.Categorical(["b", None])})
    assert rows_of(open_source(frame)) == [{"x": 1.0, "c": "b"}, {"x": None, "c": None}]
    vectors = open_source({"v": np.arange(6, dtype=np.float32).reshape(3, 2)})
    assert vectors.arrow_schema.field("v").type == pa.list_(pa.float32(), 2)
    assert rows_of(vectors)[1] == {"v": [2.0, 3.0]}


def test_keys_absent_from_some_dicts_are_null() -> None:
    source = open_source([{"a": 1}, {"b": "x", "a": 2}, {}])
    assert rows_of(source) == [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": None, "b": None}]


def test_temporary_copies_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    source = open_source(census().to_reader())
    assert len(list((tmp_path / "spool").rglob("*.parquet"))) == 1
    source.close()
    assert list((tmp_path / "spool").iterdir()) == []
    forgotten = open_source(census().to_reader())
    assert len(list((tmp_path / "spool").iterdir())) == 1
    del forgotten
    assert list((tmp_path / "spool").iterdir()) == []
    with pytest.raises(DataError):
        open_source(iter([census(), 3]))
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr("widedeep.data.fragments.Spool._next_path", lambda spool: Path("/dev/full"))
    with pytest.raises(DataError, match=r"cannot write the temporary copy.*TMPDIR"):
        open_source(census().to_reader())


def test_error_of_a_generator_arrives(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"a": [1]})
        raise RuntimeError("the cable was pulled")

    with pytest.raises(RuntimeError, match="the cable was pulled"):
        open_source(failing())


def test_changed_inputs_are_told(tmp_path: Path) -> None:
    old = open_source(_parquet(census(), tmp_path)).describe()
    check_same_inputs(old, old)
    with pytest.raises(DataError, match="has 2 inputs, but the interrupted run read 1"):
        check_same_inputs(old, old * 2)
    new = open_source(_parquet(census(11), tmp_path)).describe()
    with pytest.raises(DataError, match=r"t\.parquet\): rows is 11, but was 10"):
        check_same_inputs(old, new)
    table = census()
    changed = table.set_column(0, "age", [[9.0, *table["age"].to_pylist()[1:]]])
    with pytest.raises(DataError, match="checksum"):
        check_same_inputs(open_source(table).describe(), open_source(changed).describe())


def test_checksum_sees_values_not_layout() -> None:
    table = census(5000)
    layouts = [
        table,
        pa.Table.from_batches(table.to_batches(max_chunksize=7)),
        pa.concat_tables([table, table]).slice(5000),
        table.set_column(1, "job", table["job"].dictionary_encode()),
        table.set_column(1, "job", table["job"].cast(pa.string_view())),
        table.set_column(1, "job", table["job"].cast(pa.large_string())),
    ]
    sums = {open_source(layout).describe()[0]["checksum"] for layout in layouts}
    assert len(sums) == 1
    assert open_source(table.to_reader()).describe()[0]["checksum"] in sums


def test_a_type_without_a_feature_is_named_where_it_matters() -> None:
    table = census().append_column("when", [pa.nulls(10, pa.month_day_nano_interval())])
    with open_source(table, columns=["age"]) as source:
        assert len(source.describe()[0]["checksum"]) == 32
    with pytest.raises(DataError, match=r"month_day_nano_interval.*name only the columns"):
        open_source(table.to_reader())


def test_bytes_are_not_a_path() -> None:
    buffer = io.BytesIO()
    pq.write_table(census(), buffer)
    with pytest.raises(DataError, match="data: got bytes"):
        open_source(buffer.getvalue())
