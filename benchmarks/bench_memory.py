"""Peak memory of training and evaluating N and 10 N rows with one schema: it should be the same.

The schema is fitted on the N rows; each measurement runs in a process of its own, which reports the
peak of its anonymous memory less its tables, and the rows a second on the way.

    python benchmarks/bench_memory.py [--rows 2000000] [--times 10]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import widedeep as wd

DATA = Path(__file__).parent / "data"


def log_file(rows: int) -> Path:
    """Return a generated click log of so many rows, made on the first call."""
    path = DATA / f"criteo_like_{rows}_0.parquet"
    if not path.exists():
        DATA.mkdir(exist_ok=True)
        script = Path(__file__).with_name("criteo_like.py")
        command = [sys.executable, str(script), "--rows", str(rows), "--out", str(path)]
        subprocess.run(command, check=True)
    return path


def anonymous_bytes() -> int:
    """Return this process's anonymous resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this script needs Linux")


class Peak(threading.Thread):
    """Samples the anonymous memory every 5 ms until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self.done.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes())


def make_spec() -> wd.FeatureSpec:
    """26 text columns, 13 numbers and three crosses."""
    return wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*(f"I{i}" for i in range(1, 14))),
            *wd.categorical(*(f"C{i}" for i in range(1, 27))),
            wd.crossed("C5", "C8"),
            wd.crossed("C1", "C14"),
            wd.crossed("C19", "C2"),
        ],
    )


def measure(schema_path: str, data: str) -> None:
    """Train and evaluate in this process, and print what it took as JSON."""
    model = wd.WideDeep(wd.Schema.load(schema_path))
    trainer = wd.Trainer(model, batch_size=2048, progress=False)
    tables = [table for table in (model.wide_table, *model.deep_tables.values()) if table]
    held = sum(
        tensor.numel() * tensor.element_size()
        for table in tables
        for tensor in (table.weight, *table.state.values())
    )
    peak = Peak()
    peak.start()
    start = time.perf_counter()
    trainer.fit(data)
    trained = time.perf_counter() - start
    metrics = trainer.evaluate(data)
    peak.done.set()
    peak.join()
    rows = metrics["rows"]
    print(
        json.dumps(
            {
                "rows": rows,
                "rows_per_s": rows / trained,
                "tables_mb": held / 1e6,
                "peak_mb": peak.bytes / 1e6,
                "besides_tables_mb": (peak.bytes - held) / 1e6,
            }
        )
    )


def run(arguments: Sequence[str]) -> dict[str, float]:
    """Run this script in a process of its own and return its figures."""
    command = [sys.executable, __file__, *arguments]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure both sizes and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--measure", nargs=2, metavar=("SCHEMA", "DATA"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    small, large = log_file(arguments.rows), log_file(arguments.rows * arguments.times)
    schema_path = DATA / "memory_schema.safetensors"
    wd.fit_schema(make_spec(), small).save(schema_path)
    found = [run(["--measure", str(schema_path), str(data)]) for data in (small, large)]
    for figures in found:
        print(
            f"{figures['rows']:>12,.0f} rows  {figures['rows_per_s']:>9,.0f} rows/s  peak "
            f"{figures['peak_mb']:7,.0f} MB, tables and state {figures['tables_mb']:7,.0f} MB, "
            f"besides {figures['besides_tables_mb']:6,.0f} MB"
        )
    ratio = found[1]["besides_tables_mb"] / found[0]["besides_tables_mb"]
    print(f"besides the tables, {arguments.times} times the rows take {ratio:.3f} of the memory")


if __name__ == "__main__":
    main()
