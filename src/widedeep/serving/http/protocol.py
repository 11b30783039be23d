"""HTTP/1.1 connections: uvicorn's, with strict heads, bounded costs, and answers in order."""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import ADMITTED, ARRIVED, Service

MAX_HEAD = 64 << 10
"""Bytes of a request's head, including its trailers."""
MAX_HEADERS = 128
MAX_TARGET = 16 << 10
_SLICE = 4096  # bytes read at a time: no more requests than these hold wait unanswered
_LINGER_S = 2.0
_FIRST_REQUEST_S = 0.2


def final_response(status: str, error: HttpError) -> bytes:
    """Return a complete answer that closes the connection."""
    body = error.body()
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", "connection: close"]
    if error.retry_after is not None:
        lines.append(f"retry-after: {error.retry_after}")
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _refusal(status: str, message: str, retry_after: int | None = None) -> bytes:
    return final_response(status, HttpError(int(status[:3]), message, retry_after=retry_after))


HEADER_TIMEOUT = _refusal(
    "408 Request Timeout", "the request's head did not arrive in time; send it at once"
)
FULL = _refusal("503 Service Unavailable", "too many connections; try again later", 1)
_BAD = _refusal("400 Bad Request", "got bytes that are not an HTTP/1.1 request (RFC 9112)")
_LONG_TARGET = _refusal(
    "414 URI Too Long", f"got a target of more than {MAX_TARGET} bytes; send a shorter one"
)
_LONG_HEAD = _refusal(
    "431 Request Header Fields Too Large",
    f"got a head of more than {MAX_HEAD} bytes or {MAX_HEADERS} headers; send a smaller one",
)
_OTHER_VERSION = _refusal(
    "505 HTTP Version Not Supported", "got another version, expected HTTP/1.1 or HTTP/1.0"
)
_NO_HOST = _refusal(
    "400 Bad Request", "expected exactly one Host header (RFC 9112, 3.2), such as Host: localhost"
)
_TUNNEL = _refusal("501 Not Implemented", "got CONNECT; this server is not a proxy")
_LONG_CHUNKS = _refusal(
    "413 Content Too Large", "got a chunked body that is mostly chunk headers; send larger chunks"
)


def connections_of(service: Service) -> Any:
    """Return the factory of a server's connections, for uvicorn's option ``http``."""
    return partial(Connection, service)


class ConnectionOwner(Protocol):
    """Who handed a connection to this server, and takes it back between two requests."""

    def return_connection(self, transport: asyncio.Transport) -> bool:
        """Take the connection back; return False if it must stay."""

    def lost(self) -> None:
        """Note that the connection was closed."""


class _Position(Enum):
    """The part of a request that the next byte belongs to."""

    between = auto()
    head = auto()
    body = auto()


class _Refused(Exception):
    """Raised in a callback of the parser; its argument is the complete answer."""


class Connection(HttpToolsProtocol):
    """A connection with time limits; a request enters the queue when its body is complete."""

    def __init__(
        self,
        service: Service,
        *,
        owner: ConnectionOwner | None = None,
        read: bytes = b"",
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._service = service
        self._owner, self._unread = owner, read
        self._position, self._is_new = _Position.between, True
        self._head_bytes = self._unfinished_bytes = self._headers_read = self._body_bytes = 0
        self._unanswered = 0  # requests whose heads are read
        self._may_persist = True
        self._upgrades = False  # the head asks for another protocol: ignored
        self._at_eof = False  # the caller sends no more
        self._last_answer: bytes | None = None  # a refusal; nothing more is read
        self._is_lingering = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ---- the connection's life ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        self._outlet: Any = _Outlet(self)
        self._made_at = self.loop.time()
        if self._owner is None and len(self.connections) > self._service.settings.max_connections:
            self._ended("full")
            transport.write(FULL)
            transport.close()
            return
        self._await_head()
        self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers, and tell the owner."""
        self._got_head()
        self.resume_writing()
        super().connection_lost(exc)
        if self._owner is not None:
            self._owner.lost()

    def data_received(self, data: bytes) -> None:
        """Read as many requests as can be answered now."""
        if self._is_lingering or self._last_answer is not None:
            return
        self._unset_keepalive_if_required()
        self._unread = self._unread + data if self._unread else data
        self._read_on()
        if self._head_timer is None and not self._unanswered:
            self._await_head()  # empty lines are no request

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection until its complete requests are answered."""
        self._at_eof = True
        if self._is_lingering or self.scheme == "https":  # TLS has no half-closed connections
            return False
        if not self._unread and self._last_answer is None:
            self._end_input()
        return not self.transport.is_closing()

    def shutdown(self) -> None:
        """Close an idle connection now, another one after its answer."""
        since = self.loop.time() - self._made_at
        if self._is_new and since < _FIRST_REQUEST_S:
            self.loop.call_later(_FIRST_REQUEST_S - since, self.shutdown)
        elif self._position is _Position.between and not self._unread:
            super().shutdown()

    def _read_on(self) -> None:
        """Read on while no request waits for the answer to another one."""
        if self._position is _Position.head and self._head_timer is None:
            self._await_head()
        data, offset = self._unread, 0
        while offset < len(data) and not self.pipeline and self._last_answer is None:
            chunk = data[offset : offset + _SLICE] if len(data) > _SLICE else data
            offset += len(chunk)
            self._read(chunk)
        self._unread = b"" if self._last_answer is not None else data[offset:]
        if self.pipeline:
            self._got_head()  # this server does not read, so the caller is not late
        elif self._at_eof and not self._unread and self._last_answer is None:
            self._end_input()

    def _read(self, chunk: bytes) -> None:
        before, nbytes = self._position, len(chunk)
        try:
            while chunk:
                chunk = self._parse(chunk)
            if before is self._position is _Position.head:
                self._unfinished_bytes += nbytes
                if self._unfinished_bytes - _SLICE > MAX_HEAD:
                    raise _Refused(_LONG_HEAD)
            if before is self._position is _Position.body:
                self._body_bytes += nbytes
                if self._body_bytes > 4 * self._service.settings.max_body + MAX_HEAD:
                    raise _Refused(_LONG_CHUNKS)
        except httptools.HttpParserError as error:
            refused = error.__context__
            self._refuse(refused.args[0] if isinstance(refused, _Refused) else _BAD)
        except _Refused as refused:
            self._refuse(refused.args[0])

    def _parse(self, chunk: bytes) -> bytes:
        """Feed the parser; return the bytes behind a head that asked for another protocol."""
        try:
            self.parser.feed_data(chunk)
        except httptools.HttpParserUpgrade as upgrade:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._upgrades = False
            self.parser.feed_data(self._plain_head())
            return chunk[upgrade.args[0] :]
        return b""

    def _plain_head(self) -> bytes:
        """Return the head once more, without its wish for another protocol (RFC 9110, 7.8)."""
        version, keep = self.scope["http_version"], (b"close", b"keep-alive")
        lines = [self.scope["method"].encode() + b" " + self.url + f" HTTP/{version}".encode()]
        for name, value in self.headers:
            if name == b"connection":
                options = [each.strip() for each in value.lower().split(b",")]
                lines += [b"connection: " + each for each in options if each in keep]
            elif name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _end_input(self) -> None:
        """Drop the request that the end of input cut off, and close after the last answer."""
        self._got_head()
        if self._position is _Position.body:
            self._give_up_newest()
        self._position = _Position.between
        if not self._unanswered:
            self.transport.close()

    def _refuse(self, answer: bytes) -> None:
        """End the connection with a refusal, after the answers to the requests before."""
        self._got_head()
        self._last_answer, self._unread = answer, b""
        if self._position is _Position.body:
            if self.cycle.response_started:
                return  # that answer is the last
            self._give_up_newest()
        if not self._unanswered:
            self._write_last()

    def _give_up_newest(self) -> None:
        """Drop the request whose body is missing or broken, without an answer."""
        broken = self.cycle
        if broken.response_started:
            return
        self._unanswered -= 1
        broken.disconnected = True
        broken.message_event.set()
        if self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline.popleft()

    def _write_last(self) -> None:
        if self._last_answer is not None and not self.transport.is_closing():
            self.transport.write(self._last_answer)
            self.close_after_answer()

    def close_after_answer(self) -> None:
        """Close; a caller that still sends gets time to read the answer first."""
        self._got_head()
        has_all = self._position is _Position.between and not self._unread and not self.pipeline
        can_linger = not self._at_eof and self.transport.can_write_eof()
        self._unread = b""
        self.pipeline.clear()
        if self.transport.get_write_buffer_size():
            self._await_reader()
        if (has_all and self._last_answer is None) or not can_linger:
            self.transport.close()
            return
        self._is_lingering = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    # ---- the parser's callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start to wait for a request's head."""
        super().on_message_begin()
        self._position, self._is_new = _Position.head, False
        self._head_bytes = self._unfinished_bytes = self._headers_read = self._body_bytes = 0
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """Add to the target; refuse one that is too long."""
        super().on_url(url)
        if len(self.url) > MAX_TARGET:
            raise _Refused(_LONG_TARGET)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; those behind a body are ignored."""
        self._headers_read += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._headers_read > MAX_HEADERS or self._head_bytes > MAX_HEAD:
            raise _Refused(_LONG_HEAD)
        if self._position is _Position.head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Note the arrival time, and start to answer."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise _Refused(_OTHER_VERSION)
        scope: Any = self.scope
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _Refused(_NO_HOST)
        if self.parser.should_upgrade():
            scope["method"] = self.parser.get_method().decode()
            scope["http_version"] = self.parser.get_http_version()
            if scope["method"] == "CONNECT":
                raise _Refused(_TUNNEL)
            self._upgrades = True
            return
        target = httptools.parse_url(self.url)  # raises for what is none
        if not target.path:  # a host alone stands for its root (RFC 9112, 3.2.2)
            self.url = b"/?" + (target.query or b"")
        self._got_head()
        scope[ARRIVED] = time.monotonic()
        super().on_headers_complete()
        self._position = _Position.body
        self._unanswered += 1
        cycle = self.cycle
        cycle.transport = self._outlet
        # Before the body is read, an answer is the last: the bytes that follow are not a request.
        self._may_persist, cycle.keep_alive = cycle.keep_alive, False

    def on_message_complete(self) -> None:
        """Take a slot in the queue, unless the request is already answered."""
        if self._upgrades:
            return
        scope: Any = self.scope
        if scope["method"] == "POST" and ADMITTED not in scope and not self.pipeline:
            scope[ADMITTED] = self._service.slots.enter()
        self._position = _Position.between
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._may_persist
        super().on_message_complete()

    # ---- answers --------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Go on with the next request, or close."""
        self._unanswered -= 1
        if self._is_lingering:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self.transport.is_closing():
            return
        self._read_on()
        if self._unanswered or self.transport.is_closing():
            return
        if self._last_answer is not None:
            self._write_last()
        elif self._at_eof:
            self.close_after_answer()
        elif self._owner and self._is_at_rest() and self._owner.return_connection(self.transport):
            self._owner = None

    def _is_at_rest(self) -> bool:
        return (
            self._position is _Position.between
            and not self._unread
            and self.cycle.keep_alive
            and not self._service.draining
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    # ---- timeouts -------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Start the timer of a caller that does not read its answers."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Cancel the timer of a caller that reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _await_reader(self) -> None:
        if self._write_timer is None:
            timeout = self._service.settings.write_timeout_s
            self._write_timer = self.loop.call_later(timeout, self._cut_off)

    def _cut_off(self) -> None:
        self._ended("unread answer")
        self.transport.abort()

    def _ended(self, why: str) -> None:
        self._service.metrics.connections_ended.labels(why).inc()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; cut off one whose caller does not read."""
        if self.transport.get_write_buffer_size():
            self._cut_off()
        else:
            self._ended("idle")
            super().timeout_keep_alive_handler()

    def _await_head(self) -> None:
        timeout = self._service.settings.head_timeout_s
        self._head_timer = self.loop.call_later(timeout, self._head_is_late)

    def _got_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._ended("late head")
            self._refuse(HEADER_TIMEOUT)


class _Outlet:
    """The transport that an answer is written to; closing it lets the caller read the answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_closing = connection.transport.is_closing

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._connection.transport.write(data)

    def close(self) -> None:
        self._connection.close_after_answer()
