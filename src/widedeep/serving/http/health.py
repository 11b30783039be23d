"""Health, status and metrics, for probes, operators and Prometheus."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from widedeep.serving.http.service import Call, Models, Reply, Service, json_reply
from widedeep.serving.supervisor import METRICS_DIRECTORY

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


async def live(service: Service, call: Call) -> Reply:
    """Answer a liveness probe; a server that does not answer must be restarted."""
    return json_reply({"live": True})


async def ready(service: Service, call: Call) -> Reply:
    """Return whether requests should be sent here: models loaded, threads running, not draining."""
    reasons = service.unready()
    readiness = {"ready": not reasons, "reasons": reasons, "warnings": service.warnings()}
    body = {key: value for key, value in readiness.items() if value != []}
    return json_reply(body, 503 if reasons else 200)


async def status(service: Service, call: Call) -> Reply:
    """Return the state of each version, each background thread and the impression log."""
    log = service.impressions
    return json_reply(
        {
            "ready": service.ready(),
            "draining": service.draining,
            "reasons": service.unready(),
            "warnings": service.warnings(),
            "threads": [asdict(thread) for thread in service.monitor.status()],
            "log_lines_lost": service.log.lost,
            "impression_log": None if log is None else asdict(log.counts()),
            "models": {
                name: [asdict(version) for version in registry.status()]
                for name, registry in service.models.registries.items()
            },
        }
    )


async def metrics(service: Service, call: Call) -> Reply:
    """Return the metrics of all processes of this server."""
    registry = server_metrics(service)
    versions = CollectorRegistry()
    versions.register(_Versions(service.models))
    versions.register(_Heartbeats(registry))
    return Reply(generate_latest(registry) + generate_latest(versions), media_type=_TEXT)


def server_metrics(service: Service) -> CollectorRegistry:
    """Return a registry that collects the metrics of all processes of this server."""
    service.publish()
    if METRICS_DIRECTORY not in os.environ:
        return service.metrics.registry
    # A cleaner of temporary files may have removed the directory.
    os.makedirs(os.environ[METRICS_DIRECTORY], exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


class _Versions(Collector):
    """The versions as this process sees them; all processes follow the same state."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Return each version's state, load time and load duration."""
        labels = ("model", "version")
        state = GaugeMetricFamily(
            "widedeep_version_state", "1 for the state a version is in.", labels=(*labels, "state")
        )
        loaded = GaugeMetricFamily(
            "widedeep_version_loaded_timestamp_seconds", "When it was loaded.", labels=labels
        )
        took = GaugeMetricFamily(
            "widedeep_version_load_seconds", "How long loading took.", labels=labels
        )
        for name, registry in self._models.registries.items():
            for each in registry.status():
                state.add_metric((name, each.version, each.state), 1.0)
                if each.loaded_at is not None:
                    loaded.add_metric((name, each.version), each.loaded_at)
                if each.load_s is not None:
                    took.add_metric((name, each.version), each.load_s)
        yield from (state, loaded, took)
        problems = CounterMetricFamily(
            "widedeep_versions_unreadable",
            "Looks at a models directory or its state that failed, in the process that answers.",
            labels=("model",),
        )
        for name, registry in self._models.registries.items():
            problems.add_metric((name,), registry.problems)
        yield problems


class _Heartbeats(Collector):
    """Seconds since the last heartbeat of each background thread, the longest of all processes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures = registry

    def collect(self) -> Iterator[Metric]:
        """Return the age of each heartbeat; a thread that has ended normally has none."""
        age = GaugeMetricFamily(
            "widedeep_thread_heartbeat_seconds",
            "Since each background thread last did its work, in the process longest silent.",
            labels=("thread",),
        )
        now = time.time()
        for metric in self._figures.collect():
            if metric.name == "widedeep_thread_heartbeat_timestamp_seconds":
                for sample in metric.samples:
                    if math.isfinite(sample.value):
                        age.add_metric((sample.labels["thread"],), max(0.0, now - sample.value))
        yield age
