"""The lineage of a directory of versions: their parents, records and states."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widedeep.bundle.manifest import MANIFEST
from widedeep.publish.publishing import PublishRecord
from widedeep.publish.storage import RECORDS, open_store
from widedeep.serving.versions import version_key

__all__ = ["PublishedVersion", "is_models_directory", "read_lineage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedVersion:
    """A version, its record and its state.

    Args:
        version: Name of the version.
        record: Record of its publication; None if it was copied there by hand.
        exists: False if the bundle was deleted and only its record remains.
        serves: True if it takes the traffic.
        withdrawn: True after a rollback.
        labels: Labels that operators gave the version.
        depth: Number of ancestors.
    """

    version: str
    record: PublishRecord | None
    exists: bool
    serves: bool
    withdrawn: bool
    labels: tuple[str, ...]
    depth: int

    def to_json(self) -> dict[str, Any]:
        """Return the version's state as plain values, without the record."""
        return {
            "version": self.version,
            "there": self.exists,
            "serves": self.serves,
            "withdrawn": self.withdrawn,
            "labels": list(self.labels),
            "depth": self.depth,
        }


def is_models_directory(path: Path) -> bool:
    """Return whether a directory holds versions, and is neither a bundle nor a run."""
    if not path.is_dir() or (path / MANIFEST).exists() or (path / "bundle").is_dir():
        return False
    if (path / RECORDS).is_dir():
        return True
    return any((entry / MANIFEST).is_file() for entry in path.iterdir() if entry.is_dir())


def read_lineage(models: str | os.PathLike[str]) -> list[PublishedVersion]:
    """Return every version of a directory, oldest first.

    Args:
        models: The directory, or its URL.

    Raises:
        ConfigError: If a record or the servers' state cannot be read.
    """
    store = open_store(models)
    present = store.versions()
    records = {
        name: PublishRecord.from_text(text, origin=f"{store.name}/{RECORDS}/{name}.json")
        for name, text in store.records().items()
    }
    served = store.served()
    state = store.state()
    names = sorted({*present, *records}, key=version_key)
    depths: dict[str, int] = {}
    lineage = []
    for name in names:
        record = records.get(name)
        parent = None if record is None else record.parent
        depths[name] = depths[parent] + 1 if parent in depths else 0
        labels = tuple(k for k, v in state.labels.items() if v == name)
        lineage.append(
            PublishedVersion(
                version=name,
                record=record,
                exists=name in present,
                serves=name == served,
                withdrawn=name in state.withdrawn,
                labels=labels,
                depth=depths[name],
            )
        )
    return lineage
