"""Training speed of models S and B against torch's own sparse embeddings, in one run.

Batches are encoded beforehand; the engines take turns, and medians of the turns are printed. The
floor is the tower's matrix products through torch alone, measured in the same turns; "of the floor"
is the floor plus 0.5 us an example (for embeddings, wide part and updates) over our time. Then a
step's time by the rows of its tables. See `train_models.py` for the models.

    python benchmarks/bench_train.py [--quick] [--models S] [--batches 2048] [--threads 2] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

# Before torch: it says how long torch's threads spin.
import widedeep as wd

# isort: split
import numpy as np
import torch
import train_models as models
from results_file import machine, write_section

from widedeep.data.batch import Batch
from widedeep.training.schedules import FULL_RATES
from widedeep.training.step import TrainStep

ALLOWED_US = 0.5  # an example, besides the matrix products
PARTS = ("group and gather", "dense forward and backward", "reduce", "apply")
BYTES_OF_A_ROW = 2 * 4 * 16 + 16  # an embedding and its state, a wide record
SPARE_BYTES = 3 << 30
DATA = Path(__file__).parent / "data"


class Report:
    """Lines for the terminal and for a Markdown file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        self.lines.append(line)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a Markdown table."""
        self.say("| " + " | ".join(head) + " |")
        self.say("|" + "---|" * len(head))
        for row in rows:
            self.say("| " + " | ".join(row) + " |")
        self.say()


def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    start = clock()
    run()
    return clock() - start


def take_turns(
    engines: dict[str, Callable[[], object]], seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Run the engines in turn, three times at least, until the time is up."""
    for run in engines.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in engines}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 3:
        for name, run in engines.items():
            times[name].append(timed(run, clock))
    return times


def train_all(step: Callable[[Batch], object], batches: list[Batch]) -> None:
    """Learn every batch once."""
    for batch in batches:
        step(batch)


def ratio(times: dict[str, list[float]], over: str, under: str, extra: float = 0.0) -> float:
    """The median over turns of one engine's time (plus some seconds) over another's."""
    return median([(a + extra) / b for a, b in zip(times[over], times[under], strict=True)])


def speed_rows(
    shape: models.Shape, schema: wd.Schema, batch: int, threads: int, precisions: list[str],
    seconds: float,
) -> tuple[list[list[str]], dict[str, float]]:  # fmt: skip
    """Measure one model, batch and number of threads; return the lines and the parts of a step."""
    torch.set_num_threads(threads)
    count = max(1, (16_384 if shape.dim == 16 else 4096) // batch)
    batches = models.make_batches(shape, count, batch)
    rows = count * batch
    baseline = models.SparseBaseline(shape)
    engines: dict[str, Callable[[], object]] = {
        "torch": functools.partial(train_all, baseline.step, batches)
    }
    steps: dict[str, TrainStep] = {}
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        steps[precision] = models.our_step(schema, shape, threads, precision)
        floor = models.gemm_floor(shape, batch, dtype)
        engines[precision] = functools.partial(train_all, steps[precision], batches)
        engines[f"{precision} floor"] = lambda floor=floor: [floor() for _ in batches]
    times = take_turns(engines, seconds)
    extra = ALLOWED_US * 1e-6 * rows
    lines = [
        [
            shape.name, str(batch), str(threads), precision,
            f"{rows / median(times[precision]):,.0f}",
            f"{median(times[precision]) / rows * 1e6:.2f}",
            f"{median(times[f'{precision} floor']) / rows * 1e6:.2f}",
            f"{ratio(times, f'{precision} floor', precision, extra):.0%}",
            f"{rows / median(times['torch']):,.0f}",
            f"{ratio(times, 'torch', precision):.2f}",
        ]
        for precision in precisions
    ]  # fmt: skip
    return lines, split(steps[precisions[0]], batches)


def split(step: TrainStep, batches: list[Batch]) -> dict[str, float]:
    """Microseconds an example spent in each of a step's four functions: medians over batches."""
    spent: dict[str, list[float]] = {name: [] for name in PARTS}
    for batch in itertools.islice(itertools.cycle(batches), max(8, len(batches))):
        marks = [time.perf_counter()]
        gathered = step.group_and_gather(batch)
        marks.append(time.perf_counter())
        result = step.dense_pass(batch, gathered)
        marks.append(time.perf_counter())
        gradients = step.reduce(batch, gathered, result)
        marks.append(time.perf_counter())
        step.apply(gradients, len(batch), rates=FULL_RATES, step=1)
        marks.append(time.perf_counter())
        for name, (a, b) in zip(PARTS, itertools.pairwise(marks), strict=True):
            spent[name].append((b - a) / len(batch) * 1e6)
    return {name: median(values) for name, values in spent.items()}


def bench_speed(report: Report, arguments: argparse.Namespace) -> None:
    """Models, batches and threads."""
    lines, parts = [], []
    cases = list(itertools.product(arguments.models, arguments.batches, arguments.threads))
    schemas = {name: models.make_schema(getattr(models, name)) for name in arguments.models}
    for name, batch, threads in cases:
        shape = getattr(models, name)
        found, spent = speed_rows(
            shape, schemas[name], batch, threads, arguments.precisions,
            arguments.seconds / len(cases),
        )  # fmt: skip
        lines += found
        parts.append([name, str(batch), str(threads), *(f"{spent[part]:.2f}" for part in PARTS)])
        print("  ".join(found[0]), flush=True)
        gc.collect()
    report.say("### Models, batches, threads\n")
    report.table(
        ["model", "batch", "threads", "precision", "examples/s", "us each", "products alone, us",
         f"of (products + {ALLOWED_US} us)", "torch sparse, examples/s", "ratio"],
        lines,
    )  # fmt: skip
    report.say(f"Parts of a step in {arguments.precisions[0]}, us an example:\n")
    report.table(["model", "batch", "threads", *PARTS], parts)


def memory_available() -> int:
    """Bytes that can be taken without swapping, or 0 where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    return next(int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("MemAvail"))


LAWS: tuple[models.Law, ...] = ("uniform", "zipf")
BASE_ROWS = 100_000
SMALL_PAGES_ROWS = 10_000_000  # rows measured in pages of 4 KiB too
PR_SET_THP_DISABLE = 41


def anonymous_in_huge_pages() -> float:
    """The fraction of this process's own memory that lies in huge pages, or nan."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return float("nan")
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["AnonHugePages"] / kib["Anonymous"]


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """What is written first in here lies in pages of 4 KiB, on Linux."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)


def rows_moved(batches: list[Batch]) -> float:
    """Distinct rows of all features that a batch touches, on average."""
    counts = [
        sum(len(np.unique(ids_B)) for ids_B in batch.ids_N.reshape(len(batch), -1).T)
        for batch in batches
    ]
    return sum(counts) / len(counts)


def bench_tables(report: Report, arguments: argparse.Namespace) -> None:
    """A step's time by the rows of the tables: it should follow the rows touched, not those held.

    Cache misses are honest, sweeps over the table are not. Each size trains every law's batches, in
    turns with tables of 100,000 rows.
    """
    batch, threads = 2048, max(arguments.threads)
    torch.set_num_threads(threads)

    def trained(rows: int) -> tuple[dict[models.Law, Callable[[], object]], dict[str, float]]:
        shape = models.of_rows(rows)
        step = models.our_step(models.make_schema(shape), shape, threads)
        batches = {law: models.make_batches(shape, 12, batch, law) for law in LAWS}
        return (
            {law: functools.partial(train_all, step, held) for law, held in batches.items()},
            {law: rows_moved(held) for law, held in batches.items()},
        )

    base, _ = trained(BASE_ROWS)
    for run in base.values():
        run()
    lines = []
    for rows, pages in itertools.product(arguments.tables, ("huge", "4 KiB")):
        if pages != "huge" and rows != SMALL_PAGES_ROWS:
            continue
        if rows * BYTES_OF_A_ROW + SPARE_BYTES > memory_available() > 0:
            print(f"tables of {rows:,} rows do not fit into memory; left out", flush=True)
            continue
        with contextlib.nullcontext() if pages == "huge" else small_pages():
            own, moved = trained(rows)
            for run in own.values():
                run()
        engines: dict[str, Callable[[], object]] = {law: own[law] for law in LAWS}
        engines |= {f"{law}, base": base[law] for law in LAWS}
        times = take_turns(engines, arguments.seconds / 20, time.process_time)
        cells = [f"{rows:,}" if pages == "huge" else f"{rows:,}, in pages of {pages}"]
        for law in LAWS:
            cells += [f"{moved[law]:,.0f}", f"{median(times[law]) / 12 * 1e3:.2f}",
                      f"{ratio(times, law, f'{law}, base'):.2f}"]  # fmt: skip
        lines.append([*cells, f"{anonymous_in_huge_pages():.0%}"])
        print("  ".join(lines[-1]), flush=True)
        del own, engines, run
        gc.collect()
    is_loaded = os.getloadavg()[0] > (os.cpu_count() or 1)
    loaded = " The machine was loaded by other work." if is_loaded else ""
    report.say("## Rows of the tables\n")
    report.say(
        f"`benchmarks/bench_train.py` on {machine()}: model S, batch {batch:,}, {threads} "
        f"thread{'s' * (threads > 1)}, fp32; processor time, each size in turns with tables of "
        "100,000 rows. A step "
        f"looks up {batch * len(models.S.slot_sizes):,} rows; the distinct ones among them are "
        f"moved.{loaded}\n"
    )
    report.table(
        ["rows", "uniform ids: rows moved", "ms a step", "of that at 100,000",
         "Zipf ids: rows moved", "ms a step", "of that at 100,000", "memory in huge pages"],
        lines,
    )  # fmt: skip
    example = models.make_batches(models.S, 1, batch)[0]
    report.say(
        "Model S: a smaller batch repeats fewer ids, so that a step moves more rows for each "
        "example, all 29 features counted.\n"
    )
    sizes = [1, 16, 256, batch]
    moved_each = [
        rows_moved([example.slice(first, first + size) for first in range(0, batch, size)]) / size
        for size in sizes
    ]
    report.table(
        ["batch", *(f"{size:,}" for size in sizes)],
        [["rows moved for each example", *(f"{rows:.1f}" for rows in moved_each)]],
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everywhere = sorted({1, torch.get_num_threads()})
    parser.add_argument("--quick", action="store_true", help="model S alone, in about a minute")
    parser.add_argument("--models", nargs="*", choices=["S", "B"])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"])
    parser.add_argument("--tables", nargs="*", type=float, help="rows, such as 1e5 1e8")
    parser.add_argument("--seconds", type=float, help="of the turns of models and batches")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.models is None:
        arguments.models = ["S"] if quick else ["S", "B"]
    arguments.batches = arguments.batches or ([256, 2048] if quick else [256, 2048, 8192])
    arguments.threads = arguments.threads or (everywhere[-1:] if quick else everywhere)
    arguments.precisions = arguments.precisions or (["fp32"] if quick else ["fp32", "bf16"])
    if arguments.tables is None:
        arguments.tables = [1e4, 1e5, 1e6] if quick else [1e4, 1e5, 1e6, 1e7, 1e8]
    arguments.tables = [int(rows) for rows in arguments.tables]
    arguments.seconds = arguments.seconds or (20.0 if quick else 100.0)
    return arguments


def main() -> None:
    """Measure, print, and write the section if asked to."""
    arguments = parse()
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    started = time.perf_counter()
    report = Report()
    report.say("## Training speed\n")
    report.say(
        f"`benchmarks/bench_train.py` on {machine()}, torch {torch.__version__}; medians of "
        "interleaved turns.\n"
    )
    if arguments.models:
        bench_speed(report, arguments)
    by_rows = Report()
    if arguments.tables:
        bench_tables(by_rows, arguments)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if arguments.write and arguments.models:
        write_section("training:speed", "\n".join(report.lines))
    if arguments.write and by_rows.lines:
        write_section("training:rows", "\n".join(by_rows.lines))


if __name__ == "__main__":
    main()
