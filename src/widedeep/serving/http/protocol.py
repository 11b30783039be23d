"""Connections: uvicorn's, with a place in the queue for each request and an end to slow ones."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from widedeep.serving.http.call import ARRIVED, TICKET
from widedeep.serving.http.service import Service

__all__ = ["Connection", "connections_of"]


def _last_words(status: str, message: str, header: str = "") -> bytes:
    body = f'{{"error":"{message}"}}'
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n{header}"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


_LATE = _last_words(
    "408 Request Timeout", "the request's head did not come in time; send it at once"
)
_FULL = _last_words(
    "503 Service Unavailable", "too many connections; try again later", "retry-after: 1\r\n"
)


def connections_of(service: Service) -> Any:
    """Return what makes a connection of a server; uvicorn's ``http`` option."""
    return partial(Connection, service)


class Connection(HttpToolsProtocol):
    """A connection that must send its request in time, and asks for a place when it has.

    A place in the queue is taken at the moment the whole request has been read, before its task
    runs: so the queue counts those that wait for the processor, and a body that trickles in holds
    nothing but its connection.

    Args:
        service: Its settings and its queue.
        arguments: uvicorn's.
    """

    def __init__(self, service: Service, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._service = service
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self._service.settings.max_connections:
            transport.write(_FULL)
            transport.close()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._got_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for a request's head."""
        super().on_message_begin()
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
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the caller to take the answer."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            timeout = self._service.settings.write_timeout_s
            self.loop.call_later(timeout, self._abort_unread)

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
            self.transport.write(_LATE)
            self.transport.close()
