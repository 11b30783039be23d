"""Runs of the command line over ranks: stopped on two, resumed on three, exported by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = ["--set", "train.batch_size=768", "--set", "train.epochs=2"]


def widedeep(*arguments: object, folder: Path) -> None:
    command = [sys.executable, "-m", "widedeep", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_three_and_is_exported_by_one(tmp_path: Path) -> None:
    widedeep("init", "--dataset", "census", folder=tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(config.read_text() + "\n[distributed]\nlanes = 6\n")
    widedeep("train", config, "--out", "alone", *OPTIONS, folder=tmp_path)
    widedeep("train", config, "--out", "two", "--ranks", 2, *OPTIONS, folder=tmp_path)
    bundles = [tmp_path / run / "bundle" for run in ("alone", "two")]
    names = sorted(file.name for file in bundles[0].iterdir())
    for name in names:
        assert (bundles[1] / name).read_bytes() == (bundles[0] / name).read_bytes(), name

    widedeep("export", "two", "-o", "exported", folder=tmp_path)
    exported = (tmp_path / "exported/weights.safetensors").read_bytes()
    assert exported == (bundles[0] / "weights.safetensors").read_bytes()

    checkpoints = tmp_path / "two/checkpoints"
    first, *later = sorted(checkpoints.glob("step-*"))  # as if it had been stopped after an epoch
    assert len(list(first.glob("tensors-*-of-00002.safetensors"))) == 2
    for path in (*later, bundles[1]):
        shutil.rmtree(path)
    step = int(first.name.removeprefix("step-"))
    (checkpoints / "best.json").write_text(json.dumps({"step": step}))
    widedeep("train", config, "--out", "two", "--ranks", 3, "--resume", *OPTIONS, folder=tmp_path)
    for name in names:
        assert (bundles[1] / name).read_bytes() == (bundles[0] / name).read_bytes(), name
