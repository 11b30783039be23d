"""Call: one request as the endpoints see it, and the Reply they give."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import msgspec

from widedeep.serving.http.errors import HttpError, bad_json
from widedeep.serving.http.settings import Settings

Message: TypeAlias = MutableMapping[str, Any]
Shape = TypeVar("Shape")

ARRIVED = "widedeep.arrived"
TICKET = "widedeep.ticket"
"""What the protocol knows before the application runs: when the request came, and whether it got a
place in the queue."""

JSON = b"application/json"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Two readers of a request with two of them could each believe another one.
_SINGLE = {
    *(b"authorization", b"content-encoding", b"content-type", b"host", b"origin", b"x-api-key"),
    *(b"inference-header-content-length", b"x-request-id", b"x-request-timeout-ms"),
}
_MOST_INFLATED = 64
_FREELY_INFLATED = 64 << 10
_encoder = msgspec.json.Encoder()


class Disconnected(Exception):
    """The caller is gone; nobody waits for an answer."""


@dataclass(slots=True)
class Reply:
    """An answer."""

    body: bytes  # Its bytes
    status: int = 200  # The HTTP status
    media_type: bytes = JSON  # Of the body
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # Beside those of every answer


def json_reply(value: object, status: int = 200) -> Reply:
    """Return an answer in JSON."""
    try:
        return Reply(_encoder.encode(value), status)
    except UnicodeEncodeError as error:
        raise bad_json(error) from error


class Call:
    """One request."""

    __slots__ = (
        *(
            "_body",
            "_receive",
            "_settings",
            "arrived",
            "caller",
            "deadline",
            "headers",
            "method",
            "model",
        ),
        *("params", "path", "request_id", "rows", "scope", "version"),
    )

    def __init__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], settings: Settings
    ) -> None:
        self.scope, self._receive, self._settings = scope, receive, settings
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name: value for name, value in scope["headers"]}
        self.params: dict[str, str] = {}
        self.arrived: float = scope.get(ARRIVED) or time.monotonic()
        given = self.header(b"x-request-id")
        self.request_id = given if given and _ID.fullmatch(given) else uuid.uuid4().hex
        self.deadline = self.arrived + settings.deadline_ms / 1e3
        self.model: str | None = None
        self.version: str | None = None
        self.caller: str | None = None
        self.rows = 0
        self._body: bytes | None = None

    def check_headers(self) -> None:
        """Refuse a header twice of which there may be one."""
        given = self.scope["headers"]
        if len(self.headers) == len(given):
            return
        seen: set[bytes] = set()
        for name, _ in given:
            if name in seen and name in _SINGLE:
                raise HttpError(400, f"got the header {name.decode()} twice; send it once")
            seen.add(name)

    def header(self, name: bytes) -> str | None:
        """Return a header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def read_deadline(self) -> None:
        """Take the caller's word for how long it will wait."""
        text = self.header(b"x-request-timeout-ms")
        if text is None:
            return
        try:
            wait_ms = float(text)
        except ValueError:
            wait_ms = 0.0
        if not wait_ms > 0:
            raise HttpError(
                400, f"header X-Request-Timeout-Ms: got {text!r}, expected milliseconds above 0"
            )
        self.deadline = self.arrived + min(wait_ms, self._settings.longest_deadline_ms) / 1e3

    async def body(self) -> bytes:
        """Return the body, decompressed."""
        if self._body is None:
            self._body = await self._read()
        return self._body

    async def _read(self) -> bytes:
        limit = self._settings.max_body
        length = self.headers.get(b"content-length", b"0")
        if len(length) > 15 or int(length) > limit:
            raise self._too_large()
        body = await self._whole()
        if len(body) > limit:
            raise self._too_large()
        encoding = self.headers.get(b"content-encoding")
        if encoding is None or encoding == b"identity":
            return body
        return self._decompressed(body, encoding.decode("latin-1"))

    async def _whole(self) -> bytes:
        if self.scope.get(TICKET) is None:
            return await self._trickling()
        message = await self._receive()  # it is all there
        if message["type"] == "http.disconnect":
            raise Disconnected
        body: bytes = message.get("body", b"")
        return body

    async def _trickling(self) -> bytes:
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._settings.max_body:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise late_body(self._settings.body_timeout_s) from error
        return b"".join(chunks)

    def _too_large(self) -> HttpError:
        return HttpError(
            413,
            f"got a body of more than {self._settings.max_body} bytes; send fewer candidates",
            close=True,
        )

    def _decompressed(self, body: bytes, encoding: str) -> bytes:
        # 15 + 32: zlib's or gzip's own header, whichever comes.
        window = {"gzip": 15 + 32, "deflate": 15 + 32}.get(encoding.lower())
        if window is None:
            raise HttpError(
                415, f"got Content-Encoding {encoding!r}, expected identity, gzip or deflate"
            )
        inflate = zlib.decompressobj(window)
        limit = min(self._settings.max_body, _MOST_INFLATED * len(body) + _FREELY_INFLATED)
        try:
            found = inflate.decompress(body, limit + 1)
        except zlib.error as error:
            raise HttpError(400, f"got a body that is no {encoding} ({error})") from error
        if len(found) > self._settings.max_body:
            raise self._too_large()
        if len(found) > limit:
            raise HttpError(
                413,
                f"got {len(body)} bytes of {encoding} that become more than {limit}, "
                f"{_MOST_INFLATED} times their size; send the body as it is",
            )
        if not inflate.eof:
            raise HttpError(400, f"got a {encoding} body that ends too early; send all of it")
        if inflate.unused_data:
            raise HttpError(400, f"got bytes behind the end of a {encoding} body; send one stream")
        return found

    async def json(self, decoder: msgspec.json.Decoder[Shape]) -> Shape:
        """Return the body as a decoder reads it."""
        self.check_media_type(b"application/json")
        return decode(await self.body(), decoder)

    def check_media_type(self, *known: bytes) -> None:
        """Raise the answer 415 for a body of another type."""
        given = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if given and given not in known and given != b"application/x-www-form-urlencoded":
            names = " or ".join(name.decode() for name in known)
            got = given.decode("latin-1")
            raise HttpError(415, f"got Content-Type {got!r}, expected {names}")


def late_body(seconds: float) -> HttpError:
    """The answer to a request whose body did not come in that time."""
    message = f"the body did not come within {seconds:g} s; send it whole"
    return HttpError(408, message, close=True)


def decode(body: bytes, decoder: msgspec.json.Decoder[Shape]) -> Shape:
    """Read a body."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise bad_json(error) from error
