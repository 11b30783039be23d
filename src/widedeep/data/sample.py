"""A few rows of a large table, from its beginning, middle and end, to see what it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from widedeep.data.arrow_types import plain_table
from widedeep.data.csv_values import ColumnKind
from widedeep.data.fragments import Source
from widedeep.data.sources import Data, open_source
from widedeep.errors import DataError

SAMPLE_ROWS = 50_000
_MOST_FRAGMENTS = 8
_RUNS = 16


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some rows of a table."""

    table: pa.Table  # The rows, in order; text is plain text, whatever its encoding was
    total: int  # Rows of the whole table

    @property
    def complete(self) -> bool:
        """True if the sample is the whole table."""
        return bool(self.total == self.table.num_rows)


def sample_rows(
    data: Data,
    *,
    rows: int = SAMPLE_ROWS,
    columns: Collection[str] | None = None,
    column_types: Mapping[str, ColumnKind] | None = None,
) -> Sample:
    """Read some rows of a table: runs spread from its beginning to its end."""
    with open_source(data, column_types=column_types) as source:
        if not source.num_rows:
            raise DataError(f"{data}: got no rows; expected at least one example")
        return sample_source(source, rows=rows, columns=columns)


def sample_source(
    source: Source, *, rows: int = SAMPLE_ROWS, columns: Collection[str] | None = None
) -> Sample:
    """Read some rows of an open source, as :func:`sample_rows` does."""
    return Sample(table=_spread_rows(source, rows, columns), total=source.num_rows)


def _spread_rows(source: Source, rows: int, columns: Collection[str] | None) -> pa.Table:
    names = [n for n in source.arrow_schema.names if columns is None or n in columns]
    pieces = [source.arrow_schema.empty_table().select(names)]
    pieces += _pieces(source, min(rows, source.num_rows), names)
    return pa.concat_tables([plain_table(piece) for piece in pieces])


def _pieces(source: Source, rows: int, names: Sequence[str]) -> Iterator[pa.Table]:
    n_all = len(source.fragments)
    n_read = min(n_all, max(_MOST_FRAGMENTS, -(-rows * n_all // max(1, source.num_rows))))
    places = [number * (n_all - 1) // max(1, n_read - 1) for number in range(n_read)]
    fragments = [source.fragments[place] for place in places]
    quotas = _quotas([fragment.num_rows for fragment in fragments], rows)
    for fragment, quota in zip(fragments, quotas, strict=True):
        table = source.read(fragment, names)
        # Sorted rows are the rule: a fragment gives runs from its beginning to its end.
        n_runs = min(_RUNS, quota)
        sizes = [quota // n_runs + (run < quota % n_runs) for run in range(n_runs)]
        at = 0
        for run, size in enumerate(sizes):
            gap = (fragment.num_rows - quota) * run // max(1, n_runs - 1)
            yield table.slice(at + gap, size)
            at += size


def _quotas(sizes: Sequence[int], rows: int) -> list[int]:
    """Share rows out evenly; what a short fragment cannot give, the longer ones do."""
    quotas = [0] * len(sizes)
    left = rows
    for number, place in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        quotas[place] = min(sizes[place], -(-left // (len(sizes) - number)))
        left -= quotas[place]
    return quotas
