"""The progress line tells the truth, on a terminal and in a file."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from widedeep.training.progress import Progress, RecentScores

FIGURES = {
    "epoch": 2,
    "step": 1_500,
    "rows": 96_000,
    "loss": 0.51234,
    "auc": 0.75,
    "nonzero_wide": 4321,
}


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_plain_line_holds_every_figure(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(3_000, terminal=False)
    clock.now += 2.0
    progress.show({**FIGURES, "step": 1, "rows": 64})
    clock.now += 8.0
    progress.show(FIGURES)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("epoch 2  step 1/3,000  32 rows/s")
    assert second == (
        "epoch 2  step 1,500/3,000  9,600 rows/s  loss 0.5123  auc 0.7500  wide 4,321  left 0:10"
    )


def test_figures_that_are_not_known_are_left_out(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(None, terminal=False)
    clock.now += 1.0
    progress.show({**FIGURES, "auc": float("nan"), "nonzero_wide": None})
    assert capsys.readouterr().err == "epoch 2  step 1,500  96,000 rows/s  loss 0.5123\n"


def test_a_long_run_tells_hours(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(3_601, terminal=False)
    clock.now += 3.0
    progress.show({**FIGURES, "step": 1})
    assert capsys.readouterr().err.rstrip().endswith("left 3:00:00")


def test_a_terminal_has_one_line_that_is_wiped(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(None, terminal=True)
    progress.show({**FIGURES, "loss": 0.123456})
    progress.show({"epoch": 1, "step": 1, "rows": 1})
    progress.message("saved")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    long, short, wiped, saved = err.rstrip("\n").split("\r")[1:]
    assert len(short) == len(long), "a shorter line covers the longer one"
    assert not wiped.strip()
    assert saved == "saved"


@pytest.mark.parametrize(("terminal", "wait"), [(True, 0.5), (False, 10.0)])
def test_lines_are_due_now_and_then(clock: Clock, terminal: bool, wait: float) -> None:
    progress = Progress(10, terminal=terminal)
    clock.now += wait - 0.01
    assert not progress.due()
    clock.now += 0.02
    assert progress.due()
    progress.show(FIGURES)
    assert not progress.due()


def test_switched_off_it_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10, enabled=False, terminal=True)
    clock.now += 1_000
    assert not progress.due()
    progress.show(FIGURES)
    progress.message("saved")
    assert capsys.readouterr() == ("", "")


def test_the_running_auc_is_that_of_the_latest_scores() -> None:
    rng = np.random.default_rng(0)
    recent = RecentScores(window=500)
    batches: list[Any] = []
    for _ in range(30):
        logits = rng.normal(size=64).astype(np.float32)
        labels = (rng.random(64) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        batches.append((logits, labels))
        recent.add(logits, labels)
    logits = np.concatenate([batch[0] for batch in batches[-8:]])  # 8 x 64 cover 500
    labels = np.concatenate([batch[1] for batch in batches[-8:]])
    assert recent.auc() == pytest.approx(roc_auc_score(labels, logits))


def test_one_class_has_no_auc() -> None:
    recent = RecentScores()
    assert np.isnan(recent.auc())
    recent.add(np.zeros(4, np.float32), np.ones(4, np.float32))
    assert np.isnan(recent.auc())
    recent.add(np.full(4, -1, np.float32), np.zeros(4, np.float32))
    assert recent.auc() == 1.0
