"""Runs of the command line over ranks on Adult: whatever happens to them, the bits of one process.

`make test-ranks` runs them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WIDEDEEP = [sys.executable, "-m", "widedeep"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "-m"]
CONFIG = """
[data]
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"
label = "income"
[features]
numeric = ["age", "hours_per_week"]
categorical = ["workclass", "education", "occupation", "relationship"]
crossed = [["education", "occupation"]]
[model]
hidden_units = [16]
dropout = 0.1
[train]
batch_size = 768
epochs = 6
eval_every = 30
patience = 2
checkpoint_every = 10
[distributed]
lanes = 6
timeout = "60s"
"""


@pytest.fixture(scope="module")
def folder(adult: Path) -> Path:
    (adult / "census.toml").write_text(CONFIG)
    run(adult, [*WIDEDEEP, "train", "census.toml", "--out", "alone"])
    return adult


def run(folder: Path, words: list[str], code: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def contents(run: Path, *, resumed: bool) -> dict[str, Any]:
    """What a run made, but for how fast; one that went on has losses since it did."""
    differs = {"rows_per_s", "loss"} if resumed else {"rows_per_s"}
    history = json.loads((run / "history.json").read_text())
    return {
        "weights": (run / "bundle" / "weights.safetensors").read_bytes(),
        "metrics": json.loads((run / "metrics.json").read_text()),
        "attributions": json.loads((run / "attributions.json").read_text()),
        "history": [{k: v for k, v in row.items() if k not in differs} for row in history],
    }


def check_same(folder: Path, name: str, *, resumed: bool = False) -> None:
    alone, together = (contents(folder / one, resumed=resumed) for one in ("alone", name))
    for key, value in alone.items():
        assert together[key] == value, key
    assert not list((folder / name / "checkpoints").glob(".*.tmp"))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_bits_do_not_depend_on_ranks(folder: Path, ranks: int) -> None:
    name = f"of-{ranks}"
    output = run(folder, [*WIDEDEEP, "train", "census.toml", "--out", name, "--ranks", str(ranks)])
    check_same(folder, name)
    assert output.count("\nrun: ") == 1 and output.count("schema: ") == 1


def test_torchrun_trains_once(folder: Path) -> None:
    launcher = [*TORCHRUN[:-1], "--nproc-per-node", "2", "-m", "widedeep"]
    output = run(folder, [*launcher, "train", "census.toml", "--out", "by-torchrun"])
    assert output.count("\nrun: ") == 1
    check_same(folder, "by-torchrun")


def start(folder: Path, name: str, *words: str, steps: int) -> subprocess.Popen[str]:
    """Start a run on two ranks; return once it has a checkpoint of a step."""
    process = subprocess.Popen(
        [*WIDEDEEP, "train", "census.toml", "--out", name, "--ranks", "2", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not (folder / name / "checkpoints" / f"step-{steps:010d}").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    return process


def test_a_run_that_is_told_to_end_goes_on_with_other_ranks(folder: Path) -> None:
    process = start(folder, "stopped", steps=20)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted; saved" in error
    process = start(folder, "stopped", "--resume", steps=50)
    process.terminate()
    process.communicate(timeout=120)
    train = [*WIDEDEEP, "train", "census.toml", "--out", "stopped", "--resume"]
    run(folder, [*train, "--ranks", "3"])
    check_same(folder, "stopped", resumed=True)


def rank_processes(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def test_a_killed_rank_ends_the_others_and_the_run_goes_on(folder: Path) -> None:
    for victim, steps in ((1, 10), (0, 40)):
        resume = ["--resume"] if steps > 10 else []
        process = start(folder, "killed", *resume, steps=steps)
        os.kill(rank_processes(process.pid)[victim], signal.SIGKILL)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGKILL
        assert "start the run again with --resume" in error and "Traceback" not in error
    run(folder, [*WIDEDEEP, "train", "census.toml", "--out", "killed", "--resume"])
    check_same(folder, "killed", resumed=True)
