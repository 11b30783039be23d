"""How much the server takes on: a bounded queue, rates by key, and where a computation runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from widedeep.kernels.front import Places
from widedeep.serving.http.errors import HttpError

Result = TypeVar("Result")
_RECENT = 0.2


class Admission:
    """Counts the requests that have come whole and are not yet computed; refuses beyond a limit."""

    def __init__(self, limit: int | None, max_wait_s: float = 1.0) -> None:
        self.places = Places(-1 if limit is None else limit, max_wait_s)

    @property
    def inside(self) -> int:
        """Requests that have a place."""
        return self.places.inside

    @property
    def refused(self) -> int:
        """Requests that got none, so far."""
        return self.places.refused

    def enter(self) -> bool:
        """Take a place, if there is one."""
        return self.places.enter()

    def leave(self) -> None:
        """Give the place back."""
        self.places.leave()

    def refusal(self) -> HttpError:
        """The answer to a request for which there is no place."""
        return HttpError(
            503,
            "the server is busy with as many requests as it takes on; try again, with a growing "
            "pause",
            retry_after=1,
        )


class TokenBucket:
    """Lets ``rate`` requests a second pass, and up to a second's worth at once."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._now = now
        self._most = max(1.0, rate)
        self._tokens = self._most
        self._at = now()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        with self._lock:
            at = self._now()
            self._tokens = min(self._most, self._tokens + (at - self._at) * self.rate)
            self._at = at
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self.rate


class Scheduler:
    """Runs short computations where they are, long ones in threads beside the event loop."""

    def __init__(self, threads: int, inline_s: float) -> None:
        self._inline_s = inline_s
        self._seconds_a_row: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="widedeep-rank")

    async def run(
        self, kind: str, rows: int, deadline: float, compute: Callable[[], Result]
    ) -> Result:
        """Compute, unless the deadline passes before its turn comes or before it is done."""
        expected = self._seconds_a_row.get(kind, 1e-5) * rows
        check_deadline(deadline)
        if expected <= self._inline_s:
            result = self._timed(kind, rows, compute)
            check_deadline(deadline)
            return result

        def in_thread() -> Result:
            check_deadline(deadline)
            return self._timed(kind, rows, compute)

        result = await asyncio.get_running_loop().run_in_executor(self._threads, in_thread)
        check_deadline(deadline)
        return result

    def _timed(self, kind: str, rows: int, compute: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = compute()
        took = (time.perf_counter() - start) / max(rows, 1)
        # A single candidate pays for the whole request: it says little of what a row takes.
        if rows >= 8:
            before = self._seconds_a_row.get(kind, took)
            self._seconds_a_row[kind] = before + _RECENT * (took - before)
        return result

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_deadline(deadline: float) -> None:
    """Raise the answer 504 if the deadline is over."""
    if time.monotonic() > deadline:
        raise late_error()


def late_error() -> HttpError:
    """The answer to a request whose deadline has passed."""
    return HttpError(
        504,
        "the deadline passed before the answer was ready; send fewer candidates, or give the "
        "header X-Request-Timeout-Ms a larger number",
    )
