"""Serving from the command line: one process, or several that share the port."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from widedeep.errors import ConfigError
from widedeep.serving.http.settings import Settings
from widedeep.serving.http.worker import ServingPlan, serve_plan
from widedeep.serving.supervisor import Worker, bind_alone, run_workers

__all__ = ["address", "run_plan"]

_GRACE_S = 5.0


def address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; without a host it is this machine alone.

    Args:
        text: As typed.

    Raises:
        ConfigError: If it is neither.

    Example:
        >>> address(":8080"), address("0.0.0.0:80"), address("[::1]:9000")
        (('127.0.0.1', 8080), ('0.0.0.0', 80), ('::1', 9000))
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"got the address {text!r}, expected HOST:PORT or :PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def run_plan(plan: ServingPlan, on_listening: Callable[[Settings, int, str | None], None]) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        plan: What is served, and in how many processes.
        on_listening: Called once with the settings, the HTTP port, and gRPC's address.

    Returns:
        The exit code.
    """
    settings = plan.settings
    plan.keys()  # a mistake in their file is told here, not by each worker
    if settings.workers == 1:

        def told(port: int, grpc_port: int | None) -> None:
            host = None if plan.grpc is None else plan.grpc.rpartition(":")[0]
            on_listening(settings, port, None if host is None else f"{host}:{grpc_port}")

        serve_plan(Worker(0, 1), plan, told)
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
        return run_workers(settings.workers, serve_plan, (plan,), drain_s=drain_s)
