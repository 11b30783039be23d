"""Clients of others, each in a process of its own: curl, gRPC, tritonclient, kserve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.http.calls import Running, running
from widedeep.bundle import Bundle

CLIENTS = Path(__file__).parent.parent / "clients"
ROWS = [
    {"age": 20.5, "app": "maps"},
    {"age": 31.0, "app": "игра"},
    {"age": 50.0, "app": "no one's"},
]


def environment(folder: Path, variable: str, package: str) -> str:
    """Return a Python that has a client: the one that is named, or one in a fresh environment."""
    named = os.environ.get(variable)
    if named:
        return named
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", package]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} cannot be installed here")
    return python


def call(*command: object) -> list[float]:
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def server(apps: Path) -> Iterator[Running]:
    items = apps.parent / "items.parquet"
    with running(apps, "--items", items, "--item-id", "app", "--grpc", ":0") as server:
        server.wait_ready()
        yield server


@pytest.mark.slow
def test_tritonclient(apps: Path, bundle: Bundle, tmp_path: Path) -> None:
    python = environment(tmp_path / "v", "TRITON_PYTHON", "tritonclient[http,grpc]==2.73.0")
    with running(apps, "--grpc", ":0") as server:
        server.wait_ready()
        found = call(python, CLIENTS / "call_triton.py", server.port, server.grpc)
    assert found == list(bundle.score(ROWS))


@pytest.mark.slow
def test_kserve(apps: Path, bundle: Bundle, tmp_path: Path) -> None:
    python = environment(tmp_path / "v", "KSERVE_PYTHON", "kserve==0.21.0")
    with running(apps) as server:
        server.wait_ready()
        found = call(python, CLIENTS / "call_kserve.py", server.port)
    assert found == list(bundle.score(ROWS))


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(server: Running, bundle: Bundle) -> None:
    url = f"http://127.0.0.1:{server.port}/v1/models/apps:predict"
    ran = subprocess.run(
        ["curl", "-sS", "--fail", url, "-d", json.dumps({"instances": ROWS})],
        capture_output=True,
        check=True,
    )
    assert json.loads(ran.stdout) == {"predictions": list(bundle.score(ROWS))}


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_java(server: Running, bundle: Bundle) -> None:
    """Its default client sends `Upgrade: h2c` with every request, on both servers' routes."""
    count = 8
    bodies: dict[str, Any] = {
        "/v1/models/apps:predict": {"instances": ROWS},
        "/v1/rank": {"user": {"age": 20.5}, "candidates": ["maps", "игра"]},
    }
    words = ["java", "-Xint", CLIENTS / "CallRank.java", server.port, count]
    for path, body in bodies.items():
        words += [path, json.dumps(body)]
    ran = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == 2 * 2 * count
    for key, (path, body) in zip(("predictions", "scores"), bodies.items(), strict=True):
        of_path, answers = answers[: 2 * count], answers[2 * count :]
        own = server.call("POST", path, body).json[key]
        assert all(answer[key] == own for answer in of_path)
        if key == "predictions":
            assert own == list(bundle.score(ROWS))


def test_grpc(server: Running, bundle: Bundle) -> None:
    grpc = pytest.importorskip("grpc")
    from widedeep.serving.grpc import SERVICE, message

    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        age = {"name": "age", "datatype": "FP64", "shape": [3]}
        app = {"name": "app", "datatype": "BYTES", "shape": [3, 1]}
        age["contents"] = {"fp64_contents": [row["age"] for row in ROWS]}
        app["contents"] = {"bytes_contents": [str(row["app"]).encode() for row in ROWS]}
        request = message("ModelInferRequest")(model_name="apps", id="r", inputs=[age, app])
        answer = infer(request, timeout=30)
        scores = memoryview(answer.raw_output_contents[0]).cast("d").tolist()
        assert (answer.id, answer.model_version) == ("r", "1")
        assert scores == list(bundle.score(ROWS))
        for change, code in (
            ({"model_name": "none"}, grpc.StatusCode.NOT_FOUND),
            ({"inputs": [age | {"shape": [4]}]}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"inputs": [age | {"name": "agee"}]}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"inputs": [age | {"name": "\u00e9" * 50_000}]}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"raw_input_contents": [b""]}, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            wrong = {"model_name": "apps", "inputs": [age, app], **change}
            with pytest.raises(grpc.RpcError) as told:
                infer(message("ModelInferRequest")(**wrong), timeout=30)
            assert told.value.code() == code, told.value.details()
