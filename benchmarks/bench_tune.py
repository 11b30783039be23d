"""What a search finds on UCI Adult, beside the example's settings by hand.

    python benchmarks/bench_tune.py [--trials 20] [--minutes 10] [--seeds 3] [--write]

Features are the census example's; the last fifth of the training rows decides, in the search and on
when to stop. The settings by hand are that example's. The best settings found are then trained from
several seeds, as the others are, and judged on UCI's test split, which the search never reads. The
trials end the search, on one thread, and its processor minutes are held against those of two
processors in --minutes: what else the machine does changes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from results_file import machine, write_section

import widedeep as wd
from widedeep.config import ModelConfig
from widedeep.training.config import RunConfig, TrainConfig
from widedeep.tuning.study import Study

sys.path.append(str(Path(__file__).parents[1] / "examples" / "census"))
from run import DATA, census_spec, train_and_valid

PROCESSORS = 2
UNBOUNDED = 600.0  # minutes of the wall's clock
BY_HAND = ModelConfig(hidden_units=(100, 75, 50, 25), embedding_dim=8)


def settings_of(study: Study) -> str:
    """Return what the best trial changes, as a sentence has it."""
    return ", ".join(f"`{name} = {value}`" for name, value in study.best.settings.items())


def judge(config: RunConfig, schema: wd.Schema, seed: int) -> list[float]:
    """Train from a seed; return validation log loss, test AUC, log loss and calibration."""
    train, valid = train_and_valid()
    model = wd.WideDeep(schema, replace(config.model, seed=seed))
    trainer = wd.Trainer(model, replace(config.train, seed=seed), progress=False)
    trainer.fit(train, valid=valid)
    test = trainer.evaluate(pq.read_table(DATA / "test.parquet"))
    return [
        trainer.valid_metrics["log_loss"], test["auc"], test["log_loss"], test["calibration"]
    ]  # fmt: skip


def main() -> None:
    """Search, train, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    asked = parser.parse_args()
    train, valid = train_and_valid()
    given = RunConfig(spec=census_spec(), train=TrainConfig(epochs="auto", threads=1))
    started = time.process_time()
    study = wd.tune(given, train, valid=valid, trials=asked.trials, minutes=UNBOUNDED)
    spent = (time.process_time() - started) / 60
    schema = wd.fit_schema(given.spec, train)
    found = {
        "by hand": replace(given, model=BY_HAND),
        "defaults": given,
        f"{len(study.trials)} trials": study.config,
    }
    lines = [
        "## Search for settings",
        "",
        f"`benchmarks/bench_tune.py` on {machine()}: UCI Adult, {len(study.trials)} trials from "
        f"the defaults in {spent:.1f} processor minutes of {PROCESSORS * asked.minutes:g} allowed; "
        f"mean and standard deviation of {asked.seeds} seeds. Best: {settings_of(study)}.",
        "",
        "| settings | validation log loss | test AUC | test log loss | calibration |",
        "|---|---|---|---|---|",
    ]
    for name, config in found.items():
        runs = np.array([judge(config, schema, seed) for seed in range(asked.seeds)])
        cells = [
            f"{mean:.4f} ± {spread:.4f}"
            for mean, spread in zip(runs.mean(0), runs.std(0), strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    print(text)
    if asked.write:
        write_section("training:tune", text)


if __name__ == "__main__":
    main()
