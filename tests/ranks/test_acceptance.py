"""Runs of the command line over ranks on Adult: whatever happens to them, the bits of one process.

`make test-ranks` runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.ports import free_port

pytestmark = pytest.mark.slow

WIDEDEEP = [sys.executable, "-m", "widedeep"]
KILLS = int(os.environ.get("WIDEDEEP_KILLS", "30"))
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


SRUN = """#!/bin/sh
# Of "srun --nodes N --ntasks-per-node 1 COMMAND": the command N times on this machine
nodes=$2; shift 4; tasks=; code=0
for node in $(seq $nodes); do "$@" & tasks="$tasks $!"; done
for task in $tasks; do wait $task || code=$?; done
exit $code
"""


def test_the_command_for_slurm_trains_once(folder: Path, tmp_path: Path) -> None:
    scripts = {"srun": SRUN, "scontrol": "#!/bin/sh\necho 127.0.0.1; echo other\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    page = Path(__file__).resolve().parents[2] / "docs" / "many_machines.md"
    command = page.read_text(encoding="utf-8").split("Slurm:\n\n```sh\n")[1].split("```")[0]
    meant = {"nodes 4": "nodes 2", "29400": str(free_port())}
    meant |= {"run.toml": "census.toml", "/shared/runs/ads": "by-slurm"}
    for told, here in meant.items():
        assert told in command
        command = command.replace(told, here)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    output = run(folder, ["env", f"PATH={path}", "SLURM_JOB_ID=7", "sh", "-c", command])
    assert output.count("\nrun: ") == 1
    check_same(folder, "by-slurm")


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


def test_ranks_follow_a_folder_publish_and_evaluate(folder: Path) -> None:
    """Rows for new values, versions that the gate passed, and metrics: those of one process."""
    rows = pq.read_table(folder / "valid.parquet")
    (folder / "in").mkdir()
    for start in range(0, 6000, 2000):
        pq.write_table(rows.slice(start, 2000), folder / "in" / f"{start}.parquet")
    follow = ["--follow", "in", "--idle", "0", "--grow", "--export-rows", "2000"]
    follow += ["--judge-rows", "1000", "--set", "gate.min_rows=1000", "--set", "train.epochs=1"]
    told = []
    for ranks in ("1", "2"):
        words = ["train", "census.toml", "--out", f"follow-{ranks}", "--ranks", ranks, *follow]
        run(folder, [*WIDEDEEP, *words, "--publish", f"models-{ranks}"])
        words = ["evaluate", "follow-1", "--ranks", ranks, "--json"]
        versions = sorted((folder / f"models-{ranks}").glob("*/weights.safetensors"))
        told.append(
            {
                **contents(folder / f"follow-{ranks}", resumed=False),
                "versions": [(path.parent.name, path.read_bytes()) for path in versions],
                "evaluated": run(folder, [*WIDEDEEP, *words]),
            }
        )
    assert told[0]["versions"]
    for key, value in told[0].items():
        assert told[1][key] == value, key


@pytest.mark.timeout(3600)
def test_thirty_kills_at_random_moments_leave_the_bits(folder: Path) -> None:
    """SIGKILL to any rank: as it starts, in a step, inside a checkpoint, in the export."""
    kills, runs, rng = 0, 0, random.Random(17)
    train = [*WIDEDEEP, "train", "census.toml", "--set", "train.checkpoint_every=2"]
    while kills < KILLS:
        name, runs = f"killed-often-{runs}", runs + 1
        while True:
            ranks = rng.randint(2, 3)
            launcher = subprocess.Popen(
                [*train, "--out", name, "--resume", "--ranks", str(ranks)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            if kills < KILLS:
                _wait_for_checkpoint(launcher, folder / name, rng)
                with contextlib.suppress(OSError, IndexError):  # it ended before
                    os.kill(rng.choice(rank_processes(launcher.pid)), signal.SIGKILL)
            _, error = launcher.communicate(timeout=300)
            if launcher.returncode == 0:
                break
            assert launcher.returncode == 128 + signal.SIGKILL, error
            assert "Traceback" not in error and "widedeep: bug" not in error, error
            kills += 1
            print(f"kill {kills} of {ranks} ranks, run {name}")
        check_same(folder, name, resumed=True)


def _wait_for_checkpoint(launcher: subprocess.Popen[str], run: Path, rng: random.Random) -> None:
    """Wait for a moment as the run starts, or one after it has written a checkpoint."""
    ends = time.monotonic() + 120
    if rng.random() < 0.8:
        before = set(run.glob("checkpoints/step-*"))
        while not set(run.glob("checkpoints/step-*")) - before:
            if launcher.poll() is not None or time.monotonic() > ends:
                return
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
    else:
        time.sleep(rng.uniform(0, 4))


@pytest.mark.timeout(1200)
def test_a_node_that_is_lost_and_comes_back_leaves_the_bits(folder: Path) -> None:
    """Two agents of torchrun: the second is killed with its rank, and later started anew."""
    agent = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"),
        *("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "lost"),
        *("--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--max-restarts", "9"),
        *("--monitor-interval", "0.2"),
    ]
    training = [
        *("-m", "widedeep", "train", "census.toml", "--out", "lost", "--resume"),
        *("--set", "train.checkpoint_every=5", "--set", "distributed.timeout=20s"),
    ]
    checkpoints, logs = folder / "lost" / "checkpoints", []

    def begin(name: str) -> subprocess.Popen[bytes]:
        logs.append(folder / f"{name}.log")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        # The store of the agents, without which none goes on, is the first one's.
        settings = f"last_call_timeout=8,join_timeout=120,is_host={name == 'first'}"
        command = [*agent, "--rdzv-conf", settings, *training]
        with logs[-1].open("wb") as log:
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def wait_for(steps: int) -> None:
        ends = time.monotonic() + 180
        while max(_steps(checkpoints), default=0) < steps:
            assert time.monotonic() < ends, "\n".join(log.read_text() for log in logs)
            time.sleep(0.02)

    first, second = begin("first"), begin("second")
    agents = [first, second]
    try:
        wait_for(20)
        _kill(second)
        wait_for(max(_steps(checkpoints)) + 15)
        agents.append(begin("returned"))
        text = "\n".join
        assert first.wait(300) == 0, text(log.read_text() for log in logs)
    finally:
        for process in agents:
            _kill(process)
    check_same(folder, "lost", resumed=True)


def _kill(agent: subprocess.Popen[bytes]) -> None:
    """Kill an agent and its ranks, which would live on."""
    with contextlib.suppress(OSError):
        for pid in (*rank_processes(agent.pid), agent.pid):
            os.kill(pid, signal.SIGKILL)
    agent.wait()


def _steps(checkpoints: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")]
