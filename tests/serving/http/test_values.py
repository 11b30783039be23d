"""What a request may come to: lists that multiply, with each other and with the candidates."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.serving.http.calls import Local, Running, running
from tests.serving.http.test_costs import cost
from tests.serving.versions import publish
from widedeep.bundle import Bundle, BundleHead
from widedeep.errors import LimitError
from widedeep.serving.registry import Registry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# What docs/faults.md states.
MS_PER_KB, MS = 0.6, 1500
BYTES_PER_BYTE, BYTES = 64, 256 << 20
SIZES = (1 << 10, 1 << 14, 1 << 18)
LARGE = 8 << 20
N_ITEMS = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    rng = np.random.default_rng(0)
    words = [[f"w{n}" for n in rng.integers(0, 50, 3)] for _ in range(400)]
    rows = pa.table(
        {
            "a": words,
            "b": words[::-1],
            "c": words,
            "tags": words,
            "app": [f"app {n}" for n in rng.integers(0, N_ITEMS, 400)],
            "x": rng.random((400, 40)).tolist(),
            "y": rng.integers(0, 2, 400),
        }
    )
    spec = wd.FeatureSpec(
        label="y",
        features=[
            *wd.categorical("a", "b", "c"),
            *wd.categorical("app", "tags", hash_buckets=100),
            *wd.numeric("x", size=40, missing="indicator"),
            wd.crossed("a", "b", "c", hash_buckets=1000),
            wd.crossed("b", "c"),
            wd.crossed("a", "app", hash_buckets=1000),
            wd.crossed("a", "tags", hash_buckets=1000),
            wd.crossed("b", "tags"),
        ],
        item=["app", "tags"],
    )
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[8], embedding_dim=4)
    trainer = wd.Trainer(model, progress=False, threads=1)
    trainer.fit(rows, epochs=1)
    trainer.export(folder / "m" / "1")
    items = pa.table(
        {"app": [f"app {n}" for n in range(N_ITEMS)], "tags": [["w1", "w2"]] * N_ITEMS}
    )
    pq.write_table(items, folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    words = (folder / "m", "--items", folder / "items.parquet", "--item-id", "app")
    with running(*words, "--deadline-ms", 60_000) as server:
        server.wait_ready()
        yield server


def words(size: int) -> list[str]:
    return ["w1"] * max(1, size // 5)


def three_lists(size: int) -> dict[str, Any]:
    return {name: words(size // 3) for name in "abc"}


def half_and_half(size: int) -> dict[str, Any]:
    """As many candidates as values of the list that is crossed with each of them."""
    ids = [f"app {n % N_ITEMS}" for n in range(max(1, size // 2 // 11))]
    return {"user": {"a": words(size // 2)}, "candidates": ids}


BODIES: dict[str, Any] = {
    "/v1/models/m:predict three lists": lambda size: {"instances": [three_lists(size)]},
    "/v1/models/m:predict many rows of three short lists": lambda size: {
        "instances": [three_lists(300)] * (size // 300)
    },
    "/v1/models/m:predict two long lists, one empty": lambda size: {
        "instances": [{"a": words(size // 2), "b": words(size // 2), "c": []}]
    },
    "/v1/models/m:predict empty rows": lambda size: {"instances": [{}] * (size // 4)},
    "/v1/models/m:predict columns": lambda size: {
        "inputs": {name: [words(100)] * (size // 330) for name in "abc"}
    },
    "/v1/models/m:regress examples": lambda size: {"examples": [three_lists(200)] * (size // 200)},
    "/v1/models/m:classify context": lambda size: {
        "context": {"a": words(size // 2)}, "examples": [{"b": ["w1"]}] * (size // 32)
    },
    "/v2/models/m/infer lists": lambda size: {
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [1, len(words(size // 3))],
             "data": words(size // 3)}
            for name in "abc"
        ]
    },
    "/v1/rank a long list and candidates": half_and_half,
    "/v1/rank a long list and few candidates": lambda size: {
        "user": {"a": words(size)}, "candidates": ["app 1", "app 2"]
    },
    "/v1/rank three lists": lambda size: {"user": three_lists(size), "candidates": ["app 1"]},
    "/v1/rank items of long lists": lambda size: {
        "user": {"a": words(size // 2)},
        "items": {"app": ["app 1", "app 2"], "tags": [words(size // 4)] * 2},
    },
    "/v1/rank many items": lambda size: {
        "user": {"a": words(size // 3)},
        "items": {"app": ["app 1"] * (size // 30), "tags": [["w1", "w2"]] * (size // 30)},
    },
    "/v1/rank explained": lambda size: {**half_and_half(size), "explain": True, "k": 1000},
    "/v1/recommend a long list": lambda size: {"user": {"a": words(size)}, "n": 2000, "k": 10},
    "/v1/recommend explained": lambda size: {
        "user": {"a": words(size), "b": words(20)}, "n": 500, "k": 500, "explain": True
    },
}  # fmt: skip


def check(server: Running, name: str, size: int) -> int:
    path = name.partition(" ")[0]
    body = json.dumps(BODIES[name](size), separators=(",", ":")).encode()
    status, ms, nbytes = cost(server, path, body)
    assert status < 500, (name, len(body), status)
    assert ms <= MS + MS_PER_KB * len(body) / 1024, (name, len(body), status, ms)
    assert nbytes <= BYTES + BYTES_PER_BYTE * len(body), (name, len(body), status, nbytes)
    return status


@pytest.mark.parametrize("name", BODIES)
def test_a_request_costs_what_it_weighs(server: Running, name: str) -> None:
    for size in SIZES:
        check(server, name, size)
    assert server.call("GET", "/health/ready").status == 200


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BODIES)
def test_a_large_request_costs_what_it_weighs(server: Running, name: str) -> None:
    check(server, name, LARGE)


def test_the_answer_names_the_row_and_the_limit(server: Running) -> None:
    rows = {"instances": [{"a": ["w1"]}, three_lists(1500)]}
    answer = server.call("POST", "/v1/models/m:predict", rows)
    assert answer.status == 413
    told = "feature 'a_x_b_x_c' (row 1): got 100 x 100 x 100 values of its parts"
    assert (
        answer.json["error"].startswith(told) and "max_combinations=65,536" in answer.body.decode()
    )
    body = {"user": {"a": words(15_000)}, "candidates": [f"app {n}" for n in range(N_ITEMS)]}
    answer = server.call("POST", "/v1/rank", body)
    assert answer.status == 413
    assert "expected at most 4,000,000 (--max-request-values)" in answer.json["error"]


def test_an_answer_is_as_small_as_its_request(server: Running) -> None:
    """A request may not ask for one output many times."""
    rows = {"name": "tags", "shape": [16_384, 0], "datatype": "BYTES", "data": []}
    for n in (1, 2, 10_000):
        asked = {"inputs": [rows], "outputs": [{"name": "score"}] * n}
        answer = server.call("POST", "/v2/models/m/infer", asked)
        assert answer.status == (200 if n == 1 else 400)
    assert answer.json == {"error": "got the output 'score' twice", "pointer": "/outputs/1/name"}


def test_classes_count_among_the_values_of_a_request(tmp_path: Path) -> None:
    names = tuple(f"class {n}" for n in range(100))
    head = BundleHead(name="", kind="multiclass", start=0, stop=100, classes=names)
    publish(tmp_path / "m", "1", seed=1, heads=(head,))
    path = "/v1/models/m:"
    with Registry(tmp_path / "m", max_values=1000) as registry:
        assert registry.wait_ready(60)
        local = Local({"m": registry})
        for asked, fits in (
            (("predict", {"instances": [{}] * 10}), True),
            (("predict", {"instances": [{}] * 11}), False),
            (("predict", {"inputs": {"age": [1] * 11}}), False),
            (("predict", {"instances": [{}] * 2, "signature_name": "predict"}), True),
            (("predict", {"instances": [{}] * 3, "signature_name": "predict"}), False),
            (("classify", {"examples": [{}] * 5}), True),
            (("classify", {"examples": [{}] * 6}), False),
        ):
            answer = local.post(path + asked[0], asked[1])
            assert answer.status == (200 if fits else 413), (asked, answer.body)
            assert fits or "--max-request-values" in answer.json["error"]


def test_lists_that_fit_are_ranked_as_rows_are_scored(server: Running, folder: Path) -> None:
    """Short ones natively, longer ones by Python; both as the bundle itself."""
    bundle = Bundle.load(folder / "m" / "1")
    for n_words, n_items in ((3, 10), (40, 1000), (400, 500)):
        user = {"a": [f"w{n % 60}" for n in range(n_words)], "b": ["w1", None, "w7"]}
        apps = [f"app {n}" for n in range(n_items)]
        answer = server.call("POST", "/v1/rank", {"user": user, "candidates": apps})
        assert answer.status == 200, answer.body
        rows = [{**user, "app": app, "tags": ["w1", "w2"]} for app in apps]
        expected = dict(zip(apps, bundle.score(rows), strict=True))
        assert dict(zip(answer.json["items"], answer.json["scores"], strict=True)) == expected


def test_the_limit_is_the_operators(folder: Path) -> None:
    words_ = (folder / "m", "--max-request-values", 1000, "--items", folder / "items.parquet")
    with running(*words_, "--item-id", "app") as server:
        server.wait_ready()
        path = "/v1/models/m:predict"
        assert server.call("POST", path, {"instances": [{}] * 5}).status == 200
        answer = server.call("POST", path, {"instances": [{}] * 100})
        assert (answer.status, "at most 1,000 " in answer.json["error"]) == (413, True)


def test_a_bundle_in_a_program_has_no_such_limit(folder: Path) -> None:
    bundle = Bundle.load(folder / "m" / "1")
    rows = [{"a": ["w1"] * 30, "b": ["w2"] * 30, "c": ["w3"] * 30}] * 200
    assert len(bundle.score(rows)) == 200
    bundle.limit_values(4_000_000)
    with pytest.raises(LimitError, match="at most 4,000,000"):
        bundle.score(rows)
