"""RowByRow: each candidate is a whole row for the bundle. For models that cannot be factored."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.data.batch import Batch

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A request's query."""

    values: dict[str, Any]  # By column
    # Columns that the query lacks, as far as they are known not to be the items'
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemRows:
    """Items as rows."""

    rows: Sequence[Mapping[str, Any]]  # Values by column, one dict an item
    absent: dict[str, int]  # How many items lack each column, where any does


class RowByRow:
    """Computes the logits of a request's candidates with the bundle itself."""

    def __init__(
        self, bundle: Bundle, *, item_columns: frozenset[str] | None, threads: int
    ) -> None:
        self._bundle = bundle
        self._threads = threads
        # Shares the look-up tables; only the counts of absent keys are its own.
        self._encoder = copy.copy(bundle.encoder)
        self._encoder.absent = {}
        self._read = self._encoder.columns(targets=False)
        self._item_columns = item_columns

    def query(self, row: Mapping[str, Any]) -> QueryRow:
        """Return the query as it is."""
        self._encode([row])
        of_item = self._item_columns or frozenset()
        lacking = (name for name in self._read if name not in row)
        return QueryRow(dict(row), tuple(name for name in lacking if name not in of_item))

    def items(self, table: pa.Table) -> ItemRows:
        """Return a table of items as rows."""
        return self.item_rows(table.select(self._columns_of(table.column_names)).to_pylist())

    def item_rows(self, rows: Sequence[Mapping[str, Any]]) -> ItemRows:
        """Return items that are rows already."""
        given = {name for row in rows for name in row}
        columns = self._columns_of(sorted(given))
        kept = [{name: row[name] for name in columns if name in row} for row in rows]
        for start in range(0, len(kept), _ROWS_AT_ONCE):
            self._encode(kept[start : start + _ROWS_AT_ONCE])
        expected = set(columns) if self._item_columns is None else self._item_columns
        counts = {name: sum(name not in row for row in kept) for name in sorted(expected)}
        return ItemRows(kept, {name: n for name, n in counts.items() if n})

    def logits(
        self, query: QueryRow, items: ItemRows, positions_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of candidates, (B, C), not calibrated."""
        if not len(positions_B):
            return np.zeros((0, self._bundle.model.n_logits), np.float32)
        parts, total = [], 0
        for start in range(0, len(positions_B), _ROWS_AT_ONCE):
            some = positions_B[start : start + _ROWS_AT_ONCE].tolist()
            batch = self._encode([{**query.values, **items.rows[at]} for at in some])
            total += batch.n_values
            self._encoder.check_values(total)
            parts.append(self._bundle.logits(batch, threads=self._threads))
        return np.concatenate(parts)

    def _encode(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return self._encoder.rows(rows)

    def _columns_of(self, given: Sequence[str]) -> list[str]:
        allowed = frozenset(self._read) if self._item_columns is None else self._item_columns
        return [name for name in given if name in allowed]
