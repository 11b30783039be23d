"""How ranks were launched, and how several of one command are on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from widedeep.errors import ConfigError

LAUNCHED_HERE = "WIDEDEEP_RANKS"
"""The variable that says how many ranks ``--ranks`` launched, to those ranks."""
TOLD_BESIDE = "another rank of this machine prints it"
"""The note of an error that several ranks of a machine raise, one of which prints it."""
_GRACE_SECONDS = 30.0
"""How long ranks have to end by themselves once one of them failed: they learn of it at once."""


def launched_size() -> int:
    """Return how many ranks there are: of ``torch.distributed``, or as torchrun says; else 1."""
    dist = sys.modules.get("torch.distributed")  # without it nobody has initialised it
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size())
    size = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"WORLD_SIZE: got {size!r}, expected the number of ranks")
    return int(size)


def launched_rank() -> int:
    """Return which rank this process is by its environment; 0 where there are no others."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if launched_size() > 1 and rank.isdecimal() else 0


def launch(size: int, words: Sequence[str]) -> int:
    """Run ``python -m widedeep WORDS`` on several ranks; return the exit code of one that failed.

    Args:
        size: How many processes.
        words: The arguments of each.

    Raises:
        ConfigError: If this process is a rank itself.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            f"got --ranks {size} in a process that torchrun launched; drop --ranks: torchrun's "
            "--nproc-per-node says how many there are"
        )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common: dict[str, object] = {
        LAUNCHED_HERE: size,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
    }
    # A rank that ends is an error here already; torch's warning has a page of addresses.
    common |= {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    # The terminal sends Ctrl-C to the ranks itself. What is ignored here is ignored by them too.
    handlers = {
        signal.SIGINT: lambda *_: None, signal.SIGTERM: forward, signal.SIGHUP: forward
    }  # fmt: skip
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        for rank in range(size):
            own = {**common, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
            command = [sys.executable, "-m", "widedeep", *words]
            processes.append(subprocess.Popen(command, env=environment))
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()  # if this one failed; else they have ended
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended; end those that do not, once one has failed."""
    failed: int | None = None
    killed = False
    failed_at = 0.0
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = next((p.returncode for p in processes if p.returncode), None)
            failed_at = time.monotonic()
        elif time.monotonic() - failed_at > _GRACE_SECONDS:
            killed = True
            for process in processes:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    if failed is None:
        failed = next((code for code in codes if code), 0)
    # A rank that a signal ended is why the others failed, unless the signal was sent above.
    lowest = 0 if killed else min(codes)
    return 128 - lowest if lowest < 0 else abs(failed)
