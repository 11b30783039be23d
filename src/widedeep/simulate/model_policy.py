"""Policies that ask a model: a bundle in this process, or a running server."""

from __future__ import annotations

import http.client
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.errors import ConfigError, RequestError
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.ranker import Ranker
from widedeep.simulate.policies import Ranked
from widedeep.simulate.requests import Requests

__all__ = ["Model", "Server"]

_MICRO = 1_000_000


class Model:
    """Ranks by a bundle in this process, with the catalogue of the day.

    Args:
        bundle: The model, or the directory that holds it.
        name: Stands in the logs.
        threads: That one request may use.

    Raises:
        BundleError: If the bundle cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle | str | Path, *, name: str = "model", threads: int = 1
    ) -> None:
        self.name = name
        self._ranker = Ranker(bundle, item_id="app", threads=threads)
        self._catalogue: pa.Table | None = None

    def rank(self, requests: Requests) -> Ranked:
        """Rank by the model's scores."""
        if self._catalogue is not requests.catalogue:
            self._ranker.replace_catalogue(Catalogue(requests.catalogue, id_column="app"))
            self._catalogue = requests.catalogue
        order_RS = np.zeros((len(requests), requests.shown), np.intp)
        for at in range(len(requests)):
            ranking = self._ranker.rank(
                requests.user(at), requests.context(at), requests.candidates(at), k=requests.shown
            )
            order_RS[at] = ranking.positions
        names = np.full(len(requests), self.name, object)
        return Ranked(order_RS=order_RS, policy_R=names, arm_R=names)


class Server:
    """Asks a running server, over HTTP: ``POST /v1/rank``.

    The server reads the apps from a catalogue of its own, which this policy can keep up to date
    (``catalogue=``), or gets them with each request (``catalogue=None``).

    Args:
        url: Of the server, such as ``"http://127.0.0.1:8080"``.
        model: Which one, where the server has several.
        name: Stands in the logs.
        catalogue: The Parquet file that the server was told to read (``--items``): replaced each
            night. None sends the candidates' columns along.
        api_key: Sent as a bearer's token.
        connections: Requests at once.
        wall_clock: Say when the answer came, so that the logs of the store have the time of day
            that the server's own log has. False leaves the store's own time.
        timeout_s: Of one request; one that gets 503 is asked again until then.
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
        self._place = None if catalogue is None else Path(catalogue)
        self._connections, self._wall_clock, self._timeout_s = connections, wall_clock, timeout_s
        self._catalogue: pa.Table | None = None

    def rank(self, requests: Requests) -> Ranked:
        """Ask for each request, several at once."""
        self._publish(requests.catalogue)
        parts = np.array_split(np.arange(len(requests)), self._connections)
        with ThreadPoolExecutor(self._connections) as pool:
            answers = list(pool.map(lambda at: self._ask_all(requests, at), parts))
        time_R = np.concatenate([times for _, times in answers])
        names = np.full(len(requests), self.name, object)
        return Ranked(
            order_RS=np.concatenate([order for order, _ in answers]),
            policy_R=names,
            arm_R=names,
            time_R=time_R if self._wall_clock else None,
        )

    def _publish(self, catalogue: pa.Table) -> None:
        """Replace the server's catalogue; it takes a moment to notice, as in life."""
        if self._place is not None and self._catalogue is not catalogue:
            beside = self._place.with_name(f".{self._place.name}.part")
            pq.write_table(catalogue, beside)
            beside.replace(self._place)
        self._catalogue = catalogue

    def _ask_all(
        self, requests: Requests, at: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        order_RS = np.zeros((len(at), requests.shown), np.intp)
        time_R = np.zeros(len(at), np.int64)
        connection = self._connect()
        try:
            for row, number in enumerate(at.tolist()):
                names = requests.candidates(number)
                answer = self._ask(connection, self._body(requests, number, names))
                places = {name: place for place, name in enumerate(names)}
                # Items that came along without ids come back as their places.
                order_RS[row] = [places.get(item, item) for item in answer["items"]]
                time_R[row] = int(time.time() * _MICRO)
        finally:
            connection.close()
        return order_RS, time_R

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
        if self._place is not None:
            body["candidates"] = names
        else:
            body["items"] = requests.catalogue.take(requests.app_RC[number]).to_pydict()
        return json.dumps(body).encode()

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        until = time.monotonic() + self._timeout_s
        place = self._parts.path.rstrip("/") + "/v1/rank"
        while True:
            try:
                connection.request("POST", place, body, headers)
                reply = connection.getresponse()
                text = reply.read()
            except (OSError, http.client.HTTPException) as error:
                raise RequestError(
                    self._parts.netloc, f"got no answer ({error}); check that the server runs"
                ) from error
            if reply.status == 200:
                found: dict[str, Any] = json.loads(text)
                return found
            if reply.status != 503 or time.monotonic() > until:
                raise RequestError(
                    self._parts.netloc,
                    f"got status {reply.status} for {place}: {text.decode(errors='replace')[:500]}",
                )
            time.sleep(0.05)  # the model is being loaded, or the queue is full
