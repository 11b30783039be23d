"""Vowpal Wabbit: logistic regression with FTRL-Proximal on hashed ids, crosses and numbers.

    python benchmarks/peers/vowpal_wabbit.py TRAIN TEST [--sweep] [--numbers logs] [--crosses wrong]

Each column of text is a namespace, and crosses are its `--interactions`. The numbers enter in
twenty buckets each, as in our wide part, or as log(1 + x) with an indicator where one is missing.
`--sweep` tries a grid of rates and L1 on the same rows; what it found best on salt 0 is the
default.
"""

from __future__ import annotations

import itertools
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import shared_task as task
import vowpalwabbit
from coded_rows import Buckets

ALPHA, BETA, L1 = 0.1, 1.0, 0.0
SPACES = dict(zip(task.WORDS, string.ascii_letters, strict=False))

Cells = Callable[[pa.Table], list[list[str]]]


def logs(table: pa.Table) -> list[list[str]]:
    """Return the numbers' columns as logarithms."""
    columns = zip(task.NUMBERS, np.log1p(task.numbers_of(table).astype(np.float64)).T, strict=True)
    return [
        [f"{name}_missing" if value != value else f"{name}:{value:.4g}" for value in values]
        for name, values in columns
    ]


def lines_of(table: pa.Table, numbers: Cells) -> list[str]:
    """Return Vowpal Wabbit's text of each row: a namespace a word, and one of the numbers."""
    marks = ["1" if label > 0.5 else "-1" for label in task.labels_of(table)]
    columns = [table[name].to_pylist() for name in task.WORDS]
    columns.append([" ".join(cells) for cells in zip(*numbers(table), strict=True)])
    words = " ".join(f"|{SPACES[name]} {{}}" for name in task.WORDS)
    form = f"{{}} {words} |_ {{}}".format
    return [form(*cells) for cells in zip(marks, *columns, strict=True)]


def write_lines(path: Path, table: pa.Table, numbers: Cells) -> None:
    """Write the text of all rows, a part at a time."""
    with path.open("w", encoding="ascii") as out:
        for part in task.slices_of(table):
            out.writelines(f"{line}\n" for line in lines_of(part, numbers))


def learn(lines: Path, model: Path, point: tuple[float, float, float], pairs: str) -> None:
    """Learn a file of lines once, from first to last, and save the model."""
    alpha, beta, l1 = point
    options = (
        f"-d {lines} --loss_function logistic --ftrl --ftrl_alpha {alpha} --ftrl_beta {beta} "
        f"--l1 {l1} -b 24 --quiet {pairs}"
    )
    vowpalwabbit.Workspace(f"{options} -f {model}").finish()


def predict_file(model: Path, lines: Path) -> list[float]:
    """Return a probability for each line of a file."""
    out = lines.with_suffix(".predicted")
    vowpalwabbit.Workspace(f"-i {model} -t -d {lines} -p {out} --link logistic --quiet").finish()
    return [float(line.split()[0]) for line in out.read_text().splitlines()]


def predict(model: vowpalwabbit.Workspace, lines: list[str]) -> list[float]:
    """Return a probability for each line."""
    return [float(model.predict(line)) for line in lines]


def main() -> None:
    """Prepare, learn, judge."""
    parser = task.arguments(__doc__)
    parser.add_argument("--numbers", choices=["buckets", "logs"], default="buckets")
    parser.add_argument("--sweep", action="store_true")
    asked = parser.parse_args()
    crosses = task.CROSSES[asked.crosses]
    pairs = " ".join(f"--interactions {SPACES[one]}{SPACES[other]}" for one, other in crosses)
    points = [(ALPHA, BETA, L1)]
    if asked.sweep:
        points = list(itertools.product((0.05, 0.1, 0.2), (0.1, 1.0), (0.0, 0.1, 0.3)))
    with tempfile.TemporaryDirectory() as folder:
        learned, judged = Path(folder) / "train.vw", Path(folder) / "test.vw"
        saved, start = Path(folder) / "model", time.process_time()
        train = task.read_rows(asked.train)
        numbers = Buckets(train) if asked.numbers == "buckets" else logs
        write_lines(learned, train, numbers)
        prepare_s = time.process_time() - start
        test = task.read_rows(asked.test)
        write_lines(judged, test, numbers)
        for point in points:
            start = time.process_time()
            learn(learned, saved, point, pairs)
            train_s = time.process_time() - start
            model = vowpalwabbit.Workspace(f"-i {saved} -t --link logistic --quiet")
            task.report(
                "vowpalwabbit",
                table=test,
                probabilities=predict_file(saved, judged),
                prepare_s=prepare_s,
                train_s=train_s,
                train_rows=train.num_rows,
                latency=task.latency_ms(
                    lambda n, m=model: predict(m, lines_of(task.request_of(test, n), numbers))
                ),
                note="wide only, example by example from its text; numbers in {}, alpha {}, "
                "beta {}, l1 {}".format(asked.numbers, *point),
            )


if __name__ == "__main__":
    main()
