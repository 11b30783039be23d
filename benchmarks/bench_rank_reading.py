"""What a rank of eight reads from an object store for a row of its own, against one process.

    python benchmarks/bench_rank_reading.py [--rows 1000000] [--write]

The store is that of ``bench_object_store.py``. An epoch of 8 lanes is read, decoded, encoded and
cut into batches: by one process all lanes, by a rank of eight its own lane. Row groups that two
lanes share are read by both, which is what more ranks cost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from bench_object_store import _SERVER, write_rows
from results_file import machine, write_section

import widedeep as wd
from widedeep import remote
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform

LANES, ROUNDS, MOST, GROUP_ROWS = 8, 5, 1.3, 16_384


class Fetched:
    """Counts the bytes and ranges that the package's connections receive."""

    def __init__(self) -> None:
        self.bytes = self.ranges = 0
        self._receive = remote._received
        remote._received = self._received  # type: ignore[assignment]

    def _received(self, file: object, connection: object, address: object, *span: int) -> object:
        self.bytes += span[1] - span[0]
        self.ranges += 1
        return self._receive(file, connection, address, *span)  # type: ignore[arg-type]


def read_lanes(transform: Transform, data: str, lanes: range, fetched: Fetched) -> list[float]:
    """Return processor microseconds, bytes and ranges fetched, a row and in all, of an epoch."""
    fetched.bytes = fetched.ranges = 0
    started = time.process_time()
    columns, types = transform.columns(), transform.schema.input_types()
    with open_source(data, columns=columns, column_types=types) as source:
        plan = EpochPlan(source, batch_size=8192, seed=0, epoch=0, lanes=LANES)
        with BatchReader(source, partial(transform, targets=True), plan, lanes=lanes) as reader:
            rows = sum(len(batch) for batch in reader)
    spent = time.process_time() - started
    return [spent / rows * 1e6, fetched.bytes / rows, fetched.ranges]


def main() -> int:
    """Measure in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    options = parser.parse_args()
    readers = {"one process, 8 lanes": range(LANES), "a rank of 8, its lane": range(3, 4)}
    found: dict[str, list[list[float]]] = {name: [] for name in readers}
    with tempfile.TemporaryDirectory(prefix="bench-rank-reading-") as scratch:
        local = Path(scratch) / "rows.parquet"
        write_rows(local, options.rows * 80 // 1_000_000)
        table = pq.read_table(local)
        table = table.append_column("label", pa.array([n % 2 for n in range(table.num_rows)]))
        pq.write_table(table, local, row_group_size=GROUP_ROWS, use_dictionary=False)
        ids = [wd.categorical(f"id_{n}", hash_buckets=10_000) for n in range(5)]
        numbers = wd.numeric(*(f"number_{n}" for n in range(5)))
        spec = wd.FeatureSpec(label="label", features=[*ids, *numbers])
        transform = Transform(wd.fit_schema(spec, table.slice(0, 20_000)))
        command = [sys.executable, "-c", _SERVER, str(local)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "bench")
            os.environ |= {**keys, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
            fetched = Fetched()
            for _ in range(ROUNDS):
                for name, lanes in readers.items():
                    values = read_lanes(transform, "s3://bench/rows.parquet", lanes, fetched)
                    found[name].append(values)
        finally:
            server.kill()
            server.wait()
    medians = {
        n: [statistics.median(v) for v in zip(*runs, strict=True)] for n, runs in found.items()
    }
    (one_cpu, one_bytes, _), (cpu, n_bytes, _) = medians.values()
    lines = [
        f"| {name} | {values[0]:.3f} | {values[1]:.0f} | {values[2]:.0f} |"
        for name, values in medians.items()
    ]
    ratio = cpu / one_cpu
    text = (
        "## Reading from an object store on several ranks\n\n`benchmarks/bench_rank_reading.py` on "
        f"{machine()}, load {os.getloadavg()[0]:.0f}: {options.rows:,} rows in row groups of "
        f"{GROUP_ROWS:,}, medians of {ROUNDS} turns.\n\n"
        "| reader | us of a processor a row of its own | bytes fetched a row | ranges |\n"
        "|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        f"Of a rank of 8: {ratio:.2f} times the processor time and {n_bytes / one_bytes:.2f} times "
        f"the bytes a row. Aim: at most {MOST}: {'met' if ratio <= MOST else 'missed'}."
    )
    print(text)
    if options.write:
        write_section("ranks:reading", text)
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
