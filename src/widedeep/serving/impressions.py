"""ImpressionLog: what was shown, with the features it was scored by, for the next training."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from widedeep.errors import ConfigError
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.impression_files import Retention, RotatedFiles, Rotation
from widedeep.serving.impression_rows import (
    Answered,
    RankedRequest,
    UserIds,
    impression_tables,
)
from widedeep.serving.loading import lower_thread_priority

__all__ = ["ImpressionCounts", "ImpressionLog"]

_PAUSE_S = 0.1
# Behind the requests, but not so far that a busy server keeps no log.
_NICENESS = 5
_KEPT_CATALOGUES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpressionCounts:
    """What became of the requests offered so far.

    Args:
        offered: All of them.
        left_out: Not in the sample.
        without_user: Without a user's id: a join could not use them.
        dropped: The queue was full.
        failed: Could not be written.
        requests: Written, though perhaps to a file that is not complete yet.
        rows: Written: the items of those requests.
        error: Why the last one failed.
    """

    offered: int = 0
    left_out: int = 0
    without_user: int = 0
    dropped: int = 0
    failed: int = 0
    requests: int = 0
    rows: int = 0
    error: str | None = None


class ImpressionLog:
    """Writes what a server answered, as :func:`widedeep.join_actions` reads impressions.

    A row is an item that was shown: ``request_id``, ``user_id``, ``item_id``, ``position`` (1 for
    the first), ``event_time``, ``model_version``, ``catalogue_version``, ``score``, and the raw
    value of each column that the model read. The files are Parquet, in one folder for each set of
    columns; a file bears its name when it is complete, and a killed process leaves no other.

    Offering never blocks: a thread of low priority does the rest, and what it cannot keep up with
    is dropped and counted.

    Args:
        directory: Where the files go. Several processes may write to one.
        user_id: Of the user's values, the one that is the id.
        columns: The feature columns that may be written; None: all that the model reads.
        sample: Share of the requests, told by their ids, 0 < sample <= 1.
        hash_users: Write a keyed hash of each user's id; the column ``user_id`` itself is then not
            written unless ``columns`` names it. At least 16 bytes.
        rotation: When a file is complete.
        retention: Which complete files are deleted.
        queued: Requests that may wait to be written, at least 1.

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
        self._files = RotatedFiles(Path(directory), rotation, retention or Retention())
        self._queue: queue.Queue[Answered] = queue.Queue(queued)
        self._lock = threading.Lock()
        self._offered = self._left_out = self._without_user = self._dropped = 0
        self._failed = self._requests = self._rows = 0
        self._error: str | None = None
        self._catalogues: dict[str, Catalogue] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="widedeep-log", daemon=True)
        self._thread.start()

    def offer(
        self,
        record: RankedRequest,
        *,
        time_us: int | None = None,
        catalogue: Catalogue | None = None,
    ) -> bool:
        """Have a request written; never blocks. Nothing in it may be changed afterwards.

        Args:
            record: The request and its answer.
            time_us: When it was answered, microseconds since 1970; None: now.
            catalogue: That its items were taken from; None: as the ranker tells.

        Returns:
            Whether it will be.
        """
        wanted = self._sample >= 1 or _in_sample(record.request_id, self._sample)
        user = self._users.of(record) if wanted else None
        with self._lock:
            self._offered += 1
            self._left_out += not wanted
            self._without_user += wanted and user is None
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
            with self._lock:
                self._dropped += 1
            return False
        return True

    def missed(self, requests: int) -> None:
        """Count requests that could not be offered: whoever answers them was too far ahead."""
        with self._lock:
            self._offered += requests
            self._dropped += requests

    def _catalogue(self, record: RankedRequest) -> Catalogue | None:
        """Return the catalogue that was used, though another one may have come since."""
        now, used = record.ranker.catalogue, record.ranking.catalogue_version
        if now is None or used is None or now.version == used:
            if now is not None and now.version not in self._catalogues:
                with self._lock:
                    self._catalogues[now.version] = now
                    for old in list(self._catalogues)[:-_KEPT_CATALOGUES]:
                        del self._catalogues[old]
            return now
        return self._catalogues.get(used, now)

    def counts(self) -> ImpressionCounts:
        """Return what became of the requests offered so far."""
        with self._lock:
            return ImpressionCounts(
                offered=self._offered,
                left_out=self._left_out,
                without_user=self._without_user,
                dropped=self._dropped,
                failed=self._failed,
                requests=self._requests,
                rows=self._rows,
                error=self._error,
            )

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued, and complete the open files."""
        self._closing.set()
        self._thread.join(timeout_s)

    def __enter__(self) -> ImpressionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        lower_thread_priority(_NICENESS)
        while True:
            # Asked before the queue is emptied: what came before the close is written.
            ending = self._closing.wait(min(_PAUSE_S, self._files.next_rotation() or _PAUSE_S))
            self._write(self._taken())
            try:
                self._files.rotate(all_of_them=ending)
            except OSError as error:
                self._error = str(error)
            if ending:
                return

    def _taken(self) -> list[Answered]:
        found: list[Answered] = []
        while True:
            try:
                found.append(self._queue.get_nowait())
            except queue.Empty:
                return found

    def _write(self, answered: list[Answered]) -> None:
        shown = [each for each in answered if len(each.request.ranking)]
        try:
            rows = 0
            for table in impression_tables(shown, self._users, self._columns):
                self._files.write(table)
                rows += table.num_rows
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            with self._lock:
                self._failed += len(answered)
                self._error = f"{type(error).__name__}: {error}"
            return
        with self._lock:
            self._requests += len(answered)
            self._rows += rows


def _in_sample(request_id: str, share: float) -> bool:
    # Another hash than the canary's: a sample must not be the canary's requests alone.
    digest = hashlib.blake2b(
        request_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"impressions"
    ).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64
