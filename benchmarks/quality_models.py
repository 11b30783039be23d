"""Quality of every tower on four sets, at equal widths: the table "which model when".

    python benchmarks/quality_models.py [--sets adult,clicks,shop,store] [--models deep_fm,din]
                                        [--seeds 1] [--rows 100000] [--online-retail FILE]
                                        [--again] [--write] [--note TEXT]

- adult: UCI Adult, numbers and few categories, many passes.
- clicks: `criteo_like.py`, categories of many values, one pass.
- shop: UCI Online Retail, joined with histories (without the file the set is left out).
- store: the simulated app store, joined, two passes.

Every model has the same features in the wide part, embeddings of one width, hidden layers of
(64, 32) where it has any, and the library's default optimizers. Models that read sequences get the
history as one; the others its mean. Each seed of a model and a set is kept in
`benchmarks/data/models.jsonl` as it comes, and is not trained twice: a run goes on where another
one stopped. --again measures anew. Prints the table as Markdown; --write puts it into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from results_file import machine, write_section
from sweep_defaults import data_file, make_spec

import widedeep as wd
from widedeep.models import registered_towers
from widedeep.models.histories import HistoryConfig
from widedeep.models.tasks import TasksConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path += [str(EXAMPLES / "census"), str(EXAMPLES / "online_retail")]
RUNS = Path(__file__).parent / "data" / "models.jsonl"
HIDDEN = (64, 32)
DIM = 8


@dataclass(frozen=True, kw_only=True)
class Set:
    """A data set, and how it is trained on."""

    spec: wd.FeatureSpec
    train: Any
    valid: Any
    test: Any
    epochs: int
    batch: int
    history: str | None = None  # The list feature that models of sequences read


def adult(rows: int, folder: Path) -> Set:
    """UCI Adult as the census example declares it, its numbers as bins too."""
    from run import DATA, census_spec, train_and_valid

    train, valid = train_and_valid()
    return Set(
        spec=census_spec(), train=train, valid=valid, test=pq.read_table(DATA / "test.parquet"),
        epochs=8, batch=256,
    )  # fmt: skip


def clicks(rows: int, folder: Path) -> Set:
    """A Criteo-shaped log whose truth has three crosses; they are not named here."""
    table = pq.read_table(data_file(0), columns=["label", *_click_columns()])
    first = table.num_rows - rows
    return Set(
        spec=make_spec("none", 2), train=table.slice(first - 2 * rows, 2 * rows),
        valid=table.slice(first, rows // 2), test=table.slice(first + rows // 2),
        epochs=1, batch=512,
    )  # fmt: skip


def _click_columns() -> list[str]:
    return [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]


def shop(rows: int, folder: Path) -> Set:
    """What a customer of an online shop takes next."""
    from retail import make_examples, retail_spec

    file = Path(os.environ["ONLINE_RETAIL"])
    examples = make_examples(file, folder / "shop").output
    train = pq.read_table(examples / "train")
    return Set(
        spec=retail_spec(), train=train.slice(max(0, train.num_rows - 4 * rows)),
        valid=pq.read_table(examples / "valid").slice(0, rows),
        test=pq.read_table(examples / "test").slice(0, rows),
        epochs=2, batch=512, history="last_items",
    )  # fmt: skip


def store(rows: int, folder: Path) -> Set:
    """The simulated app store: the paper's situation."""
    from widedeep.join import Negatives, Split, load_join_config, run_join
    from widedeep.simulate.config import StoreConfig
    from widedeep.simulate.declaration import JOIN_TOML, app_store_spec
    from widedeep.simulate.policies import Popularity
    from widedeep.simulate.store import AppStore

    place = folder / "store"
    place.mkdir()
    made = AppStore(StoreConfig(seed=1, requests_per_day=4000))
    for day, logged in enumerate(made.days(Popularity(), 6)):
        logged.write(place, f"day{day:04d}")
    (place / "join.toml").write_text(JOIN_TOML, encoding="utf-8")
    join = replace(
        load_join_config(place / "join.toml"),
        split=Split(fractions=(0.8, 0.1, 0.1)),
        negatives=Negatives(rate=0.3, splits=("train", "valid")),
    )
    examples = run_join(join).output
    return Set(
        spec=app_store_spec().replace(weight="weight"), train=pq.read_table(examples / "train"),
        valid=pq.read_table(examples / "valid"),
        test=pq.read_table(examples / "test").slice(0, 2 * rows),
        epochs=2, batch=512, history="user_installed",
    )  # fmt: skip


SETS: Mapping[str, Callable[[int, Path], Set]] = {
    "adult": adult,
    "clicks": clicks,
    "shop": shop,
    "store": store,
}
WITH_HISTORY = ("shop", "store")


def reads_history(name: str) -> bool:
    """Whether a model reads a history as a sequence."""
    return name != "wide" and issubclass(registered_towers()[name], HistoryConfig)


def tower_table(name: str) -> dict[str, Any]:
    """The tower with the widths of this comparison."""
    known = {field.name for field in fields(registered_towers()[name])}
    return {"name": name, **({"hidden_units": HIDDEN} if "hidden_units" in known else {})}


def spec_for(chosen: Set, name: str) -> wd.FeatureSpec:
    """The set's features; a history stays a sequence for models that read one."""
    if not reads_history(name):
        return chosen.spec
    kept = [
        replace(feature, combiner=None, maxlen=20) if feature.name == chosen.history else feature
        for feature in chosen.spec.features
    ]
    return chosen.spec.replace(features=kept)


def train_and_judge(chosen: Set, name: str, seed: int) -> dict[str, float]:
    """Train a model, or the wide part alone (``"wide"``); return its metrics and rows a second."""
    spec = chosen.spec.replace(deep=[]) if name == "wide" else spec_for(chosen, name)
    deep = None if name == "wide" else tower_table(name)
    schema = wd.fit_schema(spec, chosen.train)
    model = wd.WideDeep(schema, deep=deep, embedding_dim=DIM, seed=seed)
    trainer = wd.Trainer(model, batch_size=chosen.batch, seed=seed, threads=1, progress=False)
    started = time.process_time()
    trainer.fit(chosen.train, epochs=chosen.epochs, valid=chosen.valid)
    seconds = time.process_time() - started
    metrics = trainer.evaluate(chosen.test)
    return {"auc": metrics["auc"], "log_loss": metrics["log_loss"], "seconds": seconds}


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--models", default="")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--again", action="store_true", help="measure anew what was before")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    parser.add_argument("--note", default="", help="sentences to stand above the table")
    parser.add_argument("--online-retail", default=os.environ.get("ONLINE_RETAIL", ""))
    asked = parser.parse_args()
    names = [name for name in asked.sets.split(",") if name != "shop" or asked.online_retail]
    os.environ["ONLINE_RETAIL"] = asked.online_retail
    models = asked.models.split(",") if asked.models else ["wide", *registered_towers()]
    # Of several labels these sets have none.
    models = [
        name
        for name in models
        if name == "wide" or not issubclass(registered_towers()[name], TasksConfig)
    ]
    found = measure(names, models, asked)
    text = "\n".join(table(found, names, asked))
    print(text)
    if asked.write:
        write_section("training:models", text)


def measure(
    names: list[str], models: list[str], asked: argparse.Namespace
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Train what is not kept; return the runs of each model by set."""
    lines = RUNS.read_text(encoding="utf-8").splitlines() if RUNS.exists() else []
    kept: dict[str, dict[str, float]] = dict(json.loads(line) for line in lines)
    if asked.again:
        kept.clear()
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in models}
    with tempfile.TemporaryDirectory() as folder:
        for set_name in names:
            chosen = None
            for name in models:
                if reads_history(name) and set_name not in WITH_HISTORY:
                    continue
                for seed in range(asked.seeds):
                    key = f"{set_name} | {name} | {asked.rows} rows | seed {seed}"
                    if key not in kept:
                        chosen = chosen or SETS[set_name](asked.rows, Path(folder))
                        kept[key] = train_and_judge(chosen, name, seed)
                        with RUNS.open("a", encoding="utf-8") as file:
                            file.write(json.dumps([key, kept[key]]) + "\n")
                        print(f"{key}: AUC {kept[key]['auc']:.4f}", file=sys.stderr, flush=True)
                    found[name].setdefault(set_name, []).append(kept[key])
    return found


def table(
    found: Mapping[str, Mapping[str, list[dict[str, float]]]],
    names: list[str],
    asked: argparse.Namespace,
) -> list[str]:
    """The lines of the table, best log loss of each set in bold."""

    def mean(name: str, set_name: str, metric: str) -> float:
        return fmean(run[metric] for run in found[name][set_name])

    best = {s: min(mean(name, s, "log_loss") for name in found if s in found[name]) for s in names}
    lines = [
        "## Which model when",
        "",
        f"`benchmarks/quality_models.py --rows {asked.rows}` on {machine()}: test AUC / log loss, "
        "and the processor seconds of training beside the perceptron's; "
        f"embeddings of {DIM}, layers {HIDDEN}, "
        f"default optimizers and rates; means of {asked.seeds} seed(s). The best log loss is bold. "
        f"{asked.note}",
        "",
        f"| model | {' | '.join(names)} | training time |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for name, by_set in found.items():
        cells = []
        ratios = []
        for set_name in names:
            if set_name not in by_set:
                cells.append("")
                continue
            loss = mean(name, set_name, "log_loss")
            shown = f"{mean(name, set_name, 'auc'):.4f} / {loss:.4f}"
            cells.append(f"**{shown}**" if loss == best[set_name] else shown)
            if set_name in found.get("mlp", {}):
                ratios.append(mean(name, set_name, "seconds") / mean("mlp", set_name, "seconds"))
        lines.append(
            f"| {name} | {' | '.join(cells)} | {f'{fmean(ratios):.1f}' if ratios else ''} |"
        )
    return lines


if __name__ == "__main__":
    main()
