"""One number, one score: whatever protocol it comes by, and natively or by way of Python."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.serving.http.calls import Running, running
from widedeep.bundle import Bundle

TENTHS = [round(0.1 * n, 1) for n in range(1, 10)]
START = 1_700_000_000


def examples(rows: int = 1200) -> pa.Table:
    rng = np.random.default_rng(0)
    price, budget = rng.choice(TENTHS, rows), rng.choice(TENTHS, rows)
    return pa.table(
        {
            "budget": pa.array(budget, pa.float32()),
            "when": pa.array(START + rng.integers(0, 4, rows), pa.timestamp("s")),
            "taste": pa.array(rng.choice(TENTHS, (rows, 2)).tolist(), pa.list_(pa.float32(), 2)),
            "app": [f"app {n}" for n in rng.integers(0, 9, rows)],
            "price": pa.array(price, pa.float32()),
            "y": ((np.round(price * 10) + np.round(budget * 10)) % 2).astype(int),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    spec = wd.FeatureSpec(
        label="y",
        features=[
            *wd.numeric("budget"),
            *wd.numeric("taste", size=2),
            *wd.categorical("app", "when"),
            wd.bucketized("budget_b", source="budget", boundaries=TENTHS),
            wd.bucketized("price_b", source="price", quantiles=9),
            wd.crossed("budget_b", "price_b"),
            wd.crossed("budget_b", "when", hash_buckets=100),
        ],
        item=["app", "price_b"],
    )
    rows = examples()
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[8], embedding_dim=4), progress=False
    )
    trainer.fit(rows, epochs=3)
    trainer.export(folder / "m" / "1")
    # The same prices as the training's, but of double width.
    items = pa.table({"app": [f"app {n}" for n in range(9)], "price": TENTHS})
    pq.write_table(items, folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    words = (folder / "m", "--items", folder / "items.parquet", "--item-id", "app")
    with running(*words, "--grpc", ":0") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(folder / "m" / "1")


ROWS = [
    {"budget": b, "when": START + n % 4, "taste": [b, 0.7], "app": f"app {n}", "price": p}
    for n, (b, p) in enumerate(zip(TENTHS, reversed(TENTHS), strict=True))
]
TEXT_TIMES = [f"2023-11-14T22:13:{20 + n % 4}Z" for n in range(9)]


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> list[float]:
    """The scores of the rows as training stores them."""
    names = ["budget", "when", "taste", "app", "price"]
    types = examples(2).schema
    typed = pa.table({name: pa.array([r[name] for r in ROWS], types.field(name).type)
                      for name in names})  # fmt: skip
    return list(bundle.score(typed))


def test_rows_and_text_of_times(server: Running, bundle: Bundle, expected: list[float]) -> None:
    assert len(set(expected)) == 9
    texts = [{**row, "when": when} for row, when in zip(ROWS, TEXT_TIMES, strict=True)]
    for rows in (ROWS, texts):
        assert list(bundle.score(rows)) == expected
        body = {"instances": rows}
        assert server.call("POST", "/v1/models/m:predict", body).json["predictions"] == expected
        examples = {"examples": rows}
        found = server.call("POST", "/v1/models/m:regress", examples).json
        assert next(iter(found.values())) == expected
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        body = {"inputs": columns}
        assert server.call("POST", "/v1/models/m:predict", body).json["outputs"] == expected


def tensors(float_type: str) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = []
    for name in ("budget", "price", "when", "app"):
        datatype = {"when": "INT64", "app": "BYTES"}.get(name, float_type)
        data = [row[name] for row in ROWS]
        inputs.append({"name": name, "shape": [9], "datatype": datatype, "data": data})
    taste = [row["taste"] for row in ROWS]
    inputs.append({"name": "taste", "shape": [9, 2], "datatype": float_type, "data": taste})
    return inputs


@pytest.mark.parametrize("float_type", ["FP32", "FP64"])
def test_tensors(server: Running, expected: list[float], float_type: str) -> None:
    inputs = tensors(float_type)
    answer = server.call("POST", "/v2/models/m/infer", {"inputs": inputs})
    assert answer.json["outputs"][0]["data"] == expected
    blobs = []
    for each in inputs:
        values = each.pop("data")
        if each["datatype"] == "BYTES":
            blob = b"".join(struct.pack("<I", len(text)) + text.encode() for text in values)
        else:
            code = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}[each["datatype"]]
            blob = np.array(values, code).tobytes()
        each["parameters"] = {"binary_data_size": len(blob)}
        blobs.append(blob)
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)),
               "Content-Type": "application/octet-stream"}  # fmt: skip
    answer = server.call("POST", "/v2/models/m/infer", b"".join([head, *blobs]), headers)
    assert answer.json["outputs"][0]["data"] == expected


def test_grpc(server: Running, expected: list[float]) -> None:
    grpc = pytest.importorskip("grpc")
    from widedeep.serving.grpc import SERVICE, message

    field = {"FP64": "fp64_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
    inputs = []
    for each in tensors("FP64"):
        flat = np.ravel(np.array(each.pop("data"), object)).tolist()
        values = [value.encode() if isinstance(value, str) else value for value in flat]
        inputs.append({**each, "contents": {field[each["datatype"]]: values}})
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        answer = infer(message("ModelInferRequest")(model_name="m", inputs=inputs), timeout=30)
    assert memoryview(answer.raw_output_contents[0]).cast("d").tolist() == expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("when", [START + 2, "2023-11-14T22:13:22Z"])
def test_ranking(server: Running, bundle: Bundle, native: bool, when: Any) -> None:
    items = pq.read_table(server_items(bundle))
    user = {"budget": 0.7, "when": when, "taste": [0.3, 0.6]}
    body: dict[str, Any] = {"user": user, "candidates": items["app"].to_pylist()}
    if not native:
        body["explain"] = True  # which the native server leaves to Python
    answer = server.call("POST", "/v1/rank", body).json
    kinds = examples(2).schema
    rows = {name: [value] * 9 for name, value in {**user, "when": START + 2}.items()}
    rows |= {"app": items["app"].to_pylist(), "price": items["price"].to_pylist()}
    typed = {name: pa.array(values, kinds.field(name).type) for name, values in rows.items()}
    by_item = dict(zip(rows["app"], bundle.score(pa.table(typed)), strict=True))
    assert dict(zip(answer["items"], answer["scores"], strict=True)) == by_item
    if not native:
        for item, told in zip(answer["items"], answer["explanations"], strict=True):
            assert told["score"] == {"": by_item[item]} or by_item[item] in told["score"].values()
    inline = {"user": user, "items": {name: rows[name] for name in ("app", "price")}}
    answer = server.call("POST", "/v1/rank", inline).json
    assert dict(zip(answer["items"], answer["scores"], strict=True)) == by_item


def server_items(bundle: Bundle) -> Path:
    return bundle.path.parent.parent / "items.parquet"


@pytest.mark.parametrize(
    "value, says",
    [(1e39, "within float32"), ("cheap", "expected a number"), (-1e39, "within float32")],
)
def test_a_number_beyond_its_column_is_a_bad_request(
    server: Running, value: Any, says: str
) -> None:
    row = {**ROWS[0], "budget": value}
    answer = server.call("POST", "/v1/models/m:predict", {"instances": [ROWS[0], row]})
    assert (answer.status, says in answer.json["error"]) == (400, True)
    user = {"budget": value}
    answer = server.call("POST", "/v1/rank", {"user": user, "candidates": ["app 1"]})
    assert (answer.status, says in answer.json["error"]) == (400, True)
    assert answer.json["pointer"] == "/user/budget"


@pytest.mark.parametrize(
    "datatype, value",
    [("INT8", 300), ("INT8", -129), ("UINT8", -1), ("UINT64", -1), ("INT64", 2**63),
     ("FP16", 65_520), ("FP32", 1e39)],
)  # fmt: skip
def test_a_tensor_holds_what_its_type_holds(server: Running, datatype: str, value: Any) -> None:
    each = {"name": "budget", "shape": [1], "datatype": datatype, "data": [value]}
    answer = server.call("POST", "/v2/models/m/infer", {"inputs": [each]})
    assert answer.status == 400
    assert f"within {datatype}" in answer.json["error"]


def test_metadata_says_the_width(server: Running) -> None:
    inputs = server.call("GET", "/v2/models/m").json["inputs"]
    types = {each["name"]: each["datatype"] for each in inputs}
    assert types == {"budget": "FP32", "price": "FP32", "taste": "FP32", "when": "INT64",
                     "app": "BYTES"}  # fmt: skip
