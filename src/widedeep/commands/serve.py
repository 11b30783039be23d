"""Serving from the command line: one process, or several that share the port."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from widedeep.bundle.files import SCHEMA, read_warmup
from widedeep.commands.find_bundle import served_bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.features.spec import item_columns
from widedeep.schema import stored_spec
from widedeep.serving.http.auth import load_keys
from widedeep.serving.http.server import run_worker
from widedeep.serving.http.settings import ServeConfig, Settings
from widedeep.serving.supervisor import Worker, bind_alone, run_workers

_GRACE_S = 5.0
_EXAMPLE_ITEMS = 2


def address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; without a host it is this machine alone."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"got the address {text!r}, expected HOST:PORT or :PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def run_plan(plan: ServeConfig, on_listening: Callable[[Settings, int, str | None], None]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    settings = plan.settings
    load_keys(plan.settings)  # a mistake in their file is told here, not by each worker
    if settings.workers == 1:

        def told(port: int, grpc_port: int | None) -> None:
            host = None if plan.grpc is None else plan.grpc.rpartition(":")[0]
            on_listening(settings, port, None if host is None else f"{host}:{grpc_port}")

        run_worker(Worker(0, 1), plan, told)
        return 0
    with ExitStack() as stack:
        # Bound, but not listening: it keeps the port while workers come and go.
        kept = stack.enter_context(bind_alone(settings.host, settings.port))
        port = kept.getsockname()[1]
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
    if plan.items is None:
        columns = [column for column in rows[0] if column in of_item]
        return body | {"items": {c: [row.get(c) for row in rows] for c in columns}}
    assert plan.item_id is not None
    return body | {"candidates": _some_ids(Path(plan.items), plan.item_id)}


def _some_ids(items: Path, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(items) as file:
        batches = file.iter_batches(batch_size=_EXAMPLE_ITEMS, columns=[column])
        first = next(batches, None)
    return [] if first is None else first.column(0).to_pylist()
