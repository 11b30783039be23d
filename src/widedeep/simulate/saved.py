"""A store's state as a file, so that another process can let it live on."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from widedeep.errors import DataError
from widedeep.simulate.config import StoreConfig
from widedeep.simulate.store import AppStore
from widedeep.simulate.world import Apps, Culture, Users, World

_PARTS: dict[str, type[Any]] = {"users": Users, "apps": Apps, "culture": Culture}
_FORMAT = 1


def save_store(store: AppStore, path: str | os.PathLike[str]) -> None:
    """Write a store's state: arrays, and no code."""
    world = store.world
    about = {"format": _FORMAT, "day": world.day, "config": dataclasses.asdict(store.config)}
    arrays = {
        f"{part}.{entry.name}": getattr(getattr(world, part), entry.name)
        for part, kind in _PARTS.items()
        for entry in dataclasses.fields(kind)
    }
    beside = Path(path).with_name(f".{Path(path).name}.part")
    with beside.open("wb") as file:
        np.savez_compressed(file, about=json.dumps(about), pairs=world.pairs_AA, **arrays)
    beside.replace(path)


def load_store(path: str | os.PathLike[str]) -> AppStore:
    """Read a store that :func:`save_store` wrote."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as held:
            about = json.loads(str(held["about"]))
            if about["format"] != _FORMAT:
                raise DataError(
                    f"{os.fspath(path)}: got format {about['format']!r}, expected {_FORMAT}"
                )
            parts = {part: _part(held, part, kind) for part, kind in _PARTS.items()}
            world = World.restored(
                StoreConfig(**about["config"]), about["day"], pairs_AA=held["pairs"], **parts
            )
            return AppStore(world.config, world=world)
    except FileNotFoundError as error:
        raise DataError(
            f"{os.fspath(path)}: no such file; 'widedeep simulate' writes it into its folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{os.fspath(path)}: is no whole state of a store ({error})") from error


def _part(held: Any, part: str, kind: type[Any]) -> Any:
    names = [entry.name for entry in dataclasses.fields(kind)]
    return kind(**{name: held[f"{part}.{name}"] for name in names})
