"""Directories that are there whole or not at all: written aside, forced to disk, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20
_HERE = -100  # AT_FDCWD of Linux; the paths are absolute
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


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


def write_text_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a small file beside its place, force it to the disk and rename it."""
    place = Path(path)
    made = place.with_name(f".{place.name}.tmp")
    try:
        with open(made, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, place)
    finally:
        made.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, within: Path | None = None) -> Iterator[Path]:
    """Give a temporary directory beside ``path``; rename it to ``path`` if the block ends well."""
    final = Path(path).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(
        tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=within or final.parent)
    )
    try:
        yield made
        for entry in made.rglob("*"):
            fsync_path(entry)
        fsync_path(made)
        made.chmod(0o755)
        _put_in_place(made, final)
        fsync_path(final.parent)
    finally:
        # What failed, or what was replaced.
        shutil.rmtree(made, ignore_errors=True)


def _put_in_place(made: Path, final: Path) -> None:
    """Rename ``made`` to ``final``; what was there, if anything, gets the name of ``made``."""
    if not final.exists():
        os.rename(made, final)
    elif not _exchange(made, final):
        aside = made.with_suffix(".old")
        os.rename(final, aside)
        try:
            os.rename(made, final)
        except OSError:
            os.rename(aside, final)
            raise
        os.rename(aside, made)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = (os.fsencode(one), os.fsencode(other))
    if hasattr(libc, "renameat2"):
        return bool(libc.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)
    if hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(*paths, _EXCHANGE) == 0)
    return False
