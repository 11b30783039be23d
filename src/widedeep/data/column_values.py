"""Reads a column chunk by chunk as numbers, integers or text, and says which row does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep import kernels
from widedeep.data.fragments import Fragment, Source, fragment_tables, origin_of
from widedeep.errors import FeatureError
from widedeep.features.learned import ColumnType, LogicalKind

Arrow = TypeVar("Arrow", pa.Array, pa.ChunkedArray)

_INT64 = 2**63
UNITS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1, "day": 86_400 * 10**9}
"""Nanoseconds of a time's units."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one column."""

    array: pa.Array  # The values, not chunked
    origin: str  # The file or table they come from
    origin_row: int  # Place of the first row there

    def at(self, row: int) -> str:
        """Return where a row of this chunk is, as messages say it."""
        return f"(row {self.origin_row + int(row)} of {self.origin})"

    def refuse(self, name: str, row: int, reason: str) -> FeatureError:
        """Return the error about a row of this chunk."""
        return FeatureError(f"{name} {self.at(row)}: {reason}")


def column_chunks(
    source: Source,
    column: str,
    on_rows: Callable[[int], None] | None = None,
    fragments: Sequence[Fragment] | None = None,
) -> Iterator[Chunk]:
    """Yield a column of all or some fragments in order."""
    row = 0
    for table in fragment_tables(source, [column], fragments):
        origin, origin_row = origin_of(table) or ("the data", row)
        for array in table.column(0).chunks:
            if len(array):
                yield Chunk(array, origin, origin_row)
            row += len(array)
            origin_row += len(array)
        if on_rows is not None:
            on_rows(table.num_rows)


def logical_kind(arrow_type: pa.DataType) -> LogicalKind | None:
    """Return what a plain type holds, None for a type that no feature can read."""
    types = pa.types
    if types.is_decimal(arrow_type):
        return "float" if arrow_type.scale > 0 else "int"
    for kind, tests in (
        (
            "string",
            (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary),
        ),
        ("int", (types.is_integer, types.is_timestamp, types.is_date)),
        ("float", (types.is_floating,)),
        ("bool", (types.is_boolean,)),
    ):
        if any(test(arrow_type) for test in tests):
            return kind  # type: ignore[return-value]
    return None


def storage_of(arrow_type: pa.DataType) -> str | None:
    """Return how a plain type stores its values, as :class:`ColumnType` writes it."""
    types = pa.types
    if types.is_floating(arrow_type):
        return f"float{arrow_type.bit_width}"
    if types.is_decimal(arrow_type):
        return f"decimal:{arrow_type.scale}" if arrow_type.scale > 0 else None
    if types.is_timestamp(arrow_type):
        return str(arrow_type.unit)
    if types.is_date(arrow_type):
        return "day" if types.is_date32(arrow_type) else "ms"
    return None


def is_time(arrow_type: pa.DataType) -> bool:
    """Tell whether a type is one of dates or of times of a date."""
    return bool(pa.types.is_timestamp(arrow_type) or pa.types.is_date(arrow_type))


def read_times(text: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, int | None]:
    """Return text as times of a type, and the first row that is none.

    As everywhere: ISO 8601, without a zone UTC, rounded down to the type's unit; whole numbers
    count its units.
    """
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    unit = UNITS[storage_of(kind) or "day"]
    times, first = [], 0
    for chunk in text.chunks:
        microseconds, bad = kernels.read_times(chunk.__arrow_c_array__(), unit)
        if bad >= 0:
            return text, first + bad
        column = pa.array(microseconds, mask=np.asarray(chunk.is_null()))
        try:
            times.append(column.cast(pa.timestamp("us", zone)).cast(kind))
        except pa.ArrowInvalid:  # beyond what nanoseconds of 64 bits hold
            return text, first + int(np.abs(microseconds).argmax())
        first += len(chunk)
    return pa.chunked_array(times, kind), None


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _elements(array: pa.Array, kind: ColumnType) -> pa.Array:
    """The values of all rows one after the other; null lists have none."""
    return _plain(pc.list_flatten(array) if kind.nested else array)


def row_of(array: pa.Array, kind: ColumnType, element: int) -> int:
    """Return the row of a chunk in which an element of its lists is."""
    if not kind.nested:
        return element
    return int(pc.list_parent_indices(array)[element].as_py())


def _in_microseconds(array: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(array.type) and array.type.unit == "ns":
        # Downwards, also before 1970; Arrow's cast would go towards it.
        nanoseconds = np.asarray(array.cast(pa.int64()).fill_null(0))
        return pa.array(nanoseconds // 1000, mask=np.asarray(array.is_null()))
    if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        return array.cast(pa.timestamp("us")).cast(pa.int64())
    return array


def without_decimals(values: Arrow) -> Arrow:
    """Return decimals as the nearest float64, as text is read: Arrow's own cast gives another."""
    if not pa.types.is_decimal(values.type):
        return values
    return values.cast(pa.string()).cast(pa.float64())


def _floats(array: pa.Array) -> NDArray[np.float64]:
    """Numbers with NaN for nulls."""
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return kernels.read_numbers(array.__arrow_c_array__())
    array = _in_microseconds(array)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    floats = without_decimals(array).cast(pa.float64(), safe=False)
    return np.asarray(floats.to_numpy(zero_copy_only=False), np.float64)


def read_numbers(chunk: Chunk, name: str, *, finite: bool = True) -> NDArray[np.float64]:
    """Return a plain column's numbers, NaN for nulls."""
    array = _plain(chunk.array)
    if logical_kind(array.type) == "string":
        _refuse_text(chunk, array, name)
    values = _floats(array)
    if finite:
        _check_finite(chunk, values, name)
    return values


def read_elements(
    chunk: Chunk, name: str, kind: ColumnType, *, finite: bool = False
) -> NDArray[np.float64]:
    """Return the numbers of a column or of its lists one after the other, NaN for nulls."""
    array = _elements(chunk.array, kind)
    if logical_kind(array.type) == "string":
        _refuse_text(chunk, array, name)
    values = _floats(array)
    infinite = np.isinf(values)
    if finite and infinite.any():
        element = int(infinite.argmax())
        raise chunk.refuse(
            name, row_of(chunk.array, kind, element), _infinite_text(values[element])
        )
    return values


def read_vectors(chunk: Chunk, name: str, size: int) -> NDArray[np.float64]:
    """Return the vectors of a list column as rows, NaN for nulls and for every entry of a null."""
    lengths = pc.list_value_length(chunk.array)
    wrong = np.asarray(pc.fill_null(pc.not_equal(lengths, size), False))
    if wrong.any():
        row = int(wrong.argmax())
        raise chunk.refuse(
            name,
            row,
            f"got a list of {lengths[row]} numbers, expected {size} or null; "
            f"set size={lengths[row]} if all have as many, or drop the row",
        )
    elements = _plain(pc.list_flatten(chunk.array))
    present = np.asarray(pc.is_valid(chunk.array))
    if logical_kind(elements.type) == "string":
        raise chunk.refuse(name, int(present.argmax()), "got text in a list, expected numbers")
    vectors = np.full((len(chunk.array), size), np.nan)
    vectors[present] = _floats(elements).reshape(-1, size)
    _check_finite(chunk, vectors, name)
    return vectors


def _check_finite(chunk: Chunk, values: NDArray[np.float64], name: str) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        row, *component = np.unravel_index(int(infinite.argmax()), values.shape)
        raise chunk.refuse(name, int(row), _infinite_text(values[(row, *component)]))


def _infinite_text(got: float) -> str:
    return (
        f"got {got} (float), expected a finite number or null; write it as null, clip it, or drop "
        "the row"
    )


def _refuse_text(chunk: Chunk, array: pa.Array, name: str) -> None:
    """Raise for the first text that is no number, or for text as such."""
    for row, value in enumerate(array.to_pylist()):
        try:
            float(value or 0)
        except ValueError:
            raise chunk.refuse(
                name,
                row,
                f"got {value!r} ({type(value).__name__}), expected a number or null; write a "
                "number (in JSON without quotes) or null, or drop the row",
            ) from None
    value = next((value for value in array.to_pylist() if value is not None), None)
    if value is not None:
        raise FeatureError(
            f"{name}: got a column of text such as {value!r}, expected numbers; "
            "cast the column to a number"
        )


def read_integers(chunk: Chunk, name: str, kind: ColumnType) -> pa.Int64Array:
    """Return the integers of a column or of its lists, without nulls."""
    elements = _elements(chunk.array, kind)
    plain = _in_microseconds(elements)
    if logical_kind(plain.type) in ("int", "bool") and not pa.types.is_decimal(plain.type):
        if pa.types.is_uint64(plain.type):
            _check_range(chunk, plain, name, kind)
        return plain.drop_null().cast(pa.int64())
    floats = _floats(plain)
    # From 2**53 on a float may stand for its neighbours, too: an id would be rounded to another.
    limit = _INT64 if pa.types.is_decimal(plain.type) else 2**53
    wrong = ~np.isnan(floats) & ((floats != np.floor(floats)) | (np.abs(floats) >= limit))
    if wrong.any():
        element = int(wrong.argmax())
        raise chunk.refuse(
            name,
            row_of(chunk.array, kind, element),
            f"got {elements[element]} ({elements.type}), expected text or whole numbers of 64 bits "
            "(as floats below 2**53); use bucketized(...) for numbers, or cast the column to text",
        )
    if pa.types.is_decimal(plain.type):
        return plain.drop_null().cast(pa.int64())
    return pa.array(floats[~np.isnan(floats)].astype(np.int64))


def _check_range(chunk: Chunk, array: pa.Array, name: str, kind: ColumnType) -> None:
    largest = pc.max(array).as_py()
    if largest is not None and largest >= _INT64:
        wrong = pc.greater_equal(array, pa.scalar(_INT64, pa.uint64()))
        element = int(np.asarray(pc.fill_null(wrong, False)).argmax())
        raise chunk.refuse(
            name,
            row_of(chunk.array, kind, element),
            f"got {array[element]} ({array.type}), expected integers below 2**63; "
            "cast the column to text",
        )


def read_text(chunk: Chunk, kind: ColumnType) -> pa.Array:
    """Return the texts of a column or of its lists, nulls among them; dictionaries stay."""
    return pc.list_flatten(chunk.array) if kind.nested else chunk.array


def nan_count(chunk: Chunk, nested: bool) -> int:
    """Return how many numbers are NaN without being null."""
    array = _plain(pc.list_flatten(chunk.array) if nested else chunk.array)
    if not pa.types.is_floating(array.type):
        return 0
    return int(pc.sum(pc.is_nan(array)).as_py() or 0)


def null_count(chunk: Chunk) -> int:
    """Return how many rows are null; NaN counts as one."""
    array = chunk.array
    if pa.types.is_dictionary(array.type) and not array.dictionary.null_count:
        return int(array.indices.null_count)
    array = _plain(array)
    if pa.types.is_floating(array.type):
        return int(np.count_nonzero(np.asarray(pc.is_null(array, nan_is_null=True))))
    return int(array.null_count)
