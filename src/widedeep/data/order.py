"""The reading order of an epoch: a function of seed, epoch and fragment sizes alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.data.fragments import Fragment, Source
from widedeep.errors import ConfigError

ORDER_VERSION = 2
"""Changes with the order itself; a position within an epoch means nothing in another one."""

FEWEST_OPEN, MOST_OPEN = 6, 16
"""Fragments of the largest size that deal their rows at the same time."""

POOLS, HANDS = 16, 64
"""Pools in a stretch of the epoch, and in how many parts at most fragments fill a pool."""

_MASK_64 = (1 << 64) - 1
_MOST_POOL_ROWS = 1 << 40
_FRAGMENT_STREAM, _ROW_STREAM, _SHARE_STREAM, _PHASE_STREAM, _HAND_STREAM = range(1, 6)
_GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Share:
    """What one pool takes of a fragment: places ``start`` to ``stop`` of its own random order."""

    fragment: Fragment
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows that are shuffled together."""

    index: int  # Its place in the epoch
    first_row: int  # The position of its first row in the epoch's order
    shares: tuple[Share, ...]  # In the order in which their rows are numbered within the pool

    @property
    def num_rows(self) -> int:
        """Rows of all its shares."""
        return sum(len(share) for share in self.shares)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a batch begins: ``row`` counts in the shuffled order of ``pool``."""

    pool: int
    row: int


class EpochPlan:
    """Which rows make up each batch of one epoch."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        pool_rows: int = 262_144,
        drop_last: bool = False,
    ) -> None:
        _check_at_least(1, batch_size=batch_size, pool_rows=pool_rows)
        _check_at_least(0, seed=seed, epoch=epoch)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        fragments = source.fragments
        if shuffle and fragments:
            pools = self._dealt_pools(fragments, min(pool_rows, _MOST_POOL_ROWS))
        else:
            pools = [[Share(fragment, 0, fragment.num_rows)] for fragment in fragments]
        self.pools: tuple[Pool, ...] = tuple(_numbered(pools))
        self.num_rows = source.num_rows
        if drop_last:
            self.num_rows -= self.num_rows % batch_size
        self.num_batches = -(-self.num_rows // batch_size)
        self._first_rows = [pool.first_row for pool in self.pools]

    def _dealt_pools(self, fragments: Sequence[Fragment], pool_rows: int) -> list[list[Share]]:
        """Let each fragment deal its rows, a hand at a time, over its stretch of the epoch."""
        sizes = np.array([fragment.num_rows for fragment in fragments], np.int64)
        largest = int(sizes.max())
        # Half of the rows of a stretch are dealt already: memory holds the other half.
        stretch = max(2 * pool_rows, FEWEST_OPEN * largest)
        step = -(-stretch // POOLS)
        stretch = min(stretch, MOST_OPEN * largest)
        order = self._fragment_order(sizes, max(stretch, step))
        sizes = sizes[order]
        first, last = _stretches(sizes, stretch)
        hands = np.minimum(-(-sizes * HANDS // step), sizes)
        offsets = self._fractions(_HAND_STREAM, len(sizes))
        # One item a hand from here on; consecutive ones of a fragment in one pool are a share.
        place = np.repeat(np.arange(len(sizes)), hands)
        turn = np.arange(len(place)) - np.repeat(np.cumsum(hands) - hands, hands)
        width = (last - first)[place]
        rows = ((turn + offsets[place]) / hands[place] * width).astype(np.int64)
        pool = (first[place] + np.minimum(rows, width - 1)) // step
        new = np.flatnonzero(np.diff(place, prepend=-1) | np.diff(pool, prepend=-1))
        place, start = place[new], (turn * sizes[place] // hands[place])[new]
        stop = np.append(start[1:], 0)
        stop = np.where(stop == 0, sizes[place], stop)
        pools: list[list[Share]] = [[] for _ in range(0, int(sizes.sum()), step)]
        columns = (order[place], pool[new], start, stop)
        for number, index, begin, end in zip(*(c.tolist() for c in columns), strict=True):
            pools[index].append(Share(fragments[number], begin, end))
        return pools

    def _fragment_order(self, sizes: NDArray[np.int64], stretch: int) -> NDArray[np.int64]:
        """Permute fragments so that those of any stretch of an epoch come from all the input."""
        random = _permutation(len(sizes), self.seed, self.epoch, _FRAGMENT_STREAM, 0)
        ends = np.cumsum(sizes)
        n_strata = -(-stretch * int(ends[-1]) // int((sizes * sizes).sum()))
        strata = (ends - sizes // 2 - 1) * n_strata // ends[-1]
        by_stratum = random[np.argsort(strata[random], kind="stable")]
        strata, sizes = strata[by_stratum], sizes[by_stratum]
        rows = np.bincount(strata, weights=sizes)
        before = np.cumsum(sizes) - sizes - (np.cumsum(rows) - rows)[strata]
        pairs = np.minimum(strata, n_strata - 1 - strata)
        turns = self._fractions(_PHASE_STREAM, n_strata)
        second = (strata != pairs) ^ (turns[pairs] < 0.5)
        phases = (pairs * _GOLDEN_RATIO + turns[-1] + second * 1e-6) % 1.0
        return by_stratum[np.argsort((before + sizes * phases) / rows[strata], kind="stable")]

    def _fractions(self, stream: int, n: int) -> NDArray[np.float64]:
        words = _words(n, self.seed, self.epoch, stream, 0)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def batch_rows(self, batch: int) -> tuple[int, int]:
        """Return where a global batch begins and ends in the epoch's order of rows."""
        return batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_rows)

    def position(self, batch: int) -> Position:
        """Return the pool a global batch begins in; reading can start there."""
        if not 0 <= batch <= self.num_batches:
            raise ConfigError(
                f"batch {batch}: this epoch has batches 0 to {self.num_batches - 1}; "
                "resume with the data and batch size of the interrupted run"
            )
        row = min(batch * self.batch_size, self.num_rows)
        pool = max(bisect_right(self._first_rows, row) - 1, 0)
        return Position(pool, row - self._first_rows[pool] if self.pools else 0)

    def fragment_order(self, fragment: Fragment) -> NDArray[np.int64]:
        """Return the order in which a fragment deals its rows."""
        return _permutation(fragment.num_rows, self.seed, self.epoch, _ROW_STREAM, fragment.index)

    def share_order(self, pool: Pool) -> NDArray[np.unsignedinteger[Any]]:
        """Return which of a pool's shares gives the next row, for each row of the pool."""
        numbers = np.arange(len(pool.shares), dtype=np.min_scalar_type(len(pool.shares)))
        shares = np.repeat(numbers, [len(share) for share in pool.shares])
        if len(numbers) == 1:
            return shares
        return shares[_permutation(len(shares), self.seed, self.epoch, _SHARE_STREAM, pool.index)]


def large_fragments(source: Source, pool_rows: int) -> str | None:
    """Say that few fragments are mixed at a time, if these are too large for more."""
    largest = max((fragment.num_rows for fragment in source.fragments), default=0)
    if largest <= pool_rows // 2 or source.num_rows <= FEWEST_OPEN * largest:
        return None
    return (
        f"row groups hold up to {largest:,} rows, so rows are mixed over {FEWEST_OPEN} of "
        f"{len(source.fragments):,} at a time, and memory holds {FEWEST_OPEN // 2} and more; "
        "files written with row_group_size=65536 are mixed better and take less"
    )


def rank_rows(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the slice of a global batch that one rank takes; the ranks' slices cover it once."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def _check_at_least(lowest: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if not lowest <= number <= _MASK_64:
            raise ConfigError(f"{name}: got {number}, expected {lowest} <= {name} < 2**64")


def _stretches(
    sizes: NDArray[np.int64], stretch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return between which rows of the epoch each fragment deals its own."""
    ends = np.cumsum(sizes)
    starts, total = ends - sizes, int(ends[-1])
    margin = (stretch - int(sizes.max())) // 2
    last = np.where(starts >= total - stretch, total, np.minimum(ends + margin, total))
    return np.maximum(starts - margin, 0), last


def _numbered(pools: Iterable[Sequence[Share]]) -> Iterator[Pool]:
    index = first_row = 0
    for shares in pools:
        if shares:
            pool = Pool(index, first_row, tuple(shares))
            yield pool
            index, first_row = index + 1, first_row + pool.num_rows


def _words(n: int, seed: int, epoch: int, stream: int, index: int) -> NDArray[np.uint64]:
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, index, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def _permutation(n: int, seed: int, epoch: int, stream: int, index: int) -> NDArray[np.int64]:
    """Sort random words whose low bits are positions: all differ, so every sort agrees."""
    words = _words(n, seed, epoch, stream, index)
    low_bits = np.uint64((1 << n.bit_length()) - 1)
    words = (words & ~low_bits) | np.arange(n, dtype=np.uint64)
    words.sort()
    return (words & low_bits).astype(np.int64)
