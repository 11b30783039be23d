"""Memory that the ranks of a machine share: who meets whom, and messages of any size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widedeep.ranks.neighbours import Neighbours, meet


def met(away: int | None = None) -> list[Neighbours | None]:
    """Let three ranks meet, one of which sees no other's files."""
    barrier, told = threading.Barrier(3), [None, None, None]

    def gather_of(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            told[rank] = value
            barrier.wait()
            every: list[Any] = list(told)
            barrier.wait()
            if rank == away and isinstance(value, str):
                return ["/of/another/machine"] * 3
            return every

        return gather

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda rank: meet(rank, 3, gather_of(rank), 10.0), range(3)))


def trade(every: list[Neighbours | None], messages: list[list[bytes]]) -> list[dict[int, bytes]]:
    """Send each rank's messages to the others; return what each read."""
    for near, parts in zip(every, messages, strict=True):
        assert near is not None
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        near.tell(np.frombuffer(b"".join(parts), np.uint8), starts)
    return [{r: m.tobytes() for r, m in near.hear().items()} for near in every if near is not None]


sizes = st.lists(st.sampled_from([0, 1, 7, 4096, (1 << 20) + 1]), min_size=9, max_size=9)


@settings(max_examples=10, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=5))
def test_each_rank_reads_what_the_others_sent(turns: list[list[int]]) -> None:
    every = met()
    for number, lengths in enumerate(turns):
        messages = [
            [
                bytes([9 * number + 3 * a + b]) * (lengths[3 * a + b] if a != b else 0)
                for b in range(3)
            ]
            for a in range(3)
        ]
        for rank, heard in enumerate(trade(every, messages)):
            assert heard == {other: messages[other][rank] for other in range(3) if other != rank}


def test_a_rank_of_another_machine_is_no_neighbour() -> None:
    near, other, away = met(away=2)
    assert away is None
    assert near is not None and other is not None
    assert (list(near.sockets), list(other.sockets)) == ([1], [0])


def test_a_message_that_is_written_in_place_is_not_copied() -> None:
    every = met()
    assert every[0] is not None
    message = every[0].outgoing(3)
    message[:] = 1, 2, 3
    every[0].tell(message, [0, 0, 1, 3])
    for near, wanted in zip(every[1:], ([1], [2, 3]), strict=True):
        assert near is not None
        near.sockets = {0: near.sockets[0]}
        heard = near.hear()[0]
        assert heard.tolist() == wanted
        message += 1
        assert heard.tolist() == [each + 1 for each in wanted]
        message -= 1


def test_a_rank_that_ended_is_told() -> None:
    near, other, _ = met()
    assert near is not None and other is not None
    other.close()
    with pytest.raises(ConnectionResetError, match="rank 1 closed its connection"):
        near.hear()
