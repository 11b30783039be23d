"""The verb `simulate`: simulates days of an app store and writes their logs."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep.cli.options import add_fields, field_values
from widedeep.cli.output import number, print_json, print_next, print_table, print_text, say
from widedeep.cli.parser import EXIT_OK, VerbParser, positive, share
from widedeep.errors import ConfigError
from widedeep.simulate import (
    AppStore,
    Explore,
    Model,
    Oracle,
    Policy,
    Popularity,
    Random,
    Server,
    Split,
    StoreConfig,
)
from widedeep.simulate.declaration import APP_STORE_TOML, JOIN_TOML
from widedeep.simulate.store import load_store, save_store
from widedeep.simulate.traffic import Traffic, attribute_tables, midnight

EXAMPLE = (
    "  widedeep simulate week1                        # ranked by popularity: no model yet\n"
    "  widedeep join week1/join.toml && widedeep train week1/app_store.toml\n"
    "  widedeep simulate week2 --resume week1 --policy old=popularity "
    "--policy new=runs/app_store/bundle"
)
NEXT = "widedeep join week1/join.toml"

_PLAIN: dict[str, Callable[[], Policy]] = {
    "popularity": Popularity,
    "random": Random,
    "oracle": Oracle,
}

_STORE = {
    "seed": "--seed N",
    "users": "--users N",
    "apps": "--apps N",
    "requests_per_day": "--requests N",
    "memorisation": "--memorisation X",
    "generalisation": "--generalisation X",
    "drift": "--drift X",
}
STATE = "store.npz"
CATALOGUE = "catalogue.parquet"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("folder FOLDER", "folder for the logs")
    parser.option("--days N", "days to simulate", type=positive, default=7)
    parser.option(
        "--policy [ARM=]POLICY",
        "ranking policy: popularity (default), random, oracle, the folder of a bundle, or the URL "
        "of a server; may be repeated, to split the users equally",
        action="append",
        default=[],
    )
    parser.option(
        "--explore FRACTION",
        "fraction of requests to rank in random order",
        type=share,
        default=0.0,
    )
    parser.option("--resume FOLDER", "folder of an earlier simulation to continue")
    parser.option("--catalogue FILE", "catalogue file of a server, to update every night")
    add_fields(parser.add_argument_group("a new store"), StoreConfig(), _STORE)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    result = simulate_store(
        Path(arguments.folder),
        arms_policy(
            arguments.policy or ["popularity"],
            explore=arguments.explore,
            catalogue=None if arguments.catalogue is None else Path(arguments.catalogue),
        ),
        config=_store(arguments),
        resume=None if arguments.resume is None else Path(arguments.resume),
        days=arguments.days,
        on_day=lambda done: say(f"day {done} of {arguments.days}"),
    )
    if arguments.json:
        print_json({**dataclasses.asdict(result), "folder": str(result.folder)})
    else:
        _print(result)
    return EXIT_OK


def _store(arguments: argparse.Namespace) -> StoreConfig:
    options = field_values(arguments, _STORE)
    if options and arguments.resume is not None:
        names = ", ".join(_STORE[name].split()[0] for name in options)
        raise ConfigError(
            f"got {names} with --resume, which continues an existing store; leave it out"
        )
    return StoreConfig(**options)


def _print(result: Simulated) -> None:
    rows = [
        [
            arm,
            f"{int(metrics['requests']):,}",
            number(metrics["installs_a_request"]),
            f"{metrics['of_the_best']:.1%}",
        ]
        for arm, metrics in result.arms.items()
    ]
    headings = ["arm", "requests", "installs a request", "of the best policy's"]
    print_table(headings, rows, right=headings[1:])
    rate = result.installs / max(1, result.impressions)
    print_text(
        f"\n{result.impressions:,} impressions, {result.installs:,} installs ({rate:.2%}) in "
        f"{result.days} days; ten apps hold {result.top_share:.0%} of the installs"
    )
    print_text(
        f"wrote {result.folder}; once joined, 'widedeep train' takes its own declaration too, "
        f"{result.folder / 'app_store.toml'}"
    )
    print_next("join", result.folder / "join.toml")


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Totals of the simulated days."""

    folder: Path  # Folder of the logs
    first_day: int  # Number of the first day, from 0
    days: int  # Number of days
    impressions: int  # Shown apps
    installs: int  # Installed apps
    top_share: float  # Fraction of the installs of the ten most installed apps
    # By arm: requests, installs per request, fraction of the best policy's expected installs
    arms: dict[str, dict[str, float]]
    seconds: float  # Elapsed time


def named_policy(text: str, *, catalogue: Path | None = None) -> Policy:
    """Return the policy that a word stands for."""
    if text in _PLAIN:
        return _PLAIN[text]()
    if text.startswith(("http://", "https://")):
        return Server(text, catalogue=catalogue)
    if Path(text).is_dir():
        return Model(text, name=Path(text).name)
    raise ConfigError(
        f"got the policy {text!r}, expected {', '.join(_PLAIN)}, the URL of a server, or the "
        "folder of a bundle"
    )


def arms_policy(texts: list[str], *, explore: float = 0.0, catalogue: Path | None = None) -> Policy:
    """Return one policy, or an A/B test of several, each ``[ARM=]POLICY``."""
    arms: dict[str, Policy] = {}
    for text in texts:
        name, named, policy_text = text.partition("=")
        if not named or "/" in name:
            name, policy_text = "", text
        policy = named_policy(policy_text, catalogue=catalogue)
        if explore:
            policy = Explore(policy, explore)
        arm = name or policy.name
        if arm in arms:
            raise ConfigError(f"got two arms named {arm!r}; name them apart: --policy ARM=POLICY")
        arms[arm] = policy
    # A split of one arm names it in the logs.
    return Split(arms)


def simulate_store(
    folder: Path,
    policy: Policy,
    *,
    config: StoreConfig | None = None,
    resume: Path | None = None,
    days: int = 7,
    on_day: Callable[[int], None] | None = None,
) -> Simulated:
    """Live some days, and write logs, catalogue, configurations and the store's state."""
    started = time.perf_counter()
    store = AppStore(config) if resume is None else load_store(resume / STATE)
    if resume is None and (folder / STATE).exists():
        raise ConfigError(
            f"{folder}: already holds the logs of a store; choose another folder, or continue that "
            f"store with --resume {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    first = store.world.day
    parts = []
    for done in range(1, days + 1):
        name = f"day{store.world.day:04d}"
        _write_attributes(store, folder, name)  # as they are at midnight, before the day
        parts.append(store.run(policy, 1))
        parts[-1].write(folder, name)
        if on_day is not None:
            on_day(done)
    pq.write_table(store.catalogue(), folder / CATALOGUE)
    (folder / "join.toml").write_text(_join_text(store, parts), encoding="utf-8")
    (folder / "app_store.toml").write_text(APP_STORE_TOML, encoding="utf-8")
    save_store(store, folder / STATE)
    return _totals(folder, first, parts, time.perf_counter() - started)


def _join_text(store: AppStore, parts: list[Traffic]) -> str:
    """Return the join's configuration; by a server's clock no window closes before the end."""
    last = pc.max(parts[-1].impressions["event_time"].cast(pa.int64())).as_py()
    if store.config.start_us <= last < midnight(store.world):
        return JOIN_TOML
    return JOIN_TOML.replace("[join]\n", '[join]\nopen_windows = "keep"\n')


def _write_attributes(store: AppStore, folder: Path, name: str) -> None:
    for kind, table in attribute_tables(store.world).items():
        (folder / kind).mkdir(exist_ok=True)
        pq.write_table(table, folder / kind / f"{name}.parquet")


def _totals(folder: Path, first: int, parts: list[Traffic], seconds: float) -> Simulated:
    installed = pa.concat_tables([traffic.actions.select(["item_id"]) for traffic in parts])
    counts = np.sort(pc.value_counts(installed["item_id"]).field("counts").to_numpy())
    requests = pa.concat_tables([traffic.requests for traffic in parts])
    return Simulated(
        folder=folder,
        first_day=first,
        days=len(parts),
        impressions=sum(traffic.impressions.num_rows for traffic in parts),
        installs=installed.num_rows,
        top_share=float(counts[-10:].sum() / max(1, counts.sum())),
        arms=_arms(requests),
        seconds=seconds,
    )


def _arms(requests: pa.Table) -> dict[str, dict[str, float]]:
    sums = requests.group_by("arm").aggregate(
        [("installs", "sum"), ("expected", "sum"), ("best", "sum"), ("installs", "count")]
    )
    return {
        row["arm"]: {
            "requests": row["installs_count"],
            "installs_a_request": row["installs_sum"] / row["installs_count"],
            "of_the_best": row["expected_sum"] / row["best_sum"],
        }
        for row in sorted(sums.to_pylist(), key=lambda row: str(row["arm"]))
    }
