"""What a server is started with: limits, times, network options, models, the impression log."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import ConfigError
from widedeep.options import check_types
from widedeep.serving.versions import RegistryOptions

RequestLog = Literal["all", "errors", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits, times and network options; the defaults suit a ranker behind a load balancer."""

    host: str = "127.0.0.1"  # Address to bind
    port: int = 8080  # TCP port; 0 chooses a free one
    workers: int = 1  # Processes that share the port; the rates of keys are divided by it
    # Requests that may wait or compute at once; more get 503. None: as `max_wait_ms` allows
    queue: int | None = None
    # Longest expected wait in the queue, milliseconds
    max_wait_ms: float = 1_000.0
    threads: int = 2  # Threads for long computations; short ones run on the event loop
    inline_ms: float = 2.0  # Expected time of a short computation at most, milliseconds
    # Deadline of a request that names none, milliseconds
    deadline_ms: float = 5_000.0
    longest_deadline_ms: float = 60_000.0  # Longest deadline that a request may name, milliseconds
    max_body: int = 16 << 20  # Bytes of a body, decompressed; larger ones get 413
    max_candidates: int = 100_000  # Rows or candidates of a request; more get 413
    max_connections: int = 4_096  # Open connections; further ones get 503 and are closed
    head_timeout_s: float = 10.0  # Seconds for a request's head to arrive, else 408
    body_timeout_s: float = 10.0  # Seconds for a request's body to arrive, else 408
    write_timeout_s: float = 30.0  # Seconds for the caller to read the answer
    idle_timeout_s: float = 75.0  # Seconds that a connection stays open without a request
    drain_s: float = 25.0  # Seconds for requests to finish after SIGTERM
    # Seconds after SIGTERM in which the server serves on, not ready, so that load balancers turn
    # away first
    drain_delay_s: float = 2.0
    keys: str | None = None  # A TOML file of API keys; None: no key is needed
    admin: bool = False  # Serve the admin endpoints; needs an admin key
    # Host names for the admin endpoints, besides the bound address and loopback's names
    admin_hosts: tuple[str, ...] = ()
    # Serve a page at ``/`` to try requests; it shows the requests stored in the bundles
    page: bool = True
    # The catalogue's column of popularity, for recommendations; None: the order of its rows
    popularity: str | None = None
    # The catalogue's column that ``most_of_each`` of a recommendation limits
    category: str | None = None
    tls_certificate: str | None = None  # A PEM file; None: plain HTTP
    tls_key: str | None = None  # The PEM file of its key
    # PEM file of the authorities of callers' certificates; None: callers need no certificate
    tls_client_ca: str | None = None
    request_log: RequestLog = "errors"  # Which requests are logged

    def __post_init__(self) -> None:
        check_types(self, "the server")
        for name in (
            *("workers", "queue", "threads", "deadline_ms", "longest_deadline_ms", "max_body"),
            *("max_candidates", "max_connections"),
            *("head_timeout_s", "body_timeout_s"),
            *("max_wait_ms",),
            *("write_timeout_s", "idle_timeout_s", "drain_s"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"got {name}={value}, expected a number above 0")
        if not self.drain_delay_s >= 0:
            raise ConfigError(f"got drain_delay_s={self.drain_delay_s}, expected at least 0")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"got port={self.port}, expected 0 to 65535")
        if self.admin and self.keys is None:
            raise ConfigError(
                "got admin=True without keys; whoever reaches the port could unload the model: "
                "name a file of keys, one of them with admin = true"
            )
        if (self.tls_key or self.tls_client_ca) and not self.tls_certificate:
            raise ConfigError("got a TLS key or client CA without a certificate; name one")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Options of the impression log; see ImpressionLog."""

    directory: str  # Where the files go
    user_id: str = "user_id"  # The user's column that holds the id
    sample: float = 1.0  # Fraction of the requests to log
    # The feature columns that may be written; None: all that the model reads
    columns: tuple[str, ...] | None = None
    hash_key_file: str | None = None  # Key of the hash of users' ids; None: ids are not hashed
    days: float | None = None  # Age at which files are deleted; None: never
    nbytes: int | None = None  # Total size beyond which the oldest files are deleted; None: never


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The options of a server: all that its processes are started with; can be pickled."""

    models: dict[str, Path]  # A bundle or a directory of versions, by the model's name
    settings: Settings = field(default_factory=Settings)
    # Which versions are served, and how
    registry: RegistryOptions = field(default_factory=RegistryOptions)
    # ``"host:port"`` of the gRPC server; None: there is none
    grpc: str | None = None
    log: LogConfig | None = None  # None: impressions are not logged
    # Called by the first process with these options and the HTTP port, when every model is loaded
    on_ready: Callable[[ServeConfig, int], None] | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("got no model to serve; name a bundle, or a directory of versions")
        items = self.registry.items
        if items is not None and len(self.models) > 1:
            names = ", ".join(map(repr, self.models))
            raise ConfigError(f"got one catalogue for the models {names}; serve one model with it")
        if items is None and (self.settings.popularity or self.settings.category):
            raise ConfigError("got --popularity or --category without --items to recommend from")


def find_models(paths: list[str]) -> dict[str, Path]:
    """Return the models of paths by name; `NAME=PATH` names one, else its directory does."""
    models: dict[str, Path] = {}
    for text in paths:
        name_text, equals, path_text = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        for name, path in _models_in(Path(path_text if named else text)):
            name = name_text if named else name
            if name in models:
                raise ConfigError(
                    f"got two models named {name!r}: {models[name]} and {path}; name one: NAME=PATH"
                )
            if not name or "/" in name or ":" in name:
                raise ConfigError(f"got the model name {name!r}; it stands in paths: no / and no :")
            models[name] = path
    return models


def _models_in(path: Path) -> Iterator[tuple[str, Path]]:
    name = path.resolve().name
    if (path / MANIFEST).is_file() or not path.is_dir():
        if not path.is_dir():
            raise ConfigError(f"{path}: no such directory; name a bundle, or a directory of them")
        yield name, path
        return
    if (path / "bundle" / MANIFEST).is_file() and (path / "config.toml").is_file():
        yield name, path / "bundle"
        return
    inner = sorted(
        Path(entry.path)
        for entry in os.scandir(path)
        if entry.is_dir() and entry.name[0] not in "._"
    )
    several = [
        each
        for each in inner
        if not (each / MANIFEST).is_file() and any(each.glob(f"[!._]*/{MANIFEST}"))
    ]
    # A directory without versions is a model too: the first may be published later.
    if several:
        yield from ((each.name, each) for each in several)
    else:
        yield name, path
