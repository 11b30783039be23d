"""Training speed on a GPU: models S and B against torch's own sparse embeddings, in one run.

Batches lie encoded in the host's memory and are copied in every step, for each engine in the same
way; engines take turns, each turn ends with the device idle, and medians of the turns are printed.
Matrix products are float32 (TF32, which rounds their factors to 10 bits, stays off) or bfloat16.
Then the parts of a step, each sparse kernel of Triton against torch's index operations, peak
memory, and a step's time by the rows of its tables. See `train_models.py` for the models.

    python benchmarks/bench_gpu.py [--quick] [--models S] [--batches 2048] [--rows 1e8] [--write]
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

# Before torch: it says how long torch's threads spin.
import widedeep as wd

# isort: split
import torch
import train_models as models
from bench_train import PARTS, Report, ratio, take_turns, train_all
from results_file import machine, write_section

from widedeep.data.batch import Batch
from widedeep.kernels import torch_device
from widedeep.training.schedules import FULL_RATES
from widedeep.training.step import TrainStep

SECONDS = 3.0  # of the turns of one model and batch
TURN_ROWS = 131_072
REPEATS = 15


def waited(run: Callable[[], object]) -> Callable[[], None]:
    """The same, and wait for the device."""

    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call


def without_triton(run: Callable[[], object]) -> Callable[[], None]:
    """The same through torch's index operations."""

    def call() -> None:
        with torch_device.index_operations_alone():
            run()

    return call


def make_turn(shape: models.Shape, rows: int, law: models.Law = "zipf") -> list[Batch]:
    """The batches of one turn."""
    return models.make_batches(shape, min(32, max(4, TURN_ROWS // rows)), rows, law)


def speed_lines(shape: models.Shape, schema: wd.Schema, rows: int) -> list[list[str]]:
    """Measure one model and batch."""
    batches = make_turn(shape, rows)
    examples = rows * len(batches)
    engines: dict[str, Callable[[], object]] = {}
    baseline = models.SparseBaseline(shape, "cuda")
    engines["torch"] = waited(functools.partial(train_all, baseline.step, batches))
    steps = {p: models.our_step(schema, shape, 1, p, "cuda") for p in ("fp32", "bf16")}
    for precision, step in steps.items():
        run = functools.partial(train_all, step, batches)
        engines[precision] = waited(run)
        engines[f"{precision} torch"] = waited(without_triton(run))
    times = take_turns(engines, SECONDS)
    return [
        [
            shape.name, f"{rows:,}", precision,
            f"{examples / median(times[precision]):,.0f}",
            f"{median(times[precision]) / len(batches) * 1e3:.2f}",
            f"{examples / median(times[f'{precision} torch']):,.0f}",
            f"{ratio(times, f'{precision} torch', precision):.2f}",
            f"{examples / median(times['torch']):,.0f}",
            f"{ratio(times, 'torch', precision):.2f}",
        ]
        for precision in steps
    ]  # fmt: skip


def split(step: TrainStep, batches: list[Batch]) -> list[float]:
    """Milliseconds of each of a step's four functions, the device idle in between: medians."""
    spent: dict[str, list[float]] = {name: [] for name in PARTS}

    def mark() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    for batch in itertools.islice(itertools.cycle(batches), REPEATS):
        marks = [mark()]
        gathered = step.group_and_gather(batch)
        marks.append(mark())
        result = step.dense_pass(batch, gathered)
        marks.append(mark())
        gradients = step.reduce(batch, gathered, result)
        marks.append(mark())
        step.apply(gradients, len(batch), rates=FULL_RATES, step=1)
        marks.append(mark())
        for name, (a, b) in zip(PARTS, itertools.pairwise(marks), strict=True):
            spent[name].append((b - a) * 1e3)
    return [median(values) for values in spent.values()]


def device_time(run: Callable[[], object]) -> float:
    """Microseconds of one call on the device, launches included: the median."""
    times = []
    for _ in range(REPEATS + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        torch.cuda.synchronize()
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return median(times[3:])


def sparse_calls(step: TrainStep, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Each sparse kernel of a step, on its own."""
    model, slots = step.model, step.model.schema.slots
    wide, (deep,) = model.wide_table, model.deep_tables.values()
    assert wide is not None
    gathered = step.group_and_gather(batch)
    result = step.dense_pass(batch, gathered)
    sums = {found.name: found for found in step.reduce(batch, gathered, result)}
    assert gathered.wide_groups is not None
    assert gathered.inputs is not None
    assert result.grad_BX is not None
    (deep_groups,) = gathered.deep_groups.values()
    deep_sums, wide_sums = sums[f"deep/{deep.dim}"], sums["wide"]
    return {
        "look embeddings up": functools.partial(
            deep.gather, batch, slots, model.layout.columns, gathered.inputs.concat_BX
        ),
        "add wide weights": functools.partial(
            wide.add_wide, batch, slots, "sum", result.logits_BC.clone()
        ),
        "sum embeddings' gradients": functools.partial(
            deep.sum_deep, batch, deep_groups, slots, model.layout.columns, result.grad_BX
        ),
        "sum wide gradients": functools.partial(
            wide.sum_wide, batch, gathered.wide_groups, slots, "sum", result.grad_BC
        ),
        "Adagrad of embeddings": functools.partial(
            deep.apply, deep_groups, deep_sums.grads_UD, deep_sums.optimizer
        ),
        "FTRL of wide weights": functools.partial(
            wide.apply, gathered.wide_groups, wide_sums.grads_UD, wide_sums.optimizer
        ),
        "group by row": functools.partial(wide.group, batch, slots),
    }


def warm_up() -> None:
    """Let clocks rise and caches fill before anything is measured."""
    schema, batches = models.make_schema(models.S), make_turn(models.S, 2048)
    step = models.our_step(schema, models.S, 1, "fp32", "cuda")
    take_turns({"ours": waited(functools.partial(train_all, step, batches))}, 2 * SECONDS)


def bench_speed(report: Report, arguments: argparse.Namespace) -> None:
    """Models and batches."""
    lines, parts, kernels = [], [], []
    for name in arguments.models:
        shape = getattr(models, name)
        schema = models.make_schema(shape)
        for rows in arguments.batches:
            lines += speed_lines(shape, schema, rows)
            print("  ".join(lines[-2]), flush=True)
            step = models.our_step(schema, shape, 1, "fp32", "cuda")
            batches = make_turn(shape, rows)
            train_all(step, batches[:3])
            parts.append([name, f"{rows:,}", *(f"{ms:.2f}" for ms in split(step, batches))])
            if name == arguments.models[0]:
                kernels += kernel_lines(step, batches[0])
            del step, batches
            gc.collect()
            torch.cuda.empty_cache()
    report.say("### Models and batches\n")
    report.table(
        ["model", "batch", "precision", "examples/s", "ms a step", "index operations, examples/s",
         "Triton over them", "torch sparse, examples/s", "ratio"],
        lines,
    )  # fmt: skip
    report.say("Parts of a step in fp32, ms, the device waited for after each:\n")
    report.table(["model", "batch", *PARTS], parts)
    report.say(
        f"Sparse kernels of model {arguments.models[0]}, us, launches included (an idle device):\n"
    )
    report.table(["kernel", "batch", "Triton", "index operations", "ratio"], kernels)


def kernel_lines(step: TrainStep, batch: Batch) -> list[list[str]]:
    """Measure each sparse kernel, by Triton and by index operations."""
    lines = []
    for name, run in sparse_calls(step, batch).items():
        ours, theirs = device_time(run), device_time(without_triton(run))
        lines.append(
            [name, f"{len(batch):,}", f"{ours:,.0f}", f"{theirs:,.0f}", f"{theirs / ours:.2f}"]
        )
    return lines


def peak(make: Callable[[], Callable[[Batch], object]], batches: list[Batch]) -> float:
    """Peak GiB of an engine that is made and trained alone."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    train_all(make(), batches)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**30


def bench_memory(report: Report, arguments: argparse.Namespace) -> None:
    """Peak memory of training, at the largest batch."""
    rows, lines = max(arguments.batches), []
    for name in arguments.models:
        shape = getattr(models, name)
        schema, batches = models.make_schema(shape), models.make_batches(shape, 3, rows)
        ours = peak(lambda: models.our_step(schema, shape, 1, "fp32", "cuda"), batches)  # noqa: B023
        torchs = peak(lambda: models.SparseBaseline(shape, "cuda").step, batches)  # noqa: B023
        lines.append([name, f"{rows:,}", f"{ours:.2f}", f"{torchs:.2f}"])
    report.say("### Peak memory, GiB, tables and their state included (fp32)\n")
    report.table(["model", "batch", "ours", "torch sparse"], lines)


def bench_tables(report: Report, sizes: Sequence[int], batches: Sequence[int]) -> None:
    """A step's time by the rows of the tables: it should follow the rows touched."""
    lines, first = [], {}
    laws: tuple[models.Law, ...] = ("uniform", "zipf")
    for rows in sizes:
        shape = models.of_rows(rows)
        started = time.perf_counter()
        step = models.our_step(models.make_schema(shape), shape, 1, "fp32", "cuda")
        made = time.perf_counter() - started
        for batch in batches:
            held = {law: models.make_batches(shape, 12, batch, law) for law in laws}
            engines = {
                law: waited(functools.partial(train_all, step, turn)) for law, turn in held.items()
            }
            take_turns(engines, SECONDS / 2)
            times = take_turns(engines, SECONDS / 2)
            ms = {law: median(times[law]) / 12 * 1e3 for law in laws}
            base = first.setdefault(batch, ms)
            lines.append(
                [f"{rows:,}", f"{batch:,}", f"{made:.0f}"]
                + [x for law in laws for x in (f"{ms[law]:.2f}", f"{ms[law] / base[law]:.2f}")]
            )
            print("  ".join(lines[-1]), flush=True)
        del step
        gc.collect()
        torch.cuda.empty_cache()
    report.say("### Rows of the tables (model S, fp32)\n")
    report.table(
        ["rows", "batch", "s to make", "uniform ids, ms a step", f"of that at {sizes[0]:,}",
         "Zipf ids, ms", "of that"],
        lines,
    )  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="model S alone, in about a minute")
    parser.add_argument("--models", nargs="+", choices=["S", "B"])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--rows", nargs="*", type=float, help="rows of tables, such as 1e5 1e8")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.models = arguments.models or (["S"] if quick else ["S", "B"])
    arguments.batches = arguments.batches or ([2048] if quick else [2048, 8192, 65_536])
    if arguments.rows is None:
        arguments.rows = [1e5, 1e6] if quick else [1e5, 1e8]
    arguments.rows = [int(rows) for rows in arguments.rows]
    return arguments


def main() -> None:
    """Measure, print, and write the section if asked to."""
    arguments = parse()
    if not torch.cuda.is_available():
        print("bench_gpu: no GPU here; nothing was measured")
        return
    warnings.filterwarnings("ignore", message="Sparse invariant checks")
    torch.manual_seed(0)
    torch.set_num_threads(max(1, torch.get_num_threads()))
    started = time.perf_counter()
    report = Report()
    report.say("## Training on a GPU\n")
    report.say(
        f"`benchmarks/bench_gpu.py` on one {torch.cuda.get_device_name()} beside {machine()}, "
        f"torch {torch.__version__}; medians of interleaved turns, batches copied from the host in "
        "every step, TF32 off.\n"
    )
    warm_up()
    bench_speed(report, arguments)
    bench_memory(report, arguments)
    if arguments.rows:
        bench_tables(report, arguments.rows, arguments.batches[:2])
    print(f"{time.perf_counter() - started:.0f} s in all")
    if arguments.write:
        write_section("training:gpu", "\n".join(report.lines))


if __name__ == "__main__":
    main()
