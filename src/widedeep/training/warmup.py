"""WarmupRows: a few raw training rows, which a bundle stores with their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from widedeep.bundle.plain_json import plain
from widedeep.data.fragments import Source, origin_of
from widedeep.data.reader import EpochPlan
from widedeep.errors import BundleError
from widedeep.schema import ColumnType

__all__ = ["WARMUP_ROWS", "WarmupRows"]

WARMUP_ROWS = 8


class WarmupRows:
    """Rows kept from a fragment that training reads anyway, so that keeping them costs no reading.

    Args:
        columns: The columns that scoring needs, with their types.
        seed: Which of the fragment's rows are kept.
    """

    def __init__(self, columns: Mapping[str, ColumnType], seed: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._types = columns
        self._columns = list(columns)
        self._seed = seed
        self._wanted: tuple[str, int] | None = None

    def choose(self, plan: EpochPlan) -> None:
        """Wait for the first fragment of an epoch, unless rows are kept already."""
        if not self.rows:
            fragment = plan.pools[0].fragments[0]
            self._wanted = (fragment.origin, fragment.first_row)

    def read(self, source: Source) -> None:
        """Read the fragment waited for, which nobody else will."""
        if self._wanted is None:
            return
        for fragment in source.fragments:
            if (fragment.origin, fragment.first_row) == self._wanted:
                self.see(source.read(fragment, self._columns))

    def see(self, table: pa.Table) -> None:
        """Keep rows of a table if it is the fragment waited for."""
        if self._wanted is None or origin_of(table) != self._wanted:
            return
        self._wanted = None
        picked = np.random.default_rng(self._seed).permutation(table.num_rows)[:WARMUP_ROWS]
        columns = pa.table({name: self._column(table, name) for name in self._columns})
        # Slices, for Arrow cannot take rows of every type (of string views, for one).
        rows = [columns.slice(row, 1).to_pylist()[0] for row in np.sort(picked).tolist()]
        self.rows = [kept for kept in map(_storable, rows) if kept is not None]

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        """Where the schema knows no unit of its times, they are microseconds and no text."""
        column = table.column(name)
        is_time = pa.types.is_temporal(column.type)
        if is_time and self._types[name].storage is None:
            return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return column


def _storable(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row as JSON holds it, or None where it cannot."""
    try:
        kept: dict[str, Any] = plain(row, "row")
    except BundleError:
        return None
    return kept
