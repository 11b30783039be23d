"""The bundle that a path names: itself, or the one in a run's folder."""

from __future__ import annotations

import os
from pathlib import Path

from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import BundleError

__all__ = ["load_bundle"]


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Load a bundle from its folder or from that of a run.

    Args:
        path: A bundle's folder, or a run's folder that holds ``bundle/``.

    Raises:
        BundleError: If there is none, or it is damaged.
    """
    path = Path(path)
    inner = path / "bundle"
    if not (path / MANIFEST).exists():
        if inner.is_dir():
            return Bundle.load(inner)
        if (path / "checkpoints").is_dir() or (path / "state.json").exists():
            raise BundleError(
                f"{path}: got checkpoints without a bundle; write one: "
                f"widedeep export {path} -o BUNDLE"
            )
    return Bundle.load(path)
