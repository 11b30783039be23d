"""Peers: the processes that read one data set together, each its part of the rows."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError, DataError, FeatureError, LimitError


class Peers(Protocol):
    """What :class:`widedeep.ranks.ranks.Ranks` offers to those who read; all calls collective."""

    rank: int
    size: int

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Return every rank's array, in rank order, on every rank; lengths may differ."""

    def all_to_all(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Send ``parts[r]`` to rank r and return what each rank sent here."""


class _Lone:
    """A process by itself."""

    rank, size = 0, 1

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        return [array]

    def all_to_all(self, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [parts[0]]


LONE: Peers = _Lone()
_ERRORS = {kind.__name__: kind for kind in (ConfigError, DataError, FeatureError, LimitError)}


def gather_json(ranks: Peers, value: Any) -> list[Any]:
    """Return every rank's value, which JSON holds, in rank order; floats keep all bits."""
    if ranks.size == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    return [json.loads(part.tobytes()) for part in ranks.gather(text)]


def raise_first(ranks: Peers, error: BaseException | None) -> None:
    """Raise the lowest rank's error on every rank, if any has one."""
    if ranks.size == 1:
        return
    own = None if error is None else [type(error).__name__, str(error)]
    for rank, failure in enumerate(gather_json(ranks, own)):
        if failure is None:
            continue
        if rank == ranks.rank and error is not None:
            raise error
        name, text = failure
        raise _ERRORS.get(name, DataError)(text if name in _ERRORS else f"{name}: {text}")


def sums(ranks: Peers, *numbers: int) -> list[int]:
    """Return the sum of each number over all ranks."""
    every = ranks.gather(np.array([numbers], np.int64))
    return [int(total) for total in np.concatenate(every).sum(axis=0)]


class TurnsStopped(Exception):
    """Another task failed, so this one ends."""


class Turns:
    """Lets tasks of several threads speak to the other ranks one after the other, by number."""

    def __init__(self, ranks: Peers, stop: threading.Event) -> None:
        self.ranks = ranks
        self._stop = stop
        self._turn, self._agreed = 0, -1
        self._changed = threading.Condition()

    def agree(self, number: int, error: BaseException | None = None) -> None:
        """Wait for a task's turn and for all ranks; raise there what failed on any of them.

        Another call of the same task returns at once.
        """
        if self.ranks.size == 1 or self._agreed >= number:
            return
        with self._changed:
            while self._turn < number and not self._stop.is_set():
                self._changed.wait(0.1)  # the event may be set by others, without a notice
            if self._turn < number:
                raise TurnsStopped
            self._agreed = number
        raise_first(self.ranks, error)

    def end(self, number: int, *, failed: bool) -> None:
        """Let the next task have its turn; where this one failed, none has."""
        if self.ranks.size == 1:
            return
        with self._changed:
            if failed:
                self._stop.set()
            else:
                self._turn = number + 1
            self._changed.notify_all()
