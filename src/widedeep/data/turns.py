"""Turns: tasks of several threads that speak to the other ranks one after the other."""

from __future__ import annotations

import threading

from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import raise_on_all


class TurnsStopped(Exception):
    """Another task failed, so this one ends."""


class Turns:
    """Lets tasks of several threads speak to the other ranks one after the other, by number."""

    def __init__(self, ranks: Ranks, stop: threading.Event) -> None:
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
        raise_on_all(self.ranks, error)

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
