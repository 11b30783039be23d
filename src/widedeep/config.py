"""A run's configuration, read from TOML and ``--set`` overrides into frozen dataclasses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from widedeep.errors import ConfigError, FeatureError
from widedeep.features.spec import DATA_KEYS, spec_from_table
from widedeep.models.config import ModelConfig
from widedeep.options import check_table, read_section, read_tables, resolve_paths, unknown_section
from widedeep.ranks.config import DistributedConfig
from widedeep.training.config import (
    DATA_PATHS,
    DataConfig,
    FollowConfig,
    RunConfig,
    TrainConfig,
    TuneConfig,
)

__all__ = [
    "DataConfig",
    "DistributedConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "load_follow_config",
    "load_tune_config",
    "read_section",
    "read_tables",
]


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    r"""Read a run's TOML file.

    Args:
        path: The file. Relative data paths in it are relative to its folder.
        overrides: ``"train.epochs=3"`` and the like; the value is read as TOML, or as text if it is
            none. Data paths in them are relative to the working folder.

    Returns:
        The configuration, checked.

    Raises:
        ConfigError: For a missing or broken file, an unknown section or key (with the nearest), or
            a bad value.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.toml"
        >>> _ = path.write_text('[data]\nlabel = "y"\n[features]\nnumeric = ["age"]\n')
        >>> load_config(path, ["train.epochs=3"]).train.epochs
        3
    """
    tables = read_tables(
        path,
        overrides,
        places=[f"data.{name}" for name in DATA_PATHS],
        missing="'widedeep init DATA' writes one",
    )
    return config_from_tables(tables, folder=Path(path).parent, origin=str(path))


def config_from_tables(
    tables: Mapping[str, Any], *, folder: Path | None = None, origin: str = "config"
) -> RunConfig:
    """Build a configuration from nested tables."""
    sections = ("data", "features", "model", "train", "distributed", "gate", "follow", "tune")
    for name, table in tables.items():
        if name not in sections:
            raise ConfigError(f"{origin}: {unknown_section(name, table, sections)}")
        check_table(table, name, origin)
    _check_later_sections(tables, origin)
    if "features" not in tables:
        raise ConfigError(f"{origin}: got no [features] section; 'widedeep init DATA' writes one")
    data = dict(tables.get("data", {}))
    try:
        spec = spec_from_table(data, tables["features"])
    except FeatureError as error:
        raise ConfigError(f"{origin}: {error}") from error
    places = {key: value for key, value in data.items() if key not in DATA_KEYS}
    if folder is not None:
        places = {
            key: resolve_paths(value, folder) if key in DATA_PATHS else value
            for key, value in places.items()
        }
    return RunConfig(
        spec=spec,
        data=read_section(
            DataConfig,
            places,
            f"{origin}: [data]",
            extra=DATA_KEYS,
        ),
        model=read_section(ModelConfig, tables.get("model", {}), f"{origin}: [model]"),
        train=read_section(TrainConfig, tables.get("train", {}), f"{origin}: [train]"),
        distributed=read_section(
            DistributedConfig, tables.get("distributed", {}), f"{origin}: [distributed]"
        ),
    )


def _check_later_sections(tables: Mapping[str, Any], origin: str) -> None:
    """A mistake in what is read after the training is told before it."""
    from widedeep.gate.config import GateConfig

    kinds: dict[str, type[Any]] = {"gate": GateConfig, "follow": FollowConfig, "tune": TuneConfig}
    for name, kind in kinds.items():
        if name in tables:
            read_section(kind, tables[name], f"{origin}: [{name}]")


def load_follow_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> FollowConfig:
    """Read the ``[follow]`` section of a run's TOML file."""
    from widedeep.gate.config import GateConfig, check_judge_rows

    tables = read_tables(path)
    table = _section("follow", tables, str(path))
    if "publish" in table:
        table["publish"] = resolve_paths(table["publish"], Path(path).parent)
    table |= _overrides("follow", overrides, options)
    config = read_section(FollowConfig, table, f"{path}: [follow]")
    if config.publish is not None:
        gate = _section("gate", tables, str(path)) | _overrides("gate", overrides, None)
        check_judge_rows(config.judge_rows, read_section(GateConfig, gate, f"{path}: [gate]"))
    if config.publish is not None and config.export_rows is None and config.export_minutes is None:
        raise ConfigError(
            f"got {config.publish!r} to publish to, but not when; add --export-rows N or "
            "--export-minutes M (export_rows, export_minutes under [follow])"
        )
    return config


def load_tune_config(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> TuneConfig:
    """Read the ``[tune]`` section of a run's TOML file."""
    table = _section("tune", read_tables(path), str(path))
    table |= _overrides("tune", overrides, options)
    return read_section(TuneConfig, table, f"{path}: [tune]")


def _overrides(
    name: str, overrides: Sequence[str], options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the values of a section that were typed: by ``--set``, and by options of their own."""
    own = [text for text in overrides if text.strip().startswith(f"{name}.")]
    table = _section(name, read_tables(os.devnull, own), "--set")
    return table | {key: value for key, value in (options or {}).items() if value is not None}


def _section(name: str, tables: Mapping[str, Any], origin: str) -> dict[str, Any]:
    table = tables.get(name, {})
    check_table(table, name, origin)
    return dict(table)
