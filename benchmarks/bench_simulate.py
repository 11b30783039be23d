"""Time of the simulated store: a million impressions by popularity, their logs written.

    python benchmarks/bench_simulate.py [--impressions 1000000]

In seconds of the clock and of the processor. On two cores of an x86-64 machine that others
kept busy (load 4; provisional): 18.8 s, 7.0 s of the processor
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

from widedeep.cli.simulate import simulate_store
from widedeep.simulate import Popularity, StoreConfig


def main() -> None:
    """Live the days that it takes, and print the seconds."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--impressions", type=int, default=1_000_000)
    wanted = options.parse_args().impressions
    config = StoreConfig(requests_per_day=min(10_000, max(1, wanted // 10)))
    days = math.ceil(wanted / config.shown / config.requests_per_day)
    with tempfile.TemporaryDirectory() as folder:
        started, used = time.perf_counter(), time.process_time()
        found = simulate_store(Path(folder), Popularity(), config=config, days=days)
        seconds, processor = time.perf_counter() - started, time.process_time() - used
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / 2**20
    print(
        f"{found.impressions:,} impressions, {found.installs:,} installs: {seconds:.1f} s, "
        f"{processor:.1f} s of the processor, {size:.0f} MB of logs"
    )


if __name__ == "__main__":
    main()
