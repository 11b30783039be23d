"""Health, status and figures: what probes, operators and Prometheus ask for."""

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
    """Say that the process answers; a server that does not must be restarted."""
    return json_reply({"live": True})


async def ready(service: Service, call: Call) -> Reply:
    """Say whether requests should come here: models are loaded, threads work, no stop is due."""
    reasons = service.unready()
    readiness = {"ready": not reasons, "reasons": reasons, "warnings": service.warnings()}
    body = {key: value for key, value in readiness.items() if value != []}
    return json_reply(body, 503 if reasons else 200)


async def status(service: Service, call: Call) -> Reply:
    """Say how each version of each model, each thread and the log stand, and what is wrong."""
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
    """Return the figures of this server, of all its processes together."""
    registry = server_figures(service)
    versions = CollectorRegistry()
    versions.register(_Versions(service.models))
    versions.register(_Heartbeats(registry))
    return Reply(generate_latest(registry) + generate_latest(versions), media_type=_TEXT)


def server_figures(service: Service) -> CollectorRegistry:
    """Return where the figures of all processes of this server are collected."""
    service.publish()
    if METRICS_DIRECTORY not in os.environ:
        return service.metrics.registry
    os.makedirs(os.environ[METRICS_DIRECTORY], exist_ok=True)  # cleaners of temporary files take it
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


class _Versions(Collector):
    """The versions as this process sees them; all processes follow the same state."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Return how each version stands, when it was loaded and how long that took."""
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
    """How long each background thread has been silent, in the process where it is longest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures = registry

    def collect(self) -> Iterator[Metric]:
        """Return the age of each heartbeat; a thread that has ended as it should has none."""
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
