"""A run's folder, the rows that its configuration names, and the bundle that a path names."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from widedeep.bundle import Bundle
from widedeep.bundle.manifest import MANIFEST
from widedeep.bundle.plain_json import plain
from widedeep.cli.output import address_of, free_path, remember_url
from widedeep.cli.parser import typed_options
from widedeep.cli.remote_runs import fetched_run
from widedeep.config import load_config
from widedeep.data.fragments import InputRecord
from widedeep.data.lake_tables import pinned
from widedeep.data.paths import local_files
from widedeep.data.sources import RowShare, split_rows
from widedeep.errors import BundleError, ConfigError
from widedeep.files import held_folder, write_text_whole
from widedeep.gate.verdict import verdict_path
from widedeep.options import as_table
from widedeep.publish.storage import LocalStore
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first
from widedeep.remote import RemoteFile, check_local, is_url, local_path, open_filesystem
from widedeep.schema import Schema
from widedeep.serving.loading import whole_bundle
from widedeep.serving.remote_models import STATE, RemoteModels
from widedeep.serving.versions import Latest, make_plan, read_state, version_key
from widedeep.training.checkpoint import CheckpointDirectory
from widedeep.training.config import DATA_PATHS, RunConfig

RunState = Literal["new", "unfinished", "finished"]


# What may differ when a run goes on; all else would make it another run.
_MAY_CHANGE = {
    "data": {"test"},
    "train": {
        "epochs",
        "early_stopping",
        "patience",
        "monitor",
        "eval_every",
        "eval_seconds",
        "stop_at",
        "checkpoint_every",
        "checkpoint_seconds",
        "metrics",
        "log",
        "threads",
    },
    "distributed": {"timeout"},
}

# What configurations recorded, by section and key, before these defaults had a name of their own.
_RECORDED_DEFAULTS = {("model", "embedding_std"): 0.02, ("train", "schedule"): "wsd"}


class RunDirectory:
    """A run folder and its files."""

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
        self.attributions = self.path / "attributions.json"
        self.bundle = self.path / "bundle"
        self.candidate = self.path / "candidate"
        self._held: contextlib.ExitStack | None = None

    @classmethod
    def of_config(
        cls, config: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
    ) -> RunDirectory:
        """Return the folder of a configuration file's run: ``runs/<its name>``, or ``out``."""
        advice = "widedeep train --out URL trains a run behind it"
        check_local(out or "", "--out", advice)
        return cls(out or Path("runs") / Path(config).stem)

    @property
    def state(self) -> RunState:
        """Progress of the run; with a fitted schema alone it is new."""
        if self.metrics.exists():
            return "finished"
        return "unfinished" if CheckpointDirectory(self.checkpoints).begun() else "new"

    def check_free(self) -> None:
        """Raise a :class:`ConfigError` if a run is here that would be overwritten."""
        if self.state == "finished":
            raise ConfigError(
                f"{self.path}: holds a finished run; --resume trains it on (with more epochs), "
                "--force replaces it, --out DIR writes elsewhere"
            )
        if self.state == "unfinished":
            steps = CheckpointDirectory(self.checkpoints).steps()[-1:]
            where = f"stopped at step {steps[0]:,}" if steps else "stopped between its members"
            raise ConfigError(
                f"{self.path}: holds a run that {where}; --resume goes on, "
                "--force starts anew, --out DIR writes elsewhere"
            )

    def hold(self) -> None:
        """Let no other process train into the folder, until the end of a ``with``."""
        if self._held is None:
            self._make()
            self._held = contextlib.ExitStack()
            self._held.enter_context(held_folder(self.path))

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        """Let other processes train into the folder again."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def clear(self) -> None:
        """Delete the files of a run, except for the prepared schema; other files stay."""
        for file in (self.metrics, self.history, self.config, self.warm_start, self.attributions):
            file.unlink(missing_ok=True)
        for file in self.path.glob(f"{self.candidate.name}.*"):
            file.unlink()
        for folder in (self.checkpoints, self.stream, self.bundle, self.candidate):
            if folder.exists():
                shutil.rmtree(folder)

    def save_config(self, config: RunConfig) -> None:
        """Write the resolved configuration, with absolute paths."""
        self._make()
        self._write(self.config, _with_absolute_paths(config).to_toml())

    def check_warm_start(self, model: str | os.PathLike[str]) -> None:
        """Refuse to go on from another model than the run began with."""
        began = json.loads(self.warm_start.read_text()) if self.warm_start.exists() else {}
        if not began or not Path(began["path"]).is_relative_to(model):
            origin = f"from {began['path']}" if began else "without one"
            raise ConfigError(
                f"{self.path}: got --warm-start {model} with --resume, but this run began "
                f"{origin}; leave it out, or start a new run (--out DIR, without --resume)"
            )

    def check_same_config(self, config: RunConfig) -> None:
        """Raise unless the run that stopped here can go on with this configuration."""
        if not self.config.exists():
            return
        defaults = {"distributed": as_table(DistributedConfig())}
        before = defaults | load_config(self.config).to_table()
        present = defaults | _with_absolute_paths(config).to_table()
        for section, now in present.items():
            free = _MAY_CHANGE.get(section, set())
            for key in sorted({*now, *before[section]} - free):
                old, new = before[section].get(key), now.get(key)
                is_open = new in (None, "auto") and config.model.compat is None
                if is_open and old is not None and old == _RECORDED_DEFAULTS.get((section, key)):
                    continue
                if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
                    raise ConfigError(
                        f"{self.path}: the run that stopped here had {section}.{key} = {old!r}, "
                        f"now it is {new!r}; go on with the old value, or start anew (--force, or "
                        "--out DIR)"
                    )

    def save_schema(self, schema: Schema, inputs: Sequence[InputRecord]) -> None:
        """Write a fitted schema and the record of its inputs."""
        self._make()
        self.inputs.unlink(missing_ok=True)
        schema.save(self.schema)
        record = {"fingerprint": schema.fingerprint, "inputs": list(inputs)}
        self.write_json(self.inputs, record)

    def fitted_inputs(self) -> list[InputRecord] | None:
        """Return the record of the schema's inputs, or None if there is no schema."""
        if not (self.schema.exists() and self.inputs.exists()):
            return None
        inputs: list[InputRecord] = json.loads(self.inputs.read_text(encoding="utf-8"))["inputs"]
        return inputs

    def read_metrics(self) -> Mapping[str, Any]:
        """Return the run's metrics; empty if the run is not finished."""
        if not self.metrics.exists():
            return {}
        metrics: dict[str, Any] = json.loads(self.metrics.read_text(encoding="utf-8"))
        return metrics

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
        f"{path}: cannot be written ({error.strerror or error}); make room, or choose another "
        "folder with --out DIR"
    )


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """A configuration means the same files wherever it is read."""
    paths: dict[str, Any] = {
        name: absolute_paths(getattr(config.data, name)) for name in DATA_PATHS
    }
    return replace(config, data=replace(config.data, **paths))


def pin_tables(config: RunConfig, ranks: Ranks) -> RunConfig:
    """Name the newest version of each table of Delta Lake or Iceberg, so that a run reads one."""

    def paths() -> dict[str, Any]:
        return {name: pinned(getattr(config.data, name)) for name in DATA_PATHS}

    return replace(config, data=replace(config.data, **on_first(ranks, paths, "the data's names")))


def absolute_paths(paths: str | list[str] | None) -> str | list[str] | None:
    """Return paths that mean the same files in any working folder."""
    if isinstance(paths, list):
        return [str(absolute_paths(item)) for item in paths]
    return paths if paths is None or "://" in paths else os.path.abspath(paths)


# ---- the rows that a configuration names --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Labelled rows to evaluate a model on."""

    data: Any  # As :func:`widedeep.data.sources.open_source` takes it
    note: str | None = None  # Origin of the rows, where the command did not name them

    @property
    def origin(self) -> str | list[str]:
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


def _text(paths: str | list[str]) -> str:
    return ", ".join(paths) if isinstance(paths, list) else paths


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
    address = address_of(run.path)
    if not run.config.exists():
        raise ConfigError(f"{address}: no {run.config.name} that would name test data")
    config = load_config(run.config)
    if config.data.test is not None:
        rows = LabelledRows(data=config.data.test)
        return replace(rows, note=f"the test data of {address} ({_text(rows.origin)})")
    valid = None if config.data.train is None else training_data(config)[1]
    if valid is None:
        raise ConfigError(f"{address}/{run.config.name}: names neither test nor validation data")
    rows = LabelledRows(data=valid)
    return replace(
        rows,
        note=f"the validation data of {address} ({_text(rows.origin)}), which names no test data; "
        "the model may have been chosen by them",
    )


def labelled_rows(words: Sequence[str], model: Path) -> LabelledRows:
    """Return the labelled rows that a command names, or those of the model's run."""
    run = run_of(Path(words[0]) if len(words) == 1 else model)
    if words and (run is None or len(words) > 1):
        return LabelledRows(
            data=words[0] if len(words) == 1 else list(words), note=_learned(words, run_of(model))
        )
    if run is None and not model.exists():
        raise ConfigError(f"{model}: no such bundle or run; check the path")
    if run is None:
        raise ConfigError(
            f"{address_of(model)}: got no labelled data, and no run's folder whose configuration "
            "names some; name a file of labelled rows, or the run's folder"
        )
    return held_out_rows(run)


def _learned(words: Sequence[str], run: RunDirectory | None) -> str | None:
    """Say so where rows that judge a run's model are those that it learned."""
    train = None if run is None else load_config(run.config).data.train
    if run is None or not local_files(list(words)) & local_files(train):
        return None
    return f"training data of {address_of(run.path)}, which the model has learned"


def run_of(path: Path) -> RunDirectory | None:
    """Return the run whose folder, or whose bundle, a path is; None if there is none."""
    folders = (path, path.absolute().parent) if path.name == "bundle" else (path,)
    runs = [RunDirectory(folder) for folder in folders]
    return next((run for run in runs if run.config.is_file() and run.schema.is_file()), None)


# ---- the bundle that a path names ---------------------------------------------------------------


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Load a bundle from its folder or from that of a run."""
    return Bundle.load(bundle_path_of(path))


def local_model(path: str) -> Path:
    """Return a model's path; of a URL the local folder to which its bundle, or run, is fetched."""
    if not is_url(path):
        return Path(local_path(path))
    if (run := fetched_run(path)) is not None:
        return remember_url(run, path)
    remote = RemoteModels(path)
    versions = remote.refresh()
    # A bundle has one; a run's folder has its "bundle"; else it is the one that serves.
    name = "bundle" if "bundle" in versions else None
    if name is None:
        state = read_state(remote.root / STATE)
        name = make_plan(sorted(versions, key=version_key), Latest(), state).default
    if name is None:
        raise BundleError(
            f"{path}: got no bundle there, nor versions of which one serves; check the address"
        )
    url = path.rstrip("/") if remote.is_bundle else f"{path.rstrip('/')}/{name}"
    bundle = remember_url(remote.fetch(name), url)
    fs, file = open_filesystem(verdict_address(url))
    with contextlib.suppress(OSError):  # it may not have been judged
        write_text_whole(verdict_path(bundle), RemoteFile(url, file, fs).read_text())
    return bundle


def verdict_address(bundle: str, suffix: str = ".json") -> str:
    """Return the URL of a verdict, or of its page (``.html``), beside a bundle behind a URL."""
    return f"{bundle}.verdict{suffix}"


def model_to_start_from(path: str) -> Path:
    """Return a run, a checkpoint or a bundle, whole; of a URL what is fetched from there."""
    run = fetched_run(path, checkpoints=True) if is_url(path) else None
    model = local_model(path) if run is None else remember_url(run, path)
    return _whole(model) if (model / MANIFEST).exists() else model


def holds_bundle(url: str) -> bool:
    """Tell whether a URL is that of a bundle, or of a run's folder with one."""
    remote = RemoteModels(url)
    return "bundle" in remote.refresh() or remote.is_bundle


def bundle_path_of(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle, or of the one in a run's folder."""
    path = local_model(os.fspath(path))
    inner = path / "bundle"
    if not (path / MANIFEST).exists():
        if inner.is_dir():
            return inner
        if (path / "checkpoints").is_dir() or (path / "state.json").exists():
            raise BundleError(
                f"{path}: got checkpoints without a bundle; write one: "
                f"widedeep export {path} -o BUNDLE"
            )
    return _whole(path)


def _whole(path: Path) -> Path:
    """Return a bundle's folder; of a patch, a whole copy that is there until this process ends."""
    stack = contextlib.ExitStack()
    whole = stack.enter_context(whole_bundle(path))
    atexit.register(stack.close)
    return whole


def served_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the bundle in service: of a folder of versions, the one that takes the traffic."""
    folder = local_model(os.fspath(path))
    if not folder.is_dir():
        raise BundleError(
            f"{path}: no such folder, expected the serving model; check the path, or leave "
            "--against out to validate a first model by itself"
        )
    if (folder / MANIFEST).exists() or (folder / "bundle").is_dir():
        return bundle_path_of(folder)
    version = LocalStore(folder).served()
    if version is None:
        raise BundleError(
            f"{path}: got a folder without a serving version; leave --against out to validate a "
            "first model by itself"
        )
    return _whole(folder / version)


# ---- what to do next ----------------------------------------------------------------------------


def train_command(arguments: argparse.Namespace) -> list[str]:
    """Return the command that trains a checked or prepared configuration, into a free folder."""
    words = ["train", arguments.config, *typed_options(arguments, "--set")]
    run = RunDirectory.of_config(arguments.config, getattr(arguments, "out", None))
    if run.state == "finished":
        return [*words, "--out", str(free_path(run.path))]
    words += typed_options(arguments, "--out")
    return [*words, "--resume"] if run.state == "unfinished" else words
