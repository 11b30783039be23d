"""The line that a person watches while a model trains."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest
import torch

from widedeep.training.progress import Progress, RecentScores

FIGURES = {"epoch": 2, "step": 30, "rows": 1000, "loss": 0.5, "auc": 0.75, "nonzero_wide": 1234}


def shown(progress: Progress, capsys: pytest.CaptureFixture[str], **figures: Any) -> str:
    progress.show({**FIGURES, **figures})
    return capsys.readouterr().err


def test_the_time_left_counts_this_run_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    progress = Progress(50, done_steps=20, terminal=False)
    now[0] += 20.0
    # 10 steps in 20 seconds, 20 more to go.
    line = shown(progress, capsys)
    assert (
        line == "epoch 2  step 30/50  50 rows/s  loss 0.5000  auc 0.7500  wide 1,234  left 0:40\n"
    )


def test_what_is_not_known_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    line = shown(Progress(None, terminal=False), capsys, auc=float("nan"), nonzero_wide=None)
    assert "auc" not in line
    assert "wide" not in line
    assert "left" not in line


def test_a_live_line_never_wraps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((40, 24)))
    progress = Progress(50, terminal=True)
    line = shown(progress, capsys)
    assert line.startswith("\repoch 2")
    assert len(line) == 1 + 39
    assert "\n" not in line
    progress.message("done")
    assert capsys.readouterr().err == f"\r{' ' * 39}\rdone\n"


def test_nothing_is_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(50, enabled=False)
    assert not progress.due()
    assert shown(progress, capsys) == ""


def test_the_running_auc_forgets_what_is_old() -> None:
    recent = RecentScores(window=4)
    assert np.isnan(recent.auc())
    recent.add(torch.tensor([1.0, 0.0]), np.array([0.0, 1.0], np.float32))
    assert recent.auc() == 0.0
    for _ in range(2):
        recent.add(torch.tensor([0.0, 1.0]), np.array([0.0, 1.0], np.float32))
    assert recent.auc() == 1.0
