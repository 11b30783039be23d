"""A server under steady load, with new versions and catalogues every so often: is memory flat?

Every slice of load is followed by a line: requests, failures, latency, and the memory of the
server's process. Exit code 1 if a request failed, or if memory of the last quarter is over a tenth
above that of the second quarter; the first is left to warm up.

    python benchmarks/soak.py [--seconds 3600] [--slice 10] [--publish-every 60]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_swap import CANDIDATES, publish, user_of, write_items

from widedeep.cli.bench import started
from widedeep.serving.load import LoadReport, Target, run_load

ITEMS, BUCKETS, CONNECTIONS, KEPT = 5_000, 200_000, 4, 3


def resident_mb(process: int) -> float:
    """Memory that is the process's own: mapped files come and go with the page cache."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1e3


def bodies() -> list[bytes]:
    """Requests of 500 users."""
    rng = np.random.default_rng(0)
    return [
        json.dumps(
            {"user": user_of(n), "candidates": rng.integers(0, ITEMS, CANDIDATES).tolist()}
        ).encode()
        for n in range(500)
    ]


def renew(folder: Path, version: int) -> None:
    """Publish a version beside its place and rename it; replace the catalogue; drop old ones."""
    publish(folder / "aside", version, BUCKETS)
    (folder / "aside" / str(version)).rename(folder / "models" / str(version))
    write_items(folder / "items.new", ITEMS).rename(folder / "items.parquet")
    shutil.rmtree(folder / "models" / str(version - KEPT), ignore_errors=True)


def soak(target: Target, folder: Path, arguments: argparse.Namespace) -> bool:
    """Load, publish, look at memory; say whether all went well."""
    asked = bodies()
    begun = renewed = time.monotonic()
    version, memory, failures = 1, [], 0
    total = 0
    while (now := time.monotonic()) - begun < arguments.seconds:
        if now - renewed >= arguments.publish_every:
            renewed, version = now, version + 1
            renew(folder, version)
        report: LoadReport = run_load(
            target, asked, connections=CONNECTIONS, seconds=arguments.slice, warm_up_s=0
        )
        assert target.process is not None
        memory.append(resident_mb(target.process))
        failures += sum(report.failures.values())
        total += report.requests
        print(
            f"{now - begun:7.0f} s  version {version:3}  {report.requests:7,} requests  "
            f"{sum(report.failures.values())} failed  p50 {report.p50_ms:.2f}  "
            f"p99 {report.p99_ms:.2f} ms  {memory[-1]:.0f} MB",
            flush=True,
        )
    quarter = max(1, len(memory) // 4)
    early, late = np.median(memory[quarter : 2 * quarter]), np.median(memory[-quarter:])
    growth = late / early - 1
    print(
        f"{total:,} requests, {failures} failed, {version} versions; memory of the last quarter "
        f"{growth:+.1%} of the second's"
    )
    return not failures and bool(growth < 0.1)


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--slice", type=float, default=10.0)
    parser.add_argument("--publish-every", type=float, default=60.0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        publish(folder / "models", 1, BUCKETS)
        write_items(folder / "items.parquet", ITEMS)
        words = [str(folder / "models"), "--items", str(folder / "items.parquet")]
        with started([*words, "--item-id", "item", "--log", str(folder / "log")]) as target:
            return 0 if soak(target, folder, arguments) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
