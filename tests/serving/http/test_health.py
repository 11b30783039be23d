"""Readiness, status and figures of background threads, by HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.serving.http.calls import Local
from tests.serving.versions import eventually
from widedeep.serving import version_watcher
from widedeep.serving.impressions import ImpressionCounts
from widedeep.serving.registry import Registry


@pytest.fixture
def own(registry: Registry) -> Iterator[Local]:
    """A server around that registry, with threads of its own."""
    yield Local({"apps": registry})


def test_a_thread_that_is_stuck_makes_the_server_unready_and_not_dead(own: Local) -> None:
    assert own.get("/health/ready").json == {"ready": True}
    hangs, fails = threading.Event(), threading.Event()
    monitor = own.service.monitor
    thread = monitor.start("hangs", lambda: not hangs.wait(0.5 if fails.is_set() else 30))
    thread.stuck_s = 0.05
    eventually(lambda: own.get("/health/ready").status == 503)
    told = own.get("/health/ready").json
    assert told["ready"] is False and "thread hangs is stuck" in told["reasons"][0]
    assert own.get("/v2/health/ready").status == 503
    assert own.get("/health/live").status == 200
    status = own.get("/v1/status").json
    assert [each["state"] for each in status["threads"]] == ["stuck"]
    assert status["reasons"] == told["reasons"] or len(status["reasons"]) == 1
    hangs.set()
    thread.join(5)
    assert own.get("/health/ready").json == {"ready": True}


def test_errors_and_heartbeats_stand_in_the_figures(own: Local) -> None:
    ends = threading.Event()
    errors = iter([ValueError("a"), ValueError("b")])

    def turn() -> bool:
        error = next(errors, None)
        if error is not None:
            raise error
        return not ends.wait(0.05)

    thread = own.service.monitor.start("careless", turn)

    def figures() -> str:
        return own.get("/metrics").body.decode()

    eventually(lambda: 'widedeep_thread_errors_total{thread="careless"} 2.0' in figures())
    eventually(lambda: 'widedeep_thread_heartbeat_seconds{thread="careless"}' in figures())
    (line,) = (each for each in figures().splitlines() if "heartbeat_seconds{" in each)
    assert 0 <= float(line.split()[-1]) < 5
    ends.set()
    thread.join(5)
    # One that has ended as it should is silent for good, and no fault.
    assert "heartbeat_seconds{" not in figures()
    assert own.get("/v1/status").json["threads"] == []


def test_a_log_of_requests_without_users_is_a_warning() -> None:
    counts = ImpressionCounts(offered=5, left_out=2, without_user=3)
    log = SimpleNamespace(counts=lambda: counts)
    own = Local({}, impressions=log)
    (told,) = own.get("/v1/status").json["warnings"]
    assert "none of 3 requests has a user's id" in told and "--log-user" in told
    log.counts = lambda: replace(counts, without_user=2)
    assert own.get("/v1/status").json["warnings"] == []


def test_warnings_say_what_to_mend_and_leave_the_server_ready(
    own: Local, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(root: Path) -> dict[str, Path]:
        raise OSError("got no readable directory")

    with monkeypatch.context() as patched:
        patched.setattr(version_watcher, "find_versions", fails)
        registry._watcher.look()
        told = own.get("/health/ready")
        assert told.status == 200
        assert told.json["warnings"] == ["model 'apps': got no readable directory"]
        assert own.get("/v1/status").json["warnings"] == told.json["warnings"]
    registry._watcher.look()
    eventually(lambda: own.get("/health/ready").json == {"ready": True})
