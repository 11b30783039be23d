"""Does retraining pay: the second week of a store, under a model retrained each night and without.

A store (one a seed) lives for a week by popularity; a model is trained on its logs, passes the gate
and is published. In the second week half of the users are ranked for by that model, frozen, and
half by the newest version: each night the day's logs of both are joined, the model is trained on
from where it stopped, judged against the version in service on the newest fifth of the day, and
published if the gate lets it pass. Both arms live in the same store at the same time. Every step is
the function behind the verb: join, train --warm-start, validate, publish.

    python benchmarks/bench_retraining.py [--seeds 5] [--days 7] [--requests 8000] [--write]

The stores are those of seeds 1 to 5; choices were made on seed 0.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from results_file import machine, write_section

from widedeep.cli.run_training import train_run
from widedeep.cli.runs import RunDirectory, served_bundle
from widedeep.config import config_from_tables
from widedeep.data.sources import Data
from widedeep.gate import GateConfig, Verdict, validate, verdict_path
from widedeep.join import ActionLog, Label, Split, join_actions
from widedeep.publish import publish
from widedeep.simulate import AppStore, Explore, Model, Popularity, StoreConfig
from widedeep.simulate import Split as Arms
from widedeep.simulate.declaration import APP_STORE_TOML, app_store_spec
from widedeep.simulate.table1 import interval
from widedeep.simulate.traffic import Traffic
from widedeep.training.config import WarmStartConfig

FROZEN, RETRAINED = "frozen", "retrained"
EXPLORE = 0.05
# The newest fifth of a day is its evening, and which apps are shown is the ranker's own choice:
# what moves with either is told and does not decide. That fifth holds some 500 installs, which
# leave sums of predictions uncertain by a few percent.
GATE = GateConfig(
    unit="request_id",
    ignore_drift=("hour", *app_store_spec().item, "position", "user_installed"),
    max_calibration_rise=0.1,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Week:
    """The second week of one store, from the first day on which the arms differ.

    Args:
        requests: By arm.
        installs: By arm, counted.
        expected: By arm: by the true probabilities of what was shown.
        best: By arm: of the best lists of the same candidates.
        variance: By arm: of the installs a request, from users.
        published: Versions in the second week.
        stopped: By the gate.
    """

    requests: dict[str, int]
    installs: dict[str, int]
    expected: dict[str, float]
    best: dict[str, float]
    variance: dict[str, float]
    published: int
    stopped: int

    def rate(self, arm: str) -> float:
        """Return the installs a request."""
        return self.installs[arm] / self.requests[arm]

    def of_the_best(self, arm: str) -> float:
        """Return the share of the best lists' installs that the arm's lists were to bring."""
        return self.expected[arm] / self.best[arm]

    @property
    def counted(self) -> float:
        """How many more installs a request the retrained arm had."""
        return self.rate(RETRAINED) - self.rate(FROZEN)

    @property
    def true(self) -> float:
        """The same in shares of the best."""
        return self.of_the_best(RETRAINED) - self.of_the_best(FROZEN)


class Loop:
    """The nights of one store.

    Args:
        place: Everything is written below it.
        seed: Of the store and of training.
    """

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.seed = place, seed
        self.models = place / "models"
        self.published, self.stopped = 0, 0
        self._last: RunDirectory | None = None
        self._kept: list[str] = []

    def night(self, number: int, logged: Traffic, epochs: int) -> Verdict:
        """Join what was logged, train on from the last model, judge, and publish what passes."""
        joined = join_actions(
            logged.impressions,
            ActionLog(path=logged.actions, kind="kind"),
            labels=[Label(name="label", kinds=["install"], window="1h")],
            split=Split(by="time", fractions=(0.8, 0.0, 0.2)),
            open_windows="keep",
            output=self.place / f"examples-{number}",
        )
        newest = joined.paths("test")
        directory = RunDirectory(self.place / f"run-{number}")
        self._train(directory, [*self._kept, *joined.paths("train")], epochs)
        verdict = self._judge(directory.bundle, newest)
        verdict.save(verdict_path(directory.bundle))
        # What was stopped is learned on all the same: only the traffic is kept from it.
        self._last, self._kept = directory, newest
        if verdict.passed:
            publish(directory.bundle, self.models)
            self.published += 1
        else:
            self.stopped += 1
        return verdict

    def _train(self, directory: RunDirectory, rows: list[str], epochs: int) -> None:
        tables = tomllib.loads(APP_STORE_TOML)
        tables["data"] = {"train": rows, "label": "label", "group": "request_id"}
        tables["train"] |= {"epochs": epochs, "seed": self.seed, "schedule": "linear"}
        warm = None if self._last is None else WarmStartConfig(path=self._last.path)
        train_run(config_from_tables(tables), directory, warm=warm, progress=False)

    def _judge(self, bundle: Path, newest: Data) -> Verdict:
        serving = served_bundle(self.models) if self.published else None
        return validate(bundle, serving, newest, config=GATE, threads=2)

    def newest(self) -> Path:
        """Return the version in service."""
        return served_bundle(self.models)


def live(place: Path, seed: int, days: int, requests_per_day: int, tell: bool) -> Week:
    """Live two weeks of a store."""
    store = AppStore(StoreConfig(seed=seed, requests_per_day=requests_per_day))
    loop = Loop(place, seed)
    verdict = loop.night(0, store.run(Explore(Popularity(), 0.1), 7), epochs=2)
    if not verdict.passed:
        raise SystemExit(f"seed {seed}: the first model was stopped: {verdict.reasons}")
    first = loop.newest()
    found: list[pa.Table] = []
    for day in range(1, days + 1):
        frozen, newest = Model(first, name=FROZEN), Model(loop.newest(), name=RETRAINED)
        arms = Arms({FROZEN: Explore(frozen, EXPLORE), RETRAINED: Explore(newest, EXPLORE)})
        logged = store.run(arms, 1)
        if loop.newest() != first:  # until then both arms are one
            found.append(logged.requests)
        if day < days:
            verdict = loop.night(day, logged, epochs=1)
            if tell:
                told = "; ".join(verdict.reasons) or "published"
                print(f"  seed {seed}, night {day}: {told}", flush=True)
    if not found:
        raise SystemExit(f"seed {seed}: the gate let no model of the second week pass")
    return _week(pa.concat_tables(found), loop)


def _week(requests: pa.Table, loop: Loop) -> Week:
    arm_R = np.array(requests["arm"].to_pylist(), object)
    sums: dict[str, dict[str, float]] = {}
    for arm in (FROZEN, RETRAINED):
        mine = requests.filter(pa.array(arm_R == arm))
        _, users_R = np.unique(mine["user_id"].to_numpy(), return_inverse=True)
        installs_U = np.bincount(users_R, mine["installs"].to_numpy())
        sums[arm] = {
            "requests": mine.num_rows,
            "installs": installs_U.sum(),
            "expected": mine["expected"].to_numpy().sum(),
            "best": mine["best"].to_numpy().sum(),
            "variance": _ratio_variance(installs_U, np.bincount(users_R)),
        }
    columns = {name: {arm: row[name] for arm, row in sums.items()} for name in sums[FROZEN]}
    return Week(published=loop.published - 1, stopped=loop.stopped, **columns)


def _ratio_variance(above_U: NDArray[np.float64], below_U: NDArray[np.int64]) -> float:
    """The variance of a ratio of sums over users (the delta method)."""
    rest_U = above_U - above_U.sum() / below_U.sum() * below_U
    return float((rest_U**2).sum() / below_U.sum() ** 2)


def report(weeks: Sequence[Week], seeds: Sequence[int]) -> str:
    """Return the outcome as Markdown."""
    lines = [
        "| store | installs a request, frozen | retrained | more | of the best, frozen | retrained "
        "| published | stopped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, week in zip(seeds, weeks, strict=True):
        half = 1.96 * math.sqrt(sum(week.variance.values()))
        lines.append(
            f"| {seed} | {week.rate(FROZEN):.4f} | {week.rate(RETRAINED):.4f} "
            f"| {week.counted:+.4f} ± {half:.4f} | {week.of_the_best(FROZEN):.1%} "
            f"| {week.of_the_best(RETRAINED):.1%} | {week.published} | {week.stopped} |"
        )
    lines.append("")
    for told, values, base, unit in (
        (
            "Installs a request, counted",
            [week.counted for week in weeks],
            fmean(week.rate(FROZEN) for week in weeks),
            "{:+.4f} ± {:.4f}",
        ),
        (
            "Share of the best lists' installs, by the true probabilities",
            [week.true for week in weeks],
            fmean(week.of_the_best(FROZEN) for week in weeks),
            "{:+.2%} ± {:.2%}",
        ),
    ):
        mean = fmean(values)
        text = unit.format(mean, interval(values) if len(values) > 1 else math.nan)
        half = interval(values) if len(values) > 1 else math.inf
        verdict = "excludes" if abs(mean) > half else "includes"
        lines.append(
            f"{told}: {text} ({mean / base:+.1%}; 95 % interval, Student's over {len(values)} "
            f"stores, {verdict} zero)."
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=7, help="of the second week")
    parser.add_argument("--requests", type=int, default=8000, help="a day")
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    weeks = []
    for seed in seeds:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="widedeep-retraining-") as folder:
            week = live(Path(folder), seed, arguments.days, arguments.requests, tell=True)
        weeks.append(week)
        print(
            f"seed {seed}: {week.counted:+.4f} installs a request, {week.true:+.2%} of the best, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    text = report(weeks, list(seeds))
    print(text)
    if arguments.write:
        write_section(
            "retraining",
            "## Retraining, live\n\n"
            f"`benchmarks/bench_retraining.py` on {machine()}: the days of the second week from "
            f"the first retrained model on, {arguments.requests:,} requests a day.\n\n{text}",
        )


if __name__ == "__main__":
    main()
