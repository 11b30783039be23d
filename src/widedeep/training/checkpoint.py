"""Checkpoints: everything needed to go on, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import CheckpointError, DataError
from widedeep.files import (
    file_sha256,
    map_tensors,
    part_paths,
    write_tensors,
    write_text_whole,
)
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.rows import ShardedRows
from widedeep.ranks.shared import shared_directory, shared_failures
from widedeep.remote import check_local
from widedeep.schema import Schema

__all__ = [
    "Checkpoint",
    "CheckpointDirectory",
    "find_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

CHECKPOINT_FORMAT = 1
SHARDED_FORMAT = 2  # Of several ranks: each has a file of its own rows
_SCHEMA, _TENSORS = "schema.safetensors", "tensors.safetensors"
_STEP = re.compile(r"step-(\d{10})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at one step.

    Args:
        step: Steps done.
        state: What fits in JSON: position, history, configuration, early stopping.
        tensors: Tables, optimizer state, dense parameters; mapped from the file when read. What
            ranks share is read as :class:`widedeep.ranks.rows.ShardedRows`.
        schema: The schema the model was made for.
        ranks: The processes that write it together.
        tables: Table and number of its rows on all ranks, of each tensor that holds this rank's.
    """

    step: int
    state: Mapping[str, Any]
    tensors: Mapping[str, Any]
    schema: Schema
    ranks: Ranks = field(default_factory=Ranks)
    tables: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint directory; a run killed at any moment leaves the old one or the new one.

    Raises:
        CheckpointError: If it cannot be written (a full disk, no permission); nothing half-written
            is left.
    """
    ranks = checkpoint.ranks
    try:
        with shared_directory(ranks, path) as folder:
            with shared_failures(ranks):
                own = _write_part(folder, checkpoint)
            sums = {name: sum_ for part in ranks.gather_json(own) for name, sum_ in part.items()}
            with shared_failures(ranks):
                if ranks.is_first:
                    _write_state(folder, checkpoint, sums)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write the checkpoint ({error.strerror or error}); free some space or "
            "choose another directory; earlier checkpoints are as they were"
        ) from error


def _write_part(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Write this rank's rows, and on the first rank what all have; return its checksum."""
    ranks, tensors = checkpoint.ranks, checkpoint.tensors
    if not ranks.is_first:
        tensors = {name: rows for name, rows in tensors.items() if name in checkpoint.tables}
    file = part_paths(folder / _TENSORS, ranks.size)[ranks.rank]
    write_tensors(file, tensors)
    return {file.name: file_sha256(file)}


def _write_state(folder: Path, checkpoint: Checkpoint, sums: Mapping[str, str]) -> None:
    checkpoint.schema.write(folder / _SCHEMA)
    state = {
        "format": CHECKPOINT_FORMAT,
        "step": checkpoint.step,
        "sha256": {**sums, _SCHEMA: file_sha256(folder / _SCHEMA)},
        "state": checkpoint.state,
    }
    if checkpoint.ranks.size > 1:
        state |= {"format": SHARDED_FORMAT, "tables": checkpoint.tables}
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_checkpoint(
    path: str | os.PathLike[str], *, verify: bool = True, ranks: Ranks | None = None
) -> Checkpoint:
    """Read a checkpoint directory, of one process or of any number of ranks.

    Args:
        path: A directory written by :func:`write_checkpoint`.
        verify: Compare checksums.
        ranks: The processes that read it together, each of which compares some of the checksums.

    Raises:
        CheckpointError: If it is missing, incomplete, damaged or of another format.
    """
    path, ranks = Path(path), ranks or Ranks()
    with shared_failures(ranks):
        stored = _read_state(path)
        files = stored["sha256"].items()
        for number, (name, expected) in enumerate(files):
            if not (path / name).exists():
                raise CheckpointError(f"{path}: {name} is not there; use an earlier checkpoint")
            is_own = number % ranks.size == ranks.rank
            if verify and is_own and file_sha256(path / name) != expected:
                raise CheckpointError(
                    f"{path}/{name}: its checksum is wrong, the file is damaged; use an earlier "
                    "checkpoint"
                )
        tensors: Mapping[str, Any]
        try:
            parts = [
                map_tensors(path / name) for name in sorted(stored["sha256"]) if name != _SCHEMA
            ]
            tensors = parts[0]
            if stored["format"] == SHARDED_FORMAT:
                tensors = _join_parts(path, parts, stored["tables"])
            schema = Schema.load(path / _SCHEMA)
        except DataError as error:
            raise CheckpointError(str(error)) from error
    return Checkpoint(step=stored["step"], state=stored["state"], tensors=tensors, schema=schema)


def _read_state(path: Path) -> Mapping[str, Any]:
    try:
        stored: Mapping[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: got no checkpoint (state.json is not there); name a step-* directory"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}/state.json is damaged ({error}); use an earlier checkpoint"
        ) from error
    if stored.get("format") not in (CHECKPOINT_FORMAT, SHARDED_FORMAT):
        raise CheckpointError(
            f"{path}: got checkpoint format {stored.get('format')}, expected {CHECKPOINT_FORMAT} "
            f"or {SHARDED_FORMAT}"
        )
    return stored


def _join_parts(
    path: Path, parts: list[dict[str, NDArray[Any]]], tables: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    """Return the tensors of all ranks' files; what they share is read by ids."""
    tensors: dict[str, Any] = dict(parts[0])
    for name, (table, size) in tables.items():
        layout = Layout(table, size, len(parts))
        rows = [shard[name] for shard in parts if name in shard]
        if [len(shard) for shard in rows] != [layout.rows_of(rank) for rank in range(len(parts))]:
            raise CheckpointError(
                f"{path}: the rows of {name!r} in its {len(parts)} files are not the {size:,} of "
                "the table; use an earlier checkpoint"
            )
        tensors[name] = ShardedRows(layout, rows)
    return tensors


class CheckpointDirectory:
    """A run's checkpoints: the last few, and the best.

    Args:
        path: The directory; created if it does not exist.
        keep_last: How many of the latest to keep, at least 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_last: int = 3) -> None:
        if keep_last < 1:
            raise CheckpointError(f"got keep_last={keep_last}, expected at least 1")
        check_local(path, "checkpoints")
        self.path = Path(path)
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        if not self.path.is_dir():
            return []
        matches = [_STEP.fullmatch(entry.name) for entry in self.path.iterdir()]
        return sorted(int(match.group(1)) for match in matches if match)

    def path_of(self, step: int) -> Path:
        """Return the directory of a step's checkpoint."""
        return self.path / f"step-{step:010d}"

    def latest(self, ranks: Ranks | None = None) -> Path | None:
        """The newest checkpoint, or None; with ``ranks`` the one that the first of them sees."""
        steps = (ranks or Ranks()).broadcast(self.steps()[-1:], "the newest checkpoint")
        return self.path_of(steps[0]) if steps else None

    def of_member(self, number: int) -> CheckpointDirectory:
        """The checkpoints of a member that trains apart, counted from 1."""
        folder = self.path / f"member-{number}"
        return CheckpointDirectory(folder, keep_last=self.keep_last)

    def begun(self, ranks: Ranks | None = None) -> Path | None:
        """The newest checkpoint, or else that of the first member; None: nothing is learned."""
        return self.latest(ranks) or self.of_member(1).latest(ranks)

    def best(self, ranks: Ranks | None = None) -> Path | None:
        """The checkpoint with the best validation metric, or None; with ``ranks`` of the first."""
        marker, step = self.path / "best.json", None
        if marker.exists():
            step = int(json.loads(marker.read_text())["step"])
        step = (ranks or Ranks()).broadcast(step, "the best checkpoint")
        return self.path_of(step) if step is not None and self.path_of(step).is_dir() else None

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Write a checkpoint, mark it best if it is, and delete those no longer kept.

        Raises:
            CheckpointError: If it cannot be written.
        """
        path = self.path_of(checkpoint.step)
        write_checkpoint(path, checkpoint)
        with shared_failures(checkpoint.ranks):
            if checkpoint.ranks.is_first:
                if best:
                    self._mark_best(checkpoint.step)
                self._prune()
        return path

    def _mark_best(self, step: int) -> None:
        marker = self.path / "best.json"
        try:
            write_text_whole(marker, json.dumps({"step": step}))
        except OSError as error:
            raise CheckpointError(
                f"{marker}: cannot be written ({error.strerror or error}); free some space; the "
                f"checkpoint of step {step:,} is there, but not marked as the best"
            ) from error

    def _prune(self) -> None:
        best = self.best()
        for step in self.steps()[: -self.keep_last]:
            if self.path_of(step) != best:
                shutil.rmtree(self.path_of(step), ignore_errors=True)
        for entry in self.path.glob(".step-*.tmp"):
            shutil.rmtree(entry, ignore_errors=True)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return a checkpoint's folder: the best, or else the newest, of a run or a folder of them.

    Args:
        path: A run's folder, a folder of checkpoints, or a ``step-*`` folder.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(path)
    if (path / "state.json").exists():
        return path
    for folder in (path / "checkpoints", path):
        checkpoints = CheckpointDirectory(folder)
        checkpoint = checkpoints.best() or checkpoints.latest()
        if checkpoint is not None:
            return checkpoint
    raise CheckpointError(
        f"{path}: got no checkpoint, expected a run's folder, or a step-* folder of its checkpoints"
    )


def as_arrays(arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return torch tensors or arrays as NumPy arrays, by the same names; bfloat16 as its bits."""
    from widedeep.kernels.torch_ops import as_array  # scoring needs no torch

    return {
        name: value if isinstance(value, np.ndarray) else as_array(value.detach().cpu())
        for name, value in arrays.items()
    }
