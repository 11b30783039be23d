"""The bundle that a path names: itself, or the one in a run's folder."""

from __future__ import annotations

import os
from pathlib import Path

from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST
from widedeep.errors import BundleError
from widedeep.publish.storage import LocalPlace


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Load a bundle from its folder or from that of a run."""
    return Bundle.load(bundle_place(path))


def bundle_place(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle, or of the one in a run's folder."""
    path = Path(path)
    inner = path / "bundle"
    if not (path / MANIFEST).exists():
        if inner.is_dir():
            return inner
        if (path / "checkpoints").is_dir() or (path / "state.json").exists():
            raise BundleError(
                f"{path}: got checkpoints without a bundle; write one: "
                f"widedeep export {path} -o BUNDLE"
            )
    return path


def served_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the bundle in service: of a folder of versions, the one that takes the traffic."""
    place = Path(path)
    if not place.is_dir():
        raise BundleError(
            f"{path}: the model in service is gone: there is no such folder; name where it is, or "
            "leave --against out to judge a first model on its own"
        )
    if (place / MANIFEST).exists() or (place / "bundle").is_dir():
        return bundle_place(place)
    version = LocalPlace(place).served()
    if version is None:
        raise BundleError(
            f"{path}: got a folder without a version that serves; leave --against out to judge a "
            "first model on its own"
        )
    return place / version
