"""The native reader of CSV against one in Python: the same values and types, no other faults."""

from __future__ import annotations

from collections.abc import Iterator
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


def slowly(path: Path, kinds: ColumnTypes) -> dict[str, list[Any]] | set[str]:
    """Read record by record, with each value converted by itself; return all that is wrong."""
    types = csv_input._CsvColumns(kinds)
    block = csv_input._Block(path.read_bytes(), 1)
    names, at = csv_input._fields(path, block, 0)
    header = [name.decode() for _, name in names]
    schema = pa.schema([(name, types.spooled_type(path, name)) for name in header])
    rows: list[list[str | None]] = []
    faults: set[str] = set()
    for start, fields in records(path, block, header, at, faults):
        rows.append([])
        for name, (offset, field) in zip(header, fields, strict=True):
            text = None if field.decode() in kinds.null_values else field.decode()
            rows[-1].append(text if block.text[offset : offset + 1] == b'"' else text or None)
            try:
                types.convert(name, pa.chunked_array([rows[-1][-1:]], pa.string()))
            except csv_input.ValueFault as fault:
                where = f"{path}, line {block.line_at(start)}, column {name!r}"
                faults.add(f"{where}: got {csv_input._shown(fault.text)}, {fault.advice}")
    if faults:
        return faults
    columns = {}
    for i, name in enumerate(header):
        kind = types.decided().get(name, schema.field(name).type)
        text_N = pa.chunked_array([[row[i] for row in rows]], pa.string())
        column = pa.nulls(len(text_N)) if pa.types.is_null(kind) else text_N
        if name not in types.decided():
            column = types.convert(name, text_N)
        columns[name] = [str(kind), *shown(column.cast(kind))]
    return columns


def records(
    path: Path, block: csv_input._Block, header: list[str], at: int, faults: set[str]
) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """Yield where records begin, and their fields; add what is wrong with others."""
    while at < len(block.text):
        start, rest = at, block.text[at:]
        if len(header) > 1 and (rest.startswith((b"\n", b"\r\n")) or rest == b"\r"):
            at += 1 + rest.startswith(b"\r")
            continue
        try:
            fields, at = csv_input._fields(path, block, start)
        except DataError as error:  # nobody knows where the next record begins
            faults.add(str(error))
            return
        try:
            csv_input._texts(path, header, block, fields)
            if len(fields) != len(header):
                csv_input._refuse(path, header, block, start)
            yield start, fields
        except DataError as error:
            faults.add(str(error))


def fast(path: Path, kinds: ColumnTypes) -> dict[str, list[Any]]:
    with open_source(path, column_types=kinds) as source:
        tables = [source.read(fragment) for fragment in source.fragments]
        return {
            field.name: [
                str(field.type),
                *(text for table in tables for text in shown(table[field.name])),
            ]
            for field in source.arrow_schema
        }


def shown(column: pa.ChunkedArray) -> list[str]:
    """Return values as text; days may lie beyond Python's dates."""
    days = pa.types.is_date32(column.type)
    return [repr(value) for value in (column.cast(pa.int32()) if days else column).to_pylist()]


def outcome(path: Path, kinds: ColumnTypes) -> Any:
    try:
        return fast(path, kinds)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("fields", [FIELDS, TAME], ids=["strange", "tame"])
def test_the_native_reader_reads_as_the_one_in_python(
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
            expected, read = slowly(path, declared), outcome(path, declared)
            assert read in expected if isinstance(expected, set) else read == expected

    check()


def test_long_texts_fill_a_group_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_input, "_FULL_BYTES", 8)
    texts = [f"text {number}" for number in range(2000)]
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{text},1\n" for text in texts))
    with open_source(path) as source:
        (fragment,) = source.fragments
        assert source.read(fragment)["a"].to_pylist() == texts
