"""The native server before the Python one: plain requests for rankings are answered in C++.

Threads of its own read the connections. What is a plain ``POST /v1/rank`` (JSON, candidates by id,
all of them in the catalogue) they answer without the interpreter; on anything else the connection
with what was read of it is handed to the Python server of the same process, which answers, and
gives the connection back between two requests. So every request is answered by the one server or
by the other, and what is refused is told by the Python one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from widedeep.kernels.front import RankRoute, has_front, new_front
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.following import Routes
from widedeep.serving.http.accounts import Accounts, RouteAccount
from widedeep.serving.http.call import late_body
from widedeep.serving.http.limits import late_error
from widedeep.serving.http.protocol import FULL, LATE_HEAD, last_words
from widedeep.serving.http.routes import new_route
from widedeep.serving.http.service import LOOKED_AT, Service
from widedeep.serving.metrics import REQUEST_SECONDS
from widedeep.serving.served import LoadedVersion

if TYPE_CHECKING:
    from widedeep.kernels.front import Front

_LONGEST_BODY = 1 << 20
_QUEUED = 2048


def can_serve_natively(service: Service) -> bool:
    """Tell whether a server may have a native front: not with TLS, nor where callers need keys."""
    settings = service.settings
    return has_front() and settings.tls_certificate is None and service.keys is None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A version with the catalogue that it had; without an account Python must answer."""

    catalogue: Catalogue | None
    account: RouteAccount | None


class NativeFront:
    """The native threads of a server, and its connections with the Python server."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self._service = service
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        places, options = service.admission.places, _options(service)
        self._end = 0.0
        self._native: Front = new_front(listening.fileno(), self._told, places, options)
        self._accounts = Accounts(service, self._native)
        self._adopting: set[asyncio.Task[None]] = set()
        service.publishers.insert(0, self._accounts.publish)
        for name, registry in service.models.registries.items():
            registry.follow(self._prepare_for(name), self._route_for(name))

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
        chosen = [routes.default, routes.canary if routes.share > 0 else None]
        stable, canary = (None if held is None else self._prepare(model, held) for held in chosen)
        can_answer = stable is not None and (chosen[1] is None or canary is not None)
        for account in (stable, canary) if can_answer else ():
            if account is not None:
                self._accounts.follow(account)
        self._accounts.set_shadow(model, routes.shadow)
        records_all = self._service.on_ranked is not None or routes.shadow is not None
        is_only = len(self._service.models.registries) == 1
        self._native.set_routes(
            "/v1/rank" if is_only else f"/v1/models/{model}:rank",
            _route_of(stable) if can_answer else None,
            _route_of(canary) if can_answer else None,
            routes.share,
            records_all,
        )

    # ---- connections ----------------------------------------------------------------------------

    def start(self, new_protocol: NewProtocol) -> None:
        """Begin to take over what the native threads hand over; in the event loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._told, self._take_handed, loop, new_protocol)

    def _take_handed(self, loop: asyncio.AbstractEventLoop, new_protocol: NewProtocol) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._told)
        for descriptor, read in self._native.take_handed():
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

    def adopt(self, descriptor: int) -> None:
        """Take a connection that came too late for the native threads to accept it."""
        self._native.adopt(descriptor)

    async def finish(self, give_up: Callable[[], bool]) -> None:
        """Wait until the last connections are closed, as long as :meth:`drain` may take."""
        while self._native.connections or self._adopting:
            if time.monotonic() > self._end or give_up():
                break
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End the threads; what is still connected is cut off."""
        for registry in self._service.models.registries.values():
            registry.follow(None, None)
        self._native.stop()
        self._accounts.close()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._told)
        os.close(self._told)


class Lent:
    """One connection that the Python server has from the native one, which counts it until then."""

    def __init__(self, native: Front) -> None:
        self._native, self._is_out = native, True

    def give_back(self, transport: asyncio.Transport) -> bool:
        """Return it between two requests; its transport is closed, the socket lives."""
        try:
            descriptor = os.dup(transport.get_extra_info("socket").fileno())
        except OSError:
            return False
        transport.pause_reading()
        transport.close()
        self._is_out = False
        self._native.give_back(descriptor)
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
        "busy": service.admission.refusal().body(),
        "late": late_error().body(),
        "late_head": LATE_HEAD,
        "late_body": last_words("408 Request Timeout", late_body(settings.body_timeout_s)),
        "full": FULL,
        "max_connections": settings.max_connections,
        "longest_body": min(settings.max_body, _LONGEST_BODY),
        "head_s": settings.head_timeout_s,
        "body_s": settings.body_timeout_s,
        "write_s": settings.write_timeout_s,
        "idle_s": settings.idle_timeout_s,
    }
