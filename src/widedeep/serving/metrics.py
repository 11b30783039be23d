"""Prometheus metrics of the server, the histogram of scores among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from widedeep.errors import extra_imports
from widedeep.serving.impressions import ImpressionCounts

with extra_imports():
    from prometheus_client import CollectorRegistry, Counter

SCORE_EDGES = (
    *(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4),
    *(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
)
"""Upper edges of the score bins, fine where click rates lie; a last bin is open."""

_EDGES = np.array(SCORE_EDGES)
_PUBLISH_PERIOD_S = 1.0


class ScoreBins:
    """Histograms of scores by model and version, published to Prometheus once a second."""

    def __init__(
        self, registry: CollectorRegistry, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._counter = Counter(
            "widedeep_scores_binned",
            "Scores given, by version and range: each from the range before to up_to.",
            ("model", "version", "up_to"),
            registry=registry,
        )
        self._now = now
        self._next = now()
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], NDArray[int64]] = {}

    def add(self, model: str, version: str, scores: NDArray[float64]) -> None:
        """Count a request's scores."""
        bins = np.searchsorted(_EDGES, scores)
        self.add_counts(model, version, np.bincount(bins.ravel(), minlength=len(_EDGES) + 1))

    def add_counts(self, model: str, version: str, counts: NDArray[int64]) -> None:
        """Add scores that are already counted per bin."""
        with self._lock:
            before = self._pending.get((model, version))
            self._pending[model, version] = counts if before is None else before + counts
        if self._now() >= self._next:
            self.publish()

    def publish(self) -> None:
        """Add the pending counts to the Prometheus counter."""
        with self._lock:
            self._next = self._now() + _PUBLISH_PERIOD_S
            pending, self._pending = self._pending, {}
        for (model, version), counts in pending.items():
            for index in counts.nonzero()[0].tolist():
                up_to = f"{_EDGES[index]:g}" if index < len(_EDGES) else "+Inf"
                self._counter.labels(model, version, up_to).inc(int(counts[index]))


with extra_imports():
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        disable_created_metrics,
    )

REQUEST_SECONDS = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Upper edges of the histogram of seconds; a last bin is open."""

_LOG_GAUGES: tuple[tuple[str, str, Literal["sum", "livesum"]], ...] = (
    ("dropped", "Requests that the impression log could not keep up with.", "sum"),
    ("failed", "Requests that the disk did not take while it could be waited for.", "sum"),
    ("lost_rows", "Rows of failed requests, or that the disk has not given back.", "sum"),
    ("as_text", "Requests logged as text, for they hold what no column takes.", "sum"),
    ("without_user", "Requests without a user's id, which are not logged.", "sum"),
    ("rows", "Rows written, though perhaps to a file that is not complete yet.", "sum"),
    ("errors", "Attempts to write the impression log that failed.", "sum"),
    ("waiting", "Rows that wait for the disk to take them.", "livesum"),
)


class ServerMetrics:
    """The metrics of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._requests = Counter(
            *("widedeep_requests", "Requests answered.", ("route", "status")), registry=registry
        )
        self._seconds = Histogram(
            "widedeep_request_seconds",
            "From a request's arrival to its answer.",
            ("route",),
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.queue = Gauge(
            "widedeep_queue",
            "Requests that have come whole and are not computed yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.in_flight = Gauge(
            "widedeep_in_flight",
            "Requests begun and not answered yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.bugs = Counter(
            "widedeep_bugs", "Requests answered 500: a bug of the server.", registry=registry
        )
        self._add_background(registry)
        self.connections_ended = Counter(
            "widedeep_connections_ended",
            "Connections that the server refused or ended for want of room or patience.",
            ("why",),
            registry=registry,
        )
        version = ("model", "version")
        self._answers = Counter(
            *("widedeep_answers", "Requests scored, by version.", version), registry=registry
        )
        self._scores = Counter(
            *("widedeep_scores", "Scores given, by version.", version), registry=registry
        )
        self._score_sum = Gauge(
            "widedeep_scores_sum",
            "Sum of the scores given: divided by widedeep_scores_total, their mean.",
            version,
            registry=registry,
            multiprocess_mode="sum",
        )
        self.score_bins = ScoreBins(registry)
        self._unknown = Counter(
            "widedeep_unknown_items",
            "Candidates that the catalogue does not hold.",
            ("model",),
            registry=registry,
        )
        feature = ("model", "feature")
        self._values = Counter(
            "widedeep_sampled_values",
            "Values of user and context looked at for unseen ones (a sample of requests).",
            feature,
            registry=registry,
        )
        self._unseen = Counter(
            "widedeep_sampled_unseen",
            "Those of them that training had not seen.",
            feature,
            registry=registry,
        )
        self._misspelt = Counter(
            "widedeep_misspelt",
            "Requests that lacked a column and held a key that looks like it.",
            feature,
            registry=registry,
        )
        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._by_version: dict[tuple[str, str], tuple[Counter, Counter, Gauge]] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        requests, histogram = self._of_route(route, status)
        requests.inc()
        histogram.observe(seconds)

    def answered_many(
        self, route: str, status: int, seconds: float, counts: NDArray[int64]
    ) -> None:
        """Add answers that are already counted per bin."""
        requests, histogram = self._of_route(route, status)
        requests.inc(int(counts.sum()))
        # The client library observes one value at a time; these are the sums that it keeps.
        histogram._sum.inc(seconds)
        for index in counts.nonzero()[0].tolist():
            histogram._buckets[index].inc(int(counts[index]))

    def _add_background(self, registry: CollectorRegistry) -> None:
        """Create the metrics of the background threads and of the impression log."""
        self._thread_errors = Counter(
            "widedeep_thread_errors",
            "Errors of background threads that nobody foresaw: bugs; the threads go on.",
            ("thread",),
            registry=registry,
        )
        self._thread_beats = Gauge(
            "widedeep_thread_heartbeat_timestamp_seconds",
            "When each background thread last did its work: the process longest silent.",
            ("thread",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._log = {
            name: Gauge(f"widedeep_log_{name}", text, registry=registry, multiprocess_mode=mode)
            for name, text, mode in _LOG_GAUGES
        }
        self._log_failing = Gauge(
            "widedeep_log_failing",
            "Processes whose impression log cannot be written at present.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def misspelt(self, model: str, columns: Iterable[str]) -> None:
        """Count a request with misspelt keys."""
        for column in columns:
            self._misspelt.labels(model, column).inc()

    def thread_error(self, thread: str) -> None:
        """Count an unexpected error of a background thread."""
        self._thread_errors.labels(thread).inc()

    def thread_beat(self, thread: str, timestamp: float) -> None:
        """Set the time of a thread's last heartbeat; infinity: it has ended."""
        self._thread_beats.labels(thread).set(timestamp)

    def logged(self, counts: ImpressionCounts) -> None:
        """Set the counts of this process's impression log."""
        for name, gauge in self._log.items():
            gauge.set(getattr(counts, name))
        self._log_failing.set(counts.error is not None)

    def _of_route(self, route: str, status: int) -> tuple[Counter, Histogram]:
        metrics = self._by_route.get((route, status))
        if metrics is None:
            metrics = (self._requests.labels(route, str(status)), self._seconds.labels(route))
            self._by_route[route, status] = metrics
        return metrics

    def scored(self, model: str, version: str, scores: NDArray[float64], unknown: int = 0) -> None:
        """Count a request's scores."""
        answers, score_count, total = self._of_version(model, version)
        answers.inc()
        score_count.inc(scores.size)
        total.inc(float(scores.sum()))
        self.score_bins.add(model, version, scores)
        if unknown:
            self._unknown.labels(model).inc(unknown)

    def scored_many(
        self,
        model: str,
        version: str,
        requests: int,
        scores: int,
        total: float,
        bins: NDArray[int64],
    ) -> None:
        """Add scores of requests that are already counted per bin."""
        answers, score_count, added = self._of_version(model, version)
        answers.inc(requests)
        score_count.inc(scores)
        added.inc(total)
        self.score_bins.add_counts(model, version, bins)

    def _of_version(self, model: str, version: str) -> tuple[Counter, Counter, Gauge]:
        metrics = self._by_version.get((model, version))
        if metrics is None:
            metrics = (
                self._answers.labels(model, version),
                self._scores.labels(model, version),
                self._score_sum.labels(model, version),
            )
            self._by_version[model, version] = metrics
        return metrics

    def looked_up(self, model: str, counts: Mapping[str, tuple[int, int]]) -> None:
        """Count a sampled request's values, and the unseen ones."""
        for feature, (unseen, values) in counts.items():
            self._values.labels(model, feature).inc(values)
            if unseen:
                self._unseen.labels(model, feature).inc(unseen)
