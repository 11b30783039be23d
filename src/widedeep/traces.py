"""Traces: spans of requests and of the loop's steps for OpenTelemetry; off, they cost nothing.

The command line switches them on where ``OTEL_EXPORTER_OTLP_ENDPOINT`` names a collector; the SDK's
other variables (``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER``, headers) hold as everywhere.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from widedeep.errors import MissingPackageError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OFF: AbstractContextManager[Any] = contextlib.nullcontext()
_tracer: Any = None
_own_provider: Any = None  # To be ended with its last spans sent
_LAST_S = 3.0  # Most seconds that sending them takes
_QUIET_S = 60.0
_said_s = 0.0  # When the exporter's last message passed

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def wanted() -> bool:
    """Tell whether the environment names a collector, and does not turn traces off."""
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_off |= os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return not is_off and any(os.environ.get(name) for name in _ENDPOINTS)


def switch_on(provider: Any = None) -> None:
    """Make spans from now on.

    Args:
        provider: A ``TracerProvider`` of the SDK; None: one that sends to the collector that the
            environment names.

    Raises:
        MissingPackageError: If the SDK is not installed.
    """
    global _tracer, _own_provider
    if provider is None and _tracer is not None:
        return
    try:
        if provider is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "widedeep"}
            provider = TracerProvider(resource=Resource.create(name))
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            _own_provider = provider
            logging.getLogger(OTLPSpanExporter.__module__).addFilter(_now_and_then)
        import opentelemetry.trace  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"traces: {error}; run: pip install 'widedeep[otel]', or unset {_ENDPOINTS[1]}"
        ) from error
    _tracer = provider.get_tracer("widedeep")


def follow_environment(tell: Callable[[str], None]) -> None:
    """Make spans if the environment names a collector.

    It may name one for every program of a machine: where the SDK is not installed, ``tell`` is
    called with a line that says so, and no spans are made.
    """
    if wanted():
        try:
            switch_on()
        except MissingPackageError as error:
            tell(f"widedeep: {error}; no traces are made")


def switch_off() -> None:
    """Make no more spans; those for the environment's collector are sent first."""
    global _tracer, _own_provider
    if _own_provider is not None:
        sending = threading.Thread(target=_own_provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LAST_S)  # a collector that is away holds up nobody
    _tracer = _own_provider = None


def _now_and_then(record: logging.LogRecord) -> bool:
    """Let one message of the exporter pass a minute: each batch that is not taken makes several."""
    global _said_s
    if record.created - _said_s < _QUIET_S:
        return False
    _said_s = record.created
    record.msg = f"widedeep: traces: spans are not sent, and lost if it stays so: {record.msg}"
    return True


def is_on() -> bool:
    """Tell whether spans are made."""
    return _tracer is not None


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a block that is a span; within another one it is its child."""
    if _tracer is None:
        return _OFF
    present = {f"widedeep.{key}": value for key, value in attributes.items() if value is not None}
    block: AbstractContextManager[Any] = _tracer.start_as_current_span(name, attributes=present)
    return block


def traced(name: str) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Make each call of a function a span."""

    def decorate(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        @functools.wraps(function)
        def call(*given: _Given.args, **options: _Given.kwargs) -> _Result:
            with span(name):
                return function(*given, **options)

        return call

    return decorate


def request_span(
    headers: Mapping[bytes, bytes], arrived: float, **attributes: Any
) -> AbstractContextManager[Any]:
    """Return a block that is the span of a request, under the caller's one (W3C Trace Context).

    Args:
        headers: The request's headers, in small letters.
        arrived: Time of arrival on the monotonic clock, in seconds.
        **attributes: Attributes by name, with ``_`` for ``.``.
    """
    if _tracer is None:
        return _OFF
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    names = ("traceparent", "tracestate")
    carrier = {n: headers[n.encode()].decode("latin-1") for n in names if n.encode() in headers}
    start = time.time_ns() - int((time.monotonic() - arrived) * 1e9)
    block: AbstractContextManager[Any] = _tracer.start_as_current_span(
        "request",
        context=TraceContextTextMapPropagator().extract(carrier),
        kind=SpanKind.SERVER,
        attributes={name.replace("_", "."): value for name, value in attributes.items()},
        start_time=start,
    )
    return block


def past_request(seconds: float, end_us: int, attributes: Mapping[str, Any]) -> None:
    """Make the span of a request that was answered elsewhere, from its times."""
    if _tracer is None:
        return
    from opentelemetry.trace import SpanKind

    present = {name: value for name, value in attributes.items() if value is not None}
    start = end_us * 1000 - int(seconds * 1e9)
    past = _tracer.start_span("request", kind=SpanKind.SERVER, attributes=present, start_time=start)
    past.end(end_us * 1000)


def in_context(function: Callable[[], _Result]) -> Callable[[], _Result]:
    """Return a function whose spans, in whichever thread it runs, are under the present one."""
    if _tracer is None:
        return function
    return functools.partial(contextvars.copy_context().run, function)
