"""The server of one process: its socket, its loop, and how it ends."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from widedeep.errors import ConfigError
from widedeep.serving.http.app import App
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
    _DrainingServer(config, service, on_drain).run(sockets=[listening])


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
    def __init__(
        self, config: uvicorn.Config, service: Service, on_drain: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._service, self._on_drain = service, on_drain
        self._stop_at = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, stop waiting."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        self._stop_at = time.monotonic() + self._service.settings.lame_duck_s
        if self._on_drain is not None:
            self._on_drain()

    async def on_tick(self, counter: int) -> bool:
        """Stop accepting once the lame duck's time is over."""
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)
