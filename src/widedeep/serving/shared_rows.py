"""A catalogue's prebuilt rows in a mapped file: made by one process, in memory once for all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from widedeep.files import map_tensors, write_tensors

ROWS_DIRECTORY = "WIDEDEEP_ROWS_DIRECTORY"
"""The variable by which a supervisor names the directory to its workers."""

_KEPT_S = 600.0

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class SharedRows:
    """Arrays that several processes of one machine map from the same files."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)

    def arrays(self, key: Sequence[str], make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a key, mapped from their file."""
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]
        place = self._directory / f"{name}.safetensors"
        with self._alone(name):
            if not place.exists():
                self._delete_old()
                made = make()
                try:
                    write_tensors(place, made)
                except OSError:  # no room: better a copy of its own than none
                    return made
            return map_tensors(place)

    def _delete_old(self) -> None:
        """Delete what no process will ask for again; those that have it mapped keep it."""
        oldest = time.time() - _KEPT_S
        for file in self._directory.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest:
                    file.unlink()

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)  # cleaners of temporary files take it
        lock = os.open(self._directory / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
