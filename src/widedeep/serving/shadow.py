"""Shadow scoring: another version scores answered requests again, after the reply."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from widedeep.errors import DataError, WideDeepError
from widedeep.serving.background import ThreadMonitor
from widedeep.serving.loading import lower_thread_priority

if TYPE_CHECKING:
    from widedeep.serving.ranker import Ranker, Ranking

# Upper ends of bins of |difference|: three per decade from 1e-7 to 1; a last bin has none.
_EDGES = np.array([0.0, *(m * 10.0**e for e in range(-7, 0) for m in (1, 2, 5)), 1.0])
_QUEUED = 256
_IDLE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowReport:
    """How far a shadow's scores are from those that were answered."""

    version: str  # Version name of the shadow
    requests: int  # Requests compared
    scores: int  # Scores compared
    dropped: int  # Requests not compared, because the shadow could not keep up
    failed: int  # Requests that the shadow could not score
    error: str | None  # Reason of the last failure
    mean: float  # Mean difference, shadow minus answer
    mean_absolute: float  # Mean absolute difference
    largest: float  # Largest absolute difference
    same_first: float  # Fraction of the requests whose first item would have been the same
    # Upper ends of the bins of the absolute difference; the last bin has none
    edges: tuple[float, ...]
    counts: tuple[int, ...]  # Scores per bin, one more than ``edges``


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """A request and the answer of ``ranker``."""

    user: Any
    context: Any
    candidates: Any
    head: str | None
    ranking: Ranking
    ranker: Ranker
    request_id: str | None = None  # By which both explore alike


class ShadowScoring:
    """Scores requests again in a thread of low priority; drops those that come too fast."""

    def __init__(self, version: str, ranker: Ranker, monitor: ThreadMonitor | None = None) -> None:
        self.version, self.ranker = version, ranker
        self._closing = False
        self._queue: queue.Queue[AnsweredRequest | None] = queue.Queue(_QUEUED)
        self._lock = threading.Lock()
        self._counts = np.zeros(len(_EDGES) + 1, np.int64)
        self._requests = self._scores = self._dropped = self._failed = self._same_first = 0
        self._sum = self._sum_absolute = self._largest = 0.0
        self._error: str | None = None
        self._thread = (monitor or ThreadMonitor()).start(
            "shadow", self._compare_next, on_start=lower_thread_priority
        )

    def offer(self, request: AnsweredRequest) -> None:
        """Queue a request; never blocks."""
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            with self._lock:
                self._dropped += 1

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop; queued requests are dropped."""
        self._closing = True
        with contextlib.suppress(queue.Full):  # then the thread wakes by itself
            self._queue.put_nowait(None)
        self._thread.hurry()
        if timeout_s > 0:
            self._thread.join(timeout_s)

    def report(self) -> ShadowReport:
        """Return the distribution of the differences so far."""
        with self._lock:
            scores, requests = max(1, self._scores), max(1, self._requests)
            return ShadowReport(
                version=self.version,
                requests=self._requests,
                scores=self._scores,
                dropped=self._dropped,
                failed=self._failed,
                error=self._error,
                mean=self._sum / scores,
                mean_absolute=self._sum_absolute / scores,
                largest=self._largest,
                same_first=self._same_first / requests,
                edges=tuple(_EDGES.tolist()),
                counts=tuple(self._counts.tolist()),
            )

    def _compare_next(self) -> bool:
        try:
            request = self._queue.get(timeout=_IDLE_S)
        except queue.Empty:
            return not self._closing
        if request is None or self._closing:
            return False
        try:
            self._compare(request)
        except Exception as error:  # whatever the request holds, the next one is compared
            with self._lock:
                self._failed += 1
                self._error = str(error) if isinstance(error, WideDeepError) else repr(error)
            if not isinstance(error, WideDeepError):
                self._thread.failed(error)
        return True

    def _compare(self, request: AnsweredRequest) -> None:
        answer = request.ranking
        expected = request.ranker.score_meaning(request.head)
        meaning = self.ranker.score_meaning(expected.head)
        if meaning != expected:
            raise DataError(
                f"version {self.version}: its score is {meaning}, the answer's was {expected}; "
                "they are not compared"
            )
        ranking = self.ranker.rank(
            request.user,
            request.context,
            request.candidates,
            head=expected.head,
            request_id=request.request_id,
        )
        scores = np.empty_like(ranking.scores)
        scores[ranking.positions] = ranking.scores  # (B,) in the order of the request
        differences = (scores[answer.positions] - answer.scores).reshape(-1)
        undefined = int(np.count_nonzero(~np.isfinite(differences)))
        if undefined:
            raise DataError(
                f"version {self.version}: {undefined} of {len(differences)} differences of scores "
                "are NaN or infinite; the request is not compared"
            )
        sizes = np.abs(differences)
        bins = np.bincount(np.searchsorted(_EDGES, sizes), minlength=len(_EDGES) + 1)
        with self._lock:
            self._counts += bins
            self._requests += 1
            self._scores += len(sizes)
            self._sum += float(differences.sum())
            self._sum_absolute += float(sizes.sum())
            self._largest = max(self._largest, float(sizes.max(initial=0.0)))
            if len(ranking.positions) and len(answer.positions):
                self._same_first += int(ranking.positions[0] == answer.positions[0])
