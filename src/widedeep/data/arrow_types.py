"""The logical type behind an Arrow type, and one type for a column spread over several inputs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.errors import DataError

_UNITS = ("s", "ms", "us", "ns")
_UTC = {"UTC", "utc", "Z", "+00:00", "Etc/UTC"}
_DECIMAL_DIGITS = 38


def logical_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, whatever their encoding."""
    if pa.types.is_dictionary(arrow_type) or pa.types.is_run_end_encoded(arrow_type):
        return logical_type(arrow_type.value_type)
    if isinstance(arrow_type, pa.BaseExtensionType):
        return logical_type(arrow_type.storage_type)
    if is_text(arrow_type):
        return pa.string()
    if _is_bytes(arrow_type):
        return pa.binary()
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.list_(logical_type(arrow_type.value_type), arrow_type.list_size)
    if _is_list(arrow_type):
        return pa.list_(logical_type(arrow_type.value_type))
    return arrow_type


def is_text(arrow_type: pa.DataType) -> bool:
    """Tell whether a type is one of text: large and view strings and dictionaries of them too."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    return arrow_type in (pa.string(), pa.large_string(), pa.string_view())


def _is_bytes(arrow_type: pa.DataType) -> bool:
    return arrow_type in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_list(arrow_type: pa.DataType) -> bool:
    large = pa.types.is_large_list(arrow_type) or pa.types.is_large_list_view(arrow_type)
    return bool(large or pa.types.is_list(arrow_type) or pa.types.is_list_view(arrow_type))


def logical_schema(schema: pa.Schema, origin: str) -> pa.Schema:
    """Return the logical type of every column."""
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise DataError(
                f"{origin}: two columns are named {name!r}; expected each name once: "
                "rename or drop one of them"
            )
        seen.add(name)
    return pa.schema([(field.name, logical_type(field.type)) for field in schema])


def unified_schema(schemas: list[tuple[str, pa.Schema]]) -> pa.Schema:
    """Return one schema for several inputs, columns matched by name."""
    first_origin, first = schemas[0]
    types = {field.name: field.type for field in first}
    for origin, schema in schemas[1:]:
        _check_same_names(first_origin, first, origin, schema)
        for field in schema:
            joined = _join(types[field.name], field.type)
            if joined is None:
                raise DataError(
                    f"{origin}: column {field.name!r} is {field.type}, but {types[field.name]} in "
                    f"{first_origin}; expected one type in all inputs: write them alike"
                )
            types[field.name] = joined
    return pa.schema(list(types.items()))


def _check_same_names(first_origin: str, first: pa.Schema, origin: str, schema: pa.Schema) -> None:
    missing = [name for name in first.names if name not in schema.names]
    extra = [name for name in schema.names if name not in first.names]
    if missing:
        raise DataError(
            f"{origin}: no column {missing[0]!r}, which {first_origin} has; "
            "expected the same columns in all inputs: add it, or name the columns to read"
        )
    if extra:
        raise DataError(
            f"{origin}: extra column {extra[0]!r}, which {first_origin} lacks; "
            "expected the same columns in all inputs: drop it, or name the columns to read"
        )


def _join(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return _join_integers(one, other)
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return one if one.bit_width >= other.bit_width else other
    if is_list(one) and is_list(other):
        return _join_lists(one, other)
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        return _join_times(one, other)
    if pa.types.is_decimal(one) and pa.types.is_decimal(other):
        return _join_decimals(one, other)
    if pa.types.is_date(one) and pa.types.is_date(other):
        return pa.date64()
    return None


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a type is one of lists of any length, or of one."""
    of_one_length = pa.types.is_fixed_size_list(kind)
    return bool(of_one_length or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _join_times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one.tz != other.tz and not {one.tz, other.tz} <= _UTC:
        return None
    return one if _UNITS.index(one.unit) >= _UNITS.index(other.unit) else other


def _join_decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    scale = max(one.scale, other.scale)
    digits = scale + max(kind.precision - kind.scale for kind in (one, other))
    return pa.decimal128(digits, scale) if digits <= _DECIMAL_DIGITS else None


def _join_integers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_signed_integer(one) == pa.types.is_signed_integer(other):
        return one if one.bit_width >= other.bit_width else other
    unsigned = other if pa.types.is_signed_integer(one) else one
    return pa.int64() if unsigned.bit_width < 64 else None


def _join_lists(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    item = _join(one.value_type, other.value_type)
    if item is None:
        return None
    fixed = pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other)
    if fixed and one.list_size == other.list_size:
        return pa.list_(item, one.list_size)
    return pa.list_(item)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of ``schema`` in its order, widened where an input is narrower."""
    columns = []
    for field in schema:
        column = readable(table.column(field.name))
        if logical_type(column.type) != field.type:
            column = _widened(column, field)
        columns.append(column)
    return pa.table(columns, names=schema.names)


def _widened(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return pc.cast(column, field.type)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {field.name!r}: a value of type {column.type} has no place in {field.type}, "
            f"the type of other inputs ({error}); write all of them in one type"
        ) from error


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in an encoding that Arrow's functions and the kernels take."""
    kind = column.type
    stored = _readable_type(kind)
    if stored == kind:
        return column
    return pa.chunked_array([_readable(chunk) for chunk in column.chunks], stored)


def readable_table(table: pa.Table, *, takes: bool = False) -> pa.Table:
    """Return a table with all columns as :func:`readable` gives them.

    With ``takes`` Arrow can take rows of it too, which it cannot of views.
    """
    columns = [readable(column) for column in table.columns]
    if takes:
        columns = [column.cast(_taken_type(column.type)) for column in columns]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _readable_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _readable_type(kind.storage_type)
    if pa.types.is_run_end_encoded(kind):
        return _taken_type(kind.value_type)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _taken_type(kind.value_type), kind.ordered)
    if _is_list(kind):
        item = _taken_type(kind.value_type)
        is_view = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
        if is_view or item != kind.value_type:
            return pa.large_list(item)
    return kind


def _taken_type(kind: pa.DataType) -> pa.DataType:
    """Return a type whose values can be taken by their places: Arrow takes no views."""
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    kind = _readable_type(kind)
    return views.get(kind, kind)


def _readable(array: pa.Array) -> pa.Array:
    kind, stored = array.type, _readable_type(array.type)
    if kind == stored:
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return _readable(array.storage)
    if pa.types.is_run_end_encoded(kind):
        places = pa.array(np.arange(len(array.values)))
        runs = pa.RunEndEncodedArray.from_arrays(array.run_ends, places)
        place_B = pc.run_end_decode(runs.slice(array.offset, len(array)))
        return _readable(array.values).cast(stored).take(place_B)
    if pa.types.is_dictionary(kind):
        dictionary = _readable(array.dictionary).cast(stored.value_type)
        return pa.DictionaryArray.from_arrays(array.indices, dictionary, ordered=kind.ordered)
    # By lengths: Arrow's cast from views of lists loses the last one.
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    stops = np.cumsum(np.asarray(lengths, np.int64))
    values = _readable(array.flatten()).cast(stored.value_type)
    starts = np.concatenate([[0], stops])
    return pa.LargeListArray.from_arrays(starts, values, stored, mask=array.is_null())


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with its columns in their logical types: text as plain text."""
    columns = []
    for column in map(readable, table.columns):
        plain = logical_type(column.type)
        if pa.types.is_dictionary(column.type) and pa.types.is_nested(plain):
            # Arrow casts no dictionary of these, such as pandas.cut gives.
            values = [chunk.dictionary.take(chunk.indices) for chunk in column.chunks]
            column = pa.chunked_array(values, column.type.value_type)
        columns.append(column if column.type == plain else pc.cast(column, plain))
    return pa.Table.from_arrays(columns, names=table.column_names)
