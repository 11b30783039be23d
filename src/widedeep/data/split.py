"""Rows kept apart: a share of a table's rows, by position, by a column's values, or by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import plain_table
from widedeep.data.fragments import Input, Part
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.kernels.transform import fingerprint64


@dataclass(frozen=True, kw_only=True)
class RowShare:
    """The rows of ``data`` whose place lies in [start, stop): opened as any other data."""

    data: Any  # A path, a table or whatever else :func:`widedeep.data.sources.open_source` takes
    start: float  # Lower end, 0 <= start < stop
    stop: float  # Upper end, at most 1
    seed: int = 0  # Another seed chooses other rows; not of ``latest``
    # A column whose values are not split, such as a request's; null is a value
    by: str | None = None
    # A column of times, numbers or text in the order of time; null is the oldest
    latest: str | None = None

    def __post_init__(self) -> None:
        if self.by is not None and self.latest is not None:
            raise ConfigError(
                f"got both by={self.by!r} and latest={self.latest!r}, expected one of them"
            )
        if not 0 <= self.start < self.stop <= 1:
            raise ConfigError(
                f"got a share from {self.start} to {self.stop}, expected 0 <= start < stop <= 1"
            )

    @property
    def column(self) -> str | None:
        """The column that places are taken from; None: from positions."""
        return self.latest if self.by is None else self.by

    @property
    def description(self) -> str:
        """Which rows these are, for the names of inputs."""
        if self.latest is not None:
            order = f"latest by {self.latest}"
        else:
            order = f"seed {self.seed}" + ("" if self.by is None else f", by {self.by}")
        return f" (share {self.start:g} to {self.stop:g} of its rows, {order})"

    def holds(self, place_B: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which places lie in the share."""
        inside_B: NDArray[np.bool_] = (place_B >= self.start) & (place_B < self.stop)
        return inside_B


def split_rows(
    data: Any,
    valid_fraction: float,
    *,
    seed: int = 0,
    by: str | None = None,
    latest: str | None = None,
) -> tuple[RowShare, RowShare]:
    """Split a table's rows into those to train on and those to validate on."""
    if not 0 < valid_fraction < 1:
        raise ConfigError(f"got valid_fraction={valid_fraction}, expected 0 < share < 1")
    if isinstance(data, pa.RecordBatchReader) or hasattr(data, "__next__"):
        raise DataError(
            f"got {type(data).__name__}, which can be read only once, to split into training and "
            "validation rows; write it to a Parquet file, or read it into a table, first"
        )
    train = RowShare(data=data, start=valid_fraction, stop=1.0, seed=seed, by=by, latest=latest)
    return train, replace(train, start=0.0, stop=valid_fraction)


def row_hashes(first_row: int, num_rows: int, seed: int) -> NDArray[np.float64]:
    """Return a hash in [0, 1) of each row position: SplitMix64 (Steele et al. 2014)."""
    rows_B = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
    hashes_B = _mix(rows_B + _mix(np.full(1, seed, np.uint64)))
    return (hashes_B >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Arrays wrap around without a warning, scalars would warn.
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class _SharedPart:
    """The rows of a part that belong to a share."""

    part: Part
    bits: NDArray[np.uint8]
    num_rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the rows that belong."""
        mask_B = np.unpackbits(self.bits, count=self.part.num_rows).astype(bool)
        return self.part.read(columns).filter(pa.array(mask_B))


def share_of_inputs(inputs: Sequence[Input], share: RowShare) -> list[Input]:
    """Return inputs that hold only the rows of a share."""
    parts = [part for item in inputs for part in item.parts]
    if share.column is None:
        ends = np.cumsum([0, *(part.num_rows for part in parts)]).tolist()
        places = [
            row_hashes(first, part.num_rows, share.seed)
            for first, part in zip(ends, parts, strict=False)
        ]
    else:
        places = _column_places(inputs, parts, share, share.column)
    shared = iter(
        [_shared(part, share.holds(place_B)) for part, place_B in zip(parts, places, strict=True)]
    )
    return [_shared_input(item, share, [next(shared) for _ in item.parts]) for item in inputs]


def _shared(part: Part, mask_B: NDArray[np.bool_]) -> _SharedPart:
    return _SharedPart(part, np.packbits(mask_B), int(mask_B.sum()))


def _shared_input(item: Input, share: RowShare, parts: Sequence[Part]) -> Input:
    record = dict(item.record)
    record["name"] = f"{item.record['name']}{share.description}"
    record["path"] = f"{item.record['path']}{share.description}"
    record["rows"] = sum(part.num_rows for part in parts)
    return replace(item, record=record, parts=parts)  # type: ignore[arg-type]


def _column_places(
    inputs: Sequence[Input], parts: Sequence[Part], share: RowShare, column: str
) -> list[NDArray[np.float64]]:
    """Return the place of each row, part by part, from a column's values."""
    for item in inputs:
        if column not in item.schema.names:
            raise DataError(
                f"{item.record['path']}: no column {column!r} to split by; "
                f"{nearest(column, item.schema.names)}"
            )
    values = [plain_table(part.read([column])).column(0) for part in parts]
    if share.latest is None:
        return [_value_places(array, share.seed) for array in values]
    if not values:
        return []
    later_B = _share_after(pa.chunked_array([c for array in values for c in array.chunks]), column)
    ends = np.cumsum([len(array) for array in values])
    return np.split(later_B, ends[:-1])


def _value_places(values: pa.ChunkedArray, seed: int) -> NDArray[np.float64]:
    """Return a hash in [0, 1) of each row's value; null has one too."""
    encoded = pc.dictionary_encode(values.combine_chunks(), null_encoding="encode")
    texts = ["" if v is None else str(v) for v in encoded.dictionary.to_pylist()]
    hashes = np.array([fingerprint64(text) for text in texts], np.uint64)
    mixed = _mix(hashes + _mix(np.full(1, seed, np.uint64)))
    places: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    place_B: NDArray[np.float64] = places[encoded.indices.to_numpy(zero_copy_only=False)]
    return place_B


def _share_after(values: pa.ChunkedArray, column: str) -> NDArray[np.float64]:
    """Return for each row which share of all rows comes after it, (B,); equal values share it."""
    try:
        rank_B = pc.rank(
            values.combine_chunks(), sort_keys="descending", tiebreaker="min"
        ).to_numpy()
    except pa.ArrowException as error:
        raise DataError(
            f"column {column!r} is of type {values.type}, which has no order; name a column of "
            "times, numbers or text"
        ) from error
    if len(rank_B) and (rank_B == rank_B[0]).all():
        raise DataError(f"column {column!r} has one value in all rows; name another to split by")
    after_B: NDArray[np.float64] = (rank_B - 1) / len(rank_B)
    return after_B
