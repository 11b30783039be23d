"""The page at /: its files, the choices of its form, and the metrics that it draws."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from functools import cache
from importlib import resources
from typing import Any

import msgspec
import numpy as np

from widedeep.features.spec import item_columns
from widedeep.serving.http.health import server_metrics
from widedeep.serving.http.service import Call, Reply, Service, json_reply
from widedeep.serving.metrics import SCORE_EDGES
from widedeep.serving.ranker import Ranker
from widedeep.serving.registry import Registry

FILES = {
    "/": "index.html",
    **{
        f"/page/{name}": name
        for name in ("page.css", "page.js", "form.js", "ranking.js", "live.js", "dom.js", "api.js")
    },
}
"""The name of the file behind each path."""

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
}
# Whatever a model's data contain, the page loads its own files alone and connects to its own server
# alone.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
_MAX_IDS = 50


class LiveReply(msgspec.Struct, kw_only=True):
    """The metrics that the page draws: totals of all processes since the server started."""

    time: float
    requests: dict[str, int]
    latency_edges: list[float]
    latency: list[int]
    score_edges: tuple[float, ...]
    scores: dict[str, dict[str, list[int]]]
    in_flight: int


async def file(service: Service, call: Call) -> Reply:
    """Return a file of the page."""
    name = FILES[call.path]
    media_type = _TYPES[name.rpartition(".")[2]]
    return Reply(_content(name), media_type=media_type, headers=list(_HEADERS))


@cache
def _content(name: str) -> bytes:
    return (resources.files("widedeep.serving.http") / "page" / name).read_bytes()


async def choices(service: Service, call: Call) -> Reply:
    """Return the models, versions, columns, stored requests and items for the page's form."""
    return json_reply(
        {
            "ready": service.ready(),
            "max_candidates": service.settings.max_candidates,
            "models": [
                _model(service, name, call.request_id) for name in service.models.registries
            ],
        }
    )


def _model(service: Service, name: str, request_id: str) -> dict[str, Any]:
    registry = service.models.registry(name)
    about = {"name": name, "versions": _versions(registry)}
    if not registry.ready():
        return {**about, "heads": [], "columns": [], "stored": [], "catalogue": None}
    with service.models.lease(name, request_id) as served:
        return {**about, **_choices(served.ranker)}


def _versions(registry: Registry) -> list[dict[str, Any]]:
    return [
        {"version": each.version, "state": each.state, "labels": each.labels, "error": each.error}
        for each in registry.status()
    ]


def _choices(ranker: Ranker) -> dict[str, Any]:
    bundle, catalogue = ranker.bundle, ranker.catalogue
    kinds = bundle.input_columns
    # Where no feature is declared as the item's, every column may come with an item.
    of_item = item_columns(bundle.schema.spec) & set(kinds) or set(kinds)
    return {
        "heads": [
            {"name": head.name, "kind": head.kind, "column": head.start}
            for head in bundle.model.heads
        ],
        "columns": [
            {
                "name": name,
                "type": f"list of {kind.kind}" if kind.nested else kind.kind,
                "of_item": name in of_item,
            }
            for name, kind in kinds.items()
        ],
        "stored": [
            {
                "user": {name: value for name, value in row.items() if name not in of_item},
                "item": {name: value for name, value in row.items() if name in of_item},
            }
            for row in bundle.warmup.rows
        ],
        "catalogue": None
        if catalogue is None
        else {
            "version": catalogue.version,
            "items": len(catalogue),
            "id_column": catalogue.id_column,
            "ids": _sample_ids(catalogue.ids),
        },
    }


def _sample_ids(ids: list[Any]) -> list[Any]:
    """Return up to 50 ids, evenly spread."""
    count = min(len(ids), _MAX_IDS)
    return [ids[position * len(ids) // count] for position in range(count)]


async def live(service: Service, call: Call, routes: Set[str]) -> Reply:
    """Return the metrics that the page draws."""
    requests: Counter[str] = Counter()
    latency: Counter[float] = Counter()
    scores: dict[str, dict[str, list[int]]] = {}
    in_flight = 0
    for family in server_metrics(service).collect():
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "widedeep_in_flight":
                in_flight = max(0, int(sample.value) - 1)
            elif sample.name == "widedeep_scores_binned_total":
                versions = scores.setdefault(labels["model"], {})
                counts = versions.setdefault(labels["version"], [0] * (len(SCORE_EDGES) + 1))
                counts[_BIN_OF_EDGE[labels["up_to"]]] += int(sample.value)
            elif labels.get("route") not in routes:
                continue
            elif sample.name == "widedeep_requests_total":
                requests[labels["status"]] += int(sample.value)
            elif sample.name == "widedeep_request_seconds_bucket":
                latency[float(labels["le"])] += int(sample.value)
    edges = sorted(latency)
    cumulative = [latency[edge] for edge in edges]
    return json_reply(
        LiveReply(
            time=time.time(),
            requests=dict(requests),
            latency_edges=edges[:-1],
            latency=np.diff(cumulative, prepend=0).tolist(),
            score_edges=SCORE_EDGES,
            scores=scores,
            in_flight=in_flight,
        )
    )


_BIN_OF_EDGE = {f"{edge:g}": index for index, edge in enumerate(SCORE_EDGES)}
_BIN_OF_EDGE["+Inf"] = len(SCORE_EDGES)
