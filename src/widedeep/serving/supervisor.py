"""Several processes on one port: spawned, restarted, drained, their metrics added up."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from widedeep.errors import ConfigError, WideDeepError
from widedeep.serving.catalogue import ROWS_DIRECTORY

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Where the Prometheus client keeps the numbers of several processes: its own variable."""

_MISUSE = 2
_LOOK_S = 0.05
_LONG_LIFE_S = 60.0
_HURRY_S = 3.0
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_START = "from widedeep.serving.supervisor import worker_main; worker_main()"


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of the processes this one is."""

    index: int  # 0 to ``count - 1``; a process started in place of a dead one has its index
    count: int  # How many there are
    replaces: bool = False  # Whether it was started in place of a dead one


def bind_port(host: str, port: int) -> socket.socket:
    """Bind a TCP port that other processes of this user may bind too (SO_REUSEPORT)."""
    return _bind(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def _bind(host: str, port: int, *options: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{host}:{port}: the port cannot be bound ({error.strerror}); name another one, or "
            "stop the program that has it"
        ) from error
    return bound


def bind_alone(host: str, port: int) -> socket.socket:
    """Bind a TCP port as :func:`bind_port` does, unless any other program has bound it."""
    with _one_at_a_time():
        with _bind(host, port, socket.SO_REUSEADDR) as probe:
            port = probe.getsockname()[1]
        # Without SO_REUSEADDR, so that the probe of another server fails even before this one
        # listens; connections of the program before, which linger, may ask for it though.
        try:
            return _bind(host, port, socket.SO_REUSEPORT)
        except ConfigError:
            return bind_port(host, port)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep two servers that start at once from both seeing a port free before they share it."""
    directory = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def run_workers(
    count: int,
    target: Callable[..., None],
    args: Sequence[Any] = (),
    *,
    drain_s: float = 30.0,
    restart_s: tuple[float, float] = (0.5, 30.0),
    told: Callable[[str], None] | None = None,
) -> int:
    """Run ``target(worker, *args)`` in several processes until this one is told to end."""
    if count < 1:
        raise ConfigError(f"run_workers: got count={count!r}, expected at least 1")
    if getattr(target, "__module__", "__main__") == "__main__":
        raise ConfigError(
            f"run_workers: got {target!r}, expected a function of a module that can be imported"
        )
    metrics = Path(tempfile.mkdtemp(prefix="widedeep-metrics-"))
    say = told or _say
    try:
        workers = [
            _Process(Worker(index, count), target, args, metrics, restart_s, say)
            for index in range(count)
        ]
        with _orders_by_signals() as orders:
            try:
                return _watch(workers, orders)
            finally:
                _drain(workers, drain_s, orders, say)
    finally:
        shutil.rmtree(metrics, ignore_errors=True)


def _watch(workers: Sequence[_Process], orders: _Orders) -> int:
    while not orders.stop:
        for worker in workers:
            if worker.look() == _MISUSE:
                return _MISUSE
        if orders.reread:
            orders.reread = False
            for worker in workers:
                worker.signal(signal.SIGHUP)
        time.sleep(_LOOK_S)
    return 0


def _drain(
    workers: Sequence[_Process], drain_s: float, orders: _Orders, say: Callable[[str], None]
) -> None:
    for worker in workers:
        worker.signal(signal.SIGINT if orders.soon else signal.SIGTERM)
    end = time.monotonic() + drain_s
    while any(worker.is_running() for worker in workers) and time.monotonic() < end:
        if orders.hurry:
            drain_s, end = _HURRY_S, min(end, time.monotonic() + _HURRY_S)
            orders.hurry = False
            for worker in workers:
                worker.signal(signal.SIGTERM)
        time.sleep(_LOOK_S)
    for worker in workers:
        if worker.is_running():
            say(f"worker {worker.worker.index} did not end within {drain_s:g} s: killed")
            worker.kill()


@dataclass(slots=True)
class _Orders:
    """What signals have asked for: to stop, and how soon; to read files again."""

    stop: bool = False
    soon: bool = False
    hurry: bool = False
    reread: bool = False


@contextlib.contextmanager
def _orders_by_signals() -> Iterator[_Orders]:
    orders = _Orders()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            orders.reread = True
            return
        orders.soon = orders.soon or number == signal.SIGINT
        orders.hurry = orders.hurry or orders.stop
        orders.stop = True

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield orders
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Process:
    """One worker: the process that runs now, or the time at which the next one starts."""

    def __init__(
        self,
        worker: Worker,
        target: Callable[..., None],
        args: Sequence[Any],
        metrics: Path,
        restart_s: tuple[float, float],
        say: Callable[[str], None],
    ) -> None:
        self.worker, self._metrics, self._restart_s, self._say = worker, metrics, restart_s, say
        self._target, self._args = target, tuple(args)
        self._running: subprocess.Popen[bytes] | None = None
        self._started = self._next_start = 0.0
        self._pause = restart_s[0]

    def look(self) -> int | None:
        """Start the process if it is time; return its exit code if it has just ended."""
        if self._running is None:
            if time.monotonic() >= self._next_start:
                try:
                    self._start()
                except OSError as error:  # no descriptor, no process, no memory: for now
                    self._again_later(f"worker {self.worker.index} cannot be started ({error})")
            return None
        code = self._running.poll()
        if code is not None:
            self._ended(code)
        return code

    def _start(self) -> None:
        self._started = time.monotonic()
        self._metrics.mkdir(parents=True, exist_ok=True)  # cleaners of temporary files take it
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._running = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": path,
                METRICS_DIRECTORY: str(self._metrics),
                ROWS_DIRECTORY: str(self._metrics / "rows"),
            },
            # Of its own group: Ctrl-C in a terminal is for the supervisor to pass on.
            process_group=0,
        )
        assert self._running.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._running.stdin as pipe:
            pickle.dump((self.worker, self._target, self._args), pipe)
        self.worker = replace(self.worker, replaces=True)

    def _ended(self, code: int) -> None:
        self._running = None
        _forget_gauges(self._metrics, self.worker.index)
        if code == _MISUSE:
            return
        lived = time.monotonic() - self._started
        if lived > _LONG_LIFE_S:
            self._pause = self._restart_s[0]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._again_later(f"worker {self.worker.index} ended by {how} after {lived:.1f} s")

    def _again_later(self, what: str) -> None:
        self._say(f"{what}; again in {self._pause:g} s")
        self._next_start = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, self._restart_s[1])

    def signal(self, number: signal.Signals) -> None:
        if self._running is not None:
            self._running.send_signal(number)

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def is_running(self) -> bool:
        return self._running is not None and self._running.poll() is None


def worker_main() -> None:
    """Run in a spawned process: read the orders on standard input, and follow them."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    parent = os.getppid()
    worker, target, args = pickle.load(sys.stdin.buffer)
    _end_with_parent(parent)
    _count_as(worker.index)
    try:
        target(worker, *args)
    except KeyboardInterrupt:  # before it could drain
        sys.exit(0)
    except WideDeepError as error:
        print(f"widedeep: error: {error}", file=sys.stderr, flush=True)
        sys.exit(_MISUSE)


def _end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the supervisor is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # gone before the kernel was asked
            sys.exit(0)


# ---- metrics ------------------------------------------------------------------------------------


_METRICS_BYTES = 1 << 20
_METRICS_KINDS = ("counter", "histogram", "gauge_sum", "gauge_livesum", "gauge_livemin")


def _count_as(index: int) -> None:
    """Let the Prometheus client write the numbers of worker ``index``."""
    try:
        from prometheus_client import values
        from prometheus_client.mmap_dict import MmapedDict
    except ImportError:
        return  # a server without metrics

    class Allocated(MmapedDict):
        """Figures in a file that has its blocks: a hole that a full disk cannot fill ends us."""

        def __init__(self, filename: str, read_mode: bool = False) -> None:
            if not read_mode:
                _allocate(filename)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    for kind in _METRICS_KINDS:  # now, while there is room
        _allocate(os.path.join(os.environ[METRICS_DIRECTORY], f"{kind}_{index}.db"))
    values.MmapedDict = Allocated  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(lambda: index)  # type: ignore[no-untyped-call]


def _allocate(filename: str) -> None:
    os.makedirs(os.path.dirname(filename), exist_ok=True)  # cleaners of temporary files take it
    with open(filename, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _METRICS_BYTES)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a full disk under it must not end workers
        print(f"widedeep: {line}", file=sys.stderr, flush=True)


def _forget_gauges(metrics: Path, index: int) -> None:
    """Take back what a dead worker said of its present: requests in flight and the like."""
    with contextlib.suppress(OSError):
        for file in metrics.glob(f"gauge_live*_{index}.db"):
            file.unlink(missing_ok=True)
