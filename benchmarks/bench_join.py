"""Time and memory of the join: 5M impressions, 0.5M actions, 100k users, 50k items.

    python benchmarks/bench_join.py                     # the whole log with DuckDB
    python benchmarks/bench_join.py --scale 0.1         # a tenth of it
    python benchmarks/bench_join.py --double            # once more with twice the impressions
    python benchmarks/bench_join.py --engine spark

Each run is a process of its own; the peak of its resident memory is the kernel's figure. On two
idle cores of an x86-64 machine, with a memory limit of 900 MB for DuckDB (10M on a busy machine
had its peak at 1.17 GB):

    impressions   seconds   processor seconds   peak GB
    5M               14.5                  --      1.09
    10M              29.0                  --      1.66
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMPRESSIONS, ACTIONS, USERS, ITEMS, VERSIONS = 5_000_000, 500_000, 100_000, 50_000, 3
SLATE = 10
START_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000


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


def join(folder: Path, engine: str, memory_limit: str | None, threads: int) -> None:
    """Run the join of this benchmark and print its figures as JSON."""
    from widedeep.data.join import (
        ActionLog,
        Attributes,
        History,
        ImpressionLog,
        JoinConfig,
        Label,
        Negatives,
        run_join,
    )

    started = time.perf_counter()
    result = run_join(
        JoinConfig(
            output=str(folder / "examples"),
            impressions=ImpressionLog(
                path=str(folder / "impressions.parquet"), position="position"
            ),
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
            engine=engine,  # type: ignore[arg-type]
            memory_limit=memory_limit,
            threads=threads,
            spark_master=f"local[{threads}]",
        ),
        progress=True,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": round(seconds, 1), "peak_GB": round(peak, 2), **result.rows}))


def main() -> int:
    """Write the log, run the join in a process of its own, print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--engine", choices=["duckdb", "spark"], default="duckdb")
    options.add_argument("--memory-limit", default="900MB")
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--double", action="store_true")
    options.add_argument("--folder", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.folder:
        join(Path(chosen.folder), chosen.engine, chosen.memory_limit, chosen.threads)
        return 0
    print(f"{platform.machine()}, {os.cpu_count()} cores, {chosen.engine}, {chosen.memory_limit}")
    for impressions in [IMPRESSIONS, 2 * IMPRESSIONS] if chosen.double else [IMPRESSIONS]:
        with tempfile.TemporaryDirectory() as folder:
            write_log(Path(folder), chosen.scale, impressions)
            print(f"{int(impressions * chosen.scale):,} impressions:", flush=True)
            arguments = [*sys.argv[1:], "--folder", folder]
            code = subprocess.run([sys.executable, __file__, *arguments], check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
