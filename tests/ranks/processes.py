"""Runs a function on several ranks, each a process of its own, and returns what each returned."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

from tests.ports import free_port


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``function(*args)`` of a module on `size` ranks; raise if one raises.

    Each process has the environment that torchrun gives.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_enter, args=(answers, rank, size, port, function, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        received = {}
        for _ in processes:
            rank, ok, value = answers.get(timeout=120)
            assert ok, f"rank {rank}:\n{value}"
            received[rank] = value
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [received[rank] for rank in range(size)]


def _enter(
    answers: Any, rank: int, size: int, port: int, function: Callable[..., Any], args: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    try:
        answers.put((rank, True, function(*args)))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))
    answers.close()
    answers.join_thread()
