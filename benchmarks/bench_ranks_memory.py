"""Resident memory of each rank while large tables are trained, saved, read again and exported.

    python benchmarks/bench_ranks_memory.py [--ranks 4] [--gigabytes 2] [--write]

The tables, with their optimizer state, are divided over the ranks; no rank ever holds the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from results_file import machine, write_section

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.training.checkpoint import read_checkpoint, write_checkpoint
from widedeep.training.config import TrainConfig
from widedeep.training.evaluation import Evaluator
from widedeep.training.export import export_bundle
from widedeep.training.schedules import RateSchedules
from widedeep.training.state import TrainState, WarmupSample
from widedeep.training.step import TrainStep

DIM = 16
ROW_BYTES = 16 + 2 * DIM * 4  # FTRL's weight, n and z in a record; a vector and Adagrad's sums
BATCH, STEPS = 4096, 20


def make_rows(seed: int, buckets: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    users = (rng.zipf(1.1, BATCH) % buckets).astype(np.int64)
    return pa.table({"user": users, "age": rng.normal(size=BATCH), "y": users % 2})


def make_state(ranks: Ranks, buckets: int) -> TrainState:
    features = [wd.categorical("user", hash_buckets=buckets, embedding_dim=DIM), wd.numeric("age")]
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=features), make_rows(0, buckets))
    model = wd.WideDeep(schema, hidden_units=[64])
    config = TrainConfig(batch_size=BATCH, schedule="constant")
    step = TrainStep(
        model, config, wide=wd.FTRL(), deep=wd.Adagrad(), dense=wd.Adagrad(), ranks=ranks
    )
    schedules = RateSchedules(config.part_schedules())
    return TrainState(
        model=model, step=step, config=config, warmup=WarmupSample({}, 0), schedules=schedules
    )


def learn(state: TrainState, ranks: Ranks, buckets: int) -> None:
    transform = Transform(state.model.schema)
    for number in range(STEPS):
        batch = transform(make_rows(number + 1, buckets))
        edges = np.arange(ranks.lanes + 1) * BATCH // ranks.lanes
        lanes = ranks.lanes_of()
        own = batch.slice(int(edges[lanes.start]), int(edges[lanes.stop]))
        own.lane_starts = edges[lanes.start : lanes.stop + 1] - edges[lanes.start]
        state.step(own, step=number + 1)
    state.position.updates = STEPS


def peak_mb() -> float:
    """Return the largest resident memory since the last call, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return (
        int(match[1]) / 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def run_rank(folder: Path, buckets: int) -> None:
    size = int(os.environ["WORLD_SIZE"])
    ranks = ranks_of(DistributedConfig(lanes=size, timeout="300s"))
    peaks = {"start": peak_mb()}
    state = make_state(ranks, buckets)
    learn(state, ranks, buckets)
    peaks["fit"] = peak_mb()
    write_checkpoint(folder / "step-1", state.checkpoint())
    peaks["save"] = peak_mb()
    state.restore(read_checkpoint(folder / "step-1", ranks=ranks))
    peaks["resume"] = peak_mb()
    evaluator = Evaluator(state.model, exchange=state.step.exchange)
    export_bundle(
        state, evaluator, folder / "bundle", metrics={}, calibration=None,
        warmup=make_rows(9, buckets).drop_columns("y").slice(0, 8).to_pylist(),
        calibrate_on=None, negative_rate=None, posterior=None, items=None, overwrite=False,
        part_bytes=256 << 20,
    )  # fmt: skip
    peaks["export"] = peak_mb()
    every = ranks.gather(np.array(list(peaks.values())))
    if ranks.is_first:
        largest = np.max(every, axis=0).round(0).tolist()
        (folder / "peaks.json").write_text(json.dumps(dict(zip(peaks, largest, strict=True))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="folder for checkpoint and bundle")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    buckets = int(arguments.gigabytes * 1e9 / ROW_BYTES)
    if "RANK" in os.environ:
        run_rank(arguments.folder, buckets)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    world = {"WORLD_SIZE": str(arguments.ranks), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--gigabytes", str(arguments.gigabytes)]
    command += ["--folder", str(folder)]
    try:
        ranks = [
            subprocess.Popen(command, env={**os.environ, **world, "RANK": str(rank)})
            for rank in range(arguments.ranks)
        ]
        codes = [rank.wait() for rank in ranks]
        assert not any(codes), codes
        peaks = json.loads((folder / "peaks.json").read_text())
        size = sum(file.stat().st_size for file in (folder / "bundle").iterdir()) / 1e6
    finally:
        shutil.rmtree(folder)
    lines = [
        "## Memory of ranks",
        "",
        f"{arguments.gigabytes:g} GB of tables with their optimizer state ({buckets:,} ids of "
        f"width {DIM}) over {arguments.ranks} ranks; a bundle of {size:,.0f} MB. Largest "
        f"resident memory of a rank, in MB; {machine()}.",
        "",
        "| " + " | ".join(peaks) + " |",
        "|" + "---|" * len(peaks),
        "| " + " | ".join(f"{value:,.0f}" for value in peaks.values()) + " |",
    ]
    print("\n".join(lines))
    if arguments.write:
        write_section("ranks memory", "\n".join(lines))


if __name__ == "__main__":
    main()
