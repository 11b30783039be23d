"""Parquet files that are there whole or not at all: rotated, renamed, and thinned out."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.directory import fsync_path
from widedeep.errors import ConfigError

__all__ = ["Retention", "RotatedFiles", "Rotation"]

_PREFIX = "impressions-"
_GROUP_ROWS = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """When a file is complete: at the first of these.

    Args:
        rows: It holds, at least 1.
        nbytes: Of its size on disk, at least 1.
        seconds: Since its first row, more than 0. What a killed process loses is no older.
    """

    rows: int = 1_000_000
    nbytes: int = 128 << 20
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("rows", "nbytes", "seconds"):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"rotation: got {name}={value!r}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which complete files are deleted: all until both hold.

    Args:
        seconds: None is older; None keeps them for ever.
        nbytes: Together they are no larger; the oldest go first. None sets no bound.
    """

    seconds: float | None = None
    nbytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "nbytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"retention: got {name}={value!r}, expected more than 0, or None")


class RotatedFiles:
    """Writes tables to a directory; each set of columns has a folder of its own there.

    Args:
        directory: Made if need be. Several processes may write to one.
        rotation: When a file is complete.
        retention: Which complete files are deleted.
    """

    def __init__(self, directory: Path, rotation: Rotation, retention: Retention) -> None:
        self._directory, self._rotation, self._retention = directory, rotation, retention
        self._open: dict[pa.Schema, _OpenFile] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._clear()
            self.thin_out()
        except OSError as error:
            raise ConfigError(
                f"{directory}: the log cannot be written there ({error.strerror}); name another "
                "directory, or make it writable for this user"
            ) from error

    def write(self, table: pa.Table) -> None:
        """Add rows to the file with their columns; it is rotated if it is complete by that.

        Raises:
            OSError: If the disk does not take them; the file is given up then.
        """
        file = self._open.get(table.schema)
        if file is None:
            file = self._open[table.schema] = _OpenFile(self._directory, table.schema)
        try:
            file.write(table)
        except BaseException:
            del self._open[table.schema]
            file.give_up()
            raise
        if file.rows >= self._rotation.rows or file.nbytes() >= self._rotation.nbytes:
            self._complete(file)

    def rotate(self, *, all_of_them: bool = False) -> None:
        """Complete the files whose time is over, or all of them.

        Raises:
            OSError: If the disk does not take them; they are given up then.
        """
        now = time.monotonic()
        for file in list(self._open.values()):
            if all_of_them or now - file.begun >= self._rotation.seconds:
                self._complete(file)

    def next_rotation(self) -> float:
        """Return how many seconds it is until the next file's time is over."""
        begun = min((file.begun for file in self._open.values()), default=time.monotonic())
        return max(0.0, begun + self._rotation.seconds - time.monotonic())

    def _complete(self, file: _OpenFile) -> None:
        del self._open[file.schema]
        try:
            file.complete()
        except BaseException:
            file.give_up()
            raise
        self.thin_out()

    def thin_out(self) -> None:
        """Delete the complete files that are not to be kept."""
        found = sorted(_complete_files(self._directory), key=lambda file: file[1:])
        total = sum(size for _, _, size in found)
        oldest = time.time() - (self._retention.seconds or float("inf"))
        for path, modified, size in found:
            too_much = self._retention.nbytes is not None and total > self._retention.nbytes
            if modified >= oldest and not too_much:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _clear(self) -> None:
        """Delete what processes that were killed left half-written."""
        for path in self._directory.glob(f"*/.{_PREFIX}*.tmp"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                # Whoever writes it holds the lock, until it ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


def _complete_files(directory: Path) -> Iterator[tuple[Path, float, int]]:
    for path in directory.glob(f"*/{_PREFIX}*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            about = path.stat()
            yield path, about.st_mtime, about.st_size


class _OpenFile:
    """A file that is being written."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.schema, self.rows, self.begun = schema, 0, time.monotonic()
        folder = directory / f"columns-{_told(schema)}"
        folder.mkdir(parents=True, exist_ok=True)
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        self._final = folder / f"{_PREFIX}{at}-{os.getpid()}.parquet"
        self._made = folder / f".{self._final.name}.tmp"
        self._file: IO[bytes] = open(self._made, "wb")  # noqa: SIM115 - closed by either end
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(part.num_rows for part in self._waiting) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows, self._waiting = pa.concat_tables(self._waiting), []
            self._writer.write_table(rows)

    def nbytes(self) -> int:
        waiting: int = sum(part.nbytes for part in self._waiting)
        return self._file.tell() + waiting

    def complete(self) -> None:
        self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.rename(self._made, self._final)
        self._file.close()
        fsync_path(self._final.parent)

    def give_up(self) -> None:
        with contextlib.suppress(Exception):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._made.unlink(missing_ok=True)


def _told(schema: pa.Schema) -> str:
    """Eight digits that name a set of columns and their types."""
    text = "\n".join(f"{field.name}: {field.type}" for field in schema)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
