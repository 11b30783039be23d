"""The versions in a directory of bundles: which there are, in which order, which are wanted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import ConfigError

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, size, time and inode of every file of a version: another one, another version."""

_PARTS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Latest:
    """Serve the newest ``n`` versions that load; the newest of them takes the traffic."""

    n: int = 1  # At least 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"Latest: got n={self.n!r}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Specific:
    """Serve these versions and no other; the newest of them takes the traffic."""

    versions: Sequence[str]  # Their names, at least one

    def __post_init__(self) -> None:
        if isinstance(self.versions, str) or not self.versions:
            raise ConfigError(
                f"Specific: got versions={self.versions!r}, expected a list of names, ['3', '7']"
            )
        object.__setattr__(self, "versions", tuple(str(name) for name in self.versions))


Policy: TypeAlias = Latest | Specific


def version_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are ordered by: numbers inside a name count as numbers."""
    parts = [part for part in _PARTS.split(name) if part]
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def find_versions(root: Path) -> dict[str, Path]:
    """Return the versions in a directory, oldest first."""
    try:
        if (root / MANIFEST).is_file():
            return {root.resolve().name: root}
        with os.scandir(root) as entries:
            found = [entry.name for entry in entries if entry.is_dir()]
    except (OSError, RuntimeError) as error:  # the latter is a loop of links
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{root}: got no readable directory ({reason}), expected one with a bundle for "
            "each version; check the path"
        ) from error
    names = sorted((n for n in found if not n.startswith((".", "_"))), key=version_key)
    return {name: root / name for name in names}


def signature(path: Path) -> Signature:
    """Return what tells a version's files from those of another copy."""
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            about = entry.stat()
            found.append((entry.name, about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(sorted(found))
