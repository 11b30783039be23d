"""Every path of the server, its OpenAPI description, and the ASGI application."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.routing import Match, Route

from widedeep import __version__
from widedeep.serving.background import RequestLog
from widedeep.serving.http import admin, health, open_inference, page, rank, tensorflow
from widedeep.serving.http import rank as recommend
from widedeep.serving.http.admin import check_operator
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import (
    ADMITTED,
    Call,
    Disconnected,
    Reply,
    Service,
    busy_error,
    json_reply,
)
from widedeep.serving.http.settings import Settings

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{name}"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is answered in place of what was asked for."""

    error: str
    pointer: str | None = None


def openapi_document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the document of a server."""
    found = [endpoint for endpoint in endpoints if endpoint.listed]
    types: list[Any] = [Problem]
    for endpoint in found:
        types += [each for each in (endpoint.takes, endpoint.gives) if each not in (None, *types)]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in found:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "widedeep", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    problem = _content(Problem)
    names = _PARAMETER.findall(endpoint.path)
    verb = re.sub(r"\W+", "_", endpoint.path).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}_{verb}",
        "summary": (endpoint.run.__doc__ or "").partition("\n")[0],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "responses": {
            "200": {"description": "The answer.", "content": _content(endpoint.gives)},
            "4XX": {"description": "What is wrong with the request.", "content": problem},
            "5XX": {"description": "Why the server cannot answer now.", "content": problem},
        },
    }
    if endpoint.path in ("/health/ready", "/v2/health/ready") or endpoint.path.endswith("/ready"):
        operation["responses"]["503"] = {
            "description": "Not ready.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    if endpoint.gives is None and endpoint.path == "/metrics":
        operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if endpoint.takes is not None:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.takes)}
    if endpoint.scores:
        operation["parameters"].append(
            {
                "name": "X-Request-Timeout-Ms",
                "in": "header",
                "description": "How long the caller waits, in milliseconds; then 504.",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            }
        )
    if endpoint.access != "open":
        operation["security"] = [{"bearer": []}, {"key": []}, {}]
    return operation


def _content(kind: Any) -> dict[str, Any]:
    if kind is None:
        return {"application/json": {"schema": {}}}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return {"application/json": {"schema": schema}}


Access: TypeAlias = Literal["open", "key", "admin"]
Run: TypeAlias = Callable[[Service, Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path of the server."""

    method: str  # ``"GET"`` or ``"POST"``
    path: str  # With its parameters in braces
    run: Run  # Answers
    # Who may call it where keys are asked for: anyone, callers, or operators
    access: Access = "key"
    scores: bool = False  # Whether it computes, and so waits in the queue
    takes: Any = None  # The type of its body
    gives: Any = None  # The type of its answer
    # Whether the OpenAPI document tells of it; not what only the server's page asks for
    listed: bool = True


def endpoints(settings: Settings) -> Iterator[Endpoint]:
    """Yield the paths that a server with these settings has."""
    yield _rank("/v1/rank")
    yield _recommend()
    yield from _health()
    yield from _open_inference()
    yield from _tensorflow()
    if settings.page:
        yield from _page(settings)
    if settings.admin:
        yield from _admin()


def _rank(path: str) -> Endpoint:
    takes, gives = rank.RankRequest, rank.RankReply
    return Endpoint("POST", path, rank.rank, scores=True, takes=takes, gives=gives)


def _recommend() -> Endpoint:
    takes, gives = recommend.RecommendRequest, rank.RankReply
    run = recommend.recommend
    return Endpoint("POST", "/v1/recommend", run, scores=True, takes=takes, gives=gives)


def _health() -> Iterator[Endpoint]:
    async def openapi(service: Service, call: Call) -> Reply:
        """Describe the server's paths in OpenAPI's words."""
        return json_reply(openapi_document(endpoints(service.settings)))

    yield Endpoint("GET", "/openapi.json", openapi, "open")
    yield Endpoint("GET", "/metrics", health.metrics, "open")
    for path in ("/health/live", "/v2/health/live"):
        yield Endpoint("GET", path, health.live, "open")
    for path in ("/health/ready", "/v2/health/ready"):
        yield Endpoint("GET", path, health.ready, "open")
    yield Endpoint("GET", "/v1/status", health.status)


def _page(settings: Settings) -> Iterator[Endpoint]:
    async def live(service: Service, call: Call) -> Reply:
        """Return the figures that the page draws."""
        return await page.live(service, call, scoring)

    for path in page.FILES:
        yield Endpoint("GET", path, page.file, "open", listed=False)
    yield Endpoint("GET", "/v1/page/choices", page.choices, listed=False)
    yield Endpoint("GET", "/v1/page/live", live, listed=False)
    others = endpoints(replace(settings, page=False))
    scoring = frozenset(endpoint.path for endpoint in others if endpoint.scores)


def _open_inference() -> Iterator[Endpoint]:
    yield Endpoint("GET", "/v2", open_inference.server)
    yield Endpoint("GET", "/v2/models/stats", open_inference.statistics)
    yield Endpoint("POST", "/v2/repository/index", open_inference.index)
    model = "/v2/models/{model}"
    for at in (model, model + "/versions/{version}"):
        yield Endpoint("GET", at, open_inference.metadata)
        yield Endpoint("GET", at + "/ready", open_inference.model_ready)
        yield Endpoint("GET", at + "/stats", open_inference.statistics)
        infer = open_inference.infer
        takes = open_inference.InferRequest
        yield Endpoint("POST", at + "/infer", infer, scores=True, takes=takes)


def _tensorflow() -> Iterator[Endpoint]:
    model = "/v1/models/{model}"
    for at in (model, model + "/versions/{version}", model + "/labels/{label}"):
        yield _rank(at + ":rank")
        for verb, run, takes in (
            ("predict", tensorflow.predict, tensorflow.PredictRequest),
            ("classify", tensorflow.classify, tensorflow.ExamplesRequest),
            ("regress", tensorflow.regress, tensorflow.ExamplesRequest),
        ):
            yield Endpoint("POST", f"{at}:{verb}", run, scores=True, takes=takes)
        yield Endpoint("GET", at + "/metadata", tensorflow.metadata)
        yield Endpoint("GET", at, tensorflow.status)


def _admin() -> Iterator[Endpoint]:
    for verb, (run, takes) in admin.VERBS.items():
        yield Endpoint("POST", "/admin/models/{model}/" + verb, run, "admin", takes=takes)
    for verb, run in admin.REPOSITORY.items():
        yield Endpoint("POST", "/v2/repository/models/{model}/" + verb, run, "admin")


Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_GONE = 499
_LINE_BREAKS = re.compile(rb"[^\x20-\x7e]")


class App:
    """The server as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._log: RequestLog = service.log or RequestLog("none")
        self._fixed: dict[tuple[str, str], Endpoint] = {}
        self._patterns: list[tuple[Route, Endpoint]] = []
        for endpoint in endpoints(service.settings):
            if "{" not in endpoint.path:
                self._fixed[endpoint.method, endpoint.path] = endpoint
            # Starlette's patterns say what a path means; its calls are passed by.
            route = Route(endpoint.path, endpoint.run, methods=[endpoint.method])
            self._patterns.append((route, endpoint))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        call = Call(scope, receive, self.service.settings)
        route, problem = "none", None
        in_flight = self.service.metrics.in_flight
        in_flight.inc()
        try:
            call.check_headers()
            endpoint = self._find(call)
            route = endpoint.path
            reply = await self._answer(endpoint, call)
        except HttpError as error:
            reply, problem = Reply(error.body(), error.status, headers=error.headers()), error
            if error.status == 408:
                self.service.metrics.connections_ended.labels("late body").inc()
        except (Disconnected, asyncio.CancelledError):
            self._finished(call, route, _GONE, None)
            raise_if_cancelled()
            return
        except Exception as error:  # a bug: told to the operator, not to the caller
            reply, problem = self._bug(error, call, route), None
        finally:
            in_flight.dec()
            if scope.get(ADMITTED):
                self.service.slots.leave()
            # A body whose end comes after the answer must not take a slot that nobody leaves.
            scope[ADMITTED] = False
        await self._send(send, call, reply)
        self._finished(call, route, reply.status, problem)

    def _find(self, call: Call) -> Endpoint:
        found = self._fixed.get((call.method, call.path))
        if found is not None:
            return found
        allowed = set()
        for route, endpoint in self._patterns:
            match, child = route.matches(call.scope)
            if match is Match.FULL:
                call.params = child["path_params"]
                return endpoint
            if match is Match.PARTIAL:
                allowed.add(endpoint.method)
        if allowed:
            raise MethodError(call, sorted(allowed))
        raise HttpError(404, f"got the path {call.path!r}; see /openapi.json for those there are")

    async def _answer(self, endpoint: Endpoint, call: Call) -> Reply:
        service = self.service
        if service.keys is not None and endpoint.access != "open":
            offered = _key(call)
            call.caller = service.keys.check(offered, admin=endpoint.access == "admin").name
        if endpoint.access == "admin":
            check_operator(call, service.settings)
        if not endpoint.scores:
            return await endpoint.run(service, call)
        call.read_deadline()
        await call.body()  # a body that trickles in must not hold a slot
        admitted = call.scope.get(ADMITTED)
        if admitted is None:  # a server that took no slot when the body came
            admitted = call.scope[ADMITTED] = service.slots.enter()
        if not admitted:
            raise busy_error()
        return await endpoint.run(service, call)

    def _bug(self, error: Exception, call: Call, route: str) -> Reply:
        self.service.metrics.bugs.inc()
        self._log.bug(error, request_id=call.request_id, path=call.path, route=route)
        message = f"the server failed; its log tells more under the request id {call.request_id}"
        return Reply(HttpError(500, message).body(), 500)

    async def _send(self, send: Send, call: Call, reply: Reply) -> None:
        identity = _LINE_BREAKS.sub(b"?", call.request_id.encode("utf-8", "replace"))
        headers = [
            (b"content-type", reply.media_type),
            (b"content-length", str(len(reply.body)).encode()),
            (b"x-request-id", identity),
            *reply.headers,
        ]
        if self.service.draining:
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": reply.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": reply.body})

    def _finished(self, call: Call, route: str, status: int, problem: HttpError | None) -> None:
        seconds = time.monotonic() - call.arrived
        self.service.metrics.queue.set(self.service.slots.inside)
        self.service.metrics.answered(route, status, seconds)
        if self._log.wants(status):
            self._log.request(
                request_id=call.request_id,
                method=call.method,
                path=call.path,
                status=status,
                ms=round(seconds * 1e3, 3),
                model=call.model,
                version=call.version,
                rows=call.rows or None,
                caller=call.caller,
                error=problem.message if problem else None,
            )


class MethodError(HttpError):
    """405, with the methods that a path does have."""

    def __init__(self, call: Call, allowed: list[str]) -> None:
        names = " or ".join(allowed)
        super().__init__(405, f"got {call.method} for {call.path!r}, expected {names}")
        self._allowed = ", ".join(allowed).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers beside those of every answer."""
        return [*super().headers(), (b"allow", self._allowed)]


def _key(call: Call) -> str | None:
    bearer = call.header(b"authorization")
    if bearer is not None and bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    return call.header(b"x-api-key")


def raise_if_cancelled() -> None:
    """Let a cancelled task end as cancelled: the server waits for that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
