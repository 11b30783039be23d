"""A table's rows in the order of their ids: put together from their owners, and dealt to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.files import release_pages
from widedeep.ranks.layout import Ids, Layout
from widedeep.ranks.ranks import Ranks

Rows = NDArray[Any]

_WINDOW_BYTES = 1 << 23  # of rows that a rank holds at a time


class ShardedRows:
    """A table whose rows lie in the parts that several ranks wrote; read by ids, as one array.

    Args:
        layout: How the rows were divided.
        parts: Each rank's rows, (rows of the rank, ...), in the order of its places.
    """

    def __init__(self, layout: Layout, parts: Sequence[Rows]) -> None:
        self.layout = layout
        self.parts = list(parts)
        self.dtype = parts[0].dtype
        self.shape: tuple[int, ...] = (layout.size, *parts[0].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.layout.size

    def read(self, first: int, stop: int) -> Rows:
        """Return the rows of the ids ``first`` to ``stop``, in a new array."""
        rows = np.empty((stop - first, *self.shape[1:]), self.dtype)
        for rank, block in enumerate(self.parts):
            places = _places(self.layout, rank, first, stop)
            rows[self.layout.ids_of(rank, places.start, places.stop) - first] = block[places]
        return rows

    def __getitem__(self, ids: Any) -> Rows:
        """Return the rows of a slice, or of an array of ids in any order."""
        if isinstance(ids, slice):
            first, stop, step = ids.indices(len(self))
            return self.read(first, max(first, stop))[::step]
        ids = np.asarray(ids, np.int64)
        owners, places = self.layout.owner_of(ids), self.layout.place_of(ids)
        rows = np.empty((len(ids), *self.shape[1:]), self.dtype)
        for rank, block in enumerate(self.parts):
            own = np.flatnonzero(owners == rank)
            rows[own] = block[places[own]]
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Rows:
        rows = self.read(0, len(self))
        return rows if dtype is None else rows.astype(dtype, copy=False)


def collect_rows(
    ranks: Ranks, layout: Layout, own: Rows, write: Callable[[int, Rows], None]
) -> None:
    """Bring a table into the order of ids: each rank puts stretches of it together.

    Collective; no rank holds more than its own rows and a window.

    Args:
        ranks: The ranks among which the table is divided.
        layout: How it is divided.
        own: This rank's rows, (rows, ...).
        write: Called on each rank with the first id of a stretch and its rows; over all ranks each
            id comes once.
    """
    for bounds in _windows(ranks, layout, own[:0]):
        parts = [own[_places(layout, ranks.rank, first, stop)] for first, stop in pairwise(bounds)]
        first, stop = bounds[ranks.rank], bounds[ranks.rank + 1]
        spans = [_places(layout, rank, first, stop) for rank in range(ranks.size)]
        received = ranks.all_to_all(parts, [span.stop - span.start for span in spans])
        rows = np.empty((stop - first, *own.shape[1:]), own.dtype)
        for rank, (span, block) in enumerate(zip(spans, received, strict=True)):
            rows[layout.ids_of(rank, span.start, span.stop) - first] = block
        if stop > first:
            write(first, rows)


def deal_rows(ranks: Ranks, layout: Layout, table: Rows | ShardedRows, own: Rows) -> None:
    """Give each rank its rows of a whole table, of which each reads a stretch; collective.

    Args:
        ranks: The ranks among which the table is to be divided.
        layout: How.
        table: All rows by id; mapped from a file as a rule.
        own: This rank's rows, (rows, ...), which are written.
    """
    if isinstance(table, ShardedRows) and table.layout.world == layout.world:
        _copy_released(table.parts[ranks.rank], own)
        return
    for bounds in _windows(ranks, layout, own[:0]):
        first, stop = bounds[ranks.rank], bounds[ranks.rank + 1]
        rows, owners = table[first:stop], layout.owner_of(np.arange(first, stop))
        parts = [rows[owners == rank] for rank in range(ranks.size)]
        spans = [_places(layout, ranks.rank, first, stop) for first, stop in pairwise(bounds)]
        received = ranks.all_to_all(parts, [span.stop - span.start for span in spans])
        for span, block in zip(spans, received, strict=True):
            own[span] = block
        _release(table)


def fetch_rows(ranks: Ranks, layout: Layout, own: Rows, ids: Ids) -> Rows:
    """Return the rows of some ids, from whichever ranks own them; collective.

    Args:
        ranks: The ranks among which the table is divided.
        layout: How it is divided.
        own: This rank's rows, (rows, ...).
        ids: Ids, in any order; the ranks may ask for different numbers of them.
    """
    owners, places = layout.owner_of(ids), layout.place_of(ids)
    orders = [np.flatnonzero(owners == rank) for rank in range(ranks.size)]
    asked = ranks.all_to_all([places[order] for order in orders])
    answers = ranks.all_to_all([own[rows] for rows in asked], [len(order) for order in orders])
    rows = np.empty((len(ids), *own.shape[1:]), own.dtype)
    for order, answer in zip(orders, answers, strict=True):
        rows[order] = answer
    return rows


def _copy_released(rows: Rows, own: Rows) -> None:
    at_once = max(1, _WINDOW_BYTES // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), at_once):
        own[first : first + at_once] = rows[first : first + at_once]
        release_pages(rows)


def _release(table: Rows | ShardedRows) -> None:
    for rows in table.parts if isinstance(table, ShardedRows) else [table]:
        release_pages(rows)


def _windows(ranks: Ranks, layout: Layout, rows: Rows) -> Iterator[list[int]]:
    """Yield the bounds (ranks + 1) of the ids that the ranks handle at a time."""
    row_bytes = max(1, rows.dtype.itemsize * int(np.prod(rows.shape[1:])))
    each = max(1, min(_WINDOW_BYTES // row_bytes, -(-layout.size // ranks.size)))
    for begin in range(0, layout.size, each * ranks.size):
        yield [min(begin + each * rank, layout.size) for rank in range(ranks.size + 1)]


def _places(layout: Layout, rank: int, first: int, stop: int) -> slice:
    """Return where a rank's rows of the ids ``first`` to ``stop`` lie: they ascend with the ids."""
    below = (Layout(layout.table, bound, layout.world).rows_of(rank) for bound in (first, stop))
    return slice(*below)
