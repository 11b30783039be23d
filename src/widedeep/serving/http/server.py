"""The server of one process: its socket, its loop, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from widedeep.errors import ConfigError
from widedeep.serving.http.app import App
from widedeep.serving.http.front import NativeFront, can_serve_natively
from widedeep.serving.http.protocol import connections_of
from widedeep.serving.http.service import Service

__all__ = ["serve"]

_BACKLOG = 2048


def serve(
    service: Service, listening: socket.socket, *, on_drain: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then let requests finish.

    Ready goes false at once. For ``lame_duck_s`` seconds new connections are still served; then
    the socket is closed, answers close their connections, and what runs has ``drain_s`` seconds.
    A second signal ends the waiting.

    Args:
        service: What is served.
        listening: A bound socket.
        on_drain: Called when a signal asks to stop.

    Raises:
        ConfigError: If the TLS files cannot be used.
    """
    config = _config(service)
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    _DrainingServer(config, service, listening, on_drain).run(sockets=[listening])


def _config(service: Service) -> uvicorn.Config:
    settings = service.settings
    try:
        config = uvicorn.Config(
            App(service),
            http=connections_of(service),
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=int(settings.idle_timeout_s),
            timeout_graceful_shutdown=int(settings.drain_s),
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=settings.tls_client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
        )
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS: {error}; check the certificate and its key") from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


class _DrainingServer(uvicorn.Server):
    """uvicorn's, behind the native front where there can be one."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        listening: socket.socket,
        on_drain: Callable[[], None] | None,
    ) -> None:
        super().__init__(config)
        self._service, self._listening, self._on_drain = service, listening, on_drain
        self._front: NativeFront | None = None
        self._stop_at = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen: the native front if there can be one, which hands connections over."""
        if not can_serve_natively(self._service):
            await super().startup(sockets)
            return
        await super().startup([])
        self._front = front = NativeFront(self._service, self._listening)
        front.start(partial(self._connection, front))

    def _connection(self, front: NativeFront, read: bytes) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
            taker=front,
            read=read,
        )
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish; those at the native front first, which may yet hand some over."""
        front, begun = self._front, time.monotonic()
        if front is None:
            await super().shutdown(sockets)
            return
        grace = float(self._service.settings.drain_s)
        await front.drain(grace, lambda: self.force_exit)
        left = grace - (time.monotonic() - begun)
        self.config.timeout_graceful_shutdown = max(1, int(left))
        await super().shutdown(sockets)
        front.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, stop waiting."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        if self._front is not None:
            self._front.announce_end()
        self._stop_at = time.monotonic() + self._service.settings.lame_duck_s
        if self._on_drain is not None:
            self._on_drain()

    async def on_tick(self, counter: int) -> bool:
        """Stop accepting once the lame duck's time is over."""
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)
