"""bench serve: a real server under a short load, and what is said of it."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from tests.command_line import Run
from tests.serving.versions import ITEMS, publish, write_items
from widedeep.cli.bench import rank_bodies
from widedeep.errors import ConfigError
from widedeep.serving.load import Target, run_load


@pytest.mark.slow
def test_a_server_under_load(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = filter(None, [str(Path("src").resolve()), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    publish(tmp_path / "apps", "1", seed=1)
    items = write_items(tmp_path / "items.parquet")
    words = ["bench", "serve", tmp_path / "apps", "--items", items, "--item-id", "app"]
    ran = run(*words, "--seconds", "1", "--connections", "1", "3", "--json")
    assert ran.code == 0, ran.err
    one, three = json.loads(ran.out)["runs"]
    assert (one["connections"], three["connections"]) == (1, 3)
    for found in (one, three):
        assert found["failures"] == {}
        assert found["requests_per_s"] == pytest.approx(found["requests"] / found["seconds"])
        assert 0 < found["p50_ms"] <= found["p99_ms"]
        # Little's law: as many are under way as there are connections.
        assert found["p50_ms"] * found["requests_per_s"] / 1e3 < 1.5 * found["connections"]
    shown = run(*words, "--seconds", "1", "--connections", "2", "--candidates", "5")
    assert shown.code == 0
    assert "CPU ms/request" in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m", "--items", "x.parquet"], "go together"),
        (["m", "--items", "none.parquet", "--item-id", "app"], "no such file"),
        (["m", "--seconds", "3600"], "at most 60 seconds"),
    ],
)
def test_misuse(run: Run, words: list[str], said: str) -> None:
    ran = run("bench", "serve", *words)
    assert ran.code == 2
    assert said in ran.err


def test_bodies_hold_stored_users_and_candidates_of_the_catalogue() -> None:
    stored = [{"user": {"age": n}, "item": {"app": f"a{n}", "price": n}} for n in range(3)]
    bodies = [json.loads(body) for body in rank_bodies(stored, ITEMS, 7)]
    assert [body["user"]["age"] for body in bodies[:4]] == [0, 1, 2, 0]
    assert all(len(body["candidates"]) == 7 for body in bodies)
    assert {name for body in bodies for name in body["candidates"]} == set(ITEMS)
    inline = json.loads(rank_bodies(stored, None, 4)[0])["items"]
    assert [f"a{price}" for price in inline["price"]] == inline["app"]
    with pytest.raises(ConfigError, match="no stored requests"):
        rank_bodies([], ITEMS, 1)


def test_every_failure_is_counted() -> None:
    """A server that answers 200, 503, and then breaks the connection, over and over."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            with caller:
                for head in (b"200 OK", b"503 Busy"):
                    if not caller.recv(1 << 16):
                        break
                    caller.sendall(b"HTTP/1.1 " + head + b"\r\nContent-Length: 2\r\n\r\n")
                    caller.sendall(b"{}")
                caller.recv(1 << 16)

    threading.Thread(target=serve, daemon=True).start()
    port = listener.getsockname()[1]
    found = run_load(Target(port=port), [b"{}"], connections=1, seconds=0.6, warm_up_s=0)
    listener.close()
    assert set(found.failures) == {503, 0}
    counts = [found.requests, found.failures[503], found.failures[0]]
    assert max(counts) - min(counts) <= 1
    with pytest.raises(ConfigError, match="no server answers"):
        run_load(Target(port=port), [b"{}"], connections=1, seconds=0.1)
    with pytest.raises(ConfigError, match="this machine alone"):
        Target(port=80, host="example.org")
