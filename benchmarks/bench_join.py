"""Time and memory of the join: 5M impressions, 0.5M actions, 100k users, 50k items.

    python benchmarks/bench_join.py                     # 5M, 10M and 20M with DuckDB, 3 runs each
    python benchmarks/bench_join.py --scale 0.1         # a tenth of it
    python benchmarks/bench_join.py --spark             # 5M on both engines: are they alike?
    python benchmarks/bench_join.py --limit 400MB       # DuckDB has less, and spills
    python benchmarks/bench_join.py --write             # into RESULTS.md

Each run is a process of its own; its peak is the most that it and all of its children had resident
at a time. Runs of different sizes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from join_log import SPARK_OPTIONS, join_config, write_log
from process_tree import Watched, watch
from results_file import machine, write_section

SECONDS, GIGABYTES, FLAT = 25, 1.5, 0.1


def join(folder: Path, output: Path, engine: str, memory_limit: str | None, threads: int) -> None:
    """Run the join of this benchmark and print its figures as JSON."""
    from widedeep.join import run_join

    config = join_config(
        folder,
        output,
        engine=engine,  # type: ignore[arg-type]
        memory_limit=memory_limit,
        threads=threads,
    )
    started = time.perf_counter()
    result = run_join(config, progress=False)
    print(json.dumps({"seconds": time.perf_counter() - started, "rows": result.rows}))


def watched(options: argparse.Namespace, folder: Path, engine: str, limit: str | None) -> Watched:
    """Run a join in a process of its own."""
    output = folder / f"examples-{engine}"
    command = [sys.executable, __file__, "--folder", str(folder), "--engine", engine]
    command += ["--threads", str(options.threads), *(["--memory-limit", limit] if limit else [])]
    done = watch(command, folder / f".{output.name}.join" / "spill")
    if done.code:
        raise SystemExit(f"the join of {folder} on {engine} failed")
    return done


def measure(options: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    """Measure DuckDB on logs of several sizes; returns a table and whether the aims are met."""
    sizes = sorted(int(millions * 1_000_000) for millions in options.millions)
    for size in sizes:
        write_log(scratch / str(size), options.scale, size)
    runs: dict[int, list[Watched]] = {size: [] for size in sizes}
    for _ in range(options.repeats):
        for size in sizes:
            done = watched(options, scratch / str(size), "duckdb", options.limit)
            runs[size].append(done)
            told = f"{size * options.scale:,.0f} impressions: {done.seconds:.1f} s, "
            print(told + f"{done.peak_gb:.2f} GB", flush=True)
    return _table(options, runs)


def _table(options: argparse.Namespace, runs: dict[int, list[Watched]]) -> tuple[str, bool]:
    lines = [
        "| impressions | seconds | processor s | peak GB of the process tree | "
        "of that of the smallest log | spilled MB |",
        "|---|---|---|---|---|---|",
    ]
    flat, smallest = True, min(runs)
    first = statistics.median(run.peak_gb for run in runs[smallest])
    for size, listed in runs.items():
        shares = [run.peak_gb / first for run in listed]
        flat = flat and max(abs(share - 1) for share in shares) <= FLAT
        cells = [
            f"{size * options.scale:,.0f}",
            ", ".join(f"{run.seconds:.1f}" for run in listed),
            f"{statistics.median(run.cpu_seconds for run in listed):.1f}",
            ", ".join(f"{run.peak_gb:.2f}" for run in listed),
            f"{min(shares):.2f} to {max(shares):.2f}",
            f"{max(run.peak_folder_mb for run in listed):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    aimed = runs[smallest]
    slowest = max(run.seconds for run in aimed)
    highest = max(run.peak_gb for run in aimed)
    held = slowest < SECONDS and highest < GIGABYTES and flat
    if options.scale != 1:
        return "\n".join(lines) + "\n\nThe aims are for the whole log.", True
    told = (
        f"Aims: {smallest * options.scale:,.0f} in under {SECONDS} s ({slowest:.1f}) and "
        f"{GIGABYTES} GB ({highest:.2f}), larger logs within {FLAT:.0%} of its peak "
        f"({'yes' if flat else 'no'}): {'met' if held else 'missed'}."
    )
    return "\n".join(lines) + f"\n\n{told}", held


def compare(options: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    """Join one log on both engines; returns what was compared and whether all is equal."""
    from compare_joins import differences

    from widedeep.join import open_dataset

    size = int(options.millions[0] * 1_000_000)
    folder = scratch / "both"
    write_log(folder, options.scale, size)
    runs = {
        "DuckDB": watched(options, folder, "duckdb", options.limit),
        f"Spark, local[{options.threads}]": watched(options, folder, "spark", None),
    }
    one, other = (open_dataset(folder / f"examples-{name}") for name in ("duckdb", "spark"))
    found = differences(one, other)
    lines = ["| engine | seconds | peak GB of the process tree |", "|---|---|---|"]
    lines += [f"| {name} | {run.seconds:.0f} | {run.peak_gb:.2f} |" for name, run in runs.items()]
    lines += ["", "| compared to the bit | how many | different |", "|---|---|---|"]
    lines += [
        f"| {what} | {count} | {', '.join(differ[:8]) or 'none'} |"
        for what, (count, differ) in found.items()
    ]
    same = not any(differ for _, differ in found.values())
    rows = sum(one.rows.values())
    told = (
        f"{size * options.scale:,.0f} impressions, {rows:,} examples, columns by the SHA-256 of "
        f"their values, row by row as written; Spark {other.manifest['engine']['version']} "
        f"with {', '.join(f'{k}={v}' for k, v in SPARK_OPTIONS.items())}: "
        f"{'bit-equal' if same else 'NOT EQUAL'}."
    )
    return "\n".join(lines) + f"\n\n{told}", same


def main() -> int:
    """Measure or compare, print the tables, and write them down if asked to."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--scale", type=float, default=1.0, help="share of all sizes")
    options.add_argument("--millions", type=float, nargs="+", default=[5, 10, 20])
    options.add_argument("--limit", default="900MB", help="DuckDB's memory")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--spark", action="store_true", help="compare the two engines instead")
    options.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    options.add_argument("--folder", help=argparse.SUPPRESS)
    options.add_argument("--engine", default="duckdb", help=argparse.SUPPRESS)
    options.add_argument("--memory-limit", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.folder:
        folder = Path(chosen.folder)
        output = folder / f"examples-{chosen.engine}"
        join(folder, output, chosen.engine, chosen.memory_limit, chosen.threads)
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-join-") as scratch:
        text, held = (compare if chosen.spark else measure)(chosen, Path(scratch))
    load = f"load of the machine at the end: {os.getloadavg()[0]:.1f}"
    title = "## The join on both engines" if chosen.spark else f"## The join, in {chosen.limit}"
    script = f"`benchmarks/bench_join.py{' --spark' if chosen.spark else ''}`"
    text = f"{title}\n\n{script} on {machine()}; {load}; {chosen.threads} threads.\n\n{text}"
    print(text)
    if chosen.write:
        write_section("join:engines" if chosen.spark else f"join:{chosen.limit}", text)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
