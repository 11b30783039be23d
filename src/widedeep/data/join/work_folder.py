"""The folder in which a join works: of one process at a time, kept while it is worth resuming."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from widedeep.errors import DataError, WideDeepError


@contextlib.contextmanager
def work_folder(work: Path, *, resume: bool) -> Iterator[None]:
    """Hold a folder for the block, and delete it if the block ends well."""
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        _lock(handle, work)
        if not resume:
            _empty(work)
        fresh = not any(work.iterdir())
        try:
            yield
        except WideDeepError:
            if fresh and not any((work / "parts").glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int, work: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f"{work}: another join is writing the same output; wait for it, or name another output"
        ) from error


def _empty(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
