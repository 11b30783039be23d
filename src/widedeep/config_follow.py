"""FollowConfig: what becomes of a model that goes on learning, ``[follow]`` in a TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widedeep.config import _check_range, check_types, read_section, read_tables
from widedeep.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class FollowConfig:
    """When a run that follows a folder writes a bundle, and where it publishes what passes."""

    publish: str | None = None  # The directory of versions, or its URL; None publishes nothing
    export_rows: int | None = None  # Rows learned since the last bundle; None: not by rows
    export_minutes: float | None = None  # Time since then; None: not by time
    # The gate judges on the newest shards, before they are learned: so many that they hold at least
    # this many rows
    judge_rows: int = 10_000

    def __post_init__(self) -> None:
        owner = "[follow]"
        check_types(self, owner)
        for name in ("export_rows", "judge_rows"):
            value = getattr(self, name)
            inside = value is None or value >= 1
            _check_range(owner, name, value, inside, "an integer of at least 1")
        minutes = self.export_minutes
        inside = minutes is None or minutes > 0
        _check_range(owner, "export_minutes", minutes or 0.0, inside, "a number above 0")


def load_follow_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> FollowConfig:
    """Read the ``[follow]`` section of a run's TOML file."""
    table = _section(read_tables(path), str(path))
    place = table.get("publish")
    if isinstance(place, str) and "://" not in place:
        table["publish"] = str(Path(path).parent / place)
    mine = [text for text in overrides if text.strip().startswith("follow.")]
    table |= _section(read_tables(os.devnull, mine), "--set")
    table |= {key: value for key, value in (options or {}).items() if value is not None}
    found = read_section(FollowConfig, table, f"{path}: [follow]")
    assert isinstance(found, FollowConfig)
    if found.publish is not None and found.export_rows is None and found.export_minutes is None:
        raise ConfigError(
            f"got {found.publish!r} to publish to, but not when; add --export-rows N or "
            "--export-minutes M (export_rows, export_minutes under [follow])"
        )
    return found


def _section(tables: Mapping[str, Any], origin: str) -> dict[str, Any]:
    table = tables.get("follow", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{origin}: got follow = {table!r}, expected a section [follow]")
    return dict(table)
