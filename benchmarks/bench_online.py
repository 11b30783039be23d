"""Small batches and one example at a time, on one thread, by processor time.

The wide part alone against Vowpal Wabbit's FTRL on the same rows (26 words and 3 crosses of
`criteo_like.py`), from text and from its binary cache; then model S of `train_models.py` at batches
of 1 to 256 against its own rate at 2,048, in runs of steps and step by step through the
interpreter; then its steps in both precisions against the peak of the core, and where the time of a
step goes. The engines take turns; medians.

    python benchmarks/bench_online.py [--vw PYTHON] [--rows 50000] [--turns 5] [--write]

`make peers-vowpal_wabbit` makes the environment of Vowpal Wabbit.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import train_models as models
from results_file import machine, write_section
from sweep_defaults import data_file

import widedeep as wd
from widedeep import kernels
from widedeep.data.batch import Batch
from widedeep.data.reader import BLOCK_ROWS
from widedeep.data.transform import Transform
from widedeep.training.config import TrainConfig
from widedeep.training.dense import NativeMLP
from widedeep.training.schedules import Rates
from widedeep.training.step import DenseResult, TrainStep

WORDS = [f"C{i}" for i in range(1, 27)]
CROSSES = [("C5", "C8"), ("C1", "C14"), ("C19", "C2")]
PEER = Path(__file__).parent / "peers" / ".venv-vowpal_wabbit" / "bin" / "python"
LEARN = """
import json, sys, time, vowpalwabbit
start = time.process_time(), time.perf_counter()
vowpalwabbit.Workspace(sys.argv[1]).finish()
print(json.dumps([time.process_time() - start[0], time.perf_counter() - start[1]]))
"""
OPTIONS = "--loss_function logistic --ftrl --ftrl_alpha 0.1 --ftrl_beta 0.5 --l1 0.3 -b 22 --quiet"


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of one call, all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def vowpal_wabbit(python: Path, source: str) -> float:
    """Processor seconds in which Vowpal Wabbit learns its input once, reading included."""
    command = [str(python), "-c", LEARN, f"{source} {OPTIONS}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(out)[0])


def lines_of(table: pa.Table) -> list[str]:
    """Vowpal Wabbit's text of each row."""
    words = {name: table[name].to_pylist() for name in WORDS}
    columns = [[f"{name}={value}" for value in values] for name, values in words.items()]
    columns += [
        [f"{a}x{b}={x}_{y}" for x, y in zip(words[a], words[b], strict=True)] for a, b in CROSSES
    ]
    marks = ["1" if label > 0.5 else "-1" for label in table["label"].to_pylist()]
    rows = zip(marks, zip(*columns, strict=True), strict=True)
    return [f"{mark} | {' '.join(cells)}" for mark, cells in rows]


def in_runs(step: TrainStep, rows: Batch, batch_rows: int) -> None:
    """Learn all rows by runs of steps, as training does: a run ends after a tenth of a second."""
    block = max(1, BLOCK_ROWS // batch_rows) * batch_rows
    first = 0
    while first < len(rows):
        part = rows.slice(first, first + block)
        rates_S3 = np.ones((-(-len(part) // batch_rows), 3))
        first += step.run(part, batch_rows, rates_S3=rates_S3).steps * batch_rows


def by_parts(step: TrainStep, rows: Batch, batch_rows: int) -> None:
    """Learn all rows step by step, each in its four parts."""
    for first in range(0, len(rows), batch_rows):
        step.by_parts(rows.slice(first, first + batch_rows), Rates())


def wide_lines(asked: argparse.Namespace) -> list[str]:
    """The wide part alone, against Vowpal Wabbit."""
    table = pq.read_table(data_file(0, max(asked.rows, 200_000))).slice(0, asked.rows)
    features = [*wd.categorical(*WORDS), *(wd.crossed(*pair) for pair in CROSSES)]
    spec = wd.FeatureSpec(label="label", features=features, deep=[])
    schema = wd.fit_schema(spec, table)
    rows = Transform(schema)(table)
    steps = {
        batch: TrainStep(
            wd.WideDeep(schema), TrainConfig(), wide=wd.FTRL(), deep=wd.Adagrad(),
            dense=wd.Adagrad(),
        )
        for batch in (1, 16)
    }  # fmt: skip
    engines: dict[str, Callable[[], float]] = {
        f"batch {batch}": functools.partial(
            processor_seconds, functools.partial(in_runs, step, rows, batch)
        )
        for batch, step in steps.items()
    }
    few = rows.slice(0, 2000)
    engines["batch 1, step by step"] = lambda: (
        processor_seconds(lambda: by_parts(steps[1], few, 1)) * len(rows) / len(few)
    )
    with tempfile.TemporaryDirectory() as folder:
        if asked.vw.exists():
            text, cache = Path(folder) / "rows.vw", Path(folder) / "rows.cache"
            text.write_text("\n".join(lines_of(table)) + "\n")
            vowpal_wabbit(asked.vw, f"-d {text} --cache_file {cache} -k")
            engines |= {
                "Vowpal Wabbit, text": lambda: vowpal_wabbit(asked.vw, f"-d {text}"),
                "Vowpal Wabbit, cache": lambda: vowpal_wabbit(
                    asked.vw, f"-d {text} --cache_file {cache}"
                ),
            }
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(asked.turns):
            for name, run in engines.items():
                times[name].append(run())
    peers = [name for name in times if name.startswith("Vowpal")]
    lines = [
        "| wide part alone, 29 ids a row | rows a processor second |"
        + "".join(f" of {name} |" for name in peers),
        "|---" * (2 + len(peers)) + "|",
    ]
    for name, seconds in times.items():
        ratios = [
            median(other / own for own, other in zip(seconds, times[peer], strict=True))
            for peer in peers
        ]
        cells = [name, f"{len(rows) / median(seconds):,.0f}", *(f"{r:.2f}" for r in ratios)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def deep_lines(asked: argparse.Namespace) -> list[str]:
    """Model S at small batches, against its own rate at 2,048."""
    schema = models.make_schema(models.S)
    sizes = {1: 256, 16: 1024, 256: 4096, 2048: 8192}
    all_rows = Batch.concat(models.make_batches(models.S, 4, 2048))
    steps = {batch: models.our_step(schema, models.S, 1) for batch in sizes}
    engines: dict[str, Callable[[], float]] = {}
    for batch, step in steps.items():
        rows = all_rows.slice(0, sizes[batch])
        for how, learn in (("in runs", in_runs), ("step by step", by_parts)):
            engines[f"{batch}, {how}"] = lambda s=step, r=rows, b=batch, f=learn: (
                processor_seconds(lambda: f(s, r, b)) / len(r)
            )
    (_, flat, grads, state), *_ = steps[1].dense.flat_updates() or ()
    numbers = (flat.numpy(), state["accumulator"].numpy(), None, grads.numpy())
    engines["update of all layers, alone"] = lambda: processor_seconds(
        lambda: [kernels.adagrad_rows(*numbers, lr=0.0, eps=1e-7) for _ in range(50)]
    ) / 50  # fmt: skip
    for run in engines.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(asked.turns):
        for name, run in engines.items():
            times[name].append(run())
    lines = [
        "| model S, batch | us an example, in runs | step by step | rate in runs, of that at 2,048 "
        "| of that step by step | dense update alone, us an example |",
        "|---|---|---|---|---|---|",
    ]
    update = median(times["update of all layers, alone"]) * 1e6
    for batch in sizes:
        own, parts = times[f"{batch}, in runs"], times[f"{batch}, step by step"]
        cells = [
            f"{batch:,}",
            f"{median(own) * 1e6:.2f}",
            f"{median(parts) * 1e6:.2f}",
            f"{median(a / b for a, b in zip(times['2048, in runs'], own, strict=True)):.2f}",
            f"{median(a / b for a, b in zip(parts, own, strict=True)):.1f}",
            f"{update / batch:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def peak(dtype: torch.dtype) -> float:
    """Products of numbers a second, of square matrices that lie in the caches."""
    a, b, out = (torch.ones(384, 384).to(dtype) for _ in range(3))
    seconds = [processor_seconds(lambda: [torch.mm(a, b, out=out) for _ in range(4)])
               for _ in range(20)]  # fmt: skip
    return 4 * 384**3 / min(seconds)


def peak_lines(asked: argparse.Namespace) -> list[str]:
    """Steps of model S in both precisions, against what its products take at the core's peak."""
    schema = models.make_schema(models.S)
    rows = Batch.concat(models.make_batches(models.S, 4, 2048))
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    steps = {
        (p, b): models.our_step(schema, models.S, 1, p) for p in precisions for b in (256, 2048)
    }
    times: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for (_, batch), step in steps.items():
        in_runs(step, rows, batch)
    for _ in range(asked.turns):
        for key, step in steps.items():
            learn = functools.partial(in_runs, step, rows, key[1])
            times[key].append(processor_seconds(learn) / len(rows))
    products = 3 * sum(a * b for a, b in itertools.pairwise(models.S.widths))
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
    lines = [
        "| model S | batch | us an example | products at the peak, us | (those + 0.5 us) / step "
        "| rate, of that at 2,048 |",
        "|---|---|---|---|---|---|",
    ]
    for (precision, batch), own in times.items():
        floor = products / peaks[precision] * 1e6
        each = median(own) * 1e6
        of_large = median(a / b for a, b in zip(times[precision, 2048], own, strict=True))
        cells = [precision, f"{batch:,}", f"{each:.2f}", f"{floor:.2f}",
                 f"{(floor + 0.5) / each:.2f}", f"{of_large:.2f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    rates = " and ".join(f"{rate / 1e9:.0f} in {name}" for name, rate in peaks.items())
    return [
        *lines,
        "",
        f"Peak, of square matrices through torch in the same run: {rates}, in thousand million "
        "products of two numbers a second.",
    ]


PARTS = ("ids, gathering", "forward", "losses", "backward", "weights' gradients", "sums by row",
         "updates")  # fmt: skip


def part_seconds(step: TrainStep, batch: Batch) -> tuple[float, ...]:
    """Processor seconds of each part of one step on one thread."""
    model, layers = step.model, step.fused
    assert isinstance(layers, NativeMLP)
    marks = [time.process_time()]
    gathered = step.group_and_gather(batch)
    logits_BC = model.wide_logits(batch)
    marks.append(time.process_time())
    assert gathered.inputs is not None
    logits_BC += layers.forward(gathered.inputs.concat_BX)
    marks.append(time.process_time())
    losses_B, grad_BC = model.losses(logits_BC, batch, lambda name: model.batch_tensor(batch, name))
    model.bias.grad = grad_BC.sum(dim=0)
    marks.append(time.process_time())
    grad_BX = layers.backward_rows(grad_BC)
    marks.append(time.process_time())
    layers.sum_rows(0, len(batch))
    layers.finish()
    marks.append(time.process_time())
    result = DenseResult(logits_BC, losses_B, grad_BC, grad_BX)
    gradients = step.reduce(batch, gathered, result)
    marks.append(time.process_time())
    step.apply(gradients, len(batch), rates=Rates(), step=1)
    marks.append(time.process_time())
    return tuple(b - a for a, b in itertools.pairwise(marks))


def profile_lines(asked: argparse.Namespace) -> list[str]:
    """Where the time of a step of model S goes, by precision and batch."""
    schema = models.make_schema(models.S)
    rows = Batch.concat(models.make_batches(models.S, 4, 2048))
    kinds: list[tuple[Literal["fp32", "bf16"], int]] = [
        ("fp32", 1), ("fp32", 16), ("fp32", 256), ("fp32", 2048), ("bf16", 256), ("bf16", 2048),
    ]  # fmt: skip
    steps = {kind: models.our_step(schema, models.S, 1, kind[0]) for kind in kinds}
    spent: dict[tuple[str, int], list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    in_run: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    for turn in range(asked.turns + 1):
        for kind, step in steps.items():
            batch = kind[1]
            some = rows.slice(0, min(len(rows), 256 * batch))
            run = processor_seconds(functools.partial(in_runs, step, some, batch)) / len(some)
            parts = [
                part_seconds(step, some.slice(first, first + batch))
                for first in range(0, len(some), batch)
            ]
            if turn:  # the first one warms up
                in_run[kind].append(run)
                spent[kind].append(tuple(median(one) / batch for one in zip(*parts, strict=True)))
    lines = [
        f"| model S | batch | in runs, us an example | {' | '.join(PARTS)} |",
        "|---" * (3 + len(PARTS)) + "|",
    ]
    for kind, times in spent.items():
        of_parts = [median(part) * 1e6 for part in zip(*times, strict=True)]
        cells = [kind[0], f"{kind[1]:,}", f"{median(in_run[kind]) * 1e6:.2f}",
                 *(f"{part:.2f}" for part in of_parts)]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure, print, and write the section if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vw", type=Path, default=PEER, help="Python of Vowpal Wabbit")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    is_loaded = os.getloadavg()[0] > (os.cpu_count() or 1)
    loaded = " The machine was loaded by other work." if is_loaded else ""
    lines = [
        "## One example at a time, and small batches",
        "",
        f"`benchmarks/bench_online.py` on {machine()}: one thread, processor time, medians of "
        f"{asked.turns} interleaved turns. Vowpal Wabbit reads its input on a second thread, which "
        f"counts.{loaded}",
        "",
        *wide_lines(asked),
        "",
        *deep_lines(asked),
        "",
        *peak_lines(asked),
        "",
        "Where a step goes, each part called by itself through the interpreter, which is much of a "
        "part where batches are small; of forward, backward and the weights' gradients each takes "
        "a third of the products:",
        "",
        *profile_lines(asked),
        "",
        "Adagrad moves every weight of the layers once a step: at batch 1 its square roots and "
        "divisions bound the rate. Units of hidden layers without any gradient are passed over, "
        "and the others move while the backward pass has them in registers. In bf16 the products "
        "alone take less time: ids, rows, losses and updates cost what they cost in fp32.",
    ]
    print("\n".join(lines))
    if asked.write:
        write_section("training:online", "\n".join(lines))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
