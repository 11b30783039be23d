"""Settings: what an operator may choose about the server."""

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
    """Limits, times and doors of the server; the defaults suit a ranker behind a load balancer."""

    host: str = "127.0.0.1"  # The address to bind; loopback unless told otherwise
    port: int = 8080  # The port; 0 takes a free one
    workers: int = 1  # Processes that share the port; rates of keys are divided by it
    queue: int | None = None  # Requests that may be waiting or computed at once; more get 503
    # How long a request may be expected to wait in the queue, in milliseconds
    max_wait_ms: float = 1_000.0
    threads: int = 2  # Threads for long computations; short ones run where they were read
    inline_ms: float = 2.0  # What counts as short, in milliseconds
    # How long a caller is taken to wait when it does not say, in milliseconds
    deadline_ms: float = 5_000.0
    longest_deadline_ms: float = 60_000.0  # The most that a caller may ask for
    max_body: int = 16 << 20  # Largest body in bytes, after decompression; larger ones get 413
    max_candidates: int = 100_000  # Most rows or candidates in a request; more get 413
    max_connections: int = 4_096  # Open connections; further ones are closed at once
    head_timeout_s: float = 10.0  # Seconds in which a request's head must have come
    body_timeout_s: float = 10.0  # Seconds in which its body must have come, else 408
    write_timeout_s: float = 30.0  # Seconds in which the caller must have taken the answer
    idle_timeout_s: float = 75.0  # Seconds that a connection stays open without a request
    drain_s: float = 25.0  # Seconds that requests have to finish after SIGTERM
    # Seconds after SIGTERM in which the server goes on while it is not ready, so that load
    # balancers turn away first
    drain_delay_s: float = 2.0
    keys: str | None = None  # A TOML file of API keys; None asks for no key
    admin: bool = False  # Open the endpoints that load, unload and roll back; needs an admin key
    # Names by which operators may reach those endpoints, beside the address that is bound and
    # loopback's names
    admin_hosts: tuple[str, ...] = ()
    # Show a page at ``/`` to try requests on; it shows the requests stored in the bundles
    page: bool = True
    # The catalogue's column that recommendations take the most popular items by; None takes the
    # order of its rows
    popularity: str | None = None
    # The catalogue's column that ``most_of_each`` of a recommendation is about
    category: str | None = None
    tls_certificate: str | None = None  # A PEM file; None speaks plain HTTP
    tls_key: str | None = None  # Its key
    tls_client_ca: str | None = None  # Certificates that callers must be signed by
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
    """Where and how the server logs what it showed."""

    directory: str  # Where the files go
    user_id: str = "user_id"  # Of the user's values, the one that is the id
    sample: float = 1.0  # Share of the requests
    # The feature columns that may be written; None: all that the model reads
    columns: tuple[str, ...] | None = None
    hash_key_file: str | None = None  # Its bytes key the hash of users' ids; None writes the ids
    days: float | None = None  # Files that are older are deleted; None keeps them
    nbytes: int | None = None  # Beyond, the oldest files are deleted; None keeps them


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All that a serving process must know."""

    models: dict[str, Path]  # A bundle or a directory of versions, by the model's name
    # Of the server; ``port`` is settled before workers start
    settings: Settings = field(default_factory=Settings)
    # Which versions are served, and how
    registry: RegistryOptions = field(default_factory=RegistryOptions)
    # ``"host:port"`` of the Open Inference Protocol over gRPC; None leaves it out
    grpc: str | None = None
    log: LogConfig | None = None  # Where what was shown is logged; None: nowhere
    # Called with the plan and the HTTP port, by the first process, once every model can answer
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
    """Return the models that paths hold, by name: the name of their directory."""
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
    # A directory without versions yet is a model too: the first may be on its way.
    if several:
        yield from ((each.name, each) for each in several)
    else:
        yield name, path
