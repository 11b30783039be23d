"""Warm start: how many new rows it needs to be as good as a cold start on all, and what it costs.

A simulated store (one a seed) is logged for two stretches of days. A model of the first stretch is
the older one. On the second stretch a cold model learns every row; models that start warm learn the
first 5, 10, 20, 50 and 100 % of the same rows. All are judged on the days after it. Then a table of
10 million rows is moved into a schema whose order is another one.

    python benchmarks/bench_warm_start.py [--seeds 5] [--rows 10000000] [--write]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from results_file import machine, write_section

import widedeep as wd
from widedeep.join import ActionLog, Label, Split, join_actions
from widedeep.simulate import AppStore, Explore, Popularity, StoreConfig
from widedeep.simulate.declaration import app_store_spec
from widedeep.simulate.table1 import interval
from widedeep.training.checkpoint import CheckpointDirectory

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
DAYS = (7, 7, 2)


def examples(seed: int, folder: Path) -> list[pa.Table]:
    """Log a store for three stretches, and return the examples of each."""
    store = AppStore(StoreConfig(seed=seed, requests_per_day=4000))
    found = []
    for number, days in enumerate(DAYS):
        traffic = store.run(Explore(Popularity(), 0.2), days)
        joined = join_actions(
            traffic.impressions,
            ActionLog(path=traffic.actions, kind="kind"),
            labels=[Label(name="label", kinds=["install"], window="1h")],
            split=Split(by="time", fractions=(1.0, 0.0, 0.0)),
            open_windows="keep",
            output=folder / f"{seed}-{number}",
        )
        table = pa.concat_tables([pq.read_table(path) for path in joined.paths("train")])
        found.append(table.sort_by("event_time") if "event_time" in table.schema.names else table)
    return found


def trained(schema: wd.Schema, rows: pa.Table, warm: Path | None, seed: int) -> wd.Trainer:
    """Train one pass at the defaults, from an older model or from nothing."""
    model = wd.WideDeep(schema, hidden_units=[64, 32], embedding_dim=16, seed=seed)
    trainer = wd.Trainer(model, schedule="linear", seed=seed, progress=False)
    if warm is not None:
        trainer.warm_start(warm)
    trainer.fit(rows)
    return trainer


def learning(seeds: int) -> list[str]:
    """Return a table: the log loss of cold and warm models by the share of the rows learned."""
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(seeds):
            first, second, judged = examples(seed, folder)
            spec = app_store_spec()
            old = trained(wd.fit_schema(spec, first), first, None, seed)
            place = folder / f"old-{seed}"
            old.directory = CheckpointDirectory(place)
            old.save_checkpoint()
            losses.setdefault("old model, no new rows", []).append(loss(old, judged))
            cold = trained(wd.fit_schema(spec, second), second, None, seed)
            losses.setdefault("cold, 100 %", []).append(loss(cold, judged))
            for share in SHARES:
                rows = second.slice(0, int(len(second) * share))
                schema = wd.fit_schema(spec, rows, grow=old.model.schema)
                warm = trained(schema, rows, place, seed)
                losses.setdefault(f"warm, {share:.0%}", []).append(loss(warm, judged))
    lines = [
        "| model | log loss on the days after | at most the cold model's | to it, mean ± 95 % |",
        "|---|---|---|---|",
    ]
    cold_losses = losses["cold, 100 %"]
    for told, found in losses.items():
        changes = [one - other for one, other in zip(found, cold_losses, strict=True)]
        better = sum(change <= 0 for change in changes)
        half = interval(changes) if seeds > 1 else math.nan
        lines.append(
            f"| {told} | {fmean(found):.5f} | in {better} of {seeds} | "
            f"{fmean(changes):+.5f} ± {half:.5f} |"
        )
    return lines


def loss(trainer: wd.Trainer, rows: pa.Table) -> float:
    """Return the log loss."""
    return trainer.evaluate(rows)["log_loss"]


def moving(rows: int) -> str:
    """Return the time of a warm start of a table of so many rows, into another order."""
    names = pa.array(np.arange(rows)).cast(pa.string())
    spec = wd.FeatureSpec(
        label="y", features=wd.categorical("id", embedding_dim=16, min_count=1), wide=["id"]
    )
    order = np.random.default_rng(0).permutation(rows)
    with tempfile.TemporaryDirectory() as folder:
        schemas = []
        for ids in (names, names.take(pa.array(order))):
            # Twice as often the later: so the order of the two vocabularies differs.
            seen = pa.concat_arrays([ids, ids.slice(0, rows // 2)])
            table = pa.table({"id": seen, "y": pa.array(np.zeros(len(seen), np.int8))})
            schemas.append(wd.fit_schema(spec, table))
        old = wd.Trainer(wd.WideDeep(schemas[0], hidden_units=[16]), progress=False)
        old.directory = CheckpointDirectory(folder)
        place = old.save_checkpoint()
        new = wd.Trainer(wd.WideDeep(schemas[1], hidden_units=[16]), progress=False)
        started = time.perf_counter()
        warm = new.warm_start(place)
        seconds = time.perf_counter() - started
    moved = ", ".join(f"{t.name} {t.transferred:,} of {t.total:,}" for t in warm.tensors[:2])
    return (
        f"{rows:,} rows moved into another order, with their optimizers' state ({moved}): "
        f"{seconds:.1f} s, checksums of the checkpoint included."
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    text = "\n".join([*learning(arguments.seeds), "", moving(arguments.rows)])
    print(text)
    if arguments.write:
        told = f"`benchmarks/bench_warm_start.py` on {machine()}"
        write_section(
            "warm_start",
            f"## Warm start\n\n{told}: a store's second week, {arguments.seeds} stores, "
            f"judged on the two days after it.\n\n{text}",
        )


if __name__ == "__main__":
    main()
