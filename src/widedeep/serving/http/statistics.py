"""Statistics: what the Open Inference Protocol tells of each version's requests."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


@dataclass(slots=True)
class VersionStatistics:
    """The requests of one version, in this process."""

    answered: int = 0  # Requests that were scored
    rows: int = 0  # Of them
    seconds: float = 0.0  # That scoring took
    failed: int = 0  # Requests that did not fit the model
    failed_seconds: float = 0.0  # That finding out took
    last: float = 0.0  # When the last one was scored, in seconds since 1970


class Statistics:
    """Adds up the requests of each version."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_version: dict[tuple[str, str], VersionStatistics] = {}

    def answered(self, model: str, version: str, rows: int, seconds: float) -> None:
        """Add a request that was scored."""
        with self._lock:
            found = self.by_version.setdefault((model, version), VersionStatistics())
            found.answered += 1
            found.rows += rows
            found.seconds += seconds
            found.last = time.time()

    def failed(self, model: str, version: str, seconds: float) -> None:
        """Add a request that did not fit."""
        with self._lock:
            found = self.by_version.setdefault((model, version), VersionStatistics())
            found.failed += 1
            found.failed_seconds += seconds
