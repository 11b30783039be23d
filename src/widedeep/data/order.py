"""The reading order of an epoch: a function of seed, epoch and fragment sizes alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widedeep.data.fragments import Fragment, Source
from widedeep.errors import ConfigError

__all__ = ["EpochPlan", "Pool", "Position", "rank_rows"]

_MASK_64 = (1 << 64) - 1
_FRAGMENT_STREAM = 1
_ROW_STREAM = 2


@dataclass(frozen=True, slots=True)
class Pool:
    """Fragments whose rows are shuffled together.

    Args:
        index: Its place in the epoch.
        first_row: The position of its first row in the epoch's order.
        fragments: In the order in which their rows are numbered within the pool.
    """

    index: int
    first_row: int
    fragments: tuple[Fragment, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all its fragments."""
        return sum(fragment.num_rows for fragment in self.fragments)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a batch begins: ``row`` counts in the shuffled order of ``pool``."""

    pool: int
    row: int


class EpochPlan:
    """Which rows make up each batch of one epoch.

    Fragments are permuted and gathered in pools of about ``pool_rows`` rows; rows are permuted
    within their pool; batches are cut from the whole at multiples of ``batch_size``, across pools.
    The permutations sort the counter-based Philox generator (Salmon et al. 2011), so the order does
    not change with a NumPy release.

    Args:
        source: Gives the fragments.
        batch_size: Examples of a global batch, at least 1.
        seed: 0 <= seed < 2**64.
        epoch: Counted from 0.
        shuffle: False keeps the rows in order.
        pool_rows: Rows that are shuffled together, at least 1; memory grows with it.
        drop_last: Whether the short batch at the end is left out.

    Raises:
        ConfigError: If a number is outside its range.

    Example:
        >>> from widedeep.data.sources import open_source
        >>> source = open_source([{"x": i} for i in range(10)])
        >>> plan = EpochPlan(source, batch_size=4, seed=7, epoch=0)
        >>> plan.num_batches, [plan.batch_rows(i) for i in range(3)]
        (3, [(0, 4), (4, 8), (8, 10)])
    """

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
        if shuffle:
            order = _permutation(len(fragments), seed, epoch, _FRAGMENT_STREAM, 0)
            fragments = tuple(fragments[number] for number in order.tolist())
        self.pools: tuple[Pool, ...] = tuple(_pools(fragments, pool_rows if shuffle else 1))
        self.num_rows = source.num_rows
        if drop_last:
            self.num_rows -= self.num_rows % batch_size
        self.num_batches = -(-self.num_rows // batch_size)
        self._first_rows = [pool.first_row for pool in self.pools]

    def batch_rows(self, batch: int) -> tuple[int, int]:
        """Return where a global batch begins and ends in the epoch's order of rows.

        Args:
            batch: 0 <= batch < ``num_batches``.
        """
        return batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_rows)

    def position(self, batch: int) -> Position:
        """Return the pool a global batch begins in; reading can start there.

        Args:
            batch: 0 <= batch <= ``num_batches``; the last stands for the end of the epoch.

        Raises:
            ConfigError: If there is no such batch.
        """
        if not 0 <= batch <= self.num_batches:
            raise ConfigError(
                f"batch {batch}: this epoch has batches 0 to {self.num_batches - 1}; "
                "resume with the data and batch size of the interrupted run"
            )
        row = min(batch * self.batch_size, self.num_rows)
        pool = max(bisect_right(self._first_rows, row) - 1, 0)
        return Position(pool, row - self._first_rows[pool] if self.pools else 0)

    def row_order(self, pool: Pool) -> NDArray[np.int64] | None:
        """Return the order of a pool's rows, numbered along its fragments; None keeps them.

        Args:
            pool: One of ``pools``.
        """
        if not self.shuffle:
            return None
        return _permutation(pool.num_rows, self.seed, self.epoch, _ROW_STREAM, pool.index)


def rank_rows(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the slice of a global batch that one rank takes; the ranks' slices cover it once.

    Args:
        num_rows: Rows of the global batch.
        rank: 0 <= rank < world_size.
        world_size: Ranks that share the batch, at least 1.

    Example:
        >>> [rank_rows(10, rank, 3) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def _check_at_least(lowest: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if not lowest <= number <= _MASK_64:
            raise ConfigError(f"{name}: got {number}, expected {lowest} <= {name} < 2**64")


def _pools(fragments: tuple[Fragment, ...], pool_rows: int) -> Iterator[Pool]:
    index = first_row = n_rows = 0
    gathered: list[Fragment] = []
    for fragment in fragments:
        if gathered and _is_full(n_rows, len(gathered), fragment.num_rows, pool_rows):
            yield Pool(index, first_row, tuple(gathered))
            index, first_row, n_rows, gathered = index + 1, first_row + n_rows, 0, []
        gathered.append(fragment)
        n_rows += fragment.num_rows
    if gathered:
        yield Pool(index, first_row, tuple(gathered))


def _is_full(n_rows: int, n_fragments: int, n_more: int, pool_rows: int) -> bool:
    """Tell whether a pool is nearer to ``pool_rows`` without the next fragment than with it."""
    if n_rows >= pool_rows:
        return True
    # Two fragments at least: one alone would be read in nearly the order in which it was written.
    return n_fragments > 1 and n_rows + n_more - pool_rows > pool_rows - n_rows


def _permutation(n: int, seed: int, epoch: int, stream: int, index: int) -> NDArray[np.int64]:
    """Sort random words whose low bits are positions: all differ, so every sort agrees."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, index, stream], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(n)
    low_bits = np.uint64((1 << n.bit_length()) - 1)
    words = (words & ~low_bits) | np.arange(n, dtype=np.uint64)
    words.sort()
    return (words & low_bits).astype(np.int64)
