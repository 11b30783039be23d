"""A server's end, its descriptors, its port, its keys and its queue, on real sockets."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.serving.http.calls import Local, Running, running
from tests.serving.versions import ITEMS, USER, eventually
from widedeep.serving.http import Keys, Settings
from widedeep.serving.load import Target, run_load
from widedeep.serving.registry import Registry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BODY = json.dumps({"user": USER, "candidates": ITEMS}).encode()
EXPLAINED = json.dumps({"user": USER, "candidates": ITEMS, "explain": True}).encode()
KEY = {"X-API-Key": "a key"}


def catalogue(apps: Path) -> tuple[object, ...]:
    return (apps, "--items", apps.parent / "items.parquet", "--item-id", "app")


def write_keys(path: Path, **keys: str) -> Path:
    lines = [
        f'[keys.{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
        for name, key in keys.items()
    ]
    path.write_text("".join(lines))
    return path


@pytest.fixture(params=["native", "python", "two workers"])
def words(request: pytest.FixtureRequest, apps: Path) -> tuple[object, ...]:
    """How to start a server: with the native server, without, and with two processes."""
    more: dict[str, tuple[object, ...]] = {
        "native": (),
        "python": ("--no-native",),
        "two workers": ("--workers", 2),
    }
    return (*catalogue(apps), *more[request.param])


def head(body: bytes = BODY, *more: str) -> bytes:
    lines = ["POST /v1/rank HTTP/1.1", "Host: localhost", f"X-API-Key: {KEY['X-API-Key']}", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()


class Caller(threading.Thread):
    """A caller with a connection per request, or one kept, until none is accepted any more."""

    def __init__(self, port: int, keeps: bool = False) -> None:
        super().__init__()
        self.port, self.keeps, self.broken = port, keeps, 0
        self.answers: list[tuple[float, int, str]] = []
        self.refused_at = float("inf")

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while True:
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                self.refused_at = time.monotonic()
                return
            try:
                connection.request("POST", "/v1/rank", BODY, KEY)
                got = connection.getresponse()
                got.read()
                self.answers.append(
                    (time.monotonic(), got.status, got.headers.get("connection", ""))
                )
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
            if not self.keeps:
                connection.close()


def test_callers_are_answered_until_the_port_is_closed(
    words: tuple[object, ...],
) -> None:
    with running(*words, "--drain-delay", 2) as server:
        server.wait_ready()
        callers = [Caller(server.port, keeps) for keeps in (False, False, False, True, True)]
        for caller in callers:
            caller.start()
        eventually(lambda: all(len(caller.answers) > 3 for caller in callers))
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.call("GET", "/health/ready").status == 503)
        assert server.call("GET", "/health/live").status == 200
        unready = time.monotonic()
        assert server.process.wait(20) == 0
        for caller in callers:
            caller.join()
    answers = [answer for caller in callers for answer in caller.answers]
    assert {status for _, status, _ in answers} == {200}
    late = [connection for at, _, connection in answers if at > unready + 0.3]
    assert len(late) > 10 and set(late) == {"close"}
    assert min(caller.refused_at for caller in callers) > told + 1.9
    # Between the last look and the closing of a port the kernel may accept one more.
    assert sum(caller.broken for caller in callers) <= (3 if "--workers" in words else 1)


def begin(connection: socket.socket) -> None:
    """Send a request's head and a part of its body; return when the server waits for the rest."""
    connection.sendall(head(BODY, "Expect: 100-continue"))
    assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY[:9])


def test_what_is_under_way_is_finished_and_the_port_stays_open_for_it(
    words: tuple[object, ...],
) -> None:
    with running(*words, "--drain-delay", 0) as server:
        server.wait_ready()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            begin(slow)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1.0)
            if "--workers" not in words:  # of two, the one that is free has ended
                assert server.call("POST", "/v1/rank", BODY, KEY).status == 200
            slow.sendall(BODY[9:])
            got = slow.recv(1 << 16)
            assert got.startswith(b"HTTP/1.1 200") and b"connection: close" in got
        assert server.process.wait(20) == 0


def test_a_second_signal_ends_the_waiting(words: tuple[object, ...]) -> None:
    with running(*words, "--drain-delay", 300) as server:
        server.wait_ready()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            begin(slow)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: server.call("GET", "/health/ready").status == 503)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0


def test_a_shortage_of_descriptors_loses_no_connection_from_the_count(apps: Path) -> None:
    with running(*catalogue(apps)) as server:
        server.wait_ready()
        pid = server.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        kept.connect()
        for body in (BODY, EXPLAINED):
            kept.request("POST", "/v1/rank", body)
            kept.getresponse().read()
        for _ in range(12):
            used = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 12, hard))
            with contextlib.ExitStack() as stack:
                callers = []
                for number in range(40):
                    caller = socket.create_connection(("127.0.0.1", server.port), timeout=30)
                    callers.append(stack.enter_context(caller))
                    body = (BODY, EXPLAINED)[number % 2]
                    caller.sendall(head(body) + body)
                firsts = [receive(caller) for caller in callers]
                assert set(firsts) <= {b"200", b"503"} and b"503" in firsts and b"200" in firsts
                kept.request("POST", "/v1/rank", EXPLAINED)
                assert kept.getresponse().read().startswith(b'{"items"')
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= used + 2)  # noqa: B023
        assert server.call("GET", "/v1/status").json["ready"]
        refused = metric(server, 'widedeep_connections_ended_total{why="no descriptor"}')
        assert refused > 0
        assert metric(server, "widedeep_bugs_total") == 0
        kept.close()


def receive(caller: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return caller.recv(1 << 16)[9:12]
    return b"503"  # reset after it was refused, before it had sent all


def metric(server: Running, name: str) -> float:
    eventually(lambda: metric_so_far(server, name) is not None)
    return metric_so_far(server, name) or 0.0


def metric_so_far(server: Running, name: str) -> float | None:
    """The value of a series; None before there is one."""
    text = server.call("GET", "/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(lines[0].rpartition(" ")[2]) if lines else None


def test_connections_leave_descriptors_for_files(apps: Path) -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))\n"
    code += "from widedeep.__main__ import main; sys.exit(main())"
    words = [*catalogue(apps), "--http", ":0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    assert process.stdout is not None
    try:
        port = int(json.loads(process.stdout.readline())["http"].rpartition(":")[2])
        server = Running(process, port, None, time.monotonic())
        server.wait_ready()
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            eventually(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) > 50)
            time.sleep(0.3)
            assert len(os.listdir(f"/proc/{process.pid}/fd")) < 90
        eventually(lambda: server.call("GET", "/health/ready").status == 200)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize("first", [1, 2])
def test_two_servers_do_not_share_a_port(apps: Path, first: int) -> None:
    with running(*catalogue(apps), "--workers", first) as server:
        command = [sys.executable, "-m", "widedeep", "serve", *map(str, catalogue(apps))]
        command += ["--http", f":{server.port}", "--workers"]
        seconds = [
            subprocess.Popen([*command, workers], stderr=subprocess.PIPE, text=True)
            for workers in ("1", "2")
        ]
        for second in seconds:
            complaint = second.communicate(timeout=60)[1]
            assert second.returncode == 2
            assert f"127.0.0.1:{server.port}: the port cannot be bound" in complaint
            assert "Traceback" not in complaint


def test_of_servers_that_start_at_once_one_gets_the_port(apps: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "widedeep", "serve", *map(str, catalogue(apps))]
    command += ["--http", f":{port}", "--workers", "2"]
    started = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(4)]
    try:
        eventually(lambda: sum(p.poll() is not None for p in started) == 3, 60)
        assert sorted(p.poll() or 0 for p in started) == [0, 2, 2, 2]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def test_keys_are_read_again(apps: Path, tmp_path: Path) -> None:
    path, log = write_keys(tmp_path / "keys.toml", shop="old"), tmp_path / "log"

    def status(key: str) -> int:
        return server.call("GET", "/v2", None, {"X-API-Key": key}).status

    with running(*catalogue(apps), "--keys", path, log=log) as server:
        server.wait_ready()
        assert (status("old"), status("new")) == (200, 401)
        write_keys(path, shop="new", other="another")
        eventually(lambda: (status("old"), status("new"), status("another")) == (401, 200, 200))
        path.write_text("[keys.shop")
        eventually(lambda: "keys not read" in log.read_text())
        assert (status("new"), status("old")) == (200, 401)  # those of before stay
        before = path.stat()
        write_keys(path, shop="newer")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: (status("new"), status("newer")) == (401, 200))
        assert server.process.poll() is None


def test_sighup_reaches_every_worker_and_ends_none(apps: Path, tmp_path: Path) -> None:
    path, log = write_keys(tmp_path / "keys.toml", shop="old"), tmp_path / "log"
    with running(*catalogue(apps), "--keys", path, "--workers", 2, log=log) as server:
        server.wait_ready()
        eventually(lambda: log.read_text().count('"started"') == 2)

        def have_read() -> bool:
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            return log.read_text().count("keys read") >= 4

        eventually(have_read)
        assert "ended by" not in log.read_text()


def test_a_rate_is_not_refilled_by_reading_keys_again(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", shop="a key")
    path.write_text(path.read_text() + "rate = 2\n")
    keys = Keys.load(path)
    bucket = keys.check("a key").bucket
    assert keys.reload(force=True) and keys.check("a key").bucket is bucket
    path.write_text(path.read_text().replace("rate = 2", "rate = 200"))
    assert keys.reload() and keys.check("a key").bucket is not bucket
    assert not keys.reload()


ADMIN = "/admin/models/apps/shadow"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8080"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "ranker.example:80"}, 200),
        ({"host": "127.0.0.1", "content-type": "application/json; charset=utf-8"}, 200),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": "localhost", "sec-fetch-site": "same-origin"}, 200),
        ({}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost", "origin": "http://evil.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"host": "localhost", "origin": "http://localhost:81"}, 403),
        ({"host": "localhost", "sec-fetch-site": "cross-site"}, 403),
        ({"host": "localhost", "sec-fetch-site": "same-site"}, 403),
        ({"host": "localhost", "content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "localhost", "content-type": "text/plain"}, 415),
        ({"host": "localhost", "content-type": "multipart/form-data; boundary=b"}, 415),
    ],
)
def test_orders_come_from_no_other_site(
    registry: Registry, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    path = write_keys(tmp_path / "keys.toml", operator="a key")
    path.write_text(path.read_text() + "admin = true\n")
    settings = Settings(
        admin=True, keys=str(path), admin_hosts=("ranker.example",), request_log="none"
    )
    local = Local({"apps": registry}, keys=Keys.load(path), settings=settings)
    assert local.post(ADMIN, b"{}", KEY | headers).status == status
    load = "/v2/repository/models/apps/load"
    assert (local.post(load, b"", KEY | headers).status == 200) == (status == 200)


def test_a_server_that_keeps_up_refuses_nobody(apps: Path) -> None:
    with running(*catalogue(apps)) as server:
        server.wait_ready()
        for callers in (100, 256):
            report = run_load(Target(port=server.port), [BODY], connections=callers, seconds=2.0)
            assert report.requests > callers
            assert sum(report.failures.values()) < 0.01 * report.requests, report


SLOW = """
from widedeep.serving.http import *
from widedeep.serving.registry import Registry
from widedeep.serving.supervisor import bind_port
import sys
limits = dict(head_timeout_s=0.4, body_timeout_s=0.4, write_timeout_s=0.8, idle_timeout_s=1.0)
with Registry(sys.argv[1], items=sys.argv[2], item_id="app") as registry:
    registry.wait_ready(60)
    settings = Settings(max_connections=64, native=sys.argv[3] == "native", **limits)
    service = Service(models=Models({"apps": registry}), settings=settings)
    with bind_port("127.0.0.1", 0) as listening:
        listening.listen()
        print(listening.getsockname()[1], flush=True)
        serve(service, listening)
"""


@pytest.fixture(scope="module", params=["native", "python"])
def impatient(request: pytest.FixtureRequest, apps: Path) -> Iterator[Running]:
    """A server with short patience and room for 64 connections."""
    words = [str(apps), str(apps.parent / "items.parquet"), request.param]
    path = os.pathsep.join(filter(None, ["src", os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    try:
        yield Running(process, int(process.stdout.readline()), None, time.monotonic())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stdout.close()


def deaf(connection: socket.socket) -> None:
    """Ask for answers and read none, until no more can be sent."""
    many = json.dumps({"user": USER, "candidates": ITEMS * 400}).encode()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(0.2)
    with contextlib.suppress(OSError):
        for _ in range(400):
            connection.sendall(head(many) + many)


def trickle(connection: socket.socket) -> None:
    """Send a head byte by byte, never to the end."""
    connection.sendall(b"POST /v1/rank HTTP/1.1\r\nA: ")
    with contextlib.suppress(OSError):
        for _ in range(60):
            connection.sendall(b"a")
            time.sleep(0.02)


def trickle_body(connection: socket.socket) -> None:
    connection.sendall(head())
    with contextlib.suppress(OSError):
        for byte in BODY[:60]:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


def empty_lines(connection: socket.socket) -> None:
    """Keep a connection busy with nothing."""
    connection.sendall(head() + BODY)
    with contextlib.suppress(OSError):
        for _ in range(60):
            connection.sendall(b"\r\n")
            time.sleep(0.02)


Way = tuple[Any, str | None]
WAYS: dict[str, list[Way]] = {
    "late, idle and empty": [
        (trickle, "late head"),
        (trickle_body, "late body"),
        (lambda connection: None, "late head"),
        (lambda connection: connection.sendall(head() + BODY), "idle"),
        (empty_lines, None),
    ],
    "an answer that nobody reads": [(deaf, "unread answer")],
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_slow_callers_are_ended_counted_and_harm_nobody(
    impatient: Running, ways: list[Way]
) -> None:
    assert impatient.call("POST", "/v1/rank", BODY, KEY).status == 200
    reasons = [why for way, why in ways for _ in range(12) if why is not None]
    before = {why: ended(impatient, why) for why in reasons}
    callers = [
        (way, socket.create_connection(("127.0.0.1", impatient.port), timeout=30))
        for way, _ in ways
        for _ in range(12)
    ]
    threads = [threading.Thread(target=way, args=(caller,)) for way, caller in callers]
    for thread in threads:
        thread.start()
    took = []
    for _ in range(20):
        start = time.monotonic()
        assert impatient.call("POST", "/v1/rank", BODY, KEY).status == 200
        took.append(time.monotonic() - start)
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert sorted(took)[10] < 0.5
    eventually(lambda: established(impatient) <= 2)
    for why, count in before.items():
        # Of those that read nothing, some have not even sent a request to its end.
        least = 4 if why == "unread answer" else reasons.count(why)
        eventually(lambda: ended(impatient, why) >= count + least)  # noqa: B023
    for _, caller in callers:
        caller.close()
    assert metric(impatient, "widedeep_bugs_total") == 0


def ended(server: Running, why: str) -> float:
    """How many connections were ended for this reason."""
    return metric_so_far(server, f'widedeep_connections_ended_total{{why="{why}"}}') or 0.0


def established(server: Running) -> int:
    """Sockets of the server, but for the listening one."""
    place, found = f"/proc/{server.process.pid}/fd", -1
    for name in os.listdir(place):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(f"{place}/{name}").startswith("socket:")
    return found


def test_late_heads_and_bodies_are_told_and_closed(impatient: Running) -> None:
    whole = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nX-API-Key: a key\r\nContent-Length: 9\r\n\r\n"
    for sent in (b"", b"POST /v1/rank HT", whole[:-2], whole, whole + b"{"):
        with socket.create_connection(("127.0.0.1", impatient.port), timeout=20) as slow:
            slow.sendall(sent)
            got = b""
            while part := slow.recv(4096):
                got += part
            assert got.startswith(b"HTTP/1.1 408"), (sent, got)
            assert b'{"error":"' in got


def test_at_the_limit_of_connections_the_next_is_told(impatient: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            caller = socket.create_connection(("127.0.0.1", impatient.port), timeout=30)
            stack.enter_context(caller)
        with socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as one_more:
            assert one_more.recv(100).startswith((b"HTTP/1.1 503", b"HTTP/1.1 408"))
    eventually(lambda: established(impatient) <= 2)
    assert impatient.call("POST", "/v1/rank", BODY, KEY).status == 200
