"""Prometheus metrics of the server, the histogram of scores among them."""

from __future__ import annotations

import math
import operator
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from widedeep.errors import extra_imports
from widedeep.serving.impressions import ImpressionCounts

with extra_imports():
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        disable_created_metrics,
    )

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
            "Scores by version and bin, each from the previous bin to up_to.",
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


class ScoreCounts(NamedTuple):
    """Counts of requests that a version scored."""

    requests: int
    scores: int  # Those that are numbers
    total: float  # Their sum
    bins: NDArray[int64]  # Scores per bin
    undefined: int  # Candidates that the formula has no value for
    unknown: int  # Candidates that are not in the catalogue

    def since(self, before: ScoreCounts) -> ScoreCounts:
        """Return what has been counted since."""
        return ScoreCounts(*map(operator.sub, self, before))


REQUEST_SECONDS = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Upper edges of the histogram of seconds; a last bin is open."""

_LOG_GAUGES: tuple[tuple[str, str, Literal["sum", "livesum"]], ...] = (
    ("dropped", "Requests that found the impression log's queue full.", "sum"),
    ("failed", "Requests that the disk refused, beyond those that may wait for it.", "sum"),
    ("lost_rows", "Rows of failed requests, and rows that could not be read back.", "sum"),
    ("lost_bytes", "Bytes that could not be read back of what killed processes left.", "sum"),
    ("as_text", "Requests logged as text, with values that fit no column.", "sum"),
    ("without_user", "Requests without a user's id, which are not logged.", "sum"),
    ("rows", "Rows written, some perhaps to an incomplete file.", "sum"),
    ("errors", "Failed attempts to write the impression log.", "sum"),
    ("waiting", "Rows that wait for the disk.", "livesum"),
)


class ServerMetrics:
    """The metrics of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        disable_created_metrics()  # type: ignore[no-untyped-call]
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        live = partial(gauge, multiprocess_mode="livesum")
        newest = partial(gauge, multiprocess_mode="livemostrecent")  # Each process's last window
        version, feature, model = ("model", "version"), ("model", "feature"), ("model",)
        self._requests = counter("widedeep_requests", "Requests answered.", ("route", "status"))
        self._seconds = Histogram(
            "widedeep_request_seconds",
            "From a request's arrival to its answer.",
            ("route",),
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.queue = live("widedeep_queue", "Requests that wait or compute.")
        self.in_flight = live("widedeep_in_flight", "Requests that are not answered yet.")
        self.bugs = counter("widedeep_bugs", "Requests answered 500: a bug of the server.")
        self.connections_ended = counter(
            "widedeep_connections_ended",
            "Connections that the server refused or ended, by reason.",
            ("why",),
        )
        self._answers = counter("widedeep_answers", "Requests scored, by version.", version)
        self._scores = counter("widedeep_scores", "Scores given, by version.", version)
        self._score_sum = gauge(
            "widedeep_scores_sum",
            "Sum of the scores; divided by widedeep_scores_total, their mean.",
            version,
            multiprocess_mode="sum",
        )
        self.score_bins = ScoreBins(registry)
        self._undefined = counter(
            "widedeep_undefined_scores", "Candidates that the formula has no value for.", model
        )
        self._unknown = counter(
            "widedeep_unknown_items", "Candidates that are not in the catalogue.", model
        )
        self._values = counter(
            "widedeep_sampled_values", "Values of user and context in sampled requests.", feature
        )
        self._unseen = counter(
            "widedeep_sampled_unseen", "Sampled values unseen in training.", feature
        )
        self._drift = newest(
            "widedeep_drift_psi",
            "Population stability index of sampled values against those of training.",
            feature,
        )
        self._drift_missing = newest(
            "widedeep_drift_missing_psi",
            "Population stability index of absent and present values against training.",
            feature,
        )
        self._misspelt = counter(
            "widedeep_misspelt",
            "Requests that lack a column and have a key that resembles it.",
            feature,
        )
        self._thread_errors = counter(
            "widedeep_thread_errors", "Unexpected errors of background threads: bugs.", ("thread",)
        )
        self._thread_beats = gauge(
            "widedeep_thread_heartbeat_timestamp_seconds",
            "Last heartbeat of each background thread, the earliest of all processes.",
            ("thread",),
            multiprocess_mode="livemin",
        )
        self._log = {
            name: gauge(f"widedeep_log_{name}", text, multiprocess_mode=mode)
            for name, text, mode in _LOG_GAUGES
        }
        self._log_failing = live(
            "widedeep_log_failing", "Processes whose impression log cannot be written at present."
        )
        self._of_route, self._of_version = cache(self._route), cache(self._version)

    def _route(self, route: str, status: int) -> tuple[Counter, Histogram]:
        return self._requests.labels(route, str(status)), self._seconds.labels(route)

    def _version(self, model: str, version: str) -> tuple[Counter, Counter, Gauge]:
        labels = (model, version)
        answers, scores = self._answers.labels(*labels), self._scores.labels(*labels)
        return answers, scores, self._score_sum.labels(*labels)

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
        # The client library observes single values alone, so its sums are increased directly.
        histogram._sum.inc(seconds)
        for index in counts.nonzero()[0].tolist():
            histogram._buckets[index].inc(int(counts[index]))

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

    def scored(self, model: str, version: str, scores: NDArray[float64], unknown: int = 0) -> None:
        """Count a request's scores; NaN, of which no sum could recover, apart from the others."""
        answers, score_count, total = self._of_version(model, version)
        answers.inc()
        undefined = int(np.isnan(scores).sum())
        if undefined:
            self._undefined.labels(model).inc(undefined)
            scores = scores[~np.isnan(scores)]
        score_count.inc(scores.size)
        total.inc(float(scores.sum()))
        self.score_bins.add(model, version, scores)
        if unknown:
            self._unknown.labels(model).inc(unknown)

    def scored_many(self, model: str, version: str, counts: ScoreCounts) -> None:
        """Add requests that are already counted."""
        answers, score_count, added = self._of_version(model, version)
        answers.inc(counts.requests)
        score_count.inc(counts.scores)
        added.inc(counts.total)
        self.score_bins.add_counts(model, version, counts.bins)
        if counts.undefined:
            self._undefined.labels(model).inc(counts.undefined)
        if counts.unknown:
            self._unknown.labels(model).inc(counts.unknown)

    def drifted(self, model: str, feature: str, values: float | None, missing: float) -> None:
        """Set how far a feature of the latest sampled requests is from training."""
        if values is not None and not math.isnan(values):
            self._drift.labels(model, feature).set(values)
        self._drift_missing.labels(model, feature).set(missing)

    def looked_up(self, model: str, counts: Mapping[str, tuple[int, int]]) -> None:
        """Count a sampled request's values, and the unseen ones."""
        for feature, (unseen, values) in counts.items():
            self._values.labels(model, feature).inc(values)
            if unseen:
                self._unseen.labels(model, feature).inc(unseen)
