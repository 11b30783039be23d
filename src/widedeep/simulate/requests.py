"""A round of requests: users, contexts, times, and the candidates of retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.simulate import config as constants
from widedeep.simulate.click_model import install_probability
from widedeep.simulate.world import World, gumbel_top_k

__all__ = ["DAY_US", "Requests", "app_ids", "app_table", "new_round"]

DAY_US = 86_400_000_000
_SECOND_US = 1_000_000
# How busy the store is at each hour of the day.
_BUSY = np.array([2, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 6, 7, 7, 6, 6, 6, 7, 8, 9, 10, 10, 8, 5], float)


@dataclass(frozen=True)
class Requests:
    """The requests of a round; a user sends one at most.

    Args:
        world: The state of the store. Only the oracle may read more of it than
            :meth:`user`, :meth:`context` and :meth:`candidates` tell.
        catalogue: The store's catalogue of apps at midnight.
        ids: Ids of the requests.
        user_R: Indices of the users, which are their ids.
        device_R: Indices of the devices.
        time_R: Times of the requests, microseconds since 1970.
        app_RC: Indices of the candidate apps.
        rng: Random numbers for policies.
    """

    world: World
    catalogue: pa.Table
    ids: list[str]
    user_R: NDArray[np.int32]
    device_R: NDArray[np.int32]
    time_R: NDArray[np.int64]
    app_RC: NDArray[np.int32]
    rng: np.random.Generator

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shown(self) -> int:
        """Number of apps per list."""
        return self.world.config.shown

    @property
    def hour_R(self) -> NDArray[np.int64]:
        """Hours of the day."""
        return self.time_R % DAY_US // (3600 * _SECOND_US)

    @cached_property
    def truth_RC(self) -> NDArray[np.float64]:
        """The true probability that each candidate is installed if it is looked at."""
        return install_probability(self.world, self.user_R, self.device_R, self.hour_R, self.app_RC)

    def take(self, rows: NDArray[np.intp]) -> Requests:
        """Return some of the requests."""
        return Requests(
            world=self.world,
            catalogue=self.catalogue,
            ids=[self.ids[i] for i in rows.tolist()],
            user_R=self.user_R[rows],
            device_R=self.device_R[rows],
            time_R=self.time_R[rows],
            app_RC=self.app_RC[rows],
            rng=self.rng,
        )

    @cached_property
    def columns(self) -> dict[str, pa.Array]:
        """Columns of users and contexts, one value per request."""
        users, user_R = self.world.users, self.user_R
        return {
            "user_id": pa.array(user_R, pa.int64()),
            "user_country": _words(constants.COUNTRIES, users.country_U[user_R]),
            "user_age": _words(constants.AGES, users.age_U[user_R]),
            "user_days": pa.array(self.world.day - users.joined_U[user_R], pa.int64()),
            "user_installed": self._installed(),
            "device": _words(constants.DEVICES, self.device_R),
            "hour": pa.array(self.hour_R, pa.int64()),
        }

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pa.table(self.columns).to_pylist()
        return rows

    def user(self, row: int) -> dict[str, Any]:
        """Return the user's columns of one request."""
        return {name: value for name, value in self._rows[row].items() if name not in _CONTEXT}

    def context(self, row: int) -> dict[str, Any]:
        """Return the context of one request."""
        return {name: self._rows[row][name] for name in _CONTEXT}

    @cached_property
    def _names(self) -> list[list[str]]:
        names = np.array(app_ids(len(self.world.apps)), object)
        ids_RC: list[list[str]] = names[self.app_RC].tolist()
        return ids_RC

    def candidates(self, row: int) -> list[str]:
        """Return the ids of the apps proposed for one request."""
        return self._names[row]

    def _installed(self) -> pa.Array:
        installed_RL = self.world.users.installed_UL[self.user_R]
        held_RL = installed_RL >= 0
        offsets = np.concatenate([[0], np.cumsum(held_RL.sum(axis=1))])
        values = pa.DictionaryArray.from_arrays(
            pa.array(installed_RL[held_RL]), pa.array(app_ids(len(self.world.apps)))
        )
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


_CONTEXT = ("device", "hour")


def _words(words: tuple[str, ...], index: NDArray[Any]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(words))


def app_ids(n: int) -> list[str]:
    """Return the ids of the first n apps."""
    return [f"app{number:04d}" for number in range(n)]


def app_table(world: World) -> pa.Table:
    """Return today's catalogue of apps, as a server reads it."""
    apps = world.apps
    developers = [f"dev{number:03d}" for number in apps.developer_A.tolist()]
    return pa.table(
        {
            "app": app_ids(len(apps)),
            "app_category": [constants.CATEGORIES[index] for index in apps.category_A.tolist()],
            "app_developer": developers,
            "app_price": pa.array(apps.price_A.astype(np.float64).round(2)),
            "app_rating": pa.array(apps.rating_A.astype(np.float64).round(1)),
            "app_days": pa.array(world.day - apps.born_A, pa.int64()),
            "app_installs": pa.array(apps.installs_A, pa.int64()),
        }
    )


def new_round(world: World, catalogue: pa.Table, number: int, rounds: int) -> Requests:
    """Draw the requests of a part of today."""
    config = world.config
    rng = world.rng("requests", world.day, number)
    edges = np.linspace(0, config.requests_per_day, rounds + 1).astype(int)
    n = min(int(edges[number + 1] - edges[number]), len(world.users))
    activity = np.log(world.users.activity_U)[None, :]
    user_R = np.sort(gumbel_top_k(rng, activity, n)[0])
    device_R = world.users.device_U[user_R].copy()
    borrowed_R = rng.random(n) < 0.1
    device_R[borrowed_R] = rng.integers(0, len(constants.DEVICES), int(borrowed_R.sum()))
    time_R = _times(rng, n, number, rounds) + config.start_us + world.day * DAY_US
    return Requests(
        world=world,
        catalogue=catalogue,
        ids=[f"d{world.day}r{number}-{row}" for row in range(n)],
        user_R=user_R,
        device_R=device_R.astype(np.int32),
        time_R=time_R,
        app_RC=_retrieve(rng, world, user_R),
        rng=world.rng("policy", world.day, number),
    )


def _times(rng: np.random.Generator, n: int, number: int, rounds: int) -> NDArray[np.int64]:
    """Return times of the day within the round, as busy as the hours are."""
    curve = np.concatenate([[0], np.cumsum(_BUSY) / _BUSY.sum()])
    first, last = np.interp([number / rounds, (number + 1) / rounds], curve, np.arange(25) * 3600)
    last = max(last - constants.DELAY_MOST_S, first)
    begin, end = np.interp([first, last], np.arange(25) * 3600, curve)
    share_R = begin + rng.random(n) * (end - begin)
    seconds_R = np.interp(share_R, curve, np.arange(25) * 3600)
    return np.asarray(seconds_R * _SECOND_US, np.int64)


def _retrieve(rng: np.random.Generator, world: World, user_R: NDArray[Any]) -> NDArray[np.int32]:
    """Draw candidates that the user lacks: popular apps, new ones, apps of installed categories."""
    apps = world.apps
    installed_RL = world.users.installed_UL[user_R]
    row_N, place_N = np.nonzero(installed_RL >= 0)
    app_N = installed_RL[row_N, place_N]
    had_RK = np.zeros((len(user_R), len(constants.CATEGORIES)), np.float32)
    np.add.at(had_RK, (row_N, apps.category_A[app_N]), 1)
    new_A = np.log1p(
        constants.RETRIEVAL_NEW * np.exp(-(world.day - apps.born_A) / constants.NEW_DAYS)
    )
    weight_A = (constants.RETRIEVAL_POWER * apps.weight_A + new_A).astype(np.float32)
    likes_RK = np.log1p(constants.RETRIEVAL_CATEGORY * had_RK)
    weight_RA = weight_A + likes_RK[:, apps.category_A]
    weight_RA[row_N, app_N] = -np.inf
    return gumbel_top_k(rng, weight_RA, world.config.candidates)
