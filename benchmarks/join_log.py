"""The log that the join is measured on, and what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from widedeep.join import JoinConfig

ACTIONS, USERS, ITEMS, VERSIONS = 500_000, 100_000, 50_000, 3
SLATE = 10
START_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
LOG_END = "2023-12-16T22:13:20Z"  # two days after the last impression: every window is over
# Two cores gain nothing from Spark's 200 partitions; its driver is the whole of local Spark.
SPARK_OPTIONS = {
    "spark.driver.memory": "4g",
    "spark.sql.shuffle.partitions": "16",
    "spark.log.level": "ERROR",
}


def write_log(folder: Path, scale: float, impressions: int) -> None:
    """Write a log of thirty days: requests of ten items, and actions on what was shown."""
    draw = np.random.default_rng(0)
    n_users, n_items = int(USERS * scale), int(ITEMS * scale)
    requests = int(impressions * scale) // SLATE
    times = np.sort(START_US + draw.integers(0, 30 * DAY_US, requests))
    users = draw.integers(0, n_users, requests)
    items = (n_items * draw.random(requests * SLATE) ** 2).astype(np.int64)
    shown = pa.table(
        {
            "request_id": np.repeat(np.arange(requests), SLATE),
            "user_id": np.repeat(users, SLATE),
            "item_id": items,
            "position": np.tile(np.arange(SLATE), requests),
            "event_time": np.repeat(times, SLATE),
            "device": pa.array(np.array(["phone", "desk", "tv"])[draw.integers(0, 3, len(items))]),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(shown, folder / "impressions.parquet", row_group_size=250_000)
    chosen = np.sort(draw.choice(len(items), int(ACTIONS * scale), replace=False))
    taken = pa.table(
        {
            "user_id": np.repeat(users, SLATE)[chosen],
            "item_id": items[chosen],
            "event_time": np.repeat(times, SLATE)[chosen]
            + draw.integers(0, 2 * DAY_US, len(chosen)),
            "kind": pa.array(np.array(["click", "buy"])[draw.integers(0, 2, len(chosen))]),
        }
    )
    pq.write_table(taken, folder / "actions.parquet")
    users_of_versions = np.repeat(np.arange(n_users), VERSIONS)
    versions = pa.table(
        {
            "user_id": users_of_versions,
            "valid_from": np.tile(START_US + np.arange(VERSIONS) * 8 * DAY_US, n_users),
            "age": draw.integers(15, 80, len(users_of_versions)),
        }
    )
    pq.write_table(versions, folder / "users.parquet")
    brands = pa.table({"item_id": np.arange(n_items), "brand": draw.integers(0, 500, n_items)})
    pq.write_table(brands, folder / "items.parquet")


def join_config(
    folder: Path,
    output: Path,
    *,
    engine: Literal["duckdb", "spark"],
    memory_limit: str | None,
    threads: int,
) -> JoinConfig:
    """Two labels, three history features, attributes of both sides, half of the negatives."""
    from widedeep.join import (
        ActionLog,
        Attributes,
        History,
        ImpressionLog,
        JoinConfig,
        Label,
        Negatives,
    )

    return JoinConfig(
        output=str(output),
        impressions=ImpressionLog(path=str(folder / "impressions.parquet"), position="position"),
        actions=ActionLog(path=str(folder / "actions.parquet"), kind="kind"),
        user_attributes=Attributes(
            path=str(folder / "users.parquet"), key="user_id", valid_from="valid_from"
        ),
        item_attributes=Attributes(path=str(folder / "items.parquet"), key="item_id"),
        labels=(
            Label(name="click", kinds=("click",), window="1d"),
            Label(name="buy", kinds=("buy",), window="2d"),
        ),
        history=(
            History(name="last_items", feature="last", k=10),
            History(name="user_actions_7d", feature="count", window="7d"),
            History(name="item_rate", feature="rate", by="item", prior=0.1, strength=20.0),
        ),
        negatives=Negatives(rate=0.5),
        log_end=LOG_END,
        engine=engine,
        memory_limit=memory_limit,
        threads=threads,
        spark_master=f"local[{threads}]",
        spark_options=SPARK_OPTIONS,
    )
