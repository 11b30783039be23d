"""How these tests call the server: in this process without a socket, or a real one."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from widedeep.serving.http import App, Models, Service, Settings
from widedeep.serving.registry import Registry


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Local:
    """The application of this process, called as a server would."""

    def __init__(self, registries: Mapping[str, Registry], **options: Any) -> None:
        settings = options.pop("settings", Settings(request_log="none"))
        self.service = Service(models=Models(registries), settings=settings, **options)
        self.app = App(self.service)

    def call(
        self,
        method: str,
        path: str,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        sent: list[Any] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, sent[1]["body"])

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.call("POST", path, body, headers)

    def get(self, path: str) -> Answer:
        return self.call("GET", path)


class Running(NamedTuple):
    process: subprocess.Popen[str]
    port: int
    grpc: str | None
    started: float

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, dict(headers or {}))
            got = connection.getresponse()
            return Answer(got.status, dict(got.getheaders()), got.read())

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError):
                if self.call("GET", "/health/ready").status == 200:
                    return
            assert self.process.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server was never ready"
            time.sleep(0.02)


@contextlib.contextmanager
def running(*words: object, log: Path | None = None) -> Iterator[Running]:
    """Run `widedeep serve` on a free port of loopback, and end it in the end."""
    command = [sys.executable, "-m", "widedeep", "serve", "--http", ":0", "--json"]
    path = os.pathsep.join(filter(None, ["src", os.environ.get("PYTHONPATH")]))
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        err = subprocess.DEVNULL if log is None else stack.enter_context(log.open("w"))
        process = subprocess.Popen(
            [*command, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the server ended before it listened"
            told = json.loads(line)
            port = int(told["http"].rpartition(":")[2])
            yield Running(process, port, told["grpc"], started)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # as SIGTERM, without a delay
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
