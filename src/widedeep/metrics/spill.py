"""External sort: rows in order of their keys, whatever their number, in bounded memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, DataError
from widedeep.metrics.rows import Rows
from widedeep.metrics.sums import BLOCK_ROWS

DEFAULT_MAX_ROWS = 1_000_000
# A run is read in pieces of at least this many rows: below it, seeking costs more than memory
# saved.
SMALLEST_PIECE = 16
# Half of an int64: a sort takes up to 2**31 rows.
_PLACE_BITS = 31
_MOST_ROWS = 2**31


class SortedRows:
    """Rows that come in any order and are read back sorted."""

    def __init__(
        self,
        dtype: np.dtype[Any],
        keys: tuple[str, ...],
        max_rows: int = DEFAULT_MAX_ROWS,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 1 <= max_rows <= _MOST_ROWS:
            raise ConfigError(f"max_rows_in_memory: got {max_rows}, expected 1 to {_MOST_ROWS}")
        if directory is not None and not Path(directory).is_dir():
            raise ConfigError(
                f"spill_directory: got {os.fspath(directory)!r}, which is no directory; create it"
            )
        self._dtype = dtype
        self._keys = keys
        self._max_rows = max_rows
        self._directory = directory
        self._held: Rows = np.empty(0, dtype=dtype)
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
            self._held[self._filled : self._filled + stop - start] = rows[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == self._max_rows:
                self._spill()

    def blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[Rows]:
        """Yield all rows in order, in blocks of ``block_rows`` (the last may be shorter)."""
        if not self._run_rows:
            ordered = self._ordered()
            return (ordered[i : i + block_rows] for i in range(0, len(ordered), block_rows))
        self._spill()
        return _recut(self._merged(), block_rows)

    def _reserve(self, rows: int) -> None:
        """Grow the held rows by doubling, so that a small evaluation stays small."""
        if rows > len(self._held):
            grown = np.empty(min(max(rows, 2 * len(self._held)), self._max_rows), self._dtype)
            grown[: self._filled] = self._held[: self._filled]
            self._held = grown

    def _ordered(self) -> Rows:
        return _sorted(self._held[: self._filled], self._keys)

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
            place = os.fspath(self._directory or tempfile.gettempdir())
            raise DataError(
                f"spill_directory {place!r}: {error.strerror} after {sum(self._run_rows)} rows of "
                f"{self._dtype.itemsize} bytes; free space there, or name another spill_directory"
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
            unfinished = [place for place, run in enumerate(runs) if run.unread]
            if not unfinished:
                yield self._in_order([run.take(len(run.held)) for run in runs])
                return
            # Equal keys are taken in order of the runs; min keeps the first of equal ones.
            limit = min(unfinished, key=lambda place: runs[place].last(self._keys))
            last = runs[limit].held[-1]
            yield self._in_order(
                [
                    run.take(_rows_before(run.held, last, self._keys, inclusive=place <= limit))
                    for place, run in enumerate(runs)
                ]
            )
            runs = [run for run in runs if run.unread or len(run.held)]

    def _in_order(self, pieces: list[Rows]) -> Rows:
        return _sorted(np.concatenate(pieces), self._keys)


class _Run:
    """A sorted run on disk, of which a piece is held."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], start: int, end: int) -> None:
        self._file = file
        self._next = start
        self._end = end
        self.held: Rows = np.empty(0, dtype=dtype)

    @property
    def unread(self) -> int:
        """Rows still on disk."""
        return self._end - self._next

    def last(self, keys: tuple[str, ...]) -> tuple[Any, ...]:
        """Key of the last row held."""
        return tuple(self.held[key][-1] for key in keys)

    def fill(self, piece: int) -> None:
        """Read on until ``piece`` rows are held, once less than half of them are left."""
        wanted = min(piece - len(self.held), self.unread)
        if wanted <= 0 or 2 * len(self.held) >= piece:
            return
        fresh: Rows = np.empty(wanted, dtype=self.held.dtype)
        raw = fresh.view(np.uint8)
        self._file.seek(self._next * fresh.dtype.itemsize)
        got = self._file.readinto(raw.data)  # type: ignore[attr-defined]
        if got != raw.size:
            raise DataError(
                f"the temporary file of spilled rows ends {raw.size - got} bytes early; "
                "was it truncated? evaluate again"
            )
        self._next += wanted
        self.held = np.concatenate([self.held, fresh])

    def take(self, count: int) -> Rows:
        """Give away the first ``count`` rows held."""
        taken, self.held = self.held[:count], self.held[count:]
        return taken


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
    packed = np.zeros(len(order), dtype=np.int64)
    np.cumsum(new, out=packed[1:])
    packed <<= _PLACE_BITS
    packed |= order
    packed.sort()
    packed &= (1 << _PLACE_BITS) - 1
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
    waiting: list[Rows] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= block_rows:
            rows = np.concatenate(waiting)
            whole = count - count % block_rows
            for start in range(0, whole, block_rows):
                yield rows[start : start + block_rows]
            # A copy, so that the rows given away can be freed.
            waiting, count = [rows[whole:].copy()], count - whole
    if count:
        yield np.concatenate(waiting)
