"""Which step of a join is running, shown on standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Steps:
    """Names the running step and the time it has taken: live on a terminal, else a line a step."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._enabled = enabled
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._console)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._end_task()
            self._live.stop()

    def start(self, name: str) -> None:
        """Say that a step begins, and that the one before it is over."""
        if self._live is not None:
            self._end_task()
            self._task = self._live.add_task(name, total=1)
        elif self._enabled:
            seconds = time.perf_counter() - self._started
            self._console.print(f"[{seconds:7.1f} s] {name}", markup=False, highlight=False)

    def _end_task(self) -> None:
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=1)
