"""The ASGI application: from a scope to an endpoint, and every outcome to an answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.routing import Match, Route

from widedeep.serving.http.admin import check_operator
from widedeep.serving.http.call import TICKET, Call, Disconnected, Reply
from widedeep.serving.http.endpoints import Endpoint, endpoints
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import Service
from widedeep.serving.request_log import RequestLog

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
            self._give_back(scope)
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
        await call.body()  # a body that trickles in must not hold a place
        ticket = call.scope.get(TICKET)
        if ticket is False or (ticket is None and not self._take_place(call)):
            raise service.admission.refusal()
        return await endpoint.run(service, call)

    def _take_place(self, call: Call) -> bool:
        """Take a place in the queue here, for a server that did not do so when the body came."""
        got = self.service.admission.enter()
        call.scope[TICKET] = got
        return got

    def _give_back(self, scope: MutableMapping[str, Any]) -> None:
        if scope.get(TICKET):
            self.service.admission.leave()
        # A body whose end comes after the answer must not take a place that nobody gives back.
        scope[TICKET] = False

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
        self.service.metrics.queue.set(self.service.admission.inside)
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
