"""The OpenAPI document is true: schemathesis calls every path by it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.http.calls import Local

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")


def check_operations(local: Local, examples: int) -> int:
    document = local.get("/openapi.json").json
    schema = schemathesis.openapi.from_dict(document)
    called = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.method.upper() == "GET" and "{" not in operation.path:
            assert local.get(operation.path).status == 200

        @hypothesis.settings(
            max_examples=examples,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            nonlocal called
            called += 1
            body = case.body if isinstance(case.body, dict | list | str | int) else {}
            headers = {k: v for k, v in dict(case.headers or {}).items() if v.isascii()}
            model = (case.path_parameters or {}).get("model")
            path = case.formatted_path
            if model is not None:  # the model that is there, more often than not
                path = path.replace(str(model), "apps", 1)
            answer = local.call(case.method.upper(), path, body, headers)
            assert answer.status not in (500, 501), (path, body, answer.body)

        check()
    return called


def test_every_path_by_the_document(local: Local) -> None:
    assert check_operations(local, examples=8) > 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_path_by_the_document_at_length(local: Local) -> None:
    assert check_operations(local, examples=300) > 5_000
