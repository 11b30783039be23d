"""AppStore: simulates days of requests under a policy; and its state as a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa

from widedeep.errors import ConfigError, DataError
from widedeep.files import atomic_file
from widedeep.simulate import config as constants
from widedeep.simulate.config import StoreConfig
from widedeep.simulate.policies import Policy
from widedeep.simulate.requests import app_table, new_round
from widedeep.simulate.traffic import Traffic, joined_traffic, observe
from widedeep.simulate.world import Apps, GroupTastes, Users, World

__all__ = ["AppStore"]


class AppStore:
    """A simulated app store, whose true install probabilities are known.

    Users with tastes and installed apps come at some hour with some device; retrieval proposes
    apps; a policy shows some of them in an order; users look at high places more than at low ones,
    and install with a probability in which general tastes count, and particular pairs of apps.
    Each night users and apps arrive, and tastes drift.

    Args:
        config: Size of the store and strength of its effects; None: the defaults.
        world: State to continue from; None: a new store.

    Attributes:
        config: Configuration of the store.
        world: State of the store.

    Example:
        >>> from widedeep.simulate import AppStore, Popularity, StoreConfig
        >>> store = AppStore(StoreConfig(users=500, apps=100, requests_per_day=200))
        >>> week = store.run(Popularity(), days=2)
        >>> week.impressions.num_rows, store.world.day
        (4000, 2)
    """

    def __init__(self, config: StoreConfig | None = None, *, world: World | None = None) -> None:
        self.config = config or StoreConfig()
        self.world = World(self.config) if world is None else world

    def catalogue(self) -> pa.Table:
        """Return today's catalogue of apps, as ``widedeep serve --items`` reads it."""
        return app_table(self.world)

    def copy(self) -> AppStore:
        """Return an independent store in the same state."""
        return copy.deepcopy(self)

    def with_requests(self, requests_per_day: int) -> AppStore:
        """Return a copy with more or fewer requests from now on.

        Args:
            requests_per_day: Requests per day, at least 1.
        """
        store = self.copy()
        store.config = store.world.config = replace(self.config, requests_per_day=requests_per_day)
        return store

    def run(
        self, policy: Policy, days: int, *, on_day: Callable[[int], None] | None = None
    ) -> Traffic:
        """Simulate some days under a policy.

        Args:
            policy: Ranking policy.
            days: Number of days, at least 1.
            on_day: Called after each day with the number of finished days.

        Returns:
            The logs of these days. Running on later follows them without a gap.

        Raises:
            ConfigError: If ``days`` is below 1.
        """
        days_traffic = []
        for done, traffic in enumerate(self.days(policy, days), 1):
            days_traffic.append(traffic)
            if on_day is not None:
                on_day(done)
        return joined_traffic(days_traffic)

    def days(self, policy: Policy, days: int) -> Iterator[Traffic]:
        """Simulate some days, and yield the logs of each.

        Args:
            policy: Ranking policy.
            days: Number of days, at least 1.

        Raises:
            ConfigError: If ``days`` is below 1.
        """
        if days < 1:
            raise ConfigError(f"the store: got days = {days!r}, expected at least 1")
        return (self._day(policy) for _ in range(days))

    def _day(self, policy: Policy) -> Traffic:
        world = self.world
        catalogue = app_table(world)
        # No user sends two requests in a round, and half of them at most one.
        at_once = min(constants.REQUESTS_AT_ONCE, max(1, self.config.users // 4))
        rounds = math.ceil(self.config.requests_per_day / at_once)
        parts = []
        for number in range(rounds):
            requests = new_round(world, catalogue, number, rounds)
            ranked = policy.rank(requests)
            rng = world.rng("users", world.day, number)
            parts.append(observe(world, requests, ranked, rng))
        world.night()
        return joined_traffic(parts)


# The names of the arrays in the file, by the attribute of the world.
_PARTS: dict[str, tuple[str, type[Any]]] = {
    "users": ("users", Users),
    "apps": ("apps", Apps),
    "group_tastes": ("culture", GroupTastes),
}
_FORMAT = 1


def save_store(store: AppStore, path: str | os.PathLike[str]) -> None:
    """Write a store's state: arrays, and no code."""
    world = store.world
    about = {"format": _FORMAT, "day": world.day, "config": dataclasses.asdict(store.config)}
    arrays = {
        f"{saved}.{entry.name}": getattr(getattr(world, attribute), entry.name)
        for attribute, (saved, kind) in _PARTS.items()
        for entry in dataclasses.fields(kind)
    }
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=json.dumps(about), pairs=world.pairs_AA, **arrays)


def load_store(path: str | os.PathLike[str]) -> AppStore:
    """Read a store that :func:`save_store` wrote."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            if about["format"] != _FORMAT:
                raise DataError(
                    f"{os.fspath(path)}: got format {about['format']!r}, expected {_FORMAT}"
                )
            parts = {
                attribute: _part(arrays, saved, kind) for attribute, (saved, kind) in _PARTS.items()
            }
            world = World.restored(
                StoreConfig(**about["config"]), about["day"], pairs_AA=arrays["pairs"], **parts
            )
            return AppStore(world.config, world=world)
    except FileNotFoundError as error:
        raise DataError(
            f"{os.fspath(path)}: no such file; 'widedeep simulate' writes it into its folder"
        ) from error
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{os.fspath(path)}: is no whole state of a store ({error})") from error


def _part(arrays: Any, saved: str, kind: type[Any]) -> Any:
    names = [entry.name for entry in dataclasses.fields(kind)]
    return kind(**{name: arrays[f"{saved}.{name}"] for name in names})
