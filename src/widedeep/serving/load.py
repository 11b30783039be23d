"""Load generator for a server on this machine: timed requests over kept connections."""

from __future__ import annotations

import os
import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from widedeep.errors import ConfigError

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SILENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server and path that requests are sent to."""

    port: int  # TCP port on this machine
    path: str = "/v1/rank"
    host: str = "127.0.0.1"  # One of loopback's names
    headers: tuple[tuple[str, str], ...] = ()  # Beside those of every request
    # Process id whose processor time is measured, with its children's; None: not measured
    process: int | None = None

    def __post_init__(self) -> None:
        if self.host not in _LOOPBACK:
            raise ConfigError(
                f"got host {self.host!r}; load is for a server of this machine alone: "
                f"{', '.join(_LOOPBACK)}"
            )


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Rates and latencies of a server under load."""

    connections: int  # Connections, each with one request in flight at all times
    requests: int  # Requests answered with 200
    failures: dict[int, int]  # Other answers by status; 0 is a broken connection
    seconds: float  # From the first request to the last answer
    p50_ms: float  # Median latency
    p99_ms: float  # 99th percentile of the latency
    requests_per_s: float  # Requests answered with 200 per second
    cpu_ms: float  # The server's processor time per request; NaN if unknown


def run_load(
    target: Target,
    bodies: Sequence[bytes],
    *,
    connections: int = 4,
    seconds: float = 5.0,
    warm_up_s: float = 0.5,
) -> LoadReport:
    """Send requests for some seconds; each connection sends the next when the last is answered."""
    requests = [_request(target, body) for body in bodies]
    callers = [_Caller(target, requests, start) for start in range(connections)]
    try:
        if warm_up_s:
            _drive(callers, warm_up_s)
        for caller in callers:
            caller.forget()
        cpu = cpu_seconds(target.process)
        began = time.perf_counter()
        _drive(callers, seconds)
        took = time.perf_counter() - began
        cpu = cpu_seconds(target.process) - cpu
    finally:
        for caller in callers:
            caller.socket.close()
    times = np.array([each for caller in callers for each in caller.times]) * 1e3
    failures: dict[int, int] = {}
    for caller in callers:
        for status, count in caller.failures.items():
            failures[status] = failures.get(status, 0) + count
    p50, p99 = np.percentile(times, (50, 99)) if len(times) else (np.nan, np.nan)
    answered = len(times) + sum(failures.values())
    return LoadReport(
        connections=connections,
        requests=len(times),
        failures=failures,
        seconds=took,
        p50_ms=float(p50),
        p99_ms=float(p99),
        requests_per_s=len(times) / took,
        cpu_ms=1e3 * cpu / answered if answered else float("nan"),
    )


def _request(target: Target, body: bytes) -> bytes:
    headers = {
        "host": f"{target.host}:{target.port}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **dict(target.headers),
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Caller:
    """One connection with one request in flight."""

    def __init__(self, target: Target, requests: Sequence[bytes], start: int) -> None:
        self._target, self._requests, self._next = target, requests, start
        self._answer = b""
        self._sent = 0.0
        self.socket = self._connect()
        self.forget()

    def forget(self) -> None:
        self.times: list[float] = []
        self.failures: dict[int, int] = {}

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(
                (self._target.host, self._target.port), timeout=10
            )
        except OSError as error:
            raise ConfigError(
                f"no server answers on {self._target.host}:{self._target.port}: {error}"
            ) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def send(self) -> None:
        self._answer = b""
        self._sent = time.perf_counter()
        self.socket.sendall(self._requests[self._next % len(self._requests)])
        self._next += 1

    def receive(self) -> bool:
        """Read from the socket; return whether the answer is complete."""
        try:
            chunk = self.socket.recv(1 << 18)
        except OSError:
            chunk = b""
        if not chunk:
            self._failed(0)
            self.socket.close()
            self.socket = self._connect()
            return True
        self._answer += chunk
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or (length is not None and len(body) < int(length[1])):
            return False
        status = int(head[9:12])
        if status == 200:
            self.times.append(time.perf_counter() - self._sent)
        else:
            self._failed(status)
        return True

    def _failed(self, status: int) -> None:
        self.failures[status] = self.failures.get(status, 0) + 1


def _drive(callers: Sequence[_Caller], seconds: float) -> None:
    """Keep every connection busy for some seconds, and wait for the last answers."""
    with selectors.DefaultSelector() as ready:
        for caller in callers:
            caller.send()
            ready.register(caller.socket, selectors.EVENT_READ, caller)
        end = time.perf_counter() + seconds
        while ready.get_map():
            events = ready.select(_SILENCE_S)
            if not events:
                raise ConfigError(f"the server has not answered for {_SILENCE_S:.0f} s")
            for key, _ in events:
                caller = key.data
                if not caller.receive():
                    continue
                ready.unregister(key.fileobj)
                if time.perf_counter() < end:
                    caller.send()
                    ready.register(caller.socket, selectors.EVENT_READ, caller)


def cpu_seconds(process: int | None) -> float:
    """Return the processor time of a process and its live children; NaN if unknown."""
    if process is None or not Path("/proc/self/stat").exists():
        return float("nan")
    tick = os.sysconf("SC_CLK_TCK")
    total, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        number = int(stat.parent.name)
        parents[number] = int(fields[1])
        total[number] = (int(fields[11]) + int(fields[12])) / tick
    tree = {process}
    while more := {n for n, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sum(total.get(number, 0.0) for number in tree)
