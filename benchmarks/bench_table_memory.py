"""Resident memory of a large table in training, by the numbers it is kept in, and what they cost.

Each row of the first table is a process of its own: it makes a table of ``--rows`` rows of
``--dim`` numbers, every one of them written, trains some steps on random ids, and reports by how
much its anonymous resident memory grew. The second table is one process: steps of both kinds in
turns, medians of their CPU time. ``--wide`` counts the wide weights that z and n alone would give.

    python benchmarks/bench_table_memory.py [--rows 20000000] [--dim 32] [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import pyarrow as pa
import train_models as models
from bench_memory import anonymous_bytes
from numpy.typing import NDArray
from results_file import machine, write_section

import widedeep as wd
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.training.step import TrainStep

BATCH = 2048
KINDS = {
    "fp32, Adagrad": ("fp32", False),
    "fp32, row-wise": ("fp32", True),
    "bf16, Adagrad": ("bf16", False),
    "bf16, row-wise": ("bf16", True),
}


def make_batches(rows: int, dim: int, features: int, count: int) -> tuple[wd.Schema, list[Batch]]:
    """Return a schema of hashed features that share ``rows`` rows, and batches of random ids."""
    names = [f"c{i}" for i in range(features)]
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical(name, hash_buckets=rows // features, embedding_dim=dim) for name in names
        ],
        wide=[],
    )
    rng = np.random.default_rng(0)
    tables = [
        pa.table(
            {
                **{name: rng.integers(1 << 40, size=BATCH) for name in names},
                "y": rng.integers(2, size=BATCH),
            }
        )
        for _ in range(count)
    ]
    schema = wd.fit_schema(spec, tables[0])
    transform = Transform(schema)
    return schema, [transform(table) for table in tables]


def make_step(schema: wd.Schema, kind: str) -> TrainStep:
    """Return what trains a small tower over the tables of a kind."""
    table_dtype, row_wise = KINDS[kind]
    model = wd.WideDeep(schema, hidden_units=[32], table_dtype=table_dtype)
    deep = wd.Adagrad(row_wise=row_wise)
    return TrainStep(model, wide=wd.FTRL(), deep=deep, dense=wd.Adagrad())


def measure(kind: str, rows: int, dim: int, steps: int) -> None:
    """Train in this process, and print what it took as JSON."""
    schema, batches = make_batches(rows, dim, 8, 8)
    make_step(make_batches(800, dim, 8, 1)[0], kind)(make_batches(800, dim, 8, 1)[1][0])
    before, start = anonymous_bytes(), time.perf_counter()
    step = make_step(schema, kind)
    (table,) = step.model.deep_tables.values()
    for number in range(steps):
        losses_B = step(batches[number % len(batches)], step=number + 1).losses_B
    assert bool(losses_B.isfinite().all())
    figures = {
        "resident": anonymous_bytes() - before,
        "layout": table.n_rows * table.record_layout(step.deep).stride,
        "rows": table.n_rows,
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(figures))


def memory_lines(rows: int, dim: int, kinds: list[str], steps: int) -> Iterator[str]:
    """Yield the table of resident memory as it comes."""
    yield f"\n{rows:,} rows of width {dim}, {steps} steps of {BATCH:,} examples.\n"
    yield "| tables | bytes a row | resident, MB | of fp32, Adagrad |"
    yield "|---|---|---|---|"
    first = None
    for kind in kinds:
        arguments = ["--measure", kind, "--rows", rows, "--dim", dim, "--steps", steps]
        command = [sys.executable, __file__, *map(str, arguments)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(found.stdout.splitlines()[-1])
        first = first or (figures["resident"] if kind == "fp32, Adagrad" else None)
        ratio = f"{figures['resident'] / first:.3f}" if first else "-"
        yield (
            f"| {kind} | {figures['layout'] / figures['rows']:.0f} | "
            f"{figures['resident'] / 1e6:,.0f} | {ratio} |"
        )


def speed_lines(rows: int, dim: int, turns: int) -> Iterator[str]:
    """Yield the table of CPU time a step, kinds in turns within one process."""
    schema, batches = make_batches(rows, dim, 26, 8)
    steps = {kind: make_step(schema, kind) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(turns + 1):
        for kind, step in steps.items():
            start = time.process_time()
            for number, batch in enumerate(batches):
                step(batch, step=turn * len(batches) + number + 1)
            if turn:
                times[kind].append((time.process_time() - start) / len(batches))
    yield f"\nSteps over 26 features and {rows:,} rows of width {dim}, one thread, in turns:\n"
    yield "| tables | CPU ms a step | of fp32, Adagrad |"
    yield "|---|---|---|"
    for kind, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["fp32, Adagrad"], strict=True)]
        yield f"| {kind} | {1e3 * median(seconds):.2f} | {median(ratios):.2f} |"


def weights_of_state(step: TrainStep) -> NDArray[np.float32]:
    """The wide weights that Algorithm 1 gives for z, n and the present rates, in float32."""
    table, ftrl = step.model.wide_table, step.wide
    assert table is not None and isinstance(ftrl, wd.FTRL)
    z, n = table.state["z"].numpy(), table.state["n"].numpy()
    rates_T = step.feature_rates.factors if step.feature_rates else np.ones(len(table.sizes))
    rate_R = np.repeat(rates_T, list(table.sizes.values()))[:, None].astype(np.float32)
    beta, l1, l2, inverse_lr = np.float32([ftrl.beta, ftrl.l1, ftrl.l2, 1.0 / ftrl.lr])
    # numpy's root, as the kernels': torch's differs in the last bit here and there
    weights = -(z - np.copysign(l1, z)) / ((beta + np.sqrt(n)) * (inverse_lr / rate_R) + l2)
    return np.where(np.abs(z) <= l1, np.float32(0.0), weights)


def wide_lines() -> Iterator[str]:
    """Yield the table of wide weights that could be told from z and n, and so need no memory."""
    schema = models.make_schema(models.S)
    batches = models.make_batches(models.S, 64, BATCH)
    yield "## Wide weights beside their z and n\n"
    yield (
        f"`benchmarks/bench_table_memory.py --wide` on {machine()}: model S, 64 batches of 2,048. "
        "Could a weight be computed from z and n when a row is read, in place of 4 bytes? Not "
        "where each feature learns a rate (`adapt`): a weight keeps the rate it last moved at.\n"
    )
    yield (
        "| FTRL | bytes a wide row | the weight's, of a wide row and a deep one of width 16 | "
        "weights not 0 | of other bits than z, n and the present rates give |"
    )
    yield "|---|---|---|---|---|"
    for adapt in (wd.FTRL().adapt, 0.0):
        model = wd.WideDeep(schema, hidden_units=models.S.hidden)
        step = TrainStep(model, wide=wd.FTRL(adapt=adapt), deep=wd.Adagrad(), dense=wd.Adagrad())
        for number, batch in enumerate(batches):
            step(batch, step=number + 1)
        (deep,) = model.deep_tables.values()
        wide_bytes = model.wide_table.record_layout(step.wide).stride
        all_bytes = wide_bytes + deep.record_layout(step.deep).stride
        weight = model.wide_table.weight.numpy()
        nonzero = weight != 0
        other = (weights_of_state(step) != weight) & nonzero
        count = int(nonzero.sum())
        yield (
            f"| adapt={adapt:g} | {wide_bytes} | {4 / all_bytes:.1%} | {count:,} | "
            f"{int(other.sum()) / count:.1%} |"
        )


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--speed-rows", type=int, default=4_000_000)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--large", type=int, default=0, help="rows of one more table, bf16 alone")
    parser.add_argument("--note", default="", help="a sentence for RESULTS.md")
    parser.add_argument("--measure", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    parser.add_argument("--wide", action="store_true", help="wide weights alone")
    arguments = parser.parse_args()
    if arguments.wide:
        text = "\n".join(wide_lines())
        print(text)
        if arguments.write:
            write_section("tables memory:wide", text)
        return
    if arguments.measure:
        measure(arguments.measure, arguments.rows, arguments.dim, arguments.steps)
        return
    about = f"`benchmarks/bench_table_memory.py` on {machine()}. {arguments.note}".strip()
    lines = ["## Memory of tables in training\n", about]
    parts = [memory_lines(arguments.rows, arguments.dim, list(KINDS), arguments.steps)]
    if arguments.large:
        kinds = ["bf16, row-wise"]
        parts.append(memory_lines(arguments.large, arguments.dim, kinds, arguments.steps))
    parts += [speed_lines(arguments.speed_rows, dim, arguments.turns) for dim in (16, 32)]
    for part in parts:
        for line in part:
            print(line, flush=True)
            lines.append(line)
    if arguments.write:
        write_section("tables memory", "\n".join(lines))


if __name__ == "__main__":
    main()
