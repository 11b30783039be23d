"""POST /v1/recommend: candidates are found in the catalogue, then ranked."""

from __future__ import annotations

from typing import Any

import msgspec

from widedeep.errors import RequestError, WideDeepError
from widedeep.serving.http.call import Call, Reply, json_reply
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.rank import RankReply, RankRequest, ranked
from widedeep.serving.http.service import Service


class RecommendRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of a request."""

    user: dict[str, Any] = {}
    context: dict[str, Any] = {}
    n: int = 200
    k: int = 20
    where: dict[str, Any] = {}
    exclude: list[int | str] = []
    like: list[int | str] = []
    vector: list[float] | None = None
    most_of_each: int | None = None
    explain: bool = False
    head: str | None = None
    model: str | None = None
    version: str | None = None
    label: str | None = None
    request_id: str | None = None


_decoder = msgspec.json.Decoder(RecommendRequest)


async def recommend(service: Service, call: Call) -> Reply:
    """Answer a request for recommendations."""
    request = await call.json(_decoder)
    _check(request, service.settings.max_candidates)
    if request.request_id is not None:
        call.request_id = request.request_id
    call.rows = request.n
    call.model = service.models.name_of(request.model)
    reply = await service.scheduler.run(
        f"recommend/{call.model}", call.rows, call.deadline, lambda: _found(service, call, request)
    )
    return json_reply(reply)


def _found(service: Service, call: Call, request: RecommendRequest) -> RankReply:
    # One version finds and ranks: a swap in between must not mix two.
    with service.models.lease(
        request.model, call.request_id, request.version, request.label
    ) as served:
        try:
            candidates = service.retrievers.of(served.ranker).retrieve(
                request.n,
                where=request.where,
                exclude=request.exclude,
                most_of_each=request.most_of_each,
                like=request.like,
                vector=request.vector,
            )
        except RequestError as error:
            raise HttpError(400, str(error), pointer=_pointer(error.where)) from error
        except WideDeepError as error:
            raise HttpError(503, str(error)) from error
        asked = RankRequest(
            user=request.user,
            context=request.context,
            candidates=candidates,
            k=request.k,
            explain=request.explain,
            head=request.head,
            version=served.version,
        )
        return ranked(service, call, request.model, asked)


def _pointer(where: str) -> str:
    field, _, column = where.partition(".")
    escaped = column.replace("~", "~0").replace("/", "~1")
    return f"/{field}/{escaped}" if column else f"/{field}"


def _check(request: RecommendRequest, most: int) -> None:
    if request.n > most:
        raise HttpError(413, f"got {request.n}, expected at most {most} candidates", pointer="/n")
    for name in ("n", "k", "most_of_each"):
        value = getattr(request, name)
        if value is not None and value < 0:
            raise HttpError(400, f"got {value}, expected at least 0", pointer=f"/{name}")
    if request.request_id is not None and not 0 < len(request.request_id) <= 128:
        raise HttpError(400, "expected a text of 1 to 128 characters", pointer="/request_id")
