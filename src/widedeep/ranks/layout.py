"""Which rank owns a table's row: striped, so that frequent ids are spread over all of them."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_BITS = 12
_BLOCK = 1 << _BITS  # ids that are dealt out together; most ranks that there may be
_STRIDE = 2531  # odd, about _BLOCK / golden ratio: neighbours lie far apart


class Layout:
    """How the rows of one logical table are divided among ranks; a function of its arguments alone.

    Ids are cut into blocks of 4,096. The k-th of a block lies on stripe ``(2531 k + h) mod 4096``,
    with ``h`` a hash of the table's name, and a rank owns a run of stripes. Vocabularies are
    ordered by frequency, so that runs of ids would give the first rank most of the work. A rank
    keeps its rows in ascending order of their ids, without gaps: rows that a table gains come last.

    Args:
        table: Name of the logical table.
        size: Its ids, 0 to ``size - 1``.
        world: Number of ranks, 1 to 4,096.

    Example:
        >>> layout = Layout("city", 10, 3)
        >>> [layout.ids_of(rank).tolist() for rank in range(3)]
        [[0, 3, 8], [2, 5, 7], [1, 4, 6, 9]]
        >>> layout.owner_of(np.array([5])).tolist(), layout.place_of(np.array([5])).tolist()
        ([1], [1])
    """

    def __init__(self, table: str, size: int, world: int) -> None:
        if not 1 <= world <= _BLOCK:
            raise ValueError(f"world: got {world}, expected 1 to {_BLOCK} ranks")
        self.table, self.size, self.world = table, size, world
        digest = hashlib.blake2b(table.encode(), digest_size=2).digest()
        self._blocks = _deal(int.from_bytes(digest, "little") % _BLOCK, world)

    def owner_of(self, ids: Ids) -> Ids:
        """Return the rank that owns each id."""
        if self.world == 1:
            return np.zeros(len(ids), np.int64)
        owners: Ids = self._blocks.owner[ids & (_BLOCK - 1)]
        return owners

    def place_of(self, ids: Ids) -> Ids:
        """Return each id's row within its owner's part of the table."""
        if self.world == 1:
            return ids
        within = ids & (_BLOCK - 1)
        places: Ids = (ids >> _BITS) * self._blocks.rows[self._blocks.owner[within]]
        places += self._blocks.place[within]
        return places

    @property
    def dealt(self) -> tuple[Ids, Ids, Ids]:
        """How the ids of a block are dealt out: owner and row of each, rows of each rank."""
        return self._blocks.owner, self._blocks.place, self._blocks.rows

    def rows_of(self, rank: int) -> int:
        """Return how many rows a rank owns."""
        if self.world == 1:
            return self.size
        last = self._blocks.owner[: self.size & (_BLOCK - 1)]
        whole = (self.size >> _BITS) * int(self._blocks.rows[rank])
        return whole + int(np.count_nonzero(last == rank))

    def ids_of(self, rank: int, first: int = 0, stop: int | None = None) -> Ids:
        """Return the ids of a rank's rows ``first`` to ``stop``, ascending; by default of all."""
        return self.ids_at(rank, np.arange(first, self.rows_of(rank) if stop is None else stop))

    def ids_at(self, rank: int, places: Ids) -> Ids:
        """Return the ids of some of a rank's rows."""
        if self.world == 1:
            return places
        own = np.flatnonzero(self._blocks.owner == rank)  # of each block
        blocks, within = np.divmod(places, max(1, len(own)))
        ids: Ids = (blocks << _BITS) + own[within]
        return ids


class _Blocks:
    """How each block is dealt out."""

    def __init__(self, offset: int, world: int) -> None:
        stripes = (np.arange(_BLOCK) * _STRIDE + offset) & (_BLOCK - 1)
        self.owner: Ids = stripes * world >> _BITS  # (4096,) rank of each id of a block
        self.rows: Ids = np.bincount(self.owner, minlength=world)  # (world,) of each rank
        order = np.argsort(self.owner, kind="stable")
        first = np.cumsum(self.rows) - self.rows
        self.place: Ids = np.empty(_BLOCK, np.int64)  # (4096,) among its owner's ids of a block
        self.place[order] = np.arange(_BLOCK) - first[self.owner[order]]
        for array in (self.owner, self.rows, self.place):
            array.flags.writeable = False


@lru_cache(maxsize=1024)
def _deal(offset: int, world: int) -> _Blocks:
    return _Blocks(offset, world)
