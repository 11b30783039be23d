"""Accumulators: sums, ties and sorted rows over streams of any length, in bounded memory."""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, DataError
from widedeep.metrics.rows import Rows

BLOCK_ROWS = 65_536
DEFAULT_MAX_ROWS = 1_000_000
# A run is read in pieces of at least this many rows: below it, seeking costs more than memory
# saved.
SMALLEST_PIECE = 16
# Half of an int64: a sort takes up to 2**31 rows.
_INDEX_BITS = 31
_MAX_ROWS = 2**31


class CompensatedSum:
    """A vector of running sums in float64 that carries its own rounding errors."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size)
        self._lost = np.zeros(size)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add one number to each sum."""
        total = self._sum + values
        from_sum = (self._sum - total) + values
        from_value = (values - total) + self._sum
        self._lost += np.where(np.abs(self._sum) >= np.abs(values), from_sum, from_value)
        self._sum = total

    def merge(self, other: CompensatedSum) -> None:
        """Add the sums of another part of the rows."""
        self.add(other._sum)
        self._lost += other._lost

    def values(self) -> NDArray[np.float64]:
        """Return the sums."""
        return self._sum + self._lost


class Totals(Protocol):
    """Sums over rows that are added a block at a time and merged with those of other rows."""

    def add(self, block: Rows) -> None:
        """Add a block of rows."""

    def merge(self, other: Self) -> None:
        """Add the sums of another part of the rows."""


T = TypeVar("T", bound=Totals)


class BlockedStream(Generic[T]):
    """Cuts a stream into blocks of fixed size, so that its sums do not depend on its updates."""

    def __init__(self, totals: T, dtype: np.dtype[Any], block_rows: int = BLOCK_ROWS) -> None:
        self._totals = totals
        self._block: Rows = np.empty(block_rows, dtype=dtype)
        self._filled = 0

    def append(self, rows: Rows) -> None:
        """Add rows to the end of the stream."""
        start = 0
        while start < len(rows):
            stop = min(start + len(self._block) - self._filled, len(rows))
            self._block[self._filled : self._filled + stop - start] = rows[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == len(self._block):
                self._totals.add(self._block)
                self._filled = 0

    def merge(self, other: BlockedStream[T]) -> None:
        """Add the totals of another stream."""
        self._totals.merge(other.totals())

    def totals(self) -> T:
        """Return the totals of all rows so far; the stream may go on afterwards."""
        totals = copy.deepcopy(self._totals)
        if self._filled:
            totals.add(self._block[: self._filled])
        return totals


def changes(*columns: NDArray[np.generic]) -> NDArray[np.intp]:
    """Return where each new value begins in columns that are sorted together; the first is 0."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = False
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def tie_runs(
    blocks: Iterable[Rows], as_runs: Callable[[Rows], Rows], keys: tuple[str, ...]
) -> Iterator[Rows]:
    """Merge neighbouring rows with equal keys and sum their other fields."""
    open_run: Rows | None = None  # (1,) last run of a block: the next block may continue it
    for block in blocks:
        runs = as_runs(block)
        if open_run is not None:
            runs = np.concatenate([open_run, runs])
        runs = _merge_equal(runs, keys)
        open_run = runs[-1:].copy()
        if len(runs) > 1:
            yield runs[:-1]
    if open_run is not None:
        yield open_run


def _merge_equal(runs: Rows, keys: tuple[str, ...]) -> Rows:
    """Merge neighbours with equal keys: (R,) runs to (U,), one per distinct key, in order."""
    starts = changes(*(runs[key] for key in keys))  # (U,) first run of each key
    if len(starts) == len(runs):
        return runs
    merged: Rows = np.empty(len(starts), dtype=runs.dtype)
    for name in runs.dtype.names or ():
        merged[name] = runs[name][starts] if name in keys else np.add.reduceat(runs[name], starts)
    return merged


class SortedRows:
    """Rows that come in any order and are read back sorted."""

    def __init__(
        self,
        dtype: np.dtype[Any],
        keys: tuple[str, ...],
        max_rows: int = DEFAULT_MAX_ROWS,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 1 <= max_rows <= _MAX_ROWS:
            raise ConfigError(f"max_rows_in_memory: got {max_rows}, expected 1 to {_MAX_ROWS}")
        if directory is not None and not Path(directory).is_dir():
            raise ConfigError(
                f"spill_directory: got {os.fspath(directory)!r}, not a directory; create it"
            )
        self._dtype = dtype
        self._keys = keys
        self._max_rows = max_rows
        self._directory = directory
        self._buffer: Rows = np.empty(0, dtype=dtype)
        self._filled = 0
        self._file: IO[bytes] | None = None
        self._run_rows: list[int] = []

    @property
    def spilled_runs(self) -> int:
        """Number of sorted runs on disk."""
        return len(self._run_rows)

    def append(self, rows: Rows) -> None:
        """Add rows."""
        start = 0
        while start < len(rows):
            stop = min(start + self._max_rows - self._filled, len(rows))
            self._reserve(self._filled + stop - start)
            self._buffer[self._filled : self._filled + stop - start] = rows[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == self._max_rows:
                self._spill()

    def extend(self, other: SortedRows) -> None:
        """Add the rows of another sort."""
        for block in other.blocks():
            self.append(block)

    def blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[Rows]:
        """Yield all rows in order, in blocks of ``block_rows`` (the last may be shorter)."""
        if not self._run_rows:
            ordered = self._ordered()
            return (ordered[i : i + block_rows] for i in range(0, len(ordered), block_rows))
        self._spill()
        return _recut(self._merged(), block_rows)

    def _reserve(self, rows: int) -> None:
        """Grow the buffer by doubling, so that a small evaluation stays small."""
        if rows > len(self._buffer):
            grown = np.empty(min(max(rows, 2 * len(self._buffer)), self._max_rows), self._dtype)
            grown[: self._filled] = self._buffer[: self._filled]
            self._buffer = grown

    def _ordered(self) -> Rows:
        return _sorted(self._buffer[: self._filled], self._keys)

    def _spill(self) -> None:
        if not self._filled:
            return
        if self._file is None:
            # Open as long as this object lives, hence no `with`.
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        try:
            self._file.seek(sum(self._run_rows) * self._dtype.itemsize)
            self._file.write(self._ordered().view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            directory = os.fspath(self._directory or tempfile.gettempdir())
            raise DataError(
                f"spill_directory {directory!r}: {error.strerror} after {sum(self._run_rows)} rows "
                f"of {self._dtype.itemsize} bytes; free space, or choose another spill_directory"
            ) from error
        self._run_rows.append(self._filled)
        self._filled = 0

    def _merged(self) -> Iterator[Rows]:
        """Merge the runs: each step yields every row that no unread row can precede."""
        assert self._file is not None
        piece = max(SMALLEST_PIECE, self._max_rows // (2 * len(self._run_rows)))
        ends = np.cumsum(self._run_rows).tolist()
        starts = [0, *ends[:-1]]
        runs = [
            _Run(self._file, self._dtype, start, end)
            for start, end in zip(starts, ends, strict=True)
        ]
        while runs:
            for run in runs:
                run.fill(piece)
            # Rows up to the smallest last key in a buffer are complete: every unread row follows.
            unfinished = [index for index, run in enumerate(runs) if run.unread]
            if not unfinished:
                yield self._in_order([run.take(len(run.buffer)) for run in runs])
                return
            # Equal keys are taken in order of the runs; min keeps the first of equal ones.
            limit = min(unfinished, key=lambda index: runs[index].last(self._keys))
            last = runs[limit].buffer[-1]
            yield self._in_order(
                [
                    run.take(_rows_before(run.buffer, last, self._keys, inclusive=index <= limit))
                    for index, run in enumerate(runs)
                ]
            )
            runs = [run for run in runs if run.unread or len(run.buffer)]

    def _in_order(self, pieces: list[Rows]) -> Rows:
        return _sorted(np.concatenate(pieces), self._keys)


class _Run:
    """A sorted run on disk, with a piece of it in memory."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], start: int, end: int) -> None:
        self._file = file
        self._next = start
        self._end = end
        self.buffer: Rows = np.empty(0, dtype=dtype)

    @property
    def unread(self) -> int:
        """Rows still on disk."""
        return self._end - self._next

    def last(self, keys: tuple[str, ...]) -> tuple[Any, ...]:
        """Key of the last row in memory."""
        return tuple(self.buffer[key][-1] for key in keys)

    def fill(self, piece: int) -> None:
        """Read until ``piece`` rows are in memory, once fewer than half of them remain."""
        count = min(piece - len(self.buffer), self.unread)
        if count <= 0 or 2 * len(self.buffer) >= piece:
            return
        rows: Rows = np.empty(count, dtype=self.buffer.dtype)
        raw = rows.view(np.uint8)
        self._file.seek(self._next * rows.dtype.itemsize)
        size = self._file.readinto(raw.data)  # type: ignore[attr-defined]
        if size != raw.size:
            raise DataError(
                f"the temporary file of spilled rows ends {raw.size - size} bytes early; "
                "was it truncated? evaluate again"
            )
        self._next += count
        self.buffer = np.concatenate([self.buffer, rows])

    def take(self, count: int) -> Rows:
        """Remove and return the first ``count`` rows in memory."""
        rows, self.buffer = self.buffer[:count], self.buffer[count:]
        return rows


def _sorted(rows: Rows, keys: tuple[str, ...]) -> Rows:
    """Return rows sorted by their keys; equal ones keep their order."""
    order = _stable_order(rows[keys[-1]].copy())
    for key in reversed(keys[:-1]):
        order = np.take(order, _stable_order(np.take(rows[key], order)))
    ordered: Rows = np.take(rows, order)
    return ordered


def _stable_order(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return ``np.argsort(values, kind="stable")``."""
    order = np.argsort(values).astype(np.int64, copy=False)
    ordered = np.take(values, order)
    new = ordered[1:] != ordered[:-1]
    if new.all():
        return order
    # (n,) rank of the value in the high bits, row index in the low ones: sorting these restores
    # the order of equal values.
    packed = np.zeros(len(order), dtype=np.int64)
    np.cumsum(new, out=packed[1:])
    packed <<= _INDEX_BITS
    packed |= order
    packed.sort()
    packed &= (1 << _INDEX_BITS) - 1
    return packed


def _rows_before(rows: Rows, last: np.void, keys: tuple[str, ...], *, inclusive: bool) -> int:
    """Count the leading rows with keys below those of ``last`` (inclusive: or equal)."""
    low, high = 0, len(rows)
    for key in keys[:-1]:
        column = rows[key][low:high]
        low, high = (
            low + int(np.searchsorted(column, last[key], side="left")),
            low + int(np.searchsorted(column, last[key], side="right")),
        )
    column = rows[keys[-1]][low:high]
    side: Literal["left", "right"] = "right" if inclusive else "left"
    return low + int(np.searchsorted(column, last[keys[-1]], side=side))


def _recut(pieces: Iterator[Rows], block_rows: int) -> Iterator[Rows]:
    """Cut a stream of pieces into blocks of fixed size."""
    pending: list[Rows] = []
    count = 0
    for piece in pieces:
        pending.append(piece)
        count += len(piece)
        if count >= block_rows:
            rows = np.concatenate(pending)
            whole = count - count % block_rows
            for start in range(0, whole, block_rows):
                yield rows[start : start + block_rows]
            # A copy, so that the yielded rows can be freed.
            pending, count = [rows[whole:].copy()], count - whole
    if count:
        yield np.concatenate(pending)
