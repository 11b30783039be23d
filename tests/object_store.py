"""Servers on loopback: a real one of S3 with a bucket for each test, and one that loses lines."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start the server; return its address."""
    from moto.server import ThreadedMotoServer  # only where it is needed: it takes a second

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a new bucket, with an environment whose credentials may read it."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"widedeep-{next(_NUMBERS)}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    return f"s3://{name}"


class FaultyServer(ThreadingHTTPServer):
    """Files by HTTP or, at any ``s3://`` address, as S3 answers; each fault is switched on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {"ETag": '"1"'}  # Headers that tell versions apart
        self.requests: list[tuple[str, str]] = []  # Methods and ranges
        self.has_ranges = True
        self.n_lost = 0  # Of the next answers, these end after a thousand bytes
        self.status = 200

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, span = self.server, self.headers.get("Range", "")
        server.requests.append((self.command, span))
        body = server.files.get(self.path.partition("?")[0], b"")
        status = server.status if body else 404
        size = len(body)
        if span and server.has_ranges and status == 200:
            first, last = span.removeprefix("bytes=").split("-")
            body, status = body[int(first) : int(last) + 1], 206
        self.send_response(status)
        for name, value in server.tags.items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{size}")
        self.send_header("Content-Length", str(len(body) if status < 300 else 0))
        self.end_headers()
        if self.command == "HEAD" or status >= 300:
            return
        if server.n_lost and len(body) > 1000:
            server.n_lost -= 1
            self.wfile.write(body[:1000])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client hung up
            self.close_connection = True


@pytest.fixture
def faulty_server() -> Iterator[FaultyServer]:
    """Start a server without files."""
    with FaultyServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
