"""Publishing: only what passed, whole or not at all, with its history."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Run
from tests.gate.market import market, train
from widedeep.bundle import Bundle
from widedeep.errors import BundleError, ConfigError
from widedeep.gate import GateConfig, Verdict, validate, verdict_path
from widedeep.publish import publish, read_lineage

CONFIG = GateConfig(unit="user", slices=(), max_latency_ms=10_000.0)

# Publishes in children that die at the n-th of the operations that change the disk.
KILLED = """
import os, shutil, sys
from pathlib import Path
from widedeep import directory
from widedeep.publish import places, publish

candidate, models = sys.argv[1:]

def dying(function, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return function(*arguments, **options)
    return call

point = 0
while True:
    child = os.fork()
    if child == 0:
        left = [point]
        for owner, name in (
            (places.shutil, "copyfile"), (places.os, "rename"), (places.os, "fsync"),
            (places.os, "mkdir"), (places, "write_text_whole"), (places, "fsync_path"),
        ):
            setattr(owner, name, dying(getattr(owner, name), left))
        publish(candidate, models)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    versions = sorted(p.name for p in Path(models).iterdir() if p.name[0] not in "._")
    print(code, *versions, flush=True)
    if code == 0:
        break
    point += 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle that passed the gate, and one that did not."""
    folder = tmp_path_factory.mktemp("made")
    good = train(market(4000, 1), folder / "good").path
    recent = market(4000, 2)
    validate(good, None, recent, config=CONFIG).save(verdict_path(good))
    bad = folder / "bad"
    shutil.copytree(good, bad)
    strict = GateConfig(unit="user", slices=(), min_rows=10_000)
    validate(bad, good, recent, config=strict).save(verdict_path(bad))
    return {"good": good, "bad": bad}


def versions(models: Path) -> list[str]:
    return sorted(p.name for p in models.iterdir() if p.name[0] not in "._")


def test_what_passed_is_published_with_its_history(made: dict[str, Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = publish(made["good"], models)
    assert (first.version, first.parent) == ("1", None)
    assert publish(made["good"], models).parent == "1"
    assert versions(models) == ["1", "2"]
    for version in ("1", "2"):
        assert Bundle.load(models / version).score([{"country": "de"}]).shape == (1,)
    lineage = read_lineage(models)
    assert [entry.version for entry in lineage] == ["1", "2"]
    verdict = Verdict.load(verdict_path(made["good"]))
    record = lineage[1].record
    assert record is not None
    assert record.bundle == verdict.candidate["sha256"]
    assert record.verdict is not None and record.verdict["passed"]
    assert record.config["train"]["batch_size"] == 256


def test_what_did_not_pass_is_not(made: dict[str, Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    with pytest.raises(BundleError, match=r"the gate stopped it: .*rows"):
        publish(made["bad"], models)
    unjudged = tmp_path / "unjudged"
    shutil.copytree(made["good"], unjudged)
    with pytest.raises(BundleError, match="verdict"):
        publish(unjudged, models)
    other = train(market(2000, 3), tmp_path / "other").path
    with pytest.raises(BundleError, match="the verdict is of another bundle"):
        publish(other, models, verdict=verdict_path(made["good"]))
    with pytest.raises(ConfigError, match="force without a reason"):
        publish(made["bad"], models, force=True)
    with pytest.raises(ConfigError, match="a reason without force"):
        publish(made["good"], models, reason="because")
    assert not models.exists() or versions(models) == []
    record = publish(made["bad"], models, force=True, reason="the holidays")
    assert record.forced == "the holidays"
    assert json.loads((models / "_published/1.json").read_text())["forced"] == "the holidays"


def test_killed_at_any_point(made: dict[str, Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(made["good"], models)
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(made["good"]), str(models)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) > 15, "it dies at each file that is copied, synced or renamed"
    assert lines[-1].startswith("0 ")
    for line in lines:
        for version in line.split()[1:]:  # whatever is there is whole
            assert Bundle.load(models / version)
        assert "1" in line.split()[1:]
    # What the dead left half-made is gone.
    assert not list(models.glob(".publish-*"))
    recorded = {entry.version for entry in read_lineage(models) if entry.record is not None}
    assert recorded >= set(versions(models))


def test_two_at_once(made: dict[str, Path], tmp_path: Path) -> None:
    script = "import sys; from widedeep.publish import publish; publish(*sys.argv[1:])"
    command = [sys.executable, "-c", script, str(made["good"]), str(tmp_path / "models")]

    def call(_: int) -> int:
        return subprocess.run(command, check=False).returncode

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, range(3))) == [0, 0, 0]
    assert versions(tmp_path / "models") == ["1", "2", "3"]
    assert [entry.record.parent for entry in read_lineage(tmp_path / "models") if entry.record] == [
        None,
        "1",
        "2",
    ]


def test_a_full_disk(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    publish(made["good"], models)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BundleError, match=r"No space left on device.*are as they were"):
        publish(made["good"], models)
    assert versions(models) == ["1"]
    assert not [p for p in models.iterdir() if p.is_dir() and p.name.startswith(".")]


def test_behind_a_url(made: dict[str, Path], tmp_path: Path) -> None:
    models = f"memory://{tmp_path.name}/models"
    assert [publish(made["good"], models).version for _ in range(2)] == ["1", "2"]
    assert [entry.version for entry in read_lineage(models)] == ["1", "2"]
    import fsspec

    place = fsspec.filesystem("memory")
    place.get(f"/{tmp_path.name}/models/2", str(tmp_path / "copy"), recursive=True)
    found = next(path.parent for path in (tmp_path / "copy").rglob("manifest.json"))
    assert Bundle.load(found)


def test_from_the_command_line(run: Run, made: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    bundle = tmp_path / "bundle"
    shutil.copytree(made["good"], bundle)
    pq.write_table(market(4000, 5), tmp_path / "recent.parquet")
    data = ("--data", tmp_path / "recent.parquet", "--set", "gate.max_latency_ms=10000")
    code, out, _ = run("validate", bundle, *data)
    assert code == 0
    assert "it may serve" in out
    page = Path(f"{verdict_path(bundle)}").with_suffix(".html")
    assert page.exists() or list(tmp_path.glob("*.html"))
    models = tmp_path / "models"
    assert run("publish", bundle, models).code == 0
    code, out, _ = run("validate", bundle, "--against", models, *data, "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)
    assert run("publish", bundle, models).code == 0
    code, out, _ = run("inspect", models)
    assert code == 0
    assert "1" in out and "2" in out
    code, _, err = run("validate", bundle, *data, "--set", "gate.min_rows=1000000")
    assert code == 1
    code, _, err = run("publish", bundle, models)
    assert (code, "Traceback" in err) == (2, False) or code == 1
    code, _, err = run("validate", bundle, "--against", tmp_path / "gone", *data)
    assert code == 2
    assert "gone" in err
    assert os.fspath(tmp_path) in err
