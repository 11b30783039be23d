"""A worker for the supervisor's tests: answers each connection with its index and process id."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

from widedeep.errors import ConfigError
from widedeep.serving.supervisor import Worker, bind_port


def serve(worker: Worker, host: str, port: int) -> None:
    """Read a line, count it, answer; `slow` takes its time, `metrics` tells all workers'."""
    from prometheus_client import Counter, Gauge

    requests = Counter("requests", "Answered.")
    busy = Gauge("busy", "Being answered.", multiprocess_mode="livesum")
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    with bind_port(host, port) as listening:
        listening.listen()
        listening.settimeout(0.05)
        while not ending.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            answer(connection, worker, requests, busy)


def answer(connection: socket.socket, worker: Worker, requests: object, busy: object) -> None:
    with connection, connection.makefile("rw") as lines:
        asked = lines.readline().strip()
        if asked == "metrics":
            lines.write(all_metrics())
            return
        requests.inc()  # type: ignore[attr-defined]
        with busy.track_inprogress():  # type: ignore[attr-defined]
            if asked == "slow":
                time.sleep(1.5)
            if asked == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            lines.write(f"{worker.index} {os.getpid()}")


def all_metrics() -> str:
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry).decode()


def refuse(worker: Worker) -> None:
    raise ConfigError(f"worker {worker.index} of {worker.count}: got nothing to serve")


def serve_unless_broken(worker: Worker, host: str, port: int, broken: str) -> None:
    if os.path.exists(broken):
        with open(f"{broken}.met", "a") as met:
            met.write(f"{worker.index}\n")
        raise ConfigError(f"{broken}: got garbage")
    serve(worker, host, port)


def crash(worker: Worker) -> None:
    os._exit(3)


def deaf(worker: Worker) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf now", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)
