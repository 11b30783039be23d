"""The state of the store: users, apps, tastes, and how they change every night.

Axes of arrays here and in the neighbours: U users, A apps, Z taste dimensions, L places for
installed apps, R requests of a round, C candidates of a request, S places of the list shown.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.simulate import config as constants
from widedeep.simulate.config import StoreConfig

_TINY = np.float32(1e-30)  # a clock of exactly 0 has no logarithm

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(slots=True)
class Users:
    """The users, one row each; ``installed_UL`` holds app indices, -1 in empty slots."""

    country_U: Ints
    age_U: Ints
    device_U: Ints
    activity_U: Floats
    joined_U: Ints
    own_UZ: Floats
    installed_UL: Ints
    count_U: Ints

    def __len__(self) -> int:
        return len(self.country_U)


@dataclass(slots=True)
class Apps:
    """The apps, one row each; ``weight_A`` is the logarithm of popularity."""

    category_A: Ints
    developer_A: Ints
    own_AZ: Floats
    quality_A: Floats
    rating_A: Floats
    price_A: Floats
    born_A: Ints
    weight_A: Floats
    installs_A: Ints

    def __len__(self) -> int:
        return len(self.category_A)


@dataclass(slots=True)
class GroupTastes:
    """Tastes of groups of users, and topics of groups of apps."""

    country_Z: Floats
    age_Z: Floats
    category_Z: Floats
    developer_Z: Floats
    hour_category: Floats
    device_category: Floats


def _grown(old: Any, new: Any) -> Any:
    """Return the rows of two tables."""
    columns = {
        entry.name: np.concatenate([getattr(old, entry.name), getattr(new, entry.name)])
        for entry in fields(old)
    }
    return type(old)(**columns)


class World:
    """The state of the store."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.day = 0
        rng = self.rng("world")
        self.group_tastes = self._new_group_tastes(rng)
        self.apps = self._new_apps(rng, config.apps, first=True)
        self.pairs_AA = self._pairs(rng, np.zeros((1, 0), np.float32))
        self.users = self._new_users(rng, config.users)

    @classmethod
    def restored(
        cls,
        config: StoreConfig,
        day: int,
        *,
        users: Users,
        apps: Apps,
        group_tastes: GroupTastes,
        pairs_AA: Floats,
    ) -> World:
        """Return a world in a saved state."""
        world = cls.__new__(cls)
        world.config, world.day, world.users, world.apps = config, day, users, apps
        world.group_tastes, world.pairs_AA = group_tastes, pairs_AA
        return world

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """Return the random generator of one purpose; purposes do not disturb each other."""
        words = [word if isinstance(word, int) else _number(word) for word in purpose]
        return np.random.default_rng([self.config.seed, *words])

    def tastes(self, users: Users) -> Floats:
        """Return the tastes of users (U, Z)."""
        variance, group_tastes = constants.TASTE_SHARES, self.group_tastes
        taste_UZ: Floats = (
            np.sqrt(variance["country"]) * group_tastes.country_Z[users.country_U]
            + np.sqrt(variance["age"]) * group_tastes.age_Z[users.age_U]
            + np.sqrt(variance["own"]) * users.own_UZ
        ).astype(np.float32)
        return taste_UZ

    @property
    def topic_AZ(self) -> Floats:
        """Topics of the apps (A, Z)."""
        variance, apps, group_tastes = constants.TOPIC_SHARES, self.apps, self.group_tastes
        topic_AZ: Floats = (
            np.sqrt(variance["category"]) * group_tastes.category_Z[apps.category_A]
            + np.sqrt(variance["developer"]) * group_tastes.developer_Z[apps.developer_A]
            + np.sqrt(variance["own"]) * apps.own_AZ
        ).astype(np.float32)
        return topic_AZ

    def night(self) -> None:
        """Let tastes and popularity drift, and add new users and apps."""
        self.day += 1
        rng = self.rng("night", self.day)
        self._drift(rng)
        if self.config.new_apps_per_day:
            new = self._new_apps(rng, self.config.new_apps_per_day, first=False)
            self.apps = _grown(self.apps, new)
            self.pairs_AA = self._pairs(rng, self.pairs_AA)
        if self.config.new_users_per_day:
            new_users = self._new_users(rng, self.config.new_users_per_day)
            self.users = _grown(self.users, new_users)

    def install(self, user_N: NDArray[Any], app_N: NDArray[Any]) -> None:
        """Install apps for users; a full device loses its oldest app."""
        users = self.users
        first_N = np.searchsorted(user_N, user_N)
        place_N = users.count_U[user_N] + np.arange(len(user_N)) - first_N
        users.installed_UL[user_N, place_N % constants.MOST_INSTALLED] = app_N
        np.add.at(users.count_U, user_N, 1)
        np.add.at(self.apps.installs_A, app_N, 1)

    # ---- creation -------------------------------------------------------------------------------

    def _new_group_tastes(self, rng: np.random.Generator) -> GroupTastes:
        def normal(rows: int, columns: int = constants.TASTES) -> Floats:
            return rng.standard_normal((rows, columns), dtype=np.float32)

        categories = len(constants.CATEGORIES)
        return GroupTastes(
            country_Z=normal(len(constants.COUNTRIES)),
            age_Z=normal(len(constants.AGES)),
            category_Z=normal(categories),
            developer_Z=normal(max(1, self.config.apps // constants.APPS_A_DEVELOPER)),
            hour_category=normal(24 // constants.HOURS_A_BLOCK, categories),
            device_category=normal(len(constants.DEVICES), categories),
        )

    def _new_apps(self, rng: np.random.Generator, n: int, *, first: bool) -> Apps:
        quality_A = rng.standard_normal(n, dtype=np.float32)
        rating_A = np.clip(3.8 + 0.45 * quality_A + 0.2 * rng.standard_normal(n), 1, 5)
        paid_A = rng.random(n) < constants.PAID_SHARE
        price_A = np.where(paid_A, rng.choice([0.99, 1.99, 2.99, 4.99, 9.99], n), 0.0)
        rank_A = rng.permutation(n) if first else rng.integers(0, self.config.apps, n)
        weight_A = -constants.ZIPF_POWER * np.log(rank_A + 1 + constants.ZIPF_SHIFT)
        old_A = rng.integers(1, 900, n) if first else np.zeros(n)
        return Apps(
            category_A=rng.integers(0, len(constants.CATEGORIES), n, dtype=np.int32),
            developer_A=rng.integers(0, len(self.group_tastes.developer_Z), n, dtype=np.int32),
            own_AZ=rng.standard_normal((n, constants.TASTES), dtype=np.float32),
            quality_A=quality_A,
            rating_A=np.round(rating_A, 1).astype(np.float32),
            price_A=price_A.astype(np.float32),
            born_A=(self.day - old_A).astype(np.int32),
            weight_A=weight_A.astype(np.float32),
            installs_A=np.zeros(n, np.int32),
        )

    def _pairs(self, rng: np.random.Generator, old: Floats) -> Floats:
        """Return the effects of pairs of apps: those of ``old``, and new ones for the new apps."""
        n, before = len(self.apps), old.shape[1]
        effect_AA = np.zeros((n + 1, n), np.float32)
        popular_A = np.exp(0.35 * self.apps.weight_A)
        share_AA = np.outer(popular_A, popular_A)
        share_AA *= constants.PAIR_SHARE / share_AA.mean()
        chosen_AA = rng.random((n, n)) < share_AA
        sign_AA = np.where(rng.random((n, n)) < constants.LIFT_SHARE, 1, -1)
        effect_AA[:n] = constants.PAIR_EFFECT * chosen_AA * sign_AA
        effect_AA[np.arange(n), np.arange(n)] = 0
        effect_AA[:before, :before] = old[:before]
        return effect_AA

    def _new_users(self, rng: np.random.Generator, n: int) -> Users:
        country_U = rng.choice(len(constants.COUNTRIES), n, p=_falling(len(constants.COUNTRIES)))
        users = Users(
            country_U=country_U.astype(np.int32),
            age_U=rng.integers(0, len(constants.AGES), n, dtype=np.int32),
            device_U=rng.choice(len(constants.DEVICES), n, p=constants.DEVICE_SHARES).astype(
                np.int32
            ),
            activity_U=rng.lognormal(0, constants.ACTIVITY_SPREAD, n).astype(np.float32),
            joined_U=np.full(n, self.day, np.int32),
            own_UZ=rng.standard_normal((n, constants.TASTES), dtype=np.float32),
            installed_UL=np.full((n, constants.MOST_INSTALLED), -1, np.int32),
            count_U=np.zeros(n, np.int32),
        )
        if self.day == 0:
            users.joined_U -= rng.integers(1, 900, n, dtype=np.int32)
        self._first_installs(rng, users)
        return users

    def _first_installs(self, rng: np.random.Generator, users: Users) -> None:
        """Draw the first apps of users: popular ones, to their taste."""
        most = constants.MOST_INSTALLED // 2
        wanted_U = np.clip(rng.poisson(constants.INSTALLED_AT_FIRST, len(users)), 1, most)
        taste_UZ, topic_AZ = self.tastes(users), self.topic_AZ
        for begin in range(0, len(users), constants.REQUESTS_AT_ONCE):
            rows = slice(begin, begin + constants.REQUESTS_AT_ONCE)
            affinity_UA = taste_UZ[rows] @ topic_AZ.T / np.float32(np.sqrt(constants.TASTES))
            weight_UA = self.apps.weight_A + np.float32(
                constants.AFFINITY * self.config.generalisation
            ) * np.clip(affinity_UA, -2, 2)
            picked_UL = gumbel_top_k(rng, weight_UA, most)
            picked_UL[np.arange(most) >= wanted_U[rows, None]] = -1
            users.installed_UL[rows, :most] = picked_UL
        users.count_U[:] = wanted_U
        np.add.at(self.apps.installs_A, users.installed_UL[users.installed_UL >= 0], 1)

    def _drift(self, rng: np.random.Generator) -> None:
        fraction = self.config.drift
        keep = np.float32(np.sqrt(1 - fraction**2))
        for table in (self.users.own_UZ, self.group_tastes.country_Z, self.group_tastes.age_Z):
            table *= keep
            table += np.float32(fraction) * rng.standard_normal(table.shape, dtype=np.float32)
        noise_A = rng.standard_normal(len(self.apps), dtype=np.float32)
        self.apps.weight_A += np.float32(constants.WEIGHT_DRIFT) * noise_A


def gumbel_top_k(rng: np.random.Generator, weight_RA: Floats, k: int) -> Ints:
    """Draw k distinct columns per row with probabilities exp(weight) (Gumbel top-k)."""
    spent_RA = rng.standard_exponential(weight_RA.shape, dtype=np.float32) + _TINY
    clock_RA = np.log(spent_RA) - weight_RA
    top_RK = np.argpartition(clock_RA, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(clock_RA, top_RK, axis=1), axis=1)
    return np.take_along_axis(top_RK, order, axis=1).astype(np.int32)


def _falling(n: int) -> NDArray[np.float64]:
    probabilities = 1 / np.sqrt(np.arange(1, n + 1))
    powers: NDArray[np.float64] = probabilities / probabilities.sum()
    return powers


def _number(word: str) -> int:
    return int.from_bytes(word.encode()[:7], "big")
