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

import pyarrow as pa
from pyarrow import parquet

from widedeep.bundle import Bundle
from widedeep.bundle.formula import Formula
from widedeep.bundle.layout import POSTERIOR, SCHEMA, read_warmup
from widedeep.bundle.manifest import read_manifest
from widedeep.cli.options import add_fields, field_values
from widedeep.cli.output import next_line, print_json, say
from widedeep.cli.parser import VerbParser, period, positive, seconds, share, threads
from widedeep.cli.runs import served_bundle
from widedeep.errors import BundleError, ConfigError, DataError, nearest
from widedeep.features.spec import item_columns
from widedeep.remote import is_url
from widedeep.schema import stored_spec
from widedeep.serving.config import LogConfig, ServeConfig, Settings, find_models
from widedeep.serving.exploration import Exploration, no_posterior
from widedeep.serving.formula_scores import FormulaScores
from widedeep.serving.versions import Latest, RegistryOptions, find_versions

EXAMPLE = (
    "  widedeep serve models/ads --http :8080 --items items.parquet --item-id app\n"
    "  curl localhost:8080/v1/rank -d "
    '\'{"user": {"country": "de"}, "candidates": ["maps", "mail"]}\''
)
NEXT = "the request that it prints; after Ctrl-C: widedeep report models/ads"
_GRACE_S = 5.0
_EXAMPLE_ITEMS = 2

_NETWORK = {
    "workers": "--workers N",
    "keys": "--keys FILE",
    "admin": "--admin",
    "admin_hosts": "--admin-host NAME",
    "page": "--no-page",
    "native": "--no-native",
    "tls_certificate": "--tls-certificate PEM",
    "tls_key": "--tls-key PEM",
    "tls_client_ca": "--tls-client-ca PEM",
}
_REGISTRY = {
    "items": "--items PARQUET",
    "item_id": "--item-id COLUMN",
    "unknown_items": "--unknown-items",
    "rank_by": "--rank-by FORMULA",
    "poll_s": "--poll S",
    "cache": "--cache DIR",
    "threads": "--threads N",
    "max_values": "--max-request-values N",
}
_EXPLORATION = {
    "policy": "--exploration POLICY",
    "epsilon": "--epsilon FRACTION",
    "scale": "--exploration-scale X",
    "seed": "--exploration-seed N",
}
_CATALOGUE = {"popularity": "--popularity COLUMN", "category": "--category COLUMN"}
_LIMITS = {
    "queue": "--queue N",
    "max_wait_ms": "--max-wait-ms MS",
    "deadline_ms": "--deadline-ms MS",
    "max_body": "--max-body BYTES",
    "max_candidates": "--max-candidates N",
    "drain_s": "--drain S",
    "drain_delay_s": "--drain-delay S",
    "request_log": "--log-requests",
}
_LOG = {
    "directory": "--log PLACE",
    "user_id": "--log-user COLUMN",
    "sample": "--log-sample FRACTION",
    "columns": "--log-columns NAMES",
    "hash_key_file": "--log-hash-key FILE",
    "days": "--log-days N",
    "nbytes": "--log-bytes N",
    "when_full": "--log-full",
    "kafka": "--log-kafka SETTINGS",
}
_READERS = {
    **{"workers": threads, "threads": threads, "poll_s": period, "sample": share},
    **{"drain_s": seconds, "drain_delay_s": seconds},
}


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    settings = Settings()
    parser.option(
        "models MODELS",
        "a bundle, a run's folder, a folder of versions, or several of these; NAME=PATH names a "
        "model",
        nargs="+",
    )
    network = parser.add_argument_group("network")
    parser.option(
        "--http [HOST]:PORT",
        f"HTTP address (default: :{settings.port}, on loopback)",
        default=f":{settings.port}",
        group=network,
    )
    parser.option(
        "--grpc [HOST]:PORT", "gRPC address, for the Open Inference Protocol", group=network
    )
    add_fields(network, settings, _NETWORK, _READERS)
    models = parser.add_argument_group("models and items")
    parser.option(
        "--latest N", "newest versions to keep loaded", type=positive, default=1, group=models
    )
    parser.option(
        "--bfloat16",
        "multiply in bfloat16: half the memory for the items' part, faster, slightly different "
        "scores",
        group=models,
    )
    add_fields(models, RegistryOptions(), _REGISTRY, _READERS)
    add_fields(models, settings, _CATALOGUE)
    add_fields(parser.add_argument_group("exploration"), Exploration(), _EXPLORATION)
    add_fields(parser.add_argument_group("limits"), settings, _LIMITS, _READERS)
    log = LogConfig(directory="")
    add_fields(parser.add_argument_group("impression log"), log, _LOG, _READERS)


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
    if plan.log is not None:  # which logs no request without one
        body.setdefault("user", {}).setdefault(plan.log.user_id, 1)
    words = ["curl", "-s", f"{_url(settings, port)}/v1/rank", "-d", json.dumps(body)]
    if settings.keys is not None:
        words += ["-H", "X-API-Key: KEY"]
    needs = {"your KEY": settings.keys, "your certificates": settings.tls_certificate}
    note = ", ".join(name for name, setting in needs.items() if setting is not None)
    with contextlib.suppress(OSError):
        say(f"next: {shlex.join(words)}" + (f"  # with {note}" if note else ""))


def _plan(arguments: argparse.Namespace) -> ServeConfig:
    host, port = address(arguments.http)
    options = field_values(arguments, {**_NETWORK, **_CATALOGUE, **_LIMITS})
    settings = Settings(host=host, port=port, **options)
    longest_ms = max(settings.longest_deadline_ms, settings.deadline_ms)
    log = field_values(arguments, _LOG)
    for name in {"columns", "kafka"} & log.keys():
        log[name] = tuple(log[name].split(","))
    if log and "directory" not in log:
        flag = _LOG[next(iter(log))].split()[0]
        raise ConfigError(f"got {flag} without --log; add --log DIR")
    registry = RegistryOptions(
        policy=Latest(arguments.latest),
        precision="bfloat16" if arguments.bfloat16 else "float32",
        **field_values(arguments, _REGISTRY),
    )
    columns = _check_files(settings, registry)
    models, exploration = find_models(arguments.models), _exploration(arguments)
    if registry.rank_by is not None:
        _check_formula(Formula(registry.rank_by), models, columns)
    if exploration is not None and exploration.needs_posterior:
        _check_posteriors(models)
    return ServeConfig(
        models=models,
        settings=replace(settings, longest_deadline_ms=longest_ms),
        registry=replace(registry, exploration=exploration),
        grpc=None if arguments.grpc is None else _joined(*address(arguments.grpc)),
        log=LogConfig(**log) if "directory" in log else None,
        on_ready=None if arguments.json else _say_request,
    )


def _check_files(settings: Settings, registry: RegistryOptions) -> list[str] | None:
    """Refuse files that are not there and columns that the catalogue lacks, before serving.

    Returns:
        The catalogue's columns; None where there is none, or it cannot be looked at yet.
    """
    for name in ("tls_certificate", "tls_key", "tls_client_ca"):
        path = getattr(settings, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{path}: no such file; name the PEM file of {_NETWORK[name]}")
    items = None if registry.items is None else str(registry.items)
    if items is None or is_url(items) or set("*?[") & set(items):
        return None
    if not Path(items).exists():
        raise ConfigError(f"{items}: no such file; name the Parquet file of the items")
    try:
        columns = parquet.read_schema(items).names
    except (pa.ArrowException, OSError):
        return None  # what is wrong with it is told by the server, which looks again
    flags = {"--item-id": registry.item_id, "--popularity": settings.popularity}
    for flag, column in (flags | {"--category": settings.category}).items():
        if column is not None and column not in columns:
            hint = nearest(column, columns)
            raise ConfigError(f"{items}: got {flag} {column!r}, no column; {hint}")
    return list(columns)


def _check_formula(
    formula: Formula, models: dict[str, Path | str], columns: list[str] | None
) -> None:
    """Refuse a formula that no version of a model can rank by; one that cannot fails by itself."""
    for path in models.values():
        error: ConfigError | DataError | None = None
        versions = [path] if isinstance(path, str) else [*find_versions(path).values()][::-1]
        for version in versions:
            try:
                bundle = Bundle.load(served_bundle(version), verify=False)
                scores = FormulaScores(formula, bundle)
                scores.check_columns(scores.columns if columns is None else columns)
            except BundleError:
                continue  # on its way, or the server says what is wrong with it
            except (ConfigError, DataError) as problem:
                error = error or problem
            else:
                break
        else:
            if error is not None:
                raise error


def _exploration(arguments: argparse.Namespace) -> Exploration | None:
    values = field_values(arguments, _EXPLORATION)
    if values and "policy" not in values:
        flag = _EXPLORATION[next(iter(values))].split()[0]
        raise ConfigError(f"got {flag} without --exploration; add --exploration epsilon")
    return Exploration(**values) if values else None


def _check_posteriors(models: dict[str, Path | str]) -> None:
    for path in models.values():
        try:
            bundle = served_bundle(path)
            files = read_manifest(bundle).files
        except BundleError:
            continue  # the first version is on its way, or the server says what is wrong with it
        if POSTERIOR not in files:
            raise ConfigError(no_posterior(bundle))


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

        def listening(port: int, grpc_port: int | None) -> None:
            host = None if plan.grpc is None else plan.grpc.rpartition(":")[0]
            on_listening(settings, port, None if host is None else f"{host}:{grpc_port}")

        run_worker(Worker(0, 1), plan, listening)
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
    return body | {"candidates": _some_ids(Path(plan.registry.items), plan.registry.item_id)}


def _some_ids(items: Path, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(items) as file:
        batches = file.iter_batches(batch_size=_EXAMPLE_ITEMS, columns=[column])
        first = next(batches, None)
    return [] if first is None else first.column(0).to_pylist()
