"""The service: models, settings, statistics, what every route is handed."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from widedeep.bundle.manifest import MANIFEST
from widedeep.data.batch import count_values
from widedeep.errors import ConfigError, nearest
from widedeep.serving.background import RequestLog, ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.http.auth import Admission, Keys, Scheduler
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.settings import Settings
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.metrics import ServerMetrics
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.registry import NoVersion, Registry, Served
from widedeep.serving.retrievers import Retrievers


def find_models(paths: list[str]) -> dict[str, Path]:
    """Return the models that paths hold, by name: the name of their directory."""
    found: dict[str, Path] = {}
    for text in paths:
        given, equals, rest = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        for name, path in _models_in(Path(rest if named else text)):
            name = given if named else name
            if name in found:
                raise ConfigError(
                    f"got two models named {name!r}: {found[name]} and {path}; name one: NAME=PATH"
                )
            if not name or "/" in name or ":" in name:
                raise ConfigError(f"got the model name {name!r}; it stands in paths: no / and no :")
            found[name] = path
    return found


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


class Models:
    """The models of a server, by name."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self.registries = dict(registries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.registries)

    def ready(self) -> bool:
        """Tell whether every model can answer."""
        return all(registry.ready() for registry in self.registries.values())

    def registry(self, name: str | None) -> Registry:
        """Return a model's registry."""
        if name is None:
            if len(self.registries) > 1:
                known = ", ".join(map(repr, self.registries))
                raise HttpError(400, f"got no model; name one of {known}", pointer="/model")
            return next(iter(self.registries.values()))
        found = self.registries.get(name)
        if found is None:
            raise HttpError(404, f"got model {name!r}; {nearest(name, self.registries)}")
        return found

    def name_of(self, name: str | None) -> str:
        """Return the name of the only model for None."""
        return next(iter(self.registries)) if name is None else name

    @contextmanager
    def lease(
        self,
        name: str | None,
        request_id: str,
        version: str | None = None,
        label: str | None = None,
    ) -> Iterator[Served]:
        """Hold a version for one request."""
        registry = self.registry(name)
        lease = registry.lease(request_id, version=version, label=label)
        try:
            served = lease.__enter__()
        except NoVersion as error:
            if version is not None or label is not None:
                raise HttpError(404, str(error)) from error
            raise HttpError(503, str(error), retry_after=1) from error
        try:
            yield served
        finally:
            lease.__exit__(None, None, None)


@dataclass(slots=True)
class VersionStatistics:
    """The requests of one version, in this process."""

    answered: int = 0  # Requests that were scored
    rows: int = 0  # Of them
    seconds: float = 0.0  # That scoring took
    failed: int = 0  # Requests that did not fit the model
    failed_seconds: float = 0.0  # That finding out took
    last: float = 0.0  # When the last one was scored, in seconds since 1970


class Statistics:
    """Adds up the requests of each version."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_version: dict[tuple[str, str], VersionStatistics] = {}

    def answered(self, model: str, version: str, rows: int, seconds: float) -> None:
        """Add a request that was scored."""
        with self._lock:
            found = self.by_version.setdefault((model, version), VersionStatistics())
            found.answered += 1
            found.rows += rows
            found.seconds += seconds
            found.last = time.time()

    def failed(self, model: str, version: str, seconds: float) -> None:
        """Add a request that did not fit."""
        with self._lock:
            found = self.by_version.setdefault((model, version), VersionStatistics())
            found.failed += 1
            found.failed_seconds += seconds


LOOKED_AT = 1 / 32
"""The share of the requests whose values are looked up for unseen ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A request that was ranked, for those who keep a log of it."""

    request_id: str  # Of the request
    model: str  # That answered
    version: str  # Of it
    user: Mapping[str, Any]  # As given
    context: Mapping[str, Any]  # As given
    candidates: Any  # Ids, or columns
    ranking: Ranking  # The answer
    ranker: Ranker  # That gave it
    time_us: int | None = None  # When, in microseconds since 1970; None: now
    catalogue: Catalogue | None = None  # That the items were taken from; None: the ranker's of now


@dataclass(kw_only=True)
class Service:
    """What the endpoints share: models, limits, figures."""

    models: Models  # That answer
    settings: Settings = field(default_factory=Settings)  # As the operator chose them
    # Figures of this process; None makes them
    metrics: ServerMetrics = field(default_factory=lambda: ServerMetrics(CollectorRegistry()))
    log: RequestLog | None = None  # Of requests; None makes it by the settings
    keys: Keys | None = None  # Callers; None asks for no key
    # Called after each ranking, off no one's path but the caller's: it must not block
    on_ranked: Callable[[Ranked], None] | None = None
    # Called with a number of rankings that could not be handed on
    on_dropped: Callable[[int], None] | None = None
    threads: int = 1  # That one request of rows may use
    draining: bool = False  # Whether it has been told to end
    monitor: ThreadMonitor = field(default_factory=ThreadMonitor)  # Watches the background threads
    impressions: ImpressionLog | None = None  # The log of what was shown; None: there is none

    def __post_init__(self) -> None:
        if self.log is None:
            self.log = RequestLog(self.settings.request_log)
        self.monitor.log, self.monitor.metrics = self.log, self.metrics
        self.admission = Admission(self.settings.queue, self.settings.max_wait_ms / 1e3)
        self.scheduler = Scheduler(self.settings.threads, self.settings.inline_ms / 1e3)
        self.statistics = Statistics()
        self.retrievers = Retrievers(self.settings.popularity, self.settings.category)
        self.publishers: list[Callable[[], None]] = [self.metrics.score_bins.publish]

    def ready(self) -> bool:
        """Tell whether load balancers should send requests here."""
        return not self.unready()

    def unready(self) -> list[str]:
        """Return why load balancers should send no requests here; empty: they should."""
        reasons = ["the server is draining"] if self.draining else []
        reasons += [
            f"model {name!r}: no version is loaded"
            for name, registry in self.models.registries.items()
            if not registry.ready()
        ]
        return reasons + self.monitor.problems()

    def warnings(self) -> list[str]:
        """Return what an operator should mend, though requests are answered."""
        found = [
            f"model {name!r}: {registry.problem}"
            for name, registry in self.models.registries.items()
            if registry.problem is not None
        ]
        counts = None if self.impressions is None else self.impressions.counts()
        if counts is not None and counts.error is not None:
            found.append(
                f"impression log: {counts.error}; {counts.waiting} rows wait, "
                f"{counts.lost_rows} are lost"
            )
        return found

    def look_up_some(self, model: str, ranker: Ranker, row: Mapping[str, Any]) -> None:
        """Of one request in 32, count which values of user and context training had not seen."""
        if random.random() < LOOKED_AT:
            self.look_up(model, ranker, row)

    def look_up(self, model: str, ranker: Ranker, row: Mapping[str, Any]) -> None:
        """Count which values of user and context training had not seen."""
        bundle = ranker.bundle
        batch = bundle.encode([dict(row)])
        given = frozenset(row)
        counts = {
            name: found
            for name, found in count_values(bundle.schema, batch).items()
            if getattr(bundle.schema.spec.by_name[name], "source", None) in given
        }
        self.metrics.looked_up(model, counts)

    def reload_keys(self, *, force: bool = False) -> None:
        """Read the callers' keys again if their file has changed; a mistake in it is logged."""
        assert self.log is not None
        try:
            if self.keys is not None and self.keys.reload(force=force):
                self.log.event("keys read")
        except ConfigError as error:
            self.log.event("keys not read", error=str(error))

    def publish(self) -> None:
        """Bring what was counted beside the figures into them."""
        for publish in self.publishers:
            publish()
