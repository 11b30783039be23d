"""Which columns of a dataset that a join made are history, and how each is computed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from widedeep.data.paths import input_paths
from widedeep.data.sources import Data
from widedeep.data.split import RowShare
from widedeep.errors import DataError

_KIND = "widedeep examples"
_DELAYS = {"action_delay": "actions", "impression_delay": "impressions"}


def history_columns(data: Data, columns: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the definition of each history column among ``columns``."""
    rows = data.data if isinstance(data, RowShare) else data
    manifests = {path.parent.parent / "manifest.json" for path in input_paths(rows) or ()}
    found: dict[str, dict[str, Any]] = {}
    for manifest in sorted(manifests):
        for name, definition in _definitions(manifest).items():
            if name not in columns:
                continue
            if found.setdefault(name, definition) != definition:
                raise DataError(
                    f"column {name!r}: {manifest} defines it as {definition}, another dataset of "
                    f"the same data as {found[name]}; train on datasets of one definition"
                )
    return found


def _definitions(manifest: Path) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none, or some other program's file of that name
    if not isinstance(told, Mapping) or told.get("kind") != _KIND:
        return {}
    try:
        config = told["config"]
        delays = {
            key: (config[log] or {}).get("availability_delay", 0) for key, log in _DELAYS.items()
        }
        return {entry["name"]: {**entry, **delays} for entry in config["history"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{manifest}: got a damaged manifest ({error!r}); run the join again"
        ) from error
