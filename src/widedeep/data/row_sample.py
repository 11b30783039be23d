"""The rows that quantiles are learned from: those whose numbers hash lowest."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.peers import Peers
from widedeep.errors import ConfigError

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
    """Keeps the rows whose numbers hash lowest: a uniform sample without replacement.

    Where all rows take part and their number is known, :func:`sampled_rows` tells them beforehand.
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
        self._hashes: list[NDArray[np.uint64]] = []
        self._tables: list[pa.Table] = []
        self._bound = np.uint64((1 << 64) - 1)

    def add(self, table: pa.Table, valid: NDArray[np.bool_] | None = None) -> None:
        """Let the next rows take part, or those that are valid."""
        if self._row_S is not None:
            low, high = np.searchsorted(
                self._row_S, [self._next_row, self._next_row + table.num_rows]
            )
            row_S = self._row_S[low:high]
            self._hashes.append(row_S.astype(np.uint64))  # Of none has to be left out any more.
            whole = len(row_S) == table.num_rows
            self._tables.append(table if whole else table.take(pa.array(row_S - self._next_row)))
            self._next_row += table.num_rows
            return
        hashes = _row_hashes(self._seed, self._next_row, table.num_rows)
        self._next_row += table.num_rows
        takes_part = hashes <= self._bound
        low = np.flatnonzero(takes_part if valid is None else takes_part & valid)
        self._hashes.append(hashes[low])
        self._tables.append(table.take(pa.array(low)))
        if sum(map(len, self._hashes)) > 2 * self.size:
            self._prune()

    def exchange(self, ranks: Peers) -> None:
        """Keep the lowest of all ranks' rows, in rank order."""
        if ranks.size == 1:
            return
        payload = b""
        if self._tables:
            self._prune()
            rows = self._tables[0].append_column("", pa.array(self._hashes[0]))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
            payload = sink.getvalue()
        self._hashes, self._tables = [], []
        for buffer in ranks.gather(np.frombuffer(payload, np.uint8)):
            if len(buffer):
                rows = pa.ipc.open_stream(pa.py_buffer(buffer)).read_all()
                self._hashes.append(rows.column(rows.num_columns - 1).to_numpy())
                self._tables.append(rows.remove_column(rows.num_columns - 1))

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
