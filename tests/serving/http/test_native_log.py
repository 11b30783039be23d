"""What the native server logs: the very rows that Python logs, in files that every reader takes."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.serving.http.calls import Running, running
from tests.serving.versions import ITEMS, eventually
from widedeep.kernels import ImpressionFile
from widedeep.kernels.native_server import has_native_server
from widedeep.serving.http import native_server
from widedeep.serving.http.native_server import NativeStats, NativeVersion
from widedeep.serving.impressions import ImpressionLog
from widedeep.serving.native_rows import Header

pytestmark = pytest.mark.skipif(not has_native_server(), reason="no native server here")


def random_bodies(count: int) -> list[dict[str, Any]]:
    """Requests with values of every kind, of which most, but not all, the native server logs."""
    rng = np.random.default_rng(5)
    users: list[Any] = [7, 12, "anna", "Ἀριάδνη", 2**40, "", 2**64, None, True, 1.5, [1], []]
    ages: list[Any] = [31, 30.5, None, 0, -4.0, 2**60, True]
    lists: list[Any] = [["x"], [], None, ["y", None, "日本"], ["mail", "x", "x"], "x", 5]
    # The first of all has no value whatever, and a thread no memory for one yet.
    bodies = [{"request_id": "first", "user": {"user_id": []}, "candidates": ITEMS[:2]}]
    for number in range(count):
        user = {"user_id": users[rng.integers(len(users))], "age": ages[rng.integers(len(ages))]}
        user |= {name: lists[rng.integers(len(lists))] for name in ("tags", "seen")}
        user["user"] = ["bo", None, "a\tb", "Ἀριάδνη", 5][rng.integers(5)]
        moved = {"age": 0.2, "tags": 0.2, "user_id": 0.05}
        context = {name: user.pop(name) for name, share in moved.items() if rng.random() < share}
        for name in [name for name in user if rng.random() < 0.1]:
            del user[name]
        candidates = rng.permutation(ITEMS)[: rng.integers(1, len(ITEMS))].tolist()
        body = {"request_id": f"r{number}", "user": user, "candidates": candidates}
        body |= {"context": context} if context else {}
        bodies.append(body | ({"k": int(rng.integers(0, 4))} if rng.random() < 0.3 else {}))
    return bodies


def logged(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The rows but for their times, by folder, request and position; and lines of text."""
    rows = {}
    for file in folder.glob("*/*.parquet"):
        for row in pq.read_table(file).drop_columns("event_time").to_pylist():
            rows[file.parent.name, row["request_id"], row["position"]] = row
    for file in folder.glob("_as_text/*"):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            del line["event_time_us"]
            rows["text", line["request_id"], 0] = line
    return rows


def answered(server: Running, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the requests that are answered; a few values fit no feature."""
    return [body for body in bodies if server.call("POST", "/v1/rank", body).status == 200]


def counts_of(server: Running) -> dict[str, Any]:
    counts: dict[str, Any] = server.call("GET", "/v1/status").json["impression_log"]
    return counts


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        (
            ("--log-sample", 0.5, "--log-columns", "age,price,seen", "--log-hash-key", "key"),
            {"sample": 0.5, "columns": ["age", "price", "seen"], "hash_users": b"k" * 20},
        ),
        pytest.param(("--log-user", "user"), {"user_id": "user"}, marks=pytest.mark.slow),
    ],
    ids=["all", "some", "a column"],
)
def test_rows_equal_those_that_python_logs(
    apps: Path, tmp_path: Path, words: tuple[Any, ...], options: dict[str, Any]
) -> None:
    (tmp_path / "key").write_bytes(b"k" * 20)
    words = tuple(tmp_path / "key" if word == "key" else word for word in words)
    bodies, items = random_bodies(150), apps.parent / "items.parquet"
    with running(
        apps, "--items", items, "--item-id", "app", "--log", tmp_path / "native", *words
    ) as server:
        server.wait_ready()
        bodies = answered(server, bodies)
        eventually(lambda: counts_of(server)["offered"] == len(bodies))
        counts = counts_of(server)
    ranker = wd.Ranker(apps / "1", items=items, item_id="app")
    with ImpressionLog(tmp_path / "python", **options) as log:
        for body in bodies:
            user, context = body["user"], body.get("context", {})
            ranking = ranker.rank(user, context, body["candidates"], k=body.get("k"))
            fields = {"request_id": body["request_id"], "version": "1", "ranker": ranker}
            fields |= {"user": user, "context": context, "candidates": body["candidates"]}
            log.offer(SimpleNamespace(**fields, ranking=ranking))
    ours = log.counts()
    native, python = logged(tmp_path / "native"), logged(tmp_path / "python")
    assert native.keys() == python.keys() and len(native) > 100
    for key, row in python.items():
        assert native[key] == row
    for name in ("offered", "left_out", "without_user"):
        assert counts[name] == getattr(ours, name), name
    makers = {pq.read_metadata(file).created_by for file in tmp_path.glob("native/*/*.parquet")}
    assert "widedeep" in makers
    for folder in tmp_path.glob("python/columns-*"):
        schemas = {
            pq.read_schema(file)
            for parent in (folder, tmp_path / "native" / folder.name)
            for file in parent.glob("*.parquet")
        }
        assert len(schemas) == 1


# ---- the encoder --------------------------------------------------------------------------------

KINDS: dict[str, tuple[pa.DataType, Any]] = {
    "text": (pa.large_string(), st.text(max_size=3)),
    "integer": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "real": (pa.float64(), st.floats(allow_nan=False)),
    "real32": (pa.float32(), st.floats(allow_nan=False, width=32)),
    "boolean": (pa.bool_(), st.booleans()),
}
FORMATS = {"integer": "<q", "real": "<d", "real32": "<f", "boolean": "<?"}


def plain(kind: str, value: Any) -> bytes:
    if kind == "text":
        data: bytes = value.encode()
        return struct.pack("<I", len(data)) + data
    return bytes(struct.pack(FORMATS[kind], value))


def cell(kind: str, is_list: bool, value: Any) -> bytes:
    if not is_list:
        return b"\0" if value is None else b"\1" + plain(kind, value)
    if value is None:
        return struct.pack("<I", 0)
    return struct.pack("<I", len(value) + 1) + b"".join(cell(kind, False, each) for each in value)


def record(tag: bytes, data: bytes) -> bytes:
    return tag + struct.pack("<I", len(data)) + data


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[tuple[str, str, bool]], list[Any], list[Any]]:
    """Columns (source, kind, whether it is a list), items, and requests: (items, values)."""
    columns = draw(
        st.lists(
            st.tuples(st.sampled_from(["query", "item"]), st.sampled_from([*KINDS]), st.booleans()),
            max_size=4,
        )
    )

    def values(source: str) -> Any:
        cells = [
            st.none() | (st.lists(st.none() | KINDS[k][1], max_size=3) if many else KINDS[k][1])
            for s, k, many in columns
            if s == source
        ]
        return st.tuples(*cells)

    items = draw(st.lists(values("item"), min_size=1, max_size=5))
    shown = st.lists(st.integers(0, len(items) - 1), max_size=40)
    return columns, items, draw(st.lists(st.tuples(shown, values("query")), max_size=6))


def header_of(columns: list[tuple[str, str, bool]]) -> Header:
    own: dict[str, tuple[pa.DataType, tuple[str, bytes]]] = {
        "request_id": (pa.string(), ("request_id", b"")),
        "user_id": (pa.int64(), ("user_id", b"")),
        "item_id": (pa.string(), ("item_id", b"")),
        "position": (pa.int64(), ("position", b"")),
        "event_time": (pa.timestamp("us", "UTC"), ("time", b"")),
        "model_version": (pa.string(), ("constant", "versión".encode())),
        "score": (pa.float64(), ("score", b"")),
    }
    for n, (source, kind, is_list) in enumerate(columns):
        of_value = KINDS[kind][0]
        own[f"c{n}"] = (pa.list_(of_value) if is_list else of_value, (source, b""))
    header = Header(
        schema=pa.schema([(name, kind) for name, (kind, _) in own.items()]),
        sources=[source for _, source in own.values()],
    )
    return Header.from_bytes(header.to_bytes())


def cells(columns: list[tuple[str, str, bool]], source: str, values: Any) -> bytes:
    kinds = [(kind, is_list) for own, kind, is_list in columns if own == source]
    pairs = zip(kinds, values, strict=True)
    return b"".join(cell(kind, is_list, value) for (kind, is_list), value in pairs)


def request_record(columns: Any, number: int, shown: list[int], values: Any) -> bytes:
    ids = plain("text", f"r{number}") + plain("integer", number - 2)
    rows = struct.pack(f"<I{len(shown)}I", len(shown), *shown)
    scores = np.arange(len(shown), dtype=np.float64) / 7
    head = struct.pack("<q", number) + ids + rows + scores.tobytes()
    return record(b"r", head + cells(columns, "query", values))


def expected_rows(log: Any) -> list[dict[str, Any]]:
    columns, items, requests = log
    rows = []
    for number, (shown, values) in enumerate(requests):
        for place, item in enumerate(shown):
            row = {"request_id": f"r{number}", "user_id": number - 2, "item_id": f"item {item}"}
            row |= {"position": place + 1, "event_time": number, "score": place / 7}
            of_source = {"item": iter(items[item]), "query": iter(values)}
            for n, (source, _, _) in enumerate(columns):
                row[f"c{n}"] = next(of_source[source])
            rows.append(row | {"model_version": "versión"})
    return rows


@settings(max_examples=60, deadline=None)
@given(log=logs(), per_chunk=st.integers(1, 3), per_group=st.integers(1, 3))
def test_files_hold_the_rows_of_their_chunks(
    tmp_path_factory: pytest.TempPathFactory, log: Any, per_chunk: int, per_group: int
) -> None:
    columns, items, requests = log
    chunks: list[bytes] = []
    for number, (shown, values) in enumerate(requests):
        if number % per_chunk == 0:
            ids = [plain("text", f"item {n}") for n in range(len(items))]
            chunks.append(
                b"".join(
                    record(b"i", item_id + cells(columns, "item", item))
                    for item_id, item in zip(ids, items, strict=True)
                )
            )
        chunks[-1] += request_record(columns, number, shown, values)
    header = header_of(columns)
    file = ImpressionFile(header.columns(), header.arrow_text)
    data = b"PAR1"
    for number, chunk in enumerate(chunks):
        assert file.add(chunk)
        assert not file.add(chunk[:1]) and not file.add(chunk[:-1])
        if (number + 1) % per_group == 0 or number == len(chunks) - 1:
            for column in range(len(header.schema)):
                data += file.column_chunk(column, len(data))
            file.end_group()
    data += file.footer()
    rows = expected_rows(log)
    table = pq.read_table(pa.BufferReader(data))
    assert table.schema == header.schema
    assert table.equals(pa.Table.from_pylist(rows, header.schema))
    path = tmp_path_factory.mktemp("file") / "x.parquet"
    path.write_bytes(data)
    with duckdb.connect() as engine:
        found = engine.execute(f"select * exclude (event_time) from '{path}'").fetchall()
    assert found == [
        tuple(row[n] for n in header.schema.names if n != "event_time") for row in rows
    ]


def test_few_rows_with_long_lists_fill_a_group() -> None:
    columns = [("query", "integer", True)]
    header = header_of(columns)
    file = ImpressionFile(header.columns(), header.arrow_text)
    for values, is_full in ((8_000, False), (400, True)):
        item = record(b"i", plain("text", "a"))
        assert file.add(item + request_record(columns, 1, [0] * 1000, (list(range(values)),)))
        assert file.is_full == is_full
    file.end_group()
    assert not file.is_full


# ---- versions that come and go ------------------------------------------------------------------


class Route:
    in_use = False

    def __init__(self) -> None:
        self.requests = 0

    def figures(self) -> tuple[Any, ...]:
        return self.requests, 0, 0.0, [0], 0, 0

    def inferred(self) -> tuple[int, int, float]:
        return 0, 0, 0.0


class Native:
    """A native server without threads."""

    in_flight = dropped = 0

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []

    def take_records(self) -> list[tuple[Any, ...]]:
        records, self.records = self.records, []
        return records

    answers = endings = dict


@pytest.fixture
def stats() -> NativeStats:
    """Counts of a server that answers nothing; the thread is the test."""
    service = Mock(models=Mock(registries={"apps": None}), log=Mock(min_status=1000))
    return NativeStats(service, Native())


def version_of(route: Route) -> NativeVersion:
    loaded = SimpleNamespace(name="1", native_requests=0, ranker=SimpleNamespace(prepared=None))
    return NativeVersion(route=route, model="apps", version=loaded, catalogue=None)


def test_a_version_is_counted_from_its_first_request_on(stats: NativeStats) -> None:
    version = version_of(route := Route())
    publishing = threading.Thread(target=stats.publish)

    def set_routes() -> None:
        publishing.start()
        publishing.join(0.1)  # meanwhile no thread has the route yet
        route.in_use, route.requests = True, 3

    stats.follow([version], set_routes)
    publishing.join()
    stats.publish()
    assert version.version.native_requests == 3


def test_records_of_a_version_that_goes_are_logged(
    stats: NativeStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_server, "_ranking", lambda *_: None)
    monkeypatch.setattr(native_server, "_ranked", lambda _, __, request_id, *___: request_id)
    version = version_of(route := Route())
    stats.follow([version], lambda: None)
    none = np.array([], np.int64)
    stats._native.records = [
        (
            route,
            "/v1/rank",
            f"r{n}",
            "",
            b'{"user":{}}',
            0,
            0.1,
            200,
            False,
            True,
            3,
            False,
            -1,
            *[none] * 4,
        )
        for n in range(3)
    ]
    offered: list[str] = []

    def offer(request_id: str) -> None:
        offered.append(request_id)
        stats.publish()  # as GET /metrics does: the version is forgotten

    stats._service.on_ranked = offer
    stats._take_records()
    assert offered == ["r0", "r1", "r2"]
