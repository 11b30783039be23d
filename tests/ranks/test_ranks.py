"""Ranks: collectives between processes, a lone process, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ranks.processes import run_ranks
from widedeep.errors import ConfigError, DataError, RanksError
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.launch import TOLD_BESIDE
from widedeep.ranks.ranks import Ranks, _brief, _joined, _leave, ranks_of


def exchange_all() -> dict[str, Any]:
    """Join with other lanes (refused), with the same; exchange; rank 2 ends before the last one."""
    with pytest.raises(ConfigError) as refused:
        ranks_of(DistributedConfig(lanes=4 + int(os.environ["RANK"]), timeout="30s"))
    ranks = ranks_of(DistributedConfig(lanes=5, timeout="30s"))
    rank, size = ranks.rank, ranks.size
    own = np.arange(rank * 3, dtype=np.int32).reshape(-1, 3) + 100 * rank
    parts = [np.full(rank + 2 * other, 10 * rank + other, np.float32) for other in range(size)]
    sums = np.array([[float(lane), 0.5] for lane in ranks.lanes_of()])
    ranks.barrier()
    answers = {
        "refused": str(refused.value),
        "lanes": list(ranks.lanes_of()),
        "json": ranks.broadcast({"a": [1, rank]}, "a table"),
        "bytes": ranks.broadcast(bytes([rank, 7]), "bytes"),
        "none": ranks.broadcast(b""),
        "gathered": ranks.gather(own),
        "first": ranks.gather_to_first(own),
        "near": [] if ranks.neighbours is None else list(ranks.neighbours.sockets),
        "parts": [],
        "sums": ranks.lane_sums(sums),
        "any": (ranks.any(False), ranks.any(rank == 1)),
        "sent": ranks.sent_bytes,
    }
    near = ranks.neighbours
    for mode in range(3):  # by memory alone, as on three machines, and as on two
        if mode > 0:
            ranks.neighbours = None
        if mode == 2 and rank < 2 and near is not None:
            connection, ranks.neighbours = near.sockets.pop(2), near
        answers["parts"] += [
            ranks.all_to_all(parts),
            ranks.all_to_all(parts, [other + 2 * rank for other in range(size)]),
        ]
        for length in (1, 1 << 20, 7, 3 << 20, 0):  # memory grows
            grown = ranks.gather(np.full(length, rank, np.int8), [length] * size)
            answers["parts"].append([np.unique(part).tolist() for part in grown])
    if rank < 2 and near is not None:
        near.sockets[2] = connection
    ranks.patient().barrier()  # of a second group
    answers["threads"] = sorted(_thread_names())
    if rank < 2:
        with pytest.raises(RanksError) as lost:
            ranks.barrier()
        answers["lost"] = str(lost.value)
    else:
        _leave()  # as at the end of a process, which has its ranks still
    answers["left"] = sorted(_thread_names())
    return answers


def _thread_names() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_ranks(3, exchange_all)


def test_collectives_between_three_processes(results: list[dict[str, Any]]) -> None:
    assert [result["lanes"] for result in results] == [[0], [1, 2], [3, 4]]
    for rank, result in enumerate(results):
        assert result["json"] == {"a": [1, 0]}
        assert (result["bytes"], result["none"]) == (b"\x00\x07", b"")
        assert [len(array) for array in result["gathered"]] == [0, 1, 2]
        assert result["gathered"][2].dtype == np.int32
        np.testing.assert_array_equal(result["gathered"][2], [[200, 201, 202], [203, 204, 205]])
        assert result["near"] == [other for other in range(3) if other != rank]
        for first in (0, 7, 14):
            for parts in result["parts"][first : first + 2]:
                for other, part in enumerate(parts):
                    np.testing.assert_array_equal(
                        part, np.full(other + 2 * rank, 10 * other + rank, np.float32)
                    )
            grown = result["parts"][first + 2 : first + 7]
            assert grown == [[[0], [1], [2]]] * 4 + [[[], [], []]]
        np.testing.assert_array_equal(result["sums"], [[lane, 0.5] for lane in range(5)])
        assert result["any"] == (False, True)
        assert result["sent"] > 0
    assert [len(array) for array in results[0]["first"]] == [0, 1, 2]
    assert results[1]["first"] is results[2]["first"] is None


def test_a_rank_that_ended_is_named(results: list[dict[str, Any]]) -> None:
    assert "rank 2 (" in results[0]["lost"] and "rank 1 (" not in results[0]["lost"]
    for result in results[:2]:
        assert "ended, or did not answer" in result["lost"] and "--resume" in result["lost"]


def test_no_thread_of_an_exchange_outlives_the_group(results: list[dict[str, Any]]) -> None:
    """One that did could end the process: "terminate called without an active exception"."""
    for result in results:
        assert any("gloo" in name for name in result["threads"])
        assert not any("gloo" in name for name in result["left"])


def test_ranks_with_other_lanes_are_refused(results: list[dict[str, Any]]) -> None:
    assert all("got lanes 5, but 4 on rank 0" in result["refused"] for result in results)


def test_a_lone_process_needs_no_group() -> None:
    ranks = ranks_of(DistributedConfig(lanes=3))
    array = np.arange(6).reshape(3, 2)
    assert (ranks.rank, ranks.size, ranks.is_first, ranks.sent_bytes) == (0, 1, True, 0)
    assert list(ranks.lanes_of()) == [0, 1, 2]
    assert ranks.broadcast({"a": 1}) == {"a": 1}
    assert ranks.gather(array)[0] is array
    assert ranks.all_to_all([array])[0] is array
    assert ranks.lane_sums(array.astype(float)).shape == (3, 2)
    assert ranks.any(True) and not ranks.any(False)
    ranks.barrier()


def test_an_exchange_after_one_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # Torch would say that no group was initialised, which is no user's affair.
    monkeypatch.setitem(_joined, "left", True)
    ranks = Ranks(rank=0, size=2, lanes=2)
    ranks.hosts = ["one", "other"]
    with pytest.raises(RanksError, match=r"exchanging a flag failed: another rank .* --resume"):
        ranks.any(True)


@pytest.mark.parametrize(
    ("silent", "speaks"),
    [((), [True, False, True, False]), ((0,), [True, True, True, False])],
)
def test_one_rank_of_each_machine_prints_an_error_of_all(
    silent: Sequence[int], speaks: list[bool]
) -> None:
    for rank in range(4):
        ranks, error = Ranks(rank=rank, size=4, lanes=4), DataError("x")
        ranks.hosts = ["one", "one", "other", "other"]
        ranks.note_if_told_beside(error, silent)
        assert (TOLD_BESIDE not in getattr(error, "__notes__", ())) == speaks[rank]


def test_what_gloo_says_is_cut_to_what_happened() -> None:
    text = (
        "[/pytorch/gloo/tcp/pair.cc:537] Read error [127.0.0.1]:7309: Connection reset by peer. "
        "This is typically caused by a remote worker hanging"
    )
    assert _brief(RuntimeError(text)) == "Read error [127.0.0.1]:7309: Connection reset by peer"
    assert _brief(RuntimeError("Timed out waiting 120000ms\nmore")) == "Timed out waiting 120000ms"


def test_more_ranks_than_lanes_are_refused_before_anybody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="lanes = 6 with 8 ranks, expected at least as many"):
        ranks_of(DistributedConfig(lanes=6))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_lanes_are_contiguous_and_complete(size: int) -> None:
    lanes = [lane for r in range(size) for lane in Ranks(r, size, 6).lanes_of()]
    assert lanes == list(range(6))


@pytest.mark.parametrize("timeout", ["0s", "2 days", "", "nan"])
def test_timeouts_have_a_unit(timeout: str) -> None:
    with pytest.raises(ConfigError, match=r"timeout=.*expected a number with a unit"):
        DistributedConfig(timeout=timeout)
