"""A real server under load, against slow callers, when it is told to end, when it is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.http.calls import Running, running
from tests.serving.versions import ITEMS, USER, whole_rows
from widedeep.bundle import Bundle

MANY = ITEMS * 40  # several milliseconds of work
BODY = json.dumps({"user": USER, "candidates": MANY, "k": 5}).encode()


def catalogue(apps: Path) -> tuple[object, ...]:
    return (apps, "--items", apps.parent / "items.parquet", "--item-id", "app")


class Load(threading.Thread):
    """A caller that asks again as soon as it is answered."""

    def __init__(self, port: int, until: float) -> None:
        super().__init__()
        self.port, self.until = port, until
        self.answers: list[tuple[int, float, Any]] = []
        self.broken = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while time.monotonic() < self.until:
            start = time.monotonic()
            try:
                connection.request("POST", "/v1/rank", BODY)
                got = connection.getresponse()
                body = json.loads(got.read())
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
                continue
            self.answers.append((got.status, time.monotonic() - start, body))
            if got.status == 503:
                time.sleep(0.001)
        connection.close()


def load(port: int, callers: int, seconds: float) -> list[Load]:
    until = time.monotonic() + seconds
    threads = [Load(port, until) for _ in range(callers)]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture(scope="module")
def short_queue(apps: Path) -> Iterator[Running]:
    """A server with a queue of eight."""
    with running(*catalogue(apps), "--queue", 8) as server:
        server.wait_ready()
        yield server


def test_overload_is_answered_right_or_refused(short_queue: Running, bundle: Bundle) -> None:
    best = sorted(np.asarray(bundle.score(whole_rows(ITEMS))).tolist(), reverse=True)[0]
    server = short_queue
    quiet = load(server.port, 1, 1.0)
    quiet[0].join()
    alone = statistics.median(took for _, took, _ in quiet[0].answers)
    threads = load(server.port, 3 * 8, 3.0)
    for thread in threads:
        thread.join()
    answers = [answer for thread in threads for answer in thread.answers]
    accepted = [took for status, took, _ in answers if status == 200]
    assert {status for status, _, _ in answers} == {200, 503}
    assert sum(thread.broken for thread in threads) == 0
    assert all(body["scores"][0] == best for status, _, body in answers if status == 200)
    assert len(accepted) > 20
    # At most eight wait before one; the callers share the processor with the server.
    assert np.quantile(accepted, 0.99) < max(0.5, 60 * alone)
    assert server.call("POST", "/v1/rank", BODY).status == 200


def test_slow_callers_hold_nothing(short_queue: Running) -> None:
    server = short_queue
    with contextlib.ExitStack() as stack:
        head = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        sent = [b"", b"POST /v1/r", head[:-4], head, head + b'{"user"']
        for number in range(100):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            slow.sendall(sent[number % len(sent)])
        took = []
        for _ in range(20):
            start = time.monotonic()
            assert server.call("POST", "/v1/rank", BODY).status == 200
            took.append(time.monotonic() - start)
        assert statistics.median(took) < 0.5
        # And one that does not read its answers.
        deaf = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        deaf.setblocking(False)
        ask = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        with contextlib.suppress(BlockingIOError):
            for _ in range(200):
                deaf.send(ask + BODY)
        assert server.call("POST", "/v1/rank", BODY).status == 200


def resident_mb(process: int) -> float:
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        found = next(line for line in file if line.startswith("VmRSS"))
    return int(found.split()[1]) / 1024


def processor_s(process: int) -> float:
    """Seconds that a process and its threads have computed."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_start_is_quick_without_torch_and_on_the_port_of_a_killed_server(apps: Path) -> None:
    starts: list[tuple[float, float, str]] = []
    port = 0
    for _ in range(2):
        with running(*catalogue(apps), "--http", f":{port}") as server:
            server.wait_ready()
            assert server.call("POST", "/v1/rank", BODY).status == 200
            pid = server.process.pid
            took = processor_s(pid)
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
            starts.append((took, resident_mb(pid), maps))
            assert port in (0, server.port)
            port = server.port
            server.process.kill()
            server.process.wait(20)
    took, resident, mapped = min(starts)
    assert "libtorch" not in mapped
    assert "_native" in mapped
    assert resident < 200
    assert took < 4.0


def test_tls(apps: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl")
    words = ("--tls-certificate", certificate, "--tls-key", key)
    with running(*catalogue(apps), *words) as server:
        context = ssl.create_default_context(cafile=str(certificate))
        end = time.monotonic() + 60
        while True:
            connection = http.client.HTTPSConnection("localhost", server.port, context=context)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/rank", BODY)
                got = connection.getresponse()
                got.read()
            if got.status == 200:
                break
            assert got.status == 503
            assert time.monotonic() < end
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            plain.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")


def test_what_was_shown_is_logged(apps: Path, tmp_path: Path) -> None:
    import pyarrow.dataset as ds

    words = ("--log", tmp_path / "log", "--log-user", "user")
    with running(*catalogue(apps), *words) as server:
        server.wait_ready()
        found = ask(server, "r1")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    rows = ds.dataset(tmp_path / "log", format="parquet").to_table().to_pylist()
    rows.sort(key=lambda row: row["position"])
    assert [row["item_id"] for row in rows] == found["items"]
    assert [row["score"] for row in rows] == found["scores"]
    assert {(row["request_id"], row["user_id"], row["model_version"]) for row in rows} == {
        ("r1", USER["user"], "1")
    }


def ask(server: Running, request_id: str) -> Any:
    body = {"user": USER, "candidates": ITEMS, "request_id": request_id}
    return server.call("POST", "/v1/rank", body).json
