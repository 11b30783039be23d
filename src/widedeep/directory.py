"""Directories that are there whole or not at all: written aside, forced to disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_directory", "file_sha256", "fsync_path"]

_BLOCK = 1 << 20


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's contents, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Force a file's contents or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary directory beside ``path``; rename it to ``path`` if the block ends well.

    A directory already at ``path`` is replaced: it is renamed aside first and deleted last. If the
    block fails, the temporary directory is deleted and whatever was at ``path`` stays.

    Args:
        path: The directory's final place.

    Example:
        >>> import tempfile, pathlib
        >>> place = pathlib.Path(tempfile.mkdtemp()) / "out"
        >>> with atomic_directory(place) as made:
        ...     _ = (made / "a.txt").write_text("a")
        >>> sorted(entry.name for entry in place.iterdir())
        ['a.txt']
    """
    final = Path(path).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        yield made
        for entry in made.rglob("*"):
            fsync_path(entry)
        fsync_path(made)
        made.chmod(0o755)
        old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
        if final.exists():
            os.rename(final, old / final.name)
        os.rename(made, final)
        fsync_path(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
