"""Mutated requests: a server answers each whole request once, refuses the rest, and stays up.

    python -m tests.fuzz.fuzz_front --cases 10000           # from the repository's root
    python -m tests.fuzz.fuzz_front --case 4711             # one case: what was sent, what came

A case takes one to three sound requests of any route, changes bytes, lines, headers, lengths or the
body, cuts them into parts and sends them on one connection, whose sending side it then closes. The
same bytes go to a server whose native server answers rankings and to one where Python answers all;
callers need a key of both.
Findings: a server that ends, a 500, an answer that is not whole, statuses or scores that differ
between the two, a connection that is left open, and memory that grows.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import re
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.serving.http.calls import Running, running
from tests.serving.versions import ITEMS, USER, publish, write_items

KEY = b"X-API-Key: a key"
PATIENCE_S = 5.0
GROWTH = 256 << 20
RANK = {"user": USER, "candidates": ITEMS[:3]}
ROW = {**USER, "app": "maps", "price": 1.5}
TENSOR = {"name": "age", "datatype": "FP64", "shape": [1, 1], "data": [20.5]}
TEXTS = {"name": "app", "datatype": "BYTES", "shape": [3], "data": ITEMS[:3]}
PRICES = {"name": "price", "datatype": "FP64", "shape": [3], "data": [1, 2.5, None]}
USERS = {"name": "user", "datatype": "BYTES", "shape": [3, 1], "data": ["bo", "x", ""]}
LENGTH = "Inference-Header-Content-Length"  # of a request whose tensors follow as bytes


def with_bytes(**parameters: bool) -> bytes:
    """Tensors as bytes behind the JSON that says what they are."""
    prices, texts = struct.pack("<3d", 1, 2.5, 60), [text.encode() for text in ITEMS[:3]]
    names = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    inputs: list[dict[str, object]] = [
        {**about, "parameters": {"binary_data_size": len(data)}}
        for about, data in ((PRICES, prices), (TEXTS, names))
    ]
    for about in inputs:
        del about["data"]
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode() + prices + names


SEEDS: tuple[tuple[str, str, object], ...] = (
    ("POST", "/v1/rank", RANK),
    ("POST", "/v1/rank", {**RANK, "k": 2, "context": {}}),
    ("POST", "/v1/models/apps:rank", RANK),
    ("POST", "/v1/models/apps/versions/1:rank", RANK),
    ("POST", "/v1/rank", {**RANK, "explain": True}),
    ("POST", "/v1/models/apps:predict", {"instances": [ROW]}),
    ("POST", "/v1/models/apps:classify", {"examples": [ROW]}),
    ("POST", "/v1/rank", {"user": USER, "items": {"app": ITEMS[:3], "price": [1, 2.5, None]}}),
    ("POST", "/v1/rank", {**RANK, "candidates": [*ITEMS[:3], "new", 7], "request_id": "r"}),
    ("POST", "/v2/models/apps/infer", {"inputs": [TENSOR]}),
    ("POST", "/v2/models/apps/infer", {"inputs": [TEXTS, PRICES, USERS], "id": "r"}),
    ("POST", "/v2/models/apps/infer", with_bytes(binary_data_output=False)),
    ("POST", "/v2/models/apps/infer", with_bytes(binary_data_output=True)),
    ("GET", "/v2/models/apps", None),
    ("GET", "/v1/models/apps", None),
    ("GET", "/health/ready", None),
    ("GET", "/nowhere", None),
)
LINES = (
    *(b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 1e3"),
    *(b"Content-Length: 99999999999999999999", b"content-length: 7", b"Content-Length: 5, 5"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Trailer: x"),
    *(
        b"Transfer-Encoding: chunked, identity",
        b"transfer-encoding:\tchunked",
        b"Expect: 100-continue",
    ),
    *(b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Upgrade: h2c"),
    *(b"Connection: content-length", b"Content-Encoding: gzip", b"Content-Encoding: identity"),
    *(b"Host: other", b"Host:", b" folded", b"\tfolded", b"no colon", b"Spaced : name", b": empty"),
    *(
        b"X-Long: " + b"x" * 9000,
        b"X-\x00: nul",
        b"X-High: \xff\xfe",
        b"Accept: */*",
        b"Range: bytes=0-1",
    ),
    *(
        b"Content-Type: text/plain",
        b"Content-Type: application/octet-stream",
        b"X-Request-ID: " + b"i" * 300,
    ),
    *(b"Inference-Header-Content-Length: 10", b"X-Deadline-Ms: 1", b"X-Deadline-Ms: nan"),
)
STARTS = (
    *(
        b"GET",
        b"PUT",
        b"HEAD",
        b"OPTIONS",
        b"post",
        b"PRI",
        b"CONNECT",
        b"P\xc3\xb6ST",
        b"",
        b"POST  ",
    ),
    *(
        b"/v1/rank?x=1",
        b"*",
        b"http://localhost/v1/rank",
        b"/v1/../v1/rank",
        b"//v1/rank",
        b"/%76%31/rank",
    ),
    *(
        b"/v1/rank#x",
        b"/" + b"a" * 9000,
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"HTTP/1.1 ",
        b"HTTP/1,1",
        b"HTTP/0.9",
    ),
)
VALUES = (
    *(
        b"null",
        b"true",
        b"0",
        b"-1",
        b"1e999",
        b"-0",
        b"1E400",
        b"9" * 400,
        b"NaN",
        b"'x'",
        b"[]",
        b"{}",
    ),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b'"' + b"x" * 5000 + b'"',
        b"[" * 2000,
        b'{"a":' * 500,
        b'"\xff"',
        b",",
    ),
    *(
        b'"user":1,',
        b'"k":0,',
        b'"k":1e9,',
        b"18446744073709551616",
        b"/* */",
        b"\xef\xbb\xbf",
        b"\x00",
    ),
)
SCORES = re.compile(rb'"(?:scores|predictions|data)":\[[^\]]*\]')
_NUMBER_OR_TEXT = re.compile(rb'-?\d+(?:\.\d+)?|"[^"]*"|[\[\]{}:,]')


def sound(method: str, target: str, body: object) -> bytes:
    """A request as it should be."""
    payload = body if isinstance(body, bytes) else b""
    if body is not None and not payload:
        payload = json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n".encode() + KEY + b"\r\n"
    if isinstance(body, bytes):
        length = body.rindex(b"}}") + 2
        head += f"{LENGTH}: {length}\r\n".encode()
    if body is not None:
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(payload)
    return head + b"\r\n" + payload


def mutated(rng: random.Random, request: bytes) -> bytes:
    """Change a request once."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    way = rng.randrange(12)
    if way == 0:  # any byte
        at = rng.randrange(len(request))
        return request[:at] + bytes([rng.randrange(256)]) + request[at + 1 :]
    if way == 1:  # cut
        return request[: rng.randrange(1, len(request) + 1)]
    if way in (2, 3):  # another header
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(LINES))
    elif way == 4:  # a header twice, or gone
        at = rng.randrange(len(lines))
        if rng.random() < 0.5:
            lines.insert(at, lines[at])
        else:
            del lines[at]
    elif way == 5:  # the first line
        words = lines[0].split(b" ")
        words[rng.randrange(len(words))] = rng.choice(STARTS)
        lines[0] = b" ".join(words)
    elif way == 6:  # ends of lines
        return request.replace(
            b"\r\n", rng.choice((b"\n", b"\r", b"\r\n\r\n", b"\r\r\n")), rng.choice((1, -1))
        )
    elif way == 7:  # chunks
        size = max(1, len(body) // rng.choice((1, 2, 7)))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        more = rng.choice((b"", b";x=1", b" ", b"\t", b";" + b"e" * 300))
        body = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), more, piece) for piece in pieces)
        body += rng.choice(
            (b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n", b"-1\r\n\r\n", b"ffffffffffffffff1\r\n")
        )
        lines = [
            line for line in lines if rng.random() < 0.2 or not line.startswith(b"Content-Length")
        ]
        lines.append(b"Transfer-Encoding: chunked")
    else:  # the body, with a length that is right
        places = list(_NUMBER_OR_TEXT.finditer(body))
        if places:
            place = rng.choice(places)
            body = body[: place.start()] + rng.choice(VALUES) + body[place.end() :]
        length = b"Content-Length: %d" % len(body)
        lines = [length if line.startswith(b"Content-Length") else line for line in lines]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def parts_of(number: int) -> list[bytes]:
    """Return what a case sends, part by part."""
    rng = random.Random(number)
    stream = b""
    for _ in range(rng.choice((1, 1, 2, 3))):
        request = sound(*rng.choice(SEEDS))
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            request = mutated(rng, request) or b"\r\n"
        stream += request
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.choice((0, 0, 0, 1, 2))))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def exchange(server: Running, parts: list[bytes]) -> tuple[bytes, bool]:
    """Send parts and close the sending side; return what came, and whether the server closed."""
    got = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # refused before it was all sent
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        try:
            while part := connection.recv(1 << 16):
                got += part
        except ConnectionError:
            return got, True
        except TimeoutError:
            return got, False
    return got, True


def answers(got: bytes, parts: list[bytes]) -> list[int]:
    """Return the statuses of a stream of answers.

    Raises:
        ValueError: If an answer is not whole, or is no answer.
    """
    statuses = []
    heads = b"HEAD " in b"".join(parts)
    while got:
        head, end, rest = got.partition(b"\r\n\r\n")
        first = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        if not end or not first:
            raise ValueError(f"no head of an answer: {head[:80]!r}")
        status = int(first[1])
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length and status >= 200 else 0
        if heads and not rest.startswith(b"{") and (not rest or rest.startswith(b"HTTP/1.1 ")):
            size = 0
        if len(rest) < size:
            raise ValueError(f"{len(rest)} of {size} bytes of an answer with status {status}")
        statuses.append(status)
        got = rest[size:]
    return [status for status in statuses if status >= 200]


def agree(one: list[int], other: list[int], shorter_closes: bool) -> bool:
    """Tell whether two servers answered alike.

    They may differ in the last answer: of a request that is cut off or badly framed, one may see
    what is wrong before the other, or answer it before its body has come. Such an answer closes
    the connection, and what follows goes unanswered.
    """
    shorter, longer = sorted((one, other), key=len)
    alike = max(0, len(shorter) - 1)
    is_last = len(longer) <= len(shorter) + 1 or shorter_closes
    return shorter[:alike] == longer[:alike] and is_last


def resident(server: Running) -> int:
    """Return the server's resident memory in bytes."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) << 10  # type: ignore[index]


def finding(servers: list[Running], number: int) -> str | None:
    """Run one case; return what is wrong."""
    parts = parts_of(number)
    told: list[list[int]] = []
    scores: list[list[bytes]] = []
    closes: dict[int, bool] = {}
    for server in servers:
        name = "native" if server is servers[0] else "python"
        got, closed = exchange(server, parts)
        if server.process.poll() is not None:
            return f"the {name} server has ended with {server.process.returncode}"
        try:
            statuses = answers(got, parts)
        except ValueError as error:
            return f"{name}: {error}"
        if not closed:
            return f"{name}: left open after {statuses}"
        if 500 in statuses:
            return f"{name}: {got[:300]!r}"
        told.append(statuses)
        scores.append(SCORES.findall(got))
        closes[len(statuses)] = b"connection: close" in got
    if told[0] == told[1] and scores[0] != scores[1]:
        return f"native {scores[0]}, python {scores[1]}"
    if agree(*told, shorter_closes=closes[min(closes)]):
        return None
    return f"native {told[0]}, python {told[1]}"


@contextlib.contextmanager
def two_servers() -> Iterator[list[Running]]:
    """A server with native threads, and the Python server alone."""
    with tempfile.TemporaryDirectory(prefix="wd-fuzz-") as folder:
        place = Path(folder)
        publish(place / "apps", "1", seed=1)
        write_items(place / "items.parquet")
        keys = place / "keys.toml"
        keys.write_text(f'[keys.shop]\nsha256 = "{hashlib.sha256(KEY[11:]).hexdigest()}"\n')
        words = (place / "apps", "--items", place / "items.parquet", "--item-id", "app")
        words = (*words, "--keys", keys)
        with running(*words) as native, running(*words, "--no-native") as python:
            native.wait_ready()
            python.wait_ready()
            yield [native, python]


def run(cases: int, first: int = 0, report: Callable[[str], None] = print) -> dict[str, int]:
    """Run cases and return how many there were, and how many findings; each is reported."""
    results = {"fine": 0, "findings": 0}
    with two_servers() as servers:
        for server in servers:
            exchange(server, [sound(*seed) for seed in SEEDS])
        before = [resident(server) for server in servers]
        for number in range(first, first + cases):
            wrong = finding(servers, number)
            results["findings" if wrong else "fine"] += 1
            if wrong:
                report(f"case {number}: {wrong}")
            if any(server.process.poll() is not None for server in servers):
                break
        else:
            for server, bytes_before in zip(servers, before, strict=True):
                grown = resident(server) - bytes_before
                if grown > GROWTH:
                    results["findings"] += 1
                    report(f"a server grew by {grown >> 20} MiB")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--case", type=int, help="send this one, and show what came")
    options = parser.parse_args()
    if options.case is not None:
        with two_servers() as servers:
            print(*parts_of(options.case), sep="\n")
            for server in servers:
                print(exchange(server, parts_of(options.case)))
            print(finding(servers, options.case) or "fine")
        return 0
    results = run(options.cases, options.first)
    print(", ".join(f"{count} {outcome}" for outcome, count in results.items()))
    return 1 if results["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
