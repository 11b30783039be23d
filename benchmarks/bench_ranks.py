"""What lanes and ranks cost: CPU time and payload of an example, and the load of owners.

Each configuration learns the same batches of models S and B (see train_models.py) in processes of
one thread: the step without lanes, one process with 8 lanes, and two ranks: of one lane each, in
fp32 and in bf16, and of 12 lanes each, by the memory that ranks of a machine share, and by gloo
over loopback, as those of several machines do. CPU time is the median over steps of a process's
own, summed over ranks, for each example. What two ranks of one lane add to a step is told by parts:
the calling thread's CPU time in the functions of each, and that of gloo's threads.

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
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from results_file import machine, write_section
from train_models import B, S, draw, make_batches, make_schema

import widedeep as wd
from widedeep.ranks.config import DistributedConfig, Wire
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks, ranks_of
from widedeep.tables.embedding_table import EmbeddingTable
from widedeep.training.exchange import Exchange
from widedeep.training.feature_rates import FeatureRates
from widedeep.training.lane_gradients import LaneGradients
from widedeep.training.step import TrainStep

MODELS = {"S": S, "B": B}
WARM = 4  # steps before the first that counts
CONFIGURATIONS: list[tuple[str, int, int, Wire, bool]] = [
    ("without lanes", 1, 1, "fp32", True),
    ("8 lanes", 1, 8, "fp32", True),
    ("2 ranks of 1 lane", 2, 2, "fp32", True),
    ("2 ranks of 12 lanes", 2, 24, "fp32", True),
    ("2 ranks of 1 lane, by gloo", 2, 2, "fp32", False),
    ("2 ranks of 1 lane, by gloo, bf16", 2, 2, "bf16", False),
    ("2 ranks of 12 lanes, by gloo", 2, 24, "fp32", False),
]
PARTS: dict[str, list[tuple[type, str]]] = {
    "owners of ids, and their routes": [(Exchange, "_request"), (Exchange, "_route")],
    "ids sent": [(Exchange, "_send_ids")],
    "rows and gradients packed, moved and unpacked": [(Exchange, "_all_to_all")],
    "rows of occurrences": [(Exchange, "_lookups")],
    "gradients added at the owner": [
        (EmbeddingTable, "group_lists"),
        (EmbeddingTable, "sum_lists"),
        (Exchange, "send"),
    ],
    "dense gradients": [(LaneGradients, "take"), (LaneGradients, "reduce")],
    "rates of features": [(FeatureRates, "learn_over")],
    "messages": [(Ranks, "trade")],
}


GLOO, AGAIN = "gloo's threads", "messages and gloo, where the same messages alone are sent again"


class Timers:
    """CPU seconds of this thread in the functions of each part, without those that they call."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys([*PARTS, ""], 0.0)
        self.sent: list[Callable[[], object]] = []  # what was sent since it was emptied, again
        self._open, self._since = [""], time.thread_time()
        for part, functions in PARTS.items():
            for owner, name in functions:
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        # Work of every step, which one of the parts calls
        EmbeddingTable.group = self._timed("", EmbeddingTable.group)  # type: ignore[method-assign]

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if part == "messages":
                self.sent.append(lambda: function(*arguments, **options))
            self._enter(part)
            try:
                return function(*arguments, **options)
            finally:
                self._leave()

        return call

    def _enter(self, part: str) -> None:
        now = time.thread_time()
        self.seconds[self._open[-1]] += now - self._since
        self._open.append(part)
        self._since = now

    def _leave(self) -> None:
        now = time.thread_time()
        self.seconds[self._open.pop()] += now - self._since
        self._since = now


def worker(
    name: str, lanes: int, wire: Wire, rows: int, steps: int, *, near: bool, by_parts: bool
) -> None:
    """Learn `rows` examples a step on this rank; print CPU microseconds and bytes an example."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    ranks = ranks_of(DistributedConfig(lanes=lanes, wire=wire))
    ranks.neighbours = ranks.neighbours if near else None
    shape = MODELS[name]
    model = wd.WideDeep(make_schema(shape), hidden_units=shape.hidden, embedding_dim=shape.dim)
    step = TrainStep(
        model, wide=wd.FTRL(), deep=wd.Adagrad(), dense=wd.Adagrad(), ranks=ranks, wire=wire
    )
    batches = make_batches(shape, 8, rows, seed=ranks.rank)
    own_lanes = len(ranks.lanes_of())
    timers = Timers() if by_parts else None
    seconds, threads, parts, first_bytes = [], [], [], 0
    for number in range(WARM + steps):
        batch = batches[number % len(batches)]
        if lanes > 1:
            batch.lane_starts = np.arange(own_lanes + 1) * rows // own_lanes
        if number == WARM:
            first_bytes = ranks.sent_bytes
        if timers is not None:
            timers.sent.clear()
            timers.seconds = dict.fromkeys(timers.seconds, 0.0)
        start, thread_start = time.process_time(), time.thread_time()
        step(batch, step=number + 1)
        seconds.append(time.process_time() - start)
        if timers is not None:
            threads.append(seconds[-1] - (time.thread_time() - thread_start))
            parts.append([timers.seconds[part] for part in PARTS])

    def cpu_us(values: list[Any]) -> Any:
        return np.median(np.array(values[WARM:]), axis=0) / rows * 1e6

    result = {"cpu_us": cpu_us(seconds), "bytes": (ranks.sent_bytes - first_bytes) / steps / rows}
    if timers is not None:
        result |= dict(zip(PARTS, cpu_us(parts), strict=True)) | {GLOO: cpu_us(threads)}
        messages, again = timers.sent.copy(), []
        for _ in range(WARM + steps):
            start = time.process_time()
            for message in messages:
                message()
            again.append(time.process_time() - start)
        result[AGAIN] = cpu_us(again)
    result = {key: float(value) for key, value in result.items()}
    print("RESULT " + json.dumps(result), flush=True)


def run(
    name: str,
    size: int,
    lanes: int,
    wire: Wire,
    near: bool,
    rows: int,
    steps: int,
    *,
    by_parts: bool = False,
) -> dict[str, float]:
    """Run a configuration; return the mean over its ranks."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments = [name, lanes, wire, rows, steps, int(near), int(by_parts)]
    command = [sys.executable, __file__, "--worker", *map(str, arguments)]
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
    return {key: float(np.mean([r[key] for r in results])) for key in results[0]}


def busiest_owner(ranks: int, rows: int) -> float:
    """Return the busiest owner's distinct rows by the mean's, for batches of Zipf ids."""
    loads, rng = np.zeros(ranks), np.random.default_rng(0)
    for _ in range(ranks):
        for field, size in enumerate(S.slot_sizes):
            ids = np.unique(draw(rng, size, rows, "zipf") + 2)
            owners = Layout(f"c{field}", size + 2, ranks).owner_of(ids)
            loads += np.bincount(owners, minlength=ranks)
    return float(loads.max() / loads.mean())


def parts_table(models: list[str], rows: int, steps: int) -> list[str]:
    """Return the lines of a table: what two ranks of one lane each add to a step, by parts."""
    columns = [(name, near) for name in models for near in (True, False)]
    results = [run(name, 2, 2, "fp32", near, rows, steps, by_parts=True) for name, near in columns]
    titles = [name + ("" if near else ", by gloo") for name, near in columns]
    lines = [
        "\nWhat two ranks of one lane add, in CPU µs an example:\n",
        f"| part | {' | '.join(titles)} |",
        "|---" * (1 + len(titles)) + "|",
    ]
    for part in [*PARTS, GLOO, AGAIN]:
        lines.append(f"| {part} | {' | '.join(f'{each[part]:.2f}' for each in results)} |")
    print("\n".join(lines), flush=True)
    return lines


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
        for label, size, lanes, wire, near in CONFIGURATIONS:
            result = run(name, size, lanes, wire, near, rows, steps)
            base = base or result["cpu_us"]
            lines.append(
                f"| {name} | {label} | {result['cpu_us']:.2f} | {result['cpu_us'] / base:.2f} | "
                f"{result['bytes']:,.0f} |"
            )
            print(lines[-1], flush=True)
    lines += parts_table(arguments.models, rows, steps)
    lines.append(f"\nBusiest of 8 owners on Zipf ids: {balance:.3f} times the mean.")
    print(lines[-1])
    if arguments.write:
        write_section("training:ranks", "\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        model_name, lanes_text, wire_text, *numbers = sys.argv[2:]
        n_rows, n_steps, is_near, parts = map(int, numbers)
        wire_name: Wire = "bf16" if wire_text == "bf16" else "fp32"
        worker(
            model_name, int(lanes_text), wire_name, n_rows, n_steps, near=bool(is_near),
            by_parts=bool(parts),
        )  # fmt: skip
    else:
        main()
