"""What lanes and ranks cost: CPU time and payload of an example, and the load of owners.

Each configuration learns the same batches of models S and B (see train_models.py) in processes of
one thread: the step without lanes, one process with 8 lanes, and two ranks over loopback: of one
lane each, in fp32 and in bf16, and of 12 lanes each. CPU time is the median over steps of a
process's own, summed over ranks, for each example.

    python benchmarks/bench_ranks.py [--rows 8192] [--steps 30] [--models S B] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from results_file import machine, write_section
from train_models import B, S, draw, make_batches, make_schema

import widedeep as wd
from widedeep.ranks.config import DistributedConfig, Wire
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import ranks_of
from widedeep.training.step import TrainStep

MODELS = {"S": S, "B": B}
WARM = 4  # steps before the first that counts
CONFIGURATIONS: list[tuple[str, int, int, Wire]] = [
    ("without lanes", 1, 1, "fp32"),
    ("8 lanes", 1, 8, "fp32"),
    ("2 ranks of 1 lane", 2, 2, "fp32"),
    ("2 ranks of 1 lane, bf16", 2, 2, "bf16"),
    ("2 ranks of 12 lanes", 2, 24, "fp32"),
]


def worker(name: str, lanes: int, wire: Wire, rows: int, steps: int) -> None:
    """Learn `rows` examples a step on this rank; print CPU microseconds and bytes an example."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    ranks = ranks_of(DistributedConfig(lanes=lanes, wire=wire))
    shape = MODELS[name]
    model = wd.WideDeep(make_schema(shape), hidden_units=shape.hidden, embedding_dim=shape.dim)
    step = TrainStep(
        model, wide=wd.FTRL(), deep=wd.Adagrad(), dense=wd.Adagrad(), ranks=ranks, wire=wire
    )
    batches = make_batches(shape, 8, rows, seed=ranks.rank)
    own_lanes = len(ranks.lanes_of())
    seconds, first_bytes = [], 0
    for number in range(WARM + steps):
        batch = batches[number % len(batches)]
        if lanes > 1:
            batch.lane_starts = np.arange(own_lanes + 1) * rows // own_lanes
        if number == WARM:
            first_bytes = ranks.sent_bytes
        start = time.process_time()
        step(batch, step=number + 1)
        seconds.append(time.process_time() - start)
    cpu_us = float(np.median(seconds[WARM:])) / rows * 1e6
    result = {
        "rank": ranks.rank,
        "cpu_us": cpu_us,
        "bytes": (ranks.sent_bytes - first_bytes) / steps / rows,
    }
    print("RESULT " + json.dumps(result), flush=True)


def run(name: str, size: int, lanes: int, wire: Wire, rows: int, steps: int) -> dict[str, float]:
    """Run a configuration; return the mean over its ranks."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, __file__, "--worker", name, str(lanes), wire, str(rows), str(steps)]
    processes = []
    for rank in range(size):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if size > 1:
            environment |= {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    results: list[dict[str, Any]] = []
    for process in processes:
        output = process.communicate()[0]
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        results.append(json.loads(line.removeprefix("RESULT ")))
    return {key: float(np.mean([r[key] for r in results])) for key in ("cpu_us", "bytes")}


def busiest_owner(ranks: int, rows: int) -> float:
    """Return the busiest owner's distinct rows by the mean's, for batches of Zipf ids."""
    loads, rng = np.zeros(ranks), np.random.default_rng(0)
    for _ in range(ranks):
        for field, size in enumerate(S.slot_sizes):
            ids = np.unique(draw(rng, size, rows, "zipf") + 2)
            owners = Layout(f"c{field}", size + 2, ranks).owner_of(ids)
            loads += np.bincount(owners, minlength=ranks)
    return float(loads.max() / loads.mean())


def main() -> None:
    """Measure all configurations, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=8192, help="examples a rank and step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    arguments = parser.parse_args()
    rows, steps = arguments.rows, arguments.steps
    balance = busiest_owner(8, rows)
    lines = [
        "## Lanes and ranks\n",
        f"`benchmarks/bench_ranks.py` on {machine()}: {rows:,} rows a rank, one thread a process, "
        f"loopback, median of {steps} steps.\n",
        "| model | configuration | CPU µs an example | by the step without lanes | bytes sent an "
        "example |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.models:
        base = 0.0
        for label, size, lanes, wire in CONFIGURATIONS:
            result = run(name, size, lanes, wire, rows, steps)
            base = base or result["cpu_us"]
            lines.append(
                f"| {name} | {label} | {result['cpu_us']:.2f} | {result['cpu_us'] / base:.2f} | "
                f"{result['bytes']:,.0f} |"
            )
            print(lines[-1], flush=True)
    lines.append(f"\nBusiest of 8 owners on Zipf ids: {balance:.3f} times the mean.")
    print(lines[-1])
    if arguments.write:
        write_section("training:ranks", "\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        model_name, lanes_text, wire_text, rows_text, steps_text = sys.argv[2:]
        wire_name: Wire = "bf16" if wire_text == "bf16" else "fp32"
        worker(model_name, int(lanes_text), wire_name, int(rows_text), int(steps_text))
    else:
        main()
