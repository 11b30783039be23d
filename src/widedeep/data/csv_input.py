"""CSV files as a stream of record batches: one grammar, and types that all rows agree on."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from widedeep.data.csv_values import CsvColumns, ValueFault
from widedeep.errors import DataError, nearest

BLOCK_BYTES = 4 << 20
LONGEST_RECORD = 256 << 20
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_NEWLINE, _RETURN, _QUOTE, _COMMA = b'\n\r",'
_BEFORE_OPENING = np.isin(np.arange(256), (_NEWLINE, _COMMA, _QUOTE))
_AFTER_CLOSING = np.isin(np.arange(256), (_NEWLINE, _RETURN, _COMMA, _QUOTE))


def is_csv(path: Path) -> bool:
    """Tell whether a file's name says that it is CSV."""
    return path.name.lower().endswith((".csv", ".csv.gz"))


def csv_batches(
    path: Path, columns: Sequence[str] | None, types: CsvColumns
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the columns of a CSV file as they are spooled, and its rows."""
    blocks = _blocks(path)
    header, first = _header(path, next(blocks, None))
    names = list(columns) if columns is not None else header
    for name in names:
        if name not in header:
            raise DataError(f"{path}: no column {name!r}; {_other_separator(header, name)}")
    schema = pa.schema([(name, types.spooled_type(path, name)) for name in names])
    return schema, _batches(path, header, schema, types, first, blocks)


def line_of_value(path: Path, column: str, text: str) -> int | None:
    """Return the first line on which a column of a CSV file holds a text, None if there is none."""
    blocks = _blocks(path)
    header, first = _header(path, next(blocks, None))
    for block in chain([first] if first.text else [], blocks):
        row = pc.index(_parsed(path, block, header, [column]).column(0), text).as_py()
        if row >= 0:
            return block.line_of_row(row, len(header))
    return None


def _other_separator(header: Sequence[str], name: str) -> str:
    marks = {";": "semicolons", "\t": "tabs", "|": "bars"}
    for mark, word in marks.items():
        if len(header) == 1 and mark in header[0]:
            return f"its fields are separated by {word}; write commas instead"
    return nearest(name, header)


def _batches(
    path: Path,
    header: Sequence[str],
    schema: pa.Schema,
    types: CsvColumns,
    first: _Block,
    others: Iterator[_Block],
) -> Iterator[pa.RecordBatch]:
    for block in chain([first] if first.text else [], others):
        table = _parsed(path, block, header, schema.names)
        arrays = []
        for name, column in zip(schema.names, table.columns, strict=True):
            try:
                arrays.append(types.convert(name, column))
            except ValueFault as fault:
                place = f"{path}, line {block.line_of_row(fault.row, len(header))}"
                got = f"got {_shown(fault.text)}, {fault.advice}"
                raise DataError(f"{place}, column {name!r}: {got}") from None
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:77]!r}..."


def _parsed(path: Path, block: _Block, header: Sequence[str], names: Sequence[str]) -> pa.Table:
    """Return the named columns of a block as text."""
    # Positions stand for names: Arrow would match the names of a header that says one twice.
    places = [str(header.index(name)) for name in names]
    try:
        return pacsv.read_csv(
            pa.BufferReader(block.text),
            read_options=pacsv.ReadOptions(
                column_names=[str(number) for number in range(len(header))],
                block_size=len(block.text) + 1,
            ),
            parse_options=pacsv.ParseOptions(
                newlines_in_values=True, ignore_empty_lines=len(header) > 1
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(places, pa.string()),
                include_columns=places,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise _fault(path, block, header, str(error)) from error


def _fault(path: Path, block: _Block, header: Sequence[str], message: str) -> DataError:
    """Return what is wrong with a block that Arrow refused."""
    try:
        block.text.decode()
    except UnicodeDecodeError as error:
        line, field = block.place_of(error.start)
        column = f", column {header[field]!r}" if field < len(header) else ""
        byte = block.text[error.start]
        return DataError(
            f"{path}, line {line}{column}: got the byte 0x{byte:02x}, which is not UTF-8; "
            "write the file in UTF-8 (it may be Latin-1 or Windows-1252 now)"
        )
    record = block.ragged_record(len(header))
    if record is not None:
        line, fields = record
        return DataError(
            f"{path}, line {line}: got {fields} field{'s' * (fields != 1)}, expected {len(header)} "
            "as in the header; correct the line (a comma within a value needs quotes around it)"
        )
    return DataError(f"{path}, after line {block.first_line}: cannot be read ({message})")


def _header(path: Path, block: _Block | None) -> tuple[list[str], _Block]:
    """Return the names of the first line, and the block without it."""
    if block is None:
        raise DataError(
            f"{path}: an empty file; expected a header line with the names of the columns"
        )
    names = []
    for raw in block.fields_of_record(0):
        try:
            names.append(raw.decode())
        except UnicodeDecodeError:
            raise _fault(path, block, [], "") from None
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{path}: two columns are named {name!r}; expected each name once: rename or drop "
                "one of them"
            )
    return names, block.without_first_record()


@dataclass(frozen=True)
class _Block:
    """Whole records of a file, each but perhaps the file's last with its line end."""

    text: bytes
    first_line: int

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.text, np.uint8)

    @cached_property
    def _quotes(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._bytes == _QUOTE)

    def _outside(self, mark: int) -> NDArray[np.int64]:
        """Return where a character stands outside quotes."""
        places: NDArray[np.int64] = np.flatnonzero(self._bytes == mark)
        outside: NDArray[np.int64] = places[np.searchsorted(self._quotes, places) % 2 == 0]
        return outside

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each record's line feed stands; the text's end for a last one without."""
        ends = self._outside(_NEWLINE)
        if self.text and not self.text.endswith(b"\n"):
            ends = np.append(ends, len(self.text))
        return ends

    def _line_at(self, offset: int) -> int:
        return self.first_line + self.text.count(b"\n", 0, offset)

    def _start(self, record: int) -> int:
        return int(self._ends[record - 1]) + 1 if record else 0

    def place_of(self, offset: int) -> tuple[int, int]:
        """Return the line of a byte, and the position of its field in its record."""
        record = int(np.searchsorted(self._ends, offset))
        commas = self._outside(_COMMA)
        start = self._start(record)
        return self._line_at(offset), int(((commas >= start) & (commas < offset)).sum())

    def fields_of_record(self, record: int) -> list[bytes]:
        """Return a record's fields without their quotes."""
        start, end = self._start(record), int(self._ends[record])
        commas = self._outside(_COMMA)
        cuts = [start - 1, *commas[(commas > start - 1) & (commas < end)].tolist(), end]
        fields = [self.text[a + 1 : b] for a, b in pairwise(cuts)]
        fields[-1] = fields[-1].removesuffix(b"\r")
        return [
            field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field
            for field in fields
        ]

    def without_first_record(self) -> _Block:
        """Return the block behind its first record."""
        end = int(self._ends[0]) + 1
        return _Block(self.text[end:], self._line_at(end))

    def _rows(self, width: int) -> NDArray[np.int64]:
        """Return the records that hold a row: all, but blank ones where there are columns."""
        starts = np.append(0, self._ends[:-1] + 1)
        lengths = self._ends - starts
        blank = lengths == 0
        short = np.flatnonzero(lengths == 1)
        blank[short] = self._bytes[starts[short]] == _RETURN
        return np.flatnonzero(~blank) if width > 1 else np.arange(len(starts))

    def line_of_row(self, row: int, width: int) -> int:
        """Return the line on which a row begins."""
        return self._line_at(self._start(int(self._rows(width)[row])))

    def ragged_record(self, width: int) -> tuple[int, int] | None:
        """Return line and number of fields of the first record that has not ``width`` of them."""
        before = np.searchsorted(self._outside(_COMMA), self._ends)
        fields = np.diff(before, prepend=0) + 1
        rows = self._rows(width)
        wrong = rows[fields[rows] != width]
        if not len(wrong):
            return None
        record = int(wrong[0])
        return self._line_at(self._start(record)), int(fields[record])

    def check(self, path: Path) -> None:
        """Refuse what the grammar has no meaning for."""
        if b"\0" in self.text:
            line = self._line_at(self.text.index(b"\0"))
            raise DataError(
                f"{path}, line {line}: got a zero byte, which is no text; the file is damaged or "
                "in UTF-16: write it again in UTF-8"
            )
        if self.text.count(b"\r") != self.text.count(b"\r\n"):
            self._check_returns(path)
        if b'"' in self.text:
            self._check_quotes(path)

    def _check_returns(self, path: Path) -> None:
        returns = self._outside(_RETURN)
        following = np.append(self._bytes, np.uint8(_NEWLINE))[returns + 1]
        lone = returns[following != _NEWLINE]
        if len(lone):
            raise DataError(
                f"{path}, line {self._line_at(int(lone[0]))}: got a carriage return without a line "
                "feed behind it; end lines with a line feed, and put quotes around a value that "
                "holds a carriage return"
            )

    def _check_quotes(self, path: Path) -> None:
        quotes = self._quotes
        opening, closing = quotes[0::2], quotes[1::2]
        before = np.append(np.uint8(_NEWLINE), self._bytes)[opening]
        after = np.append(self._bytes, np.uint8(_NEWLINE))[closing + 1]
        wrong = np.concatenate([opening[~_BEFORE_OPENING[before]], closing[~_AFTER_CLOSING[after]]])
        if len(wrong):
            raise DataError(
                f"{path}, line {self._line_at(int(wrong.min()))}: got a quote that neither opens "
                "nor closes a field; put quotes around the whole field and double those within it "
                '("a ""word"" in quotes")'
            )
        if len(quotes) % 2:
            raise DataError(
                f"{path}, line {self._line_at(int(quotes[-1]))}: got a quote that is never closed; "
                "close it, or double it where it belongs to the value"
            )


def _blocks(path: Path) -> Iterator[_Block]:
    """Cut a file where records end, about every 4 MiB."""
    line, rest, first = 1, b"", True
    with _opened(path) as file:
        while True:
            chunk = _read(path, file)
            text = rest + chunk
            if first:
                text = _checked_start(path, text)
                line += text.count(b"\n", 0, len(text) - len(text.lstrip(b"\r\n")))
                text = text.lstrip(b"\r\n")
                first = not text
            end = _records_end(text) if chunk else len(text)
            if not chunk and not end:
                return
            if not end and len(text) > LONGEST_RECORD:
                raise DataError(
                    f"{path}, line {line}: got a field of more than {LONGEST_RECORD >> 20} MiB; "
                    "a quote that opens there may not be closed: correct the line"
                )
            if end:
                block = _Block(text[:end], line)
                block.check(path)
                yield block
                line += block.text.count(b"\n")
            rest = text[end:]


def _opened(path: Path) -> IO[bytes]:
    try:
        if path.name.lower().endswith(".gz"):
            return io.BufferedReader(gzip.open(path))
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error}); check the path") from error


def _read(path: Path, file: IO[bytes]) -> bytes:
    try:
        return file.read(BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); it is damaged, incomplete or no gzip file: write "
            "it again, or name the right file"
        ) from error


def _checked_start(path: Path, text: bytes) -> bytes:
    """Return the text without a byte order mark."""
    if text.startswith(_GZIP):
        twice = path.name.lower().endswith(".gz")
        advice = "it is compressed twice: decompress it once" if twice else "name it .csv.gz"
        raise DataError(f"{path}: got compressed bytes (gzip), expected text; {advice}")
    if text.startswith(_UTF16):
        raise DataError(f"{path}: got text in UTF-16, expected UTF-8; write the file in UTF-8")
    return text.removeprefix(_BOM)


def _records_end(text: bytes) -> int:
    """Return where the last whole record of a text ends, 0 if there is none."""
    block = _Block(text, 0)
    ends = block._outside(_NEWLINE) if b'"' in text else None
    if ends is None:
        return text.rfind(b"\n") + 1
    return int(ends[-1]) + 1 if len(ends) else 0
