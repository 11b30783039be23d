"""The verb `serve`: one process, or several that share the port."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from widedeep.bundle.layout import SCHEMA, read_warmup
from widedeep.cli.output import next_line, print_json, say
from widedeep.cli.parser import (
    Flag,
    add_flags,
    flag_values,
    period,
    positive,
    real,
    seconds,
    share,
    threads,
)
from widedeep.cli.runs import served_bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.features.spec import item_columns
from widedeep.schema import stored_spec
from widedeep.serving.config import LogConfig, ServeConfig, Settings, find_models
from widedeep.serving.versions import Latest, RegistryOptions

EXAMPLE = (
    "  widedeep serve models/ads --http :8080 --items items.parquet --item-id app\n"
    "  curl localhost:8080/v1/rank -d "
    '\'{"user": {"country": "de"}, "candidates": ["maps", "mail"]}\''
)
NEXT = "the request that it prints; after Ctrl-C: widedeep report models/ads"


_GRACE_S = 5.0
_EXAMPLE_ITEMS = 2

_SETTINGS: dict[str, Flag] = {
    "keys": ("--keys", None, "FILE"),
    "admin": ("--admin", None, None),
    "admin_hosts": ("--admin-host", None, "NAME"),
    "tls_certificate": ("--tls-certificate", None, "PEM"),
    "tls_key": ("--tls-key", None, "PEM"),
    "tls_client_ca": ("--tls-client-ca", None, "PEM"),
    "popularity": ("--popularity", None, "COLUMN"),
    "category": ("--category", None, "COLUMN"),
    "workers": ("--workers", threads, "N"),
    "queue": ("--queue", positive, "N"),
    "max_wait_ms": ("--max-wait-ms", real, "MS"),
    "deadline_ms": ("--deadline-ms", real, "MS"),
    "max_body": ("--max-body", positive, "BYTES"),
    "max_candidates": ("--max-candidates", positive, "N"),
    "drain_s": ("--drain", seconds, "S"),
    "drain_delay_s": ("--drain-delay", seconds, "S"),
    "request_log": ("--log-requests", None, None),
}
_REGISTRY: dict[str, Flag] = {
    "items": ("--items", None, "PARQUET"),
    "item_id": ("--item-id", None, "COLUMN"),
    "unknown_items": ("--unknown-items", None, None),
    "cache": ("--cache", None, "DIR"),
    "poll_s": ("--poll", period, "S"),
    "threads": ("--threads", threads, "N"),
    "max_values": ("--max-request-values", positive, "N"),
}
_LOG: dict[str, Flag] = {
    "directory": ("--log", None, "DIR"),
    "user_id": ("--log-user", None, "COLUMN"),
    "sample": ("--log-sample", share, "FRACTION"),
    "columns": ("--log-columns", None, "NAMES"),
    "hash_key_file": ("--log-hash-key", None, "FILE"),
    "days": ("--log-days", real, "N"),
    "nbytes": ("--log-bytes", positive, "N"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODELS",
        help="a bundle, a run's folder, a folder of versions, or several of these; NAME=PATH",
    )
    parser.add_argument(
        "--http", default=":8080", metavar="[HOST]:PORT", help="default: :8080, loopback alone"
    )
    parser.add_argument(
        "--grpc", metavar="[HOST]:PORT", help="speak the Open Inference Protocol over gRPC too"
    )
    parser.add_argument(
        "--no-page", action="store_true", help="leave out the page at / to try requests on"
    )
    parser.add_argument(
        "--latest", type=positive, default=1, metavar="N", help="versions kept loaded (default: 1)"
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="multiply in bfloat16, the items' part in half the memory: faster, slightly off",
    )
    add_flags(parser, Settings, _SETTINGS)
    add_flags(parser, RegistryOptions, _REGISTRY)
    add_flags(parser, LogConfig, _LOG)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    plan = _plan(arguments)

    def listening(settings: Settings, port: int, grpc: str | None) -> None:
        url = _url(settings, port)
        if arguments.json:
            models = {name: str(path) for name, path in plan.models.items()}
            print_json({"http": url, "grpc": grpc, "models": models}, indent=None)
            sys.stdout.flush()  # whoever reads waits for it, and the server goes on
        names = ", ".join(plan.models)
        with contextlib.suppress(OSError):  # a full disk under the log ends no server
            say(f"widedeep: serving {names} on {url}" + (f" and gRPC on {grpc}" if grpc else ""))

    code = run_plan(plan, listening)
    if not arguments.json and len(arguments.models) == 1:
        say(next_line("report", next(iter(plan.models.values()))))
    return code


def _url(settings: Settings, port: int) -> str:
    scheme = "https" if settings.tls_certificate else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{port}"


def _say_request(plan: ServeConfig, port: int) -> None:
    """Say a request that the server answers: the step after serving."""
    body, settings = example_request(plan), plan.settings
    if body is None:
        return
    words = ["curl", "-s", f"{_url(settings, port)}/v1/rank", "-d", json.dumps(body)]
    if settings.keys is not None:
        words += ["-H", "X-API-Key: KEY"]
    needs = {"your KEY": settings.keys, "your certificates": settings.tls_certificate}
    note = ", ".join(name for name, setting in needs.items() if setting is not None)
    with contextlib.suppress(OSError):
        say(f"next: {shlex.join(words)}" + (f"  # with {note}" if note else ""))


def _plan(arguments: argparse.Namespace) -> ServeConfig:
    host, port = address(arguments.http)
    grpc = None if arguments.grpc is None else address(arguments.grpc)
    settings = flag_values(arguments, _SETTINGS)
    log = flag_values(arguments, _LOG)
    if log["columns"] is not None:
        log["columns"] = tuple(log["columns"].split(","))
    return ServeConfig(
        models=find_models(arguments.models),
        settings=Settings(
            host=host,
            port=port,
            longest_deadline_ms=max(Settings.longest_deadline_ms, arguments.deadline_ms),
            page=not arguments.no_page,
            **settings | {"admin_hosts": tuple(arguments.admin_host)},
        ),
        registry=RegistryOptions(
            policy=Latest(arguments.latest),
            precision="bfloat16" if arguments.bfloat16 else "float32",
            **flag_values(arguments, _REGISTRY),
        ),
        grpc=None if grpc is None else _joined(*grpc),
        log=None if arguments.log is None else LogConfig(**log),
        on_ready=None if arguments.json else _say_request,
    )


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; without a host it is this machine alone."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"got the address {text!r}, expected HOST:PORT or :PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def run_plan(plan: ServeConfig, on_listening: Callable[[Settings, int, str | None], None]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from widedeep.serving.http.auth import load_keys
    from widedeep.serving.http.server import run_worker
    from widedeep.serving.supervisor import Worker, bind_alone, run_workers

    settings = plan.settings
    load_keys(settings)  # a mistake in their file is told here, not by each worker
    if settings.workers == 1:

        def told(port: int, grpc_port: int | None) -> None:
            host = None if plan.grpc is None else plan.grpc.rpartition(":")[0]
            on_listening(settings, port, None if host is None else f"{host}:{grpc_port}")

        run_worker(Worker(0, 1), plan, told)
        return 0
    with ExitStack() as stack:
        # Bound, but not listening: it keeps the port while workers come and go.
        socket = stack.enter_context(bind_alone(settings.host, settings.port))
        port = socket.getsockname()[1]
        plan = replace(plan, settings=replace(settings, port=port))
        if plan.grpc is not None:
            host, grpc_port = address(plan.grpc)
            of_grpc = stack.enter_context(bind_alone(host, grpc_port))
            named = plan.grpc.rpartition(":")[0]
            plan = replace(plan, grpc=f"{named}:{of_grpc.getsockname()[1]}")
        on_listening(settings, port, plan.grpc)
        drain_s = settings.drain_delay_s + settings.drain_s + _GRACE_S
        return run_workers(settings.workers, run_worker, (plan,), drain_s=drain_s)


def example_request(plan: ServeConfig) -> dict[str, Any] | None:
    """Return a body for ``/v1/rank`` with values of the rows that the bundle keeps."""
    name, path = next(iter(plan.models.items()))
    try:
        bundle = served_bundle(path)
    except BundleError:
        return None  # the first version is on its way
    rows = read_warmup(bundle).rows[:_EXAMPLE_ITEMS]
    if not rows:
        return None
    # Where no feature is declared to be the item's, those that come with an item are.
    of_item = item_columns(stored_spec(bundle / SCHEMA)) or set(rows[0])
    user = {column: value for column, value in rows[0].items() if column not in of_item}
    body: dict[str, Any] = {"model": name} if len(plan.models) > 1 else {}
    if user:
        body["user"] = user
    if plan.registry.items is None:
        columns = [column for column in rows[0] if column in of_item]
        return body | {"items": {c: [row.get(c) for row in rows] for c in columns}}
    assert plan.registry.item_id is not None
    items = Path(plan.registry.items)
    return body | {"candidates": _some_ids(items, plan.registry.item_id)}


def _some_ids(items: Path, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(items) as file:
        batches = file.iter_batches(batch_size=_EXAMPLE_ITEMS, columns=[column])
        first = next(batches, None)
    return [] if first is None else first.column(0).to_pylist()
