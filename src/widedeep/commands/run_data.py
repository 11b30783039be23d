"""The rows that a run's configuration names: to train on, and to be judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from widedeep.commands.run_directory import RunDirectory
from widedeep.config import load_config
from widedeep.data.sources import RowShare, split_rows
from widedeep.errors import ConfigError
from widedeep.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows that a model is measured on."""

    data: Any  # What :func:`widedeep.data.sources.open_source` reads
    note: str | None = None  # Whose rows they are, where they were not named one by one

    @property
    def place(self) -> str | list[str]:
        """The paths, with the share of their rows that is meant, if it is a share."""
        if isinstance(self.data, RowShare):
            fraction = self.data.stop - self.data.start
            order = "" if self.data.latest is None else f", the latest by {self.data.latest}"
            return f"{_text(self.data.data)} ({fraction:.3g} of the rows{order})"
        paths: str | list[str] = self.data
        return paths

    @property
    def heading(self) -> str:
        """A few letters for the head of a table."""
        if isinstance(self.data, str):
            return Path(self.data).name
        return f"{len(self.data)} files" if isinstance(self.data, list) else "valid"


def _text(place: str | list[str]) -> str:
    return ", ".join(place) if isinstance(place, list) else place


def training_data(config: RunConfig) -> tuple[Any, Any | None]:
    """Return the training data and the validation data that a configuration names."""
    data = config.data
    if data.train is None:
        raise ConfigError('got no training data; write train = "FILE" under [data]')
    if data.valid is None and data.valid_fraction:
        # One split for every seed: runs that differ in their seed are judged on the same rows.
        return split_rows(
            data.train, data.valid_fraction, by=data.valid_by, latest=data.valid_latest
        )
    return data.train, data.valid


def held_out_rows(run: RunDirectory) -> LabelledRows:
    """Return the test rows of a run, else its validation rows, and a note that says which."""
    if not run.config.exists():
        raise ConfigError(f"{run.path}: no {run.config.name} that would name test data")
    config = load_config(run.config)
    if config.data.test is not None:
        rows = LabelledRows(data=config.data.test)
        return replace(rows, note=f"the test data of {run.path} ({_text(rows.place)})")
    valid = None if config.data.train is None else training_data(config)[1]
    if valid is None:
        raise ConfigError(f"{run.config}: names neither test nor validation data")
    rows = LabelledRows(data=valid)
    return replace(
        rows,
        note=f"the validation data of {run.path} ({_text(rows.place)}), which names no test data; "
        "the model may have been chosen by them",
    )


def labelled_rows(words: Sequence[str], model: Path) -> LabelledRows:
    """Return the rows that a command is told to measure a model on."""
    run = run_of(Path(words[0]) if len(words) == 1 else model)
    if words and (run is None or len(words) > 1):
        return LabelledRows(data=words[0] if len(words) == 1 else list(words))
    if run is None:
        raise ConfigError(
            f"{model}: got no labelled data, and no run's folder whose configuration names some; "
            "name a file"
        )
    return held_out_rows(run)


def run_of(path: Path) -> RunDirectory | None:
    """Return the run that a path is the folder of, or the bundle in it; None if there is none."""
    folders = (path, path.absolute().parent) if path.name == "bundle" else (path,)
    runs = [RunDirectory(folder) for folder in folders]
    return next((run for run in runs if run.config.is_file() and run.schema.is_file()), None)
