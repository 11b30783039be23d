"""The server of one process: its socket, its loop, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from widedeep.errors import ConfigError
from widedeep.serving.http.app import App
from widedeep.serving.http.native_server import Lent, NativeFront, can_serve_natively
from widedeep.serving.http.protocol import connections_of
from widedeep.serving.http.service import Service

_BACKLOG = 2048
_KEYS_EVERY = 10  # ticks of a tenth of a second


def serve(
    service: Service, listening: socket.socket, *, on_drain: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then let requests finish."""
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
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reread)
        if not can_serve_natively(self._service):
            await super().startup(sockets)
            return
        await super().startup([])
        self._front = front = NativeFront(self._service, self._listening)
        front.start(self._connection)

    def _connection(self, lent: Lent, read: bytes) -> asyncio.Protocol:
        return self._new_connection(taker=lent, read=read)

    def _new_connection(self, **options: Any) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
            **options,
        )
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish, and only then close the port: who connects meanwhile is served."""
        end = time.monotonic() + float(self._service.settings.drain_s)
        before = list(self.server_state.connections)
        for connection in before:
            connection.shutdown()

        def is_waiting() -> bool:
            there = self.server_state.connections
            is_over = self.force_exit or time.monotonic() > end
            return not is_over and any(connection in there for connection in before)

        front = self._front
        if front is not None:
            await front.drain(end, lambda: self.force_exit, is_waiting)
        while is_waiting():
            await asyncio.sleep(0.02)
        await self._close_port()
        self.config.timeout_graceful_shutdown = max(1, int(end - time.monotonic()))
        await super().shutdown(sockets)
        if front is not None:
            front.stop()

    async def _close_port(self) -> None:
        """Close the listening socket, and serve those who had connected until then."""
        last = []
        with contextlib.suppress(OSError):  # there is none left
            while True:
                last.append(self._listening.accept()[0])
        self._listening.close()
        for server in self.servers:
            server.close()
        for connection in last:
            connection.setblocking(False)
            if self._front is not None:
                self._front.adopt(connection.detach())
                continue
            with contextlib.suppress(OSError):  # gone already
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._new_connection, connection
                )
        if self._front is not None:
            await self._front.finish(lambda: self.force_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, stop waiting."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        if self._front is not None:
            self._front.announce_end()
        delay_s = 0.0 if sig == signal.SIGINT else self._service.settings.drain_delay_s
        self._stop_at = time.monotonic() + delay_s
        if self._on_drain is not None:
            self._on_drain()

    async def on_tick(self, counter: int) -> bool:
        """Look after the keys' file, and stop once load balancers have had their time."""
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        if counter % _KEYS_EVERY == 0:
            self._service.reload_keys()
        return await super().on_tick(counter)

    def _reread(self) -> None:
        """Read again what an operator may have changed; new connections see it."""
        settings, log = self._service.settings, self._service.log
        self._service.reload_keys(force=True)
        if self.config.ssl is not None and settings.tls_certificate is not None:
            try:
                self.config.ssl.load_cert_chain(settings.tls_certificate, settings.tls_key)
            except (OSError, ssl.SSLError) as error:
                assert log is not None
                log.event("TLS certificate not read", error=str(error))
