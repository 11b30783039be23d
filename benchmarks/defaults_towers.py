"""How embeddings of products are learned, and how the members of an ensemble are trained.

    python benchmarks/defaults_towers.py --rates [--rows 40000,400000] [--seeds 1]
    python benchmarks/defaults_towers.py --starts --towers mlp,fibinet [--rows 120000]
    python benchmarks/defaults_towers.py --stuck [--towers all] [--rows 40000]
    python benchmarks/defaults_towers.py --members [--seeds 2]

`--rates`: one pass of `criteo_like.py`, salt 0, judged on the 100,000 rows that follow the first
400,000; embeddings of 8, at three rates. `--starts`: the same at two deviations of
initial embeddings. `--stuck`: the same pass at default rates, judged as it
ends and with the embeddings put back to their initial values: those of a tower that is as good so
have learned nothing. `--members`: one model, four that share each batch, and
four that are trained apart (`quality = "best"`), on windows of the training parts of UCI Online
Retail (where ONLINE_RETAIL names its file; those of `defaults_numbers.py --shop`) and of UCI Adult.

Prints the tables as Markdown.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from bench_quality import default_config
from defaults_numbers import WINDOWS
from league_sets import SETS, League
from quality_models import tower_table
from sweep_defaults import data_file, make_spec

import widedeep as wd
from widedeep.models import registered_towers
from widedeep.models.histories import HistoryConfig
from widedeep.models.tasks import TasksConfig
from widedeep.training.defaults import at_quality

DATA = Path(__file__).resolve().parent / "data"
TOWERS = "mlp,fm,deep_fm,ifm,ffm,afm,difm"
RATES = (0.2, 0.05, 0.02)
STARTS = (0.02, 0.1)
MEMBERS = {"one": "good", "four together": "best", "four apart": "best"}


def compare(option: str, towers: list[str], counts: list[int], seeds: int) -> None:
    """Print what rates of embeddings, or their deviations at the start, are worth."""
    values = {"rate": RATES, "start": STARTS}[option]
    table = pq.read_table(data_file(0))
    table = table.select([n for n in table.column_names if n[0] in "IC" or n == "label"])
    judged = table.slice(400_000, 100_000)
    print(f"| tower | rows | {' | '.join(f'{value:g}' for value in values)} |")
    print(f"|---|---|{'---|' * len(values)}")
    for rows in counts:
        train = table.slice(0, rows)
        schema = wd.fit_schema(make_spec("none", 2), train)
        for name in towers:
            tower = tower_table(name)
            cells = []
            for value in values:
                runs = []
                for seed in range(seeds):
                    start = value if option == "start" else None
                    model = wd.WideDeep(
                        schema, deep=tower, embedding_dim=8, embedding_std=start, seed=seed
                    )
                    rate = value if option == "rate" else model.embedding_rate
                    trainer = wd.Trainer(
                        model, batch_size=512, seed=seed, threads=1, progress=False,
                        deep=wd.Adagrad(lr=rate, initial_accumulator=0.1, l2=0.025),
                        dense=wd.Adagrad(),
                    )  # fmt: skip
                    trainer.fit(train)
                    metrics = trainer.evaluate(judged)
                    runs.append((metrics["auc"], metrics["log_loss"]))
                cells.append(" / ".join(f"{mean:.4f}" for mean in np.mean(runs, axis=0)))
            print(f"| {name} | {rows:,} | {' | '.join(cells)} |", flush=True)


def find_stuck(towers: list[str], rows: int) -> None:
    """Print what towers are worth with the embeddings that they learned, and without."""
    table = pq.read_table(data_file(0))
    table = table.select([n for n in table.column_names if n[0] in "IC" or n == "label"])
    train, judged = table.slice(0, rows), table.slice(400_000, 20_000)
    schema = wd.fit_schema(make_spec("none", 2), train)
    parts = (judged, train.slice(0, 20_000))
    print("| tower | judged rows | initial embeddings | rows learned | initial embeddings |")
    print("|---|---|---|---|---|")
    for name in towers:
        model = wd.WideDeep(schema, deep=tower_table(name), embedding_dim=8)
        initial = {dim: own.weight.detach().clone() for dim, own in model.deep_tables.items()}
        trainer = wd.Trainer(model, batch_size=512, threads=1, progress=False)
        trainer.fit(train)
        losses = [trainer.evaluate(part)["log_loss"] for part in parts]
        for dim, weight in initial.items():
            model.deep_tables[dim].weight.data.copy_(weight)
        without = [trainer.evaluate(part)["log_loss"] for part in parts]
        cells = (losses[0], without[0], losses[1], without[1])
        print(f"| {name} | {' | '.join(f'{loss:.4f}' for loss in cells)} |", flush=True)


def windows() -> Iterator[tuple[str, League]]:
    """Return parts of training parts: to learn, to stop by, and to judge."""
    if os.environ.get("ONLINE_RETAIL"):
        shop = SETS["shop"](2_000_000, DATA)
        for start in WINDOWS:
            rows = shop.train.slice(start, 260_000)
            yield (
                "shop",
                replace(
                    shop, train=rows.slice(0, 30_000), valid=rows.slice(30_000, 10_000),
                    test=rows.slice(200_000),
                ),
            )  # fmt: skip
    people = SETS["adult"](30_000, DATA)
    fifth = people.train.num_rows // 5
    for start in range(0, 5 * fifth, fifth):
        order = np.roll(np.arange(people.train.num_rows), -start)
        rows = people.train.take(order)
        yield "adult", replace(people, train=rows.slice(fifth), test=rows.slice(0, fifth))


def compare_members(seeds: int) -> None:
    """Print one model beside members that are trained together, and apart."""
    runs: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for name, league in windows():
        given = default_config(league)
        for way, quality in MEMBERS.items():
            config = at_quality(
                replace(given, train=replace(given.train, quality=quality))  # type: ignore[arg-type]
            )
            if way == "four together":
                deep = [{**table, "training": "together"} for table in config.model.deep]
                config = replace(config, model=replace(config.model, deep=deep))
            for seed in range(seeds):
                model = wd.WideDeep(
                    wd.fit_schema(config.spec, league.train), replace(config.model, seed=seed)
                )
                train = replace(config.train, seed=10 * seed)
                started = time.process_time()
                trainer = wd.Trainer(model, train, progress=False)
                trainer.fit(league.train, valid=league.valid)
                spent = time.process_time() - started
                metrics = trainer.evaluate(league.test)
                runs.setdefault((name, way), []).append(
                    (metrics["auc"], metrics["log_loss"], spent)
                )
    print("| set | members | AUC / log loss | training time |\n|---|---|---|---|")
    for (name, way), found in runs.items():
        auc, loss, spent = np.mean(found, axis=0)
        alone = np.mean(runs[name, "one"], axis=0)[2]
        print(f"| {name} | {way} | {auc:.4f} / {loss:.4f} | {spent / alone:.1f} |")


def main() -> None:
    """Print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--stuck", action="store_true")
    parser.add_argument("--members", action="store_true")
    parser.add_argument("--towers", default=TOWERS)
    parser.add_argument("--rows", default="40000,400000")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    towers = asked.towers.split(",")
    if asked.towers == "all":
        by_field = registered_towers().items()
        towers = [n for n, kind in by_field if not issubclass(kind, HistoryConfig | TasksConfig)]
        towers = [n for n in towers if n not in ("ensemble", "two_tower")]
    counts = [int(count) for count in asked.rows.split(",")]
    if asked.rates:
        compare("rate", towers, counts, asked.seeds)
    if asked.starts:
        compare("start", towers, counts, asked.seeds)
    if asked.stuck:
        find_stuck(towers, counts[0])
    if asked.members:
        compare_members(asked.seeds)


if __name__ == "__main__":
    main()
