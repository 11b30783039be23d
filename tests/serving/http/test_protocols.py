"""Every protocol gives the very scores of `Bundle.score`."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundle import models
from tests.serving.http.calls import Local, running
from tests.serving.versions import ITEMS, USER, eventually, publish, whole_rows
from widedeep.bundle import Bundle
from widedeep.serving.registry import Latest, Registry

ROWS = models.rows(7)


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}


def plain_rows() -> list[dict[str, Any]]:
    """Rows as tensors can carry them: every list of one length."""
    return [
        {"age": 20.5 + n, "user": ["ann", "bo", "né"][n % 3], "app": ITEMS[n], "price": 0.25 * n}
        for n in range(6)
    ]


def infer_inputs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = {"age": "FP64", "user": "BYTES", "app": "BYTES", "price": "FP64"}
    return [
        {"name": name, "shape": [len(rows)], "datatype": kinds[name], "data": values}
        for name, values in columns(rows).items()
    ]


def test_rank_by_id(local: Local, bundle: Bundle) -> None:
    answer = local.post("/v1/rank", {"user": USER, "candidates": ITEMS, "request_id": "r7", "k": 4})
    scores = bundle.score(whole_rows(ITEMS))
    assert isinstance(scores, np.ndarray)
    order = np.argsort(-scores, kind="stable")[:4]
    assert answer.status == 200
    found = answer.json
    assert found["items"] == [ITEMS[at] for at in order]
    assert found["scores"] == scores[order].tolist()
    assert (found["model_version"], found["request_id"]) == ("1", "r7")
    assert answer.headers["x-request-id"] == "r7"
    assert found["catalogue_version"]


def test_rank_inline_with_context_explained(local: Local, bundle: Bundle) -> None:
    items = {"app": ["item 1", "item 2"], "price": [0.5, None]}
    user = {name: USER[name] for name in ("user", "tags", "seen")}
    body = {"user": user, "context": {"age": 31.0}, "items": items, "explain": True}
    found = local.post("/v1/models/apps/versions/1:rank", body).json
    rows = [{**USER, "app": a, "price": p} for a, p in zip(*items.values(), strict=True)]
    scores = dict(zip(items["app"], bundle.score(rows), strict=True))
    assert found["scores"] == [scores[item] for item in found["items"]]
    for item, explained in zip(found["items"], found["explanations"], strict=True):
        expected = bundle.explain(rows[items["app"].index(item)])
        assert [term["feature"] for term in explained["wide"]] == [t.feature for t in expected.wide]
        assert explained["logits"] == list(expected.logits)


def test_unknown_items_are_flagged(local: Local) -> None:
    found = local.post("/v1/rank", {"user": USER, "candidates": ["item 1", "nobody's", 7]}).json
    assert {found["items"][at] for at in found["unknown"]} == {"nobody's", 7}


def test_duplicates_unicode_and_no_candidates(local: Local) -> None:
    found = local.post("/v1/rank", {"user": {"user": "né🙂\u0000"}, "candidates": ["é", "é"]}).json
    assert found["items"] == ["é", "é"]
    assert found["scores"][0] == found["scores"][1]
    assert local.post("/v1/rank", {"candidates": []}).json["items"] == []
    assert local.post("/v1/rank", {"items": {}}).json["scores"] == []


def test_a_hundred_thousand_candidates(local: Local, bundle: Bundle) -> None:
    ids = [f"item {n % 6}" for n in range(100_000)]
    found = local.post("/v1/rank", {"user": USER, "candidates": ids, "k": 3}).json
    scores = bundle.score(whole_rows(ITEMS[:6]))
    assert isinstance(scores, np.ndarray)
    assert found["scores"] == [scores.max()] * 3
    answer = local.post("/v1/rank", {"user": USER, "candidates": [*ids, "one more"]})
    assert (answer.status, answer.json["pointer"]) == (413, "/candidates")


def test_open_inference(local: Local, bundle: Bundle) -> None:
    rows = plain_rows()
    answer = local.post("/v2/models/apps/infer", {"inputs": infer_inputs(rows), "id": "x"})
    (output,) = answer.json["outputs"]
    assert output["data"] == np.asarray(bundle.score(rows)).tolist()
    assert (output["datatype"], output["shape"]) == ("FP64", [6])
    assert (answer.json["id"], answer.json["model_version"]) == ("x", "1")


def test_open_inference_binary(local: Local, bundle: Bundle) -> None:
    rows = plain_rows()
    inputs, blobs = infer_inputs(rows), []
    for each in inputs:
        values = each.pop("data")
        if each["datatype"] == "BYTES":
            texts = [value.encode() for value in values]
            blob = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            blob = np.array(values, "<f8").tobytes()
        each["parameters"] = {"binary_data_size": len(blob)}
        blobs.append(blob)
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    answer = local.post(
        "/v2/models/apps/infer",
        b"".join([header, *blobs]),
        {
            "Inference-Header-Content-Length": str(len(header)),
            "Content-Type": "application/octet-stream",
        },
    )
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 48}
    assert np.frombuffer(answer.body[length:], "<f8").tolist() == list(bundle.score(rows))


def test_open_inference_lists(local: Local, bundle: Bundle) -> None:
    inputs = [
        {"name": "tags", "shape": [2, 2], "datatype": "BYTES", "data": [["x", "y"], ["y", None]]}
    ]
    found = local.post("/v2/models/apps/infer", {"inputs": inputs}).json
    expected = bundle.score([{"tags": ["x", "y"]}, {"tags": ["y", None]}])
    assert found["outputs"][0]["data"] == list(expected)


def test_tensorflow_serving(local: Local, bundle: Bundle) -> None:
    expected = np.asarray(bundle.score(ROWS)).tolist()
    path = "/v1/models/apps"
    assert local.post(f"{path}:predict", {"instances": ROWS}).json == {"predictions": expected}
    whole = plain_rows()
    found = local.post(f"{path}/versions/1:predict", {"inputs": columns(whole)}).json
    assert found == {"outputs": list(bundle.score(whole))}

    shared, own = {"age": 31.0, "user": "bo"}, [{"app": "maps"}, {"app": {"b64": "bWFpbA=="}}]
    expected = list(bundle.score([{**shared, "app": "maps"}, {**shared, "app": "mail"}]))
    body = {"context": shared, "examples": own}
    assert local.post(f"{path}:regress", body).json == {"results": expected}
    assert local.post(f"{path}/labels/stable:classify", body).json == {
        "results": [[["0", 1.0 - p], ["1", p]] for p in expected]
    }


def test_paths_say_which_version_answers(tmp_path: Path) -> None:
    made = {name: publish(tmp_path / "apps", name, seed=int(name)) for name in ("1", "2")}
    items = {"app": ["maps", "mail"]}
    rows = [{**USER, "app": name} for name in items["app"]]
    scores = {name: sorted(bundle.score(rows), reverse=True) for name, bundle in made.items()}
    with Registry(tmp_path / "apps", policy=Latest(2), poll_s=0.05) as registry:
        assert registry.wait_ready(60)
        eventually(lambda: {s.state for s in registry.status()} == {"ready"})
        registry.set_label("old", "1")
        local = Local({"apps": registry})
        body = {"user": USER, "items": items}
        for at, version in (
            *(("", "2"), ("/versions/1", "1"), ("/versions/2", "2")),
            *(("/labels/old", "1"), ("/labels/stable", "2")),
        ):
            path = f"/v1/models/apps{at}"
            found = local.post(f"{path}:rank", body).json
            assert (found["model_version"], found["scores"]) == (version, scores[version]), at
            predicted = local.post(f"{path}:predict", {"instances": rows}).json["predictions"]
            assert sorted(predicted, reverse=True) == scores[version]
            regressed = local.post(f"{path}:regress", {"examples": rows}).json["results"]
            assert sorted(regressed, reverse=True) == scores[version]
            assert local.get(f"{path}/metadata").json["model_spec"]["version"] == version
        for at in ("/labels/none", "/versions/9"):
            for verb in (":rank", ":predict", ":classify", ":regress"):
                asked = {**body} if verb == ":rank" else {"instances": rows}
                asked = {"examples": rows} if verb in (":classify", ":regress") else asked
                assert local.post(f"/v1/models/apps{at}{verb}", asked).status == 404, (at, verb)
            assert local.get(f"/v1/models/apps{at}/metadata").status == 404
        for at, more, pointer in (
            ("/labels/old", {"label": "stable"}, "/label"),
            ("/versions/1", {"version": "2"}, "/version"),
            ("/versions/1", {"label": "old"}, "/label"),
            ("", {"model": "another"}, "/model"),
        ):
            refused = local.post(f"/v1/models/apps{at}:rank", body | more)
            assert (refused.status, refused.json["pointer"]) == (400, pointer)
        same = local.post("/v1/models/apps/labels/old:rank", body | {"label": "old"})
        assert same.json["model_version"] == "1"


def test_several_classes_and_heads(tmp_path: Path) -> None:
    made = publish(tmp_path / "classes", "3", seed=2, heads=models.THREE_HEADS)
    with Registry(tmp_path / "classes") as registry:
        assert registry.wait_ready(60)
        local = Local({"classes": registry})
        expected = made.score(ROWS)
        assert isinstance(expected, dict)
        found = local.post("/v1/models/classes:predict", {"instances": ROWS}).json["predictions"]
        for name, scores in expected.items():
            assert [row[name] for row in found] == scores.tolist()
        rows = plain_rows()
        outputs = local.post("/v2/models/classes/infer", {"inputs": infer_inputs(rows)}).json
        by_head = made.score(rows)
        assert isinstance(by_head, dict)
        for output in outputs["outputs"]:
            assert output["shape"] == list(by_head[output["name"]].shape)
            assert output["data"] == by_head[output["name"]].ravel().tolist()


def test_what_there_is(local: Local) -> None:
    assert local.get("/v2/health/live").json == {"live": True}
    assert local.get("/v2/health/ready").json == {"ready": True}
    assert local.get("/v2/models/apps/versions/1/ready").json["ready"] is True
    assert local.get("/v2/models/apps/versions/9/ready").status == 503
    inputs = {each["name"]: each for each in local.get("/v2/models/apps").json["inputs"]}
    assert inputs["age"]["datatype"] == "FP64"
    assert inputs["tags"]["shape"] == [-1, -1]
    states = local.get("/v1/models/apps").json["model_version_status"]
    assert [(each["version"], each["state"]) for each in states] == [("1", "AVAILABLE")]
    signature = local.get("/v1/models/apps/metadata").json["metadata"]["signature_def"]
    assert "age" in signature["signature_def"]["serving_default"]["inputs"]
    index = local.post("/v2/repository/index", {"ready": True}).json
    assert index == [{"name": "apps", "version": "1", "state": "READY", "reason": ""}]
    (version,) = local.get("/v1/status").json["models"]["apps"]
    assert version["state"] == "ready"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_real_server_gives_the_same(
    apps: Path, bundle: Bundle, workers: int, tmp_path: Path
) -> None:
    items = ("--items", apps.parent / "items.parquet", "--item-id", "app")
    log = tmp_path / "log"
    with running(apps, *items, "--workers", workers, log=log) as server:
        server.wait_ready()  # and from here on every answer is one, whoever has joined by then
        scores = np.asarray(bundle.score(whole_rows(ITEMS)))
        for _ in range(4):
            assert (
                server.call("POST", "/v1/rank", {"user": USER, "candidates": ITEMS}).status == 200
            )
        end = time.monotonic() + 60
        while log.read_text().count('"started"') < workers:
            assert time.monotonic() < end
            time.sleep(0.05)
        for _ in range(8):  # each on a connection of its own: of either worker
            found = server.call("POST", "/v1/rank", {"user": USER, "candidates": ITEMS})
            assert found.status == 200
            assert found.json["scores"] == sorted(scores.tolist(), reverse=True)

        def is_counted() -> bool:  # the other worker's figures are a moment old
            text = server.call("GET", "/metrics").body.decode()
            counted = (
                'requests_total{route="/v1/rank",status="200"}',
                'answers_total{model="apps",version="1"}',
            )
            return all(f"widedeep_{name} 12.0" in text for name in counted)

        eventually(is_counted)
