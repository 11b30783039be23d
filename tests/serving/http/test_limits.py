"""Queue, deadlines, keys, rates: what the server refuses, and how it says so."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.serving.http.calls import Local
from tests.serving.versions import ITEMS, USER, publish
from widedeep.errors import ConfigError
from widedeep.serving.config import find_models
from widedeep.serving.http import Keys, Settings
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import Scheduler
from widedeep.serving.registry import Registry

ASK = {"user": USER, "candidates": ITEMS}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[keys.shop]\nsha256 = "{digest("shop key")}"\nrate = 3\n'
        f'[keys.site]\nsha256 = "{digest("site key")}"\n'
        f'[keys.operator]\nsha256 = "{digest("root key")}"\nadmin = true\n'
    )
    return path


def test_a_full_queue_refuses_and_recovers(registry: Registry) -> None:
    local = Local({"apps": registry}, settings=Settings(queue=2, request_log="none"))
    slots = local.service.slots
    assert slots.enter() and slots.enter()
    answer = local.post("/v1/rank", ASK)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert local.get("/health/ready").status == 200  # probes do not wait in the queue
    slots.leave()
    assert local.post("/v1/rank", ASK).status == 200
    assert local.post("/v1/rank", b"{").status == 400
    assert slots.inside == 1  # no outcome keeps its slot


def test_deadlines(local: Local) -> None:
    late = local.post("/v1/rank", ASK, {"X-Request-Timeout-Ms": "0.0001"})
    assert late.status == 504
    assert "deadline" in late.json["error"]
    assert local.post("/v1/rank", ASK, {"X-Request-Timeout-Ms": "10000"}).status == 200


def test_long_computations_run_beside_the_loop() -> None:
    scheduler = Scheduler(threads=1, inline_s=0.002)

    async def run() -> tuple[int, bool]:
        far = time.monotonic() + 60
        for _ in range(3):  # it learns that a row takes a millisecond
            await scheduler.run("slow", 20, far, lambda: time.sleep(0.02))
        ticked = threading.Event()

        async def tick() -> None:
            for _ in range(6):
                await asyncio.sleep(0.005)
            ticked.set()

        other = asyncio.create_task(tick())
        beside = await scheduler.run("slow", 200, far, lambda: ticked.wait(20))
        await other
        start = time.monotonic()
        with pytest.raises(HttpError) as late:
            await scheduler.run("slow", 200, start + 0.01, lambda: time.sleep(0.1))
        return late.value.status, beside

    assert asyncio.run(run()) == (504, True)
    scheduler.close()


def test_keys(registry: Registry, keys: Path) -> None:
    local = Local({"apps": registry}, keys=Keys.load(keys))

    def ask(**headers: str) -> int:
        return local.post("/v1/rank", ASK, headers).status

    assert local.get("/health/ready").status == 200
    assert ask() == 401
    assert ask(authorization="Bearer wrong") == 401
    assert ask(authorization="Bearer root key") == 403
    assert ask(authorization="Bearer site key") == 200
    assert [ask(**{"x-api-key": "shop key"}) for _ in range(4)] == [200, 200, 200, 429]
    refused = local.post("/v1/rank", ASK, {"x-api-key": "shop key"})
    assert refused.headers["retry-after"] == "1"
    assert "'shop'" in refused.json["error"]
    assert ask(authorization="Bearer site key") == 200


def test_admin_endpoints(tmp_path: Path, keys: Path) -> None:
    root = tmp_path / "apps"
    publish(root, "1", seed=1)
    publish(root, "2", seed=2)
    admin = {"authorization": "Bearer root key", "host": "localhost"}
    site = {"authorization": "Bearer site key"}
    with Registry(root, poll_s=0.05) as registry:
        assert registry.wait_ready(60)
        closed = Local({"apps": registry}, keys=Keys.load(keys))
        assert closed.post("/admin/models/apps/rollback", {}, admin).status == 404

        settings = Settings(admin=True, keys=str(keys), request_log="none")
        local = Local({"apps": registry}, keys=Keys.load(keys), settings=settings)
        assert local.post("/admin/models/apps/rollback", {}, site).status == 403
        assert local.post("/v2/repository/models/apps/unload", {}, site).status == 403

        def serving() -> str:
            answer = local.post("/v1/rank", {"candidates": []}, site)
            return str(answer.json["model_version"])

        assert serving() == "2"
        rolled = local.post("/admin/models/apps/rollback", {}, admin)
        assert rolled.json == {"serving": "1"}
        assert local.post("/admin/models/apps/load", {"version": "1"}, admin).status == 200
        assert serving() == "1"
        assert local.post("/admin/models/apps/load", {"version": "7"}, admin).status == 404
        wrong = local.post("/admin/models/apps/canary", {"version": "2", "share": 7}, admin)
        assert wrong.status == 400


def test_mistakes_in_files_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for text, message in (
        ("", "got no table"),
        ("[keys.a]\nsha256 = 'x'", "64 hexadecimal digits"),
        (f"[keys.a]\nsha256 = '{digest('k')}'\nrates = 1", "did you mean 'rate'?"),
        (f"[keys.a]\nsha256 = '{digest('k')}'\nrate = -1", "got rate=-1"),
        ("[keys", "write it as TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            Keys.load(path)
    with pytest.raises(ConfigError, match="without keys"):
        Settings(admin=True)
    with pytest.raises(ConfigError, match="without a certificate"):
        Settings(tls_key="key.pem")


def test_which_models_a_path_holds(tmp_path: Path) -> None:
    publish(tmp_path / "ads", "1", seed=1)
    publish(tmp_path / "apps", "20", seed=1)
    assert find_models([str(tmp_path)]) == {"ads": tmp_path / "ads", "apps": tmp_path / "apps"}
    assert find_models([str(tmp_path / "ads")]) == {"ads": tmp_path / "ads"}
    assert find_models([f"a={tmp_path / 'ads' / '1'}"]) == {"a": tmp_path / "ads" / "1"}
    with pytest.raises(ConfigError, match="two models named 'ads'"):
        find_models([str(tmp_path), str(tmp_path / "ads")])
    with pytest.raises(ConfigError, match="no such directory"):
        find_models([str(tmp_path / "none")])
    for name in ("a:b", "a/b", os.fsdecode(b"ad\xe9")):
        with pytest.raises(ConfigError, match="it stands in paths"):
            find_models([f"{name}={tmp_path / 'ads'}"])


def test_metrics_and_logs(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(1)  # chooses which requests are looked at
    local = Local({"apps": registry}, settings=Settings(request_log="all"))
    for _ in range(100):
        local.post("/v1/rank", ASK | {"candidates": ["maps", "no one's"], "user": {"user": "?"}})
    local.post("/v1/rank", b"{")
    text = local.get("/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(lines['widedeep_requests_total{route="/v1/rank",status="200"}']) == 100
    assert float(lines['widedeep_requests_total{route="/v1/rank",status="400"}']) == 1
    of = '{model="apps",version="1"}'
    assert float(lines[f"widedeep_scores_total{of}"]) == 200
    mean = float(lines[f"widedeep_scores_sum{of}"]) / 200
    one = local.post("/v1/rank", {"candidates": ["maps", "no one's"], "user": {"user": "?"}}).json
    assert mean == pytest.approx(sum(one["scores"]) / 2)
    assert float(lines['widedeep_unknown_items_total{model="apps"}']) == 100
    seen = lines.get('widedeep_sampled_unseen_total{model="apps",feature="użytkownik 👤"}', "0")
    seen = lines.get('widedeep_sampled_unseen_total{feature="użytkownik 👤",model="apps"}', seen)
    assert float(seen) > 0
    assert 'widedeep_request_seconds_bucket{le="+Inf",route="/v1/rank"} 101.0' in text
    assert 'widedeep_version_state{model="apps",state="ready",version="1"} 1.0' in text
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert logged[0]["rows"] == 2
    assert (logged[100]["status"], "truncated" in logged[100]["error"]) == (400, True)


def test_a_bug_is_a_500_that_is_counted_and_told_to_the_operator(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("secret " + os.environ.get("HOME", ""))

    local = Local({"apps": registry}, on_ranked=broken, settings=Settings(request_log="errors"))
    answer = local.post("/v1/rank", ASK | {"request_id": "r1"})
    assert answer.status == 500
    assert "secret" not in answer.body.decode()
    assert "r1" in answer.json["error"]
    assert "widedeep_bugs_total 1.0" in local.get("/metrics").body.decode()
    assert "ZeroDivisionError" in capsys.readouterr().err
