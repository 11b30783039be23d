"""Quality of `train --quality fast|good|best`, with nothing chosen by hand.

    python benchmarks/quality_levels.py [--sets adult,clicks,shop] [--levels good,best]
                                        [--seeds 3] [--online-retail FILE] [--write]
    python benchmarks/quality_levels.py --choose


- adult: UCI Adult's own split; a tenth of train for early stopping, passes "auto".
- clicks: `criteo_like.py`, salt 0: 400,000 rows in one pass, judged on the last 100,000.
- shop: UCI Online Retail, joined; one pass (a second one learns by heart).

Features are those that `widedeep init` declares; of the shop, which is no single table, those of
its example. Prints a table; --write puts it into RESULTS.md. --choose prints what the defaults were
chosen by: a fifth of Adult's train part, kept from training, with numbers and L2 of embeddings in
the forms that were compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from results_file import machine, write_section
from sweep_defaults import data_file

import widedeep as wd
from widedeep.cli.run_training import make_trainer
from widedeep.models.config import ModelConfig
from widedeep.training.config import RunConfig, TrainConfig

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples" / "online_retail"))
ADAGRAD = {"optimizer": "adagrad", "lr": 0.2, "initial_accumulator": 0.1}
LEVELS = ("fast", "good", "best")
METRICS = ("auc", "log_loss", "calibration")


@dataclass(frozen=True, kw_only=True)
class Set:
    """A data set, and how many passes it is learned in."""

    spec: wd.FeatureSpec
    train: Any
    valid: Any
    test: Any
    epochs: Any


def adult(folder: Path, online_retail: str) -> Set:
    """UCI Adult."""
    data = ROOT / "src" / "widedeep" / "census"
    people = pq.read_table(data / "train.parquet")
    order = np.random.default_rng(0).permutation(people.num_rows)
    cut = people.num_rows // 10
    return Set(
        spec=wd.infer_spec(people, label="income").spec,
        train=people.take(order[cut:]), valid=people.take(order[:cut]),
        test=pq.read_table(data / "test.parquet"), epochs="auto",
    )  # fmt: skip


def clicks(folder: Path, online_retail: str) -> Set:
    """A Criteo-shaped log; its truth is not told."""
    columns = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    table = pq.read_table(data_file(0), columns=columns)
    train = table.slice(0, 400_000)
    return Set(
        spec=wd.infer_spec(train, label="label").spec,
        train=train, valid=None, test=table.slice(900_000), epochs=1,
    )  # fmt: skip


def shop(folder: Path, online_retail: str) -> Set:
    """What a customer of an online shop takes next."""
    from retail import make_examples, retail_spec

    examples = folder / "shop"
    if not examples.exists():
        make_examples(Path(online_retail), examples)
    train, valid, test = (pq.read_table(examples / part) for part in ("train", "valid", "test"))
    return Set(spec=retail_spec(), train=train, valid=valid, test=test, epochs=1)


SETS: Mapping[str, Callable[[Path, str], Set]] = {"adult": adult, "clicks": clicks, "shop": shop}


def train_and_judge(
    data: Set, schema: wd.Schema, level: str, seed: int, l2: float | None = None
) -> dict[str, float]:
    """Train as `widedeep train` does; return metrics of the test rows, and seconds."""
    deep = None if l2 is None else {**ADAGRAD, "l2": l2}
    train = TrainConfig(
        quality=level,  # type: ignore[arg-type]
        epochs=data.epochs, seed=seed, threads=1,
        deep=deep, dense=None if deep is None else {"optimizer": "adagrad"},
    )  # fmt: skip
    config = RunConfig(spec=data.spec, model=ModelConfig(seed=seed), train=train)
    trainer = make_trainer(schema, config, progress=False)
    started = time.process_time()
    trainer.fit(data.train, valid=data.valid)
    seconds = time.process_time() - started
    metrics = trainer.evaluate(data.test)
    return {**{name: metrics[name] for name in METRICS}, "seconds": seconds}


def choose(seeds: int) -> None:
    """Print how forms of numbers and L2 of embeddings do on a fifth of Adult's train part."""
    people = pq.read_table(ROOT / "src" / "widedeep" / "census" / "train.parquet")
    people = people.take(np.random.default_rng(7).permutation(people.num_rows))
    cut = people.num_rows // 5
    judged, rest = people.slice(0, cut), people.slice(cut)
    spec = wd.infer_spec(rest, label="income").spec
    features = {
        "standard": spec.all_features,
        "quantile": [_as_quantile(feature) for feature in spec.all_features],
    }
    for numbers, own in features.items():
        data = Set(
            spec=spec.replace(features=own), train=rest.slice(cut // 2), epochs="auto",
            valid=rest.slice(0, cut // 2), test=judged,
        )  # fmt: skip
        schema = wd.fit_schema(data.spec, data.train)
        for l2 in (0.025, 0.1, 0.3, 1.0):
            runs = [train_and_judge(data, schema, "good", seed, l2) for seed in range(seeds)]
            print(row(f"{numbers}, l2 {l2}", "good", runs), flush=True)


def _as_quantile(feature: Any) -> Any:
    is_number = getattr(feature, "transform", None) == "standard"
    return replace(feature, transform="quantile") if is_number else feature


def row(name: str, level: str, runs: list[dict[str, float]]) -> str:
    """Return a table's line: means over seeds, and their deviation."""
    cells = [name, f"`{level}`"]
    for metric in METRICS:
        values = [run[metric] for run in runs]
        cells.append(f"{fmean(values):.4f} ± {pstdev(values):.4f}")
    cells.append(f"{fmean(run['seconds'] for run in runs):.0f}")
    return f"| {' | '.join([*cells, str(len(runs))])} |"


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--online-retail", default=os.environ.get("ONLINE_RETAIL", ""))
    parser.add_argument("--folder", type=Path, help="keeps the shop's examples for another call")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--choose", action="store_true", help="what defaults were chosen by")
    arguments = parser.parse_args()
    if arguments.choose:
        choose(arguments.seeds)
        return
    lines = [
        "## What quality costs",
        "",
        f"`benchmarks/quality_levels.py` on {machine()}: the test rows, processor seconds of "
        "training on one thread, means over seeds. Features as `widedeep init` declares them.",
        "",
        "| data | quality | AUC | log loss | calibration | seconds | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in arguments.sets.split(","):
            if name == "shop" and not arguments.online_retail:
                continue
            data = SETS[name](folder, arguments.online_retail)
            schema = wd.fit_schema(data.spec, data.train)
            for level in arguments.levels.split(","):
                seeds = range(arguments.seeds)
                runs = [train_and_judge(data, schema, level, seed) for seed in seeds]
                lines.append(row(name, level, runs))
                print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    if arguments.write:
        write_section("training:levels", "\n".join(lines))


if __name__ == "__main__":
    main()
