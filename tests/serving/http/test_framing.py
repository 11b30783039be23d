"""Where a request ends: native and Python servers agree, and neither takes a body for a head.

What is sent is answered in its order, whole, and once: whatever headers, halves of connections and
bytes behind a request say.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.http.calls import Running, running
from tests.serving.versions import ITEMS, USER
from widedeep.serving.http.protocol import MAX_HEAD, MAX_HEADERS, MAX_TARGET

KEY = b"X-API-Key: a key"
BODY = json.dumps({"user": USER, "candidates": ITEMS[:3]}).encode()
HIDDEN = b"X-Request-ID: hidden\r\n"


def request(
    *lines: str | bytes,
    target: str = "/v1/rank",
    method: str = "POST",
    body: bytes | None = BODY,
    version: str = "1.1",
) -> bytes:
    """A request with a key, a Host, and the body's length unless there is no body."""
    head = [f"{method} {target} HTTP/{version}".encode(), b"Host: localhost", KEY]
    head += [line.encode() if isinstance(line, str) else line for line in lines]
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + (body or b"")


INNER = request(HIDDEN[:-2])
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def servers(apps: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """A server with native threads, and the Python server alone; callers need keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(f'[keys.shop]\nsha256 = "{hashlib.sha256(KEY[11:]).hexdigest()}"\n')
    words = (apps, "--items", apps.parent / "items.parquet", "--item-id", "app", "--keys", keys)
    with running(*words) as native, running(*words, "--no-native") as python:
        native.wait_ready()
        python.wait_ready()
        yield [native, python]


def exchange(server: Running, parts: list[bytes], *, half_close: bool) -> bytes:
    """Send parts a moment apart; return all that comes until the server closes."""
    got = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # refused before it was all sent
            for part in parts:
                connection.sendall(part)
                if part is not parts[-1]:
                    time.sleep(0.05)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                got += part
    return got


def statuses(got: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", got)]


def both(servers: list[Running], parts: list[bytes], *, half_close: bool = True) -> list[int]:
    """The statuses that both servers give; no answer may be one to hidden bytes."""
    native, python = (exchange(server, parts, half_close=half_close) for server in servers)
    assert b"x-request-id: hidden" not in native + python
    assert statuses(native) == statuses(python), (native, python)
    return statuses(native)


UPGRADES = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "lower case": ("connection: keep-alive, upgrade", "upgrade: h2c"),
    "no connection option": ("Upgrade: h2c",),
    "several": ("Connection: Upgrade", "Upgrade: foo/2, h2c"),
    "twice": ("Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c", "Upgrade: h2c"),
}
ROUTES = {
    "/v1/rank": 200,
    "/v1/models/apps:rank": 200,
    "/v1/models/apps/versions/1:rank": 200,
    "/v1/models/none:rank": 400,
    "/v1/recommend": 400,  # its body is a ranking's
    "/v2/models/apps/infer": 400,
    "/v1/models/apps:predict": 400,
    "/health/live": 405,
    "/nowhere": 404,
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
def test_a_wish_for_another_protocol_is_ignored(
    servers: list[Running], lines: tuple[str, ...], apart: bool
) -> None:
    asked = request(*lines)
    parts = [asked[: -len(BODY)], BODY] if apart else [asked]
    parts += [request(*lines), *([request("Connection: close")] if apart else [])]
    assert both(servers, parts, half_close=not apart) == [200] * (3 if apart else 2)


@pytest.mark.parametrize(("target", "status"), ROUTES.items())
@pytest.mark.parametrize("lines", [UPGRADES["h2c"], UPGRADES["websocket"], ()])
def test_a_body_is_never_a_request(
    servers: list[Running], target: str, status: int, lines: tuple[str, ...]
) -> None:
    asked = request(*lines, target=target, body=INNER)
    status = 400 if status == 200 else status
    assert both(servers, [asked[: -len(INNER)], INNER]) == [status]
    assert both(servers, [asked]) == [status]


READABLE = [
    (request("Transfer-Encoding: chunked", body=None) + CHUNKED, 200),
    (request(f"Content-Length: 000{len(BODY)}", body=None) + BODY, 200),
    (request(f"Content-Length:\t{len(BODY)}\t", body=None) + BODY, 200),
    (request(version="1.0"), 200),
    (request("Connection: keep-alive", version="1.0"), 200),
    (request(target="http://localhost/v1/rank"), 200),
    (request(target="http://localhost"), 405),
    (request(target="http://localhost?a=b", method="GET", body=None), 200),
    (request(target="/v1/rank?" + "q" * 2000), 200),
    (request(target="/v1/rank#part"), 200),
    (request(target="//v1/rank"), 404),
    (request(target="/v1/%72ank"), 200),
    (request(target="/v1/rank/"), 404),
    (request(target="*", method="OPTIONS"), 404),
    (request(method="HEAD", target="/health/live"), 200),
    (request(method="OPTIONS"), 405),
    (request(method="DELETE"), 405),
    (request(method="GET", target="/health/live"), 200),
    (request("Expect: 100-continue"), 200),
    (request("Expect: something else"), 200),
    (request("Content-Type: application/json", "Content-Type: text/plain"), 400),
    (request("Content-Encoding: gzip", "Content-Encoding: identity"), 400),
    (request("Content-Encoding: Identity"), 200),
    (request("Content-Encoding: GZIP", body=gzip.compress(BODY)), 200),
    (request("Trailer: x"), 200),
    (request("A: " + "a" * 15_000, "B: " + "b" * 15_000), 200),
    (request(*(f"A{n}: b" for n in range(MAX_HEADERS - 4))), 200),
    (b"\r\n" + request(), 200),
]
UNREADABLE = [
    (request("Host: other"), 400),
    (request().replace(b"Host: localhost\r\n", b""), 400),
    (request("Transfer-Encoding: chunked"), 400),
    (request("Content-Length: 5"), 400),
    (request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=None), 400),
    (request("Transfer-Encoding: xchunked", body=None) + CHUNKED, 400),
    (request("Transfer-Encoding: chunked, identity", body=None) + CHUNKED, 400),
    (request("Transfer-Encoding : chunked", body=None) + CHUNKED, 400),
    (request("Content-Length: +5", body=None) + b"12345", 400),
    (request("Content-Length: -0", body=None), 400),
    (request("Content-Length: 5,5", body=None) + b"12345", 400),
    (request("Content-Length: 5 5", body=None) + b"12345", 400),
    (request("Content-Length: 0x5", body=None) + b"12345", 400),
    (request("Content-Length:", body=None), 400),
    (request("Content-Length: 99999999999999999999", body=None), 400),
    (request(" folded: 1"), 400),
    (request("A: b", " folded"), 400),
    (request("A : b"), 400),
    (request(": b"), 400),
    (request("A b"), 400),
    (request(b"A: b\x00c"), 400),
    (request(b"A: b\rc"), 400),
    (request(b"A: b\nContent-Type: c"), 400),
    (request().replace(b"\r\n", b"\n"), 400),
    (request(version="2.0"), 505),
    (request(version="1.2"), 400),
    (request(target="/v1/rank?" + "q" * MAX_TARGET), 414),
    (request(target="v1/rank"), 400),
    (request(target="/v1/ra nk"), 400),
    (request(target="http://"), 400),
    (request(target="http://[::1/v1/rank"), 400),
    (request(target="http://localhost:99999/v1/rank"), 400),
    (request(target="localhost:80", method="CONNECT", body=None), 501),
    (request(method="post"), 400),
    (request(method="NONSENSE"), 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    (request("A: " + "a" * MAX_HEAD), 431),
    (request(*(f"A{n}: b" for n in range(MAX_HEADERS))), 431),
]


@pytest.mark.parametrize(("asked", "status"), READABLE)
def test_both_servers_read_a_request_alike(
    servers: list[Running], asked: bytes, status: int
) -> None:
    assert both(servers, [asked]) == [status]
    assert both(servers, [asked[:20], asked[20:]]) == [status]
    is_last = b"HTTP/1.0" in asked
    assert both(servers, [request() + asked + request()]) == [200, status, 200][: 3 - is_last]


@pytest.mark.parametrize(("asked", "status"), UNREADABLE)
def test_both_servers_refuse_alike_and_read_no_further(
    servers: list[Running], asked: bytes, status: int
) -> None:
    assert both(servers, [asked]) == [status]
    assert both(servers, [asked[:20], asked[20:]]) == [status]
    assert both(servers, [request() + asked + INNER]) == [200, status]


def test_names_of_models_are_compared_as_they_are_meant(apps: Path) -> None:
    names = ("a b", "a%20b", "ad\u00e9", "a?b")
    words = [f"{name}={apps}" for name in names]
    with running(*words) as native, running(*words, "--no-native") as python:
        native.wait_ready()
        python.wait_ready()
        both_servers = [native, python]
        asked = ("a%20b", "a%2520b", "ad%C3%A9", "a%3Fb")
        for escaped, name in zip(asked, names, strict=True):
            assert both(both_servers, [infer_of(escaped)]) == [200]
            got = exchange(native, [infer_of(escaped)], half_close=True)
            assert json.loads(got.partition(b"\r\n\r\n")[2])["model_name"] == name
        for raw, status in (("a b", 400), ("ad\u00e9", 400), ("a?b", 405)):
            assert both(both_servers, [infer_of(raw)]) == [status]


def infer_of(model: str) -> bytes:
    age = {"name": "age", "shape": [1], "datatype": "FP64", "data": [1.5]}
    body = json.dumps({"inputs": [age]}).encode()
    return request(target=f"/v2/models/{model}/infer", body=body)


def test_trailers_and_extensions_of_chunks_say_nothing(servers: list[Running]) -> None:
    head = request("Transfer-Encoding: chunked", body=None)
    chunk = b"%x;name=value\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    trailer = b"Content-Encoding: gzip\r\nContent-Type: text/plain\r\n\r\n"
    assert both(servers, [head + chunk + trailer + request()]) == [200, 200]
    keyless = head.replace(KEY, b"X-No-Key: 1")
    assert both(servers, [keyless + chunk + KEY + b"\r\n\r\n"]) == [401]
    for broken in (b"-1\r\n", b"1x\r\n", b"fffffffffffffffff\r\n", b"3\nabc\n"):
        assert both(servers, [head + broken + INNER]) == [400]
    long = b"Trailer: " + b"t" * MAX_HEAD + b"\r\n\r\n"
    assert both(servers, [head + chunk + long]) == [431]


@pytest.mark.parametrize("count", [1, 2, 50, 2000])
@pytest.mark.parametrize("target", ["/v1/rank", "/v1/models/apps/versions/1:rank", "/health/live"])
def test_a_caller_that_sends_no_more_gets_every_answer(
    servers: list[Running], count: int, target: str
) -> None:
    one = request(target=target)
    asked = one if target != "/health/live" else request(target=target, method="GET", body=None)
    assert both(servers, [asked * count]) == [200] * count
    assert both(servers, [asked * count + asked[: len(asked) // 2]]) == [200] * count


def test_answers_before_the_body_end_the_connection(servers: list[Running]) -> None:
    head = request("Content-Length: 5000000", target="/nowhere", body=None)
    for server in servers:
        got = exchange(server, [head, b"x" * 1_000_000, INNER], half_close=False)
        assert statuses(got) == [404]
        assert b"connection: close" in got
    keyless = request(body=INNER).replace(KEY, b"X-No-Key: 1")
    for server in servers:
        got = exchange(server, [keyless[:-5], INNER], half_close=False)
        assert (statuses(got), b"connection: close" in got) == ([401], True)
    head = request("Content-Length: 99999999", "Expect: 100-continue", body=None)
    for server in servers:  # refused by its head alone, and not invited to send the body
        got = exchange(server, [head], half_close=False)
        assert (statuses(got), b"100 Continue" in got) == ([413], False)


def test_refusals_wait_for_the_answers_before_them(servers: list[Running]) -> None:
    slow = request(body=json.dumps({"user": USER, "candidates": ITEMS * 500}).encode())
    chunked = request("Transfer-Encoding: chunked", body=None)
    for end, status in ((b"garbage\r\n\r\n", 400), (chunked + b"zz\r\n", 400)):
        assert both(servers, [slow * 3 + end]) == [200, 200, 200, status]
        assert both(servers, [slow * 3, end], half_close=False) == [200, 200, 200, status]


def test_refusals_are_json(servers: list[Running]) -> None:
    for asked in (b"garbage\r\n\r\n", request("A: " + "a" * MAX_HEAD), request(version="2.0")):
        for server in servers:
            got = exchange(server, [asked], half_close=False)
            head, _, body = got.partition(b"\r\n\r\n")
            assert b"content-type: application/json" in head
            assert json.loads(body)["error"].startswith("got")
