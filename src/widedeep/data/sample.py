"""A few rows of a large table, from its beginning, middle and end, to see what it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from widedeep.data.arrow_types import logical_type
from widedeep.data.csv_input import csv_reader
from widedeep.data.fragments import Source
from widedeep.data.sources import Data, input_paths, open_source
from widedeep.errors import DataError

__all__ = ["SAMPLE_ROWS", "Sample", "sample_rows"]

SAMPLE_ROWS = 50_000
_MOST_FRAGMENTS = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some rows of a table.

    Args:
        table: The rows, in order; text is plain text, whatever its encoding was.
        total: Rows of the whole table, or None where only its beginning was read (CSV).
    """

    table: pa.Table
    total: int | None

    @property
    def complete(self) -> bool:
        """True if the sample is the whole table."""
        return bool(self.total == self.table.num_rows)


def sample_rows(
    data: Data, *, rows: int = SAMPLE_ROWS, columns: Collection[str] | None = None
) -> Sample:
    """Read some rows of a table without reading all of it.

    Args:
        data: As for :func:`widedeep.data.sources.open_source`.
        rows: About how many, at least 1. CSV gives its first rows; other tables give runs of rows
            spread from their beginning to their end.
        columns: Columns to read, those that are there; None reads all.

    Raises:
        DataError: If the data cannot be opened, or has no rows.

    Example:
        >>> sample = sample_rows([{"x": i} for i in range(100)], rows=10)
        >>> sample.table.num_rows, sample.total, sample.complete
        (10, 100, False)
    """
    paths = input_paths(data)
    if paths and paths[0].name.lower().endswith((".csv", ".csv.gz")):
        table, total = _csv_rows(paths[0], rows)
        sample = Sample(table=table, total=total if len(paths) == 1 else None)
    else:
        with open_source(data) as source:
            sample = Sample(table=_spread_rows(source, rows, columns), total=source.num_rows)
    if not sample.table.num_rows:
        raise DataError(f"{data}: got no rows; expected at least one example")
    names = [n for n in sample.table.column_names if columns is None or n in columns]
    return Sample(table=_plain(sample.table.select(names)), total=sample.total)


def _csv_rows(path: Path, rows: int) -> tuple[pa.Table, int | None]:
    reader = csv_reader(path, None, {})
    held: list[pa.RecordBatch] = []
    n_held = 0
    for batch in reader:
        held.append(batch)
        n_held += batch.num_rows
        if n_held > rows:
            return pa.Table.from_batches(held, reader.schema).slice(0, rows), None
    return pa.Table.from_batches(held, reader.schema), n_held


def _spread_rows(source: Source, rows: int, columns: Collection[str] | None) -> pa.Table:
    names = [n for n in source.arrow_schema.names if columns is None or n in columns]
    pieces = [source.arrow_schema.empty_table().select(names)]
    pieces += _pieces(source, min(rows, source.num_rows), names)
    return pa.concat_tables([_plain(piece) for piece in pieces])


def _pieces(source: Source, rows: int, names: Sequence[str]) -> Iterator[pa.Table]:
    n_all = len(source.fragments)
    n_read = min(n_all, max(_MOST_FRAGMENTS, -(-rows * n_all // max(1, source.num_rows))))
    places = [number * (n_all - 1) // max(1, n_read - 1) for number in range(n_read)]
    fragments = [source.fragments[place] for place in places]
    quotas = _quotas([fragment.num_rows for fragment in fragments], rows)
    for number, (fragment, quota) in enumerate(zip(fragments, quotas, strict=True)):
        start = (fragment.num_rows - quota) * number // max(1, n_read - 1)
        yield source.read(fragment, names).slice(start, quota)


def _quotas(sizes: Sequence[int], rows: int) -> list[int]:
    """Share rows out evenly; what a short fragment cannot give, the longer ones do."""
    quotas = [0] * len(sizes)
    left = rows
    for number, place in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        quotas[place] = min(sizes[place], -(-left // (len(sizes) - number)))
        left -= quotas[place]
    return quotas


def _plain(table: pa.Table) -> pa.Table:
    columns = []
    for column in table.columns:
        plain = logical_type(column.type)
        columns.append(column if column.type == plain else pc.cast(column, plain))
    return pa.Table.from_arrays(columns, names=table.column_names)
