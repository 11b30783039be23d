"""One grammar of CSV, types that all rows of all files agree on, and faults named by their line."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from widedeep.data import csv_input
from widedeep.data.sources import open_source
from widedeep.errors import DataError

TEXT = {"a": pa.string(), "b": pa.string()}


def write(folder: Path, data: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


def columns(path: Any, types: Any = None, names: list[str] | None = None) -> dict[str, list[Any]]:
    with open_source(path, columns=names, column_types=types) as source:
        tables = [source.read(fragment) for fragment in source.fragments]
        if not tables:
            return {name: [] for name in source.arrow_schema.names}
        return dict(pa.concat_tables(tables, promote_options="permissive").to_pydict())


def kind_of(path: Any, name: str, kind: Any = None) -> str:
    with open_source(path, column_types=None if kind is None else {name: kind}) as source:
        return str(source.arrow_schema.field(name).type)


def refuse(path: Any, *words: str, types: Any = None) -> None:
    with pytest.raises(DataError) as raised:
        columns(path, types)
    for word in words:
        assert word in str(raised.value)
    for word in ("newlines_in_values", "strict_mode", "ignore_errors", "ConvertOptions", "Row #"):
        assert word not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "a", "b"),
    [
        ('a,b\n,""\n', [None], [""]),
        ("a,b\n,\n", [None], [None]),
        ("a,b\nx,y", ["x"], ["y"]),
        ("a,b\nx,y\r\nz,w\n", ["x", "z"], ["y", "w"]),
        ("a,b\r\nx,y\r\n\r\n\nz,w\r\n\r\n", ["x", "z"], ["y", "w"]),
        ('a,b\n"x\ny","z\r\nw"\n', ["x\ny"], ["z\r\nw"]),
        ('a,b\n"say ""hi""",""""\n', ['say "hi"'], ['"']),
        ('a,b\n"x,y",","\n', ["x,y"], [","]),
        ('"a","b"\n"x","y"\n', ["x"], ["y"]),
        ("\ufeffa,b\nx,y\n", ["x"], ["y"]),
        ("\n\r\na,b\nx,y\n", ["x"], ["y"]),
        ("a,b\n x , y\t\n", [" x "], [" y\t"]),
        ("a,b\nNA,null\nNaN,None\n", ["NA", "NaN"], ["null", "None"]),
        ("a,b\n#x,y\n", ["#x"], ["y"]),
        ("a,b\n\u00e9\U0001f600,\u0661\n", ["\u00e9\U0001f600"], ["\u0661"]),
    ],
)
def test_the_grammar(tmp_path: Path, text: str, a: list[Any], b: list[Any]) -> None:
    assert columns(write(tmp_path, text), TEXT) == {"a": a, "b": b}


def test_one_column_alone_may_be_empty_on_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a\nx\n\ny\n\n")
    assert columns(path, TEXT) == {"a": ["x", None, "y", None]}
    path = write(tmp_path, "a\r\n1\r\n\r\n2\r\n")
    assert columns(path) == {"a": [1, None, 2]}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])
def test_what_a_block_holds_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, block: int
) -> None:
    monkeypatch.setattr(csv_input, "BLOCK_BYTES", block)
    draw = random.Random(block)
    pieces = ["x", "", ",", '"', "\n", "\r\n", "\u00e9", "007", " "]
    rows = [["".join(draw.choices(pieces, k=draw.randrange(5))) for _ in "ab"] for _ in range(60)]
    text = io.StringIO()
    csv.writer(text, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    expected = {"a": [row[0] for row in rows], "b": [row[1] for row in rows]}
    assert columns(write(tmp_path, text.getvalue()), TEXT) == expected
    packed = write(tmp_path, gzip.compress(text.getvalue().encode()), "t.csv.gz")
    assert columns(packed, TEXT) == expected


def test_a_field_longer_than_a_block(tmp_path: Path) -> None:
    long = "line\n" * (1 << 20)
    assert columns(write(tmp_path, f'a,b\n1,"{long}"\n2,y\n'), TEXT)["b"] == [long, "y"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ("an empty file", "header line")),
        (b"\n\n", ("an empty file",)),
        (b"a,b\n1,2\n1\n", ("t.csv, line 3", "got 1 field, expected 2")),
        (b"a,b\n1,2,3\n", ("line 2", "got 3 fields, expected 2", "quotes")),
        (b'a,b\n"x\ny",1\n\n1,2,3\n', ("line 5", "got 3 fields")),
        (b"a,a\n1,2\n", ("two columns are named 'a'",)),
        (b"a,,\n1,2,3\n", ("two columns are named ''",)),
        (b'a,b\n"x"y,1\n', ("line 2", "neither opens nor closes", '""word""')),
        (b'a,b\n5" pipe,1\n', ("line 2", "neither opens nor closes")),
        (b'a,b\n1,2\n"x,1\n2,3\n', ("line 3", "never closed")),
        (b"a,b\nx\0y,1\n", ("line 2", "zero byte")),
        (b"a,b\nx\ry,1\n", ("line 2", "carriage return")),
        (b"a,b\n1,\xe9t\xe9\n", ("line 2, column 'b'", "0xe9", "not UTF-8", "Latin-1")),
        (b'a,b\n"x\n",1\nth\xe9,2\n', ("line 4, column 'a'", "not UTF-8")),
        (b"\xe9t\xe9,b\n1,2\n", ("line 1", "not UTF-8")),
        (b"a,b\n1,\xed\xa0\x80\n", ("line 2, column 'b'", "not UTF-8")),
        ("a,b\n1,2\n".encode("utf-16"), ("UTF-16",)),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), ("gzip", ".csv.gz")),
    ],
)
def test_what_the_grammar_has_no_meaning_for(
    tmp_path: Path, data: bytes, words: tuple[str, ...]
) -> None:
    refuse(write(tmp_path, data), *words, types=TEXT)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"a,b\n1,2\n", "no gzip file"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0)[:-20], "incomplete"),
        (gzip.compress(gzip.compress(b"a,b\n1,2\n", mtime=0), mtime=0), "compressed twice"),
    ],
)
def test_what_is_no_gzip_file(tmp_path: Path, data: bytes, word: str) -> None:
    refuse(write(tmp_path, data, "t.csv.gz"), "t.csv.gz", word)


def test_other_separators_are_named(tmp_path: Path) -> None:
    for mark, word in [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")]:
        path = write(tmp_path, f"a{mark}b\n1{mark}2\n")
        with pytest.raises(DataError, match=rf"no column 'a'; its fields are separated by {word}"):
            columns(path, names=["a"])


CODES = ["02134", "2134"], ["1e5", "100000"], ["1E5", "100000"], ["+5", "5"], ["5.0", "5"]
MORE_CODES = ["-0", "0"], [" 7", "7"], ["0x10", "16"], ["\u0661", "1"], ["1_000", "1000"]
WIDE = [str(2**63), "1"], ["9007199254740993", "0.5"], ["9007199254740993.0", "1.0"]
DECIMALS = ["1.0", "1.00"], ["5.", "5"], [".5", "0.5"], ["00.5", "0.5"], ["1,5", "1"]
WORDS = ["inf", "1.5"], ["nan", "1.5"], ["NA", "1"], ["true", "True"], ["true", "1"], ["1d", "1"]


@pytest.mark.parametrize("pair", [*CODES, *MORE_CODES, *WIDE, *DECIMALS, *WORDS])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kind", [None, "category"])
def test_two_texts_stay_two_values(tmp_path: Path, pair: list[str], order: int, kind: Any) -> None:
    lines = "".join(f'"{value}"\n' for value in pair[::order])
    read = columns(write(tmp_path, "a\n" + lines), kind and {"a": kind})["a"]
    assert read == pair[::order]


@pytest.mark.parametrize(
    ("values", "undeclared", "category"),
    [
        ("1 2 -3", "int64", "int64"),
        (f"{2**63 - 1} {-(2**63)}", "int64", "int64"),
        ("1 1.5", "double", "string"),
        ("9.90 10.00 3.25", "double", "string"),
        ("1.0 2.0", "double", "string"),
        ("0.1 5e-7 1.5e+16", "string", "string"),  # 1.5e+16 is beyond exact whole numbers
        ("0.1 5e-7 1e-05", "double", "string"),
        ("-0.0 0.5", "double", "string"),
        ("true false", "bool", "bool"),
        ("True True", "bool", "bool"),
        ("2024-01-31 2024-02-01", "string", "string"),
        ("a 1", "string", "string"),
    ],
)
def test_types_of_undeclared_columns_and_categories(
    tmp_path: Path, values: str, undeclared: str, category: str
) -> None:
    path = write(tmp_path, "a,b\n,x\n" + "".join(f"{value},y\n" for value in values.split()))
    assert kind_of(path, "a") == undeclared
    assert kind_of(path, "a", "category") == category


def test_a_column_without_values_tells_no_type(tmp_path: Path) -> None:
    empty = write(tmp_path, "a,b\n,x\n,y\n", "1.csv")
    header = write(tmp_path, "b,a\n", "2.csv")
    full = write(tmp_path, "a,b\n1.5,z\n", "3.csv")
    assert kind_of([empty, header], "a") == "null"
    assert columns([empty, header]) == {"a": [None, None], "b": ["x", "y"]}
    for files in ([empty, header, full], [full, header, empty], [header, full]):
        assert kind_of(files, "a") == "double"
    assert columns([header], TEXT) == {"b": [], "a": []}


@pytest.mark.parametrize("later", ["1.5", "abc", "007", "true"])
def test_a_late_value_decides_for_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    monkeypatch.setattr(csv_input, "BLOCK_BYTES", 64)
    path = write(tmp_path, "a\n" + "12\n" * 500 + later + "\n")
    number = later == "1.5"
    assert columns(path)["a"] == ([12.0] * 500 + [1.5] if number else ["12"] * 500 + [later])
    assert columns(path, {"a": "category"})["a"] == ["12"] * 500 + [later]


def test_files_agree_in_every_order(tmp_path: Path) -> None:
    one = write(tmp_path, "a,b\n1,x\n", "1.csv")
    two = write(tmp_path, "b,a\ny,02\n", "2.csv")
    assert columns([one, two]) == {"a": ["1", "02"], "b": ["x", "y"]}
    assert columns([two, one]) == {"b": ["y", "x"], "a": ["02", "1"]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", 1.5),
        (" 12 ", 12.0),
        ("\t-3", -3.0),
        ("+7", 7.0),
        ("007", 7.0),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ('"2.5"', 2.5),
        (str(2**53), 2.0**53),
        (str(2**60), 2.0**60),
        ("1e300", 1e300),
        ("0.000000", 0.0),
        ("5e-324", 5e-324),
    ],
)
def test_declared_numbers(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, f"a,b\n,x\n{text},y\n")
    assert columns(path, {"a": pa.float64()})["a"] == [None, value]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("abc", "leave the field empty"),
        ("NA", "leave the field empty"),
        ("nan", ""),
        ("inf", ""),
        ("-Infinity", ""),
        ('"1,5"', "decimal comma"),
        ('"1,234"', "decimal comma"),
        ('""', "leave the field empty"),
        ("0x10", "number"),
        ("1_000", "number"),
        ("\u0661", "number"),
        ("12 3", "number"),
        ("1e400", "beyond"),
        ("1e-400", "would become 0.0"),
        (str(2**53 + 1), "would become"),
        (str(10**25 + 1), "would become"),
        ("true", "number"),
        ("2024-01-31", "number"),
    ],
)
def test_what_is_no_number_is_named_with_its_line(tmp_path: Path, text: str, advice: str) -> None:
    path = write(tmp_path, f'b,a\n"two\nlines",1\n\nx,2\ny,{text}\nz,3\n')
    refuse(path, "t.csv, line 6, column 'a': got", advice, types={"a": pa.float64()})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (pa.int64(), "-7", "07"),
        (pa.int64(), "7", "7.0"),
        (pa.int64(), "7", str(2**63)),
        (pa.int32(), "7", str(2**31)),
        (pa.uint8(), "7", "-1"),
        (pa.bool_(), "TRUE", "yes"),
        (pa.timestamp("us"), "2024-01-31 12:00:00", "soon"),
        (pa.date32(), "2024-01-31", "31.01.2024"),
        (pa.float32(), "0.1", "x"),
    ],
)
def test_other_declared_types(tmp_path: Path, kind: pa.DataType, good: str, bad: str) -> None:
    path = write(tmp_path, f"a,b\n{good},x\n,y\n")
    assert kind_of(path, "a", kind) == str(kind)
    assert columns(path, {"a": kind})["a"][1] is None
    refuse(write(tmp_path, f"a,b\n{good},x\n{bad},y\n"), "line 3, column 'a'", types={"a": kind})


def test_other_inputs_decide_the_types_of_csv(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "p.parquet")
    path = write(tmp_path, "b,a\n2,7\n")
    for files in ([tmp_path / "p.parquet", path], [path, tmp_path / "p.parquet"]):
        read = columns(files)
        assert sorted(read["a"]) == ["7", "x"]
        assert sorted(read["b"]) == [1, 2]
    wrong = write(tmp_path, "b,a\nmany,7\n")
    refuse([tmp_path / "p.parquet", wrong], "t.csv, line 2, column 'b'", "'many'")


def test_a_fault_far_into_a_file_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_input, "BLOCK_BYTES", 100)
    good = '"a\nb",1\r\n' * 500
    for fault, word in [("x,y\n", "'y'"), ("x\n", "1 field"), ("\n\nx,1,2\n", "3 fields")]:
        line = 2 + 1000 + fault.count("\n") - 1
        path = write(tmp_path, "a,b\n" + good + fault + good)
        refuse(path, f"line {line}", word, types={"b": pa.float64()})
