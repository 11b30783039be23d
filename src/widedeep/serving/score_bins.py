"""ScoreBins: how the scores given by each version are distributed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from widedeep.errors import extra_imports

with extra_imports():
    from prometheus_client import CollectorRegistry, Counter

SCORE_EDGES = (
    *(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4),
    *(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
)
"""The upper end of each range but the last, which is open: fine where rates of clicks lie."""

_EDGES = np.array(SCORE_EDGES)
_EVERY_S = 1.0


class ScoreBins:
    """Counts scores by model, version and range, for Prometheus."""

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
        places = np.searchsorted(_EDGES, scores)
        self.add_counts(model, version, np.bincount(places.ravel(), minlength=len(_EDGES) + 1))

    def add_counts(self, model: str, version: str, counts: NDArray[int64]) -> None:
        """Count scores that were sorted into the ranges already."""
        with self._lock:
            before = self._pending.get((model, version))
            self._pending[model, version] = counts if before is None else before + counts
        if self._now() >= self._next:
            self.publish()

    def publish(self) -> None:
        """Hand on what was counted since the last time."""
        with self._lock:
            self._next = self._now() + _EVERY_S
            pending, self._pending = self._pending, {}
        for (model, version), counts in pending.items():
            for place in counts.nonzero()[0].tolist():
                up_to = f"{_EDGES[place]:g}" if place < len(_EDGES) else "+Inf"
                self._counter.labels(model, version, up_to).inc(int(counts[place]))
