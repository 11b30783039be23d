"""Do tables in bfloat16 with one sum of squares a row cost quality? Test AUC and log loss by seed.

The tasks are those of `quality_bf16.py`: five passes over Adult, one over rows of `criteo_like.py`.
A seed is that of the initial weights, of the reading order and of the rounding. The difference of
the means is to be read beside the deviation of the differences, seed by seed.

    python benchmarks/quality_tables.py [--seeds 5] [--rows 400000] [--only adult]

Both data sets together are written into RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from statistics import mean, stdev
from typing import Literal

from quality_bf16 import METRICS, Task, adult, click_log, seed_lines
from results_file import machine, write_section

import widedeep as wd

Kind = tuple[Literal["fp32", "bf16"], bool]
KINDS: dict[str, Kind] = {
    "fp32": ("fp32", False),
    "row-wise": ("fp32", True),
    "bf16": ("bf16", False),
    "both": ("bf16", True),
}


def judged(task: Task, schema: wd.Schema, kind: str, seed: int) -> dict[str, float]:
    """Train once, with the optimizer that is chosen by default, and return the test metrics."""
    table_dtype, row_wise = KINDS[kind]
    options = {"batch_size": task.batch_size, "seed": seed, "threads": 1, "progress": False}
    default = wd.Trainer(wd.WideDeep(schema, seed=seed), epochs=task.epochs, **options)
    deep = default.state.step.deep
    assert isinstance(deep, wd.Adagrad)
    model = wd.WideDeep(schema, seed=seed, table_dtype=table_dtype)
    deep = dataclasses.replace(deep, row_wise=row_wise)
    dense = default.state.step.dense.optimizer
    trainer = wd.Trainer(model, deep=deep, dense=dense, epochs=task.epochs, **options)
    trainer.fit(task.train)
    return trainer.evaluate(task.test)


def lines_of(task: Task, seeds: int, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[str]:
    """Yield a Markdown section as it comes."""
    values = yield from seed_lines(task, seeds, kinds, judged)
    if seeds < 2:
        return
    for metric in METRICS:
        noise = stdev(values[metric, "fp32"])
        yield f"{metric}: the seeds of fp32 have a standard deviation of {noise:.5f}."
        for name in kinds[1:]:
            pairs = zip(values[metric, name], values[metric, "fp32"], strict=True)
            changes = [one - other for one, other in pairs]
            yield f"- {name}: {mean(changes):+.5f} ± {stdev(changes):.5f} seed by seed"
        yield ""


def main() -> None:
    """Train, print, and write the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400_000, help="of the click log")
    parser.add_argument(
        "--click-kinds", nargs="+", choices=list(KINDS), default=list(KINDS),
        help="kinds on the click log, fp32 first",
    )  # fmt: skip
    parser.add_argument("--only", choices=["adult", "criteo"])
    arguments = parser.parse_args()
    tasks = []
    if arguments.only != "criteo":
        tasks.append(adult())
    if arguments.only != "adult":
        tasks.append(click_log(arguments.rows))
    lines = [
        "## Quality with small tables\n",
        f"`benchmarks/quality_tables.py` on {machine()}; {arguments.seeds} seeds. row-wise: one "
        "sum of squares a row; bf16: tables in bfloat16; both: both, the sums in float32.\n",
    ]
    for task in tasks:
        kinds = list(KINDS) if task.name == "Adult" else arguments.click_kinds
        for line in lines_of(task, arguments.seeds, kinds):
            print(line, flush=True)
            lines.append(line)
    if arguments.only is None:
        write_section("tables quality", "\n".join(lines))


if __name__ == "__main__":
    main()
