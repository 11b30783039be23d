"""Which code runs: the C++ module unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "from widedeep.kernels.backend import backend; print(backend.__name__)"


def run_with(wanted: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: v for key, v in os.environ.items() if key != "WIDEDEEP_KERNELS"}
    if wanted is not None:
        environment["WIDEDEEP_KERNELS"] = wanted
    return subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("wanted", "module"),
    [
        (None, "widedeep._native"),
        ("", "widedeep._native"),
        ("native", "widedeep._native"),
        ("reference", "widedeep.kernels.reference"),
    ],
)
def test_the_environment_chooses_the_code(wanted: str | None, module: str) -> None:
    assert run_with(wanted).stdout.strip() == module


def test_another_choice_is_an_error_that_names_the_two() -> None:
    found = run_with("fast")
    assert found.returncode != 0
    assert "WIDEDEEP_KERNELS: got 'fast', expected 'native' or 'reference'" in found.stderr
