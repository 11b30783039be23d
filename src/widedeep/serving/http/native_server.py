"""Adapter of the native server: its routes, options, statistics and connection hand-offs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import quote

import msgspec
import numpy as np
from numpy import float32, float64, int64
from numpy.typing import NDArray

from widedeep import traces
from widedeep.bundle import Bundle, BundleHead, Isotonic, Platt, PriorCorrection
from widedeep.bundle.formula import FormulaProgram
from widedeep.features.spec import item_columns
from widedeep.kernels import RankRoute
from widedeep.kernels.native_server import NativeServer, has_native_server
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.formula_scores import inline_numbers
from widedeep.serving.http import open_inference
from widedeep.serving.http.protocol import FULL, HEADER_TIMEOUT, final_response
from widedeep.serving.http.rank import RankRequest
from widedeep.serving.http.service import (
    UNSEEN_SAMPLE,
    Ranked,
    Service,
    busy_error,
    late_body,
    late_error,
)
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.metrics import REQUEST_SECONDS, SCORE_EDGES, ScoreCounts
from widedeep.serving.ranker import Ranker, Ranking, choose_head, inline_items
from widedeep.serving.scorers import FactorizedScorer
from widedeep.serving.shadow import AnsweredRequest, ShadowScoring
from widedeep.serving.version_watcher import Routes
from widedeep.serving.versions import LoadedVersion


def new_route(
    ranker: Ranker, model: str, version: str, impressions: ImpressionLog | None = None
) -> RankRoute | None:
    """Return a native route with the ranker's very scores; None if Python must answer."""
    prepared, scorer, bundle = ranker.prepared, ranker.scorer, ranker.bundle
    if not isinstance(scorer, FactorizedScorer) or ranker.options.exploration is not None:
        return None
    of_item = item_columns(bundle.schema.spec)
    if not of_item & frozenset(scorer.transform.item_columns):
        return None
    heads = {head.name: head for head in bundle.model.heads}
    curves = [curve for head in heads.values() if (curve := _curve(bundle, head)) is not None]
    if not curves:
        return None
    names = [curve["head"] for curve in curves]
    default = None if all(head.by_class for head in heads.values()) else choose_head(heads, None)
    formula, numbers = _formula(ranker, names)
    has_items = prepared is not None and len(prepared.catalogue) > 0
    by_head = ranker.rank_by is None and default is not None and default.name in names
    options = {
        "version": version,
        "catalogue_version": "" if prepared is None else prepared.catalogue.version,
        "id_column": ranker.item_id or "",
        "foreign_names": sorted(of_item),
        "score_edges": list(SCORE_EDGES),
        "threads": ranker.threads,
        "curves": curves,
        "default_curve": names.index(default.name) if by_head and default is not None else -1,
        "formula": formula.steps,
        "formula_text": ranker.rank_by or "",
        "numbers": formula.columns,
        "scores_unknown": ranker.unknown_items == "score",
        "is_bfloat16": ranker.precision == "bfloat16",
        "log": None
        if impressions is None or prepared is None or not has_items
        else impressions.shape(ranker, prepared.catalogue, version),
        "infer": None if len(curves) < len(heads) else _infer(bundle, model),
    }
    return RankRoute(
        scorer.transform,
        scorer.kernel,
        prepared.items.sums if prepared is not None and has_items else None,
        scorer.bias_C,
        prepared.catalogue.index if prepared is not None and has_items else None,
        numbers,
        options,
    )


def _infer(bundle: Bundle, model: str) -> dict[str, object]:
    """Return what answers requests for scores of rows."""
    program, kinds = bundle.encoder.scoring_program, bundle.schema.columns
    return {
        "program": program,
        "scorer": bundle.native_scorer,
        "is_nested": [name in kinds and kinds[name].nested for name in program.columns],
        "outputs": [open_inference.output_name(head.name) for head in bundle.model.heads],
        "model": model,
    }


def _formula(ranker: Ranker, heads: list[str]) -> tuple[FormulaProgram, NDArray[float64]]:
    """Return the formula's native form, and (items + 1, numbers) that it reads of items.

    The last row is that of an item that is not in the catalogue.
    """
    prepared, formula = ranker.prepared, ranker.formula
    n_rows = 1 if prepared is None else len(prepared.catalogue) + 1
    program = None if formula is None else formula.program(heads)
    if program is None:
        return FormulaProgram([], []), np.zeros((n_rows, 0))
    numbers = np.full((n_rows, len(program.columns)), np.nan)
    if prepared is not None:
        for index, name in enumerate(program.columns):
            numbers[:-1, index] = prepared.numbers[name]
    return program, numbers


def _curve(bundle: Bundle, head: BundleHead) -> dict[str, Any] | None:
    """Return the map from a head's logits to scores; None if it has no native form."""
    calibration = bundle.calibration.get(head.name)
    if head.by_class:
        return None  # Python's server scores it
    curve = {
        "head": head.name,
        "column": head.start,
        "link": head.link if calibration is None else "sigmoid",
        "slope": 1.0,
        "intercept": 0.0,
        "through": -1,
        "points": [],
        "values": [],
    }
    match calibration:
        case None if head.through is not None:
            curve["through"] = head.through
        case Platt():
            curve |= {"slope": calibration.slope, "intercept": calibration.intercept}
        case PriorCorrection():
            curve["intercept"] = math.log(calibration.rate)
        case Isotonic():
            slope, y = calibration.slope, np.array(calibration.values)
            values = y if slope is None else np.log(y / (1.0 - y))
            curve |= {"points": list(calibration.logits), "values": values.tolist()}
            curve |= {"slope": slope or 0.0, "link": "identity" if slope is None else "sigmoid"}
    return curve


_decoder = msgspec.json.Decoder(RankRequest)
_PERIOD_S = 0.05
_MAX_SAMPLED = 2  # requests per period: a sample need not grow with the load


@dataclass(kw_only=True, eq=False)
class NativeVersion:
    """A version that is served natively, and the counts of its route that were read last."""

    route: RankRoute
    model: str  # The model's name
    version: LoadedVersion
    catalogue: Catalogue | None  # The catalogue that the route was made with
    ranker: Ranker = field(init=False)
    numbers: Mapping[str, NDArray[float64]] = field(
        init=False
    )  # The catalogue's columns that a formula reads
    last_seen: ScoreCounts = field(init=False)
    last_inferred: tuple[int, int, float] = (0, 0, 0.0)

    def __post_init__(self) -> None:
        self.ranker = self.version.ranker
        prepared = self.ranker.prepared
        self.numbers = {} if prepared is None else prepared.numbers
        self.last_seen = self._counts()

    def _counts(self) -> ScoreCounts:
        requests, scores, total, bins, undefined, unknown = self.route.figures()
        return ScoreCounts(requests, scores, total, np.array(bins, np.int64), undefined, unknown)

    def new_counts(self) -> ScoreCounts:
        """Return what was counted since the last call."""
        before, self.last_seen = self.last_seen, self._counts()
        return self.last_seen.since(before)

    def new_inferred(self) -> tuple[int, int, float]:
        """Return requests for scores of rows, rows and seconds since the last call."""
        before, self.last_inferred = self.last_inferred, self.route.inferred()
        now = self.last_inferred
        return now[0] - before[0], now[1] - before[1], now[2] - before[2]


class NativeStats:
    """Passes the counts and records of native threads to the metrics, the logs and the shadow."""

    def __init__(self, service: Service, native: NativeServer) -> None:
        self._service, self._native = service, native
        is_only = len(service.models.registries) == 1
        # By whether it is for scores of rows, not for a ranking
        self._labels = {
            False: "/v1/rank" if is_only else "/v1/models/{model}:rank",
            True: "/v2/models/{model}/infer",
        }
        names = service.models.registries
        self._models = {path: name for name in names for path in self.paths(name)}
        self._lock = threading.Lock()
        self._versions: dict[RankRoute, NativeVersion] = {}
        self._shadows: dict[str, ShadowScoring | None] = {}
        self._answers: dict[tuple[bool, int], tuple[int, float, NDArray[int64]]] = {}
        self._endings: dict[str, int] = {}
        self._in_flight = self._dropped = self._sampled = 0
        self._closing = threading.Event()
        self._thread = service.monitor.start("accounts", self._turn)

    def paths(self, model: str) -> tuple[str, str]:
        """Return the paths of a model's rankings, and of its scores of rows."""
        return self._labels[False].format(model=model), self._labels[True].format(model=model)

    def follow(self, versions: Iterable[NativeVersion], set_routes: Callable[[], None]) -> None:
        """Set routes to these versions, and count their requests."""
        with self._lock:  # in between they would pass for versions that are no longer in use
            self._versions |= {native.route: native for native in versions}
            set_routes()

    def set_shadow(self, model: str, shadow: ShadowScoring | None) -> None:
        """Set the shadow that scores a model's answers again; None: there is none."""
        self._shadows[model] = shadow

    def close(self) -> None:
        """Pass on the last counts and records, and stop."""
        self._closing.set()
        self._thread.join(10.0)

    def _turn(self) -> bool:
        ending = self._closing.wait(_PERIOD_S)
        try:
            self._take_records()
        finally:
            self.publish()
        return not ending

    def _safely(self, work: Callable[[], None]) -> None:
        """Log the failure of one record, so that the others are still handled."""
        try:
            work()
        except Exception as error:  # a bug: logged; serving goes on
            self._thread.failed(error)

    # ---- counts ---------------------------------------------------------------------------------

    def publish(self) -> None:
        """Add the counts since the last call to the server's metrics."""
        metrics = self._service.metrics
        with self._lock:
            for kind, (n, seconds, bins) in self._native.answers().items():
                before = self._answers.get(kind, (0, 0.0, np.zeros(len(bins), np.int64)))
                if n > before[0]:
                    counts = np.array(bins, np.int64)
                    new_seconds, new_counts = seconds - before[1], counts - before[2]
                    metrics.answered_many(self._labels[kind[0]], kind[1], new_seconds, new_counts)
                    self._answers[kind] = (n, seconds, counts)
            for native in list(self._versions.values()):
                self._publish_version(native)
            for why, n in self._native.endings().items():
                if n > self._endings.get(why, 0):
                    metrics.connections_ended.labels(why).inc(n - self._endings.get(why, 0))
                    self._endings[why] = n
            in_flight = self._native.in_flight
            if in_flight != self._in_flight:
                metrics.in_flight.inc(in_flight - self._in_flight)
                self._in_flight = in_flight
                metrics.queue.set(self._service.slots.inside)

    def _publish_version(self, native: NativeVersion) -> None:
        is_over = not native.route.in_use  # before the counts are read: they are then final
        counts = native.new_counts()
        if counts.requests:
            native.version.native_requests += counts.requests
            self._service.metrics.scored_many(native.model, native.version.name, counts)
        inferred = native.new_inferred()
        if inferred[0]:
            self._service.statistics.answered_many(native.model, native.version.name, *inferred)
        if is_over:
            del self._versions[native.route]

    # ---- records --------------------------------------------------------------------------------

    def _take_records(self) -> None:
        self._sampled = 0
        with self._lock:  # a version is forgotten when no record that waits there is of it
            records, versions = self._native.take_records(), dict(self._versions)
        for record in records:
            native = None if record[0] is None else versions.get(record[0])
            self._safely(partial(self._take_record, native, *record[1:]))
        dropped, self._dropped = self._dropped, self._native.dropped
        if self._dropped > dropped and self._service.on_dropped is not None:
            self._service.on_dropped(self._dropped - dropped)

    def _take_record(
        self,
        native: NativeVersion | None,
        path: str,
        request_id: str,
        caller: str,
        body: bytes,
        time_us: int,
        seconds: float,
        status: int,
        sampled: bool,
        is_unlogged: bool,
        n_rows: int,
        infers: bool,
        json_length: int,
        order: NDArray[int64],
        scores: NDArray[float64],
        unknown: NDArray[int64],
        logits: NDArray[float32],
    ) -> None:
        self._sampled += sampled
        if sampled:
            attributes = {
                "http.request.method": "POST",
                "url.path": path,
                "http.response.status_code": status,
                "widedeep.request_id": request_id,
                "widedeep.model": None if native is None else native.model,
                "widedeep.version": None if native is None else native.version.name,
                "widedeep.rows": n_rows,
            }
            traces.past_request(seconds, time_us, attributes)
        counts_unseen = sampled and self._sampled <= _MAX_SAMPLED
        if native is not None and infers and counts_unseen:
            self._safely(partial(self._count_unseen, native, body, json_length))
        is_offered = self._service.on_ranked is not None and is_unlogged
        is_shadowed = native is not None and self._shadows.get(native.model) is not None
        if native is not None and not infers and (is_offered or counts_unseen or is_shadowed):
            request: RankRequest = _decoder.decode(body)
            ranking = _ranking(native, request, order, scores, unknown, logits)
            ranked = _ranked(native, request, request_id, ranking, time_us)
            passes = partial(self._pass_on, ranked, request.head, is_offered, counts_unseen)
            self._safely(passes)
        if status >= self._service.log.min_status:
            self._service.log.request(
                request_id=request_id,
                method="POST",
                path=path,
                status=status,
                ms=round(seconds * 1e3, 3),
                model=self._models.get(path),
                version=None if native is None else native.version.name,  # None: refused
                rows=n_rows or None,
                caller=caller or None,
            )

    def _count_unseen(self, native: NativeVersion, body: bytes, json_length: int) -> None:
        length = None if json_length < 0 else str(json_length)
        row = open_inference.first_row(native.ranker.bundle, body, length)
        self._service.count_unseen_values(native.model, native.ranker, row)

    def _pass_on(
        self, ranked: Ranked, head: str | None, is_offered: bool, counts_unseen: bool
    ) -> None:
        service = self._service
        if is_offered and service.on_ranked is not None:
            service.on_ranked(ranked)
        if counts_unseen:
            service.count_unseen_values(
                ranked.model, ranked.ranker, {**ranked.user, **ranked.context}
            )
        shadow = self._shadows.get(ranked.model)
        # The shadow ranks as it does by default alone.
        if shadow is not None and shadow.version != ranked.version and head is None:
            query = (ranked.user, ranked.context, ranked.candidates)
            shadow.offer(AnsweredRequest(*query, None, ranked.ranking, ranked.ranker))


def _ranking(
    native: NativeVersion,
    request: RankRequest,
    order: NDArray[int64],
    scores: NDArray[float64],
    unknown: NDArray[int64],
    logits: NDArray[float32],
) -> Ranking:
    """Return the ranking of a natively answered request, as the ranker would."""
    ranker, items = native.ranker, request.items
    query = request.user.keys() | request.context.keys()
    absent = {name: 1 for name in ranker.scorer.query_columns if name not in query}
    ids = request.candidates or []
    if items is not None:
        ids, _ = inline_items(items, ranker.item_id)
        columns = ranker.scorer.transform.item_columns
        absent |= {name: len(ids) for name in columns if name not in items}
    formula = ranker.formula if request.head is None else None
    terms: dict[str, NDArray[float64]] = {}
    if formula is not None:
        numbers = partial(_formula_numbers, native, ids, items)
        _, terms = formula.scores(logits.reshape(len(ids), -1), numbers)
    is_unknown = np.zeros(len(order), bool)
    is_unknown[unknown] = True
    return Ranking(
        items=[ids[position] for position in order.tolist()],
        scores=scores,
        positions=order,
        unknown=is_unknown,
        catalogue_version=None if native.catalogue is None else native.catalogue.version,
        absent=absent,
        rank_by=None if formula is None else formula.formula.text,
        terms={name: values[order] for name, values in terms.items()},
    )


def _formula_numbers(
    native: NativeVersion, ids: list[Any], items: dict[str, list[Any]] | None, name: str
) -> NDArray[float64]:
    """Return the numbers of a request's items that its formula reads."""
    if items is not None or native.catalogue is None:
        return inline_numbers(items or {}, name)
    return np.append(native.numbers[name], np.nan)[native.catalogue.find(ids)[0]]  # -1: unknown


def _ranked(
    native: NativeVersion, request: RankRequest, request_id: str, ranking: Ranking, time_us: int
) -> Ranked:
    return Ranked(
        request_id=request_id,
        model=native.model,
        version=native.version.name,
        user=request.user,
        context=request.context,
        candidates=request.items if request.candidates is None else request.candidates,
        ranking=ranking,
        ranker=native.ranker,
        time_us=time_us,
        catalogue=native.catalogue,
    )


_MAX_BODY = 1 << 20  # longer bodies go to Python
_PATH_MARKS = "/:!$&'()*+,;=@"  # that a target holds as they are, besides letters and digits
_MAX_QUEUED_RECORDS = 2048


def can_serve_natively(service: Service) -> bool:
    """Tell whether requests can be answered natively: without TLS, and where that is wanted."""
    settings = service.settings
    return has_native_server() and settings.native and settings.tls_certificate is None


class NativeConnections:
    """The native threads of a server, and the hand-off of connections to the Python server."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self._service = service
        self._handoff_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._end = 0.0
        self._native: NativeServer = NativeServer(
            listening.fileno(), self._handoff_event, service.slots, _options(service)
        )
        self._stats = NativeStats(service, self._native)
        self._accepting: set[asyncio.Task[None]] = set()
        service.publishers.insert(0, self._stats.publish)
        for name, registry in service.models.registries.items():
            registry.subscribe(partial(self._prepare, name), partial(self._set_routes, name))

    # ---- routes ---------------------------------------------------------------------------------

    def _prepare(self, model: str, version: LoadedVersion) -> None:
        """Make the native form of a version before it answers."""
        self._native_version(model, version)

    def _native_version(self, model: str, version: LoadedVersion) -> NativeVersion | None:
        """Return the version's native form with its present catalogue; None: Python must answer."""
        catalogue = version.ranker.catalogue
        if isinstance(version.native, tuple) and version.native[0] is catalogue:
            before: NativeVersion | None = version.native[1]
            return before
        route = new_route(version.ranker, model, version.name, self._service.impressions)
        native = None
        if route is not None:
            native = NativeVersion(route=route, model=model, version=version, catalogue=catalogue)
        version.native = (catalogue, native)
        return native

    def _set_routes(self, model: str, routes: Routes) -> None:
        stable = canary = None
        if routes.default is not None:
            stable = self._native_version(model, routes.default)
        has_canary = routes.canary is not None and routes.canary_fraction > 0
        if routes.canary is not None and has_canary:
            canary = self._native_version(model, routes.canary)
        if stable is None or (has_canary and canary is None):
            stable = canary = None  # Python answers for both
        self._stats.set_shadow(model, routes.shadow)
        rank, infer = self._stats.paths(model)
        first = None if stable is None else stable.route
        second = None if canary is None else canary.route
        infers = all(route is None or route.infers for route in (first, second))
        share, is_logged = routes.canary_fraction, self._service.on_ranked is not None

        def set_routes() -> None:
            set_both = self._native.set_routes
            # Native threads compare targets as they are sent: one that is escaped is for Python.
            ranks, scores = (quote(path, safe=_PATH_MARKS) == path for path in (rank, infer))
            first_rank, first_infer = first if ranks else None, first if infers and scores else None
            set_both(rank, first_rank, second, share, routes.shadow is not None, is_logged)
            set_both(infer, first_infer, second, share, False, False)

        self._stats.follow([each for each in (stable, canary) if each is not None], set_routes)

    # ---- connections ----------------------------------------------------------------------------

    def start(self, new_protocol: NewProtocol) -> None:
        """Begin to accept connections that the native threads hand over; on the event loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._handoff_event, self._pop_handoffs, loop, new_protocol)

    def _pop_handoffs(self, loop: asyncio.AbstractEventLoop, new_protocol: NewProtocol) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._handoff_event)
        for descriptor, read in self._native.pop_handoffs():
            owner = NativeOwner(self._native)
            new = partial(new_protocol, owner, read)
            task = loop.create_task(self._accept(loop, descriptor, owner, new))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _accept(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        owner: NativeOwner,
        new_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        connection = socket.socket(fileno=descriptor)
        try:
            await loop.connect_accepted_socket(new_protocol, connection)
        except Exception as error:  # closed by the caller, or no descriptor is free
            connection.close()
            owner.lost()
            if not isinstance(error, OSError):
                self._service.metrics.bugs.inc()
                self._service.log.bug(error)

    # ---- the end --------------------------------------------------------------------------------

    def announce_end(self) -> None:
        """Have every answer close its connection."""
        self._native.announce_end()

    async def drain(
        self, end: float, give_up: Callable[[], bool], is_waiting: Callable[[], bool]
    ) -> None:
        """Wait for the open connections, then accept no more."""
        self._native.drain()
        while self._native.connections_before_drain or self._accepting or is_waiting():
            if time.monotonic() > end or give_up():
                break
            await asyncio.sleep(0.02)
        self._end = end
        self._native.stop_accepting()
        while self._native.is_accepting and time.monotonic() < end:
            await asyncio.sleep(0.002)

    def accept_handoff(self, descriptor: int) -> None:
        """Serve a connection that came too late for the native threads to accept it."""
        self._native.accept_handoff(descriptor)

    async def finish(self, give_up: Callable[[], bool]) -> None:
        """Wait until the last connections are closed, no longer than :meth:`drain` may."""
        while self._native.connections or self._accepting:
            if time.monotonic() > self._end or give_up():
                break
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Stop the threads, and cut off the connections that are still open."""
        for registry in self._service.models.registries.values():
            registry.subscribe(None, None)
        self._native.stop()
        self._stats.close()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._handoff_event)
        os.close(self._handoff_event)


class NativeOwner:
    """The native server as the owner of one connection that it handed to the Python server."""

    def __init__(self, native: NativeServer) -> None:
        self._native, self._is_handed_over = native, True

    def return_connection(self, transport: asyncio.Transport) -> bool:
        """Return the connection between two requests: its transport is closed, not its socket."""
        try:
            descriptor = os.dup(transport.get_extra_info("socket").fileno())
        except OSError:
            return False
        transport.pause_reading()
        transport.close()
        self._is_handed_over = False
        self._native.return_connection(descriptor)
        return True

    def lost(self) -> None:
        """Note that the Python server has closed the connection."""
        if self._is_handed_over:
            self._is_handed_over = False
            self._native.closed_elsewhere()


NewProtocol: TypeAlias = Callable[[NativeOwner, bytes], asyncio.Protocol]


def _options(service: Service) -> dict[str, object]:
    settings, log = service.settings, service.log
    processors = len(os.sched_getaffinity(0))
    return {
        "threads": max(1, min(settings.threads, processors // settings.workers)),
        "most_candidates": settings.max_candidates,
        "inline_s": settings.inline_ms / 1e3,
        "deadline_s": settings.deadline_ms / 1e3,
        "longest_deadline_s": settings.longest_deadline_ms / 1e3,
        "queued_records": _MAX_QUEUED_RECORDS,
        "sampled": UNSEEN_SAMPLE,
        "log": None if service.impressions is None else service.impressions.native,
        "records_all": log.min_status <= 200,
        "records_errors": log.min_status <= 503,
        "second_edges": list(REQUEST_SECONDS),
        "busy": busy_error().body(),
        "late": late_error().body(),
        "keys": None if service.keys is None else service.keys.native,
        "late_head": HEADER_TIMEOUT,
        "late_body": final_response("408 Request Timeout", late_body(settings.body_timeout_s)),
        "full": FULL,
        "max_connections": settings.max_connections,
        "traced": traces.is_on(),
        "longest_body": min(settings.max_body, _MAX_BODY),
        "head_s": settings.head_timeout_s,
        "body_s": settings.body_timeout_s,
        "write_s": settings.write_timeout_s,
        "idle_s": settings.idle_timeout_s,
    }
