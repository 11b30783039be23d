"""Accounts of what the native server answered: its figures and records, handed on in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from widedeep.kernels.front import RankRoute
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.http.rank import RankRequest
from widedeep.serving.http.service import Ranked, Service
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.served import LoadedVersion
from widedeep.serving.shadow import AnsweredRequest, ShadowScoring

if TYPE_CHECKING:
    from widedeep.kernels.front import Front

_decoder = msgspec.json.Decoder(RankRequest)
_EVERY_S = 0.05
_LOOK_UPS = 2  # each time at most: a sample need not grow with the load


@dataclass(kw_only=True, eq=False)
class RouteAccount:
    """A native route, and whom its requests are counted for."""

    route: RankRoute  # Answers
    model: str  # Its name
    held: LoadedVersion  # The version
    catalogue: Catalogue  # Whose items the route knows
    ranker: Ranker = field(init=False)
    told: tuple[int, int, float, NDArray[int64]] = field(init=False)

    def __post_init__(self) -> None:
        self.ranker = self.held.ranker
        self.told = self._figures()

    def _figures(self) -> tuple[int, int, float, NDArray[int64]]:
        requests, scores, total, bins = self.route.figures()
        return requests, scores, total, np.array(bins, np.int64)

    def take_new(self) -> tuple[int, int, float, NDArray[int64]]:
        """Return requests, scores, their sum, and scores by range since the last time."""
        before, self.told = self.told, self._figures()
        now = self.told
        return now[0] - before[0], now[1] - before[1], now[2] - before[2], now[3] - before[3]


class Accounts:
    """Brings what native threads counted and kept to the metrics, the logs and the shadow."""

    def __init__(self, service: Service, front: Front) -> None:
        self._service, self._front = service, front
        is_only = len(service.models.registries) == 1
        self._label = "/v1/rank" if is_only else "/v1/models/{model}:rank"
        self._lock = threading.Lock()
        self._routes: dict[RankRoute, RouteAccount] = {}
        self._shadows: dict[str, ShadowScoring | None] = {}
        self._answers: dict[int, tuple[int, float, NDArray[int64]]] = {}
        self._endings: dict[str, int] = {}
        self._in_flight = self._dropped = self._look_ups = 0
        self._closing = threading.Event()
        self._thread = service.monitor.start("accounts", self._turn)

    def follow(self, account: RouteAccount) -> None:
        """Count for this route, too."""
        with self._lock:
            self._routes.setdefault(account.route, account)

    def set_shadow(self, model: str, shadow: ShadowScoring | None) -> None:
        """Have a model's answers scored again, or no longer."""
        self._shadows[model] = shadow

    def close(self) -> None:
        """Hand on what is left, and stop."""
        self._closing.set()
        self._thread.join(10.0)

    def _turn(self) -> bool:
        ending = self._closing.wait(_EVERY_S)
        try:
            self._take_records()
        finally:
            self.publish()
        return not ending

    def _safely(self, work: Callable[[], None]) -> None:
        """Do what one record asks for; one that fails must not take the others with it."""
        try:
            work()
        except Exception as error:  # a bug: told to the operator; serving goes on
            self._thread.failed(error)

    # ---- figures --------------------------------------------------------------------------------

    def publish(self) -> None:
        """Add what was counted since the last time to the server's figures."""
        metrics = self._service.metrics
        with self._lock:
            for status, (n, seconds, bins) in self._front.answers().items():
                before = self._answers.get(status, (0, 0.0, np.zeros(len(bins), np.int64)))
                if n > before[0]:
                    counts = np.array(bins, np.int64)
                    new_seconds, new_counts = seconds - before[1], counts - before[2]
                    metrics.answered_many(self._label, status, new_seconds, new_counts)
                    self._answers[status] = (n, seconds, counts)
            for account in list(self._routes.values()):
                self._publish_route(account)
            for why, n in self._front.endings().items():
                if n > self._endings.get(why, 0):
                    metrics.connections_ended.labels(why).inc(n - self._endings.get(why, 0))
                    self._endings[why] = n
            in_flight = self._front.under_way
            if in_flight != self._in_flight:
                metrics.in_flight.inc(in_flight - self._in_flight)
                self._in_flight = in_flight
                metrics.queue.set(self._service.admission.inside)

    def _publish_route(self, account: RouteAccount) -> None:
        is_over = not account.route.in_use
        requests, scores, total, bins = account.take_new()
        if requests:
            account.held.native_requests += requests
            version = account.held.name
            self._service.metrics.scored_many(account.model, version, requests, scores, total, bins)
        if is_over:
            del self._routes[account.route]

    # ---- records --------------------------------------------------------------------------------

    def _take_records(self) -> None:
        self._look_ups = 0
        for record in self._front.take_records():
            self._safely(partial(self._take_record, *record))
        dropped, self._dropped = self._dropped, self._front.dropped
        if self._dropped > dropped and self._service.on_dropped is not None:
            self._service.on_dropped(self._dropped - dropped)

    def _take_record(
        self,
        route: RankRoute | None,
        path: str,
        request_id: str,
        body: bytes,
        time_us: int,
        seconds: float,
        status: int,
        sampled: bool,
        order: NDArray[int64],
        scores: NDArray[float64],
    ) -> None:
        log = self._service.log
        account = None if route is None else self._routes.get(route)
        self._look_ups += sampled
        looks_up = sampled and self._look_ups <= _LOOK_UPS
        if account is not None and (self._keeps_all(account.model) or looks_up):
            ranked = _ranked(account, request_id, body, order, scores, time_us)
            self._safely(partial(self._hand_on, ranked, looks_up))
        if log is not None and log.wants(status):
            log.request(
                request_id=request_id,
                method="POST",
                path=path,
                status=status,
                ms=round(seconds * 1e3, 3),
                model=None if account is None else account.model,
                version=None if account is None else account.held.name,
                rows=len(order) or None,
            )

    def _keeps_all(self, model: str) -> bool:
        return self._service.on_ranked is not None or self._shadows.get(model) is not None

    def _hand_on(self, ranked: Ranked, sampled: bool) -> None:
        service = self._service
        if service.on_ranked is not None:
            service.on_ranked(ranked)
        if sampled:
            service.look_up(ranked.model, ranked.ranker, {**ranked.user, **ranked.context})
        shadow = self._shadows.get(ranked.model)
        if shadow is not None and shadow.version != ranked.version:
            shadow.offer(
                AnsweredRequest(
                    ranked.user,
                    ranked.context,
                    ranked.candidates,
                    None,
                    ranked.ranking,
                    ranked.ranker,
                )
            )


def _ranked(
    account: RouteAccount,
    request_id: str,
    body: bytes,
    order: NDArray[int64],
    scores: NDArray[float64],
    time_us: int,
) -> Ranked:
    request: RankRequest = _decoder.decode(body)
    candidates = request.candidates or []
    given = request.user.keys() | request.context.keys()
    names = account.ranker._engine._query_columns
    ranking = Ranking(
        items=[candidates[at] for at in order.tolist()],
        scores=scores,
        positions=order,
        unknown=np.zeros(len(order), bool),
        catalogue_version=account.catalogue.version,
        absent={name: 1 for name in names if name not in given},
    )
    return Ranked(
        request_id=request_id,
        model=account.model,
        version=account.held.name,
        user=request.user,
        context=request.context,
        candidates=candidates,
        ranking=ranking,
        ranker=account.ranker,
        time_us=time_us,
        catalogue=account.catalogue,
    )
