"""The league table: quality of ours, of trees, of linear models and of published networks.

    python benchmarks/bench_quality.py [--sets adult,crosses] [--models lightgbm,tuned] [--seeds 3]
                                       [--rows 100000] [--seconds 1200] [--list] [--write]

Every model learns the same training rows on one thread, decides by the same validation rows when to
stop, what to keep and which settings to take, and is judged once on the same test rows. No peer may
train for more processor seconds than --seconds, nor ours search for longer: what else the machine
does changes no figure. `league_sets.py` makes the sets; `peers/league_rows.py` says what other
libraries read of them. Ours are:

- defaults: what `widedeep init` writes, untouched;
- best: the same with `--quality best`;
- tuned: what `widedeep tune` finds within the seconds, starting at the defaults.

UCI Online Retail takes part where ONLINE_RETAIL names its file. A cell of the table is a set and a
model; each of its seeds is kept in `benchmarks/data/league.jsonl` as it comes, all cells of a seed
before the next seed, so a run goes on where another one stopped. --list tells what is kept and what
is missing, and trains nothing; --again measures anew. Peers' environments: `make bench-quality`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pyarrow.parquet as pq
from league_sets import SETS, League
from results_file import machine, write_section

import widedeep as wd
from widedeep.metrics import auc, log_loss
from widedeep.training.config import RunConfig, TrainConfig
from widedeep.training.defaults import at_quality

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
CELLS = DATA / "league.jsonl"
SECTION = "training:league"
THREADS = 1
TRIALS_AT_ONCE = 3
OURS = {
    "defaults": "widedeep, defaults",
    "best": "widedeep, `best`",
    "tuned": "widedeep, tuned",
}
PEERS = {
    "lightgbm": ("LightGBM", "models_league"),
    "catboost": ("CatBoost", "models_league"),
    "xgboost": ("XGBoost", "models_league"),
    "logistic": ("logistic regression", "models_league"),
    "tabm": ("TabM", "models_league"),
    "fuxi deep_fm": ("FuxiCTR DeepFM", "models_fuxictr"),
    "fuxi dcn_v2": ("FuxiCTR DCN-v2", "models_fuxictr"),
    "finalmlp": ("FuxiCTR FinalMLP", "models_fuxictr"),
}
TITLES = OURS | {name: title for name, (title, _) in PEERS.items()}
NEAR = 0.002
"""AUC behind the best model within which a set counts as reached."""

Scores = dict[str, float]


class Cells:
    """The results by set, model and seed, of one number of rows and of seconds."""

    def __init__(self, options: argparse.Namespace) -> None:
        DATA.mkdir(exist_ok=True)
        self.seconds: float = options.seconds
        self.limits = f"{options.rows} rows | {options.seconds:g} s"
        self.seeds = range(options.seeds)
        lines = CELLS.read_text(encoding="utf-8").splitlines() if CELLS.exists() else []
        self.scores: dict[str, Scores] = dict(json.loads(line) for line in lines)

    def key(self, set_name: str, model: str, seed: int) -> str:
        """Return the name of a seed of a cell in the file."""
        return f"{set_name} | {model} | {self.limits} | seed {seed}"

    def runs(self, set_name: str, model: str) -> list[Scores]:
        """Return the results of a cell, one per seed."""
        keys = (self.key(set_name, model, seed) for seed in self.seeds)
        return [self.scores[key] for key in keys if key in self.scores]

    def mean(self, set_name: str, model: str, metric: str) -> float:
        """Return a metric's mean over seeds."""
        return fmean(run[metric] for run in self.runs(set_name, model))

    def keep(self, set_name: str, model: str, seed: int, scores: Scores) -> None:
        """Add a result to the file; of two for one key the later one counts."""
        key = self.key(set_name, model, seed)
        self.scores[key] = scores
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, scores]) + "\n")

    def missing(self, sets: list[str], models: list[str]) -> list[tuple[int, str, list[str]]]:
        """Return seeds, sets and the models that have no result there, in the order of training."""
        return [
            (seed, set_name, names)
            for seed in self.seeds
            for set_name in sets
            if (names := [m for m in models if self.key(set_name, m, seed) not in self.scores])
        ]

    def describe(self, sets: list[str], models: list[str]) -> str:
        """Return what is kept and what is missing, with the processor seconds to come."""
        missing = self.missing(sets, models)
        count = sum(len(names) for _, _, names in missing)
        total = len(self.seeds) * len(sets) * len(models)
        lines = [f"league table, {self.limits}: {total - count} of {total} results are kept"]
        seconds = 0.0
        for seed, set_name, names in missing:
            lines.append(f"  missing: seed {seed}, {set_name}: {', '.join(names)}")
            for name in names:
                known = [run["seconds"] for s in sets for run in self.runs(s, name)]
                seconds += fmean(known) if known else self.seconds
        if missing:
            lines.append(f"about {seconds:.0f} processor seconds to come")
        return "\n".join(lines)


def default_config(league: League) -> RunConfig:
    """Return what `widedeep init` writes for the training rows, or the set's own features."""
    spec = league.spec or wd.infer_spec(league.train, label=league.label).spec
    return RunConfig(spec=spec, train=TrainConfig(epochs="auto", threads=THREADS))


def train_ours(league: League, config: RunConfig, seed: int) -> Scores:
    """Train a configuration; return its test metrics."""
    config = at_quality(config)
    model = replace(config.model, seed=seed)
    train = replace(config.train, seed=seed)
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(config.spec, league.train), model), train, progress=False
    )
    trainer.fit(league.train, valid=league.valid)
    metrics = trainer.evaluate(league.test)
    return {"auc": metrics["auc"], "log_loss": metrics["log_loss"]}


def search(league: League, config: RunConfig, seed: int, seconds: float) -> RunConfig:
    """Return the best configuration that `tune` finds within processor seconds."""
    end = time.process_time() + seconds
    trials = 0
    with tempfile.TemporaryDirectory() as folder:
        while time.process_time() < end:
            trials += TRIALS_AT_ONCE
            study = wd.tune(
                config, league.train, valid=league.valid, folder=folder, resume=True,
                trials=trials, minutes=seconds, seed=seed, progress=False,
            )  # fmt: skip
    return study.config


def ours(league: League, name: str, seed: int, seconds: float) -> Scores:
    """Return the metrics of one of ours."""
    config = default_config(league)
    if name == "best":
        config = replace(config, train=replace(config.train, quality="best"))
    if name == "tuned":
        config = search(league, config, seed, seconds)
    return train_ours(league, config, seed)


def peer(league: League, name: str, folder: Path, seed: int, seconds: float) -> Scores | None:
    """Return a peer's metrics, or None where its environment is not made."""
    _, environment = PEERS[name]
    python = HERE / "peers" / f".venv-{environment}" / "bin" / "python"
    if not python.exists():
        return None
    script = {"models_fuxictr": "models_fuxictr_league"}.get(environment, environment)
    words = [python, HERE / "peers" / f"{script}.py", folder, name]
    subprocess.run(
        [*map(str, words), "--seed", str(seed), "--seconds", str(seconds)],
        check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
    )  # fmt: skip
    labels = league.test[league.label].to_numpy().astype(np.float64)
    probabilities = np.load(folder / "answer.npy").clip(1e-7, 1 - 1e-7)
    return {
        "auc": auc(labels, probabilities),
        "log_loss": log_loss(labels, probabilities, score_kind="probability"),
    }


def write_rows(league: League, folder: Path) -> None:
    """Write a set for the peers: the columns that ours reads too."""
    columns = [*default_config(league).spec.columns(), league.label]
    for part in ("train", "valid", "test"):
        table = getattr(league, part)
        pq.write_table(table.select(columns), folder / f"{part}.parquet")
    (folder / "set.json").write_text(json.dumps({"label": league.label}), encoding="utf-8")


def processor_seconds() -> float:
    """Return those of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_set(
    set_name: str, models: list[str], seed: int, cells: Cells, asked: argparse.Namespace
) -> None:
    """Train models on one set from one seed, and keep each result at once."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        league = SETS[set_name](asked.rows, DATA)
        write_rows(league, folder)
        for name in models:
            started = processor_seconds()
            if name in OURS:
                scores: Scores | None = ours(league, name, seed, asked.seconds)
            else:
                scores = peer(league, name, folder, seed, asked.seconds)
            if scores is None:
                print(
                    f"{set_name}, {name}: no environment, see make bench-quality", file=sys.stderr
                )
                continue
            scores["seconds"] = processor_seconds() - started
            cells.keep(set_name, name, seed, scores)
            values = f"{scores['auc']:.4f} / {scores['log_loss']:.4f}, {scores['seconds']:.0f} s"
            print(f"{set_name}, {name}, seed {seed}: {values}", file=sys.stderr, flush=True)


def model_rows(sets: list[str], models: list[str], cells: Cells, seconds: float) -> list[str]:
    """Return the table's lines: a model each, the best log loss of each set in bold."""
    lines = [f"| model | {' | '.join(sets)} |", f"|---|{'---|' * len(sets)}"]
    best = {
        s: min(cells.mean(s, name, "log_loss") for name in models if cells.runs(s, name))
        for s in sets
    }
    for name in models:
        row = []
        for set_name in sets:
            runs = cells.runs(set_name, name)
            if not runs:
                row.append("")
                continue
            loss = cells.mean(set_name, name, "log_loss")
            text = f"{cells.mean(set_name, name, 'auc'):.4f} / {loss:.4f}"
            text = f"**{text}**" if loss == best[set_name] else text
            stopped = name in PEERS and fmean(run["seconds"] for run in runs) > seconds
            row.append(f"{text} ({len(runs)}){'*' if stopped else ''}")
        if any(row):
            lines.append(f"| {TITLES[name]} | {' | '.join(row)} |")
    return lines


def gap_rows(sets: list[str], models: list[str], cells: Cells) -> list[str]:
    """Return how far ours are from the best of the others in AUC, a set a line."""
    mine = [name for name in OURS if name in models]
    others = [name for name in PEERS if name in models]
    lines = [
        f"| set | best of the others by AUC | {' | '.join(OURS[name] for name in mine)} |",
        f"|---|---|{'---|' * len(mine)}",
    ]
    for set_name in sets:
        known = [name for name in others if cells.runs(set_name, name)]
        if not known:
            continue
        first = max(known, key=lambda name: cells.mean(set_name, name, "auc"))
        row = []
        for name in mine:
            runs = cells.runs(set_name, name)
            if not runs:
                row.append("")
                continue
            gap = cells.mean(set_name, name, "auc") - cells.mean(set_name, first, "auc")
            spread = f" ± {stdev(run['auc'] for run in runs):.4f}" if len(runs) > 1 else ""
            row.append(f"{gap:+.4f}{spread}{'' if gap >= -NEAR else ', behind'}")
        lines.append(f"| {set_name} | {TITLES[first]} | {' | '.join(row)} |")
    return lines


def table(sets: list[str], models: list[str], cells: Cells, asked: argparse.Namespace) -> str:
    """Return the section of RESULTS.md."""
    filled = [s for s in sets if any(cells.runs(s, name) for name in models)]
    lines = [
        "## League table",
        "",
        f"`benchmarks/bench_quality.py --rows {asked.rows} --seconds {asked.seconds:g}` on "
        f"{machine()}: test AUC / log loss, means of as many seeds as stand in parentheses; at "
        f"most {asked.rows:,} rows to learn, one thread, {asked.seconds:g} processor seconds to "
        "train in, or to search in. Each model stops by the same validation rows; the best log "
        "loss of a set is bold; * was stopped by the clock. One-way, crosses, sequences and drift "
        "are generated, with that alone to be found; hastie and digits are scikit-learn's. "
        f"{asked.note}",
        "",
        *model_rows(filled, models, cells, asked.seconds),
        "",
        f"AUC less that of the best of the others, and the deviation over our seeds; behind: by "
        f"more than {NEAR:g}.",
        "",
        *gap_rows(filled, models, cells),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the league that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--models", default=",".join(TITLES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--list", action="store_true", help="tell what is missing, train nothing")
    parser.add_argument("--again", action="store_true", help="measure anew what was before")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    parser.add_argument("--note", default="", help="sentences to stand above the table")
    asked = parser.parse_args()
    sets = [s for s in asked.sets.split(",") if s != "shop" or os.environ.get("ONLINE_RETAIL")]
    models = asked.models.split(",")
    cells = Cells(asked)
    if asked.again:
        cells.scores.clear()
    print(cells.describe(sets, models), file=sys.stderr, flush=True)
    if not asked.list:
        for seed, set_name, names in cells.missing(sets, models):
            run_set(set_name, names, seed, cells, asked)
    text = table(sets, models, cells, asked)
    print(text)
    if asked.write:
        write_section(SECTION, text)


if __name__ == "__main__":
    main()
