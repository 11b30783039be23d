"""RunDirectory: where a run keeps its configuration, schema, checkpoints, metrics and bundle."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from widedeep.bundle.plain_json import plain
from widedeep.config import load_config
from widedeep.data.fragments import InputRecord
from widedeep.errors import ConfigError
from widedeep.files import write_text_whole
from widedeep.schema import Schema
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.config import RunConfig

RunState = Literal["new", "unfinished", "finished"]

# What may differ when a run goes on; all else would make it another run.
_MAY_CHANGE = {
    "data": {"test"},
    "train": {"epochs", "early_stopping", "patience", "monitor", "eval_every", "threads"},
}


class RunDirectory:
    """A run's folder and the places in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.schema = self.path / "schema.safetensors"
        self.inputs = self.path / "inputs.json"
        self.encoded = self.path / "encoded"
        self.checkpoints = self.path / "checkpoints"
        self.stream = self.path / "stream"
        self.history = self.path / "history.json"
        self.metrics = self.path / "metrics.json"
        self.warm_start = self.path / "warm_start.json"
        self.bundle = self.path / "bundle"
        self.candidate = self.path / "candidate"

    @classmethod
    def of_config(
        cls, config: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
    ) -> RunDirectory:
        """Return the folder of a configuration file's run: ``runs/<its name>``, or ``out``."""
        return cls(out or Path("runs") / Path(config).stem)

    @property
    def state(self) -> RunState:
        """How far a run got here; a fitted schema alone is a new run."""
        if self.metrics.exists():
            return "finished"
        return "unfinished" if CheckpointDirectory(self.checkpoints).steps() else "new"

    def check_free(self) -> None:
        """Raise a :class:`ConfigError` if a run is here that would be overwritten."""
        if self.state == "finished":
            raise ConfigError(
                f"{self.path}: holds a finished run; --resume trains it on (with more epochs), "
                "--force replaces it, --out DIR writes elsewhere"
            )
        if self.state == "unfinished":
            step = CheckpointDirectory(self.checkpoints).steps()[-1]
            raise ConfigError(
                f"{self.path}: holds a run that stopped at step {step:,}; --resume goes on, "
                "--force starts anew, --out DIR writes elsewhere"
            )

    def clear(self) -> None:
        """Delete what a run left here, but for what was prepared; other files stay."""
        for place in (self.metrics, self.history, self.config, self.warm_start):
            place.unlink(missing_ok=True)
        for place in self.path.glob(f"{self.candidate.name}.*"):
            place.unlink()
        for folder in (self.checkpoints, self.stream, self.bundle, self.candidate):
            if folder.exists():
                shutil.rmtree(folder)

    def save_config(self, config: RunConfig) -> None:
        """Write the resolved configuration, with absolute paths."""
        self._make()
        self._write(self.config, _with_absolute_paths(config).to_toml())

    def check_same_config(self, config: RunConfig) -> None:
        """Raise unless the run that stopped here can go on with this configuration."""
        if not self.config.exists():
            return
        before = load_config(self.config).to_table()
        for section, now in _with_absolute_paths(config).to_table().items():
            free = _MAY_CHANGE.get(section, set())
            for key in sorted({*now, *before[section]} - free):
                old, new = before[section].get(key), now.get(key)
                if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
                    raise ConfigError(
                        f"{self.path}: the run that stopped here had {section}.{key} = {old!r}, "
                        f"now it is {new!r}; go on with the old value, or start anew (--force, or "
                        "--out DIR)"
                    )

    def save_schema(self, schema: Schema, inputs: Sequence[InputRecord]) -> None:
        """Write a fitted schema, and what it was fitted on."""
        self._make()
        self.inputs.unlink(missing_ok=True)
        schema.save(self.schema)
        record = {"fingerprint": schema.fingerprint, "inputs": list(inputs)}
        self.write_json(self.inputs, record)

    def fitted_inputs(self) -> list[InputRecord] | None:
        """Return what the schema here was fitted on, or None if there is none."""
        if not (self.schema.exists() and self.inputs.exists()):
            return None
        inputs: list[InputRecord] = json.loads(self.inputs.read_text(encoding="utf-8"))["inputs"]
        return inputs

    def read_metrics(self) -> Mapping[str, Any]:
        """Return what :attr:`metrics` holds; nothing if the run is not finished."""
        if not self.metrics.exists():
            return {}
        found: dict[str, Any] = json.loads(self.metrics.read_text(encoding="utf-8"))
        return found

    def write_json(self, path: Path, value: object) -> None:
        """Write a value as JSON, whole or not at all; NaN becomes null."""
        text = json.dumps(plain(value, path.name), indent=1, ensure_ascii=False, allow_nan=False)
        self._write(path, text + "\n")

    def _write(self, path: Path, text: str) -> None:
        try:
            write_text_whole(path, text)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be written ({error.strerror or error}); make room, or name another folder "
        "with --out DIR"
    )


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """A configuration means the same files wherever it is read."""
    data = config.data
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data,
            train=_absolute(data.train),
            valid=_absolute(data.valid),
            test=_absolute(data.test),
        ),
    )


def _absolute(place: str | list[str] | None) -> str | list[str] | None:
    if isinstance(place, list):
        return [os.path.abspath(item) for item in place]
    return None if place is None else os.path.abspath(place)
