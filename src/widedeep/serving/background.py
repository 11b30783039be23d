"""Supervised background threads, and the log of requests."""

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
    """Writes one JSON object per line to standard error."""

    def __init__(self, which: str = "errors", stream: IO[str] | None = None) -> None:
        self.min_status = {"all": 0, "errors": 500}.get(which, 1000)  # of a logged request
        self._stream = stream
        self.lost = 0

    def request(self, **fields: Any) -> None:
        """Log a request; fields that are None are left out."""
        self.event("request", **{k: v for k, v in fields.items() if v is not None})

    def bug(self, error: BaseException, **fields: Any) -> None:
        """Log an unexpected error with its traceback."""
        text = "".join(traceback.format_exception(error))
        self.event("bug", **fields, traceback=text)

    def event(self, event: str, **fields: Any) -> None:
        """Log an event of the server."""
        now = time.time()
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{second}.{int(now % 1 * 1e3):03d}Z", "event": event, **fields}
        text = json.dumps(line, separators=(",", ":"), default=str)
        try:
            stream = self._stream or sys.stderr
            stream.write(f"{text}\n")  # in one piece: threads and processes write here at once
            stream.flush()
        except (OSError, ValueError):  # the latter is a closed stream
            self.lost += 1


_BACKOFF_S = (0.1, 30.0)
_STUCK_S = 60.0
_LOG_PERIOD_S = 60.0
_MAX_KINDS = 100
_BEAT_PERIOD_S = 0.5


class ThreadMetrics(Protocol):
    """Counts errors and heartbeats by the name of the thread."""

    def thread_error(self, thread: str) -> None:
        """Count an unexpected error."""

    def thread_beat(self, thread: str, timestamp: float) -> None:
        """Set the time of the last heartbeat; infinity: the thread has ended normally."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadStatus:
    """The state of a background thread, for the status endpoint."""

    thread: str
    # ``"running"``, ``"stuck"`` (no turn succeeded within its limit) or ``"dead"``
    state: str
    heartbeat_s: float  # Seconds since the last successful turn
    errors: int = 0  # Unexpected errors since it started
    error: str | None = None  # The last one


class BackgroundThread:
    """A thread that calls ``turn`` until it returns False; an error is followed by a pause."""

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
        self._reported_beat = 0.0
        self._errors, self._error = 0, ""
        self._hurry, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=f"widedeep-{name}", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """End the pauses after errors: the thread is asked to end."""
        self._hurry.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the last turn, at most ``timeout_s`` seconds."""
        self._hurry.set()
        self._thread.join(timeout_s)

    def beat(self) -> None:
        """Record a heartbeat; a long turn calls this between its steps."""
        self._beat = now = time.monotonic()
        if now - self._reported_beat >= _BEAT_PERIOD_S:
            self._reported_beat = now
            self._monitor.on_beat(self.name, time.time())

    def failed(self, error: BaseException) -> None:
        """Count and log an error that a turn has caught: a bug that does not end the thread."""
        self._errors += 1
        self._error = f"{type(error).__name__}: {error}"[:500]
        self._monitor.on_error(self.name, error)

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended normally."""
        return self._ended and not self._thread.is_alive()

    def status(self) -> ThreadStatus:
        """Return the state of the thread."""
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
            except Exception as error:  # any error: the next turn may succeed
                self.failed(error)
                if self._hurry.wait(pause) and pause > _BACKOFF_S[1] / 2:
                    break  # asked to end, and its last turn keeps failing
                pause = min(2 * pause, _BACKOFF_S[1])
        self._ended = True
        self._monitor.on_beat(self.name, float("inf"))


class ThreadMonitor:
    """The background threads of a process: their states, heartbeats and errors."""

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
        """Return the state of each thread that has not ended normally."""
        with self._lock:
            return [thread.status() for thread in self._threads if not thread.is_over]

    def problems(self) -> list[str]:
        """Return the dead and stuck threads, for which this process is unfit to serve."""
        return [
            f"thread {each.thread} is {each.state}: no work done for {each.heartbeat_s:.0f} s"
            + (f" ({each.error})" if each.error else "")
            for each in self.status()
            if each.state != "running"
        ]

    def on_beat(self, thread: str, timestamp: float) -> None:
        """Record a thread's heartbeat."""
        if self.metrics is not None:
            self.metrics.thread_beat(thread, timestamp)

    def on_error(self, thread: str, error: BaseException) -> None:
        """Count an error, and log it unless one from the same line was logged recently."""
        if self.metrics is not None:
            self.metrics.thread_error(thread)
        frames = traceback.extract_tb(error.__traceback__)
        kind = (thread, type(error).__name__, str(frames[-1].lineno) if frames else "")
        with self._lock:
            now = time.monotonic()
            last, silent = self._kinds.get(kind, (0.0, 0))
            if last and now - last < _LOG_PERIOD_S:
                self._kinds[kind] = (last, silent + 1)
                return
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            self._kinds[kind] = (now, 0)
        self.log.bug(error, thread=thread, not_logged=silent)
