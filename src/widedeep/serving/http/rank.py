"""POST /v1/rank and /v1/recommend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from widedeep import traces
from widedeep.bundle import Explanation
from widedeep.errors import FeatureError, RequestError, WideDeepError
from widedeep.serving.http.errors import HttpError, feature_error
from widedeep.serving.http.service import Call, Ranked, Reply, Service, json_reply
from widedeep.serving.ranker import Ranking
from widedeep.serving.registry import Served

_FIELD_STEP = re.compile(r"[^.\[\]]+")
_MAX_EXPLAINED = 1_000


class Query(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of every request for a ranking."""

    user: dict[str, Any] = {}
    context: dict[str, Any] = {}
    explain: bool = False
    head: str | None = None
    model: str | None = None
    version: str | None = None
    label: str | None = None
    request_id: str | None = None


class RankRequest(Query):
    """The body of a request to rank candidates."""

    candidates: list[int | str] | None = None
    items: dict[str, list[Any]] | None = None
    k: int | None = None


class RecommendRequest(Query):
    """The body of a request to retrieve candidates and rank them."""

    n: int = 200
    k: int = 20
    where: dict[str, Any] = {}
    exclude: list[int | str] = []
    like: list[int | str] = []
    vector: list[float] | None = None
    most_of_each: int | None = None


class RankReply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of an answer; lists hold one entry per item, best first."""

    items: list[Any]
    scores: list[float]
    model_version: str
    request_id: str
    unknown: list[int] | None = None
    undefined: list[int] | None = None
    rank_by: str | None = None
    policy: str | None = None
    propensities: list[float] | None = None
    absent: dict[str, int] | None = None
    misspelt: dict[str, str] | None = None
    catalogue_version: str | None = None
    explanations: list[dict[str, Any]] | None = None
    retrieved: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(RankRequest)


async def rank(service: Service, call: Call) -> Reply:
    """Answer a request for a ranking."""
    request = await call.json(_decoder)
    call.rows = _check(request, service.settings.max_candidates)
    if request.request_id is not None:
        call.request_id = request.request_id
    name = _param(call, "model", request.model)
    call.model = service.models.name_of(name)
    kind = f"rank/{call.model}" if not request.explain else f"explain/{call.model}"
    reply = await service.scheduler.run(
        kind, call.rows, call.deadline, lambda: ranked(service, call, name, request)
    )
    return json_reply(reply)


def ranked(service: Service, call: Call, name: str | None, request: RankRequest) -> RankReply:
    """Rank, count and log, without waiting in the queue."""
    version = _param(call, "version", request.version)
    label = _param(call, "label", request.label)
    if version is not None and label is not None:
        raise HttpError(400, "got both a version and a label; give one", pointer="/label")
    with service.models.lease(name, call.request_id, version, label) as served:
        return _ranked_by(served, service, call, request)


def _ranked_by(served: Served, service: Service, call: Call, request: RankRequest) -> RankReply:
    if request.explain:
        _check_explained(request)
    call.version = served.version
    candidates = request.items if request.candidates is None else request.candidates
    # The shadow ranks by the default head alone, so it gets no request for another one.
    rank_candidates = served.rank if request.head is None else served.ranker.rank
    try:
        ranking = rank_candidates(
            request.user,
            request.context,
            candidates,
            k=request.k,
            explain=request.explain,
            head=request.head,
            request_id=call.request_id,
        )
    except RequestError as error:
        raise _request_error(error, request) from error
    except UnicodeError as error:
        raise HttpError(400, f"got text that is no Unicode: {error}") from error
    except WideDeepError as error:
        schema = served.ranker.bundle.schema
        raise feature_error(error, schema, _pointer_to(request)) from error
    model = call.model or ""
    service.metrics.scored(model, served.version, ranking.scores, int(ranking.unknown.sum()))
    if ranking.misspelt:
        service.metrics.misspelt(model, ranking.misspelt.values())
    service.sample_unseen_values(model, served.ranker, request.user, request.context)
    if service.on_ranked is not None:
        with traces.span("log"):
            service.on_ranked(
                Ranked(
                    request_id=call.request_id,
                    model=model,
                    version=served.version,
                    user=request.user,
                    context=request.context,
                    candidates=candidates,
                    ranking=ranking,
                    ranker=served.ranker,
                )
            )
    return _reply(ranking, call)


def _param(call: Call, field: str, in_body: str | None) -> str | None:
    """Return a parameter of the path or the body; they may not disagree."""
    in_path = call.params.get(field)
    if in_path is not None and in_body is not None and in_path != in_body:
        raise HttpError(
            400, f"got {in_body!r}, but {in_path!r} in the path; give one", pointer=f"/{field}"
        )
    return in_body if in_path is None else in_path


def _check_explained(request: RankRequest) -> None:
    n = _count(request)
    n = n if request.k is None else min(n, request.k)
    if n > _MAX_EXPLAINED:
        raise HttpError(
            413,
            f"got {n} items to explain, expected at most {_MAX_EXPLAINED}; give a smaller k",
            pointer="/k",
        )


def _count(request: RankRequest) -> int:
    if request.candidates is not None:
        return len(request.candidates)
    return max(map(len, (request.items or {}).values()), default=0)


def _check(request: RankRequest, max_candidates: int) -> int:
    if (request.candidates is None) == (request.items is None):
        both = "both" if request.items is not None else "neither"
        raise HttpError(
            400,
            f"got {both} of candidates (a list of ids) and items (a list for each column); "
            "give one of them",
            pointer="",
        )
    n = _count(request)
    if n > max_candidates:
        pointer = "/items" if request.candidates is None else "/candidates"
        raise HttpError(
            413, f"got {n} candidates, expected at most {max_candidates}", pointer=pointer
        )
    _check_query(request, ("k",))
    return n


def _check_query(request: Query, counts: tuple[str, ...]) -> None:
    for name in counts:
        value = getattr(request, name)
        if value is not None and value < 0:
            raise HttpError(400, f"got {value}, expected at least 0", pointer=f"/{name}")
    if request.request_id is not None and not 0 < len(request.request_id) <= 128:
        raise HttpError(400, "expected a text of 1 to 128 characters", pointer="/request_id")


def _request_error(error: RequestError, request: RankRequest) -> HttpError:
    """Point to the field at fault; the ranker's candidates may be the request's items."""
    steps = _FIELD_STEP.findall(error.where)
    if steps and steps[0] == "candidates" and request.candidates is None:
        steps[0] = "items"
    pointer = "".join(f"/{step}" for step in steps)
    if len(steps) == 1 and steps[0] in ("items", "candidates"):
        match = re.search(r"(?:feature|column) '(.*?)' \(row (\d+)", str(error)[:2000])
        if match:
            pointer = _pointer_to(request)(match[1], int(match[2])) or pointer
    return HttpError(400, str(error), pointer=pointer)


def _pointer_to(request: RankRequest) -> Callable[[str, int], str | None]:
    def pointer_to(column: str, row: int) -> str | None:
        escaped = column.replace("~", "~0").replace("/", "~1")
        if column in request.user:
            return f"/user/{escaped}"
        if column in request.context:
            return f"/context/{escaped}"
        if request.items is not None and column in request.items:
            return f"/items/{escaped}/{row}"
        return None if request.candidates is None else f"/candidates/{row}"

    return pointer_to


def _reply(ranking: Ranking, call: Call) -> RankReply:
    unknown = ranking.unknown.nonzero()[0].tolist()
    explanations = ranking.explanations
    return RankReply(
        items=ranking.items,
        scores=ranking.scores.tolist(),
        model_version=call.version or "",
        request_id=call.request_id,
        unknown=unknown or None,
        undefined=ranking.undefined.tolist() or None,
        rank_by=ranking.rank_by,
        policy=ranking.policy,
        propensities=None if ranking.propensities is None else ranking.propensities.tolist(),
        absent=ranking.absent or None,
        misspelt=ranking.misspelt or None,
        catalogue_version=ranking.catalogue_version,
        explanations=None
        if explanations is None
        else [
            _explanation_fields(each) | _terms_of(ranking, place)
            for place, each in enumerate(explanations)
        ],
    )


def _terms_of(ranking: Ranking, place: int) -> dict[str, Any]:
    """Return the values of a formula's names for an item; nothing without a formula."""
    if ranking.rank_by is None:
        return {}
    terms = {name: float(values[place]) for name, values in ranking.terms.items()}
    return {"rank_by": {"formula": ranking.rank_by, "terms": terms}}


def _explanation_fields(explanation: Explanation) -> dict[str, Any]:
    return {
        "wide": [
            {"feature": term.feature, "value": term.value, "weights": term.weights}
            for term in explanation.wide
        ],
        "deep": explanation.deep,
        **({"towers": explanation.towers} if explanation.towers else {}),
        **({"attention": explanation.attention} if explanation.attention else {}),
        "bias": explanation.bias,
        "logits": explanation.logits,
        "score": explanation.score,
    }


_recommend_decoder = msgspec.json.Decoder(RecommendRequest)


async def recommend(service: Service, call: Call) -> Reply:
    """Answer a request for recommendations."""
    request = await call.json(_recommend_decoder)
    _check_recommend(request, service.settings.max_candidates)
    if request.request_id is not None:
        call.request_id = request.request_id
    call.rows = request.n
    call.model = service.models.name_of(request.model)
    reply = await service.scheduler.run(
        f"recommend/{call.model}",
        call.rows,
        call.deadline,
        lambda: _recommended(service, call, request),
    )
    return json_reply(reply)


def _recommended(service: Service, call: Call, request: RecommendRequest) -> RankReply:
    # One lease for retrieval and ranking: a swap in between must not mix two versions.
    with service.models.lease(
        request.model, call.request_id, request.version, request.label
    ) as served:
        try:
            found = service.retrievers.of(served.ranker).find(
                request.n,
                where=request.where,
                exclude=request.exclude,
                most_of_each=request.most_of_each,
                like=request.like,
                vector=request.vector,
                query={**request.user, **request.context},
            )
        except RequestError as error:
            raise HttpError(400, str(error), pointer=_pointer(error.where)) from error
        except FeatureError as error:
            pointer_to = _pointer_to(RankRequest(user=request.user, context=request.context))
            raise feature_error(error, served.ranker.bundle.schema, pointer_to) from error
        except WideDeepError as error:
            raise HttpError(503, str(error)) from error
        rank_request = RankRequest(
            user=request.user,
            context=request.context,
            candidates=found.ids,
            k=request.k,
            explain=request.explain,
            head=request.head,
        )
        reply = _ranked_by(served, service, call, rank_request)
        popular = len(found.ids) - found.near
        reply.retrieved = {"by": found.by, "near": found.near, "popular": popular}
        if found.unknown:
            reply.retrieved["unknown"] = found.unknown
        return reply


def _pointer(where: str) -> str:
    field, _, column = where.partition(".")
    escaped = column.replace("~", "~0").replace("/", "~1")
    return f"/{field}/{escaped}" if column else f"/{field}"


def _check_recommend(request: RecommendRequest, max_candidates: int) -> None:
    if request.n > max_candidates:
        message = f"got {request.n}, expected at most {max_candidates} candidates"
        raise HttpError(413, message, pointer="/n")
    _check_query(request, ("n", "k", "most_of_each"))
