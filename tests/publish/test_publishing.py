"""Publishing: only what passed, whole or not at all, with its history."""

from __future__ import annotations

import dataclasses
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
from tests.gate.market import market, rewritten, train
from widedeep.bundle import Bundle
from widedeep.errors import BundleError, ConfigError, DataError
from widedeep.gate import GateConfig, Verdict, validate, verdict_path
from widedeep.publish import publish, read_lineage

CONFIG = GateConfig(unit="user", slices=(), max_latency_ms=10_000.0)

# Publishes in children that die at the n-th of the operations that change the disk.
KILLED = """
import os, shutil, sys
from pathlib import Path
from widedeep import files as directory
from widedeep.publish import publish
from widedeep.publish import storage as places

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
        publish(candidate, models, force=True, reason="once more")
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


AGAIN: Any = {"force": True, "reason": "once more"}


def nudge(bundle: Bundle, path: Path, by: float = 1e-6) -> Bundle:
    """A model as good as another, of other bytes."""

    def move(weights: dict[str, Any]) -> None:
        weights["bias"] += by

    return rewritten(bundle, path, move)


def against(candidate: Path, serving: Path | None) -> Verdict:
    """The gate's verdict; it passes."""
    verdict = validate(candidate, serving, market(4000, 2), config=CONFIG)
    assert verdict.passed, verdict.reasons
    return verdict


def versions(models: Path) -> list[str]:
    return sorted(p.name for p in models.iterdir() if p.name[0] not in "._")


def test_what_passed_is_published_with_its_history(made: dict[str, Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = publish(made["good"], models)
    assert (first.version, first.parent) == ("1", None)
    assert publish(made["good"], models, **AGAIN).parent == "1"
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
    script = (
        "import sys; from widedeep.publish import publish; "
        "publish(*sys.argv[1:], force=True, reason='once more')"
    )
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
    with pytest.raises(BundleError, match=r"No space left on device.*are unchanged"):
        publish(made["good"], models, **AGAIN)
    assert versions(models) == ["1"]
    assert not [p for p in models.iterdir() if p.is_dir() and p.name.startswith(".")]


def test_behind_a_url(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = f"memory://{tmp_path.name}/models"
    assert publish(made["good"], models).version == "1"
    with pytest.raises(BundleError, match="was published as version 1"):
        publish(made["good"], models, verdict=against(made["good"], made["good"]))
    assert publish(made["good"], models, **AGAIN).version == "2"
    assert [entry.version for entry in read_lineage(models)] == ["1", "2"]
    import fsspec

    place = fsspec.filesystem("memory")
    place.get(f"/{tmp_path.name}/models/2", str(tmp_path / "copy"), recursive=True)
    found = next(path.parent for path in (tmp_path / "copy").rglob("manifest.json"))
    assert Bundle.load(found)

    class ConnectionLost(Exception):
        """As the storage libraries' own, no OSError."""

    def lost(*_: Any, **__: Any) -> Any:
        raise ConnectionLost("no answer")

    for name in ("ls", "cat_file", "put_file"):
        with monkeypatch.context() as patch:
            patch.setattr(type(place), name, lost)
            with pytest.raises(DataError, match=r"models.*: cannot be read \(no answer\); check"):
                publish(made["good"], models, **AGAIN)
    assert publish(made["good"], models, **AGAIN).version == "4"  # 3 was not written whole


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
    code, _, err = run("publish", bundle, models)
    assert (code, "was published as version 1" in err) == (2, True)
    nudge(Bundle.load(bundle), tmp_path / "next")
    code, out, _ = run("validate", tmp_path / "next", *data)
    code, _, err = run("publish", tmp_path / "next", models)
    assert (code, "compared the bundle with nothing" in err, "--against" in err) == (2, True, True)
    assert run("validate", tmp_path / "next", "--against", models, *data).code == 0
    assert run("publish", tmp_path / "next", models).code == 0
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


@pytest.mark.parametrize("models", ["folder", "memory://{}/models"])
def test_what_was_compared_with_nothing_replaces_nothing(
    made: dict[str, Path], tmp_path: Path, models: str
) -> None:
    place = models.format(tmp_path.name) if "://" in models else str(tmp_path / models)
    publish(made["good"], place)
    second = nudge(Bundle.load(made["good"]), tmp_path / "second").path
    alone = against(second, None)
    with pytest.raises(BundleError, match=r"version 1 serves.* compared the bundle with nothing"):
        publish(second, place, verdict=alone)
    assert publish(second, place, verdict=against(second, made["good"])).parent == "1"
    # By now version 2 serves, and a verdict against version 1 is of yesterday.
    third = nudge(Bundle.load(made["good"]), tmp_path / "third", 2e-6).path
    with pytest.raises(BundleError, match=r"another model .* than the one in service, version 2"):
        publish(third, place, verdict=against(third, made["good"]))
    forced = publish(third, place, verdict=against(third, None), force=True, reason="an emergency")
    assert (forced.version, forced.parent, forced.forced) == ("3", "2", "an emergency")
    lineage = read_lineage(place)
    assert [(e.version, e.depth, e.serves) for e in lineage] == [
        ("1", 0, False),
        ("2", 1, False),
        ("3", 2, True),
    ]


def test_after_a_rollback(made: dict[str, Path], tmp_path: Path, run: Run) -> None:
    """What was withdrawn comes back by force alone; the next one follows what serves."""
    models = tmp_path / "models"
    publish(made["good"], models)
    second = nudge(Bundle.load(made["good"]), tmp_path / "second").path
    verdict = against(second, made["good"])
    publish(second, models, verdict=verdict)
    assert run("rollback", models).code == 0
    with pytest.raises(BundleError, match="was published as version 2; nothing is published"):
        publish(second, models, verdict=verdict)
    third = nudge(Bundle.load(made["good"]), tmp_path / "third", 2e-6).path
    with pytest.raises(BundleError, match="than the one in service, version 1"):
        publish(third, models, verdict=against(third, second))
    record = publish(third, models, verdict=against(third, made["good"]))
    assert (record.version, record.parent) == ("3", "1")
    shutil.rmtree(models / "2")  # its record tells of it all the same
    with pytest.raises(BundleError, match="was published as version 2"):
        publish(second, models, verdict=against(second, third))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"passed": True, "reasons": []}, "it was changed after it was written"),
        ({"data": {"rows": 0}}, "it was changed after it was written"),
        ({"sha256": None}, "it was changed after it was written"),
        ({"dry_run": None}, "it was changed after it was written"),
        ({"format": 1}, "format 1, expected 2"),
    ],
)
def test_a_verdict_edited_by_hand(
    made: dict[str, Path], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    file = tmp_path / "verdict.json"
    against(made["good"], None).save(file)
    value = json.loads(file.read_text())
    value.update(change)
    value["notes"] = ["looks good to me"]
    file.write_text(json.dumps(value))
    with pytest.raises(BundleError, match=told):
        publish(made["good"], tmp_path / "models", verdict=file)
    for key in ("quality", "candidate", "passed", "serving"):
        value = json.loads(verdict_path(made["good"]).read_text())
        del value[key]
        file.write_text(json.dumps(value))
        with pytest.raises(BundleError, match="not a verdict"):
            publish(made["good"], tmp_path / "models", verdict=file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": {"rows": 0}}, "data: rows is not defined"),
        ({"data": {}}, "data: rows is not defined"),
        ({"dry_run": {}}, "dry run is not defined"),
        ({"quality": {}}, "every head is not defined"),
        ({"quality": {"score": {"candidate": {}, "changes": {}}}}, "log_loss of the candidate"),
    ],
)
def test_a_verdict_made_by_hand_lets_nothing_pass(
    made: dict[str, Path], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    verdict = dataclasses.replace(against(made["good"], None), **change)
    with pytest.raises(BundleError, match=told):
        publish(made["good"], tmp_path / "models", verdict=verdict)
    assert not (tmp_path / "models/1").exists()


def test_bytes_that_changed_after_the_verdict(made: dict[str, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made["good"], bundle)
    verdict = against(bundle, None)
    nudge(Bundle.load(made["good"]), tmp_path / "other")
    shutil.rmtree(bundle)
    shutil.copytree(tmp_path / "other", bundle)
    with pytest.raises(BundleError, match="the verdict is of another bundle"):
        publish(bundle, tmp_path / "models", verdict=verdict)
    weights = bundle / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        publish(bundle, tmp_path / "models", verdict=verdict)
