"""ImpressionLog: shown items with the features they were scored by, in rotated Parquet files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.errors import ConfigError
from widedeep.files import fsync_path
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.impression_rows import (
    Answered,
    RankedRequest,
    UserIds,
    as_text,
    impression_groups,
    impression_table,
)
from widedeep.serving.loading import lower_thread_priority

_POLL_S = 0.1
# Lower than the requests' threads, but not so low that a busy server logs nothing.
_NICENESS = 5
_MAX_CATALOGUES = 3
_MAX_PENDING_BYTES = 64 << 20
_RETRY_S = (0.5, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpressionCounts:
    """Counts of the requests offered so far, by outcome.

    Args:
        offered: Offered requests.
        left_out: Requests outside the sample.
        without_user: Requests without a user id, which a join could not use.
        dropped: Requests that found the queue full.
        failed: Requests that could not be written while the rows that wait for the disk were at
            their limit.
        requests: Written requests, some perhaps in an incomplete file.
        rows: Written rows: the items of those requests.
        as_text: Written requests with values that fit no column: JSON lines in the folder
            ``_as_text``.
        waiting: Rows that wait for the disk.
        lost_rows: Rows of failed requests, and rows that could not be read back from disk.
        errors: Failed attempts to write.
        error: Reason of the last attempt's failure; None: it succeeded.
    """

    offered: int = 0
    left_out: int = 0
    without_user: int = 0
    dropped: int = 0
    failed: int = 0
    requests: int = 0
    rows: int = 0
    as_text: int = 0
    waiting: int = 0
    lost_rows: int = 0
    errors: int = 0
    error: str | None = None


class ImpressionLog:
    """Logs ranked requests as impressions for :func:`widedeep.join_actions`.

    A row is a shown item: ``request_id``, ``user_id``, ``item_id``, ``position`` (1 for the first),
    ``event_time``, ``model_version``, ``catalogue_version``, ``score``, and the raw value of each
    column that the model read. The files are Parquet, in one folder per set of columns; a file gets
    its name when it is complete, also after its process was killed.

    Offering never blocks: a thread of low priority writes, and requests that find its queue full
    are dropped and counted. While the disk fails, up to 64 MiB of rows wait for it; requests beyond
    are counted as failed. A request with a value that fits no column (an integer beyond 64 bits,
    text that is not Unicode) is written as a line of JSON in the folder ``_as_text``.

    Args:
        directory: Directory of the files. Several processes may write to one.
        user_id: The user's column that holds the id.
        columns: Feature columns that may be written; None: all that the model reads.
        sample: Fraction of the requests to log, chosen by their ids, 0 < sample <= 1.
        hash_users: Key of at least 16 bytes: a keyed hash of each user's id is written, and the
            column ``user_id`` only if ``columns`` names it. None: ids are not hashed.
        rotation: Limits at which a file is complete.
        retention: Limits beyond which complete files are deleted.
        queued: Requests that may wait to be written, at least 1.
        monitor: Monitor of the thread; None: its errors go to standard error alone.

    Example:
        >>> import widedeep as wd
        >>> from types import SimpleNamespace
        >>> from pathlib import Path
        >>> spec = wd.FeatureSpec(
        ...     label="income", features=wd.categorical("education", "workclass"),
        ...     item=["workclass"],
        ... )
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> ranker = wd.Ranker(trainer.export("bundle"), item_id="workclass")
        >>> user = {"user_id": 7, "education": "Masters"}
        >>> with ImpressionLog("log") as log:
        ...     ranking = ranker.rank(user, candidates=["Private", "State-gov"])
        ...     log.offer(SimpleNamespace(
        ...         request_id="r1", version="1", user=user, context={},
        ...         candidates=["Private", "State-gov"], ranking=ranking, ranker=ranker,
        ...     ))
        True
        >>> len(list(Path("log").glob("*/*.parquet"))), log.counts().rows
        (1, 2)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        user_id: str = "user_id",
        columns: Sequence[str] | None = None,
        sample: float = 1.0,
        hash_users: bytes | None = None,
        rotation: Rotation | None = None,
        retention: Retention | None = None,
        queued: int = 2048,
        monitor: ThreadMonitor | None = None,
    ) -> None:
        if not 0 < sample <= 1:
            raise ConfigError(f"ImpressionLog: got sample={sample!r}, expected 0 < sample <= 1")
        if queued < 1:
            raise ConfigError(f"ImpressionLog: got queued={queued!r}, expected at least 1")
        if hash_users is not None and not 16 <= len(hash_users) <= 64:
            raise ConfigError(
                f"ImpressionLog: got a key of {len(hash_users)} bytes in hash_users, expected 16 "
                "to 64 random ones"
            )
        if isinstance(columns, str):
            raise ConfigError(f"ImpressionLog: got columns={columns!r}, expected a list of names")
        self._users = UserIds(column=user_id, key=hash_users)
        self._columns = None if columns is None else frozenset(columns)
        self._sample = sample
        rotation = rotation or Rotation()
        self._files = RotatedFiles(
            Path(directory), rotation, retention or Retention(), self._convert_queue
        )
        self._queue: queue.Queue[Answered] = queue.Queue(queued)
        self._lock = threading.Lock()
        self._numbers = {each.name: 0 for each in fields(ImpressionCounts) if each.name != "error"}
        self._error: str | None = None
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._pause_s, self._next_try = _RETRY_S[0], 0.0
        self._on_counts: Callable[[ImpressionCounts], None] | None = None
        self._catalogues: dict[str, Catalogue] = {}
        self._closing = threading.Event()
        self._monitor = monitor or ThreadMonitor()
        self._lost_in_files = 0
        self._thread = self._monitor.start(
            "impression-log", self._turn, on_start=lambda: lower_thread_priority(_NICENESS)
        )

    def on_counts(self, callback: Callable[[ImpressionCounts], None]) -> None:
        """Set a function that the writer's thread calls with the counts after each turn."""
        self._on_counts = callback

    def offer(
        self,
        record: RankedRequest,
        *,
        time_us: int | None = None,
        catalogue: Catalogue | None = None,
    ) -> bool:
        """Queue a request to be written; never blocks. It must not be changed afterwards.

        Args:
            record: The request and its answer.
            time_us: Answer time, microseconds since 1970; None: now.
            catalogue: The catalogue of its items; None: the ranker's.

        Returns:
            Whether it was queued.
        """
        is_sampled = self._sample >= 1 or _in_sample(record.request_id, self._sample)
        user = self._users.of(record) if is_sampled else None
        self._count(
            offered=1, left_out=int(not is_sampled), without_user=int(is_sampled and user is None)
        )
        if user is None or self._closing.is_set():
            return False
        answered = Answered(
            request=record,
            user_id=user,
            time_us=time.time_ns() // 1000 if time_us is None else time_us,
            catalogue=self._catalogue(record) if catalogue is None else catalogue,
        )
        try:
            self._queue.put_nowait(answered)
        except queue.Full:
            self._count(dropped=1)
            return False
        return True

    def missed(self, requests: int) -> None:
        """Count requests that were dropped before they could be offered."""
        self._count(offered=requests, dropped=requests)

    def _catalogue(self, record: RankedRequest) -> Catalogue | None:
        """Return the catalogue of a ranking, which the ranker may have replaced since."""
        now, used = record.ranker.catalogue, record.ranking.catalogue_version
        if now is None or used is None or now.version == used:
            if now is not None and now.version not in self._catalogues:
                with self._lock:
                    self._catalogues[now.version] = now
                    for old in list(self._catalogues)[:-_MAX_CATALOGUES]:
                        del self._catalogues[old]
            return now
        return self._catalogues.get(used, now)

    def counts(self) -> ImpressionCounts:
        """Return the counts of the requests offered so far."""
        with self._lock:
            return ImpressionCounts(**self._numbers, error=self._error)

    def _count(self, **added: int) -> None:
        with self._lock:
            for name, number in added.items():
                self._numbers[name] += number

    def close(self, timeout_s: float = 30.0) -> None:
        """Write the queued requests, and complete the open files."""
        self._closing.set()
        self._thread.join(timeout_s)

    def __enter__(self) -> ImpressionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the writer's thread --------------------------------------------------------------------

    def _turn(self) -> bool:
        # Read before the queue is emptied: requests offered before the close are written.
        ending = self._closing.wait(min(_POLL_S, self._files.next_rotation() or _POLL_S))
        self._convert_queue()
        if ending or time.monotonic() >= self._next_try:
            self._try(lambda: self._write_all(ending))
        if ending:
            self._end()
        if self._on_counts is not None:
            self._on_counts(self.counts())
        return not ending

    def _convert_queue(self) -> None:
        """Convert the queued requests to rows."""
        answered = self._pop_queue()
        with_items = [each for each in answered if len(each.request.ranking)]
        self._count(requests=len(answered) - len(with_items))
        for group in impression_groups(with_items):
            self._convert(group)

    def _write_all(self, ending: bool) -> None:
        try:
            self._write_pending()
        finally:
            self._files.rotate(all_of_them=ending)

    def _pop_queue(self) -> list[Answered]:
        answered: list[Answered] = []
        while True:
            try:
                answered.append(self._queue.get_nowait())
            except queue.Empty:
                return answered

    def _convert(self, answered: Sequence[Answered]) -> None:
        """Convert requests to rows; one that fails does so alone, and is kept as text."""
        try:
            table = impression_table(answered, self._users, self._columns)
        except Exception as error:  # whatever callers may send
            if len(answered) > 1:
                for each in answered:
                    self._convert([each])
                return
            self._add(_Pending(as_text(answered[0], self._users, self._columns, error), 1, 0))
            return
        self._add(_Pending(table, len(answered), table.num_rows))

    def _add(self, pending: _Pending) -> None:
        if self._pending_bytes + pending.nbytes > _MAX_PENDING_BYTES:
            self._count(failed=pending.requests, lost_rows=pending.rows)
            return
        self._pending.append(pending)
        self._pending_bytes += pending.nbytes
        self._count(waiting=pending.rows)

    def _write_pending(self) -> None:
        while self._pending:
            pending = self._pending[0]
            try:
                self._write(pending.content)
                counts = {"requests": pending.requests, "rows": pending.rows}
            except OSError:
                raise
            except Exception as error:  # a bug: the rows behind it need not wait
                self._thread.failed(error)
                counts = {"failed": pending.requests, "lost_rows": pending.rows}
            self._pending.popleft()
            self._pending_bytes -= pending.nbytes
            self._count(waiting=-pending.rows, **counts)

    def _write(self, content: pa.Table | str) -> None:
        if isinstance(content, str):
            self._files.write_text(content)
            self._count(as_text=1)
        else:
            self._files.write(content)

    def _try(self, work: Callable[[], None]) -> None:
        """Write to disk; after a failure the next attempt follows a pause that doubles."""
        try:
            work()
        except OSError as error:
            self._count(errors=1)
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _RETRY_S[1])
            self._next_try = time.monotonic() + pause_s
            self._set_error(str(error))
        else:
            self._pause_s = _RETRY_S[0]
            self._set_error(None)

    def _set_error(self, error: str | None) -> None:
        """Keep the error; log an event when writing begins to fail or succeeds again."""
        before, self._error = self._error, error
        lost, self._lost_in_files = self._lost_in_files, self._files.lost_rows
        self._count(lost_rows=self._lost_in_files - lost)
        if (before is None) != (error is None):
            event = "impression_log_fails" if error else "impression_log_goes_on"
            counts = self.counts()
            self._monitor.log.event(
                event, error=error, waiting_rows=counts.waiting, lost_rows=counts.lost_rows
            )

    def _end(self) -> None:
        """Count the rows that could not be written in the end."""
        requests = sum(pending.requests for pending in self._pending)
        rows = sum(pending.rows for pending in self._pending)
        self._pending.clear()
        self._count(failed=requests, lost_rows=rows, waiting=-rows)
        spooled = self._files.close()
        if rows or spooled:
            self._monitor.log.event(
                "impression_log_ends",
                error=self._error,
                lost_rows=rows,
                rows_in_spools=spooled,
            )


@dataclass(frozen=True, slots=True)
class _Pending:
    """Rows, or a line of text, that wait for the disk."""

    content: pa.Table | str
    requests: int
    rows: int

    @property
    def nbytes(self) -> int:
        return len(self.content) if isinstance(self.content, str) else int(self.content.nbytes)


def _in_sample(request_id: str, sample: float) -> bool:
    # Not the hash of the canary: a sample must not hold the canary's requests alone.
    digest = hashlib.blake2b(
        request_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"impressions"
    ).digest()
    return int.from_bytes(digest, "big") < sample * 2.0**64


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
        """Add rows to the open file of their columns."""
        file = self._open.get(table.schema)
        if file is None:
            file = self._open[table.schema] = _OpenFile(self._directory, table.schema)
        file.write(table)

    def write_text(self, line: str) -> None:
        """Add a line to the open JSON file."""
        folder = self._directory / _AS_TEXT
        folder.mkdir(parents=True, exist_ok=True)
        if self._text is None or _size(self._text) >= self._rotation.nbytes:
            self._text = folder / f"{_PREFIX}{_now()}-{os.getpid()}.jsonl"
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        with open(self._text, "ab", buffering=0) as file:
            _append(file, data, os.fstat(file.fileno()).st_size)

    def rotate(self, *, all_of_them: bool = False) -> None:
        """Complete the files that are at a limit, or all of them."""
        for file in list(self._open.values()):
            if all_of_them or self._is_complete(file):
                self._full.append(self._open.pop(file.schema))
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
    """The spool of an incomplete file: Arrow streams, one after another."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self.schema, self.rows, self.nbytes, self.begun = schema, 0, 0, time.monotonic()
        folder = directory / f"columns-{_columns_digest(schema)}"
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


def _append(file: IO[bytes], data: Any, end: int) -> int:
    """Write at ``end`` and return the new end; a failed write is cut off again."""
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


def _write_parquet(
    spool: Path, file: IO[bytes], while_writing: Callable[[], None] = lambda: None
) -> int:
    """Write a spool to its Parquet file atomically; return the number of rows."""
    final = spool.with_name(spool.name.removeprefix(".").removesuffix(_SPOOL) + ".parquet")
    temporary = final.with_name(f".{final.name}.tmp")
    final.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    writer = None
    try:
        with open(temporary, "wb") as target:
            fcntl.flock(target, fcntl.LOCK_EX)
            for group in _groups(file):
                if writer is None:
                    writer = pq.ParquetWriter(target, group.schema, compression="zstd")
                writer.write_table(group)
                rows += group.num_rows
                while_writing()
            if writer is None:
                temporary.unlink()
                return 0
            writer.close()
            target.flush()
            os.fsync(target.fileno())
            os.rename(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_path(final.parent)
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
    size = os.fstat(file.fileno()).st_size
    with contextlib.suppress(OSError, pa.ArrowException):
        while file.tell() < size:
            yield from pa.ipc.open_stream(file)


def _columns_digest(schema: pa.Schema) -> str:
    """Return eight hexadecimal digits that identify columns and their types."""
    text = "\n".join(f"{field.name}: {field.type}" for field in schema)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
