"""One serving process: registries, service, sockets; from a plan that can be pickled."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from widedeep.errors import ConfigError
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.http.auth import Keys
from widedeep.serving.http.server import serve
from widedeep.serving.http.service import Models, Ranked, Service
from widedeep.serving.http.settings import Settings
from widedeep.serving.impression_files import Retention
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.registry import Latest, Registry
from widedeep.serving.supervisor import METRICS_DIRECTORY, Worker, bind_alone, bind_port

_OTHER_FILES = 256


@dataclass(frozen=True, kw_only=True)
class LogPlan:
    """Where and how the server logs what it showed."""

    directory: str  # Where the files go
    user_id: str = "user_id"  # Of the user's values, the one that is the id
    sample: float = 1.0  # Share of the requests
    # The feature columns that may be written; None: all that the model reads
    columns: tuple[str, ...] | None = None
    hash_key_file: str | None = None  # Its bytes key the hash of users' ids; None writes the ids
    days: float | None = None  # Files that are older are deleted; None keeps them
    nbytes: int | None = None  # Beyond, the oldest files are deleted; None keeps them

    def open(self, monitor: ThreadMonitor | None = None) -> ImpressionLog:
        """Return the log, ready to be offered requests."""
        key = None
        if self.hash_key_file is not None:
            try:
                key = Path(self.hash_key_file).read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"{self.hash_key_file}: {error.strerror}; name a file of 16 to 64 random bytes"
                ) from error
        seconds = None if self.days is None else self.days * 86_400.0
        return ImpressionLog(
            self.directory,
            user_id=self.user_id,
            columns=self.columns,
            sample=self.sample,
            hash_users=key,
            retention=Retention(seconds=seconds, nbytes=self.nbytes),
            monitor=monitor,
        )


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """All that a serving process must know."""

    models: dict[str, Path]  # A bundle or a directory of versions, by the model's name
    # Of the server; ``port`` is settled before workers start
    settings: Settings = field(default_factory=Settings)
    items: str | None = None  # The catalogue's Parquet file, for a server of one model
    item_id: str | None = None  # Its column of item ids
    # ``"score"`` or ``"refuse"`` ids that are not in it
    unknown_items: Literal["score", "refuse"] = "score"
    precision: Literal["float32", "bfloat16"] = "float32"  # ``"float32"`` or ``"bfloat16"``
    latest: int = 1  # How many of the newest versions stay loaded
    poll_s: float = 2.0  # Seconds between looks at the directories
    rank_threads: int = 1  # Threads that one request may use
    # ``"host:port"`` of the Open Inference Protocol over gRPC; None leaves it out
    grpc: str | None = None
    log: LogPlan | None = None  # Where what was shown is logged; None: nowhere
    # Where bundles are copied to before they are served; None: this user's cache
    cache: str | None = None
    # Called with the plan and the HTTP port, by the first process, once every model can answer
    on_ready: Callable[[ServingPlan, int], None] | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("got no model to serve; name a bundle, or a directory of versions")
        if self.items is not None and len(self.models) > 1:
            names = ", ".join(map(repr, self.models))
            raise ConfigError(f"got one catalogue for the models {names}; serve one model with it")
        if (self.items is None) != (self.item_id is None) and self.items is not None:
            raise ConfigError(f"got items={self.items!r} without item_id; name the column of ids")
        if self.items is None and (self.settings.popularity or self.settings.category):
            raise ConfigError("got --popularity or --category without --items to recommend from")

    def registries(self, monitor: ThreadMonitor | None = None) -> dict[str, Registry]:
        """Return the registry of each model, not started."""
        return {
            name: Registry(
                path,
                items=self.items,
                item_id=self.item_id,
                policy=Latest(self.latest),
                poll_s=self.poll_s,
                unknown_items=self.unknown_items,
                precision=self.precision,
                threads=self.rank_threads,
                max_values=self.settings.max_values,
                cache=self.cache,
                monitor=monitor,
                name=name if len(self.models) > 1 else "",
            )
            for name, path in self.models.items()
        }

    def keys(self) -> Keys | None:
        """Return the callers, if keys are asked for."""
        if self.settings.keys is None:
            return None
        keys = Keys.load(self.settings.keys, workers=self.settings.workers)
        if self.settings.admin and not keys.has_admin:
            raise ConfigError(f"{self.settings.keys}: got no key with admin = true; write one")
        return keys


def serve_plan(
    worker: Worker, plan: ServingPlan, on_listening: Callable[[int, int | None], None] | None = None
) -> None:
    """Serve until SIGTERM: what every process of the server runs."""
    settings, shared = _within_descriptors(plan.settings), worker.count > 1
    monitor = ThreadMonitor()
    registries = plan.registries(monitor)
    service = Service(
        models=Models(registries),
        settings=settings,
        keys=plan.keys(),
        threads=plan.rank_threads,
        monitor=monitor,
    )
    # Longer slices for other threads would hold up every request while a version loads.
    sys.setswitchinterval(0.001)
    with ExitStack() as stack:
        listening = stack.enter_context(_bound(settings, shared))
        # The first process of a server answers from its start, if only that it is not ready; those
        # that join it, or take a dead one's place, share the port once all of them can answer.
        joins = worker.index > 0 or worker.replaces
        if not joins:
            listening.listen()
        for registry in registries.values():
            stack.enter_context(registry)
        if joins:
            _wait_ready(worker, registries)
        elif shared:
            monitor.start("start", lambda: _wait_ready(worker, registries), stuck_s=float("inf"))
        if plan.on_ready is not None and not joins:
            tell_ready = partial(_tell_ready, plan, registries, listening.getsockname()[1])
            monitor.start("ready", tell_ready, stuck_s=float("inf"))
        if plan.log is not None:
            _log_impressions(service, stack.enter_context(plan.log.open(monitor)))
        on_drain, grpc_port = _start_grpc(service, plan, shared, stack)
        if on_listening is not None:
            on_listening(listening.getsockname()[1], grpc_port)
        assert service.log is not None
        service.log.event("started", worker=worker.index, models=list(registries))
        serve(service, listening, on_drain=on_drain)
        service.log.event("stopped", worker=worker.index)
    service.scheduler.close()


def _within_descriptors(settings: Settings) -> Settings:
    """Raise the limit of open files, and keep some from connections: models are files, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + _OTHER_FILES
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    most = max(1, limit - min(_OTHER_FILES, limit // 2))
    return replace(settings, max_connections=min(settings.max_connections, most))


def _wait_ready(worker: Worker, registries: Mapping[str, Registry]) -> bool:
    """Wait until every model is loaded, here and in the first process, which leaves a mark."""
    for registry in registries.values():
        registry.wait_ready()
    first_is_ready = Path(os.environ[METRICS_DIRECTORY]) / "first-is-ready"
    if worker.index == 0:
        first_is_ready.touch()
    while not first_is_ready.exists():
        time.sleep(0.02)
    return False


def _tell_ready(plan: ServingPlan, registries: Mapping[str, Registry], port: int) -> bool:
    """Wait until every model is loaded, and say so; False: it is done once."""
    for registry in registries.values():
        registry.wait_ready()
    assert plan.on_ready is not None
    plan.on_ready(plan, port)
    return False


def _log_impressions(service: Service, log: ImpressionLog) -> None:
    def offer(ranked: Ranked) -> None:
        log.offer(ranked, time_us=ranked.time_us, catalogue=ranked.catalogue)

    log.on_counts(service.metrics.logged)
    service.impressions = log
    service.on_ranked, service.on_dropped = offer, log.missed


def _bound(settings: Settings, shared: bool) -> socket.socket:
    # Alone on its port: another server there is a mistake, which SO_REUSEPORT would hide.
    return (bind_port if shared else bind_alone)(settings.host, settings.port)


def _start_grpc(
    service: Service, plan: ServingPlan, shared: bool, stack: ExitStack
) -> tuple[Callable[[], None] | None, int | None]:
    if plan.grpc is None:
        return None, None
    from widedeep.serving.grpc import GrpcServer

    server = GrpcServer(service, plan.grpc, shared=shared)
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
