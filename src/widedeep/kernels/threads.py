"""How long idle threads spin before they sleep: the kernels' own pool, and torch's OpenMP pool.

After each product libgomp's threads spin for up to 15 ms, on the cores that our kernels, or another
program, wait for: with two cores a step takes three times the processor time. The environment
changes that only if it is set before the library is loaded. While more OpenMP threads exist than
processors, they spin for microseconds and then sleep; a second pool, whose threads sleep from then
on, brings that about at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from widedeep._native import add_wakefulness


@contextmanager
def spin_wait() -> Iterator[None]:
    """Let threads that run out of work look for more, a tenth of a millisecond, before they sleep.

    A training step has many short parallel parts, and waking a thread takes as long as some of
    them. No result depends on it.

    Example:
        >>> with spin_wait():
        ...     pass
    """
    add_wakefulness(1)
    try:
        yield
    finally:
        add_wakefulness(-1)


_MAPS = Path("/proc/self/maps")
_MOST_THREADS = 64
_lock = threading.Lock()
_sleeping = 0  # threads of our pools beside those that hold them


def limit_spinning(threads: int, processors: int) -> bool:
    """Let torch's threads sleep between two products; True if that is so from now on.

    Nothing is done where ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` says what is wanted, and without
    libgomp, which torch's builds for Linux have.

    Example:
        >>> limit_spinning(1, 4)  # one thread waits for nobody
        False
    """
    global _sleeping
    if threads < 2 or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return False
    with _lock:
        missing = processors - threads + 1 - _sleeping
        if missing <= 0:
            return True
        library = _libgomp()
        if library is None or missing > _MOST_THREADS:
            return False
        started = threading.Event()
        thread = threading.Thread(
            target=_hold_pool, args=(library, missing + 1, started), daemon=True,
            name="widedeep-openmp",
        )  # fmt: skip
        thread.start()
        started.wait()
        _sleeping += missing
    return True


def _libgomp() -> ctypes.CDLL | None:
    """Return the library as it is loaded in this process."""
    try:
        path = re.search(r"/\S*/libgomp[^/\s]*\.so\S*", _MAPS.read_text(encoding="utf-8"))
        library = None if path is None else ctypes.CDLL(path[0])
    except OSError:
        return None
    return library if library is not None and hasattr(library, "GOMP_parallel") else None


def _hold_pool(library: ctypes.CDLL, threads: int, started: threading.Event) -> None:
    """Start a pool by a region that does nothing, free(NULL), and keep it: it ends with us."""
    with contextlib.suppress(AttributeError):
        nothing = ctypes.CDLL(None).free
        library.GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
    started.set()
    threading.Event().wait()


def usable_cores() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
