"""The fast reader of CSV against the slow one: the same values, types and faults."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from widedeep.data import csv_input
from widedeep.data.sources import open_source
from widedeep.errors import DataError
from widedeep.features.learned import ColumnTypes

NUMBERS = [
    "0",
    "-0",
    "1",
    "7.50",
    ".5",
    "5.",
    "1e5",
    "1E-3",
    "2e+400",
    "1e-400",
    "12345678901234567",
]
ODD = [
    "+1",
    " 2 ",
    "9007199254740992",
    "9007199254740993",
    "1e16",
    "nan",
    "inf",
    "-",
    ".",
    "1e",
    "0x1",
]
LONG = ["0." + "1234567890" * 3, "1" * 25, "-3.14159265358979323846264338e-7", "0." + "0" * 30]
WORDS = ["", '""', "x", "007", "true", "False", "TRUE", "2024-05-01", '"a,b"', '"say ""hi"""']
STRANGE = ['"x\ny"', '"x\r\ny"', "\u00e9", "\u20ac", 'a"b', '"a"b', '"', "a\rb", "\0", "x,y", "\n"]
FIELDS = st.one_of(
    st.sampled_from([*NUMBERS, *WORDS]),
    st.sampled_from([*ODD, *LONG, *STRANGE]),
    st.integers(-(2**63), 2**64).map(str),
    st.floats(allow_nan=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
)
TAME = st.one_of(st.sampled_from([*NUMBERS[:8], *WORDS]), st.floats(-1e9, 1e9).map(repr))
KINDS = st.sampled_from(
    [
        *(None, "category", pa.string(), pa.float64(), pa.float32(), pa.int64(), pa.uint8()),
        *(pa.bool_(), pa.timestamp("us"), pa.date32()),
    ]
)


NULLS = st.lists(st.sampled_from([*NUMBERS, "", "-", "x", "a,b", "\u00e9", "True", "1" * 25]))


def slowly(path: Path, kinds: ColumnTypes) -> dict[str, list[Any]]:
    """Read block by block through Arrow's reader, with each value converted by itself."""
    types = csv_input._CsvColumns(kinds)
    blocks = csv_input._blocks(path)
    header, first = csv_input._header(path, next(blocks, None))
    schema = pa.schema([(name, types.spooled_type(path, name)) for name in header])
    csv_input._raise_fault(path, header, schema, types)
    tables = []
    for block in (first, *blocks):
        if block.text:
            read = csv_input._parsed(path, block, header, header, kinds.null_values)
            arrays = [types.convert(n, c) for n, c in zip(header, read.columns, strict=True)]
            tables.append(pa.Table.from_arrays(arrays, schema=schema))
    table = pa.concat_tables([schema.empty_table(), *tables])
    for name, kind in types.decided().items():
        column = table[name]
        column = pa.nulls(len(column)) if pa.types.is_null(kind) else column.cast(kind)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return {
        name: [str(table.schema.field(name).type), *map(repr, table[name].to_pylist())]
        for name in header
    }


def fast(path: Path, kinds: ColumnTypes) -> dict[str, list[Any]]:
    with open_source(path, column_types=kinds) as source:
        tables = [source.read(fragment) for fragment in source.fragments]
        return {
            field.name: [
                str(field.type),
                *(repr(v) for table in tables for v in table[field.name].to_pylist()),
            ]
            for field in source.arrow_schema
        }


def outcome(read: Any, path: Path, kinds: ColumnTypes) -> Any:
    try:
        return read(path, kinds)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("fields", [FIELDS, TAME], ids=["strange", "tame"])
def test_the_fast_reader_reads_as_the_slow_one(
    fields: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.integers(1, 3).flatmap(
            lambda width: st.lists(st.lists(fields, min_size=width, max_size=width), max_size=12)
        ),
        kinds=st.lists(KINDS, min_size=3, max_size=3),
        ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n"]), min_size=12, max_size=12),
        block=st.sampled_from([5, 40, 1 << 20]),
        group=st.sampled_from([1, 3, 65_536]),
        cut=st.booleans(),
        nulls=NULLS,
    )
    @example([["\udce9"]], [None] * 3, ["\n"] * 12, 40, 3, False, [])
    @example([["1"], [""]], [None] * 3, ["\r\n"] * 12, 5, 1, True, [])
    def check(
        rows: list[list[str]],
        kinds: list[Any],
        ends: list[str],
        block: int,
        group: int,
        cut: bool,
        nulls: list[str],
    ) -> None:
        monkeypatch.setattr(csv_input, "BLOCK_BYTES", block)
        monkeypatch.setattr(csv_input, "ROW_GROUP_ROWS", group)
        header = ["a", "b", "c"][: len(rows[0]) if rows else 2]
        lines = [",".join(row) + end for row, end in zip(rows, ends, strict=False)]
        text = ",".join(header) + "\n" + "".join(lines)
        text = text.rstrip("\n") if cut else text
        known = {n: k for n, k in zip(header, kinds, strict=False) if k is not None}
        declared = ColumnTypes(known, nulls)
        with TemporaryDirectory() as folder:
            path = Path(folder, "t.csv")
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            assert outcome(fast, path, declared) == outcome(slowly, path, declared)

    check()


def test_long_texts_fill_a_group_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_input, "_FULL_BYTES", 8)
    texts = [f"text {number}" for number in range(2000)]
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{text},1\n" for text in texts))
    with open_source(path) as source:
        (fragment,) = source.fragments
        assert source.read(fragment)["a"].to_pylist() == texts
