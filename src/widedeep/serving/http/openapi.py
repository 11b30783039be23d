"""The OpenAPI document: made from the endpoints and their types, so that it cannot go stale."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from widedeep import __version__

if TYPE_CHECKING:
    from widedeep.serving.http.endpoints import Endpoint

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
