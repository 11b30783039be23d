"""A run that follows a folder and publishes: from the command line, killed anywhere, taken up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ads import ads_table, write_ads
from tests.command_line import Run
from widedeep.bundle import Bundle
from widedeep.cli.main import main
from widedeep.config import load_follow_config
from widedeep.errors import ConfigError
from widedeep.publish import read_lineage
from widedeep.training.config import FollowConfig

FOLLOW = """
[follow]
publish = "models"
export_rows = 1000
judge_rows = 1000

[gate]
slices = []
max_latency_ms = 10000.0
max_calibration_rise = 1.0
max_score_psi = 10.0
min_positives = 20
"""
WORDS = ("--follow", "new", "--idle", "0.3", "--poll", "0.05")

# Follows in children that die at the n-th of some operations, each on a copy of the run; then goes
# on in another child, to the end. Prints what serves after each.
KILLED = """
import os, shutil, sys
from pathlib import Path
from widedeep import files as directory
from widedeep.cli.main import main
from widedeep.publish import continuous as live
from widedeep.publish import storage as places

steps = [(live, "validate"), (live, "publish"), (live, "write_text_whole")]
disk = [
    (os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "copyfile"), (directory, "_exchange"),
]
owners, points = {"steps": steps, "disk": disk}[sys.argv[1]], map(int, sys.argv[2:])
words = ["train", "ads.toml", "--resume", "--follow", "new", "--idle", "0.1", "--poll", "0.02"]

def dying(function, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return function(*arguments, **options)
    return call

def child(place, die_at=None):
    made = os.fork()
    if made:
        return os.waitstatus_to_exitcode(os.waitpid(made, 0)[1])
    os.chdir(place)
    left = [die_at]
    if die_at is not None:
        for owner, name in owners:
            setattr(owner, name, dying(getattr(owner, name), left))
    os._exit(main(words))

def versions(place):
    return sorted(p.name for p in Path(place).glob("models/*") if p.name[0] not in "._")

for point in points:
    place = f"at{point}"
    shutil.copytree("base", place)
    code = child(place, point)
    killed = versions(place)
    if code not in (0, 9):
        sys.exit(f"point {point}: code {code}")
    done = code == 0
    if not done and child(place) != 0:
        sys.exit(f"point {point}: does not go on")
    print("at", point, code, ",".join(killed) or "none", ",".join(versions(place)), flush=True)
    if done:
        break
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and a folder of two shards to follow."""
    place = write_ads(tmp_path_factory.mktemp("base"))
    with (place / "ads.toml").open("a") as file:
        file.write(FOLLOW)
    (place / "new").mkdir()
    for i in range(2):
        pq.write_table(ads_table(1000, 10 + i), place / f"new/{i}.parquet")
    words = ["train", str(place / "ads.toml"), "--out", str(place / "runs/ads")]
    assert main(words) == 0
    return place


@pytest.fixture
def copy(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "copy"
    shutil.copytree(base, place)
    monkeypatch.chdir(place)
    return place


def published(place: Path) -> dict[str, str]:
    lineage = [entry for entry in read_lineage(place / "models") if entry.exists]
    return {entry.version: entry.record.bundle for entry in lineage if entry.record}


def test_it_publishes_by_itself(run: Run, copy: Path) -> None:
    code, out, err = run("train", "ads.toml", "--resume", *WORDS)
    assert code == 0
    assert "published 2 of 2 candidates in models" in out
    assert err.count("newer ones: published as version") == 2
    assert list(published(copy)) == ["1", "2"]
    code, out, _ = run("inspect", "models")
    assert code == 0
    *_, newest, _ = out.splitlines()  # the last line names the next command
    assert newest.split()[-2:] == ["passed", "serves"]
    # Shards that land later, and the attempts of before.
    pq.write_table(ads_table(1000, 20), copy / "new/2.parquet")
    code, out, _ = run("train", "ads.toml", "--resume", *WORDS, "--json")
    attempts = json.loads(out)["attempts"]
    found = [(a["rows"], a["version"]) for a in attempts]
    assert found == [(0, "1"), (1000, "2"), (2000, "3")]
    assert run("train", "ads.toml", "--force").code == 0
    left = {path.name for path in (copy / "runs/ads").iterdir()}
    assert not any(name.startswith("candidate") or name == "stream" for name in left)


def test_shards_learned_in_runs_of_steps_have_the_bits_of_their_steps(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (4096, 1):  # batches of 64: as many steps as fit into so many rows, or one
        place = tmp_path / f"{at_once}"
        shutil.copytree(base, place)
        monkeypatch.chdir(place)
        monkeypatch.setattr("widedeep.training.run.BLOCK_ROWS", at_once)
        assert run("train", "ads.toml", "--resume", *WORDS).code == 0
        newest = place / "models/2"
        found.append((newest / "weights.safetensors").read_bytes())
    assert found[0] == found[1]


def test_where_and_when(run: Run, copy: Path) -> None:
    words = ("train", "ads.toml", "--resume", *WORDS)
    late = ("--publish", "elsewhere", "--export-rows", "2000", "--judge-rows", "1000")
    code, out, _ = run(*words, *late, "--json")
    assert [a["rows"] for a in json.loads(out)["attempts"]] == [0]
    assert (copy / "elsewhere/1").is_dir()
    assert not (copy / "models").exists()
    code, _, err = run(*words, "--set", "gate.min_rows=5000")
    assert (code, "judge_rows=1,000" in err) == (2, True)
    code, _, err = run("train", "ads.toml", "--force", *WORDS, "--set", "gate.min_rows=5000")
    assert (code, "judge_rows=1,000" in err, "epoch" in err) == (2, True, False)
    code, _, err = run(*words, "--publish", "runs/ads/bundle")
    assert (code, "is itself a bundle" in err) == (2, True)
    code, _, err = run("train", "ads.toml", "--resume", "--publish", "models")
    assert (code, "got --publish without a folder to follow" in err) == (2, True)
    code, _, err = run(*words, "--set", "follow.judge_row=5")
    assert (code, "judge_rows" in err) == (2, True)


def test_layers_that_cannot_grow_are_told_of_before_training(run: Run, copy: Path) -> None:
    counts = "features.indicator.job_counts.source=job"
    code, _, err = run("train", "ads.toml", "--force", *WORDS, "--grow", "--set", counts)
    assert (code, "source 'job' are learned and grow" in err) == (2, True)
    assert "epoch" not in err
    assert (copy / "runs/ads/metrics.json").exists()


def test_the_section(copy: Path) -> None:
    assert load_follow_config("ads.toml").publish == "models"
    assert load_follow_config(copy / "ads.toml").publish == str(copy / "models")
    sets = ["follow.publish=s3://b/m", "gate.min_rows=5"]
    found = load_follow_config("ads.toml", sets, options={"judge_rows": 7})
    assert (found.publish, found.judge_rows, found.export_rows) == ("s3://b/m", 7, 1000)
    (copy / "bare.toml").write_text("")
    assert load_follow_config("bare.toml") == FollowConfig()
    with pytest.raises(ConfigError, match="'models' to publish to, but not when"):
        load_follow_config("bare.toml", options={"publish": "models"})
    with pytest.raises(ConfigError, match="publish='', expected a directory or its URL"):
        load_follow_config("bare.toml", ["follow.publish=''"])
    for key, value in (("export_rows", 0), ("export_minutes", 0.0), ("judge_rows", 0)):
        with pytest.raises(ConfigError, match=key):
            FollowConfig(**{key: value})  # type: ignore[arg-type]


def test_the_command_that_goes_on(run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it waits for enough rows to judge by: nothing is lost."""
    from widedeep.data import paths as follow

    def pressed(seconds: float) -> None:
        raise KeyboardInterrupt

    words = ("--judge-rows", "5000", "--export-rows", "1000000")
    with monkeypatch.context() as patched:
        patched.setattr(follow.time, "sleep", pressed)
        code, _, err = run("train", "ads.toml", "--resume", *WORDS, *words)
    assert code == 130
    on = "--follow new --poll 0.05 --idle 0.3 --export-rows 1000000 --judge-rows 5000"
    assert on in err
    for i in (2, 3, 4):
        pq.write_table(ads_table(1000, 20 + i), copy / f"new/{i}.parquet")
    code, out, _ = run("train", "ads.toml", "--resume", *WORDS, *words, "--json")
    found = json.loads(out)
    assert [row["shard"] for row in found["shards"]] == [f"{i}.parquet" for i in range(5)]
    assert [(a["rows"], a["judged"]) for a in found["attempts"]] == [(0, 5000)]


def killed(base: Path, tmp_path: Path, what: str, points: Iterable[int]) -> list[Any]:
    """Kill a run at some points, let it go on each time; return a line for each."""
    shutil.copytree(base, tmp_path / "base")
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, what, *map(str, points)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("at ")]
    whole = published(tmp_path / f"at{lines[-1][0]}")
    final = Bundle.load(tmp_path / f"at{lines[-1][0]}/runs/ads/bundle")
    for point, _, at_death, at_end in lines:
        place = tmp_path / f"at{point}"
        for version in [] if at_death == "none" else at_death.split(","):
            assert Bundle.load(place / "models" / version)
        # It came to the same: no version lost, none twice, no number left out, the very bytes.
        assert at_end == "1,2"
        assert list(published(place)) == at_end.split(",")
        assert list(published(place).values()) == list(whole.values())
        found = Bundle.load(place / "runs/ads/bundle")
        for name, values in final.weights.items():
            assert (found.weights[name] == values).all(), name
    return lines


@pytest.mark.slow  # tests/publish/test_live.py stops there, too, within one process
def test_killed_between_gate_and_publish(base: Path, tmp_path: Path) -> None:
    """Before and after it is published; the last is not killed."""
    lines = killed(base, tmp_path, "steps", [2, 3, 99])
    assert [at_death for _, _, at_death, _ in lines] == ["none", "1", "1,2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_point(base: Path, tmp_path: Path) -> None:
    """At every fifth of the operations on the disk: checkpoints, bundles, versions, logs."""
    lines = killed(base, tmp_path, "disk", range(0, 1000, 5))
    assert len(lines) > 15
    assert {at_death for _, _, at_death, _ in lines} == {"none", "1", "1,2"}
    assert lines[-1][2:] == ["1,2", "1,2"]


def test_metrics_are_those_of_the_bundle_that_is_there(run: Run, tmp_path: Path) -> None:
    """The stream teaches the opposite of the training file, so that old and new differ much."""
    rng = np.random.default_rng(4)

    def write(name: str, rows: int, sign: float) -> None:
        job = rng.choice(list("abcdef"), rows)
        code = np.array([ord(value) - 99.5 for value in job])
        label = (rng.random(rows) < 1 / (1 + np.exp(-sign * 2 * code))).astype(int)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"job": job, "y": label}), tmp_path / name)

    write("train.parquet", 1500, 1)
    write("test.parquet", 1500, 1)
    for number in range(3):
        write(f"new/{number}.parquet", 3000, -1)
    (tmp_path / "c.toml").write_text(
        f'[data]\ntrain = "{tmp_path}/train.parquet"\ntest = "{tmp_path}/test.parquet"\n'
        'label = "y"\nvalid_fraction = 0.2\n[features]\ncategorical = ["job"]\n'
        "[model]\nhidden_units = [4]\n[train]\nepochs = 2\nbatch_size = 64\nthreads = 1\n"
    )
    words = ["train", tmp_path / "c.toml", "--out", tmp_path / "run", "--json"]
    before = json.loads(run(*words).out)["metrics"]["test"]["auc"]
    document = json.loads(
        run(*words, "--resume", "--follow", tmp_path / "new", "--idle", 0.1, "--poll", 0.1).out
    )
    kept = json.loads((tmp_path / "run/metrics.json").read_text())
    bundle = Bundle.load(tmp_path / "run/bundle")
    words = ["evaluate", tmp_path / "run", tmp_path / "test.parquet", "--json"]
    evaluated = json.loads(run(*words).out)
    assert before > 0.8 and kept["test"]["auc"] < 0.3
    for metrics in (document["metrics"]["test"], bundle.metrics, evaluated["metrics"]):
        assert metrics["auc"] == pytest.approx(kept["test"]["auc"], abs=1e-9)
    assert document["metrics"]["valid"]["auc"] == kept["valid"]["auc"] < 0.3
    assert kept["stream"]["shards"] == 3 and kept["stream"]["rows"] == 9000
    assert kept["steps"] > 0
