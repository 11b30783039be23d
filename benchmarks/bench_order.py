"""A log in the order of time, larger than what is shuffled in memory, against a shuffled copy.

The rate of clicks rises from 10% to 40% over the log, and no feature knows the time. Trained in one
pass on rows that come in the order of time, a model predicts the rate of what it learned last:
calibration (mean prediction by mean label, over all rows) is off, and batches drift. Both are
measured for each way in which a log may lie: one row group, row groups of several sizes, several
files, CSV, a table in memory; "as written" is what `shuffle=False` reads, "copy" a log whose rows
were permuted before.

    python benchmarks/bench_order.py [--rows 1000000] [--pool-rows 65536] [--seeds 2] [--write]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from results_file import machine, write_section

import widedeep as wd
from widedeep.data.batch import Batch
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import Data, open_source

SPEC = wd.FeatureSpec(label="y", features=[wd.numeric("x"), wd.categorical("c")])


def log_table(rows: int) -> pa.Table:
    """Return a log in the order of time."""
    rng = np.random.default_rng(0)
    time = np.arange(rows)
    x = rng.normal(size=rows).astype(np.float32)
    rate = (0.1 + 0.3 * time / rows) * np.exp(0.2 * x) / np.exp(0.02)
    return pa.table(
        {
            "time": time,
            "x": x,
            "c": pa.array([f"c{i}" for i in range(100)]).take(pa.array(rng.integers(0, 100, rows))),
            "y": (rng.random(rows) < rate).astype(np.int8),
        }
    )


def shapes(table: pa.Table, pool_rows: int, folder: Path) -> dict[str, tuple[Data, bool]]:
    """Return the same rows as they may lie, and whether they are shuffled on the way."""
    copy = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    found: dict[str, tuple[Data, bool]] = {
        "copy": (copy, True),
        "as written": (table, False),
        "table": (table, True),
    }
    sizes = {"one": len(table), "large": 2 * pool_rows, "middle": pool_rows // 2,
             "small": pool_rows // 16}  # fmt: skip
    for name, size in sizes.items():
        path = folder / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=size)
        found[f"row groups of {size:,}"] = path, True
    (folder / "files").mkdir()
    for start in range(0, len(table), pool_rows // 2):
        part = table.slice(start, pool_rows // 2)
        pq.write_table(part, folder / "files" / f"{start:012d}.parquet")
    found[f"files of {pool_rows // 2:,}"] = folder / "files", True
    pacsv.write_csv(table, folder / "log.csv")
    found["CSV"] = folder / "log.csv", True
    return found


def batch_times(data: Data, pool_rows: int, seed: int, *, shuffle: bool) -> np.ndarray:
    """Return the mean time of the rows of each 512, from 0 to 1."""

    def encode(table: pa.Table) -> Batch:
        dense = np.asarray(table["time"], np.float32)[:, None]
        return Batch(ids_N=np.zeros(0, np.int64), offsets_BF=np.zeros(1, np.int64), dense_BK=dense)

    with open_source(data, columns=["time"]) as source:
        plan = EpochPlan(
            source, batch_size=512, seed=seed, epoch=0, shuffle=shuffle, pool_rows=pool_rows
        )
        means = [float(batch.dense_BK.mean()) for batch in BatchReader(source, encode, plan)]
        return np.array(means) / source.num_rows


def calibration(data: Data, table: pa.Table, pool_rows: int, seed: int, *, shuffle: bool) -> float:
    """Train one pass and return mean prediction by mean label over all rows."""
    model = wd.WideDeep(wd.fit_schema(SPEC, table), hidden_units=[16])
    trainer = wd.Trainer(
        model, batch_size=512, pool_rows=pool_rows, seed=seed, shuffle=shuffle, progress=False
    )
    trainer.fit(data, epochs=1)
    return float(trainer.evaluate(table)["calibration"])


def main() -> None:
    """Print, and write if asked, a table of all shapes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pool-rows", type=int, default=65_536)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    arguments = parser.parse_args()
    table, pool_rows = log_table(arguments.rows), arguments.pool_rows
    lines = [
        "## A log in the order of time\n",
        f"`benchmarks/bench_order.py` on {machine()}: {arguments.rows:,} rows, pool_rows "
        f"{pool_rows:,}, one pass, {arguments.seeds} seeds.\n",
        "| the log | calibration, seed by seed | furthest a twentieth's mean time is from 0.5 |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, (data, shuffle) in shapes(table, pool_rows, Path(folder)).items():
            figures, furthest = [], 0.0
            for seed in range(arguments.seeds):
                if name != "copy":
                    times = batch_times(data, pool_rows, seed, shuffle=shuffle)
                    parts = [part.mean() for part in np.array_split(times, 20)]
                    furthest = max(furthest, float(np.abs(np.array(parts) - 0.5).max()))
                figures.append(calibration(data, table, pool_rows, seed, shuffle=shuffle))
            shown = ", ".join(f"{figure:.3f}" for figure in figures)
            lines.append(f"| {name} | {shown} | {'' if name == 'copy' else f'{furthest:.3f}'} |")
            print(lines[-1], flush=True)
    if arguments.write:
        write_section("training:order", "\n".join(lines))


if __name__ == "__main__":
    main()
