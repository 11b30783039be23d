"""The native server in front of the Python one, its routes and its statistics."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from widedeep.bundle import Bundle, Platt, PriorCorrection
from widedeep.features.spec import item_columns
from widedeep.kernels.native_server import (
    RankRoute,
    has_native_server,
    new_native_server,
)
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.http.protocol import FULL, HEADER_TIMEOUT, final_response
from widedeep.serving.http.rank import RankRequest
from widedeep.serving.http.service import (
    LOOKED_AT,
    Ranked,
    Service,
    busy_error,
    late_body,
    late_error,
)
from widedeep.serving.metrics import REQUEST_SECONDS, SCORE_EDGES
from widedeep.serving.ranker import Ranker, Ranking, choose_head
from widedeep.serving.scorers import FactorizedScorer
from widedeep.serving.shadow import AnsweredRequest, ShadowScoring
from widedeep.serving.version_watcher import Routes
from widedeep.serving.versions import LoadedVersion

if TYPE_CHECKING:
    from widedeep.kernels.native_server import NativeServer


def new_route(ranker: Ranker, version: str) -> RankRoute | None:
    """Return what answers plain requests natively, with the very scores of the ranker."""
    prepared, scorer = ranker.prepared, ranker.scorer
    if prepared is None or not isinstance(scorer, FactorizedScorer):
        return None
    curve = _curve(ranker.bundle)
    if curve is None or len(prepared.catalogue) == 0:
        return None
    options = {
        "version": version,
        "catalogue_version": prepared.catalogue.version,
        "foreign_names": sorted(item_columns(ranker.bundle.schema.spec)),
        "score_edges": list(SCORE_EDGES),
        "threads": ranker.threads,
        **curve,
    }
    return RankRoute(
        scorer.transform,
        scorer.kernel,  # type: ignore[arg-type]  # the protocol's native class
        prepared.items.sums,
        scorer.bias_C,
        prepared.catalogue.index,
        options,
    )


def _curve(bundle: Bundle) -> dict[str, object] | None:
    """Return how the logits of the head that is ranked by become scores."""
    heads = {head.name: head for head in bundle.model.heads}
    if all(head.kind == "multiclass" for head in heads.values()):
        return None
    head = choose_head(heads, None)
    if head.link not in ("identity", "sigmoid"):
        return None
    slope, intercept = 1.0, 0.0
    calibration = bundle.calibration.get(head.name)
    if isinstance(calibration, Platt):
        slope, intercept = calibration.slope, calibration.intercept
    elif isinstance(calibration, PriorCorrection):
        intercept = math.log(calibration.rate)
    elif calibration is not None:
        return None
    return {
        "column": head.start,
        "is_probability": head.link == "sigmoid",
        "slope": slope,
        "intercept": intercept,
    }


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
    last_seen: tuple[int, int, float, NDArray[int64]] = field(init=False)

    def __post_init__(self) -> None:
        self.ranker = self.held.ranker
        self.last_seen = self._figures()

    def _figures(self) -> tuple[int, int, float, NDArray[int64]]:
        requests, scores, total, bins = self.route.figures()
        return requests, scores, total, np.array(bins, np.int64)

    def take_new(self) -> tuple[int, int, float, NDArray[int64]]:
        """Return requests, scores, their sum, and scores by range since the last time."""
        before, self.last_seen = self.last_seen, self._figures()
        now = self.last_seen
        return now[0] - before[0], now[1] - before[1], now[2] - before[2], now[3] - before[3]


class NativeStats:
    """Brings what native threads counted and kept to the metrics, the logs and the shadow."""

    def __init__(self, service: Service, native: NativeServer) -> None:
        self._service, self._native = service, native
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
            for status, (n, seconds, bins) in self._native.answers().items():
                before = self._answers.get(status, (0, 0.0, np.zeros(len(bins), np.int64)))
                if n > before[0]:
                    counts = np.array(bins, np.int64)
                    new_seconds, new_counts = seconds - before[1], counts - before[2]
                    metrics.answered_many(self._label, status, new_seconds, new_counts)
                    self._answers[status] = (n, seconds, counts)
            for account in list(self._routes.values()):
                self._publish_route(account)
            for why, n in self._native.endings().items():
                if n > self._endings.get(why, 0):
                    metrics.connections_ended.labels(why).inc(n - self._endings.get(why, 0))
                    self._endings[why] = n
            in_flight = self._native.in_flight
            if in_flight != self._in_flight:
                metrics.in_flight.inc(in_flight - self._in_flight)
                self._in_flight = in_flight
                metrics.queue.set(self._service.slots.inside)

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
        for record in self._native.take_records():
            self._safely(partial(self._take_record, *record))
        dropped, self._dropped = self._dropped, self._native.dropped
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
    names = account.ranker.scorer.query_columns
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


_LONGEST_BODY = 1 << 20
_QUEUED = 2048


def can_serve_natively(service: Service) -> bool:
    """Tell whether a server may have a native server: not with TLS, nor where callers need keys."""
    settings = service.settings
    return has_native_server() and settings.tls_certificate is None and service.keys is None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A version with the catalogue that it had; without an account Python must answer."""

    catalogue: Catalogue | None
    account: RouteAccount | None


class NativeConnections:
    """The native threads of a server, and its connections with the Python server."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self._service = service
        self._handoff_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._end = 0.0
        self._native: NativeServer = new_native_server(
            listening.fileno(), self._handoff_event, service.slots, _options(service)
        )
        self._stats = NativeStats(service, self._native)
        self._adopting: set[asyncio.Task[None]] = set()
        service.publishers.insert(0, self._stats.publish)
        for name, registry in service.models.registries.items():
            registry.subscribe(self._prepare_for(name), self._route_for(name))

    # ---- routes ---------------------------------------------------------------------------------

    def _prepare_for(self, model: str) -> Callable[[LoadedVersion], None]:
        def prepare(held: LoadedVersion) -> None:
            self._prepare(model, held)

        return prepare

    def _route_for(self, model: str) -> Callable[[Routes], None]:
        return lambda routes: self._route(model, routes)

    def _prepare(self, model: str, held: LoadedVersion) -> RouteAccount | None:
        """Return the version's route with its catalogue of now; None if Python must answer."""
        before = held.native
        if isinstance(before, _Prepared) and before.catalogue is held.ranker.catalogue:
            return before.account
        catalogue, route = held.ranker.catalogue, new_route(held.ranker, held.name)
        account = None
        if route is not None and catalogue is not None:
            account = RouteAccount(route=route, model=model, held=held, catalogue=catalogue)
        held.native = _Prepared(catalogue, account)
        return account

    def _route(self, model: str, routes: Routes) -> None:
        chosen = [routes.default, routes.canary if routes.canary_fraction > 0 else None]
        stable, canary = (None if held is None else self._prepare(model, held) for held in chosen)
        can_answer = stable is not None and (chosen[1] is None or canary is not None)
        for account in (stable, canary) if can_answer else ():
            if account is not None:
                self._stats.follow(account)
        self._stats.set_shadow(model, routes.shadow)
        records_all = self._service.on_ranked is not None or routes.shadow is not None
        is_only = len(self._service.models.registries) == 1
        self._native.set_routes(
            "/v1/rank" if is_only else f"/v1/models/{model}:rank",
            _route_of(stable) if can_answer else None,
            _route_of(canary) if can_answer else None,
            routes.canary_fraction,
            records_all,
        )

    # ---- connections ----------------------------------------------------------------------------

    def start(self, new_protocol: NewProtocol) -> None:
        """Begin to take over what the native threads hand over; in the event loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._handoff_event, self._pop_handoffs, loop, new_protocol)

    def _pop_handoffs(self, loop: asyncio.AbstractEventLoop, new_protocol: NewProtocol) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._handoff_event)
        for descriptor, read in self._native.pop_handoffs():
            lent = Lent(self._native)
            new = partial(new_protocol, lent, read)
            task = loop.create_task(self._adopt(loop, descriptor, lent, new))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    async def _adopt(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        lent: Lent,
        new_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        connection = socket.socket(fileno=descriptor)
        try:
            await loop.connect_accepted_socket(new_protocol, connection)
        except Exception as error:  # gone already, or there is no descriptor left
            connection.close()
            lent.lost()
            if not isinstance(error, OSError):
                self._service.metrics.bugs.inc()
                if self._service.log is not None:
                    self._service.log.bug(error)

    # ---- the end --------------------------------------------------------------------------------

    def announce_end(self) -> None:
        """Have every answer close its connection."""
        self._native.announce_end()

    async def drain(
        self, end: float, give_up: Callable[[], bool], is_waiting: Callable[[], bool]
    ) -> None:
        """Wait for the connections that are there, and accept no more."""
        self._native.drain()
        while self._native.connections_before_drain or self._adopting or is_waiting():
            if time.monotonic() > end or give_up():
                break
            await asyncio.sleep(0.02)
        self._end = end
        self._native.stop_accepting()
        while self._native.is_accepting and time.monotonic() < end:
            await asyncio.sleep(0.002)

    def accept_handoff(self, descriptor: int) -> None:
        """Take a connection that came too late for the native threads to accept it."""
        self._native.accept_handoff(descriptor)

    async def finish(self, give_up: Callable[[], bool]) -> None:
        """Wait until the last connections are closed, as long as :meth:`drain` may take."""
        while self._native.connections or self._adopting:
            if time.monotonic() > self._end or give_up():
                break
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End the threads; what is still connected is cut off."""
        for registry in self._service.models.registries.values():
            registry.subscribe(None, None)
        self._native.stop()
        self._stats.close()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._handoff_event)
        os.close(self._handoff_event)


class Lent:
    """One connection that the Python server has from the native one, which counts it until then."""

    def __init__(self, native: NativeServer) -> None:
        self._native, self._is_out = native, True

    def return_connection(self, transport: asyncio.Transport) -> bool:
        """Return it between two requests; its transport is closed, the socket lives."""
        try:
            descriptor = os.dup(transport.get_extra_info("socket").fileno())
        except OSError:
            return False
        transport.pause_reading()
        transport.close()
        self._is_out = False
        self._native.return_connection(descriptor)
        return True

    def lost(self) -> None:
        """Note that the Python server has closed it."""
        if self._is_out:
            self._is_out = False
            self._native.closed_elsewhere()


NewProtocol: TypeAlias = Callable[[Lent, bytes], asyncio.Protocol]


def _route_of(account: RouteAccount | None) -> RankRoute | None:
    return None if account is None else account.route


def _options(service: Service) -> dict[str, object]:
    settings, log = service.settings, service.log
    processors = len(os.sched_getaffinity(0))
    wants = (lambda status: False) if log is None else log.wants
    return {
        "threads": max(1, min(settings.threads, processors // settings.workers)),
        "most_candidates": settings.max_candidates,
        "inline_s": settings.inline_ms / 1e3,
        "deadline_s": settings.deadline_ms / 1e3,
        "longest_deadline_s": settings.longest_deadline_ms / 1e3,
        "queued_records": _QUEUED,
        "sampled": LOOKED_AT,
        "records_all": wants(200),
        "records_errors": wants(503),
        "second_edges": list(REQUEST_SECONDS),
        "busy": busy_error().body(),
        "late": late_error().body(),
        "late_head": HEADER_TIMEOUT,
        "late_body": final_response("408 Request Timeout", late_body(settings.body_timeout_s)),
        "full": FULL,
        "max_connections": settings.max_connections,
        "longest_body": min(settings.max_body, _LONGEST_BODY),
        "head_s": settings.head_timeout_s,
        "body_s": settings.body_timeout_s,
        "write_s": settings.write_timeout_s,
        "idle_s": settings.idle_timeout_s,
    }
