"""Every path of the server: its method, who may call it, and what answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from widedeep.serving.http import admin, health, open_inference, page, rank, recommend, tensorflow
from widedeep.serving.http.call import Call, Reply, json_reply
from widedeep.serving.http.openapi import openapi_document
from widedeep.serving.http.service import Service
from widedeep.serving.http.settings import Settings

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
