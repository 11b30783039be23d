"""What a request may cost: processor time and memory in proportion to its size, on every route."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import widedeep
from tests.serving.http.calls import Local, Running, running
from tests.serving.versions import ITEMS, USER
from widedeep.serving.config import Settings
from widedeep.serving.http.app import endpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# What docs/faults.md states: for each KB of a request, and for any request.
MS_PER_KB, MS, MS_EXPLAINED = 0.6, 60, 1500
BYTES_PER_BYTE, BYTES = 64, 48 << 20

SMALL, MIDDLE, LARGE = 1 << 10, 1 << 19, 8 << 20
Make = Callable[[int], bytes]


def many(start: str, each: str, end: str) -> Make:
    """Bodies that repeat a text, in which # is a number of its own."""

    def make(size: int) -> bytes:
        count = max(1, (size - len(start) - len(end)) // (len(each.replace("#", str(size))) + 1))
        each_n = (each.replace("#", str(n)) for n in range(count))
        return (start + ",".join(each_n) + end).encode()

    return make


def long(start: str, filling: str, end: str) -> Make:
    """Bodies with one long value."""
    return lambda size: (start + filling * (size // len(filling)) + end).encode()


RANK: dict[str, Make] = {
    "unknown keys of a user": many('{"user":{', '"k#":1', '},"candidates":["maps"]}'),
    "unknown keys and a wrong value": many(
        '{"candidates":["maps"],"user":{"age":"x",', '"k#":1', "}}"
    ),
    "one key, again and again": many('{"user":{', '"age":1', '},"candidates":["maps"]}'),
    "unknown members": many("{", '"m#":1', "}"),
    "lists in lists": lambda size: b'{"user":{"tags":' + b"[" * size,
    "lists in lists in a new key": lambda size: b'{"user":{"zz":' + b"[" * size + b"]" * size,
    "objects in objects": long('{"user":', '{"a":', "1"),
    "a long number": long('{"user":{"age":', "1", '},"candidates":["maps"]}'),
    "a long fraction": long('{"user":{"age":0.', "1", '},"candidates":["maps"]}'),
    "a long exponent": long('{"user":{"age":1e', "0", '1},"candidates":["maps"]}'),
    "a long text": long('{"user":{"user":"', "a", '"},"candidates":["maps"]}'),
    "escapes": long('{"user":{"user":"', "\\u0041", '"},"candidates":["maps"]}'),
    "a text that looks like a message": long(
        '{"user":{"age":"', "column '", '"},"candidates":["a"]}'
    ),
    "a member that looks like a message": long('{"', " - at `$", '":1}'),
    "a long name of a model": long('{"candidates":["maps"],"model":"', "ap", '"}'),
    "a long head": long('{"candidates":["maps"],"head":"', "ap", '"}'),
    "spaces": long("{", " ", '"candidates":["maps"]}'),
    "candidates": many('{"candidates":[', '"maps"', "]}"),
    "candidates that nobody knows": many('{"candidates":[', '"new item #"', "]}"),
    "candidates explained": many('{"explain":true,"candidates":[', '"maps"', "]}"),
    "numbers as candidates": many('{"candidates":[', "#", "]}"),
    "a long candidate": long('{"candidates":["', "a", '"]}'),
    "a list of a user": many('{"candidates":["maps"],"user":{"tags":[', '"x"', "]}}"),
    "a list of objects": many('{"candidates":["maps"],"user":{"zz":[', "[]", "]}}"),
    "items": many('{"items":{"app":[', '"maps"', "]}}"),
    "items, the last one wrong": many('{"items":{"price":[', "1", ',"x"]}}'),
    "columns of items": many('{"items":{', '"c#":[1]', "}}"),
    "a cut body": lambda size: b'{"candidates":["' + b"a" * size,
    "no UTF-8": lambda size: b'{"candidates":["' + b"a" * size + b'\xff"]}',
}


def both_sides(size: int) -> bytes:
    """Unknown keys in user and in context."""
    keys = [f'"{{}}{n}":1' for n in range(size // 24)]
    user, context = (",".join(keys).format(*[side] * len(keys)) for side in "uc")
    return f'{{"user":{{{user}}},"context":{{{context}}},"candidates":["maps"]}}'.encode()


RANK["unknown keys of user and context"] = both_sides
RECOMMEND: dict[str, Make] = {
    "exclude": many('{"exclude":[', '"new item #"', "]}"),
    "like": many('{"like":[', '"maps"', "]}"),
    "where": many('{"where":{', '"c#":1', "}}"),
    "one of many": many('{"where":{"app":[', '"item #"', "]}}"),
    "vector": many('{"vector":[', "0.5", "]}"),
}
INFER: dict[str, Make] = {
    "values": lambda size: json.dumps(
        {"inputs": [tensor("age", [1.5] * (size // 5))]}, separators=(",", ":")
    ).encode(),
    "texts": lambda size: json.dumps({"inputs": [tensor("app", ["a"] * (size // 5))]}).encode(),
    "inputs": many('{"inputs":[', '{"name":"age","shape":[1],"datatype":"FP64","data":[1]}', "]}"),
    "outputs": many('{"inputs":[],"outputs":[', '{"name":"o#"}', "]}"),
    "a long shape": many(
        '{"inputs":[{"name":"age","datatype":"FP64","data":[],"shape":[', "1", "]}]}"
    ),
}
EXAMPLES: dict[str, Make] = {
    "rows": many('{"examples":[', '{"age":1}', "]}"),
    "empty rows": many('{"examples":[', "{}", "]}"),
    "a wide row": many('{"examples":[{', '"c#":1', "}]}"),
    "a wide context": many('{"examples":[{}],"context":{', '"c#":1', "}}"),
}
PREDICT: dict[str, Make] = {
    "rows": many('{"instances":[', '{"age":1}', "]}"),
    "rows, the last one wrong": many('{"instances":[', '{"age":1}', ',{"age":"x"}]}'),
    "columns": many('{"inputs":{"age":[', "1", "]}}"),
    "base64": long('{"instances":[{"app":{"b64":"', "YWFh", '"}}]}'),
    "lists": many('{"instances":[{"tags":[', '["x"]', "]}]}"),
}


def tensor(name: str, data: list[object]) -> dict[str, object]:
    kind = "BYTES" if isinstance(data[0], str) else "FP64"
    return {"name": name, "shape": [len(data)], "datatype": kind, "data": data}


BODIES: dict[str, dict[str, Make]] = {
    "/v1/rank": RANK,
    "/v1/recommend": RECOMMEND,
    "/v2/models/{model}/infer": INFER,
    "/v1/models/{model}:classify": EXAMPLES,
    "/v1/models/{model}:regress": EXAMPLES,
    "/v1/models/{model}:predict": PREDICT,
    "/v2/repository/index": {"keys": many("{", '"k#":1', "}")},
}
CASES = [
    pytest.param(path, make, id=f"{path} {name}")
    for path, bodies in BODIES.items()
    for name, make in bodies.items()
]
ROUTES = sorted(
    {
        endpoint.path.format(model="apps", version="1", label="stable")
        for endpoint in endpoints(Settings())
        if endpoint.method == "POST"
    }
)


@pytest.fixture(scope="module")
def server(apps: Path) -> Iterator[Running]:
    words = (apps, "--items", apps.parent / "items.parquet", "--item-id", "app")
    with running(*words, "--deadline-ms", 60_000) as server:
        server.wait_ready()
        yield server


def cost(server: Running, path: str, body: bytes, **headers: str) -> tuple[int, float, int]:
    """Status, processor milliseconds, and the memory by which the peak rose."""
    process = Path(f"/proc/{server.process.pid}")
    (process / "clear_refs").write_text("5")  # the peak is now what is resident
    resident, ticks = memory(process, "VmRSS"), spent(process)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status, spent(process) - ticks, max(0, memory(process, "VmHWM") - resident)


def memory(process: Path, name: str) -> int:
    line = next(s for s in (process / "status").read_text().splitlines() if s.startswith(name))
    return int(line.split()[1]) << 10


def spent(process: Path) -> float:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")


def least_time(server: Running, body: bytes) -> tuple[float, float]:
    """Processor seconds of the server for a request, and of json for its body; the least of 3."""
    clock = (~server.process.pid << 3) | 2  # of the processor time of that process
    served, parsed = [], []
    for _ in range(3):
        start = time.clock_gettime(clock)
        assert server.call("POST", "/v1/rank", body).status < 500
        served.append(time.clock_gettime(clock) - start)
        start = time.process_time()
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(body)
        parsed.append(time.process_time() - start)
    return min(served), min(parsed)


def check(server: Running, path: str, make: Make, sizes: tuple[int, ...], **headers: str) -> None:
    for size in sizes:
        body = make(size)
        for _ in range(3):  # a neighbour on the same core makes a processor slower
            status, ms, nbytes = cost(server, path, body, **headers)
            explained = status == 200 and body.startswith(b'{"explain":true')
            most = (MS_EXPLAINED if explained else MS) + MS_PER_KB * len(body) / 1024
            if ms <= most:
                break
        assert status < 500, (path, size)
        assert ms <= most, (status, size, ms)
        assert nbytes <= BYTES + BYTES_PER_BYTE * len(body), (status, size, nbytes)


@pytest.mark.parametrize(("path", "make"), CASES)
def test_a_request_costs_what_it_weighs(server: Running, path: str, make: Make) -> None:
    check(server, path.format(model="apps"), make, (SMALL, MIDDLE))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("path", "make"), CASES)
def test_a_large_request_costs_what_it_weighs(server: Running, path: str, make: Make) -> None:
    check(server, path.format(model="apps"), make, (LARGE,))


@pytest.mark.slow
@pytest.mark.parametrize("make", RANK.values(), ids=RANK)
def test_eight_times_the_body_takes_about_eight_times_as_long(server: Running, make: Make) -> None:
    """At most three times that, or as json itself, if that is longer: large bodies fit no cache."""
    longest = Settings().max_body
    body, large = make(longest // 8), make(longest)[:longest]
    # In turns: a neighbour slows both down, not the one alone.
    turns = [[least_time(server, each) for each in (body, large)] for _ in range(3)]
    (served, parsed), (served_large, parsed_large) = np.min(turns, axis=0)
    assert served_large <= 3 * max(8.0, parsed_large / parsed) * served


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_is_an_exception(server: Running, path: str) -> None:
    for make in (RANK["candidates"], RANK["unknown members"], RANK["objects in objects"]):
        check(server, path, make, (SMALL, MIDDLE))


def test_compressed_bodies_stay_in_proportion(server: Running) -> None:
    for body in (RANK["spaces"](LARGE), RANK["candidates"](LARGE), b"[" * LARGE):
        small = gzip.compress(body)
        status, ms, nbytes = cost(server, "/v1/rank", small, **{"Content-Encoding": "gzip"})
        assert status == 413
        assert ms <= MS + MS_PER_KB * len(small) / 16  # at most 64 times its size is read
        assert nbytes <= BYTES + BYTES_PER_BYTE * 64 * len(small)
    usual = json.dumps({"user": USER, "candidates": ITEMS * 200}).encode()
    packed = {"Content-Encoding": "gzip"}
    assert cost(server, "/v1/rank", gzip.compress(usual), **packed)[0] == 200
    joined = gzip.compress(usual) + gzip.compress(usual)
    assert cost(server, "/v1/rank", joined, **packed)[0] == 400


@pytest.mark.parametrize("first", [b"GET /", b"POST /v1/rank HTTP/1.1\r\nA: ", b"POST /v1/rank?"])
@pytest.mark.parametrize("filling", [b"a" * 1024, b"a: b\r\n" * 170])
def test_heads_are_bounded(server: Running, first: bytes, filling: bytes) -> None:
    process = Path(f"/proc/{server.process.pid}")
    (process / "clear_refs").write_text("5")
    resident, ticks = memory(process, "VmRSS"), spent(process)
    callers = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(8)]
    for caller in callers:
        with contextlib.suppress(ConnectionError, TimeoutError):
            caller.sendall(first)
            for _ in range(1 << 10):
                caller.sendall(filling)
    for caller in callers:
        with contextlib.suppress(ConnectionError):
            assert caller.recv(64)[:12] in (b"HTTP/1.1 414", b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
        caller.close()
    assert memory(process, "VmHWM") - resident < 16 << 20
    assert spent(process) - ticks < 1000


def test_a_body_is_not_read_before_its_key(apps: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.shop]\nsha256 = "{hashlib.sha256(b"key").hexdigest()}"\n')
    body = RANK["candidates that nobody knows"](LARGE)
    with running(apps, "--keys", keys) as server:
        server.wait_ready()
        for path in ROUTES:
            status, ms, nbytes = cost(server, path, body, **{"X-API-Key": "another"})
            assert (status, ms < 100, nbytes < 4 << 20) == (401, True, True), (path, ms, nbytes)
        for path in ("/v1/status", "/nowhere"):
            assert cost(server, path, body)[1] < 100


def test_a_ranking_enters_few_files(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files to open to follow `POST /v1/rank` from the ASGI application to the scores."""
    monkeypatch.setattr("random.random", lambda: 1.0)  # no request of the sample of unseen values
    package, files = Path(widedeep.__file__).parent, set()

    def note(frame: FrameType, event: str, _: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and package in file.parents:
            files.add(file.relative_to(package).as_posix())

    body = {"user": USER, "candidates": ITEMS}
    for _ in range(3):
        assert local.post("/v1/rank", body).status == 200
    sys.setprofile(note)
    try:
        assert local.post("/v1/rank", body).status == 200
    finally:
        sys.setprofile(None)
    assert len(files) <= 9, " ".join(sorted(files))  # and that of the connection
