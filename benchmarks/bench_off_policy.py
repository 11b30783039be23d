"""Do offline estimates of what was not shown hold live: a new model judged by an old one's log.

A store (one a seed) ranks a few days by popularity and at random; an old model (single features
alone) and a new one (Wide & Deep) are trained on their logs. The old model then ranks for some
days, and ranks a fraction of the requests at random; its log holds every candidate with place and
propensity. From that log alone the new model's installs per request are estimated, as ``widedeep
evaluate`` does. A copy of the store lives the same days under the new model: what it was to bring
by the true probabilities is the live result.

    python benchmarks/bench_off_policy.py [--seeds 20] [--epsilon 0.5] [--write]
"""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from results_file import machine, write_section

import widedeep as wd
from widedeep.config import config_from_tables
from widedeep.evaluation.compare import score_both
from widedeep.evaluation.logged_rankings import LogColumns
from widedeep.evaluation.off_policy import ESTIMATORS, policy_values
from widedeep.serving.exploration import Exploration
from widedeep.simulate import AppStore, Explore, Popularity, StoreConfig
from widedeep.simulate.declaration import APP_STORE_TOML
from widedeep.simulate.policies import Ranked
from widedeep.simulate.requests import Requests
from widedeep.simulate.traffic import Traffic

USERS, REQUESTS = 8000, 2000  # one round a day: no user sends two requests
CANDIDATES, SHOWN = 10, 5
TRAINING_DAYS = 4


class Scores:
    """Ranks by a bundle, as a ranker does, a round of requests at once.

    Args:
        bundle: The model.
        exploration: How it explores; None: best first.

    Attributes:
        log: The candidates of the last round, a row each, with place and propensity.
    """

    name = "model"

    def __init__(self, bundle: wd.Bundle, exploration: Exploration | None = None) -> None:
        self._bundle, self._exploration = bundle, exploration
        self.log: pa.Table | None = None

    def rank(self, requests: Requests) -> Ranked:
        """Rank the requests."""
        rows, (n, count) = candidates(requests), requests.app_RC.shape
        score_RC = np.asarray(self._bundle.score(rows)).reshape(n, count)
        order_RS = np.argsort(-score_RC, axis=1, kind="stable")[:, : requests.shown]
        names = np.full(n, self.name, object)
        if self._exploration is None:
            return Ranked(order_RS=order_RS, policy_R=names, arm_R=names)
        position_RC = np.zeros((n, count), np.int64)
        propensity_RC = np.zeros((n, count))
        for row, (scores_B, name) in enumerate(zip(score_RC, requests.ids, strict=True)):
            drawn = self._exploration.draw(scores_B, requests.shown, name)
            order_RS[row], propensity_RC[row, drawn[0]] = drawn
            position_RC[row, drawn[0]] = np.arange(1, requests.shown + 1)
        hidden = position_RC.ravel() == 0
        rows = rows.append_column("position", pa.array(position_RC.ravel(), mask=hidden))
        self.log = rows.append_column("propensity", pa.array(propensity_RC.ravel(), mask=hidden))
        return Ranked(order_RS=order_RS, policy_R=names, arm_R=names)


def candidates(requests: Requests) -> pa.Table:
    """Return a row per candidate, with the columns of the request and of the app."""
    n, count = requests.app_RC.shape
    of_request = pa.array(np.repeat(np.arange(n), count))
    of_app = pa.array(requests.app_RC.ravel())
    columns: dict[str, Any] = {"request_id": pa.array(requests.ids).take(of_request)}
    for name, values in requests.columns.items():
        columns[name] = _plain(values.take(of_request))
    for name in requests.catalogue.column_names:
        columns[name] = requests.catalogue[name].combine_chunks().take(of_app)
    return pa.table(columns)


def _plain(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        return values.cast(pa.string())
    if pa.types.is_list(values.type) and pa.types.is_dictionary(values.type.value_type):
        return values.cast(pa.list_(pa.string()))
    return values


def labelled(rows: pa.Table, day: Traffic, item: str) -> pa.Table:
    """Add the label: a user sends one request a day here, so that a pair names an impression."""
    actions = day.actions
    installed = set(zip(*(actions[n].to_pylist() for n in ("user_id", "item_id")), strict=True))
    pairs = zip(rows["user_id"].to_pylist(), rows[item].to_pylist(), strict=True)
    return rows.append_column("label", pa.array([int(pair in installed) for pair in pairs]))


def train(log: pa.Table, folder: Path, seed: int, *, old: bool) -> wd.Bundle:
    """Train the old model, of single features, or the new one."""
    tables = tomllib.loads(APP_STORE_TOML)
    tables["train"] |= {"seed": seed, "threads": 1}
    if old:
        tables["features"]["wide"] = [
            name for name in tables["features"]["wide"] if name != "user_installed_x_app"
        ]
        del tables["features"]["crossed"]
        tables["features"]["deep"], tables["model"]["hidden_units"] = [], []
    config = config_from_tables(tables)
    model = wd.WideDeep(wd.fit_schema(config.spec, log), config.model)
    trainer = wd.Trainer(model, config.train, progress=False)
    trainer.fit(log)
    return trainer.export(folder)


def one_store(seed: int, epsilon: float, days: int, folder: Path) -> dict[str, Any]:
    """Return the estimates of the new model from the old one's log, and what it brings live."""
    store = AppStore(
        StoreConfig(
            seed=seed,
            users=USERS,
            requests_per_day=REQUESTS,
            candidates=CANDIDATES,
            shown=SHOWN,
            apps=300,
        )
    )
    logs = [
        labelled(day.impressions, day, "item_id")
        for day in store.days(Explore(Popularity(), 0.5), TRAINING_DAYS)
    ]
    log = pa.concat_tables(logs)
    old = train(log, folder / "old", seed, old=True)
    new = train(log, folder / "new", seed, old=False)
    live = store.copy().run(Scores(new), days).requests
    explores = Scores(old, Exploration(epsilon=epsilon, seed=seed))
    logged = [
        labelled(explores.log, day, "app")
        for day in store.days(explores, days)
        if explores.log is not None
    ]
    whole = pa.concat_tables(logged)
    columns = LogColumns.find(whole, new)
    assert columns is not None
    rows = score_both(new, old, whole, slices=(), log=columns)
    values = policy_values(rows, resamples=1000, seed=0)[""]
    return {
        "live": float(live["expected"].to_numpy().mean()),
        "counted": float(live["installs"].to_numpy().mean()),
        "logged": values["logged"]["value"],
        **values["models"]["candidate"],
    }


def report(runs: list[dict[str, Any]], epsilon: float, days: int) -> str:
    """Return the outcome as Markdown."""
    live = fmean(run["live"] for run in runs)
    lines = [
        "| estimator | intervals that hold the live result | error, mean | half an interval |",
        "|---|---|---|---|",
    ]
    for name, title in ESTIMATORS.items():
        held = sum(run[name]["low"] <= run["live"] <= run[name]["high"] for run in runs)
        error = fmean(abs(run[name]["value"] - run["live"]) / run["live"] for run in runs)
        half = fmean((run[name]["high"] - run[name]["low"]) / 2 / run["live"] for run in runs)
        lines.append(f"| {title} | {held} of {len(runs)} | {error:.1%} | {half:.1%} |")
    counted = sum(run["dr"]["low"] <= run["counted"] <= run["dr"]["high"] for run in runs)
    problems = sum(run["problem"] is not None for run in runs)
    return "\n".join(
        [
            "## Rankings that were not shown, judged offline",
            "",
            f"{machine()}. {len(runs)} stores: {days} days of {REQUESTS:,} "
            f"requests, {SHOWN} of {CANDIDATES} candidates shown, {epsilon:.0%} of the requests in "
            f"random order. The log got {fmean(r['logged'] for r in runs):.3f} installs "
            f"per request, the new model {live:.3f} live; the log is worth "
            f"{fmean(r['ess'] for r in runs):,.0f} rows of the new ranking.",
            "",
            *lines,
            "",
            f"Of installs counted live, noise and all, the doubly robust interval holds {counted} "
            f"of {len(runs)}. {problems} of the logs were called too small or broken.",
        ]
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--epsilon", type=float, default=0.5)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="widedeep-off-policy-") as folder:
            run = one_store(seed, arguments.epsilon, arguments.days, Path(folder))
        runs.append(run)
        print(
            f"seed {seed}: live {run['live']:.4f} (counted {run['counted']:.4f}), logged "
            f"{run['logged']:.4f}, "
            + ", ".join(
                f"{name} {run[name]['value']:.4f} ({run[name]['low']:.4f} to "
                f"{run[name]['high']:.4f})"
                for name in ESTIMATORS
            )
            + f", ess {run['ess']:.0f}, weights {run['weight_mean']['value']:.2f}, "
            f"{run['problem']}",
            flush=True,
        )
    text = report(runs, arguments.epsilon, arguments.days)
    print(text)
    if arguments.write:
        write_section("off-policy", text)


if __name__ == "__main__":
    main()
