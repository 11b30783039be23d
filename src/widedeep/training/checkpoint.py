"""Checkpoints: everything needed to go on, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import CheckpointError, DataError
from widedeep.files import (
    atomic_directory,
    file_sha256,
    map_tensors,
    write_tensors,
    write_text_whole,
)
from widedeep.schema import Schema

__all__ = [
    "Checkpoint",
    "CheckpointDirectory",
    "find_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

CHECKPOINT_FORMAT = 1
_STEP = re.compile(r"step-(\d{10})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at one step.

    Args:
        step: Steps done.
        state: What fits in JSON: position, history, configuration, early stopping.
        tensors: Tables, optimizer state, dense parameters; mapped from the file when read.
        schema: The schema the model was made for.
    """

    step: int
    state: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    schema: Schema


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint directory; a run killed at any moment leaves the old one or the new one.

    Raises:
        CheckpointError: If it cannot be written (a full disk, no permission); nothing half-written
            is left.
    """
    try:
        with atomic_directory(path) as folder:
            write_tensors(folder / "tensors.safetensors", checkpoint.tensors)
            checkpoint.schema.write(folder / "schema.safetensors")
            sums = {
                name: file_sha256(folder / name)
                for name in ("tensors.safetensors", "schema.safetensors")
            }
            state = {
                "format": CHECKPOINT_FORMAT,
                "step": checkpoint.step,
                "sha256": sums,
                "state": checkpoint.state,
            }
            (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write the checkpoint ({error.strerror or error}); free some space or "
            "choose another directory; earlier checkpoints are as they were"
        ) from error


def read_checkpoint(path: str | os.PathLike[str], *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint directory.

    Args:
        path: A directory written by :func:`write_checkpoint`.
        verify: Compare checksums.

    Raises:
        CheckpointError: If it is missing, incomplete, damaged or of another format.
    """
    path = Path(path)
    try:
        stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: got no checkpoint (state.json is not there); name a step-* directory"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}/state.json is damaged ({error}); use an earlier checkpoint"
        ) from error
    if stored.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: got checkpoint format {stored.get('format')}, expected {CHECKPOINT_FORMAT}"
        )
    for name, expected in stored["sha256"].items():
        if not (path / name).exists():
            raise CheckpointError(f"{path}: {name} is not there; use an earlier checkpoint")
        if verify and file_sha256(path / name) != expected:
            raise CheckpointError(
                f"{path}/{name}: its checksum is wrong, the file is damaged; use an earlier "
                "checkpoint"
            )
    try:
        tensors = map_tensors(path / "tensors.safetensors")
        schema = Schema.load(path / "schema.safetensors")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(step=stored["step"], state=stored["state"], tensors=tensors, schema=schema)


class CheckpointDirectory:
    """A run's checkpoints: the last few, and the best.

    Args:
        path: The directory; created if it does not exist.
        keep_last: How many of the latest to keep, at least 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_last: int = 3) -> None:
        if keep_last < 1:
            raise CheckpointError(f"got keep_last={keep_last}, expected at least 1")
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

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.path_of(steps[-1]) if steps else None

    def best(self) -> Path | None:
        """The checkpoint with the best validation metric, or None."""
        marker = self.path / "best.json"
        if not marker.exists():
            return None
        path = self.path_of(int(json.loads(marker.read_text())["step"]))
        return path if path.is_dir() else None

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Write a checkpoint, mark it best if it is, and delete those no longer kept.

        Raises:
            CheckpointError: If it cannot be written.
        """
        path = self.path_of(checkpoint.step)
        write_checkpoint(path, checkpoint)
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
    """Return torch tensors or arrays as NumPy arrays, by the same names."""
    return {
        name: value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        for name, value in arrays.items()
    }
