"""Ranking policies: which of a request's candidates are shown, and in which order."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.errors import ConfigError, RequestError
from widedeep.files import atomic_file
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.exploration import Exploration
from widedeep.serving.ranker import Ranker
from widedeep.simulate.requests import Requests

__all__ = [
    "Explore",
    "Model",
    "Oracle",
    "Policy",
    "Popularity",
    "Random",
    "Ranked",
    "Server",
    "Split",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """Ranked lists of the requests of a round.

    Args:
        order_RS: Positions among the candidates, best first, as many as a list shows.
        policy_R: Name of the policy that ranked each request.
        arm_R: Arm of the experiment that each request is in.
        time_R: Time of each answer, for a policy with a clock of its own: microseconds
            since 1970.
        propensity_RS: Probability that each app gets its position under the policy; NaN or None
            where it is not known.
    """

    order_RS: NDArray[np.intp]
    policy_R: NDArray[np.object_]
    arm_R: NDArray[np.object_]
    time_R: NDArray[np.int64] | None = None
    propensity_RS: NDArray[np.float64] | None = None


class Policy(Protocol):
    """Ranks the requests of a round."""

    @property
    def name(self) -> str:
        """Name in the logs."""

    def rank(self, requests: Requests) -> Ranked:
        """Rank the candidates of each request."""


def best_first(score_RC: NDArray[Any], n_shown: int) -> NDArray[np.intp]:
    """Return the positions of the highest scores; of equal ones the earlier first."""
    return np.argsort(-score_RC, axis=1, kind="stable")[:, :n_shown]


def _ranked(name: str, order_RS: NDArray[np.intp], time_R: Any = None) -> Ranked:
    names = np.full(len(order_RS), name, object)
    return Ranked(order_RS=order_RS, policy_R=names, arm_R=names, time_R=time_R)


@dataclass(frozen=True)
class Random:
    """Ranks candidates at random."""

    name: str = "random"

    def rank(self, requests: Requests) -> Ranked:
        """Draw a random order."""
        score_RC = requests.rng.random(requests.app_RC.shape)
        order_RS = best_first(score_RC, requests.shown)
        propensity_RS = np.full(order_RS.shape, 1 / score_RC.shape[1])
        return replace(_ranked(self.name, order_RS), propensity_RS=propensity_RS)


@dataclass(frozen=True)
class Popularity:
    """Ranks by popularity with noise, like a store that has no model yet.

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
    """Ranks by the true probability: no policy can do better in one request."""

    name: str = "oracle"

    def rank(self, requests: Requests) -> Ranked:
        """Rank by the true probabilities."""
        return _ranked(self.name, best_first(requests.truth_RC, requests.shown))


@dataclass(frozen=True)
class Explore:
    """Ranks a fraction of the requests at random, so that the logs hold what a policy never shows.

    Args:
        policy: Policy of the other requests.
        rate: Fraction of the requests to rank at random, 0 <= rate <= 1.
    """

    policy: Policy
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"Explore: got rate = {self.rate!r}, expected 0 <= rate <= 1")

    @property
    def name(self) -> str:
        """Name of the policy."""
        return self.policy.name

    def rank(self, requests: Requests) -> Ranked:
        """Rank most requests by the policy."""
        free_R = requests.rng.random(len(requests)) < self.rate
        parts = [(np.flatnonzero(~free_R), self.policy), (np.flatnonzero(free_R), Random())]
        ranked = _together(requests, parts)
        arm_R = np.full(len(requests), self.name, object)
        return replace(ranked, arm_R=arm_R, propensity_RS=None)


class Split:
    """An A/B test: each user belongs to one arm, every day.

    Args:
        arms: Policies by the name of their arm.
        shares: Fraction of the users of each arm; None: equal.
        salt: Seed of the split; another one divides the users anew.

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
        parts = [
            (np.flatnonzero(arm_R == number), arm) for number, arm in enumerate(self.arms.values())
        ]
        ranked = _together(requests, parts)
        return replace(ranked, arm_R=np.array(list(self.arms), object)[arm_R])


def _together(requests: Requests, parts: Sequence[tuple[NDArray[np.intp], Policy]]) -> Ranked:
    """Rank each part of the requests by its policy."""
    order_RS = np.zeros((len(requests), requests.shown), np.intp)
    policy_R = np.full(len(requests), "", object)
    time_R, timed = np.zeros(len(requests), np.int64), False
    propensity_RS = np.full(order_RS.shape, np.nan)
    for rows, policy in parts:
        if not len(rows):
            continue
        ranked = policy.rank(requests.take(rows))
        order_RS[rows], policy_R[rows] = ranked.order_RS, ranked.policy_R
        if ranked.propensity_RS is not None:
            propensity_RS[rows] = ranked.propensity_RS
        timed = timed or ranked.time_R is not None
        time_R[rows] = int(time.time() * 1e6) if ranked.time_R is None else ranked.time_R
    return Ranked(
        order_RS=order_RS,
        policy_R=policy_R,
        arm_R=policy_R,
        time_R=time_R if timed else None,
        propensity_RS=propensity_RS,
    )


def _hashed(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = values + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Model:
    """Ranks by a bundle in this process, with the day's catalogue.

    Args:
        bundle: The model, or its directory.
        name: Name in the logs.
        threads: Threads per request.
        exploration: What is shown beside the best by score; None: nothing.

    Raises:
        BundleError: If the bundle cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        name: str = "model",
        threads: int = 1,
        exploration: Exploration | None = None,
    ) -> None:
        self.name = name
        self._ranker = Ranker(bundle, item_id="app", threads=threads, exploration=exploration)
        self._catalogue: pa.Table | None = None

    def rank(self, requests: Requests) -> Ranked:
        """Rank by the model's scores."""
        if self._catalogue is not requests.catalogue:
            self._ranker.replace_catalogue(Catalogue(requests.catalogue, id_column="app"))
            self._catalogue = requests.catalogue
        order_RS = np.zeros((len(requests), requests.shown), np.intp)
        propensity_RS = np.full(order_RS.shape, np.nan)
        for row, request_id in enumerate(requests.ids):
            ranking = self._ranker.rank(
                requests.user(row),
                requests.context(row),
                requests.candidates(row),
                k=requests.shown,
                request_id=request_id,
            )
            order_RS[row] = ranking.positions
            if ranking.propensities is not None:
                propensity_RS[row] = ranking.propensities
        return replace(_ranked(self.name, order_RS), propensity_RS=propensity_RS)


class Server:
    """Ranks by a running server: ``POST /v1/rank``.

    The server reads the apps from its own catalogue, which this policy updates (``catalogue=``), or
    gets them with each request (``catalogue=None``).

    Args:
        url: Address of the server, such as ``"http://127.0.0.1:8080"``.
        model: Name of the model, where the server has several.
        name: Name in the logs.
        catalogue: Parquet file that the server reads (``--items``), replaced every night. None
            sends the candidates' columns with each request.
        api_key: API key, sent as a bearer token.
        connections: Concurrent requests.
        wall_clock: Log the time of each answer, as the server's own log does. False logs the
            simulated time.
        timeout_s: Seconds to wait for an answer; a request that gets 503 is repeated until then.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        name: str = "server",
        catalogue: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        connections: int = 2,
        wall_clock: bool = True,
        timeout_s: float = 30.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the server: got {url!r}, expected http://HOST:PORT")
        self.name = name
        self._parts, self._model, self._api_key = parts, model, api_key
        self._catalogue_path = None if catalogue is None else Path(catalogue)
        self._connections, self._wall_clock, self._timeout_s = connections, wall_clock, timeout_s
        self._catalogue: pa.Table | None = None

    def rank(self, requests: Requests) -> Ranked:
        """Send each request, several concurrently."""
        self._publish(requests.catalogue)
        parts = np.array_split(np.arange(len(requests)), self._connections)
        with ThreadPoolExecutor(self._connections) as pool:
            answers = list(pool.map(lambda at: self._ask_all(requests, at), parts))
        order_RS, time_R, propensity_RS = map(np.concatenate, zip(*answers, strict=True))
        ranked = _ranked(self.name, order_RS, time_R if self._wall_clock else None)
        return replace(ranked, propensity_RS=propensity_RS)

    def _publish(self, catalogue: pa.Table) -> None:
        """Replace the server's catalogue; it takes a moment to notice."""
        if self._catalogue_path is not None and self._catalogue is not catalogue:
            with atomic_file(self._catalogue_path) as temporary:
                pq.write_table(catalogue, temporary)
        self._catalogue = catalogue

    def _ask_all(
        self, requests: Requests, request_rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.float64]]:
        order_RS = np.zeros((len(request_rows), requests.shown), np.intp)
        propensity_RS = np.full(order_RS.shape, np.nan)
        time_R = np.zeros(len(request_rows), np.int64)
        connection = self._connect()
        try:
            for row, number in enumerate(request_rows.tolist()):
                names = requests.candidates(number)
                answer = self._ask(connection, self._body(requests, number, names))
                positions = {name: index for index, name in enumerate(names)}
                # Items that came along without ids come back as their positions.
                order_RS[row] = [positions.get(item, item) for item in answer["items"]]
                propensity_RS[row] = answer.get("propensities", np.nan)
                time_R[row] = int(time.time() * 1_000_000)
        finally:
            connection.close()
        return order_RS, time_R, propensity_RS

    def _connect(self) -> http.client.HTTPConnection:
        netloc, timeout = self._parts.netloc, self._timeout_s
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(netloc, timeout=timeout)
        return http.client.HTTPConnection(netloc, timeout=timeout)

    def _body(self, requests: Requests, number: int, names: list[str]) -> bytes:
        body: dict[str, Any] = {
            "user": requests.user(number),
            "context": requests.context(number),
            "k": requests.shown,
            "request_id": requests.ids[number],
        }
        if self._model is not None:
            body["model"] = self._model
        if self._catalogue_path is not None:
            body["candidates"] = names
        else:
            body["items"] = requests.catalogue.take(requests.app_RC[number]).to_pydict()
        return json.dumps(body).encode()

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        until = time.monotonic() + self._timeout_s
        path = self._parts.path.rstrip("/") + "/v1/rank"
        while True:
            try:
                connection.request("POST", path, body, headers)
                reply = connection.getresponse()
                text = reply.read()
            except (OSError, http.client.HTTPException) as error:
                raise RequestError(
                    self._parts.netloc, f"got no answer ({error}); check that the server runs"
                ) from error
            if reply.status == 200:
                document: dict[str, Any] = json.loads(text)
                return document
            if reply.status != 503 or time.monotonic() > until:
                raise RequestError(
                    self._parts.netloc,
                    f"got status {reply.status} for {path}: {text.decode(errors='replace')[:500]}",
                )
            time.sleep(0.05)  # the model is being loaded, or the queue is full
