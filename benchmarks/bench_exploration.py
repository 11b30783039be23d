"""Does exploring pay: four weeks of a store under models that learn of what they showed alone.

A store begins with a day of popular apps, the same for everyone. Then, each night, a
model is trained on the log so far, and ranks the next day: best first (greedy), or exploring by a
policy of :class:`widedeep.serving.exploration.Exploration`. Each policy lives in a copy of the
store of its own, so that a model sees nothing but what its own policy showed. Regret is what the
best lists of the same candidates were to bring, less what the shown lists were to bring, by the
true probabilities, over the four weeks. "Unknown" is the part of it that best apps would
have brought which the policy had shown less than 50 times until then: of these one can learn,
whereas the rest is of errors about apps that it knows, which no exploration mends.

Stores differ: a seed's regret is the mean of its stores' (``--stores``).

    python benchmarks/bench_exploration.py [--seeds 5] [--stores 4] [--days 28] [--requests 2500]
                                           [--new 3] [--jobs 2] [--write]

In these stores how good an app is must be found out: installs depend on its hidden quality, price
and age, and with ``--tastes`` on users' tastes and on pairs of apps too. Choices were made on
seeds other than 11 to 15. Models read what counts in their store.
"""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from results_file import machine, write_section

import widedeep as wd
from widedeep.config import config_from_tables
from widedeep.serving.exploration import Exploration
from widedeep.simulate import AppStore, Model, Policy, Popularity, Ranked, StoreConfig
from widedeep.simulate.click_model import attention
from widedeep.simulate.declaration import APP_STORE_TOML
from widedeep.simulate.policies import best_first
from widedeep.simulate.requests import Requests
from widedeep.simulate.table1 import interval
from widedeep.simulate.traffic import Traffic

GREEDY = "greedy"
# The random lists, which propensities above 0 need, cost regret: as few as may be.
EPSILON = 0.002
POLICIES: dict[str, Exploration | None] = {
    GREEDY: None,
    "linucb": Exploration(policy="linucb", epsilon=EPSILON, scale=0.5),
    "thompson": Exploration(policy="thompson", epsilon=EPSILON, scale=0.5),
    "epsilon": Exploration(policy="epsilon"),
}
# A store without ratings and counts: how good an app is must be found out.
UNKNOWN = ("app_rating", "rating_bucket", "app_installs")
# Without tastes the users and kinds of apps tell nothing, and a few hundred installs no more than
# this; weights near the posterior's mode for effects of half a logit, which the stores have.
WIDE = ["app", "position", "price_bucket", "age_bucket"]
FREE_WEIGHTS = {"optimizer": "ftrl", "lr": 1.0, "l1": 0.0, "l2": 4.0}
FEW_SHOWN = 50


def labelled(traffic: Traffic) -> pa.Table:
    """Return a day's impressions with the label: an app is installed from one list at most."""
    keys = ("user_id", "item_id")
    installed = set(zip(*(traffic.actions[name].to_pylist() for name in keys), strict=True))
    shown = zip(*(traffic.impressions[name].to_pylist() for name in keys), strict=True)
    return traffic.impressions.append_column(
        "label", pa.array([int(pair in installed) for pair in shown])
    )


def _without(features: dict[str, Any], names: tuple[str, ...]) -> None:
    """Remove features from the tables of a declaration."""
    for key in ("numeric", "item", "wide", "deep"):
        features[key] = [name for name in features[key] if name not in names]
    for name in set(features["bucketized"]) & set(names):
        del features["bucketized"][name]


class Nights:
    """Trains a model each night, by the logs so far.

    Args:
        folder: Everything is written below it.
        seed: Seed of training.
        posterior: Whether bundles get a posterior, by the logs so far.
        tastes: Whether users and kinds of apps count.
    """

    def __init__(self, folder: Path, seed: int, posterior: bool, tastes: bool) -> None:
        self.folder, self.seed, self.posterior, self.tastes = folder, seed, posterior, tastes
        self.logs: list[pa.Table] = []

    def train(self, log: pa.Table) -> wd.Bundle:
        """Train with a day's log too and return the bundle of the next day."""
        self.logs.append(log)
        rows = pa.concat_tables(self.logs)
        tables = tomllib.loads(APP_STORE_TOML)
        tables["train"] |= {"seed": self.seed, "threads": 1, "epochs": 2, "schedule": "linear"}
        _without(tables["features"], UNKNOWN)
        if not self.tastes:
            tables["features"] |= {"crossed": [], "wide": WIDE, "deep": []}
            tables["model"]["hidden_units"] = []
            tables["train"]["wide"] = FREE_WEIGHTS
        config = config_from_tables(tables)
        model = wd.WideDeep(wd.fit_schema(config.spec, rows), config.model)
        trainer = wd.Trainer(model, config.train, progress=False)
        trainer.fit(rows)
        posterior = rows if self.posterior else None
        return trainer.export(self.folder / "bundle", overwrite=True, posterior=posterior)


class Watched:
    """A policy, and how much was missed with apps that it had hardly shown until then."""

    def __init__(self, shows_A: NDArray[np.int64]) -> None:
        self.name, self.policy, self.missed = "watched", cast(Policy, None), 0.0
        self._shows_A = shows_A

    def rank(self, requests: Requests) -> Ranked:
        """Rank by the policy."""
        ranked, seen_S = self.policy.rank(requests), attention(requests.shown)
        best_RS = best_first(requests.truth_RC, requests.shown)
        is_missed_RS = ~(best_RS[:, :, None] == ranked.order_RS[:, None]).any(axis=2)
        by_best_RS, by_shown_RS = (
            np.take_along_axis(requests.truth_RC, order_RS, axis=1) * seen_S
            for order_RS in (best_RS, ranked.order_RS)
        )
        regret_R = (by_best_RS - by_shown_RS).sum(axis=1)
        share_RS = is_missed_RS * by_best_RS
        share_RS /= np.maximum(share_RS.sum(axis=1, keepdims=True), 1e-12)
        shows_A = np.zeros(len(requests.world.apps), np.int64)
        shows_A[: len(self._shows_A)] = self._shows_A
        is_unknown_RS = shows_A[np.take_along_axis(requests.app_RC, best_RS, axis=1)] < FEW_SHOWN
        self.missed += float((regret_R[:, None] * share_RS * is_unknown_RS).sum())
        shown_N = np.take_along_axis(requests.app_RC, ranked.order_RS, axis=1).ravel()
        self._shows_A = shows_A + np.bincount(shown_N, minlength=len(shows_A))
        return ranked


def regret(seed: int, policy: str, asked: argparse.Namespace) -> tuple[list[float], float]:
    """Return each day's regret per request of a policy in a store, and its part of the unknown."""
    torch.set_num_threads(1)
    exploration = POLICIES[policy]
    store = AppStore(_config(seed, asked))
    watched = Watched(np.zeros(0, np.int64))
    watched.policy = Popularity(noise=0.0)
    log = labelled(store.run(watched, 1))
    watched.missed = 0.0
    regrets = []
    with tempfile.TemporaryDirectory(prefix="widedeep-exploration-") as folder:
        needs = exploration is not None and exploration.needs_posterior
        nights = Nights(Path(folder), seed, needs, asked.tastes)
        for _ in range(asked.days):
            watched.policy = Model(nights.train(log), exploration=exploration)
            traffic = store.run(watched, 1)
            log, requests = labelled(traffic), traffic.requests
            missed = requests["best"].to_numpy() - requests["expected"].to_numpy()
            regrets.append(float(missed.mean()))
    return regrets, watched.missed / (asked.days * asked.requests) / fmean(regrets)


def report(regrets: dict[str, list[list[float]]], unknown: dict[str, list[float]]) -> str:
    """Return the outcome as Markdown: regrets of each policy by seed and day."""
    lines = [
        "| policy | regret per request | of that, of the unknown | of greedy's | by seed "
        "| 95 % interval | of greedy's, last week | 95 % interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in regrets.items():
        whole, last = (_ratios(seeds, regrets[GREEDY], days) for days in (0, -7))
        by_seed = " ".join(f"{ratio:.3f}" for ratio in whole)
        mean = fmean(fmean(days) for days in seeds)
        lines.append(
            f"| {name} | {mean:.4f} | {fmean(unknown[name]):.0%} | {fmean(whole):.3f} | {by_seed} "
            f"| {_spread(name, whole)} | {fmean(last):.3f} | {_spread(name, last)} |"
        )
    return "\n".join(lines)


def _means(days: list[list[float]], stores: int) -> list[list[float]]:
    """Return each day's regret, the mean of each seed's stores."""
    parts = [days[at : at + stores] for at in range(0, len(days), stores)]
    return [[fmean(values) for values in zip(*part, strict=True)] for part in parts]


def _ratios(seeds: list[list[float]], greedy: list[list[float]], first: int) -> list[float]:
    """Return each seed's regret of greedy's, from a day on."""
    pairs = zip(seeds, greedy, strict=True)
    return [fmean(own[first:]) / fmean(base[first:]) for own, base in pairs]


def _spread(name: str, ratios: list[float]) -> str:
    if name == GREEDY or len(ratios) < 2:
        return ""
    half = interval(ratios)
    return f"{fmean(ratios) - half:.3f} to {fmean(ratios) + half:.3f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=11)
    parser.add_argument("--stores", type=int, default=4, help="of each seed")
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--requests", type=int, default=2500, help="a day")
    parser.add_argument("--new", type=int, default=3, help="new apps a day")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--tastes", action="store_true", help="a store with tastes and pairs too")
    parser.add_argument("--jobs", type=int, default=1, help="stores at a time")
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    policies = list(dict.fromkeys([GREEDY, *asked.policies]))
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    stores = [seed + 1000 * number for seed in seeds for number in range(asked.stores)]
    runs = [(store, policy) for store in stores for policy in policies]
    regrets: dict[str, list[list[float]]] = {name: [] for name in policies}
    unknown: dict[str, list[float]] = {name: [] for name in policies}
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        outcomes = pool.map(regret, *zip(*runs, strict=True), repeat(asked))
        for (store, policy), (days, missed) in zip(runs, outcomes, strict=True):
            regrets[policy].append(days)
            unknown[policy].append(missed)
            ratio = fmean(days) / fmean(regrets[GREEDY][-1])
            print(f"store {store}, {policy}: {fmean(days):.4f} ({ratio:.3f})", flush=True)
    by_seed = {name: _means(days, asked.stores) for name, days in regrets.items()}
    text = report(by_seed, unknown)
    print(text, flush=True)
    if asked.write:
        _write(text, asked)


def _config(seed: int, asked: argparse.Namespace) -> StoreConfig:
    return StoreConfig(
        seed=seed,
        users=2 * asked.requests,
        apps=100,
        shown=2,
        new_apps_per_day=asked.new,
        requests_per_day=asked.requests,
        memorisation=float(asked.tastes),
        generalisation=float(asked.tastes),
    )


def _write(text: str, asked: argparse.Namespace) -> None:
    kind = "tastes, pairs and hidden quality" if asked.tastes else "hidden quality"
    write_section(
        "exploration-tastes" if asked.tastes else "exploration",
        f"## Exploration: regret in a store of {kind}\n\n"
        f"`benchmarks/bench_exploration.py` on {machine()}: {asked.days} days of "
        f"{asked.requests:,} requests, {asked.stores} store(s) for each of {asked.seeds} seeds, "
        f"of 100 apps and {asked.new} new ones a day, of which 2 of 50 candidates are shown; a "
        "model trained each night by the logs so far, which tell no ratings. Regret: installs "
        "that the best lists were to bring, "
        "less those that the shown ones were, by the true probabilities; of the unknown: with best "
        f"apps that the policy had shown less than {FEW_SHOWN} times.\n\n{text}",
    )


if __name__ == "__main__":
    main()
