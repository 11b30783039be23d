"""The rows that quantiles are learned from: those whose numbers hash lowest."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError
from widedeep.ranks.ranks import Ranks

_NUMBERED_ROWS = 1 << 22


@lru_cache(maxsize=4)
def sampled_rows(rows: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers of the rows that a sample of ``size`` of all rows holds, ascending."""
    row_S, hash_S = np.empty(0, np.int64), np.empty(0, np.uint64)
    for start in range(0, rows, _NUMBERED_ROWS):
        stop = min(start + _NUMBERED_ROWS, rows)
        row_S = np.concatenate([row_S, np.arange(start, stop)])
        hash_S = np.concatenate([hash_S, _row_hashes(seed, start, stop - start)])
        if len(hash_S) > size:
            low = np.flatnonzero(hash_S <= np.partition(hash_S, size - 1)[size - 1])
            row_S, hash_S = row_S[low], hash_S[low]
    row_S.flags.writeable = False
    return row_S


class RowSample:
    """Keeps the numbers of rows whose own numbers hash lowest: uniform, without replacement.

    Where all rows take part and how many there are is known, :func:`sampled_rows` tells which.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        first_row: int = 0,
        row_S: NDArray[np.int64] | None = None,
    ) -> None:
        if size < 1:
            raise ConfigError(f"size: got {size}, expected at least 1")
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed: got {seed}, expected 0 <= seed < 2**64")
        self.size = size
        self._next_row = first_row
        self._row_S = row_S
        self._seed = seed
        self._hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        self._values: list[NDArray[np.float64]] = [np.empty(0)]
        self._bound = np.uint64((1 << 64) - 1)

    def add(self, value_B: NDArray[np.float64], valid_B: NDArray[np.bool_] | None = None) -> None:
        """Let the next rows take part, or those that are valid."""
        first, stop = self._next_row, self._next_row + len(value_B)
        self._next_row = stop
        if self._row_S is not None:
            low, high = np.searchsorted(self._row_S, [first, stop])
            # In place of hashes, of which none has to be left out any more.
            row_S = self._row_S[low:high]
            self._hashes.append(row_S.view(np.uint64))
            self._values.append(value_B[row_S - first])
            return
        hashes = _row_hashes(self._seed, first, len(value_B))
        takes_part = hashes <= self._bound
        lowest = np.flatnonzero(takes_part if valid_B is None else takes_part & valid_B)
        self._hashes.append(hashes[lowest])
        self._values.append(value_B[lowest])
        if sum(map(len, self._hashes)) > 2 * self.size:
            self._prune()

    def exchange(self, ranks: Ranks) -> None:
        """Keep the lowest of all ranks' rows, in rank order."""
        if ranks.size > 1:
            self._prune()
            self._hashes, self._values = (
                ranks.gather(np.concatenate(arrays)) for arrays in (self._hashes, self._values)
            )

    def values(self) -> NDArray[np.float64]:
        """Return the numbers of the sampled rows in the order in which they came."""
        self._prune()
        return self._values[0]

    def _prune(self) -> None:
        hashes, values = np.concatenate(self._hashes), np.concatenate(self._values)
        if len(hashes) > self.size:
            self._bound = np.partition(hashes, self.size - 1)[self.size - 1]
            lowest = np.flatnonzero(hashes <= self._bound)
            hashes, values = hashes[lowest], values[lowest]
        self._hashes, self._values = [hashes], [values]


def _row_hashes(seed: int, first: int, n: int) -> NDArray[np.uint64]:
    """Hash row numbers by SplitMix64 (Steele et al. 2014); no two rows of a seed share a hash."""
    # The seed is hashed too: as a plain start, a neighbouring seed would be the same rows shifted.
    start = split_mix(np.array([seed], np.uint64))
    numbers: NDArray[np.uint64] = np.arange(first, first + n, dtype=np.uint64)
    return split_mix(start + numbers)


def split_mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of an array of words; scalars would warn where they wrap around."""
    mixed = words * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
