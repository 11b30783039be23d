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

from widedeep.data.batch import count_values
from widedeep.errors import ConfigError, nearest
from widedeep.kernels.native_server import QueueSlots
from widedeep.serving.background import RequestLog, ThreadMonitor
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.http.auth import Keys
from widedeep.serving.http.errors import HttpError, bad_json
from widedeep.serving.http.settings import Settings
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.metrics import ServerMetrics
from widedeep.serving.ranker import Ranker, Ranking
from widedeep.serving.registry import NoVersion, Registry, Served
from widedeep.serving.retrieval import Retrievers

Message: TypeAlias = MutableMapping[str, Any]
Shape = TypeVar("Shape")
Result = TypeVar("Result")

ARRIVED = "widedeep.arrived"
ADMITTED = "widedeep.admitted"
"""What the protocol knows before the application runs: when the request came, and whether it got a
slot in the queue."""

JSON = b"application/json"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Two readers of a request with two of them could each believe another one.
_SINGLE = {
    *(b"authorization", b"content-encoding", b"content-type", b"host", b"origin", b"x-api-key"),
    *(b"inference-header-content-length", b"x-request-id", b"x-request-timeout-ms"),
}
_MOST_INFLATED = 64
_FREELY_INFLATED = 64 << 10
_encoder = msgspec.json.Encoder()


class Disconnected(Exception):
    """The caller is gone; nobody waits for an answer."""


@dataclass(slots=True)
class Reply:
    """An answer."""

    body: bytes  # Its bytes
    status: int = 200  # The HTTP status
    media_type: bytes = JSON  # Of the body
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # Beside those of every answer


def json_reply(value: object, status: int = 200) -> Reply:
    """Return an answer in JSON."""
    try:
        return Reply(_encoder.encode(value), status)
    except UnicodeEncodeError as error:
        raise bad_json(error) from error


class Call:
    """One request."""

    __slots__ = (
        *(
            "_body",
            "_receive",
            "_settings",
            "arrived",
            "caller",
            "deadline",
            "headers",
            "method",
            "model",
        ),
        *("params", "path", "request_id", "rows", "scope", "version"),
    )

    def __init__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], settings: Settings
    ) -> None:
        self.scope, self._receive, self._settings = scope, receive, settings
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name: value for name, value in scope["headers"]}
        self.params: dict[str, str] = {}
        self.arrived: float = scope.get(ARRIVED) or time.monotonic()
        given = self.header(b"x-request-id")
        self.request_id = given if given and _ID.fullmatch(given) else uuid.uuid4().hex
        self.deadline = self.arrived + settings.deadline_ms / 1e3
        self.model: str | None = None
        self.version: str | None = None
        self.caller: str | None = None
        self.rows = 0
        self._body: bytes | None = None

    def check_headers(self) -> None:
        """Refuse a header twice of which there may be one."""
        given = self.scope["headers"]
        if len(self.headers) == len(given):
            return
        seen: set[bytes] = set()
        for name, _ in given:
            if name in seen and name in _SINGLE:
                raise HttpError(400, f"got the header {name.decode()} twice; send it once")
            seen.add(name)

    def header(self, name: bytes) -> str | None:
        """Return a header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def read_deadline(self) -> None:
        """Take the caller's word for how long it will wait."""
        text = self.header(b"x-request-timeout-ms")
        if text is None:
            return
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
        if self._body is None:
            self._body = await self._read()
        return self._body

    async def _read(self) -> bytes:
        limit = self._settings.max_body
        length = self.headers.get(b"content-length", b"0")
        if len(length) > 15 or int(length) > limit:
            raise self._too_large()
        body = await self._whole()
        if len(body) > limit:
            raise self._too_large()
        encoding = self.headers.get(b"content-encoding")
        if encoding is None or encoding == b"identity":
            return body
        return self._decompressed(body, encoding.decode("latin-1"))

    async def _whole(self) -> bytes:
        if self.scope.get(ADMITTED) is None:
            return await self._trickling()
        message = await self._receive()  # it is all there
        if message["type"] == "http.disconnect":
            raise Disconnected
        body: bytes = message.get("body", b"")
        return body

    async def _trickling(self) -> bytes:
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

    def _decompressed(self, body: bytes, encoding: str) -> bytes:
        # 15 + 32: zlib's or gzip's own header, whichever comes.
        window = {"gzip": 15 + 32, "deflate": 15 + 32}.get(encoding.lower())
        if window is None:
            raise HttpError(
                415, f"got Content-Encoding {encoding!r}, expected identity, gzip or deflate"
            )
        inflate = zlib.decompressobj(window)
        limit = min(self._settings.max_body, _MOST_INFLATED * len(body) + _FREELY_INFLATED)
        try:
            found = inflate.decompress(body, limit + 1)
        except zlib.error as error:
            raise HttpError(400, f"got a body that is no {encoding} ({error})") from error
        if len(found) > self._settings.max_body:
            raise self._too_large()
        if len(found) > limit:
            raise HttpError(
                413,
                f"got {len(body)} bytes of {encoding} that become more than {limit}, "
                f"{_MOST_INFLATED} times their size; send the body as it is",
            )
        if not inflate.eof:
            raise HttpError(400, f"got a {encoding} body that ends too early; send all of it")
        if inflate.unused_data:
            raise HttpError(400, f"got bytes behind the end of a {encoding} body; send one stream")
        return found

    async def json(self, decoder: msgspec.json.Decoder[Shape]) -> Shape:
        """Return the body as a decoder reads it."""
        self.check_media_type(b"application/json")
        return decode(await self.body(), decoder)

    def check_media_type(self, *known: bytes) -> None:
        """Raise the answer 415 for a body of another type."""
        given = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if given and given not in known and given != b"application/x-www-form-urlencoded":
            names = " or ".join(name.decode() for name in known)
            got = given.decode("latin-1")
            raise HttpError(415, f"got Content-Type {got!r}, expected {names}")


def late_body(seconds: float) -> HttpError:
    """The answer to a request whose body did not come in that time."""
    message = f"the body did not come within {seconds:g} s; send it whole"
    return HttpError(408, message, close=True)


def decode(body: bytes, decoder: msgspec.json.Decoder[Shape]) -> Shape:
    """Read a body."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise bad_json(error) from error


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


_RECENT = 0.2


def busy_error() -> HttpError:
    """Return the answer to a request for which the queue has no slot."""
    return HttpError(
        503,
        "the server is busy with as many requests as it takes on; try again, with a growing pause",
        retry_after=1,
    )


class Scheduler:
    """Runs short computations where they are, long ones in threads beside the event loop."""

    def __init__(self, threads: int, inline_s: float) -> None:
        self._inline_s = inline_s
        self._seconds_a_row: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="widedeep-rank")

    async def run(
        self, kind: str, rows: int, deadline: float, compute: Callable[[], Result]
    ) -> Result:
        """Compute, unless the deadline passes before its turn comes or before it is done."""
        expected = self._seconds_a_row.get(kind, 1e-5) * rows
        check_deadline(deadline)
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
        # A single candidate pays for the whole request: it says little of what a row takes.
        if rows >= 8:
            before = self._seconds_a_row.get(kind, took)
            self._seconds_a_row[kind] = before + _RECENT * (took - before)
        return result

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_deadline(deadline: float) -> None:
    """Raise the answer 504 if the deadline is over."""
    if time.monotonic() > deadline:
        raise late_error()


def late_error() -> HttpError:
    """The answer to a request whose deadline has passed."""
    return HttpError(
        504,
        "the deadline passed before the answer was ready; send fewer candidates, or give the "
        "header X-Request-Timeout-Ms a larger number",
    )


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
        limit = -1 if self.settings.queue is None else self.settings.queue
        self.slots = QueueSlots(limit, self.settings.max_wait_ms / 1e3)
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
