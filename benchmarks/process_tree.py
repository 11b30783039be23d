"""Runs a command and watches what it and its children take."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Watched:
    """What a command took.

    Args:
        code: Its exit status.
        output: What it printed.
        seconds: From start to end.
        cpu_seconds: Of processors, children that it waited for included.
        peak_gb: The most memory that it and its children had resident at a time, GiB.
        peak_folder_mb: The most that lay in the watched folder.
    """

    code: int
    output: str
    seconds: float
    cpu_seconds: float
    peak_gb: float
    peak_folder_mb: float


def watch(command: Sequence[str], folder: Path, every: float = 0.03) -> Watched:
    """Run a command to its end.

    The resident memory of the tree is looked up every few hundredths of a second. The kernel's own
    peak of each process counts too, which misses nothing between two looks. (What the kernel tells
    of a process that has ended is of no use: it counts what the parent held when it forked.)

    Args:
        command: What to run.
        folder: Whose content is measured; it need not be there.
        every: Seconds between looks.
    """
    peak, most = 0, 0
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        try:
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                held = [_resident(pid) for pid in _tree(process.pid)]
                peak = max(peak, sum(now for now, _ in held), *(highest for _, highest in held))
                most = max(most, _content(folder))
                time.sleep(every)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        return Watched(
            code=process.returncode,
            output=output.read(),
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_gb=peak / 2**30,
            peak_folder_mb=most / 1e6,
        )


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _resident(pid: int) -> tuple[int, int]:
    """Return the bytes that a process has resident, and the most that it had."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    told = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return 1024 * int(told.get("VmRSS", 0)), 1024 * int(told.get("VmHWM", 0))


def _content(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:
        return 0
