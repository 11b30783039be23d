"""Counts of values in the place of the rows they were counted from, for ``fit_schema``.

A folder of counts stands beside the examples of a join::

    counts.json          rows, columns in order, those that are not counted, rows of the sample
    schema.parquet       the columns' types; no rows
    values/wd_column=N/  Parquet: ``text``, ``integer``, ``real``, ``wd_count``; a null has none
    sample/              Parquet: ``wd_row`` and the numbers of some rows, in order

``N`` is a column's place among ``columns``. Of a column of lists it counts the elements, and ``N``
plus the number of columns counts the lengths. Booleans are the integers 0 and 1. The sample holds
the :func:`~widedeep.data.row_sample.sampled_rows` of seed 0.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.data.arrow_types import is_text, logical_schema
from widedeep.data.fragments import Input, InputRecord, Source, check_columns
from widedeep.errors import ConfigError, DataError

Counted = Iterator[tuple[pa.Array, NDArray[np.int64]]]
KIND = "widedeep counts"
FORMAT = 1
SAMPLE_ROWS = 262_144
"""Rows of the sample for quantiles; as many as ``fit_schema`` takes if not told otherwise."""
_LABEL_ROWS = 65_536
"""Rows that quantiles of labels are read at; of fewer all are, whatever the seed."""
_BLOCK_ROWS = 262_144
_VALUES_AT_ONCE = 65_536


def open_counts(folder: str | os.PathLike[str], columns: Sequence[str]) -> Source:
    """Open a folder of counts as a source that holds each value as often as it was counted.

    Rows of a column stand in no order, but for those of the sample, which stand in their own
    places; rows of two columns do not belong together.
    """
    counts = CountsFolder.open(folder)
    check_columns(columns, counts.schema.names, str(counts.folder))
    n_blocks = -(-counts.rows // _BLOCK_ROWS)
    state = threading.local()
    blocks = [_CountedBlock(counts, index, state) for index in range(n_blocks)]
    path = str(counts.folder)
    record = InputRecord(name=path, path=path, rows=counts.rows, bytes=-1, checksum="")
    opened = Input(record=record, schema=logical_schema(counts.schema, path), blocks=blocks)
    return Source([opened], columns=columns)


@dataclass(frozen=True, kw_only=True)
class CountsFolder:
    """A folder of counts."""

    folder: Path
    rows: int  # Rows that were counted
    columns: tuple[str, ...]  # Their columns, in the order of their numbers
    uncounted: tuple[str, ...]  # Those without counts, which are never null
    sample_rows: int  # Rows of the sample for quantiles
    schema: pa.Schema  # The columns' types

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> CountsFolder:
        """Read what a folder holds."""
        path = Path(folder)
        try:
            content: dict[str, Any] = json.loads((path / "counts.json").read_text("utf-8"))
            if content["kind"] != KIND or content["format"] != FORMAT:
                raise DataError(
                    f"{path}: got {content['kind']!r} of format {content['format']}, expected "
                    f"{KIND!r} of format {FORMAT}; run the join again"
                )
            return cls(
                folder=path,
                rows=content["rows"],
                columns=tuple(content["columns"]),
                uncounted=tuple(content["uncounted"]),
                sample_rows=content["sample_rows"],
                schema=pq.read_schema(path / "schema.parquet"),
            )
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no {Path(error.filename).name}; expected the folder counts/ that a join "
                "on Spark writes beside its examples"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged counts ({error!r}); run the join again") from error

    def check_counted(self, column: str, reader: str) -> None:
        """Refuse a column without counts whose values are learned."""
        if column in self.uncounted:
            raise DataError(
                f"{reader}: column {column!r} is not among the counts of {self.folder}, for nearly "
                "all of its values differ; leave the feature out, or fit on the examples"
            )

    def check_sample(self, sample_rows: int, seed: int) -> None:
        """Refuse a sample of rows that the counts do not hold."""
        is_held = self.rows <= sample_rows or sample_rows <= self.sample_rows
        if is_held and (seed == 0 or self.rows <= min(sample_rows, _LABEL_ROWS)):
            return
        raise ConfigError(
            f"got sample_rows={sample_rows}, seed={seed}; the counts of {self.folder} hold "
            f"{self.sample_rows:,} of {self.rows:,} rows, sampled by seed 0: take at most so many "
            "and seed=0, or fit on the examples"
        )

    def stream(self, number: int, kind: pa.DataType) -> Counted:
        """Yield values of a number's counts, and how often each occurred."""
        own = "text" if is_text(kind) else "real" if pa.types.is_floating(kind) else "integer"
        files = sorted((self.folder / "values" / f"wd_column={number}").glob("*.parquet"))
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(_VALUES_AT_ONCE, columns=[own, "wd_count"]):
                    yield batch.column(0), batch.column(1).to_numpy()

    def sample(self, column: str) -> tuple[NDArray[np.int64], pa.Array]:
        """Return the sampled rows and their numbers, as ``integer`` or ``real``."""
        files = sorted((self.folder / "sample").glob("*.parquet"))
        tables = [pq.read_table(file, columns=["wd_row", column]) for file in files]
        if not tables:
            return np.empty(0, np.int64), pa.array([], self.schema.field(column).type)
        table = pa.concat_tables(tables).combine_chunks()
        numbers = pa.concat_arrays(table[column].chunks)
        if pa.types.is_floating(numbers.type):  # As in the counts, -0.0 is 0.0.
            numbers = pc.add(numbers, pa.scalar(0.0, numbers.type))
        return table["wd_row"].to_numpy(), numbers


@dataclass(frozen=True)
class _CountedBlock:
    """A run of rows of each column."""

    counts: CountsFolder
    index: int
    state: threading.local  # The stream that each reading thread is in, and its next block

    @property
    def num_rows(self) -> int:
        return min(_BLOCK_ROWS, self.counts.rows - self.index * _BLOCK_ROWS)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return one column's rows; the blocks before it are read first."""
        if len(columns) != 1:
            raise DataError(
                f"{self.counts.folder}: counts of single columns do not say which values of "
                f"{' and '.join(map(repr, columns))} occur together; fit on the examples"
            )
        position = (columns[0], self.index)
        if getattr(self.state, "position", None) != position:
            rows = _column_rows(self.counts, columns[0])
            self.state.rows = itertools.islice(rows, self.index, None)
        self.state.position = (columns[0], self.index + 1)
        return pa.table({columns[0]: next(self.state.rows)})


def _column_rows(counts: CountsFolder, column: str) -> Iterator[pa.Array | pa.ChunkedArray]:
    """Yield the rows of a column, block by block."""
    kind = counts.schema.field(column).type
    sizes = [min(_BLOCK_ROWS, counts.rows - start) for start in range(0, counts.rows, _BLOCK_ROWS)]
    if column in counts.uncounted:
        for size in sizes:
            yield pa.repeat(pa.scalar("" if is_text(kind) else 0).cast(kind), size)
        return
    number = counts.columns.index(column)
    if pa.types.is_list(kind):
        lengths = _Repeated(counts.stream(len(counts.columns) + number, pa.int64()))
        elements = _Repeated(counts.stream(number, kind.value_type))
        for size in sizes:
            length_B = _typed(lengths.take(size), pa.int32())
            offsets = np.concatenate([[0], np.cumsum(length_B.fill_null(0).to_numpy())])
            values = _typed(elements.take(int(offsets[-1])), kind.value_type)
            places = pa.array(offsets.astype(np.int32))
            yield pa.ListArray.from_arrays(places, values, mask=length_B.is_null())
        return
    if is_text(kind):
        texts = _Repeated(counts.stream(number, kind))
        for size in sizes:
            yield texts.take(size)
        return
    yield from _number_rows(counts, column, number, kind, sizes)


def _number_rows(
    counts: CountsFolder, column: str, number: int, kind: pa.DataType, sizes: Sequence[int]
) -> Iterator[pa.Array]:
    """Yield numbers with those of the sample in their places."""
    row_S, sampled = counts.sample(column)
    remaining = _Repeated(_without(counts.stream(number, kind), sampled))
    start = 0
    for size in sizes:
        low, high = np.searchsorted(row_S, [start, start + size])
        others = _typed(remaining.take(size - int(high - low)), kind)
        # (B,) where each row's value stands in the others and the sampled, one after the other
        is_sampled = np.zeros(size, bool)
        is_sampled[row_S[low:high] - start] = True
        place_B = np.where(
            is_sampled, len(others) + np.cumsum(is_sampled) - 1, np.cumsum(~is_sampled) - 1
        )
        own = sampled.slice(int(low), int(high - low)).cast(kind)
        yield pa.concat_arrays([others, own]).take(pa.array(place_B))
        start += size


def _without(stream: Counted, sampled: pa.Array) -> Counted:
    """Take the values of the sample off their counts."""
    entries = pc.value_counts(sampled)
    sampled_values, sampled_count = entries.field("values"), entries.field("counts").to_numpy()
    for values, count_V in stream:
        place_V = pc.index_in(values, sampled_values.cast(values.type))
        is_sampled = np.asarray(place_V.is_valid())
        in_sample_V = np.where(is_sampled, sampled_count[place_V.fill_null(0).to_numpy()], 0)
        yield values, count_V - in_sample_V


class _Repeated:
    """Values, each as often as it was counted, taken so many at a time."""

    def __init__(self, stream: Counted) -> None:
        self._stream = stream
        self._values = pa.nulls(0)
        self._counts = np.empty(0, np.int64)

    def take(self, rows: int) -> pa.ChunkedArray:
        """Return the next values; text as dictionaries."""
        parts: list[pa.Array] = []
        while rows > 0:
            if not len(self._counts):
                self._next(rows)
                continue
            end_V = np.cumsum(self._counts)
            stop = int(np.searchsorted(end_V, rows, "left")) + 1  # The last value may be cut.
            count_V = self._counts[:stop].copy()
            excess = max(int(count_V.sum()) - rows, 0)
            count_V[-1] -= excess
            parts.append(_repeated(self._values[: len(count_V)], count_V))
            rows -= int(count_V.sum())
            begin = len(count_V) - (excess > 0)
            self._values, self._counts = self._values[begin:], self._counts[begin:].copy()
            if excess:
                self._counts[0] = excess
        return pa.chunked_array(parts) if parts else pa.chunked_array([[]])

    def _next(self, rows: int) -> None:
        counted = next(self._stream, None)
        if counted is None:
            raise DataError(f"damaged counts: {rows:,} rows more than values; run the join again")
        self._values, self._counts = counted


def _repeated(values: pa.Array, count_V: NDArray[np.int64]) -> pa.Array:
    place_B = np.repeat(np.arange(len(values), dtype=np.int32), count_V)
    if not is_text(values.type):
        return values.take(pa.array(place_B))
    is_null = np.asarray(values.is_null())[place_B]
    return pa.DictionaryArray.from_arrays(pa.array(place_B, mask=is_null), values.fill_null(""))


def _typed(values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Return counted values in a column's type, as one array."""
    plain = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
    return pa.concat_arrays([pa.array([], kind), *plain.cast(kind).chunks])
