"""The supervisor: workers on one port, restarted, drained, counted; as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.versions import eventually
from widedeep.errors import ConfigError
from widedeep.serving.supervisor import bind_port, run_workers

pytest.importorskip("prometheus_client")

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]


def supervised(*words: object) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.serving.run_counting", *map(str, words)]
    return subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE)


@pytest.fixture
def port() -> Iterator[int]:
    with bind_port(HOST, 0) as kept:
        yield kept.getsockname()[1]


@pytest.fixture
def server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor with two workers, both answering."""
    process = supervised("serve", 2, HOST, port)
    try:
        eventually(lambda: {index for index, _ in asked_often(port)} == {"0", "1"})
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ask(port: int, what: str = "") -> str:
    with socket.create_connection((HOST, port), timeout=10) as connection:
        connection.sendall(f"{what}\n".encode())
        return connection.makefile().read()


def asked_often(port: int, times: int = 20) -> set[tuple[str, str]]:
    """The (index, process id) of the workers that answer; the kernel spreads the connections."""
    found = set()
    for _ in range(times):
        try:
            answer = ask(port).split()
        except OSError:
            continue
        if answer:
            found.add((answer[0], answer[1]))
    return found


def counted(port: int, name: str) -> float:
    return float(re.findall(rf"^{name} (\S+)$", ask(port, "metrics"), re.MULTILINE)[0])


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_is_killed_is_started_again_and_its_counts_stay(
    port: int, server: subprocess.Popen[bytes]
) -> None:
    before = dict(asked_often(port))
    count = counted(port, "requests_total")
    assert counted(port, "busy") == 0
    os.kill(int(before["0"]), signal.SIGKILL)
    eventually(lambda: len(asked_often(port)) == 2 and dict(asked_often(port)) != before)
    after = dict(asked_often(port))
    assert after["1"] == before["1"] and after["0"] != before["0"]
    now = counted(port, "requests_total")
    assert now > count
    # Every answer is counted once, whichever worker gave it, and whichever tells.
    for _ in range(10):
        ask(port)
    assert {counted(port, "requests_total") for _ in range(8)} == {now + 10}


def test_a_file_that_breaks_later_ends_no_worker_that_serves(port: int, tmp_path: Path) -> None:
    """A replacement that cannot start is tried again; the others serve on."""
    broken = tmp_path / "broken"
    process = supervised("serve_unless_broken", 2, HOST, port, broken)
    try:
        eventually(lambda: {index for index, _ in asked_often(port)} == {"0", "1"})
        before = dict(asked_often(port))
        broken.touch()
        os.kill(int(before["0"]), signal.SIGKILL)
        met = Path(f"{broken}.met")
        eventually(lambda: met.exists() and len(met.read_text()) >= 4)  # two starts in vain
        assert process.poll() is None and set(met.read_text().split()) == {"0"}
        assert dict(asked_often(port)) == {"1": before["1"]}
        broken.unlink()
        eventually(lambda: len(asked_often(port)) == 2)
    finally:
        process.terminate()
        said = process.communicate(timeout=60)[1].decode()
    assert "got garbage" in said and "worker 0 ended by exit code 2" in said


def test_a_worker_that_dies_busy_is_busy_no_longer(
    port: int, server: subprocess.Popen[bytes]
) -> None:
    assert ask(port, "die") == ""
    eventually(lambda: len(asked_often(port)) == 2)
    assert counted(port, "busy") == 0


def test_sigterm_drains_all_workers(port: int, server: subprocess.Popen[bytes]) -> None:
    pids = [pid for _, pid in asked_often(port)]
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ask(port, "slow")))
    asking.start()
    eventually(lambda: counted(port, "busy") == 1)
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    asking.join(10)
    assert answers and answers[0].split()[1] in pids
    assert not any(alive(pid) for pid in pids)


# Sends a signal at the n-th line that the supervisor's loop comes to, for many n.
SIGNALLED = """
import signal, sys
from widedeep.serving import supervisor

supervisor._POLL_S = 0.001

def sends(number, lines):
    def trace(frame, event, argument):
        nonlocal lines
        lines -= event == "line"
        if lines == 0:
            lines = -1
            signal.raise_signal(number)
        return trace
    return trace

for lines in range(1, 60):
    for number in (signal.SIGTERM, signal.SIGINT):
        with supervisor._signals_received() as signals:
            sys.settrace(sends(number, lines))
            code = supervisor._watch([], signals)
            sys.settrace(None)
        assert (code, signals.stop, signals.soon) == (0, True, number == signal.SIGINT)
"""


def test_a_signal_at_any_line_ends_the_supervisor() -> None:
    """A handler that took a lock hung for ever where the interrupted line held it."""
    words = [sys.executable, "-c", SIGNALLED]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_do_not_outlive_a_killed_supervisor(
    port: int, server: subprocess.Popen[bytes]
) -> None:
    pids = [pid for _, pid in asked_often(port)]
    server.kill()
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_worker_that_does_not_end_is_killed() -> None:
    process = supervised("deaf", 1)
    assert process.stderr is not None and process.stderr.readline() == b"deaf now\n"
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"did not end within 3 s: killed" in told


def test_misuse_ends_all_and_is_told() -> None:
    process = supervised("refuse", 2)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 2
    assert re.search(rb"error: worker [01] of 2: got nothing to serve", told)


def test_restarts_are_ever_further_apart_up_to_a_limit() -> None:
    process = supervised("crash", 1)
    assert process.stderr is not None
    lines = [process.stderr.readline().decode() for _ in range(4)]
    process.terminate()
    process.communicate(timeout=60)
    pauses = [re.findall(r"ended by exit code 3 after .* s; again in (\S+) s", s) for s in lines]
    assert pauses == [["0.1"], ["0.2"], ["0.4"], ["0.4"]]


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="count=0"):
        run_workers(0, supervised)
    with pytest.raises(ConfigError, match="a function of a module"):
        run_workers(1, type("Main", (), {"__module__": "__main__"}))


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        with pytest.raises(ConfigError, match="cannot be bound"):
            bind_port(HOST, taken.getsockname()[1])
