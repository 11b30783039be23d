"""The progress of training: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections import deque
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.metrics import auc

_REFRESH_S = 0.5
_PLAIN_EVERY_S = 10.0
_WINDOW = 65_536


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
        self._in_notebook = terminal is None and _in_notebook()
        self._display: Any = None  # Of a notebook: what updates the line shown
        self._started = time.perf_counter()
        self._shown = self._started
        self._width = 0

    def due(self) -> bool:
        """True if it is time to show a line."""
        wait = _REFRESH_S if self._live or self._in_notebook else _PLAIN_EVERY_S
        return self._enabled and time.perf_counter() - self._shown >= wait

    def show(self, metrics: dict[str, Any]) -> None:
        """Show ``epoch``, ``step``, ``rows``, ``loss``, ``auc`` and ``nonzero_wide`` in a line."""
        if not self._enabled:
            return
        self._shown = time.perf_counter()
        line = self._line(metrics)
        if self._in_notebook:
            self._show_in_notebook(line, metrics["step"])
        elif self._live:
            # A line that wraps cannot be written over.
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def _show_in_notebook(self, line: str, step: int) -> None:
        """Show a bar and the line in the cell's output, in the place of those before."""
        display = importlib.import_module("IPython.display")
        bar = f'<progress value="{step}" max="{self._total}"></progress> ' if self._total else ""
        content = display.HTML(f"{bar}<code>{escape(line)}</code>")
        if self._display is None:
            self._display = display.display(content, display_id=True)
        else:
            self._display.update(content)

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
        if metrics.get("slow"):
            parts.append(metrics["slow"])
        done = step - self._done
        if self._total and done > 0:
            parts.append(f"left {_clock((self._total - step) * seconds / done)}")
        return "  ".join(parts)


def _in_notebook() -> bool:
    """True in a cell of a notebook, whose output can be replaced."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
