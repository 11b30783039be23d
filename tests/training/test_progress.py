"""The line that a person watches while a model trains."""

from __future__ import annotations

import os
import sys
import time
import types
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import widedeep as wd
from widedeep.callbacks.base import Callbacks
from widedeep.errors import ConfigError
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
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((40, 24)))
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


class Steps:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step(self, figures: dict[str, Any]) -> None:
        self.seen.append(figures["step"])


class Ends:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_end(self, figures: dict[str, Any]) -> None:
        self.seen.append(figures)


class Evaluations(Ends):
    def on_evaluate(self, figures: dict[str, Any]) -> None:
        self.seen.append(figures)


def test_a_callback_is_told_what_it_has_a_method_for() -> None:
    callbacks = (Steps(), Ends(), Evaluations())
    rows = [{"job": "ab"[i % 2], "y": i % 2} for i in range(64)]
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=wd.categorical("job")), rows)
    trainer = wd.Trainer(wd.WideDeep(schema), batch_size=16, progress=False, callbacks=callbacks)
    trainer.fit(rows, epochs=2, valid=rows)
    assert callbacks[0].seen == list(range(1, 9))
    assert [len(callback.seen) for callback in callbacks[1:]] == [1, 3]


class Misspelt(Steps):
    def on_evaluation(self, figures: dict[str, Any]) -> None: ...


class NoMethod:
    on_step = 3


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [object()],
            "callback object: got none of the methods on_begin, on_step,",
        ),
        ([Misspelt()], "callback Misspelt: got the method 'on_evaluation'.*on_evaluate"),
        ([NoMethod()], "callback NoMethod: got on_step=3"),
        ([Steps], "got the class Steps as a callback"),
        (Steps(), "expected a list of objects"),
        ("steps", "expected a list of objects"),
        ([None], "callback NoneType: got none of the methods"),
        ([lambda figures: None], "callback function: got none of the methods"),
    ],
)
def test_what_no_callback_is_is_refused_before_training(callbacks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Callbacks(callbacks)


def test_a_notebook_s_line_is_replaced_in_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    display = types.SimpleNamespace(HTML=str, display=Mock())
    kernel = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: kernel, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    progress = Progress(50)
    assert not shown(progress, capsys) and not shown(progress, capsys, step=31)
    first, second = display.display, display.display.return_value.update
    assert '<progress value="30" max="50">' in first.call_args.args[0]
    assert 'value="31"' in second.call_args.args[0] and first.call_count == 1
