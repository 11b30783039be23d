"""The native server: the same answers as Python's, and nothing lost between the two."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import widedeep as wd
from tests.ads import history_table
from tests.serving.http.calls import Local, Running, running
from tests.serving.versions import ITEMS, USER, eventually, publish, whole_rows, write_items
from widedeep.bundle import BundleHead, Isotonic
from widedeep.kernels.native_server import has_native_server
from widedeep.serving.http.open_inference import datatype_of
from widedeep.serving.registry import Registry
from widedeep.serving.versions import (
    RegistryOptions,
    change_state,
    is_canary_request,
    state_path,
)

pytestmark = pytest.mark.skipif(not has_native_server(), reason="no native server here")

ASK: dict[str, Any] = {"user": USER, "candidates": ITEMS, "request_id": "r1"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest.fixture(scope="module")
def server(apps: Path, log: Path) -> Iterator[Running]:
    words = (apps, "--items", apps.parent / "items.parquet", "--item-id", "app")
    with running(*words, log=log) as server:
        server.wait_ready()
        yield server


def raw(body: bytes, more: str = "") -> bytes:
    head = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answers(connection: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Read so many answers off a connection."""
    found = []
    with connection.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            headers = http.client.parse_headers(file)
            body = file.read(int(headers["content-length"]))
            found.append((status, {k.lower(): v for k, v in headers.items()}, body))
    return found


def counted(server: Running) -> dict[str, float]:
    text = server.call("GET", "/metrics").body.decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def is_native(answer_headers: dict[str, str]) -> bool:
    """A made-up id of Python's is a UUID of version 4; every sixteenth other one looks so too."""
    return answer_headers["x-request-id"][12] != "4"


def test_plain_requests_are_answered_natively(server: Running) -> None:
    body = json.dumps({"user": USER, "candidates": ITEMS}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(raw(body) * 64)
        found = answers(connection, 64)
    assert {status for status, _, _ in found} == {200}
    assert sum(is_native(headers) for _, headers, _ in found) > 32
    names = {"date", "content-type", "content-length", "x-request-id"}
    assert all(set(headers) == names for _, headers, _ in found)


KEYS = {"shop": "shop key", "operator": "root key", "first": "1", "second": "2", "third": "3"}
OFFERS: tuple[dict[str, str], ...] = (
    *({}, {"X-API-Key": "shop key"}, {"X-API-Key": "shop keys"}, {"X-API-Key": "root key"}),
    *(
        {"Authorization": f"{scheme} shop key"}
        for scheme in ("Bearer", "bearer", "Bearer ", "Basic")
    ),
    *({"Authorization": "Bearer"}, {"Authorization": "Bearer x", "X-API-Key": "shop key"}),
    *({"Authorization": "Basic x", "X-API-Key": "shop key"}, {"X-API-Key": "shop key "}),
    *({"X-API-Key": ""}, {"X-API-Key": "\t shop key"}, {"Authorization": "Bearer \t shop key"}),
)


@pytest.fixture(scope="module")
def keyed_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "log"


@pytest.fixture(scope="module")
def keyed(apps: Path, keyed_log: Path) -> Iterator[list[Running]]:
    """A server with native threads, and the Python server alone, which ask for keys."""
    folder = keyed_log.parent
    more = {"shop": "", "operator": "admin = true"}
    lines = []
    for name, key in KEYS.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines += [f"[keys.{name}]", f'sha256 = "{digest}"', more.get(name, "rate = 0.02")]
    (folder / "keys.toml").write_text("\n".join(lines))
    words = (apps, "--items", apps.parent / "items.parquet", "--item-id", "app")
    words = (*words, "--keys", folder / "keys.toml", "--log-requests", "all")
    with (
        running(*words, log=keyed_log) as native,
        running(*words, "--no-native", log=keyed_log.with_name("python")) as python,
    ):
        native.wait_ready()
        python.wait_ready()
        yield [native, python]


@pytest.mark.parametrize("offer", OFFERS)
def test_keys_open_both_servers_alike(keyed: list[Running], offer: dict[str, str]) -> None:
    got, want = (server.call("POST", "/v1/rank", ASK, offer) for server in keyed)
    assert (got.status, got.body) == (want.status, want.body)
    names = {"www-authenticate", "content-type"}
    assert all(got.headers.get(name) == want.headers.get(name) for name in names)


def test_requests_with_a_key_are_answered_natively_and_logged(
    keyed: list[Running], keyed_log: Path
) -> None:
    ask = {"user": USER, "candidates": ITEMS}
    found = [keyed[0].call("POST", "/v1/rank", ask, {"X-API-Key": "shop key"}) for _ in range(16)]
    assert {each.status for each in found} == {200}
    assert sum(is_native(each.headers) for each in found) > 8
    eventually(lambda: keyed_log.read_text().count('"caller":"shop"') >= 16)


AGES = {"name": "age", "shape": [3], "datatype": "INT64", "data": [1, None, 3]}


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("/v1/rank", {"user": USER, "candidates": ITEMS, "k": 2}),
        ("/v2/models/apps/infer", {"inputs": [AGES]}),
    ],
)
def test_both_servers_log_requests_alike(
    keyed: list[Running], keyed_log: Path, path: str, ask: dict[str, Any]
) -> None:
    told = []
    for server, log in zip(keyed, (keyed_log, keyed_log.with_name("python")), strict=True):
        name = path[-5:].strip("/")
        headers = {"X-API-Key": "shop key", "X-Request-Id": name}
        assert server.call("POST", path, ask, headers).status == 200
        eventually(lambda name=name, log=log: f'"request_id":"{name}"' in log.read_text())
        lines = [line for line in log.read_text().splitlines() if f'"request_id":"{name}"' in line]
        told.append([re.sub(r'"(time|ms)":[^,}]+', "", line) for line in lines])
    assert told[0] == told[1]
    assert f'"rows":{len(ITEMS) if "rank" in path else 3}' in told[0][0]


def test_a_rate_counts_the_requests_of_both(keyed: list[Running]) -> None:
    explained, wrong = ASK | {"explain": True}, ASK | {"head": "nothing"}
    for server in keyed:
        for key, asked, status in (
            ("1", [ASK, explained, ASK], 200),
            ("2", [explained, ASK, explained], 200),
            ("3", [wrong, ASK, ASK], 400),
        ):
            found = [server.call("POST", "/v1/rank", ask, {"X-API-Key": key}) for ask in asked]
            assert [each.status for each in found] == [status, 429, 429]
            assert "more than 0.02 requests a second" in found[-1].json["error"]
            assert 0 < int(found[-1].headers["retry-after"]) <= 50


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3)), max_size=3),
)
QUERIES = st.dictionaries(st.sampled_from([*USER, "other", "é", "usr", "Tags"]), VALUES, max_size=4)
OPTIONAL = {
    "context": st.dictionaries(st.sampled_from([*USER, "hour"]), VALUES, max_size=2),
    "k": st.one_of(st.none(), st.integers(-1, 9)),
    "request_id": st.text(max_size=5),
    "explain": st.booleans(),
    "head": st.sampled_from([None, "", "click", "buy", "spent", "visits", "none"]),
}
IDS = st.sampled_from([*ITEMS, "ghost", 'maps"é', 7, "7", 2**70, 1.5, None])


@st.composite
def inline_columns(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Items in columns, now and then of unequal lengths."""
    n = draw(st.integers(0, 9))
    prices = st.one_of(st.floats(-3, 9), st.integers(-3, 9), st.none())
    cells = {"app": IDS, "price": st.one_of(prices, VALUES), "prise": VALUES, "age": VALUES}
    if draw(st.booleans()):
        cells |= {"app": st.sampled_from(ITEMS), "price": draw(st.sampled_from([prices, VALUES]))}
    names = draw(st.sets(st.sampled_from(["app", "app", "price", "price", "prise", "age"])))
    length = st.sampled_from([n] * 20 + [n + 1])
    return {
        name: draw(st.lists(cells[name], min_size=m, max_size=m))
        for name in draw(st.permutations(sorted(names)))
        for m in [draw(length)]
    }


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    body = {"request_id": "r", "user": draw(st.one_of(st.just(USER), QUERIES))}
    body |= draw(st.fixed_dictionaries({}, optional=OPTIONAL)) if draw(st.booleans()) else {}
    if draw(st.booleans()):
        body["items"] = draw(inline_columns())
    else:
        body["candidates"] = draw(st.lists(IDS | st.sampled_from(ITEMS), max_size=7))
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


def of_items(columns: dict[str, list[Any]]) -> bytes:
    return json.dumps({"request_id": "r", "user": USER, "items": columns}).encode()


@settings(max_examples=250, deadline=None)
@given(body=bodies())
@example(body=of_items({"note": [1], "app": ITEMS[:3]}))
@example(body=of_items({"price": [[1.0], [2.0]], "app": ITEMS}))
def test_answers_equal_those_of_python(server: Running, local: Local, body: bytes) -> None:
    want, got = local.post("/v1/rank", body), server.call("POST", "/v1/rank", body)
    assert (got.status, got.body) == (want.status, want.body)


CURVE = Isotonic(logits=(-1.0, 0.25, 2.0), values=(0.1, 0.4, 0.8), slope=0.5)
FLAT = Isotonic(logits=(-0.5, 0.0, 1.0), values=(0.0, 0.5, 0.5))
HEADS = (
    BundleHead(name="click", kind="binary", start=0, stop=1),
    BundleHead(name="buy", kind="binary", start=1, stop=2),
    BundleHead(name="spent", kind="regression", start=2, stop=5, own_link="ziln"),
    BundleHead(name="visits", kind="regression", start=5, stop=6, own_link="exp"),
    BundleHead(name="hours", kind="regression", start=6, stop=7, own_link="softplus"),
    BundleHead(name="days", kind="regression", start=7, stop=8, own_link="expm1"),
)


FORMULA = (
    "click * max(buy, 0.25) / (price - 2) + sqrt(0.5) * abs(-click) + buy ** 0.7 * exp(-hours)"
    " + log1p(visits * price) * log(spent) ** 2"
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Local]]:
    """Heads with curves and links, ranked by a formula; a server, and Python alone."""
    folder = tmp_path_factory.mktemp("several")
    calibration = {"click": CURVE, "buy": FLAT}
    publish(folder / "apps", "1", seed=4, heads=HEADS, calibration=calibration)
    write_items(folder / "items.parquet")
    words = (folder / "apps", "--items", folder / "items.parquet", "--item-id", "app")
    options = RegistryOptions(items=folder / "items.parquet", item_id="app", rank_by=FORMULA)
    with (
        running(*words, "--rank-by", FORMULA) as server,
        Registry(folder / "apps", options=options) as registry,
    ):
        server.wait_ready()
        assert registry.wait_ready(60)
        yield server, Local({"apps": registry})


@settings(max_examples=250, deadline=None)
@given(body=bodies())
def test_formulas_and_curves_equal_those_of_python(
    several: tuple[Running, Local], body: bytes
) -> None:
    got, want = (each.call("POST", "/v1/rank", body) for each in several)
    assert (got.status, got.body) == (want.status, want.body)


PRICES = {"app": ITEMS, "price": [n / 8 for n in range(len(ITEMS))]}
KINDS: dict[str, dict[str, Any]] = {
    "unknown ids": {"candidates": [*ITEMS, "ghost", 7]},
    "inline items": {"items": PRICES},
    "items without ids": {"items": {"price": PRICES["price"]}},
    "another head": {"candidates": ITEMS, "head": "buy"},
    "a head of counts": {"candidates": ITEMS, "head": "visits"},
    "a head of amounts": {"candidates": ITEMS, "head": "spent"},
    "a formula": {"candidates": ITEMS},
    "a formula of inline items": {"items": PRICES},
}


@pytest.mark.parametrize("kind", KINDS)
def test_these_are_answered_natively(
    server: Running, several: tuple[Running, Local], kind: str
) -> None:
    asked = several[0] if "head" in kind or "formula" in kind else server
    before = counted(asked)
    found = [asked.call("POST", "/v1/rank", {"user": USER, **KINDS[kind]}) for _ in range(16)]
    assert {each.status for each in found} == {200}, found[0].body
    assert sum(is_native(each.headers) for each in found) > 8
    grown = {name: value - before.get(name, 0) for name, value in counted(asked).items()}
    assert grown['widedeep_answers_total{model="apps",version="1"}'] == 16
    unknown = 'widedeep_unknown_items_total{model="apps"}'
    assert grown.get(unknown, 0) == 16 * len(found[0].json.get("unknown", ()))
    undefined = 'widedeep_undefined_scores_total{model="apps"}'
    assert grown.get(undefined, 0) == 16 * len(found[0].json.get("undefined", ()))
    n_scores = grown['widedeep_scores_total{model="apps",version="1"}']
    assert n_scores == 16 * sum(score is not None for score in found[0].json["scores"])


NUMBERS = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2", "INT8": "i1", "INT64": "<i8"}
NUMBERS |= {"UINT8": "u1", "UINT64": "<u8", "BOOL": "?"}
LISTS = ("tags", "seen")
LIKELY = st.integers(0, 30)  # 0: the unlikely


@st.composite
def tensors(draw: st.DrawFn, name: str, n: int) -> tuple[dict[str, Any], bytes]:
    """A column as the Open Inference Protocol has it, now and then wrong, and its bytes."""
    rows = n if draw(LIKELY) else n + 1
    width = draw(st.integers(0, 2)) if name in LISTS else 1 if draw(LIKELY) else 2
    is_number = (name in ("age", "price")) == bool(draw(LIKELY))
    kind = draw(st.sampled_from(list(NUMBERS))) if is_number else "BYTES"
    size = rows * width
    texts = st.one_of(st.sampled_from([*ITEMS, "bo", "x", "7"]), st.text(max_size=4))
    one = st.integers(0, 1 if kind == "BOOL" else 90) if is_number else texts
    values: list[Any] = draw(st.lists(one, min_size=size, max_size=size))
    shape = [rows] if width == 1 and draw(st.booleans()) else [rows, width]
    about: dict[str, Any] = {"name": name, "shape": shape, "datatype": kind}
    if draw(st.booleans()):
        values = [bool(each) if kind == "BOOL" else each for each in values]
        odd = VALUES if not draw(LIKELY) else st.none()
        about["data"] = [each if draw(LIKELY) else draw(odd) for each in values]
        return about, b""
    if is_number:
        raw = np.array(values).astype(NUMBERS[kind]).tobytes()
        raw = raw if draw(LIKELY) else draw(st.binary(min_size=len(raw), max_size=len(raw)))
    else:
        encoded = [each.encode() if draw(LIKELY) else draw(st.binary()) for each in values]
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in encoded)
    raw += b"\0" * (not draw(LIKELY))
    about["parameters"] = {"binary_data_size": len(raw)}
    return about, raw


def flags(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.one_of(st.booleans(), st.none())})


OUTPUTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["click", "buy", "spent", "days"] * 5 + ["score"])},
    optional={"parameters": flags("binary_data")},
)
MORE: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["r", "", "é", None]),
    "outputs": st.lists(OUTPUTS, max_size=3),
    "parameters": flags("binary_data_output"),
}


@st.composite
def inferences(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """A request of the Open Inference Protocol, now and then wrong, and its headers."""
    n = draw(st.sampled_from([1, 2, 3, 3, 9, 0]))
    names = draw(st.sets(st.sampled_from(["age", "price", "user", *LISTS, "app"]), min_size=1))
    columns = sorted(names) + ["no"] * (not draw(LIKELY)) + ["app"] * (not draw(LIKELY))
    found = [draw(tensors(name, n)) for name in columns]
    body = {"inputs": [about for about, _ in found]}
    body |= draw(st.fixed_dictionaries({}, optional=MORE))
    text = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    kinds = ["application/json", "application/octet-stream", "Application/Octet-Stream; x=y"]
    headers = {"Content-Type": draw(st.sampled_from(kinds)), "X-Request-Id": "r1"}
    blobs = b"".join(raw for _, raw in found)
    if blobs or draw(st.booleans()):
        headers["Inference-Header-Content-Length"] = str(len(text) + (not draw(LIKELY)))
    return text + blobs, headers


@settings(max_examples=200, deadline=None)
@given(asked=inferences())
def test_tensors_are_scored_as_by_python(
    several: tuple[Running, Local], asked: tuple[bytes, dict[str, str]]
) -> None:
    path = "/v2/models/apps/infer"
    got, want = (each.call("POST", path, *asked) for each in several)
    assert (got.status, got.body) == (want.status, want.body)
    for name in ("content-type", "inference-header-content-length", "x-request-id"):
        assert got.headers.get(name) == want.headers.get(name)


@pytest.mark.parametrize("is_binary", [True, False])
def test_tensors_are_scored_natively_and_counted(
    several: tuple[Running, Local], is_binary: bool
) -> None:
    server = several[0]
    prices = np.arange(5, dtype="<f8")
    about: dict[str, Any] = {"name": "price", "shape": [5], "datatype": "FP64"}
    about |= {"parameters": {"binary_data_size": 40}} if is_binary else {"data": prices.tolist()}
    parameters = {"binary_data_output": is_binary}
    text = json.dumps({"inputs": [about], "parameters": parameters}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))} if is_binary else {}
    headers |= {"Content-Type": "application/octet-stream"} if is_binary else {}
    body, path = text + (prices.tobytes() if is_binary else b""), "/v2/models/apps/infer"
    before, stats = counted(server), server.call("GET", "/v2/models/apps/stats").json
    found = [server.call("POST", path, body, headers) for _ in range(16)]
    assert {each.status for each in found} == {200}, found[0].body
    assert sum(is_native(each.headers) for each in found) > 8
    grown = {name: value - before.get(name, 0) for name, value in counted(server).items()}
    route = 'route="/v2/models/{model}/infer"'
    assert grown[f'widedeep_requests_total{{{route},status="200"}}'] == 16
    assert grown['widedeep_scores_total{model="apps",version="1"}'] == 16 * 5
    now = server.call("GET", "/v2/models/apps/stats").json
    counts = [
        sum(each["inference_count"] for each in about["model_stats"]) for about in (stats, now)
    ]
    assert counts[1] - counts[0] == 16 * 5


LOGGED: tuple[dict[str, Any], ...] = (
    {"candidates": ITEMS},
    {"candidates": [*ITEMS[:3], "ghost", "7"], "k": 4},
    {"items": PRICES},
    {"items": {**PRICES, "note": ["x"] * len(ITEMS)}, "k": 3},
    {"candidates": ITEMS, "head": "buy"},
    {"candidates": ITEMS, "user": {**USER, "age": None, "tags": []}, "context": {"hour": 3}},
    {"items": PRICES, "head": "click"},
    {"candidates": ITEMS, "user": {**USER, "tags": "xy", "seen": "mail"}},
)


@pytest.mark.parametrize("formula", [None, FORMULA])
def test_both_servers_log_the_same_rows(tmp_path: Path, formula: str | None) -> None:
    publish(tmp_path / "apps", "1", seed=4, heads=HEADS)
    write_items(tmp_path / "items.parquet")
    words = [tmp_path / "apps", "--items", tmp_path / "items.parquet", "--item-id", "app"]
    words += [] if formula is None else ["--rank-by", formula]
    rows = []
    for name, more in (("native", ()), ("python", ("--no-native",))):
        log = ("--log", tmp_path / name, "--log-user", "user")
        with running(*words, *log, *more) as server:
            server.wait_ready()
            for n, ask in enumerate(LOGGED):
                body = {"user": USER, "request_id": f"r{n}", **ask}
                assert server.call("POST", "/v1/rank", body).status == 200
        table = ds.dataset(tmp_path / name, format="parquet").to_table()
        rows.append(sorted(map(repr, table.drop_columns(["event_time"]).to_pylist())))
    assert len(rows[0]) == sum(ask.get("k", len(ask.get("candidates", ITEMS))) for ask in LOGGED)
    assert rows[0] == rows[1]


def test_a_misspelt_key_is_named_by_both(server: Running, local: Local) -> None:
    before = counted(server)
    user = {"agee": 31.0, "user": "bo", "tags": ["x"], "Seen": ["mail"], "other": 1}
    for body in ({"user": user}, {"user": {}, "context": user}):
        ask = {**body, "candidates": ITEMS, "request_id": "r1"}
        for answer in (server.call("POST", "/v1/rank", ask), local.post("/v1/rank", ask)):
            assert answer.json["misspelt"] == {"agee": "age", "Seen": "seen"}
            assert answer.json["absent"] == {"age": 1, "seen": 1}
    # What is no name of the model, and resembles none that is absent, is passed over.
    whole = server.call("POST", "/v1/rank", {**ASK, "user": {**USER, "agee": 1}})
    assert "misspelt" not in whole.json
    rows = {"items": {"app": ITEMS, "prise": [1.0] * len(ITEMS)}, "user": USER}
    assert server.call("POST", "/v1/rank", rows).json["misspelt"] == {"prise": "price"}
    names = [
        f'widedeep_misspelt_total{{feature="{name}",model="apps"}}' for name in ("age", "price")
    ]
    assert [counted(server)[name] - before.get(name, 0) for name in names] == [2, 1]


EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(edits=EDITS, count=st.integers(1, 3))
def test_damaged_requests_are_never_a_bug(
    server: Running, edits: list[tuple[int, bytes]], count: int
) -> None:
    sent = bytearray(raw(json.dumps(ASK).encode(), "Content-Type: application/json\r\n") * count)
    for place, put in edits:
        at = place % len(sent)
        sent[at : at + 1] = put
    got = b""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
        contextlib.suppress(ConnectionError),  # closed over what it cannot read
    ):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            got += part
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", got)
    assert b"500" not in statuses
    if not edits:
        assert statuses == [b"200"] * count


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_connection_may_ask_anything_in_turn(server: Running, pieces: int) -> None:
    plain = json.dumps(ASK).encode()
    explained = json.dumps(ASK | {"explain": True}).encode()
    chunked = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(plain), plain)
    asked = [
        *(raw(plain), raw(explained), raw(plain), raw(b"{"), chunked, raw(plain)),
        *(
            b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
            raw(plain, "X-Request-Timeout-Ms: 1e-3\r\n"),
        ),
    ]
    bytes_ = b"".join(asked)
    size = -(-len(bytes_) // pieces)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for start in range(0, len(bytes_), size):
            connection.sendall(bytes_[start : start + size])
        found = answers(connection, len(asked))
    assert [status for status, _, _ in found] == [200, 200, 200, 400, 200, 200, 200, 504]
    bodies = [json.loads(body) for _, _, body in found]
    assert bodies[0]["items"] == bodies[4]["items"] == bodies[1]["items"]
    assert bodies[0]["scores"] == bodies[5]["scores"] == bodies[1]["scores"]
    assert "explanations" in bodies[1] and "explanations" not in bodies[0]


@pytest.mark.parametrize("ask", ["POST /v1/rank", "GET /health/live"])
def test_a_request_names_its_host_once(server: Running, ask: str) -> None:
    body = b"{}" if ask.startswith("POST") else b""
    for version, hosts, is_refused in (
        ("1.1", "", True),
        ("1.1", "Host: a\r\nHost: b\r\n", True),
        ("1.0", "Host: a\r\nHost: a\r\n", True),
        ("1.1", "Host:\r\n", False),
        ("1.0", "", False),
    ):
        head = f"{ask} HTTP/{version}\r\n{hosts}Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            got = connection.recv(65536)
        assert (b"exactly one Host header" in got) is is_refused, got
        assert not is_refused or got.startswith(b"HTTP/1.1 400 ")


def test_a_late_deadline_and_ids_of_headers(server: Running, log: Path) -> None:
    body = json.dumps({"user": USER, "candidates": ITEMS}).encode()
    late = {"X-Request-Timeout-Ms": "0.0001", "X-Request-Id": "too-late"}
    answer = server.call("POST", "/v1/rank", body, late)
    assert (answer.status, "deadline" in answer.json["error"]) == (504, True)
    eventually(lambda: '"request_id":"too-late"' in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    line = next(line for line in lines if line.get("request_id") == "too-late")
    assert (line["status"], line["model"], line["path"]) == (504, "apps", "/v1/rank")
    named = server.call("POST", "/v1/rank", body, {"X-Request-Id": 'a"b'})
    assert named.headers["x-request-id"] == named.json["request_id"] == 'a"b'


def test_figures_count_both_servers(server: Running) -> None:
    before = counted(server)
    for n in range(40):
        ask = ASK | ({"explain": True} if n % 4 == 0 else {})
        assert server.call("POST", "/v1/rank", ask).status == 200
    after = counted(server)

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('widedeep_requests_total{route="/v1/rank",status="200"}') == 40
    assert grown('widedeep_request_seconds_count{route="/v1/rank"}') == 40
    assert grown('widedeep_request_seconds_bucket{le="+Inf",route="/v1/rank"}') == 40
    assert grown('widedeep_answers_total{model="apps",version="1"}') == 40
    assert grown('widedeep_scores_total{model="apps",version="1"}') == 40 * len(ITEMS)
    binned = [name for name in after if name.startswith("widedeep_scores_binned_total")]
    assert sum(map(grown, binned)) == 40 * len(ITEMS)
    mean = grown('widedeep_scores_sum{model="apps",version="1"}') / (40 * len(ITEMS))
    scores = server.call("POST", "/v1/rank", ASK).json["scores"]
    assert mean == pytest.approx(np.mean(scores))
    assert after["widedeep_queue"] == 0
    status = server.call("GET", "/v1/status").json["models"]["apps"][0]
    assert status["requests"] >= 41


def test_versions_canaries_and_catalogues_reach_the_front(tmp_path: Path) -> None:
    root = tmp_path / "apps"
    publish(root, "1", seed=1)
    write_items(tmp_path / "items.parquet")
    words = (root, "--items", tmp_path / "items.parquet", "--item-id", "app", "--poll", 0.05)
    log = tmp_path / "log"
    with running(*words, "--log", log, "--log-user", "user") as server:
        server.wait_ready()
        first = server.call("POST", "/v1/rank", ASK | {"request_id": "first"}).json
        assert first["model_version"] == "1"
        publish(root, "2", seed=2)
        eventually(lambda: server.call("POST", "/v1/rank", ASK).json["model_version"] == "2")
        change_state(state_path(root), lambda state: state.set_canary("1", 0.5))
        trial = [f"trial {n}" for n in range(40)]
        eventually(lambda: versions(server, trial) == {"1", "2"})
        for name in trial:
            got = server.call("POST", "/v1/rank", ASK | {"request_id": name}).json
            assert got["model_version"] == ("1" if is_canary_request(name, 0.5) else "2")
        write_items(tmp_path / "items.parquet", price=9.0)
        before = first["catalogue_version"]
        eventually(lambda: server.call("POST", "/v1/rank", ASK).json["catalogue_version"] != before)
    rows = ds.dataset(log, format="parquet").to_table().to_pylist()
    shown = [row for row in rows if row["request_id"] == "first"]
    shown.sort(key=lambda row: row["position"])
    assert [row["item_id"] for row in shown] == first["items"]
    assert [row["score"] for row in shown] == first["scores"]
    assert {row["catalogue_version"] for row in shown} == {before}
    assert {row["request_id"] for row in rows} >= set(trial)


def sigmoid(logits_B: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits_B))


def lognormal_mean(logits_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    amount_B = np.exp(logits_BC[:, 1] + 0.5 * np.logaddexp(0, logits_BC[:, 2]) ** 2)
    return sigmoid(logits_BC[:, 0]) * amount_B


COUNT = BundleHead(name="", kind="regression", start=0, stop=1, own_link="exp")
AMOUNT = BundleHead(name="", kind="regression", start=0, stop=3, own_link="ziln")
BUY = BundleHead(name="buy", kind="binary", start=0, stop=1, through=1)
CLICK = BundleHead(name="click", kind="binary", start=1, stop=2)
FIRST, SECOND = replace(CLICK, start=0, stop=1), replace(BUY, start=1, stop=2, through=None)


@pytest.mark.parametrize(
    ("heads", "formula", "expected_of"),
    [
        pytest.param((COUNT,), None, lambda x_BC: np.exp(x_BC[:, 0]), id="count"),
        pytest.param((AMOUNT,), None, lognormal_mean, id="amount"),
        pytest.param((BUY, CLICK), None, lambda x_BC: sigmoid(x_BC).prod(axis=1), id="through"),
        pytest.param(
            (FIRST, SECOND),
            "click * buy * price",
            lambda x_BC: sigmoid(x_BC).prod(axis=1) * np.arange(len(x_BC)),
            id="formula",
        ),
    ],
)
def test_heads_are_ranked_by_what_they_mean(
    tmp_path: Path,
    heads: tuple[BundleHead, ...],
    formula: str | None,
    expected_of: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    """Links of their own, a probability through another head's, and a product of heads."""
    bundle = publish(tmp_path / "heads", "1", seed=3, heads=heads)
    write_items(tmp_path / "items.parquet")
    words = [tmp_path / "heads", "--items", tmp_path / "items.parquet", "--item-id", "app"]
    with running(*words, *([] if formula is None else ["--rank-by", formula])) as server:
        server.wait_ready()
        plain = server.call("POST", "/v1/rank", ASK).json
        explained = server.call("POST", "/v1/rank", ASK | {"explain": True}).json
    logits_BC = bundle.logits(bundle.encode(whole_rows(ITEMS))).astype(np.float64)
    expected = expected_of(logits_BC)
    order = np.argsort(-expected, kind="stable")
    assert plain["items"] == explained["items"] == [ITEMS[at] for at in order]
    assert plain["scores"] == explained["scores"]
    assert plain["scores"] == pytest.approx(expected[order], rel=1e-6)
    assert len(set(plain["scores"])) == len(ITEMS)


def versions(server: Running, names: list[str]) -> set[str]:
    asked = (server.call("POST", "/v1/rank", ASK | {"request_id": name}) for name in names)
    return {answer.json["model_version"] for answer in asked}


def test_connections_come_back_and_are_let_go(server: Running) -> None:
    def open_sockets() -> int:
        place, found = f"/proc/{server.process.pid}/fd", 0
        for name in os.listdir(place):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found += os.readlink(f"{place}/{name}").startswith("socket:")
        return found

    body = json.dumps(ASK).encode()
    server.call("POST", "/v1/rank", body)
    before = open_sockets()
    connections = [
        socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(20)
    ]
    for connection in connections:
        connection.sendall(raw(b"{") + raw(body))
        assert [status for status, _, _ in answers(connection, 2)] == [400, 200]
    for connection in connections:
        connection.close()
    eventually(lambda: open_sockets() <= before, 20)


def tensor_of(bundle: wd.Bundle, name: str, values: list[Any]) -> dict[str, Any]:
    kind = bundle.schema.columns[name]
    shape = [len(values), len(values[0])] if kind.nested else [len(values)]
    flat = [each for row in values for each in row] if kind.nested else values
    return {"name": name, "shape": shape, "datatype": datatype_of(kind), "data": flat}


@pytest.mark.parametrize("tower", ["deep_fm", "din"])
def test_models_beside_the_perceptron_are_answered_natively(tmp_path: Path, tower: str) -> None:
    table = history_table(300, 1)
    history = wd.categorical("clicked_ads", table="ad", combiner=None, maxlen=3)
    seconds = wd.numeric("clicked_seconds", parallel="clicked_ads", maxlen=3)
    spec = wd.FeatureSpec(
        label="click",
        features=[
            *wd.numeric("age", "price"),
            *wd.categorical("job", "tags"),
            wd.categorical("ad", table="ad"),
            *([*history, *seconds] if tower == "din" else []),
        ],
        item=["ad"],
    )
    model = wd.WideDeep(wd.fit_schema(spec, table), deep=tower, embedding_dim=4, seed=1)
    trainer = wd.Trainer(model, batch_size=50, threads=1, progress=False)
    trainer.fit(table)
    bundle = trainer.export(tmp_path / "models" / "1")
    ads = sorted({ad for ad in table["ad"].to_pylist() if ad is not None})
    pq.write_table(pa.table({"ad": ads}), tmp_path / "ads.parquet")
    row = table.to_pylist()[0]
    user = {name: row[name] for name in bundle.encoder.columns(targets=False) if name != "ad"}
    scores = np.asarray(bundle.score([{**user, "ad": ad} for ad in ads]))
    order = np.argsort(-scores, kind="stable")
    words = (tmp_path / "models", "--items", tmp_path / "ads.parquet", "--item-id", "ad")
    with running(*words) as server:
        server.wait_ready()
        asked = {"user": user, "candidates": ads}
        answer, *more = (server.call("POST", "/v1/rank", asked) for _ in range(9))
        explained = server.call(
            "POST", "/v1/rank", {"user": user, "candidates": ads, "explain": True}
        )
        rows = {name: [value] * len(ads) for name, value in user.items()} | {"ad": ads}
        tensors = {"inputs": [tensor_of(bundle, *column) for column in rows.items()]}
        inferred = [server.call("POST", "/v2/models/models/infer", tensors) for _ in range(9)]
    assert sum(is_native(each.headers) for each in inferred) > 3
    np.testing.assert_array_equal(inferred[0].json["outputs"][0]["data"], scores)
    assert bundle.manifest.engine == "graph"
    assert sum(is_native(each.headers) for each in (answer, *more)) > 3
    assert answer.json["items"] == [ads[at] for at in order]
    np.testing.assert_array_equal(answer.json["scores"], scores[order])
    assert explained.json["scores"] == answer.json["scores"]
