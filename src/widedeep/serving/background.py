"""Threads in the background, and the log of requests."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol


class RequestLog:
    """Writes one JSON object a line: to standard error, where a service's log belongs."""

    def __init__(self, which: str = "errors", stream: IO[str] | None = None) -> None:
        self.min_status = {"all": 0, "errors": 500}.get(which, 1000)  # of a logged request
        self._stream = stream
        self.lost = 0

    def request(self, **fields: Any) -> None:
        """Log a request; fields that are None are left out."""
        self.event("request", **{k: v for k, v in fields.items() if v is not None})

    def bug(self, error: BaseException, **fields: Any) -> None:
        """Log what ought not to happen, with where it happened."""
        text = "".join(traceback.format_exception(error))
        self.event("bug", **fields, traceback=text)

    def event(self, event: str, **fields: Any) -> None:
        """Log that something happened to the server."""
        now = time.time()
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{second}.{int(now % 1 * 1e3):03d}Z", "event": event, **fields}
        text = json.dumps(line, separators=(",", ":"), default=str)
        try:
            print(text, file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError):  # the latter is a closed stream
            self.lost += 1


_BACKOFF_S = (0.1, 30.0)
_STUCK_S = 60.0
_LOG_EVERY_S = 60.0
_MOST_KINDS = 100
_BEAT_EVERY_S = 0.5


class ThreadMetrics(Protocol):
    """Where errors and heartbeats are counted, by the name of the thread."""

    def thread_error(self, thread: str) -> None:
        """Count an error that nobody foresaw."""

    def thread_beat(self, thread: str, timestamp: float) -> None:
        """Note when the thread last worked; infinity: it has ended, as it should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadStatus:
    """A background thread, as the status endpoint tells it."""

    thread: str  # Its name
    # ``"running"``, ``"stuck"`` (no turn ended well for longer than its limit) or ``"dead"``
    state: str
    heartbeat_s: float  # Seconds since it last did its work
    errors: int = 0  # That nobody foresaw, since it started
    error: str | None = None  # The last of them


class BackgroundThread:
    """A thread that calls ``turn`` again and again, until it returns False."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], bool],
        monitor: ThreadMonitor,
        stuck_s: float = _STUCK_S,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.stuck_s = name, stuck_s
        self._turn, self._monitor, self._on_start = turn, monitor, on_start
        self._beat = time.monotonic()
        self._told_beat = 0.0
        self._errors, self._error = 0, ""
        self._hurry, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=f"widedeep-{name}", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """End the pause after an error, now and from now on: the thread is asked to end."""
        self._hurry.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the last turn has ended, for ``timeout_s`` at most."""
        self._hurry.set()
        self._thread.join(timeout_s)

    def beat(self) -> None:
        """Tell that the thread works; a long turn calls it between its pieces."""
        self._beat = now = time.monotonic()
        if now - self._told_beat >= _BEAT_EVERY_S:
            self._told_beat = now
            self._monitor.on_beat(self.name, time.time())

    def failed(self, error: BaseException) -> None:
        """Count and log an error that a turn has caught: a bug, but no reason to end."""
        self._errors += 1
        self._error = f"{type(error).__name__}: {error}"[:500]
        self._monitor.on_error(self.name, error)

    @property
    def is_over(self) -> bool:
        """Tell whether the thread has ended because its last turn said so."""
        return self._ended and not self._thread.is_alive()

    def status(self) -> ThreadStatus:
        """Return how the thread stands."""
        silence = time.monotonic() - self._beat
        state = "running"
        if not self._thread.is_alive() and not self._ended:
            state = "dead"
        elif silence > self.stuck_s:
            state = "stuck"
        return ThreadStatus(
            thread=self.name,
            state=state,
            heartbeat_s=round(silence, 3),
            errors=self._errors,
            error=self._error or None,
        )

    def _run(self) -> None:
        pause = _BACKOFF_S[0]
        if self._on_start is not None:
            self._on_start()
        goes_on = True
        while goes_on:
            try:
                goes_on = self._turn()
                self.beat()
                pause = _BACKOFF_S[0]
            except Exception as error:  # whatever it is: the next turn may do better
                self.failed(error)
                if self._hurry.wait(pause) and pause > _BACKOFF_S[1] / 2:
                    break  # asked to end, and it cannot even do that
                pause = min(2 * pause, _BACKOFF_S[1])
        self._ended = True
        self._monitor.on_beat(self.name, float("inf"))


class ThreadMonitor:
    """The background threads of a process: which run, since when each is silent, what failed."""

    def __init__(self, log: RequestLog | None = None) -> None:
        self.log = log or RequestLog()
        self.metrics: ThreadMetrics | None = None
        self._threads: list[BackgroundThread] = []
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str, str], tuple[float, int]] = {}

    def start(
        self,
        name: str,
        turn: Callable[[], bool],
        *,
        stuck_s: float = _STUCK_S,
        on_start: Callable[[], None] | None = None,
    ) -> BackgroundThread:
        """Start a thread; see :class:`BackgroundThread`."""
        thread = BackgroundThread(name, turn, self, stuck_s, on_start)
        with self._lock:
            self._threads = [each for each in self._threads if not each.is_over] + [thread]
        return thread

    def status(self) -> list[ThreadStatus]:
        """Return how each thread stands that has not ended as it should."""
        with self._lock:
            return [thread.status() for thread in self._threads if not thread.is_over]

    def problems(self) -> list[str]:
        """Return why this process is not fit to serve: the threads that are dead or stuck."""
        return [
            f"thread {each.thread} is {each.state}: no work done for {each.heartbeat_s:.0f} s"
            + (f" ({each.error})" if each.error else "")
            for each in self.status()
            if each.state != "running"
        ]

    def on_beat(self, thread: str, timestamp: float) -> None:
        """Note that a thread works."""
        if self.metrics is not None:
            self.metrics.thread_beat(thread, timestamp)

    def on_error(self, thread: str, error: BaseException) -> None:
        """Count an error, and log it unless one of its kind was logged a moment ago."""
        if self.metrics is not None:
            self.metrics.thread_error(thread)
        frames = traceback.extract_tb(error.__traceback__)
        kind = (thread, type(error).__name__, str(frames[-1].lineno) if frames else "")
        with self._lock:
            now = time.monotonic()
            last, silent = self._kinds.get(kind, (0.0, 0))
            if last and now - last < _LOG_EVERY_S:
                self._kinds[kind] = (last, silent + 1)
                return
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[kind] = (now, 0)
        self.log.bug(error, thread=thread, not_logged=silent)
