"""Service: what every endpoint of one process shares."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from widedeep.data.unseen import count_values
from widedeep.errors import ConfigError
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.http.auth import Keys
from widedeep.serving.http.limits import Admission, Scheduler
from widedeep.serving.http.models import Models
from widedeep.serving.http.settings import Settings
from widedeep.serving.http.statistics import Statistics
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.metrics import ServerMetrics
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.request_log import RequestLog
from widedeep.serving.retrievers import Retrievers

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
