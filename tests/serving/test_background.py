"""Background threads: an error is counted, logged once, and survived; silence is seen."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.serving.versions import eventually
from widedeep.cli.output import say
from widedeep.serving import background, supervisor
from widedeep.serving.background import RequestLog, ThreadMonitor


class Metrics:
    """Counts as a server's metrics do."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.beats: dict[str, float] = {}

    def thread_error(self, thread: str) -> None:
        self.errors[thread] = self.errors.get(thread, 0) + 1

    def thread_beat(self, thread: str, timestamp: float) -> None:
        self.beats[thread] = timestamp


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_BACKOFF_S", (0.001, 0.004))


@pytest.fixture
def lowest_switch_interval() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def watched() -> tuple[ThreadMonitor, io.StringIO, Metrics]:
    stream, metrics = io.StringIO(), Metrics()
    monitor = ThreadMonitor(RequestLog("none", stream))
    monitor.metrics = metrics
    return monitor, stream, metrics


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "error",
    [
        *(OverflowError("big"), OSError(24, "Too many open files"), KeyError("k"), MemoryError()),
        *(RecursionError("deep"), UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "half")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_thread_outlives_its_errors_which_are_counted_and_logged_once(error: Exception) -> None:
    monitor, stream, metrics = watched()
    turns = iter([error] * 20 + [None] * 5)
    worked: list[float] = []

    def turn() -> bool:
        what = next(turns, False)
        if isinstance(what, Exception):
            raise what
        worked.append(time.monotonic())
        return what is None

    thread = monitor.start("worker", turn)
    eventually(lambda: thread.is_over)
    assert len(worked) == 6
    assert metrics.errors == {"worker": 20}
    (line,) = stream.getvalue().splitlines()
    told: dict[str, Any] = json.loads(line)
    assert (told["event"], told["thread"]) == ("bug", "worker")
    assert type(error).__name__ in told["traceback"]
    assert metrics.beats == {"worker": float("inf")}
    assert monitor.status() == [] and monitor.problems() == []


def test_the_pause_after_an_error_doubles_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_BACKOFF_S", (0.02, 0.08))
    monitor, _, metrics = watched()
    times: list[float] = []

    def turn() -> bool:
        times.append(time.monotonic())
        raise ValueError("again")

    thread = monitor.start("worker", turn)
    eventually(lambda: len(times) > 5)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[0] >= 0.02 and pauses[1] >= 0.04 and min(pauses[2:]) >= 0.08
    started = time.monotonic()
    thread.join(10)  # one that cannot even end is let go
    assert time.monotonic() - started < 5 and metrics.errors["worker"] >= len(times) - 1


@pytest.mark.usefixtures("quick")
def test_a_thread_that_only_fails_becomes_stuck_and_recovers() -> None:
    monitor, _, _ = watched()
    fails, ends = threading.Event(), threading.Event()
    fails.set()

    def turn() -> bool:
        if fails.is_set():
            raise RuntimeError("it does not work")
        return not ends.wait(0.001)

    thread = monitor.start("worker", turn, stuck_s=0.1)
    eventually(lambda: monitor.problems() != [])
    (problem,) = monitor.problems()
    assert "thread worker is stuck" in problem and "it does not work" in problem
    fails.clear()
    eventually(lambda: monitor.problems() == [])
    (status,) = monitor.status()
    assert status.state == "running" and status.errors > 3 and status.error is not None
    ends.set()
    thread.join(5)


def test_a_thread_that_hangs_is_stuck_and_one_that_is_gone_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor, _, _ = watched()
    go_on = threading.Event()
    thread = monitor.start("hangs", lambda: bool(go_on.wait(30)) and False, stuck_s=0.05)

    class Gone(BaseException):
        """What no handler of errors takes."""

    def gone() -> bool:
        raise Gone

    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    monitor.start("gone", gone)
    eventually(lambda: {s.state for s in monitor.status()} == {"stuck", "dead"})
    assert [problem.split(":")[0] for problem in monitor.problems()] == [
        "thread hangs is stuck",
        "thread gone is dead",
    ]
    go_on.set()
    thread.join(5)


@pytest.mark.usefixtures("quick")
def test_a_log_that_cannot_be_written_ends_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    monitor, stream, _ = watched()
    stream.close()
    turns = iter([True, False])

    def turn() -> bool:
        if next(turns):
            raise ValueError("told elsewhere")
        return False

    thread = monitor.start("worker", turn)
    thread.join(5)
    assert thread.is_over


def test_each_kind_of_error_is_logged_though_another_was(quick: None) -> None:
    monitor, stream, metrics = watched()
    turns = iter([ValueError("a"), KeyError("b"), ValueError("c"), KeyError("d")] * 3)

    def turn() -> bool:
        error = next(turns, None)
        if error is not None:
            raise error
        return False

    thread = monitor.start("worker", turn)
    eventually(lambda: thread.is_over)
    assert metrics.errors["worker"] == 12 and len(stream.getvalue().splitlines()) == 2


def test_lines_of_many_threads_stay_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowest_switch_interval: None
) -> None:
    path = tmp_path / "stderr"
    with open(path, "wb") as file:
        stream = io.TextIOWrapper(file, "utf-8", line_buffering=True, write_through=True)
        monkeypatch.setattr(sys, "stderr", stream)
        log = RequestLog("all")
        writers = [
            lambda: log.event("a", text="x" * 40),
            lambda: say("said: " + "y" * 40),
            lambda: supervisor._say("z" * 40),
        ]
        threads = [
            threading.Thread(target=lambda write=write: [write() for _ in range(5_000)])
            for write in writers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        monkeypatch.undo()
    kinds = Counter(line[:11] for line in path.read_text("utf-8").splitlines())
    assert kinds == {'{"time":"20': 5_000, "said: yyyyy": 5_000, "widedeep: z": 5_000}
