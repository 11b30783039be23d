"""The verb `bench`: benchmarks that anyone can repeat."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from widedeep.cli.options import add_fields, field_values
from widedeep.cli.output import print_json, print_next, print_table, print_text, say
from widedeep.cli.parser import (
    EXIT_FAILED,
    EXIT_OK,
    VerbParser,
    Verbs,
    add_verb,
    positive,
    threads,
    typed_options,
)
from widedeep.errors import ConfigError
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.load import LoadReport, Target, run_load
from widedeep.simulate.table1 import Table1Config, table1_document, table1_in, table1_text

_BODIES = 64
_START_S = 300.0

_TABLE1 = {
    "seeds": "--seeds N",
    "days": "--days N",
    "live_requests": "--live N",
    "threads": "--threads N",
    "without_cross": "--apart",
    "towers": "--tower NAME",
}
_TABLE1_STORE = {
    "requests_per_day": "--requests N",
    "memorisation": "--memorisation X",
    "generalisation": "--generalisation X",
}

EXAMPLE = (
    "  widedeep bench table1 --seeds 2\n"
    "  widedeep bench serve runs/ads\n\n"
    "A target's --help shows its options; --json prints one JSON document."
)


def add_options(parser: VerbParser) -> None:
    """Add the benchmarks."""
    targets = parser.add_subparsers(
        title="targets", metavar="TARGET", required=True, parser_class=VerbParser
    )
    _add_table1(targets)
    _add_serve(targets)


def _add_table1(targets: Verbs) -> None:
    parser = add_verb(
        targets,
        "table1",
        "compare wide, deep, and both on the same logs: offline AUC, and installs in an A/B test",
        _table1,
        example="  widedeep bench table1                       # five stores, some minutes\n"
        "  widedeep bench table1 --memorisation 0      # the wide part has nothing to remember\n\n"
        "Exit code 1 if Wide & Deep is not significantly ahead of both.",
    )
    parser.option("--out FOLDER", "folder for logs, examples and bundles (default: temporary)")
    config = Table1Config()
    add_fields(parser, config, _TABLE1, {"threads": threads})
    add_fields(parser, config.store, _TABLE1_STORE)


def _table1(arguments: argparse.Namespace) -> int:
    config = Table1Config()
    store = dataclasses.replace(config.store, **field_values(arguments, _TABLE1_STORE))
    result = table1_in(
        None if arguments.out is None else Path(arguments.out),
        dataclasses.replace(config, store=store, **field_values(arguments, _TABLE1)),
        on_progress=say,
    )
    if arguments.json:
        print_json(table1_document(result))
    else:
        print_text(f"{table1_text(result)}\n")
        print_next("simulate", "week1", note="the same store, a week of it")
    ahead = all(result.lift("wide & deep", other).significant for other in ("wide", "deep"))
    return EXIT_OK if ahead else EXIT_FAILED


def _add_serve(targets: Verbs) -> None:
    parser = add_verb(
        targets,
        "serve",
        "load a server on loopback: latency, requests per second, CPU time per request",
        _serve,
        example="  widedeep bench serve models/ads --items items.parquet --item-id app\n"
        "  widedeep bench serve runs/run --connections 1 8 --seconds 10\n\n"
        "Exit code 1 if a request failed.",
    )
    parser.option("models MODELS", "bundle or run folder, as 'widedeep serve' takes it")
    parser.option("--items PARQUET", "catalogue of items")
    parser.option("--item-id COLUMN", "column of item ids in the catalogue")
    parser.option("--bfloat16", "multiply in bfloat16")
    parser.option("--workers N", "processes", type=threads, default=1)
    parser.option("--threads N", "threads per request", type=threads, default=1)
    parser.option("--candidates N", "candidates per request", type=positive, default=200)
    parser.option(
        "--connections N",
        "concurrent connections, one run for each number (default: 1 4 16)",
        type=positive,
        nargs="+",
        default=[1, 4, 16],
    )
    parser.option("--seconds S", "seconds per run, at most 60", type=positive, default=5)


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.seconds > 60 or max(arguments.connections) > 256:
        raise ConfigError("bench serve: expected at most 60 seconds per run, and 256 connections")
    items, item_id = arguments.items, arguments.item_id
    if (items is None) != (item_id is None):
        raise ConfigError("--items PARQUET and --item-id COLUMN go together")
    if items is not None and not Path(items).exists():
        raise ConfigError(f"got --items {items}: no such file; check the path")
    shared = ("--items", "--item-id", "--workers", "--threads", "--bfloat16")
    words = [arguments.models, *typed_options(arguments, *shared)]
    reports = bench_server(
        [*words, "--queue", "512"],  # every connection may wait: refusals are not measured
        items=items,
        item_id=item_id,
        candidates=arguments.candidates,
        connections=arguments.connections,
        seconds=arguments.seconds,
    )
    if arguments.json:
        print_json({"runs": [dataclasses.asdict(report) for report in reports]})
    else:
        headings = ["connections", "p50 ms", "p99 ms", "requests/s", "CPU ms/request", "failed"]
        print_table(headings, [_load_cells(report) for report in reports], right=headings)
        print_text()
        print_next("serve", *words)
    failed = any(report.failures or not report.requests for report in reports)
    return EXIT_FAILED if failed else EXIT_OK


# ---- a server under load ------------------------------------------------------------------------


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
        raise ConfigError("the bundle holds no stored requests to send; export it again")
    rng = np.random.default_rng(0)
    bodies = []
    for number in range(_BODIES):
        body: dict[str, Any] = {"user": stored[number % len(stored)]["user"]}
        if ids is not None:
            body["candidates"] = [ids[index] for index in rng.integers(0, len(ids), candidates)]
        else:
            drawn = [stored[index]["item"] for index in rng.integers(0, len(stored), candidates)]
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


def _load_cells(report: LoadReport) -> list[str]:
    return [
        str(report.connections),
        f"{report.p50_ms:.2f}",
        f"{report.p99_ms:.2f}",
        f"{report.requests_per_s:,.0f}",
        f"{report.cpu_ms:.3f}",
        ", ".join(f"{count} x {status}" for status, count in report.failures.items()) or "0",
    ]
