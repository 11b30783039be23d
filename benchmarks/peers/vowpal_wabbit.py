"""Vowpal Wabbit: logistic regression with FTRL-Proximal on hashed ids, crosses and numbers.

    python benchmarks/peers/vowpal_wabbit.py FILE [--sweep] [--crosses wrong]

The numbers enter as log(1 + x), with an indicator where one is missing. `--sweep` tries a grid of
rates and L1 on the same rows; what it found best on salt 0 is the default.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import shared_task as task
import vowpalwabbit

ALPHA, BETA, L1 = 0.1, 0.5, 0.3


def lines_of(table: pa.Table, crosses: list[tuple[str, str]]) -> list[str]:
    """Return Vowpal Wabbit's text of each row."""
    words = {name: table[name].to_pylist() for name in task.WORDS}
    columns = [[f"{name}={value}" for value in values] for name, values in words.items()]
    for one, other in crosses:
        pairs = zip(words[one], words[other], strict=True)
        columns.append([f"{one}x{other}={a}_{b}" for a, b in pairs])
    for name in task.NUMBERS:
        values = np.log1p(table[name].to_numpy(zero_copy_only=False).astype(np.float64))
        columns.append(
            [f"{name}_missing" if value != value else f"{name}:{value:.4g}" for value in values]
        )
    marks = np.where(task.labels_of(table) > 0.5, "1", "-1")
    return [
        f"{mark} | {' '.join(cells)}"
        for mark, cells in zip(marks, zip(*columns, strict=True), strict=True)
    ]


def learn(lines: Path, model: Path, point: tuple[float, float, float], seed: int) -> None:
    """Learn a file of lines once, from first to last, and save the model."""
    alpha, beta, l1 = point
    options = (
        f"-d {lines} --loss_function logistic --ftrl --ftrl_alpha {alpha} --ftrl_beta {beta} "
        f"--l1 {l1} -b 22 --random_seed {seed} --quiet"
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
    parser.add_argument("--sweep", action="store_true")
    asked = parser.parse_args()
    train, test = task.read_rows(asked)
    crosses = task.CROSSES[asked.crosses]
    points = [(ALPHA, BETA, L1)]
    if asked.sweep:
        points = list(itertools.product((0.02, 0.05, 0.1, 0.2), (0.1, 0.5, 1.0), (0.0, 0.3)))
    with tempfile.TemporaryDirectory() as folder:
        learned, judged = Path(folder) / "train.vw", Path(folder) / "test.vw"
        saved, start = Path(folder) / "model", time.perf_counter()
        learned.write_text("\n".join(lines_of(train, crosses)) + "\n")
        prepare_s = time.perf_counter() - start
        judged.write_text("\n".join(lines_of(test, crosses)) + "\n")
        for point in points:
            start = time.perf_counter()
            learn(learned, saved, point, asked.seed)
            train_s = time.perf_counter() - start
            model = vowpalwabbit.Workspace(f"-i {saved} -t --link logistic --quiet")
            task.report(
                "vowpalwabbit",
                table=test,
                probabilities=predict_file(saved, judged),
                prepare_s=prepare_s,
                train_s=train_s,
                train_rows=train.num_rows,
                latency=task.latency_ms(
                    lambda n, m=model: predict(m, lines_of(task.request_of(test, n), crosses))
                ),
                note="wide only; alpha {}, beta {}, l1 {}; learns from text".format(*point),
            )


if __name__ == "__main__":
    main()
