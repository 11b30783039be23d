"""Ranks that are threads of one process: the exchanges of many ranks, in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.ranks.ranks import Ranks


class ThreadRanks(Ranks):
    """One of several threads; what they send lies on a board that all of them see."""

    def __init__(
        self, rank: int, size: int, lanes: int, board: list[Any], barrier: threading.Barrier
    ) -> None:
        super().__init__(rank, size, lanes)
        self._board, self._meet = board, barrier

    def _exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._meet.wait(60)
        values = list(self._board)
        self._meet.wait(60)
        return values

    def any(self, flag: bool) -> bool:
        return any(self._exchange(flag))

    def broadcast(self, value: Any, what: str = "") -> Any:
        return self._exchange(value)[0]

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        return [part.copy() for part in self._exchange(array)]

    def all_to_all(
        self, parts: Sequence[NDArray[Any]], lengths: Sequence[int] | None = None
    ) -> list[NDArray[Any]]:
        received = [sent[self.rank] for sent in self._exchange([part.copy() for part in parts])]
        assert lengths is None or [len(part) for part in received] == list(lengths)
        self.sent_bytes += sum(part.nbytes for r, part in enumerate(parts) if r != self.rank)
        return received

    def lane_sums(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate(self._exchange(own))


def run_threads(size: int, function: Callable[[Ranks], Any], lanes: int = 24) -> list[Any]:
    """Run a function on ``size`` ranks; return what each returned, or the error that it raised."""
    board, barrier = [None] * size, threading.Barrier(size)

    def enter(rank: int) -> Any:
        try:
            return function(ThreadRanks(rank, size, lanes, board, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(enter, range(size)))
