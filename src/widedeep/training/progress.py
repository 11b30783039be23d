"""The progress of training: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.errors import ConfigError, nearest
from widedeep.metrics import auc

_REFRESH_S = 0.5
_PLAIN_EVERY_S = 10.0
_WINDOW = 65_536


class Callback(Protocol):
    """Called by :class:`widedeep.Trainer` while it trains."""

    def on_step(self, metrics: dict[str, Any]) -> bool | None:
        """After a step: ``step``, ``epoch``, ``rows``, ``loss`` (mean of the step).

        True ends the training after this step, as its last step would: with an evaluation and a
        checkpoint, and with early stopping the best model comes back. A stream ends after its
        shard. A run that is resumed goes on.
        """

    def on_evaluate(self, metrics: dict[str, Any]) -> bool | None:
        """After an evaluation, with the row added to the history; True ends the training."""

    def on_end(self, metrics: dict[str, Any]) -> None:
        """After training, with the last row of the history."""


_MOMENTS = ("on_step", "on_evaluate", "on_end")


class Callbacks:
    """Tells objects what happens while a model is trained, each what it has a method for."""

    def __init__(self, callbacks: object) -> None:
        if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
            raise ConfigError(
                f"got callbacks={callbacks!r}, expected a list of objects: callbacks=[...]"
            )
        self.objects = list(callbacks)
        self.stopped = False
        """True once one has returned True."""
        for callback in self.objects:
            _check_callback(callback)
        self._calls: dict[str, list[Callable[[dict[str, Any]], object]]] = {
            moment: [getattr(c, moment) for c in self.objects if hasattr(c, moment)]
            for moment in _MOMENTS
        }

    @property
    def see_steps(self) -> bool:
        """True if one is told of every step, whose loss is then waited for."""
        return bool(self._calls["on_step"])

    def call(
        self, moment: Literal["on_step", "on_evaluate", "on_end"], metrics: dict[str, Any]
    ) -> None:
        """Call the method of each that has it, and note whether one asks to stop."""
        for call in self._calls[moment]:
            if call(metrics) is True:
                self.stopped = True


def _check_callback(callback: object) -> None:
    what = f"callback {type(callback).__name__}"
    if isinstance(callback, type):
        raise ConfigError(f"got the class {callback.__name__} as a callback; give an object of it")
    methods = [name for name in dir(callback) if name.startswith("on_")]
    for name in methods:
        if name not in _MOMENTS:
            raise ConfigError(
                f"{what}: got the method {name!r}, which nothing calls; {nearest(name, _MOMENTS)}"
            )
        if not callable(getattr(callback, name)):
            raise ConfigError(f"{what}: got {name}={getattr(callback, name)!r}, expected a method")
    if not methods:
        raise ConfigError(f"{what}: got none of the methods {', '.join(_MOMENTS)}; define one")


class RecentScores:
    """The latest scores, each made before its label was learned: an honest running AUC."""

    def __init__(self, window: int = _WINDOW) -> None:
        self._window = window
        self._held: deque[tuple[Tensor, NDArray[np.float32]]] = deque()
        self._rows = 0

    def add(self, logits_B: Tensor, labels_B: NDArray[np.float32]) -> None:
        """Keep a batch's logits, wherever they are, and labels; forget those beyond the window."""
        self._held.append((logits_B, labels_B))
        self._rows += len(labels_B)
        while self._rows - len(self._held[0][1]) >= self._window:
            self._rows -= len(self._held.popleft()[1])

    def auc(self) -> float:
        """AUC over the window; nan if it holds one class only."""
        if not self._held:
            return float("nan")
        logits = torch.cat([batch[0] for batch in self._held]).cpu().numpy()
        labels = np.concatenate([batch[1] for batch in self._held]) > 0.5
        if labels.all() or not labels.any():
            return float("nan")
        return auc(labels, logits)


class Progress:
    """Shows training on standard error."""

    def __init__(
        self,
        total_steps: int | None,
        *,
        done_steps: int = 0,
        enabled: bool = True,
        terminal: bool | None = None,
    ) -> None:
        self._total = total_steps
        self._done = done_steps
        self._enabled = enabled
        self._live = sys.stderr.isatty() if terminal is None else terminal
        self._started = time.perf_counter()
        self._shown = self._started
        self._width = 0

    def due(self) -> bool:
        """True if it is time to show a line."""
        wait = _REFRESH_S if self._live else _PLAIN_EVERY_S
        return self._enabled and time.perf_counter() - self._shown >= wait

    def show(self, metrics: dict[str, Any]) -> None:
        """Show ``epoch``, ``step``, ``rows``, ``loss``, ``auc`` and ``nonzero_wide`` in a line."""
        if not self._enabled:
            return
        self._shown = time.perf_counter()
        line = self._line(metrics)
        if self._live:
            # A line that wraps cannot be written over.
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """Show a line that stays."""
        if self._enabled:
            lead = f"\r{' ' * self._width}\r" if self._live and self._width else ""
            self._width = 0
            print(f"{lead}{text}", file=sys.stderr, flush=True)

    def _line(self, metrics: dict[str, Any]) -> str:
        step, rows = metrics["step"], metrics["rows"]
        seconds = self._shown - self._started
        rate = rows / seconds if seconds > 0 else 0.0
        parts = [
            f"epoch {metrics['epoch']}",
            f"step {step:,}" + (f"/{self._total:,}" if self._total else ""),
        ]
        parts.append(f"{rate:,.0f} rows/s")
        for name, label, style in (
            ("loss", "loss", ".4f"),
            ("auc", "auc", ".4f"),
            ("nonzero_wide", "wide", ","),
        ):
            if metrics.get(name) is not None and metrics[name] == metrics[name]:
                parts.append(f"{label} {metrics[name]:{style}}")
        done = step - self._done
        if self._total and done > 0:
            parts.append(f"left {_clock((self._total - step) * seconds / done)}")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
