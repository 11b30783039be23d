"""CSV files: the types of their columns, and their values."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, zip_longest
from typing import IO, Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep import kernels
from widedeep.data.arrow_types import logical_type
from widedeep.data.column_values import is_time, read_times
from widedeep.data.fragments import (
    ROW_GROUP_ROWS,
    Input,
    InputFormat,
    InputRecord,
    Spool,
    cast_blocks,
)
from widedeep.errors import ColumnError, DataError, nearest
from widedeep.features.learned import ColumnTypes
from widedeep.remote import InputPath, RemoteFile, file_size, open_bytes

_EXACT = float(2**53)
_FEW = 64
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
# What programs write: no sign or zero in front, exponents with a sign.
_DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e(-[0-9]{1,3}|\+[0-9]{2,3}))?$"
_TRUTH = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))


class ValueFault(Exception):
    """A value that its column's type cannot read."""

    def __init__(self, row: int, text: str, advice: str) -> None:
        super().__init__(text)
        self.row, self.text, self.advice = row, text, advice


class _CsvColumns:
    """Types of the columns of one table, which may lie in several CSV files."""

    def __init__(self, declared: ColumnTypes) -> None:
        self._declared, self.null_values = declared, declared.null_values
        self._observed: dict[str, _Observed] = {}

    def spooled_type(self, path: InputPath, name: str) -> pa.DataType:
        """Return the type in which a column's values are kept until all are seen."""
        kind = self._declared.get(name, "")
        if isinstance(kind, str) or pa.types.is_null(kind):
            self._observed.setdefault(name, _Observed(numbers=kind != "category"))
            return pa.string()
        if pa.types.is_nested(kind):
            raise DataError(
                f"{path}: column {name!r} is one of lists, which CSV cannot hold; write the rows "
                "as Parquet"
            )
        return logical_type(kind)

    def convert(self, name: str, text: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return a column's values in the type in which they are kept."""
        if name in self._observed:
            self._observed[name].observe(text)
            return text
        kind = logical_type(self._declared[name])
        if pa.types.is_string(kind):
            return text
        if pa.types.is_floating(kind):
            return _numbers(text).cast(kind, safe=False)
        if pa.types.is_integer(kind):
            return _integers(text, kind)
        if pa.types.is_boolean(kind):
            return _truths(text)
        return _cast(text, kind)

    def decided(self) -> dict[str, pa.DataType]:
        """Return the types of the columns that were looked at."""
        return {name: observed.type() for name, observed in self._observed.items()}


class _Observed:
    """What the values of a column allow."""

    def __init__(self, *, numbers: bool) -> None:
        self._kinds = {"int", "bool", *(["float"] if numbers else [])}
        self._any = False
        self._wide = self._bare = self._fraction = self._padded = False
        self._truths: set[str] = set()

    def observe(self, text: pa.ChunkedArray) -> None:
        present = text.drop_null() if text.null_count else text
        if not len(present):
            return
        self._any = True
        if "int" in self._kinds:
            integers = _canonical_integers(present)
            if integers is not None:
                self._kinds.discard("bool")
                ends = pc.min_max(integers).as_py()
                self._wide |= max(-ends["min"], ends["max"]) >= _EXACT
                self._bare = True
                return
            self._kinds.discard("int")
        if "float" in self._kinds and not self._decimals(present):
            self._kinds.discard("float")
        if "bool" in self._kinds:
            self._bools(present)

    def _decimals(self, present: pa.ChunkedArray) -> bool:
        numbers = _cast_if_all(present, pa.float64())
        if numbers is None:
            return False
        self._kinds.discard("bool")
        if not pc.all(pc.match_substring_regex(present, _DECIMAL)).as_py():
            return False
        whole = pc.equal(pc.floor(numbers), numbers)
        self._wide |= bool(pc.any(pc.greater_equal(pc.abs(numbers), _EXACT)).as_py())
        self._fraction |= not pc.all(whole).as_py()
        if not self._fraction:
            # 1 and 1.0, or 1.0 and 1.00, are two texts and one number.
            self._bare |= not pc.all(pc.match_substring(present, ".")).as_py()
            self._padded |= not pc.all(pc.ends_with(present, ".0")).as_py()
        return not self._wide

    def _bools(self, present: pa.ChunkedArray) -> None:
        if len(self._truths) <= 2:
            self._truths.update(pc.unique(present.slice(0, 1000)).to_pylist())
            self._truths.update(pc.unique(present).to_pylist() if len(self._truths) <= 2 else ())
        if not any(self._truths <= set(pair) for pair in _TRUTH):
            self._kinds.discard("bool")

    def type(self) -> pa.DataType:
        if not self._any:
            return pa.null()
        if "int" in self._kinds:
            return pa.int64()
        exact = self._fraction or not (self._bare or self._padded)
        if "float" in self._kinds and exact and not self._wide:
            return pa.float64()
        return pa.bool_() if "bool" in self._kinds else pa.string()


def _canonical_integers(text: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return texts as integers if each is written as its integer is, else None."""
    integers = _cast_if_all(text, pa.int64())
    if integers is None:
        return None
    return integers if pc.cast(integers, pa.string()).equals(text) else None


def _cast_if_all(text: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Return texts as numbers if each is one, else None."""
    try:
        # Arrow writes a message for each wrong value, so few are tried before all are.
        pc.cast(text.slice(0, _FEW), kind)
        return pc.cast(text, kind)
    except pa.ArrowInvalid:
        return None


def _integers(text: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    integers = _canonical_integers(text)
    try:
        if integers is not None:
            return pc.cast(integers, kind)
    except pa.ArrowInvalid:
        pass

    def is_integer(value: str) -> bool:
        if _canonical_integers(pa.chunked_array([[value]])) is None:
            return False
        low, high = _range(kind)
        return low <= int(value) <= high

    raise _first_fault(
        text,
        is_integer,
        f"expected a whole number ({kind}) without leading zeros, sign or decimal point, as the "
        "column is declared or was when the schema was fitted; correct it, or fit the schema on "
        "data with such values: they are text then",
    )


def _range(kind: pa.DataType) -> tuple[int, int]:
    bits = kind.bit_width
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if "u" not in str(kind) else (0, 2**bits - 1)


def _numbers(text: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        numbers = pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        text = pc.ascii_trim(text, " \t")
        try:
            numbers = pc.cast(text, pa.float64())
        except pa.ArrowInvalid:
            raise _no_number(text) from None
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise _no_number(text)
    _check_exact(text, numbers)
    return numbers


def _no_number(text: pa.ChunkedArray) -> ValueFault:
    matches = pc.match_substring_regex(text, _NUMBER)
    wrong = pc.fill_null(pc.invert(matches), False)
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        value = text[row].as_py()
        comma = "write a point for the decimal comma and no marks between thousands; "
        return ValueFault(
            row,
            value,
            "expected a number or nothing; "
            f"{comma if ',' in value else ''}leave the field empty where the value is missing"
            f"{_word_advice(value)}",
        )
    infinite = pc.invert(pc.is_finite(pc.cast(text, pa.float64())))
    row = pc.index(pc.fill_null(infinite, False), True).as_py()
    return ValueFault(
        row, text[row].as_py(), "which is beyond the largest number of 64 bits; correct it"
    )


def _word_advice(value: str) -> str:
    """Return how a word is read as no value, for what may be one; "" for other values."""
    if any(map(str.isdigit, value)) or len(value) > 16:
        return ""
    return f", or say that the word means that: null_values = [{json.dumps(value)}]"


def _check_exact(text: pa.ChunkedArray, numbers: pa.ChunkedArray) -> None:
    """Refuse whole numbers that 64 bits of floating point would round, and what becomes zero."""
    ends = pc.min_max(pc.abs(numbers)).as_py()
    if ends["max"] is not None and ends["max"] >= _EXACT:
        large = pc.greater_equal(pc.abs(numbers), _EXACT)
        rows = _rows_of(pc.and_(large, pc.match_substring_regex(text, r"^[+-]?[0-9]+$")))
        _refuse_rounded(text, numbers, [row for row in rows if _changed(text[row], numbers[row])])
    if ends["min"] == 0:
        zero = pc.and_(pc.equal(numbers, 0.0), pc.greater(pc.binary_length(text), 5))
        if pc.any(zero).as_py():
            zero = pc.and_(zero, pc.match_substring_regex(text, r"^[^eE]*[1-9]"))
            _refuse_rounded(text, numbers, _rows_of(zero))


def _rows_of(mask: pa.ChunkedArray) -> list[int]:
    rows: list[int] = np.flatnonzero(np.asarray(pc.fill_null(mask, False))).tolist()
    return rows


def _changed(text: pa.Scalar, number: pa.Scalar) -> bool:
    return int(text.as_py()) != int(number.as_py())


def _refuse_rounded(text: pa.ChunkedArray, numbers: pa.ChunkedArray, rows: list[int]) -> None:
    for row in rows[:1]:
        raise ValueFault(
            row,
            text[row].as_py(),
            f"which as a number of 64 bits would become {numbers[row].as_py()!r}; declare the "
            "column categorical if it is an id, or write it with fewer digits",
        )


def _truths(text: pa.ChunkedArray) -> pa.ChunkedArray:
    allowed = {*(word for pair in _TRUTH for word in pair), "0", "1"}
    for value in pc.unique(text).to_pylist():
        if value is not None and value not in allowed:
            raise _first_fault(text, allowed.__contains__, "expected true or false (or 1 or 0)")
    return pc.cast(pc.utf8_lower(text), pa.bool_())


def _cast(text: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    advice = f"expected a value of type {kind}, as its column holds elsewhere"
    if is_time(kind):
        times, fault = read_times(text, kind)
        if fault is not None:
            raise ValueFault(fault, text[fault].as_py(), advice)
        return times
    try:
        return pc.cast(text, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass

    def fits(value: str) -> bool:
        try:
            pc.cast(pa.array([value]), kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return False
        return True

    raise _first_fault(text, fits, advice)


def _first_fault(text: pa.ChunkedArray, fits: object, advice: str) -> ValueFault:
    for row, value in enumerate(text.to_pylist()):
        if value is not None and not fits(value):  # type: ignore[operator]
            return ValueFault(row, value, advice + _word_advice(value))
    raise AssertionError("every value fits")


BLOCK_BYTES = 4 << 20
LONGEST_RECORD = 256 << 20
_FULL_BYTES = 64 << 20  # Of one column's different texts that are gathered at a time
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_FIELD = re.compile(rb'"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+)')  # In quotes, or without


class _Block(NamedTuple):
    """Whole records of a file, each but perhaps the file's last with its line end."""

    text: bytes
    first_line: int

    def line_at(self, offset: int) -> int:
        """Return the line of a byte."""
        return self.first_line + self.text.count(b"\n", 0, offset)


def _open(
    paths: Sequence[InputPath],
    columns: Sequence[str] | None,
    spool: Spool,
    declared: ColumnTypes,
) -> list[Input]:
    """Open CSV files whose columns take the types that the rows of all of them allow."""
    types = _CsvColumns(declared)
    inputs = [_spooled(path, columns, types, spool) for path in paths]
    decided = types.decided()
    return [cast_blocks(opened, decided) for opened in inputs]


def _spooled(
    path: InputPath, columns: Sequence[str] | None, types: _CsvColumns, spool: Spool
) -> Input:
    """Read a CSV file once and keep its columns in the spool."""
    with _opened_csv(path) as (header, text_blocks):
        names = list(columns) if columns is not None else header
        advice = _other_separator(header)
        if columns is None and advice:
            raise DataError(f"{path}: got one column, {_shown(header[0])}: {advice}")
        for name in names:
            if name not in header:
                raise ColumnError(str(path), name, advice or nearest(name, header))
        schema = pa.schema([(name, types.spooled_type(path, name)) for name in names])
        groups = _GroupReader(path, header, schema, types).groups(text_blocks)
        blocks = spool.keep(str(path), groups)
    record = InputRecord(
        name=path.name,
        path=str(path),
        rows=sum(block.num_rows for block in blocks),
        bytes=file_size(path),
        checksum=path.tag if isinstance(path, RemoteFile) else "",
    )
    return Input(record=record, schema=schema, blocks=blocks, row_name=partial(_row_name, path))


_Pieces: TypeAlias = list[tuple[_Block, int, int]]
"""Runs of records: a block, and where in it they begin and end."""


class _GroupReader:
    """Reads a file in one pass, 65,536 rows at a time: numbers parsed, texts by dictionary."""

    def __init__(
        self, path: InputPath, header: Sequence[str], schema: pa.Schema, types: _CsvColumns
    ) -> None:
        self._path, self._header, self._schema, self._types = path, list(header), schema, types
        # Columns of numbers that are written as other than plain ones somewhere are read as text.
        self._numbers = {field.name for field in schema if pa.types.is_floating(field.type)}
        self._n_read = 0  # Rows of all tables so far

    def groups(self, blocks: Iterable[_Block]) -> Iterator[pa.Table]:
        rows, pieces, parts = self._rows(self._schema.names), _Pieces(), list[pa.Table]()
        n_rows = 0
        for block in blocks:
            start = 0
            while start < len(block.text):
                stop = self._add(rows, block, start, ROW_GROUP_ROWS - n_rows)
                if self._numbers:
                    pieces.append((block, start, stop))
                start = stop
                if rows.is_full or n_rows + rows.n_rows == ROW_GROUP_ROWS:
                    n_rows += rows.n_rows
                    parts.append(self._table(rows, pieces))
                    rows, pieces = self._rows(self._schema.names), []
                if n_rows == ROW_GROUP_ROWS:
                    yield pa.concat_tables(parts)
                    n_rows, parts = 0, []
        if rows.n_rows:
            parts.append(self._table(rows, pieces))
        if parts:
            yield pa.concat_tables(parts)

    def _rows(self, names: Sequence[str]) -> kernels.CsvRows:
        fields = [self._header.index(name) for name in names]
        are_numbers = [name in self._numbers for name in names]
        return kernels.CsvRows(
            len(self._header), fields, are_numbers, _FULL_BYTES, self._types.null_values
        )

    def _add(self, rows: kernels.CsvRows, block: _Block, start: int, most_rows: int) -> int:
        stop = rows.add(block.text, start, most_rows)
        if stop < 0:
            _refuse(self._path, self._header, block, ~stop)
        return stop

    def _table(self, rows: kernels.CsvRows, pieces: _Pieces) -> pa.Table:
        read = dict(zip(self._schema.names, map(_array, rows.take()), strict=True))
        odd = [name for name, array in read.items() if array is None]
        if odd:
            self._numbers.difference_update(odd)
            again = self._rows(odd)
            for block, start, stop in pieces:
                self._add(again, block._replace(text=block.text[:stop]), start, ROW_GROUP_ROWS)
            read.update(zip(odd, map(_array, again.take()), strict=True))
        arrays = [self._typed(field, read[field.name]) for field in self._schema]
        table = pa.Table.from_arrays(arrays, names=self._schema.names)
        self._n_read += table.num_rows
        return table

    def _typed(self, field: pa.Field, array: pa.Array) -> pa.Array:
        if not pa.types.is_dictionary(array.type):
            return array.cast(field.type, safe=False)
        try:
            values = self._types.convert(field.name, pa.chunked_array([array.dictionary]))
        except ValueFault as fault:
            line = _line_of_row(self._path, self._n_read + _row_of_code(array, fault.row))
            got = f"got {_shown(fault.text)}, {fault.advice}"
            if line is None:
                got = "changed while being read; leave input files alone during a run"
            raise DataError(f"{self._path}, line {line}, column {field.name!r}: {got}") from None
        if pa.types.is_string(field.type):
            return array
        return values.combine_chunks().take(array.indices)


def _array(column: Sequence[NDArray[Any] | None]) -> pa.Array | None:
    """Return a column that was read as Arrow's; None for numbers that are not plain."""
    validity, *buffers = (None if array is None else pa.py_buffer(array) for array in column)
    if buffers[0] is None:
        return None
    n_rows = len(column[1])  # type: ignore[arg-type]
    if len(column) == 2:
        return pa.Array.from_buffers(pa.float64(), n_rows, [validity, *buffers])
    codes, offsets, text = buffers
    dictionary = pa.StringArray.from_buffers(len(column[2]) - 1, offsets, text)  # type: ignore[arg-type]
    indices = pa.Array.from_buffers(pa.uint16(), n_rows, [validity, codes])
    return pa.DictionaryArray.from_arrays(indices, dictionary, safe=False)


def _row_of_code(array: pa.DictionaryArray, code: int) -> int:
    """Return the first row that holds an entry of the dictionary."""
    return int(pc.index(array.indices, pa.scalar(code, pa.uint16())).as_py())


def _row_name(path: InputPath, row: int) -> str:
    """Return where a row begins, as ``"line 7 of a.csv"``; the header is on line 1."""
    line = _line_of_row(path, row)
    return f"the end of {path}" if line is None else f"line {line:,} of {path}"


def _line_of_row(path: InputPath, row: int) -> int | None:
    """Return the line on which a row begins, for which a file is read again; None of no row."""
    with _opened_csv(path) as (header, blocks):
        for block in blocks:
            start = 0
            while row and 0 <= start < len(block.text):
                skipped = kernels.CsvRows(len(header), [], [], _FULL_BYTES, ())
                start = skipped.add(block.text, start, row)
                row -= skipped.n_rows
            if start < 0:
                break
            if len(header) > 1:  # Blank lines are no rows
                start = len(block.text) - len(block.text[start:].lstrip(b"\r\n"))
            if not row and start < len(block.text):
                return block.line_at(start)
    return None


def _locate(path: InputPath, column: str, value: object) -> str | None:
    with _opened_csv(path) as (header, blocks):
        types = _CsvColumns(ColumnTypes({column: pa.string()}))
        reader = _GroupReader(path, header, pa.schema([(column, pa.string())]), types)
        n_rows = 0
        for table in reader.groups(blocks):
            for array in table.column(0).chunks:
                code = pc.index(array.dictionary, str(value)).as_py()
                if code >= 0:
                    return f"line {_line_of_row(path, n_rows + _row_of_code(array, code)):,}"
                n_rows += len(array)
    return None


def _other_separator(header: Sequence[str]) -> str:
    """Return what is wrong with a header of one field that holds other separators, else ""."""
    marks = {";": "semicolons", "\t": "tabs", "|": "bars"}
    for mark, word in marks.items():
        if len(header) == 1 and mark in header[0]:
            return f"its fields are separated by {word}; write commas instead"
    return ""


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:77]!r}..."


@contextmanager
def _opened_csv(path: InputPath) -> Iterator[tuple[list[str], Iterator[_Block]]]:
    """Give the names of a file's columns, and the blocks of its rows."""
    with closing(_blocks(path)) as blocks:
        block = next(blocks, None)
        if block is None:
            raise DataError(
                f"{path}: an empty file; expected a header line with the names of the columns"
            )
        fields, stop = _fields(path, block, 0)
        names = _texts(path, [], block, fields)
        for name in names:
            if names.count(name) > 1:
                raise DataError(
                    f"{path}: two columns are named {name!r}; expected each name once: rename or "
                    "drop one of them"
                )
        yield names, chain([_Block(block.text[stop:], block.line_at(stop))], blocks)


def _refuse(path: InputPath, header: Sequence[str], block: _Block, start: int) -> NoReturn:
    """Raise what is wrong with the record that begins there."""
    fields, _ = _fields(path, block, start)
    n_fields = len(_texts(path, header, block, fields))
    raise DataError(
        f"{path}, line {block.line_at(start)}: got {n_fields} field{'s' * (n_fields != 1)}, "
        f"expected {len(header)} as in the header; correct the line (a comma within a value needs "
        "quotes around it)"
    )


def _texts(
    path: InputPath, header: Sequence[str], block: _Block, fields: Sequence[tuple[int, bytes]]
) -> list[str]:
    """Return a record's fields as text."""
    texts = []
    for (offset, field), column in zip_longest(fields, header[: len(fields)]):
        try:
            texts.append(field.decode())
        except UnicodeDecodeError as error:
            line = block.line_at(offset) + field.count(b"\n", 0, error.start)
            where = "" if column is None else f", column {column!r}"
            raise DataError(
                f"{path}, line {line}{where}: got the byte 0x{field[error.start]:02x}, which is "
                "not UTF-8; write the file in UTF-8 (it may be Latin-1 or Windows-1252 now)"
            ) from None
    return texts


def _fields(path: InputPath, block: _Block, start: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return a record's fields and their offsets, and where the next record begins.

    What the grammar has no meaning for is refused.
    """
    text, at, fields = block.text, start, list[tuple[int, bytes]]()
    while True:
        match = _FIELD.match(text, at)
        assert match is not None
        if b"\0" in match[0]:
            line = block.line_at(at + match[0].index(b"\0"))
            raise DataError(
                f"{path}, line {line}: got a zero byte, which is no text; the file is damaged or "
                "in UTF-16: write it again in UTF-8"
            )
        fields.append((at, match[2] if match[1] is None else match[1].replace(b'""', b'"')))
        at = match.end()
        mark, behind = text[at : at + 1], text[at + 1 : at + 2]
        if mark in (b"", b"\n"):
            return fields, at + 1
        if mark == b"\r" and behind in (b"", b"\n"):
            return fields, at + 2
        if mark != b",":
            raise DataError(f"{path}, line {block.line_at(at)}: got {_irregular(mark, match[0])}")
        at += 1


def _irregular(mark: bytes, field: bytes) -> str:
    """Return what is wrong with a mark that ends no field."""
    if mark == b"\r":
        return (
            "a carriage return without a line feed behind it; end lines with a line feed, and put "
            "quotes around a value that holds a carriage return"
        )
    if mark == b'"' and not field:
        return "a quote that is never closed; close it, or double it where it belongs to the value"
    return (
        "a quote that neither opens nor closes a field; put quotes around the whole field and "
        'double those within it ("a ""word"" in quotes")'
    )


def _blocks(path: InputPath) -> Generator[_Block, None, None]:
    """Cut a file where records end, about every 4 MiB."""
    line, remainder, first = 1, b"", True
    with _opened(path) as file:
        while True:
            chunk = _read(path, file)
            text = remainder + chunk
            if first:
                text = _checked_start(path, text)
                line += text.count(b"\n", 0, len(text) - len(text.lstrip(b"\r\n")))
                text = text.lstrip(b"\r\n")
                first = not text
            end, n_lines = kernels.csv_end(text)
            end = end if chunk else len(text)
            if not chunk and not end:
                return
            if not end and len(text) > LONGEST_RECORD:
                raise DataError(
                    f"{path}, line {line}: got a field of more than {LONGEST_RECORD >> 20} MiB; "
                    "a quote that opens there may not be closed: correct the line"
                )
            if end:
                yield _Block(text[:end], line)
                line += n_lines
            remainder = text[end:]


def _opened(path: InputPath) -> IO[bytes]:
    try:
        return open_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error}); check the path") from error


def _read(path: InputPath, file: IO[bytes]) -> bytes:
    try:
        return file.read(BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); it is damaged, incomplete or no gzip file: write "
            "it again, or name the right file"
        ) from error


def _checked_start(path: InputPath, text: bytes) -> bytes:
    """Return the text without a byte order mark."""
    if text.startswith(_GZIP):
        twice = path.name.lower().endswith(".gz")
        advice = "it is compressed twice: decompress it once" if twice else "name it .csv.gz"
        raise DataError(f"{path}: got compressed bytes (gzip), expected text; {advice}")
    if text.startswith(_UTF16):
        raise DataError(f"{path}: got text in UTF-16, expected UTF-8; write the file in UTF-8")
    return text.removeprefix(_BOM)


CSV = InputFormat(suffixes=(".csv", ".csv.gz"), open=_open, typed=False, locate=_locate)
