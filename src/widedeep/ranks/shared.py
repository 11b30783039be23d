"""What ranks share: each other's errors, the wait for the first of them, and a directory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from widedeep.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    FeatureError,
    LimitError,
    RanksError,
    SchemaError,
    WideDeepError,
)
from widedeep.files import atomic_directory
from widedeep.ranks.ranks import Ranks

_PULSE_SECONDS = 1.0  # between signs of life of the first rank
_KINDS = (
    *(BundleError, CheckpointError, ConfigError, DataError, FeatureError, SchemaError),
    *(LimitError, OSError, RanksError),
)
_BY_NAME: dict[str, type[Exception]] = {kind.__name__: kind for kind in _KINDS}


@contextlib.contextmanager
def shared_failures(ranks: Ranks) -> Iterator[None]:
    """Raise on every rank what a block raises on one of them; collective.

    All ranks leave the block together, however long one of them takes: meanwhile each tells the
    others every second that it is still at work. The block itself exchanges nothing.
    """
    own: Exception | None = None
    with _signs_of_life(ranks):
        try:
            yield
        except Exception as error:
            own = error
    raise_on_all(ranks, own)


def raise_on_all(ranks: Ranks, own: BaseException | None) -> None:
    """Raise what failed on some rank: its own error on each that failed; collective."""
    if ranks.size > 1 and ranks.any(own is not None):
        facts = ranks.gather_json([] if own is None else [_kind(own), _text(own)])
        rank, (kind, text) = next((rank, fact) for rank, fact in enumerate(facts) if fact)
        if own is None:
            where = f"rank {rank} of {ranks.size} ({ranks.hosts[rank]})"
            own = _BY_NAME[kind](f"{where}: {text}")
        ranks.note_if_told_beside(own)
    if own is not None:
        raise own


def on_first(ranks: Ranks, function: Callable[[], Any], what: str = "") -> Any:
    """Run a function on rank 0 alone; every rank gets its result, or its error; collective.

    Args:
        ranks: The ranks; the others wait, however long it takes.
        function: Its result is bytes, or what JSON holds.
        what: Its name in errors.
    """
    result = None
    with shared_failures(ranks):
        if ranks.is_first:
            result = function()
    return ranks.broadcast(result, what)


@contextlib.contextmanager
def _signs_of_life(ranks: Ranks) -> Iterator[None]:
    """Wait at the end of a block until all ranks are there, with an exchange every second."""
    if ranks.size == 1:
        yield
        return
    done = threading.Event()

    def wait_for_all() -> None:
        busy = True
        while busy:
            done.wait(_PULSE_SECONDS)
            busy = ranks.any(not done.is_set())

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(wait_for_all)
        try:
            yield
        finally:
            done.set()
            others.result()


@contextlib.contextmanager
def shared_directory(ranks: Ranks, path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give all ranks one temporary directory; rename it to ``path`` if the block ends well."""
    with contextlib.ExitStack() as stack:
        folder = Path()
        with shared_failures(ranks):
            if ranks.is_first:
                folder = stack.enter_context(atomic_directory(path))
        folder = Path(ranks.broadcast(str(folder), "a directory"))
        with shared_failures(ranks):
            if not folder.is_dir():
                raise OSError(
                    f"{folder} is not there: several ranks write into one directory, on a file "
                    "system that all of them see"
                )
        yield folder
        with shared_failures(ranks):
            stack.close()


def _kind(error: BaseException) -> str:
    """Return the name of the error that the other ranks raise: of its kind, if they know it."""
    names = (one.__name__ for one in type(error).__mro__)
    return next((name for name in names if name in _BY_NAME), RanksError.__name__)


def _text(error: BaseException) -> str:
    if not isinstance(error, OSError | WideDeepError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
