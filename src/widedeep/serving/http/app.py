"""The server's routes, their OpenAPI document, and the ASGI application."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.routing import Match, Route

from widedeep import traces
from widedeep._version import __version__
from widedeep.serving.config import Settings
from widedeep.serving.http import admin, health, open_inference, page, rank, tensorflow
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

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{name}"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of an error reply."""

    error: str
    pointer: str | None = None


def openapi_document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI document of these routes."""
    documented = [endpoint for endpoint in endpoints if endpoint.documented]
    types: list[Any] = [Problem]
    for endpoint in documented:
        types += [each for each in (endpoint.request, endpoint.reply) if each not in (None, *types)]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in documented:
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
        "summary": (endpoint.handler.__doc__ or "").partition("\n")[0],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "responses": {
            "200": {"description": "The answer.", "content": _content(endpoint.reply)},
            "4XX": {"description": "What is wrong with the request.", "content": problem},
            "5XX": {"description": "Why the server cannot answer now.", "content": problem},
        },
    }
    if endpoint.path in ("/health/ready", "/v2/health/ready") or endpoint.path.endswith("/ready"):
        operation["responses"]["503"] = {
            "description": "Not ready.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    if endpoint.reply is None and endpoint.path == "/metrics":
        operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if endpoint.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.request)}
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


def _content(body_type: Any) -> dict[str, Any]:
    if body_type is None:
        return {"application/json": {"schema": {}}}
    (schema,), _ = msgspec.json.schema_components([body_type], ref_template=_REF)
    return {"application/json": {"schema": schema}}


Access: TypeAlias = Literal["open", "key", "admin"]
Handler: TypeAlias = Callable[[Service, Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route: a method and a path, the handler, and what OpenAPI says about it."""

    method: Literal["GET", "POST"]
    path: str  # Parameters stand in braces
    handler: Handler
    # Who may call it on a server with keys: anyone, callers, or operators
    access: Access = "key"
    scores: bool = False  # Whether it computes scores, and so takes a slot of the queue
    request: Any = None  # Type of the request's body
    reply: Any = None  # Type of the reply's body
    documented: bool = True  # Whether it stands in the OpenAPI document


def endpoints(settings: Settings) -> Iterator[Endpoint]:
    """Yield every route of a server; a new one is a handler and a line here."""
    ranking, rows = (rank.RankRequest, rank.RankReply), tensorflow.ExamplesRequest
    yield Endpoint("POST", "/v1/rank", rank.rank, "key", True, *ranking)
    recommended = (rank.RecommendRequest, rank.RankReply)
    yield Endpoint("POST", "/v1/recommend", rank.recommend, "key", True, *recommended)
    yield Endpoint("GET", "/openapi.json", openapi, "open")
    yield Endpoint("GET", "/metrics", health.metrics, "open")
    for path in ("/health", "/v2/health"):
        yield Endpoint("GET", path + "/live", health.live, "open")
        yield Endpoint("GET", path + "/ready", health.ready, "open")
    yield Endpoint("GET", "/v1/status", health.status)
    yield Endpoint("GET", "/v2", open_inference.server)
    yield Endpoint("GET", "/v2/models/stats", open_inference.statistics)
    yield Endpoint("POST", "/v2/repository/index", open_inference.index)
    model = "/v2/models/{model}"
    for path in (model, model + "/versions/{version}"):
        yield Endpoint("GET", path, open_inference.metadata)
        yield Endpoint("GET", path + "/ready", open_inference.model_ready)
        yield Endpoint("GET", path + "/stats", open_inference.statistics)
        tensors = open_inference.InferRequest
        yield Endpoint("POST", path + "/infer", open_inference.infer, "key", True, tensors)
    model = "/v1/models/{model}"
    for path in (model, model + "/versions/{version}", model + "/labels/{label}"):
        yield Endpoint("POST", path + ":rank", rank.rank, "key", True, *ranking)
        instances = tensorflow.PredictRequest
        yield Endpoint("POST", path + ":predict", tensorflow.predict, "key", True, instances)
        yield Endpoint("POST", path + ":classify", tensorflow.classify, "key", True, rows)
        yield Endpoint("POST", path + ":regress", tensorflow.regress, "key", True, rows)
        yield Endpoint("GET", path + "/metadata", tensorflow.metadata)
        yield Endpoint("GET", path, tensorflow.status)
    if settings.page:
        for path in page.FILES:
            yield Endpoint("GET", path, page.file, "open", documented=False)
        yield Endpoint("GET", "/v1/page/choices", page.choices, documented=False)
        yield Endpoint("GET", "/v1/page/live", live_page, documented=False)
    if settings.admin:
        for verb, (handler, order) in admin.VERBS.items():
            path = "/admin/models/{model}/" + verb
            yield Endpoint("POST", path, handler, "admin", request=order)
        for verb, handler in admin.REPOSITORY.items():
            yield Endpoint("POST", "/v2/repository/models/{model}/" + verb, handler, "admin")


async def openapi(service: Service, call: Call) -> Reply:
    """Describe the server's paths in OpenAPI's words."""
    return json_reply(openapi_document(endpoints(service.settings)))


async def live_page(service: Service, call: Call) -> Reply:
    """Return the metrics that the page draws."""
    scoring = {endpoint.path for endpoint in endpoints(service.settings) if endpoint.scores}
    return await page.live(service, call, scoring)


Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CLIENT_CLOSED = 499
_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")


class App:
    """The server as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._fixed: dict[tuple[str, str], Endpoint] = {}
        self._patterns: list[tuple[Route, Endpoint]] = []
        for endpoint in endpoints(service.settings):
            if "{" not in endpoint.path:
                self._fixed[endpoint.method, endpoint.path] = endpoint
            # Starlette's route matches the path; the handler is called without it.
            route = Route(endpoint.path, endpoint.handler, methods=[endpoint.method])
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
        method, path = call.method, call.path
        with traces.request_span(
            call.headers, call.arrived, http_request_method=method, url_path=path
        ) as span:
            route, status = await self._respond(call, send)
            if span is not None:
                span.set_attributes(_attributes(call, route, status))

    async def _respond(self, call: Call, send: Send) -> tuple[str, int]:
        """Answer a call; return its route and status."""
        scope, route, problem = call.scope, "none", None
        in_flight = self.service.metrics.in_flight
        in_flight.inc()
        try:
            if len(call.headers) < len(scope["headers"]):
                call.check_headers()
            endpoint = self._find(call)
            route = endpoint.path
            reply = await self._answer(endpoint, call)
        except HttpError as error:
            reply, problem = Reply(error.body(), error.status, headers=error.headers()), error
            if error.status == 408:
                self.service.metrics.connections_ended.labels("late body").inc()
        except (Disconnected, asyncio.CancelledError):
            self._finished(call, route, _CLIENT_CLOSED, None)
            _raise_if_cancelled()
            return route, _CLIENT_CLOSED
        except Exception as error:  # a bug: logged for the operator, not shown to the caller
            reply, problem = self._bug(error, call, route), None
        finally:
            in_flight.dec()
            if scope.get(ADMITTED):
                self.service.slots.leave()
            # A body whose end comes after the answer must not take a slot that nobody leaves.
            scope[ADMITTED] = False
        await self._send(send, call, reply)
        self._finished(call, route, reply.status, problem)
        return route, reply.status

    def _find(self, call: Call) -> Endpoint:
        fixed = self._fixed.get((call.method, call.path))
        if fixed is not None:
            return fixed
        allowed = set()
        for route, endpoint in self._patterns:
            match, child = route.matches(call.scope)
            if match is Match.FULL:
                call.params = child["path_params"]
                return endpoint
            if match is Match.PARTIAL:
                allowed.add(endpoint.method)
        if allowed:
            names = " or ".join(sorted(allowed))
            message = f"got {call.method} for {call.path!r}, expected {names}"
            raise HttpError(405, message, allow=", ".join(sorted(allowed)))
        raise HttpError(404, f"unknown path {call.path!r}; /openapi.json lists the paths")

    async def _answer(self, endpoint: Endpoint, call: Call) -> Reply:
        service = self.service
        if service.keys is not None and endpoint.access != "open":
            call.caller = service.keys.check(_api_key(call), admin=endpoint.access == "admin").name
        if endpoint.access == "admin":
            check_operator(call, service.settings)
        if not endpoint.scores:
            return await endpoint.handler(service, call)
        if (timeout_ms := call.header(b"x-request-timeout-ms")) is not None:
            call.set_deadline(timeout_ms)
        await call.body()  # a body that trickles in must not hold a slot
        admitted = call.scope.get(ADMITTED)
        if admitted is None:  # a server that took no slot when the body came
            admitted = call.scope[ADMITTED] = service.slots.enter()
        if not admitted:
            raise busy_error()
        return await endpoint.handler(service, call)

    def _bug(self, error: Exception, call: Call, route: str) -> Reply:
        self.service.metrics.bugs.inc()
        self.service.log.bug(error, request_id=call.request_id, path=call.path, route=route)
        message = f"the server failed; see its log under the request id {call.request_id}"
        return Reply(HttpError(500, message).body(), 500)

    async def _send(self, send: Send, call: Call, reply: Reply) -> None:
        identity = _UNPRINTABLE.sub(b"?", call.request_id.encode("utf-8", "replace"))
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
        if status >= self.service.log.min_status:
            self.service.log.request(
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


def _attributes(call: Call, route: str, status: int) -> dict[str, Any]:
    """Return what a request's span says of it."""
    return {
        "http.route": route,
        "http.response.status_code": status,
        "widedeep.request_id": call.request_id,
        "widedeep.model": call.model or "",
        "widedeep.version": call.version or "",
        "widedeep.rows": call.rows,
    }


def _api_key(call: Call) -> str | None:
    bearer = call.header(b"authorization")
    if bearer is not None and bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    return call.header(b"x-api-key")


def _raise_if_cancelled() -> None:
    """Raise CancelledError in a cancelled task: the server waits for it."""
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
