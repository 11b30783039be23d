"""Connections: uvicorn's, with a place in the queue for each request and an end to slow ones."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from widedeep.serving.http.call import ARRIVED, TICKET
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import Service

__all__ = ["FULL", "LATE_HEAD", "Connection", "Taker", "connections_of", "last_words"]


def last_words(status: str, error: HttpError) -> bytes:
    """Return a whole answer after which the connection is closed.

    Args:
        status: With its phrase.
        error: What it says.
    """
    body = error.body()
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", "connection: close"]
    if error.retry_after is not None:
        lines.append(f"retry-after: {error.retry_after}")
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LATE_HEAD = last_words(
    "408 Request Timeout",
    HttpError(408, "the request's head did not come in time; send it at once"),
)
FULL = last_words(
    "503 Service Unavailable",
    HttpError(503, "too many connections; try again later", retry_after=1),
)


def connections_of(service: Service) -> Any:
    """Return what makes a connection of a server; uvicorn's ``http`` option."""
    return partial(Connection, service)


class Taker(Protocol):
    """Takes connections back that were handed over to this server; the native front."""

    def give_back(self, transport: asyncio.Transport) -> None:
        """Take one, between two requests."""

    def lost(self) -> None:
        """Note that one was closed."""


class Connection(HttpToolsProtocol):
    """A connection that must send its request in time, and asks for a place when it has.

    A place in the queue is taken at the moment the whole request has been read, before its task
    runs: so the queue counts those that wait for the processor, and a body that trickles in holds
    nothing but its connection.

    Args:
        service: Its settings and its queue.
        taker: Who handed it over, and takes it back after an answer; None: nobody did.
        read: What was read of it already.
        arguments: uvicorn's.
    """

    def __init__(
        self, service: Service, *, taker: Taker | None = None, read: bytes = b"", **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._service = service
        self._taker, self._read = taker, read
        self._within_message = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        if self._taker is None and len(self.connections) > self._service.settings.max_connections:
            transport.write(FULL)
            transport.close()
            return
        self._await_head()
        if self._read:
            self.data_received(self._read)
            self._read = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._got_head()
        super().connection_lost(exc)
        if self._taker is not None:
            self._taker.lost()

    def on_message_begin(self) -> None:
        """Begin to wait for a request's head."""
        super().on_message_begin()
        self._within_message = True
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Note when the request came."""
        self._got_head()
        scope: Any = self.scope
        scope[ARRIVED] = time.monotonic()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take a place in the queue, unless the request has been answered already.

        A request that was sent before the one ahead of it is answered takes its place when its turn
        comes: else a caller that reads no answer could hold them all.
        """
        scope: Any = self.scope
        if scope["method"] == "POST" and TICKET not in scope and not self.pipeline:
            scope[TICKET] = self._service.admission.enter()
        self._within_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the caller to take the answer, or give the connection back."""
        may_go = not (self.pipeline or self._within_message)
        super().on_response_complete()
        if may_go and self._taker is not None and self._is_at_rest():
            taker, self._taker = self._taker, None
            taker.give_back(self.transport)
            return
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            timeout = self._service.settings.write_timeout_s
            self.loop.call_later(timeout, self._abort_unread)

    def _is_at_rest(self) -> bool:
        return (
            self.cycle.keep_alive
            and not self._service.draining
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    def _abort_unread(self) -> None:
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that has been idle; one that does not even read is cut off."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
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
            self.transport.write(LATE_HEAD)
            self.transport.close()
