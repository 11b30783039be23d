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

    def trade(
        self, outgoing: NDArray[np.uint8], sent: Sequence[int], received: Sequence[int]
    ) -> list[NDArray[np.uint8]]:
        incoming = []
        for rank, (data, lengths) in enumerate(self._exchange((outgoing.copy(), list(sent)))):
            lengths[rank] = 0
            first = sum(lengths[: self.rank])
            incoming.append(data[first : first + lengths[self.rank]].copy())
            assert rank == self.rank or len(incoming[-1]) == received[rank]
        self.sent_bytes += len(outgoing)
        return incoming

    def _lengths(self, sent: Sequence[int]) -> list[int]:
        return [int(lengths[self.rank]) for lengths in self._exchange(list(sent))]


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
