"""Files of the impression log: Parquet, rotated, complete or absent, also after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.errors import ConfigError
from widedeep.files import fsync_path
from widedeep.serving import native_rows
from widedeep.serving.native_rows import Chunk, Header

_PREFIX = "impressions-"
_SPOOL = ".rows.tmp"
_AS_TEXT = "_as_text"
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """Limits of a file; it is complete at the first one."""

    rows: int = 1_000_000  # Rows of a file, at least 1
    nbytes: int = 128 << 20  # Bytes on disk, at least 1
    seconds: float = 60.0  # Age of its first row, more than 0

    def __post_init__(self) -> None:
        for name in ("rows", "nbytes", "seconds"):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"rotation: got {name}={value!r}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Limits of the complete files; older ones are deleted until both hold."""

    seconds: float | None = None  # Age of a file; None: unlimited
    nbytes: int | None = None  # Total size; None: unlimited

    def __post_init__(self) -> None:
        for name in ("seconds", "nbytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"retention: got {name}={value!r}, expected more than 0, or None")


class RotatedFiles:
    """Writes tables to files that are rotated; each set of columns has its own folder."""

    def __init__(
        self,
        directory: Path,
        rotation: Rotation,
        retention: Retention,
        while_writing: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory, self._rotation, self._retention = directory, rotation, retention
        self._while_writing, self.lost_rows = while_writing, 0
        self.lost_bytes = 0  # Of the spools that killed processes left
        self.waiting = 0  # Rows that are neither lost nor written: none, unlike a topic's
        self._open: dict[pa.Schema | bytes, _OpenFile] = {}
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

    def write(self, rows: pa.Table | Chunk) -> None:
        """Add rows to the open file of their columns."""
        key = rows.header if isinstance(rows, Chunk) else rows.schema
        file = self._open.get(key)
        if file is None:
            file = self._open[key] = _OpenFile(self._directory, key)
        file.write(rows)

    def write_text(self, line: str) -> None:
        """Add a line to the open JSON file."""
        folder = self._directory / _AS_TEXT
        folder.mkdir(parents=True, exist_ok=True)
        if self._text is None or _size(self._text) >= self._rotation.nbytes:
            self._text = folder / f"{_PREFIX}{_now()}-{os.getpid()}.jsonl"
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        with open(self._text, "ab", buffering=0) as file:
            _append(file, [data], os.fstat(file.fileno()).st_size)

    def rotate(self, *, all_of_them: bool = False) -> None:
        """Complete the files that are at a limit, or all of them."""
        for file in list(self._open.values()):
            if all_of_them or self._is_complete(file):
                self._full.append(self._open.pop(file.key))
        failure: OSError | None = None
        for file in list(self._full):
            try:
                self.lost_rows += file.complete(self._while_writing)
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
        """Return the seconds until the next file reaches its age limit."""
        begun = min((file.begun for file in self._open.values()), default=time.monotonic())
        return max(0.0, begun + self._rotation.seconds - time.monotonic())

    def close(self) -> int:
        """Close the spools of incomplete files, and return how many rows they hold."""
        files = [*self._open.values(), *self._full]
        for file in files:
            file.close()
        return sum(file.rows for file in files)

    def thin_out(self) -> None:
        """Delete complete files beyond the retention's limits."""
        files = sorted(_complete_files(self._directory), key=lambda file: file[1:])
        total = sum(size for _, _, size in files)
        oldest = time.time() - (self._retention.seconds or float("inf"))
        for path, modified, size in files:
            too_large = self._retention.nbytes is not None and total > self._retention.nbytes
            if modified >= oldest and not too_large:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _recover(self) -> None:
        """Complete the spools of killed processes, and delete their temporary files."""
        for path in sorted(self._directory.glob(f"*/.{_PREFIX}*")):
            with contextlib.suppress(OSError, pa.ArrowException), open(path, "r+b") as file:
                # A living writer holds the lock.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.name.endswith(_SPOOL) and _size(path):
                    _write_parquet(path, file)
                    self.lost_bytes += native_rows.unreadable_bytes(file)
                path.unlink(missing_ok=True)


def _complete_files(directory: Path) -> Iterator[tuple[Path, float, int]]:
    for pattern in (f"*/{_PREFIX}*.parquet", f"{_AS_TEXT}/{_PREFIX}*.jsonl"):
        for path in directory.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # another process deleted it
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
    """The spool of an incomplete file: Arrow streams, or chunks, each behind its checksum."""

    def __init__(self, directory: Path, key: pa.Schema | bytes) -> None:
        self.key, self.rows, self.nbytes, self.begun = key, 0, 0, time.monotonic()
        schema = Header.from_bytes(key).schema if isinstance(key, bytes) else key
        folder = directory / f"columns-{_columns_digest(schema)}"
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = folder / f".{_PREFIX}{_now()}-{os.getpid()}{_SPOOL}"
        self._file = _open_locked(self._spool, buffering=0)

    def write(self, rows: pa.Table | Chunk) -> None:
        if isinstance(rows, Chunk):
            head = b"" if self.nbytes else native_rows.lead(rows.header)
            self.nbytes = _append(self._file, [head, *native_rows.frame(rows.data)], self.nbytes)
        else:
            stream, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.ipc.new_stream(stream, rows.schema, options=options) as writer:
                writer.write_table(rows)
            frame = native_rows.frame(stream.getvalue().to_pybytes())
            self.nbytes = _append(self._file, frame, self.nbytes)
        self.rows += rows.num_rows

    def complete(self, while_writing: Callable[[], None]) -> int:
        """Write the Parquet file, and return how many rows of the spool were unreadable."""
        rows = _write_parquet(self._spool, self._file, while_writing)
        self.close()
        with contextlib.suppress(OSError):  # removed, or recovered when the log is next opened
            self._spool.unlink(missing_ok=True)
        return self.rows - rows

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _open_locked(path: Path, buffering: int = -1) -> IO[bytes]:
    """Create a file and lock it; one that another log deletes before the lock is created again."""
    while True:
        file: IO[bytes] = open(path, "w+b", buffering=buffering)  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _append(file: IO[bytes], parts: Sequence[Any], end: int) -> int:
    """Write at ``end`` and return the new end; a failed write is cut off again."""
    try:
        file.seek(end)
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[file.write(view) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise
    return file.tell()


def _write_parquet(
    spool: Path, file: IO[bytes], while_writing: Callable[[], None] = lambda: None
) -> int:
    """Write a spool to its Parquet file atomically; return the number of rows."""
    final = spool.with_name(spool.name.removeprefix(".").removesuffix(_SPOOL) + ".parquet")
    temporary = final.with_name(f".{final.name}.tmp")
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _open_locked(temporary) as target:
            file.seek(0)
            is_native = file.read(len(native_rows.MAGIC)) == native_rows.MAGIC
            convert = native_rows.write_parquet_of if is_native else _write_streams
            rows = convert(file, target, while_writing)
            if not rows:
                temporary.unlink()
                return 0
            target.flush()
            os.fsync(target.fileno())
            os.rename(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_path(final.parent)
    return rows


def _write_streams(file: IO[bytes], target: IO[bytes], while_writing: Callable[[], None]) -> int:
    """Write the Arrow streams of a spool as a Parquet file; return the number of rows."""
    rows = 0
    writer = None
    for group in _groups(file):
        if writer is None:
            writer = pq.ParquetWriter(target, group.schema, compression="zstd")
        writer.write_table(group)
        rows += group.num_rows
        while_writing()
    if writer is not None:
        writer.close()
    return rows


def _groups(file: IO[bytes]) -> Iterator[pa.Table]:
    """Gather a spool's batches into tables of a row group each."""
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
    for data in native_rows.frames(file):
        yield from pa.ipc.open_stream(data)


def _columns_digest(schema: pa.Schema) -> str:
    """Return eight hexadecimal digits that identify columns and their types."""
    text = "\n".join(f"{field.name}: {field.type}" for field in schema)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
