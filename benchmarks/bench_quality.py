"""The league table: quality of ours, of trees, of linear models and of published networks.

    python benchmarks/bench_quality.py [--sets adult,crosses] [--models lightgbm,tuned] [--seeds 3]
                                       [--rows 100000] [--seconds 600] [--write]

Every model learns the same training rows, decides by the same validation rows when to stop, what to
keep and which settings to take, and is judged once on the same test rows. No peer may train for
more than the processor seconds of two threads, nor ours search for longer. `league_sets.py` makes
the sets; `peers/league_rows.py` says what
other libraries read of them. Ours are:

- defaults: what `widedeep init` writes, untouched;
- tuned: what `widedeep tune` finds within the seconds, starting there.

UCI Online Retail takes part where ONLINE_RETAIL names its file. Each result is kept in
`benchmarks/data/league.json` as it comes, so a run goes on where another one stopped; --again
measures what is there anew. The peers' environments: `make bench-quality`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from league_sets import SETS, League
from results_file import machine, write_section

import widedeep as wd
from widedeep.metrics import auc, log_loss
from widedeep.training.config import RunConfig, TrainConfig

HERE = Path(__file__).resolve().parent
KEPT = HERE / "data" / "league.json"
THREADS = 2
OURS = {"defaults": "widedeep, defaults", "tuned": "widedeep, tuned"}
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
Scores = dict[str, float]


def default_config(league: League) -> RunConfig:
    """Return what `widedeep init` writes for the training rows, or the set's own features."""
    spec = league.spec or wd.infer_spec(league.train, label=league.label).spec
    return RunConfig(spec=spec, train=TrainConfig(epochs="auto", threads=THREADS))


def train_ours(league: League, config: RunConfig, seed: int) -> Scores:
    """Train a configuration; return its test metrics."""
    model = replace(config.model, seed=seed)
    train = replace(config.train, seed=seed)
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(config.spec, league.train), model), train, progress=False
    )
    trainer.fit(league.train, valid=league.valid)
    metrics = trainer.evaluate(league.test)
    return {"auc": metrics["auc"], "log_loss": metrics["log_loss"]}


def ours(league: League, name: str, seeds: list[int], seconds: float) -> list[Scores]:
    """Return the metrics of one of ours, a seed each; settings are searched once."""
    config = default_config(league)
    if name == "tuned":
        study = wd.tune(
            config, league.train, valid=league.valid, minutes=seconds / 60, progress=False
        )
        config = study.config
    return [train_ours(league, config, seed) for seed in seeds]


def peer(league: League, name: str, folder: Path, seed: int, seconds: float) -> Scores | None:
    """Return a peer's metrics, or None where its environment is not made."""
    _, environment = PEERS[name]
    python = HERE / "peers" / f".venv-{environment}" / "bin" / "python"
    if not python.exists():
        return None
    script = {"models_fuxictr": "models_fuxictr_league"}.get(environment, environment)
    words = [python, HERE / "peers" / f"{script}.py", folder, name]
    subprocess.run(
        [*map(str, words), "--seed", str(seed), "--seconds", str(THREADS * seconds)],
        check=True, stdout=subprocess.DEVNULL,
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


def run_set(
    set_name: str, models: list[str], asked: argparse.Namespace, kept: dict[str, list[Scores]]
) -> None:
    """Train what is missing on one set, and keep each result at once."""
    keys = {name: f"{set_name} | {name} | {asked.rows} | {asked.seconds:g}" for name in models}
    missing = [
        name for name in models if asked.again or len(kept.get(keys[name], ())) < asked.seeds
    ]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        league = SETS[set_name](asked.rows, folder)
        write_rows(league, folder)
        seeds = list(range(asked.seeds))
        for name in missing:
            if name in OURS:
                found = ours(league, name, seeds, asked.seconds)
            else:
                runs = [peer(league, name, folder, seed, asked.seconds) for seed in seeds]
                found = [run for run in runs if run is not None]
            if found:
                kept[keys[name]] = found
                KEPT.write_text(json.dumps(kept, indent=1), encoding="utf-8")
                mean = [fmean(run[metric] for run in found) for metric in ("auc", "log_loss")]
                print(f"{set_name}, {name}: {mean[0]:.4f} / {mean[1]:.4f}", file=sys.stderr)


def table(
    sets: list[str], models: list[str], asked: argparse.Namespace, kept: Mapping[str, list[Scores]]
) -> str:
    """Return the table: a row a model, the best log loss of each set in bold."""

    def mean(set_name: str, name: str, metric: str) -> float | None:
        runs = kept.get(f"{set_name} | {name} | {asked.rows} | {asked.seconds:g}")
        return None if not runs else fmean(run[metric] for run in runs)

    shown = [s for s in sets if any(mean(s, name, "auc") is not None for name in models)]
    titles = OURS | {name: title for name, (title, _) in PEERS.items()}
    lines = [
        "## League table",
        "",
        f"`benchmarks/bench_quality.py --rows {asked.rows} --seconds {asked.seconds:g}` on "
        f"{machine()}: test AUC / log loss, means of {asked.seeds} seed(s), at most {asked.rows:,} "
        f"rows to learn and {asked.seconds:g} seconds of two threads to train or search in. Each "
        "model stops by the same validation rows; the best log loss of a set is bold. One-way, "
        "crosses, sequences and drift are generated, with that alone to be found.",
        "",
        f"| model | {' | '.join(shown)} |",
        f"|---|{'---|' * len(shown)}",
    ]
    for name in models:
        cells = []
        for set_name in shown:
            area, loss = mean(set_name, name, "auc"), mean(set_name, name, "log_loss")
            losses: list[Any] = [mean(set_name, other, "log_loss") for other in models]
            text = "" if area is None or loss is None else f"{area:.4f} / {loss:.4f}"
            best = loss is not None and loss == min(x for x in losses if x is not None)
            cells.append(f"**{text}**" if best else text)
        if any(cells):
            lines.append(f"| {titles[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the league that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--models", default=",".join([*OURS, *PEERS]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--again", action="store_true", help="measure anew what was before")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    asked = parser.parse_args()
    sets = [s for s in asked.sets.split(",") if s != "shop" or os.environ.get("ONLINE_RETAIL")]
    models = asked.models.split(",")
    KEPT.parent.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    for set_name in sets:
        run_set(set_name, models, asked, kept)
    text = table(sets, models, asked, kept)
    print(text)
    if asked.write:
        write_section("training:league", text)


if __name__ == "__main__":
    main()
