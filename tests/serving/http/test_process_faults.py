"""Files, disks and processes of a real server fail while requests run: no answer is lost or wrong.

Each test sends requests before, during and after its fault, compares every score, and asks the
server what it counted, what its status and its readiness say, and what stands in its log.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.serving.http.calls import Running, running
from tests.serving.versions import ITEMS, USER, eventually, publish, whole_rows, write_items
from widedeep.bundle import Bundle
from widedeep.serving.versions import change_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, mounts tmpfs")
REQUESTS = 1_000


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder `models` with version 1, and a catalogue beside it."""
    publish(tmp_path / "models", "1", seed=1)
    write_items(tmp_path / "items.parquet")
    return tmp_path / "models"


def serve(models: Path, *words: object) -> contextlib.AbstractContextManager[Running]:
    items = ("--items", models.parent / "items.parquet", "--item-id", "app")
    cache = ("--cache", models.parent / "cache")
    return running(models, *items, "--poll", 0.05, *cache, *words, log=models.parent / "stderr")


def best_first(bundle: Path) -> list[float]:
    scores = np.asarray(Bundle.load(bundle).score(whole_rows(ITEMS)))
    return sorted(scores.tolist(), reverse=True)


class Requests(threading.Thread):
    """A caller that asks `count` times, each with an id of its own, and keeps what is not right."""

    def __init__(
        self, server: Running, right: list[list[float]], count: int = REQUESTS, lead: str = "r"
    ) -> None:
        super().__init__()
        self.port, self.right, self.count, self.lead = server.port, right, count, lead
        self.times: dict[str, float] = {}
        self.wrong: list[Any] = []
        self.broken = self.answered = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for number in range(self.count):
            user = {**USER, "user_id": number}
            body = {"user": user, "candidates": ITEMS, "request_id": f"{self.lead}{number}"}
            try:
                connection.request("POST", "/v1/rank", json.dumps(body))
                got = connection.getresponse()
                told = json.loads(got.read())
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
                time.sleep(0.01)
                continue
            self.answered += 1
            self.times[str(body["request_id"])] = time.monotonic()
            if got.status != 200 or told["scores"] not in self.right:
                self.wrong.append((got.status, told))
        connection.close()

    def done(self) -> Requests:
        """Start, wait for the end, and see that nothing was wrong."""
        self.start()
        return self.well()

    def well(self) -> Requests:
        self.join()
        assert not self.wrong and not self.broken, (self.broken, self.wrong[:1])
        return self


def status(server: Running) -> Any:
    return server.call("GET", "/v1/status").json


def readiness(server: Running) -> Any:
    return server.call("GET", "/health/ready").json


def figure(server: Running, name: str) -> float:
    lines = server.call("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def events(models: Path) -> list[str]:
    lines = (models.parent / "stderr").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


# ---- bundles that are changed under the server ---------------------------------------------------


def overwritten(bundle: Path) -> None:
    """As `cp -r other/. models/1/` does: the same files, other contents."""
    other = bundle.parent.parent / "other"
    publish(other, "1", seed=2)
    for file in (other / "1").iterdir():
        shutil.copyfile(file, bundle / file.name)


def cut(bundle: Path) -> None:
    for name in ("weights.safetensors", "schema.safetensors"):
        os.truncate(bundle / name, 100)


def zeros(bundle: Path) -> None:
    for file in bundle.iterdir():
        with file.open("r+b") as opened:
            opened.write(b"\0" * file.stat().st_size)


def noise_of_the_same_time(bundle: Path) -> None:
    """Contents alone change: names, sizes and times are as before."""
    for name in ("weights.safetensors", "schema.safetensors"):
        about = (bundle / name).stat()
        with (bundle / name).open("r+b") as opened:
            opened.seek(4096)
            opened.write(os.urandom(max(0, about.st_size - 4096)))
        os.utime(bundle / name, ns=(about.st_atime_ns, about.st_mtime_ns))


def emptied(bundle: Path) -> None:
    for file in bundle.iterdir():
        file.write_bytes(b"")


def removed(bundle: Path) -> None:
    shutil.rmtree(bundle)


FAULTS = (overwritten, cut, zeros, noise_of_the_same_time, emptied, removed)


@pytest.mark.parametrize(
    ("fault", "workers"),
    [
        *(pytest.param(fault, 1, id=fault.__name__) for fault in FAULTS),
        pytest.param(overwritten, 2, id="overwritten, two workers", marks=pytest.mark.slow),
        pytest.param(cut, 2, id="cut, two workers", marks=pytest.mark.slow),
    ],
)
def test_a_bundle_that_is_changed_under_the_server_changes_no_answer(
    models: Path, fault: Callable[[Path], None], workers: int
) -> None:
    right = [best_first(models / "1")]
    publish(models.parent / "like", "1", seed=2)
    right.append(best_first(models.parent / "like" / "1"))
    with serve(models, "--workers", workers) as server:
        server.wait_ready()
        requests = Requests(server, right)
        requests.start()
        eventually(lambda: requests.answered > 100)
        fault(models / "1")
        requests.well()
        assert requests.answered == REQUESTS
        if fault is overwritten:
            eventually(lambda: status(server)["models"]["models"][0]["error"] is None)
            eventually(lambda: ask(server)["scores"] == right[1])
        assert readiness(server)["ready"]
        if fault in (cut, zeros, emptied):
            eventually(lambda: status(server)["models"]["models"][0]["error"] is not None)
            assert "version_failed" in events(models)
        # Whole again: served again.
        publish(models, "2", seed=2)
        eventually(lambda: server.call("GET", "/v1/status").body.count(b'"ready"') >= 2)
        eventually(lambda: ask(server)["scores"] == right[1])


def ask(server: Running) -> Any:
    return server.call("POST", "/v1/rank", {"user": USER, "candidates": ITEMS}).json


@pytest.mark.slow
def test_copies_are_shared_by_workers_and_deleted_when_they_are_served_no_more(
    models: Path,
) -> None:
    cache = models.parent / "cache"
    with serve(models, "--workers", 2) as server:
        server.wait_ready()
        (copy,) = (path for path in cache.iterdir() if path.is_dir())
        mapped = {
            line.split()[-1]
            for pid in workers_of(server)
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if "weights.safetensors" in line
        }
        assert mapped == {str(copy / "weights.safetensors")}
        publish(models, "2", seed=2)
        eventually(lambda: not copy.exists())
        assert sum(path.is_dir() for path in cache.iterdir()) == 1
        for pid in [server.process.pid, *workers_of(server)]:
            os.kill(pid, signal.SIGKILL)
    assert any(path.is_dir() for path in cache.iterdir())
    publish(models, "3", seed=3)
    with serve(models) as server:
        server.wait_ready()
        assert sum(path.is_dir() for path in cache.iterdir()) == 1
    assert list(cache.iterdir()) == []


def workers_of(server: Running) -> list[int]:
    pid = server.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_cache_that_is_taken_away_or_full_stops_no_answers(models: Path) -> None:
    right = [best_first(models / "1")]
    with serve(models) as server:
        server.wait_ready()
        shutil.rmtree(models.parent / "cache")
        Requests(server, right, 100).done()
        publish(models, "2", seed=2)
        eventually(lambda: ask(server)["scores"] == best_first(models / "2"))
        shutil.rmtree(models.parent / "cache")
        (models.parent / "cache").write_text("no directory")
        publish(models, "3", seed=3)
        eventually(lambda: status(server)["models"]["models"][-1]["state"] == "failed")
        Requests(server, [best_first(models / "2")], 100).done()
        (models.parent / "cache").unlink()
        eventually(lambda: ask(server)["scores"] == best_first(models / "3"))


# ---- what the server follows ---------------------------------------------------------------------


def test_orders_models_and_catalogue_that_cannot_be_read_stop_no_answers(models: Path) -> None:
    right, items = [best_first(models / "1")], models.parent / "items.parquet"
    with serve(models) as server:
        server.wait_ready()
        requests = Requests(server, right)
        requests.start()
        (models.parent / "half").write_text("{")
        (models.parent / "half").rename(models / "serving.json")  # at once: one thing is wrong
        eventually(lambda: figure(server, "widedeep_versions_unreadable_total") >= 2)
        told = readiness(server)
        assert told["ready"] and "serving.json" in told["warnings"][0]
        (models / "serving.json").unlink()
        eventually(lambda: readiness(server) == {"ready": True})
        models.rename(models.with_name("away"))
        eventually(lambda: "no readable directory" in str(readiness(server)))
        models.with_name("away").rename(models)
        eventually(lambda: readiness(server) == {"ready": True})
        whole = items.read_bytes()
        for contents in (b"", b"PAR1 is not all", whole[: len(whole) // 2]):
            items.write_bytes(contents)
            eventually(lambda: status(server)["models"]["models"][0]["catalogue_error"] is not None)
            items.write_bytes(whole)
            eventually(lambda: status(server)["models"]["models"][0]["catalogue_error"] is None)
        requests.well()
        assert readiness(server) == {"ready": True}
    assert events(models).count("versions_unreadable") == 2
    assert events(models).count("versions_readable") == 2
    assert "bug" not in events(models)


def test_following_outlives_descriptors_that_run_out(models: Path) -> None:
    right, body = best_first(models / "1"), json.dumps({"user": USER, "candidates": ITEMS})
    with serve(models) as server:
        server.wait_ready()
        connection = http.client.HTTPConnection("127.0.0.1", server.port)

        def answer() -> list[float]:
            connection.request("POST", "/v1/rank", body)
            scores: list[float] = json.loads(connection.getresponse().read())["scores"]
            return scores

        with contextlib.closing(connection):
            assert answer() == right  # admitted before the limit
            pid = server.process.pid
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, limits[1]))
            eventually(lambda: "Too many open files" in str(json_lines(models)))
            publish(models, "2", seed=2)
            for _ in range(100):
                assert answer() == right
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        eventually(lambda: ask(server)["scores"] == best_first(models / "2"))
        threads = {each["thread"]: each for each in status(server)["threads"]}
        assert {"versions", "loading", "accounts"} <= threads.keys()
        assert {each["state"] for each in threads.values()} == {"running"}


def test_a_shadow_outlives_requests_for_no_items(models: Path) -> None:
    publish(models, "2", seed=2)
    change_state(models / "serving.json", lambda state: state.set_shadow("1"))
    right = [best_first(models / "2")]
    with serve(models, "--latest", 2) as server:
        server.wait_ready()
        eventually(lambda: "shadow" in str(status(server)["threads"]))
        none = {"user": USER, "candidates": ITEMS, "k": 0}
        for _ in range(20):
            server.call("POST", "/v1/rank", none)
        Requests(server, right).done()
        (shadow,) = (each for each in status(server)["threads"] if each["thread"] == "shadow")
        assert shadow["state"] == "running" and shadow["errors"] == 0
        assert figure(server, 'widedeep_thread_heartbeat_seconds{thread="shadow"') < 30


# ---- the impression log --------------------------------------------------------------------------


def logged(folder: Path) -> list[dict[str, Any]]:
    files = folder.glob("columns-*/*.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_odd_requests_end_no_log(models: Path) -> None:
    log = models.parent / "log"
    odd = [
        {"user_id": 2**63, **USER},
        {"user_id": -(2**63) - 1, **USER},
        {"user_id": 1, **USER, "age": 1e300},
        {"user_id": "x" * 100_000, **USER},
        {"user_id": 1, **USER, "tags": ["\u0000", "\U0001f600"]},
    ]
    with serve(models, "--log", log) as server:
        server.wait_ready()
        answered = 0
        for user in odd:
            got = server.call("POST", "/v1/rank", {"user": user, "candidates": ITEMS, "k": 1})
            assert got.status in (200, 400, 422), got
            answered += got.status == 200
        Requests(server, [best_first(models / "1")]).done()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    rows = logged(log)
    ids = [row["request_id"] for row in rows if str(row["request_id"]).startswith("r")]
    assert ids.count("r999") == len(ITEMS) and len(set(ids)) >= REQUESTS
    text = sum(len(file.read_text().splitlines()) for file in log.glob("_as_text/*"))
    assert len(rows) - REQUESTS * len(ITEMS) + text == answered
    assert "bug" not in events(models)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_under_the_log_is_told_and_nothing_is_lost_when_room_comes(
    models: Path,
) -> None:
    right = [best_first(models / "1")]
    with small_disk(models.parent / "disk", "64k") as disk:
        with serve(models, "--log", disk / "log") as server:
            server.wait_ready()
            requests = Requests(server, right)
            requests.start()
            eventually(lambda: "No space left" in str(readiness(server)))
            requests.well()
            told = readiness(server)
            assert told["ready"] and "impression log" in told["warnings"][0]
            eventually(lambda: figure(server, "widedeep_log_waiting") > 0)
            counts = status(server)["impression_log"]
            assert counts["errors"] > 0 and "No space left" in counts["error"]
            assert figure(server, "widedeep_log_failing") == 1
            remount(disk, "size=8m")
            eventually(lambda: readiness(server) == {"ready": True})
            assert status(server)["impression_log"]["waiting"] == 0
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
        rows = logged(disk / "log")
        assert len(rows) == REQUESTS * len(ITEMS)
        assert {"impression_log_fails", "impression_log_goes_on"} <= set(events(models))


@pytest.mark.slow
def test_rows_beyond_the_bound_and_at_the_end_are_counted(models: Path) -> None:
    with small_disk(models.parent / "disk", "64k") as disk:
        with serve(models, "--log", disk / "log") as server:
            server.wait_ready()
            # Some fit onto the disk, whatever comes in one piece after them.
            Requests(server, [best_first(models / "1")], 20).done()
            eventually(lambda: status(server)["impression_log"]["rows"] == 20 * len(ITEMS))
            Requests(server, [best_first(models / "1")]).done()
            eventually(lambda: status(server)["impression_log"]["error"] is not None)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        (ends,) = [each for each in json_lines(models) if each["event"] == "impression_log_ends"]
        lost = ends["lost_rows"]
        remount(disk, "size=8m")
        with serve(models, "--log", disk / "log") as server:  # makes files of the spools
            server.wait_ready()
        rows = logged(disk / "log")
    shown = (20 + REQUESTS) * len(ITEMS)
    assert 0 < len(rows) < shown
    assert len(rows) + lost == shown


def json_lines(models: Path) -> list[dict[str, Any]]:
    lines = (models.parent / "stderr").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def renamed(folder: Path) -> None:
    os.rename(folder, folder.with_name("renamed"))


def a_file_instead(folder: Path) -> None:
    os.rename(folder, folder.with_name("renamed"))
    folder.write_text("no directory")


@pytest.mark.parametrize("fault", [gone, renamed, a_file_instead], ids=lambda f: f.__name__)
def test_a_log_folder_that_is_taken_away_loses_no_row(
    models: Path, fault: Callable[[Path], None]
) -> None:
    log = models.parent / "log"
    with serve(models, "--log", log) as server:
        server.wait_ready()
        requests = Requests(server, [best_first(models / "1")])
        requests.start()
        eventually(lambda: any(log.glob("*/.*")) and requests.answered > 100)
        fault(log)
        requests.well()
        assert readiness(server)["ready"]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    if fault is a_file_instead:
        (ends,) = [line for line in json_lines(models) if line["event"] == "impression_log_ends"]
        # Its spool went with the folder, and becomes a file when that one is opened.
        assert ends["rows_in_spools"] == REQUESTS * len(ITEMS) and ends["lost_rows"] == 0
    else:
        assert len(logged(log)) == REQUESTS * len(ITEMS)


def test_a_disk_that_becomes_read_only_is_told_and_comes_back(models: Path) -> None:
    with small_disk(models.parent / "disk", "8m") as disk:
        with serve(models, "--log", disk / "log") as server:
            server.wait_ready()
            Requests(server, [best_first(models / "1")], 50).done()
            eventually(lambda: status(server)["impression_log"]["rows"] == 50 * len(ITEMS))
            (disk / "log").chmod(0o500)
            # A writable spool would keep a mount from being read-only: the process is stopped.
            Requests(server, [best_first(models / "1")], 50).done()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
        assert len(logged(disk / "log")) == 100 * len(ITEMS)


# ---- processes -----------------------------------------------------------------------------------


LOST_S = 0.3
"""What was answered so long before a kill is in a spool; the log's thread needs .02 s to it."""


@pytest.mark.slow
def test_workers_that_are_killed_come_back_and_what_they_logged_is_there(models: Path) -> None:
    log = models.parent / "log"
    kills: list[float] = []
    times: dict[str, float] = {}
    with serve(models, "--workers", 2, "--log", log) as server:
        server.wait_ready()
        for killed in range(3):
            eventually(lambda: events(models).count("started") == 2 + killed)  # noqa: B023
            requests = Requests(server, [best_first(models / "1")], 500, f"{killed}-")
            requests.start()
            eventually(lambda: requests.answered > 100)  # noqa: B023
            kills.append(time.monotonic())
            os.kill(workers_of(server)[0], signal.SIGKILL)
            requests.join()
            assert not requests.wrong and requests.broken <= 50
            assert requests.answered + requests.broken == 500
            times |= requests.times
        # The worker in the place of the last one takes up its spool.
        eventually(lambda: events(models).count("started") == 5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    counts = Counter(row["request_id"] for row in logged(log))
    lost = times.keys() - counts.keys()
    recent = {name for name, at in times.items() if any(0 < k - at < LOST_S for k in kills)}
    assert lost <= recent
    # A request whose answer was broken off may be there, too.
    assert set(counts.values()) == {len(ITEMS)} and len(counts) <= 3 * 500
    assert "ended by signal SIGKILL" in (models.parent / "stderr").read_text()


@pytest.mark.slow
def test_a_supervisor_that_is_killed_takes_its_workers_with_it_in_order(models: Path) -> None:
    with serve(models, "--workers", 2) as server:
        server.wait_ready()
        workers = workers_of(server)
        requests = Requests(server, [best_first(models / "1")], 300)
        requests.start()
        eventually(lambda: requests.answered > 50)
        server.process.kill()
        server.process.wait(10)
        requests.join()
        assert not requests.wrong
        eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), 40)


@pytest.mark.slow
def test_a_full_disk_under_the_temporary_files_ends_no_worker(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [best_first(models / "1")]
    with small_disk(models.parent / "disk", "32m") as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        with serve(models, "--workers", 2) as server:
            server.wait_ready()
            eventually(lambda: events(models).count("started") == 2)
            workers = workers_of(server)
            with contextlib.suppress(OSError), (disk / "all of it").open("wb", 0) as file:
                while True:
                    file.write(bytes(1 << 16))
            before = figure(server, 'widedeep_requests_total{route="/v1/rank",status="200"}')
            for _ in range(4):
                Requests(server, right, 250).done()
            assert workers_of(server) == workers
            time.sleep(0.5)  # figures of other processes are those of a moment ago
            after = figure(server, 'widedeep_requests_total{route="/v1/rank",status="200"}')
            assert after - before == 1000
            publish(models, "2", seed=2)
            eventually(lambda: ask(server)["scores"] == best_first(models / "2"))
            # A worker that comes anew finds no room for its figures, until there is.
            os.kill(workers[0], signal.SIGKILL)
            eventually(lambda: "SIGKILL" in (models.parent / "stderr").read_text())
            (disk / "all of it").unlink()
            eventually(lambda: events(models).count("started") >= 3)
            Requests(server, [best_first(models / "2")], 100).done()


@pytest.mark.slow
def test_temporary_files_that_are_taken_away_end_no_worker(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = models.parent / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with serve(models, "--workers", 2) as server:
        server.wait_ready()
        eventually(lambda: events(models).count("started") == 2)
        (metrics,) = temporary.glob("widedeep-metrics-*")
        shutil.rmtree(metrics)
        Requests(server, [best_first(models / "1")]).done()
        assert server.call("GET", "/metrics").status == 200
        publish(models, "2", seed=2)
        eventually(lambda: ask(server)["scores"] == best_first(models / "2"))
        os.kill(workers_of(server)[0], signal.SIGKILL)
        eventually(lambda: events(models).count("started") == 3)
        Requests(server, [best_first(models / "2")], 100).done()


def test_a_full_disk_under_standard_error_costs_no_answer(models: Path) -> None:
    (models.parent / "stderr").symlink_to("/dev/full")
    with serve(models, "--log-requests", "all") as server:
        server.wait_ready()
        Requests(server, [best_first(models / "1")]).done()
        assert server.call("POST", "/v1/rank", {"user": 3}).status in (400, 422)
        assert server.call("GET", "/none").status == 404
        publish(models, "2", seed=2)
        eventually(lambda: ask(server)["scores"] == best_first(models / "2"))
        told = status(server)
        assert told["ready"] and told["log_lines_lost"] >= REQUESTS
        assert all(each["errors"] == 0 for each in told["threads"])
