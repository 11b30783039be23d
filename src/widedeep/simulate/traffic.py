"""The logs of the store, which a join reads, and the true probabilities, which it must not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.files import atomic_file
from widedeep.simulate import config as constants
from widedeep.simulate.click_model import attention
from widedeep.simulate.policies import Ranked
from widedeep.simulate.requests import DAY_US, Requests, app_ids
from widedeep.simulate.world import World

__all__ = ["Traffic", "attribute_tables", "joined_traffic", "midnight", "observe"]

_SECOND_US = 1_000_000
_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The logs of some days.

    Args:
        impressions: Shown apps: ``request_id``, ``user_id``, ``item_id``, ``position`` (from
            1), ``event_time``, ``policy``, ``arm``, ``propensity`` (the probability that the app
            gets its position under the policy; null where it is not known), and the columns of
            users, contexts and apps as they were served.
        actions: Installs: ``user_id``, ``item_id``, ``event_time``, ``kind``, ``price``.
        truth: For each impression the probability that it is installed where it stood
            (``probability``), and if it is looked at (``if_seen``).
        requests: For each request its ``installs``, how many were to be expected (``expected``),
            and how many of the best list of its candidates (``best``).
    """

    impressions: pa.Table
    actions: pa.Table
    truth: pa.Table
    requests: pa.Table

    def write(self, folder: str | os.PathLike[str], name: str = "part") -> None:
        """Write the tables, each as a file in a folder of its own: ``impressions/part.parquet``.

        Args:
            folder: Folder to write to; created if it does not exist.
            name: Name of the files.
        """
        for entry in fields(self):
            subfolder = Path(folder) / entry.name
            subfolder.mkdir(parents=True, exist_ok=True)
            with atomic_file(subfolder / f"{name}.parquet") as temporary:
                pq.write_table(getattr(self, entry.name), temporary)


def joined_traffic(parts: Sequence[Traffic]) -> Traffic:
    """Return the logs of consecutive days as one."""
    return Traffic(
        **{
            entry.name: pa.concat_tables([getattr(traffic, entry.name) for traffic in parts])
            for entry in fields(Traffic)
        }
    )


def observe(world: World, requests: Requests, ranked: Ranked, rng: np.random.Generator) -> Traffic:
    """Let users look at the lists and install apps; update the store and return its logs."""
    order_RS = ranked.order_RS
    seen_S = attention(requests.shown)
    truth_RS = np.take_along_axis(requests.truth_RC, order_RS, axis=1)
    app_RS = np.take_along_axis(requests.app_RC, order_RS, axis=1)
    installed_RS = rng.random(order_RS.shape) < truth_RS * seen_S
    delay_RS = np.minimum(
        rng.exponential(constants.DELAY_MEAN_S, order_RS.shape) + 1, constants.DELAY_MOST_S
    )
    row_N, place_N = np.nonzero(installed_RS)
    time_R = requests.time_R if ranked.time_R is None else ranked.time_R
    # By a server's clock a day takes seconds: the install follows at once.
    delay_N = delay_RS[row_N, place_N] * _SECOND_US if ranked.time_R is None else place_N + 1
    best_RS = -np.sort(-requests.truth_RC, axis=1)[:, : requests.shown]
    traffic = Traffic(
        impressions=_impressions(requests, ranked, app_RS, time_R),
        actions=_actions(
            requests, row_N, app_RS[row_N, place_N], time_R[row_N] + delay_N.astype(np.int64)
        ),
        truth=_truth(requests, app_RS, truth_RS, seen_S),
        requests=pa.table(
            {
                "request_id": requests.ids,
                "user_id": pa.array(requests.user_R, pa.int64()),
                "day": pa.array(np.full(len(requests), world.day), pa.int64()),
                "arm": ranked.arm_R,
                "installs": pa.array(installed_RS.sum(axis=1), pa.int64()),
                "expected": truth_RS @ seen_S,
                "best": best_RS @ seen_S,
            }
        ),
    )
    world.install(requests.user_R[row_N], app_RS[row_N, place_N])
    return traffic


def _impressions(
    requests: Requests, ranked: Ranked, app_RS: NDArray[np.int32], time_R: NDArray[np.int64]
) -> pa.Table:
    n, n_shown = app_RS.shape
    of_request = pa.array(np.repeat(np.arange(n), n_shown))
    of_app = pa.array(app_RS.ravel())
    query = dict(requests.columns)
    columns: dict[str, Any] = {
        "request_id": pa.array(requests.ids).take(of_request),
        "user_id": query.pop("user_id").take(of_request),
        "item_id": requests.catalogue["app"].combine_chunks().take(of_app),
        "position": pa.array(np.tile(np.arange(1, n_shown + 1), n), pa.int64()),
        "event_time": pa.array(time_R, _TIME).take(of_request),
        "policy": pa.array(ranked.policy_R.tolist(), pa.string()).take(of_request),
        "arm": pa.array(ranked.arm_R.tolist(), pa.string()).take(of_request),
        "propensity": _propensity(ranked),
        **{name: _plain(values.take(of_request)) for name, values in query.items()},
    }
    for name in requests.catalogue.column_names:
        columns[name] = requests.catalogue[name].combine_chunks().take(of_app)
    return pa.table(columns)


def _propensity(ranked: Ranked) -> pa.Array:
    if ranked.propensity_RS is None:
        return pa.nulls(ranked.order_RS.size, pa.float64())
    return pa.array(ranked.propensity_RS.ravel(), from_pandas=True)  # NaN: null


def _plain(values: pa.Array) -> pa.Array:
    """Return a dictionary column as text: dictionaries differ from day to day."""
    if pa.types.is_dictionary(values.type):
        return values.cast(pa.string())
    if pa.types.is_list(values.type) and pa.types.is_dictionary(values.type.value_type):
        return values.cast(pa.list_(pa.string()))
    return values


def _actions(
    requests: Requests, row_N: NDArray[Any], app_N: NDArray[Any], time_N: NDArray[np.int64]
) -> pa.Table:
    catalogue, of_app = requests.catalogue, pa.array(app_N)
    return pa.table(
        {
            "user_id": pa.array(requests.user_R[row_N], pa.int64()),
            "item_id": catalogue["app"].combine_chunks().take(of_app),
            "event_time": pa.array(time_N, _TIME),
            "kind": pa.array(["install"] * len(app_N), pa.string()),
            "price": catalogue["app_price"].combine_chunks().take(of_app),
        }
    )


def _truth(
    requests: Requests,
    app_RS: NDArray[np.int32],
    truth_RS: NDArray[np.float64],
    seen_S: NDArray[np.float64],
) -> pa.Table:
    names = requests.catalogue["app"].combine_chunks()
    of_request = pa.array(np.repeat(np.arange(len(requests)), app_RS.shape[1]))
    return pa.table(
        {
            "request_id": pa.array(requests.ids).take(of_request),
            "item_id": names.take(pa.array(app_RS.ravel())),
            "probability": (truth_RS * seen_S).ravel(),
            "if_seen": truth_RS.ravel(),
        }
    )


def midnight(world: World) -> int:
    """Return today's midnight in microseconds since 1970."""
    return world.config.start_us + world.day * DAY_US


def attribute_tables(world: World) -> dict[str, pa.Table]:
    """Return today's attributes of users and apps, for joins that look them up."""
    users = world.users
    valid_from = pa.scalar(midnight(world), _TIME)
    apps = world.apps
    return {
        "users": pa.table(
            {
                "user_id": pa.array(np.arange(len(users)), pa.int64()),
                "valid_from": pa.repeat(valid_from, len(users)),
                "user_country": [constants.COUNTRIES[index] for index in users.country_U.tolist()],
                "user_age": [constants.AGES[index] for index in users.age_U.tolist()],
            }
        ),
        "items": pa.table(
            {
                "item_id": app_ids(len(apps)),
                "valid_from": pa.repeat(valid_from, len(apps)),
                "app_category": [constants.CATEGORIES[index] for index in apps.category_A.tolist()],
                "app_rating": pa.array(apps.rating_A.astype(np.float64).round(1)),
            }
        ),
    }
