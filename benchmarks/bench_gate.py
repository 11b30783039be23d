"""Time of the gate: a million rows against two models, dry run, bootstrap, slices and drift.

Rows are those of `criteo_like.py` (13 numbers, 26 text fields) with a user and a query a row; the
models have the shape S of `bench_train.py` (16-wide embeddings, 256 -> 128 -> 1, three crosses) and
differ in their seed. The judged rows are read from Parquet, scored by both, resampled by user, and
judged by group and by slice.

    python benchmarks/bench_gate.py [--rows 1000000] [--train-rows 200000] [--write]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from criteo_like import ROW_GROUP_ROWS, generate
from results_file import machine, write_section

import widedeep as wd
from widedeep.gate import GateConfig, validate
from widedeep.kernels.threads import usable_cores

CAP = 100_000
ROWS_A_USER, ROWS_A_QUERY = 20, 10
CROSSES = (("C5", "C8"), ("C1", "C14"), ("C19", "C2"))


def rows_of(count: int, seed: int) -> pa.Table:
    """Return examples with a user and a query."""
    made = generate(count, CAP, seed)
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    rng = np.random.default_rng(seed)
    queries = np.arange(count) // ROWS_A_QUERY
    users = rng.integers(0, max(1, count // ROWS_A_USER), queries[-1] + 1)
    return (
        made.select(names)
        .append_column("query", pa.array(queries))
        .append_column("user", pa.array(users[queries]))
    )


def train(rows: pa.Table, seed: int, path: Path) -> None:
    """Learn one pass, and export."""
    numbers, fields = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    spec = wd.FeatureSpec(
        label="label",
        group="query",
        features=[
            *wd.numeric(*numbers),
            *wd.categorical(*fields, embedding_dim=16),
            *(wd.crossed(*parts, hash_buckets=100_000) for parts in CROSSES),
        ],
    )
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[256, 128], seed=seed)
    trainer = wd.Trainer(model, batch_size=2048, seed=seed, progress=False)
    trainer.fit(rows)
    trainer.export(path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--train-rows", type=int, default=200_000)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    lines = ["| threads | seconds | slices | verdict |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        learned = rows_of(asked.train_rows, 1)
        for seed, role in ((0, "serving"), (1, "candidate")):
            train(learned, seed, folder / role)
        pq.write_table(
            rows_of(asked.rows, 2), folder / "recent.parquet", row_group_size=ROW_GROUP_ROWS
        )
        for threads in sorted({1, usable_cores()}):
            started = time.perf_counter()
            verdict = validate(
                folder / "candidate",
                folder / "serving",
                folder / "recent.parquet",
                config=GateConfig(unit="user"),
                threads=threads,
            )
            seconds = time.perf_counter() - started
            told = "passes" if verdict.passed else "; ".join(verdict.reasons)
            lines.append(f"| {threads} | {seconds:.1f} | {len(verdict.slices)} | {told} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    text = "\n".join(lines) + f"\n\nPeak memory of the process, with its training: {peak:,.0f} MB."
    print(text)
    if asked.write:
        write_section(
            "gate",
            f"## The gate\n\n`benchmarks/bench_gate.py` on {machine()}: {asked.rows:,} rows "
            f"against two models of shape S, 1,000 resamples by user.\n\n{text}",
        )


if __name__ == "__main__":
    main()
