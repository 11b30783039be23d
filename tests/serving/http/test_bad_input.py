"""What does not fit is told with 4xx and a pointer into the body, and is never a 500."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.serving.http.calls import Local, running
from widedeep.errors import RequestError
from widedeep.serving.registry import Registry

INFER = "/v2/models/apps/infer"


def infer(**change: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "age", "shape": [2], "datatype": "FP64", "data": [1, 2], **change}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "pointer", "message"),
    [
        ("/v1/rank", b"{", 400, None, "truncated"),
        ("/v1/rank", b"[]", 400, "", "Expected `object`, got `array`"),
        ("/v1/rank", {"usr": {}}, 400, "", "unknown field `usr`; did you mean 'user'?"),
        ("/v1/rank", b" ", 400, None, "got no body; send a JSON object"),
        ("/v1/rank", b'{"user": {"age": NaN}}', 400, None, "JSON has no NaN and no Infinity"),
        ("/v1/rank", b'{"user": {"age": -Infinity}}', 400, None, "send null"),
        ("/v1/rank", b'{"user": {"age": "NaN", }}', 400, None, "trailing comma in object"),
        ("/v1/rank", {}, 400, "", "neither of candidates"),
        ("/v1/rank", {"candidates": [], "items": {}}, 400, "", "both of candidates"),
        ("/v1/rank", {"candidates": ["a", 1.5]}, 400, "/candidates/1", "got `float`"),
        ("/v1/rank", {"candidates": ["a"], "k": -1}, 400, "/k", "got -1"),
        ("/v1/rank", {"candidates": ["a"], "user": {"age": "x"}}, 400, "/user/age", "'x' (str)"),
        (
            *("/v1/rank", {"candidates": ["a"], "user": {"age": "39"}}, 400, "/user/age"),
            "got '39' (str), expected a number or null; write a number (in JSON without quotes)",
        ),
        ("/v1/rank", {"items": [{"price": 1}]}, 400, "/items", "give a list for each column, {"),
        ("/v1/rank", {"items": {"price": 1}}, 400, "/items/...", "give a list for each column"),
        ("/v1/rank", {"candidates": [{"price": 1}]}, 400, "/candidates/0", "give a list of ids"),
        ("/v1/rank", {"candidates": ["a"], "user": {"price": 1}}, 400, "/user/price", "the item's"),
        (
            *("/v1/rank", {"items": {"app": ["a", "b"], "price": [1, {"x": 1}]}}, 400),
            *("/items/price/1", "(dict)"),
        ),
        ("/v1/rank", {"items": {"app": ["a"], "price": []}}, 400, "/items/price", "0 values"),
        ("/v1/rank", {"candidates": ["a"], "request_id": ""}, 400, "/request_id", "1 to 128"),
        ("/v1/rank", {"candidates": ["a"], "model": "app"}, 404, None, "did you mean 'apps'?"),
        ("/v1/rank", {"candidates": ["a"], "version": "2"}, 404, None, "got version '2'"),
        ("/v1/rank", {"candidates": ["a"], "head": "click"}, 400, "/head", "click"),
        (INFER, {"inputs": []}, 400, "/inputs", "no inputs"),
        (INFER, infer(name="agee"), 400, "/inputs/0/name", "did you mean 'age'?"),
        (INFER, infer(datatype="FP65"), 400, "/inputs/0/datatype", "did you mean 'FP64'?"),
        (INFER, infer(shape=[3]), 400, "/inputs/0/data", "got 2 values"),
        (INFER, infer(shape=[]), 400, "/inputs/0/shape", "expected [rows]"),
        (INFER, infer(shape=[-2]), 400, "/inputs/0/shape", "expected [rows]"),
        (INFER, infer(shape=[1, 2]), 400, "/inputs/0/shape", "one value per row"),
        (INFER, infer(data=[1, "x"]), 400, "/inputs/0/data/1", "expected FP64"),
        (INFER, infer(datatype="INT64", data=[1, 1.5]), 400, "/inputs/0/data/1", "INT64"),
        (
            *(
                INFER,
                {"inputs": infer()["inputs"] + infer(name="price", shape=[1], data=[1])["inputs"]},
            ),
            *(400, "/inputs/1/shape", "1 rows, but 2 in 'age'"),
        ),
        (INFER, infer() | {"outputs": [{"name": "scor"}]}, 400, "/outputs/0/name", "'score'"),
        (
            *(INFER, infer(parameters={"binary_data_size": 16}), 400),
            *("/inputs/0/parameters/binary_data_size", "0 bytes follow"),
        ),
        ("/v1/models/apps:predict", {"instances": [{"ag": 1}]}, 400, "/instances/0/ag", "'age'"),
        ("/v1/models/apps:predict", {"instances": [3]}, 400, "/instances/0", "expected an object"),
        (
            *("/v1/models/apps:predict", {"instances": [{}, {"age": "x"}]}, 400),
            *("/instances/1/age", "'x' (str)"),
        ),
        (
            *("/v1/models/apps:predict", {"inputs": {"age": [1], "price": [1, 2]}}, 400),
            *("/inputs/price", "2 values, but 1"),
        ),
        (
            *("/v1/models/apps:regress", {"examples": [{"app": {"b64": "?"}}]}, 400),
            *("/examples/0", "base64"),
        ),
        ("/v1/models/none:predict", {"instances": []}, 404, None, "got model 'none'"),
        ("/v1/nothing", {}, 404, None, "/openapi.json"),
    ],
)
def test_errors_point_into_the_body(
    local: Local, path: str, body: Any, status: int, pointer: str | None, message: str
) -> None:
    answer = local.post(path, body)
    assert answer.status == status, answer.body
    assert message in answer.json["error"]
    assert answer.json.get("pointer") == pointer


@pytest.mark.parametrize(
    "value", [b"1" * 400, b"1e999", b"-1e999", b"NaN", b"Infinity", b'"\\ud800"', b"[" * 100_000]
)
def test_what_json_can_carry_and_a_model_cannot(local: Local, value: bytes) -> None:
    for body in (
        b'{"candidates":["a"],"user":{"age":' + value + b"}}",
        b'{"items":{"price":[' + value + b"]}}",
        b'{"inputs":[{"name":"age","shape":[1],"datatype":"FP64","data":[' + value + b"]}]}",
        b'{"instances":[{"age":' + value + b"}]}",
    ):
        for path in ("/v1/rank", INFER, "/v1/models/apps:predict"):
            answer = local.post(path, body)
            assert answer.status == 400, (path, body[:80], answer.body)


def test_methods_types_encodings_and_sizes(local: Local) -> None:
    answer = local.call("PUT", "/v1/rank", b"{}")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    body = json.dumps({"candidates": ["maps"]}).encode()
    assert local.post("/v1/rank", body, {"Content-Type": "text/xml"}).status == 415
    assert local.post("/v1/rank", body, {"Content-Encoding": "br"}).status == 415
    packed = gzip.compress(body)
    assert local.post("/v1/rank", packed, {"Content-Encoding": "gzip"}).status == 200
    assert local.post("/v1/rank", packed[:-9], {"Content-Encoding": "gzip"}).status == 400
    assert local.post("/v1/rank", body, {"Content-Encoding": "gzip"}).status == 400
    bomb = gzip.compress(b" " * (64 << 20))
    assert local.post("/v1/rank", bomb, {"Content-Encoding": "gzip"}).status == 413
    assert local.post("/v1/rank", b"", {"Content-Length": str(1 << 40)}).status == 413
    timeout = {"X-Request-Timeout-Ms": "soon"}
    assert local.post("/v1/rank", body, timeout).status == 400
    header = {"Inference-Header-Content-Length": "9" * 30}
    assert local.post(INFER, body, header).status == 400


# ---- bodies from a fuzzer -----------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["age", "user", "app", "price", "tags", "maps", "BYTES", "FP64", "INT64"]),
)
KEYS = st.one_of(
    st.text(max_size=5),
    st.sampled_from(
        [
            *("user", "context", "candidates", "items", "k", "explain", "request_id", "model"),
            *("version", "inputs", "outputs", "name", "shape", "datatype", "data", "parameters"),
            *("binary_data_size", "instances", "examples", "age", "app", "price", "tags", "b64"),
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=16,
)
LISTS = st.lists(VALUES, max_size=3)
ROWS = st.dictionaries(st.sampled_from(["age", "app", "tags", "price", "zz"]), VALUES, max_size=3)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["age", "tags", "user", "zz"]),
        "shape": st.lists(st.integers(-1, 4), max_size=3),
        "datatype": st.sampled_from(["FP64", "INT64", "BYTES", "BOOL", "FP16", "zz"]),
    },
    optional={"data": LISTS, "parameters": st.dictionaries(KEYS, SCALARS, max_size=2)},
)
BODIES = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            **{"user": ROWS, "context": ROWS, "k": VALUES, "explain": VALUES, "head": VALUES},
            **{"candidates": st.lists(SCALARS, max_size=4) | VALUES},
        },
    ),
    st.fixed_dictionaries({"items": st.dictionaries(KEYS, LISTS, max_size=3)}),
    st.fixed_dictionaries(
        {},
        optional={
            **{"n": st.integers(-1, 9) | VALUES, "where": ROWS | VALUES, "exclude": LISTS},
            **{"like": LISTS, "vector": LISTS, "most_of_each": VALUES, "user": ROWS, "k": VALUES},
        },
    ),
    st.fixed_dictionaries({"inputs": st.lists(TENSORS, max_size=3)}),
    st.fixed_dictionaries({"instances": st.lists(ROWS | VALUES, max_size=3)}),
    st.fixed_dictionaries({"inputs": st.dictionaries(KEYS, LISTS, max_size=3)}),
    st.fixed_dictionaries({"examples": st.lists(ROWS, max_size=3)}, optional={"context": ROWS}),
)
PATHS = [
    *("/v1/rank", "/v1/recommend", INFER, "/v2/repository/index", "/v1/models/apps:predict"),
    *("/v1/models/apps:classify", "/v1/models/apps:regress"),
]


def never_a_bug(local: Local, path: str, body: Any, cut: int | None) -> None:
    text = json.dumps(body, ensure_ascii=True).encode()[:cut]
    answer = local.post(path, text)
    assert answer.status < 500, (path, text, answer.body)
    if answer.status >= 400:
        assert answer.json["error"]


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES, cut=st.none() | st.integers(0, 60))
def test_malformed_bodies(local: Local, path: str, body: Any, cut: int | None) -> None:
    never_a_bug(local, path, body, cut)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES, cut=st.none() | st.integers(0, 60))
def test_ten_thousand_malformed_bodies(local: Local, path: str, body: Any, cut: int | None) -> None:
    never_a_bug(local, path, body, cut)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=80), sizes=st.lists(st.integers(-1, 40), max_size=2))
def test_malformed_binary_tensors(local: Local, raw: bytes, sizes: list[int]) -> None:
    inputs = [
        {
            "name": name,
            "shape": [2],
            "datatype": datatype,
            "parameters": {"binary_data_size": size},
        }
        for (name, datatype), size in zip((("user", "BYTES"), ("age", "FP32")), sizes, strict=False)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    assert local.post(INFER, head + raw, length).status in (200, 400)


def test_ids_beyond_2_to_the_53_are_exact_or_refused(tmp_path: Path) -> None:
    """Of two neighbours, which a float64 cannot tell apart, each has its own score."""
    first = 2**53
    ids = [first + n % 3 for n in range(90)]
    rows = pa.table({"user": ids, "app": ids[::-1], "y": [n % 2 for n in range(90)]})
    spec = wd.FeatureSpec(
        label="y", features=wd.categorical("user", "app", min_count=1), item=["app"]
    )
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False, threads=1)
    trainer.fit(rows, epochs=3)
    trainer.export(tmp_path / "m" / "1")
    pq.write_table(pa.table({"app": [first, first + 1]}), tmp_path / "items.parquet")
    words = (tmp_path / "m", "--items", tmp_path / "items.parquet", "--item-id", "app")
    ranker = wd.Ranker(tmp_path / "m/1", items=tmp_path / "items.parquet", item_id="app")

    def expected(user: int) -> list[float]:
        scores = trainer.predict([{"user": user, "app": app} for app in (first, first + 1)])
        return sorted(np.asarray(scores).tolist(), reverse=True)

    asked = b'{"user":{"user":%s},"candidates":[9007199254740992,"9007199254740993"]}'
    items = b'{"user":{"user":9007199254740993},"items":{"app":[%s]}}'
    with running(*words) as native, Registry(tmp_path / "m") as registry:
        native.wait_ready()
        assert registry.wait_ready(60)
        local = Local({"m": registry})
        for user in (first, first + 1):
            for text in (b"%d" % user, b'"%d"' % user):
                answer = native.call("POST", "/v1/rank", asked % text)
                assert answer.json["scores"] == pytest.approx(expected(user), abs=1e-6)
                row = {"user": int(text.strip(b'"'))}
                ranking = ranker.rank(row, candidates=[first, first + 1])
                assert answer.json["scores"] == ranking.scores.tolist()
        for number in (b"9007199254740993.0", b"9.007199254740993e15", b"1e300", b"%d" % 2**64):
            for post in (partial(native.call, "POST"), local.post):
                for body, pointer in ((asked, "/user/user"), (items, "/items/app/0")):
                    if body is asked and post == local.post:
                        continue  # it has no catalogue
                    answer = post("/v1/rank", body % number)
                    assert (answer.status, answer.json["pointer"]) == (400, pointer), number
    with pytest.raises(RequestError, match=r"candidates.id\[1\]: .*may have been rounded"):
        wd.Ranker(tmp_path / "m/1", item_id="id").rank(
            {}, candidates={"id": [1.0, 2.0**53], "app": [1, 1]}
        )
