"""ImpressionLog: shown items with the features they were scored by, in rotated Parquet files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa

from widedeep.data.topics import SCHEME
from widedeep.errors import ConfigError
from widedeep.kernels import ImpressionQueue, LogShape
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.impression_files import Retention, RotatedFiles, Rotation
from widedeep.serving.impression_rows import (
    Answered,
    RankedRequest,
    UserIds,
    as_text,
    impression_groups,
    impression_table,
)
from widedeep.serving.impression_topic import LogTopic
from widedeep.serving.loading import lower_thread_priority
from widedeep.serving.native_rows import Chunk, log_shape
from widedeep.serving.ranker import Ranker

_POLL_S = 0.02
# Lower than the requests' threads, but not so low that a busy server logs nothing.
_NICENESS = 5
_MAX_CATALOGUES = 3
_MAX_PENDING_BYTES = 64 << 20
_MAX_QUEUED_BYTES = 32 << 20
_MAX_WAIT_S = 1.0
_RETRY_S = (0.5, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpressionCounts:
    """Counts of the requests offered so far, by outcome.

    Args:
        offered: Offered requests.
        left_out: Requests outside the sample.
        without_user: Requests without a user id, which a join could not use.
        dropped: Requests that found the queue full, and did not wait, or waited in vain.
        failed: Requests that could not be written while the rows that wait for the disk were at
            their limit.
        requests: Written requests, some perhaps in an incomplete file.
        rows: Written rows: the items of those requests.
        as_text: Written requests with values that fit no column: JSON lines in the folder
            ``_as_text``.
        waiting: Rows that wait for the disk, or for the brokers.
        lost_rows: Rows of failed requests, and rows that could not be read back from disk.
        lost_bytes: Bytes that could not be read back of what killed processes left.
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
    lost_bytes: int = 0
    errors: int = 0
    error: str | None = None


class ImpressionLog:
    """Logs ranked requests as impressions for :func:`widedeep.join_actions`.

    A row is a shown item: ``request_id``, ``user_id``, ``item_id``, ``position`` (1 for the first),
    ``event_time``, ``model_version``, ``catalogue_version``, ``score``, and the raw value of each
    column that the model read. The files are Parquet, in one folder per set of columns; a file gets
    its name when it is complete, also after its process was killed.

    A thread of low priority writes, to files within about 0.02 s. Offering does not wait for it:
    requests that find its queue full are dropped and counted, unless ``when_full="wait"``. While
    the disk fails, up to 64 MiB of rows wait for it; requests beyond are counted as failed. What
    the native server answers is queued without Python (:meth:`shape`). A request with a value that
    fits no column (an integer beyond 64 bits, text that is not Unicode) is written as a line of
    JSON in the folder ``_as_text``.

    Args:
        directory: Directory of the files, which several processes may write to; or
            ``kafka://HOST:PORT/TOPIC``: each row is a message (:class:`LogTopic`).
        user_id: The user's column that holds the id.
        columns: Feature columns that may be written; None: all that the model reads.
        sample: Fraction of the requests to log, chosen by their ids, 0 < sample <= 1.
        hash_users: Key of at least 16 bytes: a keyed hash of each user's id is written, and the
            column ``user_id`` only if ``columns`` names it. None: ids are not hashed.
        rotation: Limits at which a file is complete.
        retention: Limits beyond which complete files are deleted.
        queued: Requests that may wait to be written, at least 1; of those that the native server
            answers, 32 MiB may.
        when_full: What a request does that finds the queue full: ``"drop"``, or ``"wait"`` for up
            to 1 s (the native server: until the request's deadline), which slows the server down to
            what the log can take; then it is dropped, as are those after it until there is room.
        kafka: Settings of librdkafka for a topic.
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
        when_full: str = "drop",
        kafka: Mapping[str, str] | None = None,
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
        if when_full not in ("drop", "wait"):
            raise ConfigError(
                f"ImpressionLog: got when_full={when_full!r}, expected 'drop' or 'wait'"
            )
        if isinstance(columns, str):
            raise ConfigError(f"ImpressionLog: got columns={columns!r}, expected a list of names")
        self._users = UserIds(column=user_id, key=hash_users)
        self._columns = None if columns is None else frozenset(columns)
        self._sample = sample
        self._files: RotatedFiles | LogTopic
        if str(directory).startswith(SCHEME):
            if rotation or (retention or Retention()) != Retention():
                raise ConfigError(
                    f"{directory}: got limits for files; a topic's brokers have limits of their own"
                )
            self._files = LogTopic(str(directory), kafka or {})
        else:
            retention = retention or Retention()
            self._files = RotatedFiles(
                Path(directory), rotation or Rotation(), retention, self._while_writing
            )
        self.waits = when_full == "wait"
        self.native = ImpressionQueue(sample, hash_users or b"", _MAX_QUEUED_BYTES, self.waits)
        self._is_stuck = False
        self._native_counts = (0, 0, 0, 0, 0)
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
        self._count(lost_bytes=self._files.lost_bytes)
        if self._files.lost_bytes:
            self._monitor.log.event("impression_log_damaged", lost_bytes=self._files.lost_bytes)
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
        """Queue a request to be written. It must not be changed afterwards.

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
            # Who waited in vain was not alone: until there is room, no other waits.
            self._queue.put(answered, block=self.waits and not self._is_stuck, timeout=_MAX_WAIT_S)
        except queue.Full:
            self._is_stuck = True
            self._count(dropped=1)
            return False
        self._is_stuck = False
        return True

    def shape(self, ranker: Ranker, catalogue: Catalogue, version: str) -> LogShape | None:
        """Return what native threads log of a version's requests; None: they must be offered."""
        return log_shape(ranker, catalogue, version, self._users, self._columns)

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
        self._count_native()
        with self._lock:
            waiting = self._numbers["waiting"] + self._files.waiting
            return ImpressionCounts(**{**self._numbers, "waiting": waiting}, error=self._error)

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
        self._take_all(ending)
        if ending or time.monotonic() >= self._next_try:
            self._try(lambda: self._write_all(ending))
        if ending:
            self._end()
        if self._on_counts is not None:
            self._on_counts(self.counts())
        return not ending

    def _take_all(self, ending: bool = False) -> None:
        """Take what is queued, as far as the rows that wait for the disk leave room."""
        if self._pending_bytes < _MAX_PENDING_BYTES or not self.waits:
            self._convert_queue()
        if ending:
            self.native.close()
        # What waits is lost only where a request would be dropped.
        if ending or self._pending_bytes + _MAX_QUEUED_BYTES <= _MAX_PENDING_BYTES:
            for header, data, requests, rows in self.native.take():
                self._add(_Pending(Chunk(header, data, rows), requests, rows))

    def _while_writing(self) -> None:
        """Bring what is queued to its spools while a file is being completed."""
        self._take_all()
        with contextlib.suppress(OSError):  # the next turn meets it again, and counts it
            self._write_pending()

    def _count_native(self) -> None:
        """Add what native threads have counted since the last call."""
        with self._lock:
            before, self._native_counts = self._native_counts, self.native.counts()
            new = [b - a for a, b in zip(before, self._native_counts, strict=True)]
            # Rows that wait for a failing disk hold up the queue.
            dropped = "dropped" if self._error is None else "failed"
            for name, number in zip(
                ("offered", "left_out", "without_user", dropped), new[:4], strict=True
            ):
                self._numbers[name] += number
            self._numbers["lost_rows"] += new[4] if self._error is not None else 0

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
        # Where requests wait for room, no more is taken than there is room for.
        if self._pending_bytes + pending.nbytes > _MAX_PENDING_BYTES and not self.waits:
            self._count(failed=pending.requests, lost_rows=pending.rows)
            return
        self._pending.append(pending)
        self._pending_bytes += pending.nbytes
        self._count(waiting=pending.rows)

    def _write_pending(self) -> None:
        while self._pending:
            pending = self._pending[0]
            try:
                self._write(pending)
                counts = {"requests": pending.requests, "rows": pending.rows}
            except OSError:
                raise
            except Exception as error:  # a bug: the rows behind it need not wait
                self._thread.failed(error)
                counts = {"failed": pending.requests, "lost_rows": pending.rows}
            self._pending.popleft()
            self._pending_bytes -= pending.nbytes
            self._count(waiting=-pending.rows, **counts)

    def _write(self, pending: _Pending) -> None:
        if isinstance(pending.content, str):
            self._files.write_text(pending.content)
            self._count(as_text=1)
        elif pending.rows:
            self._files.write(pending.content)

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

    content: pa.Table | Chunk | str
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
