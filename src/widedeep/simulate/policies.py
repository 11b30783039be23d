"""Policies: which of a request's candidates are shown, and in which order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import ConfigError
from widedeep.simulate.requests import Requests

__all__ = [
    "Explore",
    "Oracle",
    "Policy",
    "Popularity",
    "Random",
    "Ranked",
    "Split",
    "best_first",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """What a policy shows.

    Args:
        order_RS: Places among the candidates, best first, as many as a list shows.
        policy_R: The name of the policy that ranked each request.
        arm_R: The arm of the experiment that each request is in.
        time_R: When each was answered, for a policy that has a clock of its own: microseconds
            since 1970.
    """

    order_RS: NDArray[np.intp]
    policy_R: NDArray[np.object_]
    arm_R: NDArray[np.object_]
    time_R: NDArray[np.int64] | None = None


class Policy(Protocol):
    """Ranks the requests of a round."""

    @property
    def name(self) -> str:
        """Stands in the logs."""

    def rank(self, requests: Requests) -> Ranked:
        """Choose what is shown."""


def best_first(score_RC: NDArray[Any], shown: int) -> NDArray[np.intp]:
    """Return the places of the highest scores; the earlier of equal ones first."""
    return np.argsort(-score_RC, axis=1, kind="stable")[:, :shown]


def _ranked(name: str, order_RS: NDArray[np.intp], time_R: Any = None) -> Ranked:
    names = np.full(len(order_RS), name, object)
    return Ranked(order_RS=order_RS, policy_R=names, arm_R=names, time_R=time_R)


@dataclass(frozen=True)
class Random:
    """Shows candidates in any order."""

    name: str = "random"

    def rank(self, requests: Requests) -> Ranked:
        """Draw an order."""
        score_RC = requests.rng.random(requests.app_RC.shape)
        return _ranked(self.name, best_first(score_RC, requests.shown))


@dataclass(frozen=True)
class Popularity:
    """Shows what is popular, with noise: the list of a store that has no model yet.

    Args:
        noise: Scale of the Gumbel noise on the logarithm of popularity; 0 shows the same list to
            everyone.
    """

    noise: float = 2.0
    name: str = "popularity"

    def rank(self, requests: Requests) -> Ranked:
        """Rank by popularity and noise."""
        score_RC = requests.world.apps.weight_A[requests.app_RC]
        noise_RC = requests.rng.gumbel(size=score_RC.shape)
        return _ranked(self.name, best_first(score_RC + self.noise * noise_RC, requests.shown))


@dataclass(frozen=True)
class Oracle:
    """Shows what has the highest true probability: no policy can do better in one request."""

    name: str = "oracle"

    def rank(self, requests: Requests) -> Ranked:
        """Rank by the truth."""
        return _ranked(self.name, best_first(requests.truth_RC, requests.shown))


@dataclass(frozen=True)
class Explore:
    """A policy that draws the order of some requests, so that logs hold what it would not show.

    Args:
        policy: For the others.
        rate: Share of the requests, 0 <= rate <= 1.
    """

    policy: Policy
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"Explore: got rate = {self.rate!r}, expected 0 <= rate <= 1")

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    def rank(self, requests: Requests) -> Ranked:
        """Rank most requests by the policy."""
        free_R = requests.rng.random(len(requests)) < self.rate
        parts = [(np.flatnonzero(~free_R), self.policy), (np.flatnonzero(free_R), Random())]
        ranked = _together(requests, parts)
        return Ranked(
            order_RS=ranked.order_RS,
            policy_R=ranked.policy_R,
            arm_R=np.full(len(requests), self.name, object),
            time_R=ranked.time_R,
        )


class Split:
    """An A/B test: each user belongs to one arm, whichever day it is.

    Args:
        arms: Policies by the name of their arm.
        shares: Of the users; equal unless given.
        salt: Another one divides users anew.

    Raises:
        ConfigError: If there is no arm, or the shares do not fit.

    Example:
        >>> Split({"control": Random(), "treatment": Popularity()}).name
        'control/treatment'
    """

    def __init__(
        self,
        arms: Mapping[str, Policy],
        shares: Sequence[float] | None = None,
        *,
        salt: int = 0,
    ) -> None:
        shares = [1.0] * len(arms) if shares is None else list(shares)
        if not arms or len(shares) != len(arms) or min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(
                f"Split: got arms {list(arms)} with shares {shares}, expected at least one arm and "
                "a share of at least 0 for each"
            )
        self.arms = dict(arms)
        self._edges = np.cumsum(shares) / sum(shares)
        self._salt = salt

    @property
    def name(self) -> str:
        """The arms' names."""
        return "/".join(self.arms)

    def arm_of(self, user_R: NDArray[Any]) -> NDArray[np.intp]:
        """Return the number of each user's arm."""
        share_R = _hashed(np.asarray(user_R, np.uint64), self._salt) / 2.0**64
        return np.minimum(np.searchsorted(self._edges, share_R, side="right"), len(self._edges) - 1)

    def rank(self, requests: Requests) -> Ranked:
        """Rank each request by the policy of its user's arm."""
        arm_R = self.arm_of(requests.user_R)
        parts = [(np.flatnonzero(arm_R == at), arm) for at, arm in enumerate(self.arms.values())]
        ranked = _together(requests, parts)
        return Ranked(
            order_RS=ranked.order_RS,
            policy_R=ranked.policy_R,
            arm_R=np.array(list(self.arms), object)[arm_R],
            time_R=ranked.time_R,
        )


def _together(requests: Requests, parts: Sequence[tuple[NDArray[np.intp], Policy]]) -> Ranked:
    """Rank parts of the requests by a policy each."""
    order_RS = np.zeros((len(requests), requests.shown), np.intp)
    policy_R = np.full(len(requests), "", object)
    time_R, timed = np.zeros(len(requests), np.int64), False
    for at, policy in parts:
        if not len(at):
            continue
        found = policy.rank(requests.take(at))
        order_RS[at], policy_R[at] = found.order_RS, found.policy_R
        timed = timed or found.time_R is not None
        time_R[at] = int(time.time() * 1e6) if found.time_R is None else found.time_R
    return Ranked(
        order_RS=order_RS, policy_R=policy_R, arm_R=policy_R, time_R=time_R if timed else None
    )


def _hashed(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = values + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
