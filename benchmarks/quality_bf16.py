"""Does training in bfloat16 cost quality? Test AUC and log loss of both precisions, by seed.

One pass over 400k rows of `criteo_like.py` (judged on another 100k) and five over Adult's training
file (judged on its test file). A seed is that of the initial weights and of the reading order. The
difference of the means is to be read beside the standard deviation over float32's own seeds.

    python benchmarks/quality_bf16.py [--seeds 5] [--rows 400000] [--only adult]

Both data sets together are written into RESULTS.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import pyarrow as pa
import pyarrow.parquet as pq
from results_file import machine, write_section

import widedeep as wd

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data"
METRICS = ("auc", "log_loss")
PRECISIONS = ("fp32", "bf16")
TEST_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, and how it is trained on."""

    name: str
    spec: wd.FeatureSpec
    train: pa.Table
    test: pa.Table
    epochs: int
    batch_size: int


def click_log(rows: int) -> Task:
    """The generated log: 26 text columns, 13 numbers, the three planted crosses."""
    total = rows + TEST_ROWS
    path = DATA / f"criteo_like_{total}_0.parquet"
    if not path.exists():
        DATA.mkdir(exist_ok=True)
        script = Path(__file__).with_name("criteo_like.py")
        command = [sys.executable, str(script), "--rows", str(total), "--out", str(path)]
        subprocess.run(command, check=True)
    table = pq.read_table(path)
    spec = wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*(f"I{i}" for i in range(1, 14))),
            *wd.categorical(*(f"C{i}" for i in range(1, 27))),
            *(wd.crossed(*parts) for parts in (("C5", "C8"), ("C1", "C14"), ("C19", "C2"))),
        ],
    )
    return Task(
        name=f"criteo_like, {rows:,} rows", spec=spec, train=table.slice(0, rows),
        test=table.slice(rows), epochs=1, batch_size=2048,
    )  # fmt: skip


def adult() -> Task:
    """The census income data that comes with the project."""
    train, test = (
        pq.read_table(ROOT / f"src/widedeep/census/{name}.parquet") for name in ("train", "test")
    )
    label = "income"
    names = [field for field in train.schema if field.name != label]
    numbers = [field.name for field in names if pa.types.is_integer(field.type)]
    texts = [field.name for field in names if field.name not in numbers]
    features = [*wd.numeric(*numbers), *wd.categorical(*texts)]
    features.append(wd.crossed("education", "occupation"))
    return Task(
        name="Adult", spec=wd.FeatureSpec(label=label, features=features), train=train, test=test,
        epochs=5, batch_size=256,
    )  # fmt: skip


def judged(task: Task, schema: wd.Schema, precision: str, seed: int) -> dict[str, float]:
    """Train once and return the test metrics."""
    trainer = wd.Trainer(
        wd.WideDeep(schema, seed=seed), batch_size=task.batch_size, seed=seed, threads=1,
        precision="bf16" if precision == "bf16" else "fp32", progress=False,
    )  # fmt: skip
    trainer.fit(task.train, epochs=task.epochs)
    return trainer.evaluate(task.test)


Judge = Callable[[Task, wd.Schema, str, int], dict[str, float]]


def seed_lines(
    task: Task, seeds: int, kinds: Sequence[str], judge: Judge
) -> Generator[str, None, dict[tuple[str, str], list[float]]]:
    """Yield a table of each seed's metrics as it comes; return them by metric and kind."""
    schema = wd.fit_schema(task.spec, task.train)
    yield f"### {task.name}, {task.epochs} pass(es), batch {task.batch_size}\n"
    yield "| seed | " + " | ".join(f"{m} {kind}" for m in METRICS for kind in kinds) + " |"
    yield "|---" * (1 + len(METRICS) * len(kinds)) + "|"
    values: dict[tuple[str, str], list[float]] = {}
    for seed in range(seeds):
        for kind in kinds:
            metrics = judge(task, schema, kind, seed)
            for metric in METRICS:
                values.setdefault((metric, kind), []).append(metrics[metric])
        cells = [f"{values[m, kind][-1]:.5f}" for m in METRICS for kind in kinds]
        yield f"| {seed} | " + " | ".join(cells) + " |"
    cells = [f"{mean(values[m, kind]):.5f}" for m in METRICS for kind in kinds]
    yield "| mean | " + " | ".join(cells) + " |\n"
    return values


def lines_of(task: Task, seeds: int) -> Iterator[str]:
    """Yield a Markdown section as it comes."""
    values = yield from seed_lines(task, seeds, PRECISIONS, judged)
    for metric in METRICS:
        noise = stdev(values[metric, "fp32"]) if seeds > 1 else float("nan")
        change = mean(values[metric, "bf16"]) - mean(values[metric, "fp32"])
        yield (
            f"{metric}: bf16 differs by {change:+.5f}; float32's seeds have a standard deviation "
            f"of {noise:.5f} ({'inside' if abs(change) <= noise else 'outside'} it).\n"
        )


def main() -> None:
    """Train, print, and write the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400_000, help="of the click log")
    parser.add_argument("--only", choices=["adult", "criteo"])
    arguments = parser.parse_args()
    tasks = []
    if arguments.only != "criteo":
        tasks.append(adult())
    if arguments.only != "adult":
        tasks.append(click_log(arguments.rows))
    told = [
        "## Quality in bfloat16\n",
        f"`benchmarks/quality_bf16.py` on {machine()}; {arguments.seeds} seeds.\n",
    ]
    for task in tasks:
        for line in lines_of(task, arguments.seeds):
            print(line, flush=True)
            told.append(line)
    if arguments.only is None:
        write_section("training:bf16", "\n".join(told))


if __name__ == "__main__":
    main()
