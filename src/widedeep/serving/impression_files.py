"""Parquet files that are there whole or not at all: spooled, rotated, renamed, and thinned out."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.errors import ConfigError
from widedeep.files import fsync_path

_PREFIX = "impressions-"
_SPOOL = ".rows.tmp"
_AS_TEXT = "_as_text"
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """When a file is complete: at the first of these."""

    rows: int = 1_000_000  # It holds, at least 1
    nbytes: int = 128 << 20  # Of its size on disk, at least 1
    seconds: float = 60.0  # Since its first row, more than 0

    def __post_init__(self) -> None:
        for name in ("rows", "nbytes", "seconds"):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"rotation: got {name}={value!r}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which complete files are deleted: all until both hold."""

    seconds: float | None = None  # None is older; None keeps them for ever
    nbytes: int | None = None  # Together they are no larger; the oldest go first

    def __post_init__(self) -> None:
        for name in ("seconds", "nbytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"retention: got {name}={value!r}, expected more than 0, or None")


class RotatedFiles:
    """Writes tables to a directory; each set of columns has a folder of its own there."""

    def __init__(
        self,
        directory: Path,
        rotation: Rotation,
        retention: Retention,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory, self._rotation, self._retention = directory, rotation, retention
        self._between, self.lost_rows = between, 0
        self._open: dict[pa.Schema, _OpenFile] = {}
        self._full: list[_OpenFile] = []
        self._text: Path | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._recover()
            self.thin_out()
        except OSError as error:
            raise ConfigError(
                f"{directory}: the log cannot be written there ({error.strerror}); name another "
                "directory, or make it writable for this user"
            ) from error

    def write(self, table: pa.Table) -> None:
        """Add rows to the file with their columns."""
        file = self._open.get(table.schema)
        if file is None:
            file = self._open[table.schema] = _OpenFile(self._directory, table.schema)
        file.write(table)

    def write_text(self, line: str) -> None:
        """Add a line to the file of what no set of columns holds."""
        folder = self._directory / _AS_TEXT
        folder.mkdir(parents=True, exist_ok=True)
        if self._text is None or _size(self._text) >= self._rotation.nbytes:
            self._text = folder / f"{_PREFIX}{_now()}-{os.getpid()}.jsonl"
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        with open(self._text, "ab", buffering=0) as file:
            _append(file, data, os.fstat(file.fileno()).st_size)

    def rotate(self, *, all_of_them: bool = False) -> None:
        """Complete the files that have all the rows they may have, or all of them."""
        for file in list(self._open.values()):
            if all_of_them or self._is_complete(file):
                self._full.append(self._open.pop(file.schema))
        failure: OSError | None = None
        for file in list(self._full):
            try:
                self.lost_rows += file.complete(self._between)
            except OSError as error:
                failure = error
                continue
            self._full.remove(file)
            self.thin_out()
        if failure is not None:
            raise failure

    def _is_complete(self, file: _OpenFile) -> bool:
        rotation = self._rotation
        by_size = file.rows >= rotation.rows or file.nbytes >= rotation.nbytes
        return by_size or time.monotonic() - file.begun >= rotation.seconds

    def next_rotation(self) -> float:
        """Return how many seconds it is until the next file's time is over."""
        begun = min((file.begun for file in self._open.values()), default=time.monotonic())
        return max(0.0, begun + self._rotation.seconds - time.monotonic())

    def close(self) -> int:
        """Let go of the spools that are no files yet, and return how many rows are in them."""
        files = [*self._open.values(), *self._full]
        for file in files:
            file.close()
        return sum(file.rows for file in files)

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

    def _recover(self) -> None:
        """Make files of what processes that were killed left, and delete what they half-wrote."""
        for path in sorted(self._directory.glob(f"*/.{_PREFIX}*")):
            with contextlib.suppress(OSError, pa.ArrowException), open(path, "r+b") as file:
                # Whoever writes it holds the lock, until it ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.name.endswith(_SPOOL) and _size(path):
                    _write_parquet(path, file)
                path.unlink(missing_ok=True)


def _complete_files(directory: Path) -> Iterator[tuple[Path, float, int]]:
    for pattern in (f"*/{_PREFIX}*.parquet", f"{_AS_TEXT}/{_PREFIX}*.jsonl"):
        for path in directory.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # another process deletes too
                about = path.stat()
                yield path, about.st_mtime, about.st_size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")


class _OpenFile:
    """The rows of a file that is not complete yet, as streams of Arrow's, one after another."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.schema, self.rows, self.nbytes, self.begun = schema, 0, 0, time.monotonic()
        folder = directory / f"columns-{_told(schema)}"
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = folder / f".{_PREFIX}{_now()}-{os.getpid()}{_SPOOL}"
        self._file: IO[bytes] = open(self._spool, "w+b", buffering=0)  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, table: pa.Table) -> None:
        stream, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(stream, self.schema, options=options) as writer:
            writer.write_table(table)
        self.nbytes = _append(self._file, stream.getvalue(), self.nbytes)
        self.rows += table.num_rows

    def complete(self, between: Callable[[], None]) -> int:
        """Make the Parquet file, and return how many rows of the spool could not be read back."""
        rows = _write_parquet(self._spool, self._file, between)
        self.close()
        with contextlib.suppress(OSError):  # taken away, or made a file anew when next opened
            self._spool.unlink(missing_ok=True)
        return self.rows - rows

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _append(file: IO[bytes], data: Any, end: int) -> int:
    """Write at ``end`` and return the new end; the file is cut back if not all of it fits."""
    view = memoryview(data).cast("B")
    try:
        file.seek(end)
        while view:
            view = view[file.write(view) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise
    return file.tell()


def _write_parquet(spool: Path, file: IO[bytes], between: Callable[[], None] = lambda: None) -> int:
    """Make the Parquet file of a spool, whole or not at all; return its rows."""
    final = spool.with_name(spool.name.removeprefix(".").removesuffix(_SPOOL) + ".parquet")
    made = final.with_name(f".{final.name}.tmp")
    final.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    writer = None
    try:
        with open(made, "wb") as target:
            fcntl.flock(target, fcntl.LOCK_EX)
            for group in _groups(file):
                if writer is None:
                    writer = pq.ParquetWriter(target, group.schema, compression="zstd")
                writer.write_table(group)
                rows += group.num_rows
                between()
            if writer is None:
                made.unlink()
                return 0
            writer.close()
            target.flush()
            os.fsync(target.fileno())
            os.rename(made, final)
    except BaseException:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        raise
    fsync_path(final.parent)
    return rows


def _groups(file: IO[bytes]) -> Iterator[pa.Table]:
    """Gather a spool's batches in tables of a row group each; a torn end is left out."""
    batches: list[pa.RecordBatch] = []
    rows = nbytes = 0
    for batch in _batches(file):
        batches.append(batch)
        rows, nbytes = rows + batch.num_rows, nbytes + batch.nbytes
        if rows >= _GROUP_ROWS or nbytes >= _GROUP_BYTES:
            yield pa.Table.from_batches(batches)
            batches, rows, nbytes = [], 0, 0
    if batches:
        yield pa.Table.from_batches(batches)


def _batches(file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    file.seek(0)
    size = os.fstat(file.fileno()).st_size
    with contextlib.suppress(OSError, pa.ArrowException):
        while file.tell() < size:
            yield from pa.ipc.open_stream(file)


def _told(schema: pa.Schema) -> str:
    """Eight digits that name a set of columns and their types."""
    text = "\n".join(f"{field.name}: {field.type}" for field in schema)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
