"""Traces: spans of a request under the caller's, of the loop's steps, as a collector reads them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import widedeep as wd
from tests.serving.http.calls import Local, running
from tests.serving.versions import ITEMS, USER, eventually, publish, write_items
from widedeep import traces
from widedeep.errors import MissingPackageError
from widedeep.gate import GateConfig, validate
from widedeep.kernels.native_server import has_native_server
from widedeep.publish import publish as publish_bundle
from widedeep.serving.registry import Registry

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ASK: dict[str, Any] = {"user": USER, "candidates": ITEMS, "request_id": "r1"}


@pytest.fixture
def spans() -> Iterator[Callable[[], list[Any]]]:
    """Switch traces on, kept in memory; return what has ended."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.switch_on(provider)
    yield lambda: list(exporter.get_finished_spans())
    traces.switch_off()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish(tmp_path / "apps", "1", seed=1)
    write_items(tmp_path / "items.parquet")
    return tmp_path / "apps"


@pytest.fixture
def registry(models: Path) -> Iterator[Registry]:
    items = models.parent / "items.parquet"
    with Registry(models, items=items, item_id="app") as registry:
        assert registry.wait_ready(60)
        yield registry


@pytest.mark.parametrize("inline_ms", [1000.0, 1e-9])
def test_a_request_is_a_span_under_the_callers(
    registry: Registry, spans: Callable[[], list[Any]], inline_ms: float
) -> None:
    """On the event loop, and in a thread beside it."""
    seen: list[Any] = []
    settings = wd.serving.http.Settings(request_log="none", inline_ms=inline_ms)  # type: ignore[attr-defined]
    local = Local({"apps": registry}, on_ranked=seen.append, settings=settings)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "shop=1"}
    assert local.call("POST", "/v1/rank", ASK, headers).status == 200
    by_name = {span.name: span for span in spans() if span.name != "load version"}
    assert list(by_name) == ["parse", "features", "score", "log", "request"]
    request = by_name["request"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.kind.name == "SERVER" and request.context.trace_state["shop"] == "1"
    assert request.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/rank",
        "http.route": "/v1/rank",
        "http.response.status_code": 200,
        "widedeep.request_id": "r1",
        "widedeep.model": "apps",
        "widedeep.version": "1",
        "widedeep.rows": len(ITEMS),
    }
    for name in ("parse", "features", "score", "log"):
        child = by_name[name]
        assert child.parent.span_id == request.context.span_id
        assert request.start_time <= child.start_time <= child.end_time <= request.end_time


def test_a_call_of_grpc_is_a_span_under_the_callers(
    registry: Registry, spans: Callable[[], list[Any]]
) -> None:
    grpc = pytest.importorskip("grpc")
    from widedeep.serving.grpc import SERVICE, GrpcServer, message

    settings = wd.serving.http.Settings(request_log="none")  # type: ignore[attr-defined]
    server = GrpcServer(Local({"apps": registry}, settings=settings).service, "127.0.0.1:0")
    server.start()
    asked = message("ModelInferRequest")(model_name="apps", id="r1")
    asked.inputs.add(name="age", datatype="FP64", shape=[2]).contents.fp64_contents.extend([1, 2])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        infer(asked, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
        asked.inputs[0].name = "agee"
        with pytest.raises(grpc.RpcError, match="did you mean 'age'"):
            infer(asked)
        metadata = channel.unary_unary(
            f"/{SERVICE}/ModelMetadata",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message("ModelMetadataResponse").FromString,
        )
        assert metadata(message("ModelMetadataRequest")(name="apps")).outputs[0].shape == [-1]
    server.stop(5)
    found = [span for span in spans() if span.name != "load version"]
    features, score, request, _, failed, described = found
    assert [each.name for each in (features, score, request)] == ["features", "score", "request"]
    assert features.parent.span_id == score.parent.span_id == request.context.span_id
    assert f"{request.context.trace_id:032x}" == TRACE
    assert (f"{request.parent.span_id:016x}", request.kind.name) == (PARENT, "SERVER")
    assert request.attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "widedeep.request_id": "r1",
        "widedeep.model": "apps",
        "widedeep.version": "1",
        "widedeep.rows": 2,
    }
    assert (failed.parent, failed.attributes["rpc.grpc.status_code"]) == (None, 3)
    assert described.attributes["widedeep.model"] == "apps"
    assert "widedeep.rows" not in described.attributes


def test_a_bad_header_begins_a_trace_and_a_bad_request_is_one_too(
    registry: Registry, spans: Callable[[], list[Any]]
) -> None:
    local = Local({"apps": registry})
    assert local.call("POST", "/v1/rank", {}, {"traceparent": "x"}).status == 400
    (request,) = [span for span in spans() if span.name == "request"]
    assert request.parent is None
    assert request.attributes["http.response.status_code"] == 400


def test_steps_of_the_loop(tmp_path: Path, spans: Callable[[], list[Any]]) -> None:
    rows = [{"job": "ab"[i % 2], "y": (i + (i % 5 == 0)) % 2} for i in range(600)]
    spec = wd.FeatureSpec(label="y", features=[wd.categorical("job")], deep=[])
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False)
    trainer.fit(rows, epochs=5)
    trainer.fit_stream([("hour 1", rows)])
    bundle = trainer.export(tmp_path / "bundle").path
    config = GateConfig(min_rows=600, slices=(), max_latency_ms=1e4)
    publish_bundle(bundle, tmp_path / "models", verdict=validate(bundle, None, rows, config=config))
    names = [span.name for span in spans()]
    assert [n for n in names if n != "load version"] == [
        "fit", "fit", "learn shard", "export", "validate", "publish",
    ]  # fmt: skip


def test_off_is_one_block_for_all() -> None:
    assert not traces.is_on()
    assert traces.span("one", rows=1) is traces.span("two")
    assert traces.request_span({b"traceparent": b"x"}, 0.0) is traces.span("two")


def test_the_sdk_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'widedeep\[otel\]', or unset OTEL"):
        traces.switch_on()


def test_an_environment_for_all_programs_stops_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDK is not installed, or traces are turned off in one of its ways."""
    import sys

    lines: list[str] = []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "TRUE")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            traces.follow_environment(lines.append)
    assert lines == []
    traces.follow_environment(lines.append)
    assert not traces.is_on()
    (line,) = lines
    assert "pip install 'widedeep[otel]'" in line and line.endswith("no traces are made")


def test_a_collector_that_is_away_is_told_of_once_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(traces, "_LAST_S", 0.5)
    monkeypatch.setattr(traces, "_said_s", 0.0)
    traces.switch_on()
    with traces.span("lost"):
        pass
    started = time.monotonic()
    traces.switch_off()
    assert time.monotonic() - started < 5
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("widedeep: traces: spans are not sent, and lost if it stays so")


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector on loopback: its address, and the requests that it got."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
    )

    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


def received(got: list[Any]) -> dict[str, Any]:
    """Return the spans that a collector got, by name, and the service's name."""
    found = {}
    for request in got:
        for resource in request.resource_spans:
            (name,) = [
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            ]
            for scope in resource.scope_spans:
                found |= {span.name: (name, span) for span in scope.spans}
    return found


@pytest.mark.skipif(not has_native_server(), reason="no native server here")
def test_a_server_sends_the_traces_that_its_callers_sample(
    models: Path, collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Python, by whose spans they are told; other requests stay with native threads."""
    address, got = collector
    for name in ("HTTP_PROXY", "http_proxy", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    words = (models, "--items", models.parent / "items.parquet", "--item-id", "app")
    with running(*words) as server:
        server.wait_ready()
        ask = {key: value for key, value in ASK.items() if key != "request_id"}
        for flags, of_python in (("01", True), ("00", False)):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
            found = [server.call("POST", "/v1/rank", ask, headers) for _ in range(12)]
            assert {answer.status for answer in found} == {200}
            # A made-up id of Python's is a UUID of version 4.
            made = [answer.headers["x-request-id"][12] == "4" for answer in found]
            assert all(made) if of_python else not all(made)
        eventually(lambda: "request" in received(got))
    spans = received(got)
    assert {"parse", "features", "score", "request", "load version"} <= spans.keys()
    name, request = spans["request"]
    assert name == "widedeep"
    assert spans["score"][1].trace_id.hex() == TRACE
    assert request.end_time_unix_nano > request.start_time_unix_nano
