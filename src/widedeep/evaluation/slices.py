"""Slices: the rows of each value of a column, or of each range of its numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.errors import DataError

_MAX_SLICES = 50
_DEFAULT_COLUMNS = 6
_MAX_DEFAULT_VALUES = 32
_RANGES = 5


@dataclass(frozen=True, slots=True)
class SliceColumn:
    """A column that cuts the rows into slices."""

    name: str  # Column
    values: tuple[str, ...]  # Text of each slice, by code
    codes_B: NDArray[np.int64]  # Slice of each row


def default_slice_columns(bundle: Bundle) -> list[str]:
    """Return the categorical columns of few values, those with the fewest first."""
    schema = bundle.schema
    columns = []
    for feature in schema.spec.all_features:
        column, key = feature.main_column, feature.vocabulary_key
        if column is None or key is None:
            continue
        size = len(schema.vocabularies[key])
        if not schema.columns[column].nested and 2 <= size <= _MAX_DEFAULT_VALUES:
            columns.append((size, column))
    return list(dict.fromkeys(name for _, name in sorted(columns)))[:_DEFAULT_COLUMNS]


def encode_column(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Return a column's codes (B,) and its distinct values (U,); null is a value."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):  # of more than one chunk, past 2 GB of text
        whole = pa.concat_arrays(whole.chunks)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    encoded = whole.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def slice_column(name: str, column: pa.ChunkedArray) -> SliceColumn:
    """Cut rows by a column: a slice per value, ranges of numbers, the rarest values joined."""
    if pa.types.is_nested(column.type):
        raise DataError(
            f"slice column {name!r}: got lists ({column.type}), expected one value per row; choose "
            "another column under [gate] slices"
        )
    """Cut rows by a column: a slice per value, ranges of many numbers, the rarest values joined."""
    codes, values = encode_column(column)
    numbers = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if numbers and len(values) > _MAX_SLICES:
        return _ranges(name, codes, values)
    texts = ["missing" if value is None else str(value) for value in values.to_pylist()]
    if len(texts) <= _MAX_SLICES:
        return SliceColumn(name, tuple(texts), codes)
    counts = np.bincount(codes, minlength=len(texts))
    frequent = np.argsort(-counts, kind="stable")[:_MAX_SLICES]
    slice_U = np.full(len(texts), _MAX_SLICES, np.int64)  # (U,) slice of each value
    slice_U[frequent] = np.arange(_MAX_SLICES)
    names = [texts[int(code)] for code in frequent]
    joined = f"the other {len(texts) - _MAX_SLICES:,} values"
    return SliceColumn(name, (*names, joined), slice_U[codes])


def _ranges(name: str, codes: NDArray[np.int64], values: pa.Array) -> SliceColumn:
    """Cut a column of many numbers into ranges of equally many rows."""
    numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)[codes]
    present = numbers[~np.isnan(numbers)]
    fractions = np.arange(1, _RANGES) / _RANGES
    cuts = np.unique(np.quantile(present, fractions)) if len(present) else present
    range_B = np.searchsorted(cuts, numbers, side="right")
    range_B[np.isnan(numbers)] = len(cuts) + 1
    ends = [f"{cut:g}" for cut in cuts]
    texts = [f"below {ends[0]}"] if ends else ["any number"]
    texts += [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    texts += [f"from {ends[-1]}"] if ends else []
    return SliceColumn(name, (*texts, "missing"), range_B.astype(np.int64))
