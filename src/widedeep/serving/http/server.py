"""One serving process: registries, service, socket and event loop; readiness and draining."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from widedeep import traces
from widedeep.errors import ConfigError
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.config import LogConfig, ServeConfig, Settings
from widedeep.serving.http.app import App
from widedeep.serving.http.auth import load_keys
from widedeep.serving.http.native_server import NativeConnections, NativeOwner, can_serve_natively
from widedeep.serving.http.protocol import connections_of
from widedeep.serving.http.service import Models, Ranked, Service
from widedeep.serving.impression_files import Retention
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.registry import Registry
from widedeep.serving.supervisor import METRICS_DIRECTORY, Worker, bind_alone, bind_port

_RESERVED_DESCRIPTORS = 256  # for models, logs and other files


def open_impression_log(config: LogConfig, monitor: ThreadMonitor) -> ImpressionLog:
    """Return the log, ready to be offered requests."""
    key = None
    if config.hash_key_file is not None:
        try:
            key = Path(config.hash_key_file).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{config.hash_key_file}: {error.strerror}; name a file of 16 to 64 random bytes"
            ) from error
    seconds = None if config.days is None else config.days * 86_400.0
    return ImpressionLog(
        config.directory,
        user_id=config.user_id,
        columns=config.columns,
        sample=config.sample,
        hash_users=key,
        retention=Retention(seconds=seconds, nbytes=config.nbytes),
        when_full=config.when_full,
        kafka=dict(setting.split("=", 1) for setting in config.kafka or ()),
        monitor=monitor,
    )


def run_worker(
    worker: Worker,
    config: ServeConfig,
    on_listening: Callable[[int, int | None], None] | None = None,
) -> None:
    """Serve until SIGTERM; every process of a server runs this."""
    settings, shared = _within_descriptors(config.settings), worker.count > 1
    traces.follow_environment(lambda line: None)  # the command that started it told
    monitor = ThreadMonitor()
    several = len(config.models) > 1
    registries = {
        name: Registry(path, options=config.registry, monitor=monitor, name=name if several else "")
        for name, path in config.models.items()
    }
    service = Service(
        models=Models(registries),
        settings=settings,
        keys=load_keys(settings),
        threads=config.registry.threads,
        monitor=monitor,
    )
    # Longer slices for other threads would hold up every request while a version loads.
    sys.setswitchinterval(0.001)
    with ExitStack() as stack:
        # SO_REUSEPORT would hide that another server has the port.
        bind = bind_port if shared else bind_alone
        listening = stack.enter_context(bind(settings.host, settings.port))
        # The first process listens from its start, if only to answer that it is not ready. Others,
        # and replacements of dead ones, join the port once every model is loaded.
        joins = worker.index > 0 or worker.replaces
        if not joins:
            listening.listen()
        for registry in registries.values():
            stack.enter_context(registry)
        if joins:
            _wait_ready(worker, registries)
        elif shared:
            monitor.start("start", lambda: _wait_ready(worker, registries), stuck_s=float("inf"))
        if config.on_ready is not None and not joins:
            report_ready = partial(_report_ready, config, registries, listening.getsockname()[1])
            monitor.start("ready", report_ready, stuck_s=float("inf"))
        if config.log is not None:
            _log_impressions(service, stack.enter_context(open_impression_log(config.log, monitor)))
        on_drain, grpc_port = _start_grpc(service, config, shared, stack)
        if on_listening is not None:
            on_listening(listening.getsockname()[1], grpc_port)
        service.log.event("started", worker=worker.index, models=list(registries))
        serve(service, listening, on_drain=on_drain)
        service.log.event("stopped", worker=worker.index)
    service.scheduler.close()


def _within_descriptors(settings: Settings) -> Settings:
    """Raise the limit of open files, and reserve some of them: models are files, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = settings.max_connections + _RESERVED_DESCRIPTORS
    limit = max(soft, descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    max_connections = max(1, limit - min(_RESERVED_DESCRIPTORS, limit // 2))
    return replace(settings, max_connections=min(settings.max_connections, max_connections))


def _wait_ready(worker: Worker, registries: Mapping[str, Registry]) -> bool:
    """Wait until every model is loaded, here and in the first process, which writes a mark."""
    for registry in registries.values():
        registry.wait_ready()
    first_is_ready = Path(os.environ[METRICS_DIRECTORY]) / "first-is-ready"
    if worker.index == 0:
        first_is_ready.touch()
    while not first_is_ready.exists():
        time.sleep(0.02)
    return False


def _report_ready(config: ServeConfig, registries: Mapping[str, Registry], port: int) -> bool:
    """Call `on_ready` once every model is loaded; return False to end the thread."""
    for registry in registries.values():
        registry.wait_ready()
    assert config.on_ready is not None
    config.on_ready(config, port)
    return False


def _log_impressions(service: Service, log: ImpressionLog) -> None:
    def offer(ranked: Ranked) -> None:
        log.offer(ranked, time_us=ranked.time_us, catalogue=ranked.catalogue)

    log.on_counts(service.metrics.logged)
    service.impressions = log
    service.on_ranked, service.on_dropped = offer, log.missed


def _start_grpc(
    service: Service, config: ServeConfig, shared: bool, stack: ExitStack
) -> tuple[Callable[[], None] | None, int | None]:
    if config.grpc is None:
        return None, None
    from widedeep.serving.grpc import GrpcServer

    server = GrpcServer(service, config.grpc, shared=shared)
    server.start()
    grace_s = service.settings.drain_s
    stopping: list[threading.Thread] = []

    def stop() -> None:
        thread = threading.Thread(target=server.stop, args=(grace_s,), name="widedeep-grpc-stop")
        thread.start()
        stopping.append(thread)

    def wait() -> None:
        if stopping:
            stopping[0].join(grace_s + 1.0)
        else:
            server.stop(0.0)

    stack.callback(wait)
    return stop, server.port


_BACKLOG = 2048
_TICKS_PER_KEY_CHECK = 10  # of a tenth of a second


def serve(
    service: Service, listening: socket.socket, *, on_drain: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
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
    """uvicorn's server, behind a native server where there can be one."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        listening: socket.socket,
        on_drain: Callable[[], None] | None,
    ) -> None:
        super().__init__(config)
        self._service, self._listening, self._on_drain = service, listening, on_drain
        self._native: NativeConnections | None = None
        self._stop_at = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, through a native server if there can be one."""
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_files)
        if not can_serve_natively(self._service):
            await super().startup(sockets)
            return
        await super().startup([])
        self._native = native = NativeConnections(self._service, self._listening)
        native.start(self._connection)

    def _connection(self, owner: NativeOwner, read: bytes) -> asyncio.Protocol:
        return self._new_connection(owner=owner, read=read)

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
        """Let requests finish before the port is closed; new connections are served meanwhile."""
        end = time.monotonic() + float(self._service.settings.drain_s)
        before = list(self.server_state.connections)
        for connection in before:
            connection.shutdown()

        def is_waiting() -> bool:
            connections = self.server_state.connections
            is_over = self.force_exit or time.monotonic() > end
            return not is_over and any(connection in connections for connection in before)

        native = self._native
        if native is not None:
            await native.drain(end, lambda: self.force_exit, is_waiting)
        while is_waiting():
            await asyncio.sleep(0.02)
        await self._close_port()
        self.config.timeout_graceful_shutdown = max(1, int(end - time.monotonic()))
        await super().shutdown(sockets)
        if native is not None:
            native.stop()

    async def _close_port(self) -> None:
        """Close the listening socket, and serve the connections that it has queued."""
        last = []
        with contextlib.suppress(OSError):  # none is queued any more
            while True:
                last.append(self._listening.accept()[0])
        self._listening.close()
        for server in self.servers:
            server.close()
        for connection in last:
            connection.setblocking(False)
            if self._native is not None:
                self._native.accept_handoff(connection.detach())
                continue
            with contextlib.suppress(OSError):  # closed by the caller
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._new_connection, connection
                )
        if self._native is not None:
            await self._native.finish(lambda: self.force_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain; at a second signal, stop waiting."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        if self._native is not None:
            self._native.announce_end()
        delay_s = 0.0 if sig == signal.SIGINT else self._service.settings.drain_delay_s
        self._stop_at = time.monotonic() + delay_s
        if self._on_drain is not None:
            self._on_drain()

    async def on_tick(self, counter: int) -> bool:
        """Check the file of keys; stop when the drain delay is over."""
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        if counter % _TICKS_PER_KEY_CHECK == 0:
            self._service.reload_keys()
        return await super().on_tick(counter)

    def _reload_files(self) -> None:
        """Read the keys and the TLS certificate again; new connections use them."""
        settings, log = self._service.settings, self._service.log
        self._service.reload_keys(force=True)
        if self.config.ssl is not None and settings.tls_certificate is not None:
            try:
                self.config.ssl.load_cert_chain(settings.tls_certificate, settings.tls_key)
            except (OSError, ssl.SSLError) as error:
                log.event("TLS certificate not read", error=str(error))
