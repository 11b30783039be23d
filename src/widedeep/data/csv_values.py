"""Values of CSV columns: what a declared type reads, and which type undeclared values allow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.data.arrow_types import logical_type
from widedeep.errors import DataError

ColumnKind: TypeAlias = pa.DataType | Literal["category"]
"""The type of a CSV column; ``"category"`` is text, unless each value is a canonical integer."""

_EXACT = float(2**53)
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
# What programs write: no sign or zero in front, exponents with a sign.
_DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e(-[0-9]{1,3}|\+[0-9]{2,3}))?$"
_TRUTH = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))


class ValueFault(Exception):
    """A value that its column's type cannot read."""

    def __init__(self, row: int, text: str, advice: str) -> None:
        super().__init__(text)
        self.row, self.text, self.advice = row, text, advice


class CsvColumns:
    """Types of the columns of one table, which may lie in several CSV files."""

    def __init__(self, declared: Mapping[str, ColumnKind]) -> None:
        self._declared = dict(declared)
        self._observed: dict[str, _Observed] = {}

    def declare(self, schema: pa.Schema) -> None:
        """Take the types of another input's columns, those that are declared aside."""
        for field in schema:
            if isinstance(self._declared.get(field.name, ""), str):
                self._declared[field.name] = field.type

    def spooled_type(self, path: Path, name: str) -> pa.DataType:
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
        try:
            numbers = pc.cast(present, pa.float64())
        except pa.ArrowInvalid:
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
    try:
        integers = pc.cast(text, pa.int64())
    except pa.ArrowInvalid:
        return None
    return integers if pc.cast(integers, pa.string()).equals(text) else None


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
            f"{comma if ',' in value else ''}leave the field empty where the value is missing",
        )
    infinite = pc.invert(pc.is_finite(pc.cast(text, pa.float64())))
    row = pc.index(pc.fill_null(infinite, False), True).as_py()
    return ValueFault(
        row, text[row].as_py(), "which is beyond the largest number of 64 bits; correct it"
    )


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
    times = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    integers = _canonical_integers(text) if times else None
    try:
        if integers is not None:  # units since 1970
            return pc.cast(pc.cast(integers, pa.int32()) if kind == pa.date32() else integers, kind)
        return pc.cast(text, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass

    def fits(value: str) -> bool:
        try:
            pc.cast(pa.array([value]), kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return False
        return True

    raise _first_fault(
        text, fits, f"expected a value of type {kind}, as its column holds elsewhere"
    )


def _first_fault(text: pa.ChunkedArray, fits: object, advice: str) -> ValueFault:
    for row, value in enumerate(text.to_pylist()):
        if value is not None and not fits(value):  # type: ignore[operator]
            return ValueFault(row, value, advice)
    raise AssertionError("every value fits")
