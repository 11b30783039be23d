"""Worker processes that share a port: started, restarted, drained, with shared metrics."""

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
"""The Prometheus client's variable for the directory of metrics of several processes."""

_EXIT_USAGE = 2
_POLL_S = 0.05
_LONG_LIFE_S = 60.0
_SECOND_SIGNAL_S = 3.0
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_START = "from widedeep.serving.supervisor import worker_main; worker_main()"


@dataclass(frozen=True, slots=True)
class Worker:
    """The position of a worker process among those of its server."""

    index: int  # 0 to ``count - 1``; a replacement has the index of the dead process
    count: int  # Number of worker processes
    replaces: bool = False  # Whether it replaces a dead process


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
    with _exclusive_start():
        with _bind(host, port, socket.SO_REUSEADDR) as probe:
            port = probe.getsockname()[1]
        # Without SO_REUSEADDR, so that the probe of another server fails even before this one
        # listens; lingering connections of the program before may need it though.
        try:
            return _bind(host, port, socket.SO_REUSEPORT)
        except ConfigError:
            return bind_port(host, port)


@contextlib.contextmanager
def _exclusive_start() -> Iterator[None]:
    """Hold a lock, so that two servers that start at once do not both find the port free."""
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
) -> int:
    """Run ``target(worker, *args)`` in several processes until SIGTERM or SIGINT."""
    if count < 1:
        raise ConfigError(f"run_workers: got count={count!r}, expected at least 1")
    if getattr(target, "__module__", "__main__") == "__main__":
        raise ConfigError(
            f"run_workers: got {target!r}, expected a function of a module that can be imported"
        )
    metrics = Path(tempfile.mkdtemp(prefix="widedeep-metrics-"))
    try:
        workers = [
            _Process(Worker(index, count), target, args, metrics, restart_s)
            for index in range(count)
        ]
        with _signals_received() as signals:
            try:
                return _watch(workers, signals)
            finally:
                _drain(workers, drain_s, signals)
    finally:
        shutil.rmtree(metrics, ignore_errors=True)


def _watch(workers: Sequence[_Process], signals: _Signals) -> int:
    while not signals.stop:
        for worker in workers:
            worker.poll()
            if worker.cannot_start:
                return _EXIT_USAGE
        if signals.reload:
            signals.reload = False
            for worker in workers:
                worker.signal(signal.SIGHUP)
        time.sleep(_POLL_S)
    return 0


def _drain(workers: Sequence[_Process], drain_s: float, signals: _Signals) -> None:
    for worker in workers:
        worker.signal(signal.SIGINT if signals.soon else signal.SIGTERM)
    end = time.monotonic() + drain_s
    while any(worker.is_running() for worker in workers) and time.monotonic() < end:
        if signals.hurry:
            drain_s, end = _SECOND_SIGNAL_S, min(end, time.monotonic() + _SECOND_SIGNAL_S)
            signals.hurry = False
            for worker in workers:
                worker.signal(signal.SIGTERM)
        time.sleep(_POLL_S)
    for worker in workers:
        if worker.is_running():
            _say(f"worker {worker.worker.index} did not end within {drain_s:g} s: killed")
            worker.kill()


@dataclass(slots=True)
class _Signals:
    """What the signals so far ask for."""

    stop: bool = False
    soon: bool = False  # Stop without a drain delay: SIGINT
    hurry: bool = False  # Stop without waiting for requests: a second signal
    reload: bool = False  # Read files again: SIGHUP


@contextlib.contextmanager
def _signals_received() -> Iterator[_Signals]:
    signals = _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signals.reload = True
            return
        signals.soon = signals.soon or number == signal.SIGINT
        signals.hurry = signals.hurry or signals.stop
        signals.stop = True

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Process:
    """One worker: its running process, or the start time of the next one."""

    def __init__(
        self,
        worker: Worker,
        target: Callable[..., None],
        args: Sequence[Any],
        metrics: Path,
        restart_s: tuple[float, float],
    ) -> None:
        self.worker, self._metrics, self._restart_s = worker, metrics, restart_s
        self._target, self._args = target, tuple(args)
        self._running: subprocess.Popen[bytes] | None = None
        self._started = self._next_start = 0.0
        self._pause = restart_s[0]
        self._starts = 0
        self.cannot_start = False  # What it is to serve is wrong from the start

    def poll(self) -> None:
        """Start the process when it is due, and note its end."""
        if self._running is None:
            if time.monotonic() >= self._next_start:
                try:
                    self._start()
                except OSError as error:  # no descriptor, process or memory is free at present
                    self._restart_later(f"worker {self.worker.index} cannot be started ({error})")
            return
        code = self._running.poll()
        if code is not None:
            self._ended(code)

    def _start(self) -> None:
        self._started, self._starts = time.monotonic(), self._starts + 1
        self._metrics.mkdir(parents=True, exist_ok=True)  # a cleaner may have removed it
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
            # Its own group: the supervisor passes Ctrl-C of a terminal on.
            process_group=0,
        )
        assert self._running.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._running.stdin as pipe:
            pickle.dump((self.worker, self._target, self._args), pipe)
        self.worker = replace(self.worker, replaces=True)

    def _ended(self, code: int) -> None:
        self._running = None
        _forget_gauges(self._metrics, self.worker.index)
        lived = time.monotonic() - self._started
        # One that replaces another does not end those that serve: what is wrong came later.
        self.cannot_start = code == _EXIT_USAGE and self._starts == 1 and lived <= _LONG_LIFE_S
        if self.cannot_start:
            return
        if lived > _LONG_LIFE_S:
            self._pause = self._restart_s[0]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._restart_later(f"worker {self.worker.index} ended by {how} after {lived:.1f} s")

    def _restart_later(self, what: str) -> None:
        _say(f"{what}; again in {self._pause:g} s")
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
    """Run in a worker process: read the target and its arguments from standard input."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the target handles it
    parent = os.getppid()
    worker, target, args = pickle.load(sys.stdin.buffer)
    _end_with_parent(parent)
    _write_metrics_of(worker.index)
    try:
        target(worker, *args)
    except KeyboardInterrupt:  # before it handles signals
        sys.exit(0)
    except WideDeepError as error:
        print(f"widedeep: error: {error}", file=sys.stderr, flush=True)
        sys.exit(_EXIT_USAGE)


def _end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the supervisor has ended in any way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the request to the kernel
            sys.exit(0)


# ---- metrics ------------------------------------------------------------------------------------


_METRICS_BYTES = 1 << 20
_METRICS_KINDS = ("counter", "histogram", "gauge_sum", "gauge_livesum", "gauge_livemin")


def _write_metrics_of(index: int) -> None:
    """Have the Prometheus client write the metrics of worker ``index``."""
    try:
        from prometheus_client import values
        from prometheus_client.mmap_dict import MmapedDict
    except ImportError:
        return  # the server runs without metrics

    class Allocated(MmapedDict):
        """A metrics file with allocated blocks: a full disk kills writers of a sparse one."""

        def __init__(self, filename: str, read_mode: bool = False) -> None:
            if not read_mode:
                _allocate(filename)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    for kind in _METRICS_KINDS:  # now, while the disk has room
        _allocate(os.path.join(os.environ[METRICS_DIRECTORY], f"{kind}_{index}.db"))
    values.MmapedDict = Allocated  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(lambda: index)  # type: ignore[no-untyped-call]


def _allocate(filename: str) -> None:
    os.makedirs(os.path.dirname(filename), exist_ok=True)  # a cleaner may have removed it
    with open(filename, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _METRICS_BYTES)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a full disk must not end workers
        sys.stderr.write(f"widedeep: {line}\n")  # in one piece: workers write here at once
        sys.stderr.flush()


def _forget_gauges(metrics: Path, index: int) -> None:
    """Delete the live gauges of a dead worker: requests in flight and the like."""
    with contextlib.suppress(OSError):
        for file in metrics.glob(f"gauge_live*_{index}.db"):
            file.unlink(missing_ok=True)
