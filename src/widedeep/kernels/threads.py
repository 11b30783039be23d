"""How the kernels' threads wait for work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from widedeep.kernels.backend import backend

__all__ = ["awake"]


@contextmanager
def awake() -> Iterator[None]:
    """Let threads that run out of work look for more, a tenth of a millisecond, before they sleep.

    A training step has many short parallel parts, and waking a thread takes as long as some of
    them. No result depends on it.

    Example:
        >>> with awake():
        ...     pass
    """
    backend.add_wakefulness(1)
    try:
        yield
    finally:
        backend.add_wakefulness(-1)
