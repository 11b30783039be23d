"""What a server is started with: limits, times, network options, models, the impression log."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import ConfigError
from widedeep.options import check_types, is_unicode
from widedeep.remote import is_url, local_path
from widedeep.serving.versions import RegistryOptions

RequestLog = Literal["all", "errors", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits, times and network options; the defaults suit a ranker behind a load balancer."""

    host: Annotated[str, "address to bind"] = "127.0.0.1"
    port: Annotated[int, "TCP port; 0 chooses a free one"] = 8080
    workers: Annotated[int, "processes that share the port and the keys' rates"] = 1
    queue: Annotated[
        int | None,
        "requests that may wait or compute at once; more get 503 (default: as the longest wait "
        "allows)",
    ] = None
    max_wait_ms: Annotated[
        float, "refuse requests that are expected to wait longer in the queue, milliseconds"
    ] = 1_000.0
    threads: Annotated[int, "threads for long computations; short ones run on the event loop"] = 2
    inline_ms: Annotated[float, "expected time of a short computation, milliseconds"] = 2.0
    deadline_ms: Annotated[float, "deadline of a request that names none, milliseconds"] = 5_000.0
    longest_deadline_ms: Annotated[
        float, "longest deadline that a request may name, milliseconds"
    ] = 60_000.0
    max_body: Annotated[int, "bytes of a body, decompressed; larger ones get 413"] = 16 << 20
    max_candidates: Annotated[int, "rows or candidates of a request; more get 413"] = 100_000
    max_connections: Annotated[int, "open connections; further ones get 503 and are closed"] = 4_096
    head_timeout_s: Annotated[float, "seconds for a request's head to arrive, else 408"] = 10.0
    body_timeout_s: Annotated[float, "seconds for a request's body to arrive, else 408"] = 10.0
    write_timeout_s: Annotated[float, "seconds for the caller to read the answer"] = 30.0
    idle_timeout_s: Annotated[float, "seconds that a connection stays open without a request"] = (
        75.0
    )
    drain_s: Annotated[float, "seconds for requests to finish after SIGTERM"] = 25.0
    drain_delay_s: Annotated[
        float,
        "seconds after SIGTERM in which the server serves on, not ready, so that load balancers "
        "turn away first",
    ] = 2.0
    keys: Annotated[str | None, "a TOML file of API keys; requests need one of them"] = None
    admin: Annotated[bool, "let holders of an admin key load, unload and roll back"] = False
    admin_hosts: Annotated[
        tuple[str, ...],
        "a host name for the admin endpoints, besides the bound address and loopback's names; "
        "again for another",
    ] = ()
    page: Annotated[bool, "serve a page at / to try requests, with those stored in the bundles"] = (
        True
    )
    native: Annotated[
        bool, "answer what native threads can without the interpreter; else Python answers all"
    ] = True
    popularity: Annotated[
        str | None, "the catalogue's column by which items are popular (default: row order)"
    ] = None
    category: Annotated[
        str | None, "the catalogue's column that `most_of_each` of a recommendation limits"
    ] = None
    tls_certificate: Annotated[str | None, "the certificate's PEM file; speak HTTPS"] = None
    tls_key: Annotated[str | None, "the PEM file of the certificate's key"] = None
    tls_client_ca: Annotated[
        str | None, "PEM file of authorities; callers need a certificate of one of them"
    ] = None
    request_log: Annotated[RequestLog, "requests to log, as lines of JSON on standard error"] = (
        "errors"
    )

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
                "got admin without keys; whoever reaches the port could unload the model: name a "
                "file of keys (--keys FILE), one of them with admin = true"
            )
        if (self.tls_key or self.tls_client_ca) and not self.tls_certificate:
            raise ConfigError("got a TLS key or client CA without a certificate; name one")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Options of the impression log; see ImpressionLog."""

    directory: Annotated[
        str,
        "log what was shown to this folder, as Parquet that 'widedeep join' reads, or to the topic "
        "kafka://HOST:PORT/TOPIC",
    ]
    user_id: Annotated[str, "the user's column that holds the id"] = "user_id"
    sample: Annotated[float, "fraction of the requests to log"] = 1.0
    columns: Annotated[
        tuple[str, ...] | None, "feature columns that may be written, by commas (default: all)"
    ] = None
    hash_key_file: Annotated[
        str | None, "log a hash of the users' ids, keyed by the bytes of this file"
    ] = None
    days: Annotated[float | None, "age in days at which files are deleted (default: never)"] = None
    nbytes: Annotated[
        int | None, "total size in bytes beyond which the oldest files are deleted (default: never)"
    ] = None
    when_full: Annotated[
        Literal["drop", "wait"],
        "requests that the log cannot take: drop and count them, or wait, and slow the server down",
    ] = "drop"
    kafka: Annotated[
        tuple[str, ...] | None,
        "settings of librdkafka, NAME=VALUE by commas; $NAME is an environment variable",
    ] = None

    def __post_init__(self) -> None:
        for setting in self.kafka or ():
            if "=" not in setting:
                raise ConfigError(f"--log-kafka: got {setting!r}, expected NAME=VALUE")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The options of a server: all that its processes are started with; can be pickled."""

    models: dict[str, Path | str]  # Bundles or directories of versions, also URLs, by model name
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


def find_models(paths: list[str]) -> dict[str, Path | str]:
    """Return the models of paths by name; `NAME=PATH` names one, else its directory does."""
    models: dict[str, Path | str] = {}
    for text in paths:
        name_text, equals, path_text = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        for name, path in _models_in(path_text if named else text):
            name = name_text if named else name
            if name in models:
                raise ConfigError(
                    f"got two models named {name!r}: {models[name]} and {path}; name one: NAME=PATH"
                )
            if not name or "/" in name or ":" in name or not is_unicode(name):
                raise ConfigError(
                    f"got the model name {name!r}; it stands in paths: no / and no :, and in UTF-8"
                )
            models[name] = path
    return models


def _models_in(text: str) -> Iterator[tuple[str, Path | str]]:
    if is_url(text):
        yield text.rstrip("/").rpartition("/")[2], text
        return
    path = Path(local_path(text))
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
