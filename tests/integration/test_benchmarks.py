"""Every benchmark runs, short: with the arguments that ``make bench QUICK=1`` gives it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("bench_*.py"))


def quick_arguments() -> dict[str, list[str]]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^QUICK_(\w+) := (.*)$", text, re.MULTILINE)
    return {name: shlex.split(words) for name, words in found}


def test_arguments_name_benchmarks() -> None:
    names = {path.stem.removeprefix("bench_") for path in BENCHMARKS}
    assert set(quick_arguments()) <= names
    assert {"serve", "join", "transform", "train"} <= set(quick_arguments())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_runs_short(path: Path, tmp_path: Path) -> None:
    name = path.stem.removeprefix("bench_")
    if name == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    results = (ROOT / "benchmarks" / "RESULTS.md").read_bytes()
    process = subprocess.Popen(
        [sys.executable, str(path), *quick_arguments().get(name, [])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=1100)
    finally:  # what it started ends with it, after a timeout too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr[-3000:]
    assert (ROOT / "benchmarks" / "RESULTS.md").read_bytes() == results  # full runs alone write
    assert "Traceback" not in stderr
    if name == "serve":
        assert re.search(r"PSS \d+ MB of one, \d+ MB of two", stdout)
