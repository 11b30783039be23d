"""What every handler is given: the call with its body and reply, and the service behind it."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from widedeep import traces
from widedeep.data.batch import count_values
from widedeep.errors import ConfigError, nearest
from widedeep.kernels import QueueSlots
from widedeep.serving.background import RequestLog, ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.config import Settings
from widedeep.serving.http.auth import Keys
from widedeep.serving.http.errors import HttpError, bad_json
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.live_drift import LiveDrift
from widedeep.serving.metrics import ServerMetrics
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.registry import NoVersion, Registry, Served
from widedeep.serving.retrieval import Retrievers

Message: TypeAlias = MutableMapping[str, Any]
Shape = TypeVar("Shape")
Result = TypeVar("Result")

ARRIVED = "widedeep.arrived"
ADMITTED = "widedeep.admitted"
"""Keys of the ASGI scope that the protocol sets: the request's arrival time, and whether it was
admitted to the queue."""

JSON = b"application/json"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Must be unique: two readers of a repeated header could each believe another value.
_SINGLE = {
    *(b"authorization", b"content-encoding", b"content-type", b"host", b"origin", b"x-api-key"),
    *(b"inference-header-content-length", b"x-request-id", b"x-request-timeout-ms"),
}
_MAX_INFLATION = 64  # times the size of a compressed body
_MIN_INFLATED = 64 << 10  # bytes that any compressed body may become
_encoder = msgspec.json.Encoder()


class Disconnected(Exception):
    """The caller has closed the connection; nobody waits for an answer."""


@dataclass(slots=True)
class Reply:
    """The answer to a call."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # Beside those of every answer


def json_reply(value: object, status: int = 200) -> Reply:
    """Return an answer in JSON."""
    try:
        return Reply(_encoder.encode(value), status)
    except UnicodeEncodeError as error:
        raise bad_json(error) from error


class Call:
    """One HTTP request: its headers, path parameters, body, deadline, and fields for the log."""

    def __init__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], settings: Settings
    ) -> None:
        self.scope, self._receive, self._settings = scope, receive, settings
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.params: dict[str, str] = {}
        self.arrived: float = scope.get(ARRIVED) or time.monotonic()
        request_id = self.headers.get(b"x-request-id")
        has_id = request_id is not None and _ID.fullmatch(request_id)
        self.request_id = request_id.decode() if request_id and has_id else uuid.uuid4().hex
        self.deadline = self.arrived + settings.deadline_ms / 1e3
        self.model: str | None = None
        self.version: str | None = None
        self.caller: str | None = None
        self.rows = 0
        self._body: bytes | None = None

    def check_headers(self) -> None:
        """Refuse a repeated header that must be unique."""
        seen: set[bytes] = set()
        for name, _ in self.scope["headers"]:
            if name in seen and name in _SINGLE:
                raise HttpError(400, f"got the header {name.decode()} twice; send it once")
            seen.add(name)

    def header(self, name: bytes) -> str | None:
        """Return a header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def set_deadline(self, text: str) -> None:
        """Set the deadline by the header X-Request-Timeout-Ms."""
        try:
            wait_ms = float(text)
        except ValueError:
            wait_ms = 0.0
        if not wait_ms > 0:
            raise HttpError(
                400, f"header X-Request-Timeout-Ms: got {text!r}, expected milliseconds above 0"
            )
        self.deadline = self.arrived + min(wait_ms, self._settings.longest_deadline_ms) / 1e3

    async def body(self) -> bytes:
        """Return the body, decompressed."""
        if self._body is not None:
            return self._body
        limit = self._settings.max_body
        length = self.headers.get(b"content-length", b"0")
        if len(length) > 15 or int(length) > limit:
            raise self._too_large()
        if self.scope.get(ADMITTED) is None:
            body = await self._read_chunks()
        else:  # the protocol has all of it
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body = message.get("body", b"")
        if len(body) > limit:
            raise self._too_large()
        encoding = self.headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            body = self._decompress(body, encoding.decode("latin-1"))
        self._body = body
        return body

    async def _read_chunks(self) -> bytes:
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._settings.max_body:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise late_body(self._settings.body_timeout_s) from error
        return b"".join(chunks)

    def _too_large(self) -> HttpError:
        return HttpError(
            413,
            f"got a body of more than {self._settings.max_body} bytes; send fewer candidates",
            close=True,
        )

    def _decompress(self, body: bytes, encoding: str) -> bytes:
        # 15 + 32: zlib's or gzip's own header, whichever comes.
        window = {"gzip": 15 + 32, "deflate": 15 + 32}.get(encoding)
        if window is None:
            raise HttpError(
                415, f"got Content-Encoding {encoding!r}, expected identity, gzip or deflate"
            )
        inflate = zlib.decompressobj(window)
        limit = min(self._settings.max_body, _MAX_INFLATION * len(body) + _MIN_INFLATED)
        try:
            inflated = inflate.decompress(body, limit + 1)
        except zlib.error as error:
            raise HttpError(400, f"got a body that is no {encoding} ({error})") from error
        if len(inflated) > self._settings.max_body:
            raise self._too_large()
        if len(inflated) > limit:
            raise HttpError(
                413,
                f"got {len(body)} bytes of {encoding} that become more than {limit}, "
                f"{_MAX_INFLATION} times their size; send the body as it is",
            )
        if not inflate.eof:
            raise HttpError(400, f"got a {encoding} body that ends too early; send all of it")
        if inflate.unused_data:
            raise HttpError(400, f"got bytes behind the end of a {encoding} body; send one stream")
        return inflated

    async def json(self, decoder: msgspec.json.Decoder[Shape]) -> Shape:
        """Return the body as a decoder reads it."""
        self.check_media_type(b"application/json")
        body = await self.body()
        with traces.span("parse"):
            return decode(body, decoder)

    def check_media_type(self, *allowed: bytes) -> None:
        """Raise the answer 415 for a body of another type; that of plain `curl -d` is JSON."""
        media_type = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if media_type and media_type not in (*allowed, b"application/x-www-form-urlencoded"):
            names = " or ".join(name.decode() for name in allowed)
            got = media_type.decode("latin-1")
            raise HttpError(415, f"got Content-Type {got!r}, expected {names}")


def late_body(seconds: float) -> HttpError:
    """Return the answer to a request whose body did not arrive in time."""
    message = f"the body did not arrive within {seconds:g} s; send all of it at once"
    return HttpError(408, message, close=True)


def decode(body: bytes, decoder: msgspec.json.Decoder[Shape]) -> Shape:
    """Decode JSON; raise the answer 400 for what does not fit."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        fields = getattr(decoder.type, "__struct_encode_fields__", ())
        raise bad_json(error, body, fields) from error


class Models:
    """The models of a server, by name."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self.registries = dict(registries)

    def ready(self) -> bool:
        """Tell whether every model can answer."""
        return all(registry.ready() for registry in self.registries.values())

    def registry(self, name: str | None) -> Registry:
        """Return a model's registry."""
        if name is None:
            if len(self.registries) > 1:
                names = ", ".join(map(repr, self.registries))
                raise HttpError(400, f"got no model; name one of {names}", pointer="/model")
            return next(iter(self.registries.values()))
        registry = self.registries.get(name)
        if registry is None:
            raise HttpError(404, f"got model {name!r}; {nearest(name, self.registries)}")
        return registry

    def name_of(self, name: str | None) -> str:
        """Return a model's name; None stands for the only model."""
        return next(iter(self.registries)) if name is None else name

    @contextmanager
    def lease(
        self,
        name: str | None,
        request_id: str,
        version: str | None = None,
        label: str | None = None,
    ) -> Iterator[Served]:
        """Lease a version for one request; raise the answer 404 or 503 if there is none."""
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
    """Counts of one version's requests in this process."""

    answered: int = 0  # Scored requests
    rows: int = 0  # Scored rows
    seconds: float = 0.0  # Time spent on scoring
    failed: int = 0  # Requests that did not fit the model
    failed_seconds: float = 0.0  # Time spent on requests that did not fit
    last: float = 0.0  # Time of the last scored request, seconds since 1970


class Statistics:
    """Request counts of each version."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_version: dict[tuple[str, str], VersionStatistics] = {}

    def answered(self, model: str, version: str, rows: int, seconds: float) -> None:
        """Count a scored request."""
        self.answered_many(model, version, 1, rows, seconds)

    def answered_many(
        self, model: str, version: str, requests: int, rows: int, seconds: float
    ) -> None:
        """Add scored requests that are already counted."""
        with self._lock:
            statistics = self.by_version.setdefault((model, version), VersionStatistics())
            statistics.answered += requests
            statistics.rows += rows
            statistics.seconds += seconds
            statistics.last = time.time()

    def failed(self, model: str, version: str, seconds: float) -> None:
        """Count a request that did not fit the model."""
        with self._lock:
            statistics = self.by_version.setdefault((model, version), VersionStatistics())
            statistics.failed += 1
            statistics.failed_seconds += seconds


def busy_error() -> HttpError:
    """Return the answer to a request for which the queue has no slot."""
    return HttpError(
        503,
        "the server's queue is full; try again after a pause, and lengthen it each time",
        retry_after=1,
    )


_NEW_TIME_WEIGHT = 0.2  # of the latest request in the moving average of seconds per row


class Scheduler:
    """Runs short computations on the event loop, long ones in threads beside it."""

    def __init__(self, threads: int, inline_s: float) -> None:
        self._inline_s = inline_s
        self._seconds_per_row: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="widedeep-rank")

    async def run(
        self, kind: str, rows: int, deadline: float, compute: Callable[[], Result]
    ) -> Result:
        """Compute; raise the answer 504 if the deadline passes before or meanwhile."""
        expected = self._seconds_per_row.get(kind, 1e-5) * rows
        check_deadline(deadline)
        compute = traces.in_context(compute)
        if expected <= self._inline_s:
            result = self._timed(kind, rows, compute)
            check_deadline(deadline)
            return result

        def in_thread() -> Result:
            check_deadline(deadline)
            return self._timed(kind, rows, compute)

        result = await asyncio.get_running_loop().run_in_executor(self._threads, in_thread)
        check_deadline(deadline)
        return result

    def _timed(self, kind: str, rows: int, compute: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = compute()
        took = (time.perf_counter() - start) / max(rows, 1)
        # In a short request the fixed cost dominates: it says little about the cost per row.
        if rows >= 8:
            before = self._seconds_per_row.get(kind, took)
            self._seconds_per_row[kind] = before + _NEW_TIME_WEIGHT * (took - before)
        return result

    def close(self) -> None:
        """Stop the threads; drop what waits for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_deadline(deadline: float) -> None:
    """Raise the answer 504 if the deadline has passed."""
    if time.monotonic() > deadline:
        raise late_error()


def late_error() -> HttpError:
    """Return the answer to a request whose deadline has passed."""
    return HttpError(
        504,
        "the deadline passed before the answer was ready; send fewer candidates, or give the "
        "header X-Request-Timeout-Ms a larger number",
    )


UNSEEN_SAMPLE = 1 / 32
"""Fraction of the requests whose values are checked for ones unseen in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A ranked request, as the impression log receives it."""

    request_id: str
    model: str
    version: str  # The model version that answered
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    candidates: Any  # Ids, or columns
    ranking: Ranking
    ranker: Ranker
    time_us: int | None = None  # Answer time, microseconds since 1970; None: now
    catalogue: Catalogue | None = None  # The items' catalogue; None: the ranker's present one


@dataclass(kw_only=True)
class Service:
    """What the handlers share: models, limits, metrics, logs."""

    models: Models
    settings: Settings = field(default_factory=Settings)
    metrics: ServerMetrics = field(default_factory=lambda: ServerMetrics(CollectorRegistry()))
    keys: Keys | None = None  # The callers' keys; None: no key is needed
    # Called after each ranking, on the request's path: it must not block
    on_ranked: Callable[[Ranked], None] | None = None
    # Called with the number of rankings that could not be passed to `on_ranked`
    on_dropped: Callable[[int], None] | None = None
    threads: int = 1  # Threads that scoring one request may use
    draining: bool = False  # Whether the server has been told to stop
    monitor: ThreadMonitor = field(default_factory=ThreadMonitor)
    impressions: ImpressionLog | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self.log = RequestLog(settings.request_log)
        self.monitor.log, self.monitor.metrics = self.log, self.metrics
        limit = -1 if settings.queue is None else settings.queue
        self.slots = QueueSlots(limit, settings.max_wait_ms / 1e3)
        self.scheduler = Scheduler(settings.threads, settings.inline_ms / 1e3)
        self.statistics = Statistics()
        self.drift = LiveDrift(self.metrics.drifted, self.monitor)
        self.retrievers = Retrievers(settings.popularity, settings.category)
        self.publishers: list[Callable[[], None]] = [self.metrics.score_bins.publish]

    def ready(self) -> bool:
        """Tell whether load balancers should send requests here."""
        return not self.unready()

    def unready(self) -> list[str]:
        """Return the reasons for which load balancers should send no requests here."""
        reasons = ["the server is draining"] if self.draining else []
        reasons += [
            f"model {name!r}: no version is loaded"
            for name, registry in self.models.registries.items()
            if not registry.ready()
        ]
        return reasons + self.monitor.problems()

    def warnings(self) -> list[str]:
        """Return faults that need an operator although requests are answered."""
        warnings = [
            f"model {name!r}: {registry.problem}"
            for name, registry in self.models.registries.items()
            if registry.problem is not None
        ]
        counts = None if self.impressions is None else self.impressions.counts()
        if counts is not None and counts.error is not None:
            warnings.append(
                f"impression log: {counts.error}; {counts.waiting} rows wait, "
                f"{counts.lost_rows} are lost"
            )
        if counts is not None and 0 < counts.offered - counts.left_out == counts.without_user:
            warnings.append(
                f"impression log: none of {counts.without_user} requests has a user's id, so none "
                "is logged; send it in user, or name its column (--log-user)"
            )
        return warnings

    def sample_unseen_values(
        self, model: str, ranker: Ranker, user: Mapping[str, Any], context: Mapping[str, Any]
    ) -> None:
        """Count the unseen values of one request in 32."""
        if random.random() < UNSEEN_SAMPLE:
            self.count_unseen_values(model, ranker, {**user, **context})

    def count_unseen_values(self, model: str, ranker: Ranker, row: Mapping[str, Any]) -> None:
        """Count the values of user and context, those unseen in training, and their drift."""
        bundle = ranker.bundle
        batch = bundle.encode([dict(row)])
        columns = frozenset(row)
        counts = {
            name: value_counts
            for name, value_counts in count_values(bundle.schema, batch).items()
            if getattr(bundle.schema.spec.by_name[name], "source", None) in columns
        }
        self.metrics.looked_up(model, counts)
        self.drift.offer(model, bundle, row)

    def reload_keys(self, *, force: bool = False) -> None:
        """Read the callers' keys again if their file has changed; log a mistake in it."""
        try:
            if self.keys is not None and self.keys.reload(force=force):
                self.log.event("keys read")
        except ConfigError as error:
            self.log.event("keys not read", error=str(error))

    def publish(self) -> None:
        """Add counts that are kept elsewhere to the metrics."""
        for publish in self.publishers:
            publish()
