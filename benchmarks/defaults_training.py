"""How the defaults of training were chosen: the optimizers' rates, their decay, early stopping.

Two data sets: the click log of `criteo_like.py` with salt 0 (400,000 rows to learn from, 100,000
for early stopping, the last 100,000 of a million to be judged on), in one pass and in several; and
the train split of UCI Adult with a fifth of it kept for validation, with the features of
`examples/census`. Each step from the former defaults to the present ones is a row.

    python benchmarks/defaults_training.py [--seeds 3] [--log-seeds 1] [--only adult,pass,passes]

Prints tables as Markdown; docs/defaults.md shows them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sweep_defaults import JUDGED, data_file, make_spec

import widedeep as wd

ROOT = Path(__file__).parents[1]
TRAIN_ROWS, VALID_ROWS = 400_000, 100_000
ONE_RATE = wd.Adagrad()
OWN_RATE = wd.Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a table."""

    name: str
    embeddings: wd.Adagrad = OWN_RATE
    std: float = 0.02
    schedule: str = "wsd"


FORMER = Setting(name="one rate", embeddings=ONE_RATE, schedule="constant")
DEFAULTS = Setting(name="own rate, wsd (the defaults)")
SPREAD = Setting(name="own rate, deviation 0.1, wsd", std=0.1)
STEPS = (
    FORMER,
    Setting(name="one rate, deviation 0.1", embeddings=ONE_RATE, std=0.1, schedule="constant"),
    Setting(name="own rate", schedule="constant"),
    Setting(name="own rate, deviation 0.1", std=0.1, schedule="constant"),
    DEFAULTS,
    Setting(name="own rate, deviation 0.05, wsd", std=0.05),
    SPREAD,
    Setting(name="own rate, deviation 0.1, linear", std=0.1, schedule="linear"),
    Setting(name="one rate, deviation 0.1, wsd", embeddings=ONE_RATE, std=0.1),
)


def make_trainer(setting: Setting, schema: wd.Schema, seed: int, **shape: object) -> wd.Trainer:
    """Return a trainer with a setting; one thread, so that figures are found again."""
    model = wd.WideDeep(schema, embedding_std=setting.std, seed=seed, **shape)  # type: ignore[arg-type]
    return wd.Trainer(
        model,
        deep=setting.embeddings,
        dense=wd.Adagrad(),
        schedule=setting.schedule,  # type: ignore[arg-type]
        seed=seed,
        threads=1,
        progress=False,
    )


def row(name: str, metrics: list[dict[str, float]], passes: list[float]) -> str:
    """Return a table's line: means over seeds, and the spread where there are several."""
    cells = []
    for metric, digits in (("auc", 4), ("log_loss", 4), ("calibration", 3)):
        values = np.array([found[metric] for found in metrics])
        spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.{digits}f}{spread}")
    return f"| {name} | {' | '.join(cells)} | {np.mean(passes):.1f} |"


def head(title: str) -> Iterator[str]:
    """Yield a table's title and its first lines."""
    yield f"\n{title}\n"
    yield "| | AUC | log loss | calibration | passes |"
    yield "|---|---|---|---|---|"


def one_pass(seeds: int) -> Iterator[str]:
    """Yield the table of the click log in one pass."""
    table = pq.read_table(data_file(0))
    train, test = table.slice(0, TRAIN_ROWS), table.slice(table.num_rows - JUDGED)
    schema = wd.fit_schema(make_spec("planted", 1), train)
    yield from head(f"Click log, one pass, {seeds} seeds")
    for setting in STEPS:
        found = []
        for seed in range(seeds):
            trainer = make_trainer(setting, schema, seed)
            trainer.fit(train)
            found.append(trainer.evaluate(test))
        yield row(setting.name, found, [1.0])


def several_passes(seeds: int) -> Iterator[str]:
    """Yield the table of the click log in four passes, with early stopping and without."""
    table = pq.read_table(data_file(0))
    train, test = table.slice(0, TRAIN_ROWS), table.slice(table.num_rows - JUDGED)
    valid = table.slice(TRAIN_ROWS, VALID_ROWS)
    schema = wd.fit_schema(make_spec("planted", 1), train)
    yield from head(f"Click log, at most four passes, {seeds} seeds")
    for setting in (FORMER, SPREAD, DEFAULTS):
        for stops in (False, True):
            found, passes = [], []
            for seed in range(seeds):
                trainer = make_trainer(setting, schema, seed)
                trainer.fit(train, epochs=4, valid=valid, early_stopping=stops)
                found.append(trainer.evaluate(test))
                passes.append(trainer.position.rows / train.num_rows)
            yield row(
                f"{setting.name}; {'early stopping' if stops else 'to the end'}", found, passes
            )


def adult(seeds: int) -> Iterator[str]:
    """Yield the table of UCI Adult, on a validation fifth of its train split."""
    sys.path.insert(0, str(ROOT / "examples" / "census"))
    from run import census_spec

    table = pq.read_table(ROOT / "src" / "widedeep" / "census" / "train.parquet")
    order = np.random.default_rng(0).permutation(table.num_rows)
    valid = table.take(order[: table.num_rows // 5])
    train = table.take(order[table.num_rows // 5 :])
    schema = wd.fit_schema(census_spec(), train)
    yield from head(f"UCI Adult, at most 20 passes, {seeds} seeds")
    for setting in STEPS:
        for stops in (False, True):
            found, passes = [], []
            for seed in range(seeds):
                shape = {"hidden_units": [100, 75, 50, 25], "embedding_dim": 8}
                trainer = make_trainer(setting, schema, seed, **shape)
                trainer.fit(train, epochs=20, valid=valid, early_stopping=stops)
                found.append(trainer.valid_metrics)
                passes.append(trainer.position.rows / train.num_rows)
            yield row(
                f"{setting.name}; {'early stopping' if stops else 'to the end'}", found, passes
            )


def main() -> None:
    """Print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="of Adult, and of one pass")
    parser.add_argument("--log-seeds", type=int, default=1, help="of several passes over the log")
    parser.add_argument("--only", default="adult,pass,passes", help="which tables, by commas")
    asked = parser.parse_args()
    tables = {
        "adult": lambda: adult(asked.seeds),
        "pass": lambda: one_pass(asked.seeds),
        "passes": lambda: several_passes(asked.log_seeds),
    }
    for name in asked.only.split(","):
        for line in tables[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
