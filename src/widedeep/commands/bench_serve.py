"""bench serve: a server of this machine under bounded load."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from widedeep.errors import ConfigError
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.load import LoadReport, Target, run_load

_BODIES = 64
_START_S = 300.0


@contextlib.contextmanager
def started(words: Sequence[str]) -> Iterator[Target]:
    """Run ``widedeep serve`` on a free port of loopback until the block ends."""
    command = [sys.executable, "-m", "widedeep", "serve", *words, "--http", ":0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise ConfigError("the server ended before it listened; it said why above")
        port = int(json.loads(line)["http"].rpartition(":")[2])
        target = Target(port=port, process=process.pid)
        _wait_ready(process, target)
        yield target
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _wait_ready(process: subprocess.Popen[str], target: Target) -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            if _get(target, "/health/ready")[0] == 200:
                return
        time.sleep(0.05)
    raise ConfigError("the server was not ready; its log above, or its /v1/status, says why")


def _get(target: Target, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def rank_bodies(
    stored: Sequence[dict[str, Any]], ids: Sequence[Any] | None, candidates: int
) -> list[bytes]:
    """Return bodies of POST /v1/rank: stored users, and candidates drawn at random."""
    if not stored:
        raise ConfigError("the bundle holds no stored requests to ask with; export it anew")
    rng = np.random.default_rng(0)
    bodies = []
    for number in range(_BODIES):
        body: dict[str, Any] = {"user": stored[number % len(stored)]["user"]}
        if ids is not None:
            body["candidates"] = [ids[at] for at in rng.integers(0, len(ids), candidates)]
        else:
            drawn = [stored[at]["item"] for at in rng.integers(0, len(stored), candidates)]
            names = {name: None for item in drawn for name in item}
            body["items"] = {name: [item.get(name) for item in drawn] for name in names}
        bodies.append(json.dumps(body, separators=(",", ":")).encode())
    return bodies


def bench_server(
    words: Sequence[str],
    *,
    items: str | None,
    item_id: str | None,
    candidates: int,
    connections: Sequence[int],
    seconds: float,
) -> list[LoadReport]:
    """Start a server and load it, with ever more connections."""
    ids = None if items is None else Catalogue.read(items, id_column=str(item_id)).ids
    with started(words) as target:
        status, answer = _get(target, "/v1/page/choices")
        if status != 200:
            raise ConfigError(f"the server tells no stored requests: HTTP {status}")
        model = json.loads(answer)["models"][0]
        bodies = rank_bodies(model["stored"], ids, candidates)
        return [
            run_load(target, bodies, connections=count, seconds=seconds) for count in connections
        ]


def load_document(reports: Sequence[LoadReport]) -> dict[str, Any]:
    """Return what --json prints."""
    return {"runs": [asdict(report) for report in reports]}


def load_rows(reports: Sequence[LoadReport]) -> list[list[str]]:
    """Return the table's rows: connections, p50, p99, requests a second, CPU ms, failures."""
    return [
        [
            str(each.connections),
            f"{each.p50_ms:.2f}",
            f"{each.p99_ms:.2f}",
            f"{each.requests_per_s:,.0f}",
            f"{each.cpu_ms:.3f}",
            ", ".join(f"{count} x {status}" for status, count in each.failures.items()) or "0",
        ]
        for each in reports
    ]


def catalogue_words(items: str | None, item_id: str | None) -> list[str]:
    """Return the options of ``widedeep serve`` for a catalogue."""
    if items is None and item_id is None:
        return []
    if items is None or item_id is None:
        raise ConfigError("--items PARQUET and --item-id COLUMN go together")
    if not Path(items).exists():
        raise ConfigError(f"got --items {items}: there is no such file")
    return ["--items", items, "--item-id", item_id]
