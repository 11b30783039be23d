"""A uniform sample of rows that depends on the seed and the rows' numbers alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.errors import ConfigError


class RowSample:
    """Keeps the rows whose numbers hash lowest: a uniform sample without replacement."""

    def __init__(self, seed: int, size: int) -> None:
        if size < 1:
            raise ConfigError(f"size: got {size}, expected at least 1")
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed: got {seed}, expected 0 <= seed < 2**64")
        self.size = size
        self.num_rows = 0
        self._seed = seed
        self._hashes: list[NDArray[np.uint64]] = []
        self._tables: list[pa.Table] = []
        self._bound = np.uint64((1 << 64) - 1)

    @property
    def is_complete(self) -> bool:
        """True while the sample is all rows there are."""
        return self.num_rows <= self.size

    def add(self, table: pa.Table) -> None:
        """Let the next rows take part."""
        hashes = _row_hashes(self._seed, self.num_rows, table.num_rows)
        self.num_rows += table.num_rows
        low = np.flatnonzero(hashes <= self._bound)
        self._hashes.append(hashes[low])
        self._tables.append(table.take(pa.array(low)))
        if sum(map(len, self._hashes)) > 2 * self.size:
            self._prune()

    def table(self) -> pa.Table:
        """Return the sampled rows in the order in which they came."""
        if not self._tables:
            raise ConfigError("the sample saw no table; add at least one")
        self._prune()
        return self._tables[0]

    def _prune(self) -> None:
        hashes = np.concatenate(self._hashes)
        table = pa.concat_tables(self._tables, promote_options="permissive")
        if len(hashes) > self.size:
            self._bound = np.partition(hashes, self.size - 1)[self.size - 1]
            low = np.flatnonzero(hashes <= self._bound)
            hashes, table = hashes[low], table.take(pa.array(low))
        # One chunk, so that nothing keeps the tables alive that the rows were taken from.
        self._hashes, self._tables = [hashes], [table.combine_chunks()]


def _row_hashes(seed: int, first: int, n: int) -> NDArray[np.uint64]:
    """Hash row numbers by SplitMix64 (Steele et al. 2014); no two rows of a seed share a hash."""
    # The seed is hashed too: as a plain start, a neighbouring seed would be the same rows shifted.
    start = _split_mix(np.array([seed], np.uint64))
    numbers: NDArray[np.uint64] = np.arange(first, first + n, dtype=np.uint64)
    return _split_mix(start + numbers)


def _split_mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = words * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
