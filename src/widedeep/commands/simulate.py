"""Live some days in the simulated app store, and write its logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
from widedeep.simulate.saved import load_store, save_store
from widedeep.simulate.traffic import Traffic, attribute_tables, midnight

_PLAIN: dict[str, Callable[[], Policy]] = {
    "popularity": Popularity,
    "random": Random,
    "oracle": Oracle,
}
STATE = "store.npz"
CATALOGUE = "catalogue.parquet"


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a stretch of days came to."""

    folder: Path  # Where the logs are
    first_day: int  # From 0
    days: int  # How many
    impressions: int  # Apps shown
    installs: int  # Of them
    top_share: float  # Share of the installs that the ten most installed apps hold
    # For each arm its requests, installs a request, and the share of the best policy's expected
    # installs that it got
    arms: dict[str, dict[str, float]]
    seconds: float  # Taken


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
        name, named, rest = text.partition("=")
        if not named or "/" in name:
            name, rest = "", text
        policy = named_policy(rest, catalogue=catalogue)
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
            f"{folder}: holds the logs of a store already; name another folder, or let that store "
            f"live on: --resume {folder}"
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
    return _told(folder, first, parts, time.perf_counter() - started)


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


def _told(folder: Path, first: int, parts: list[Traffic], seconds: float) -> Simulated:
    installed = pa.concat_tables([part.actions.select(["item_id"]) for part in parts])
    counts = np.sort(pc.value_counts(installed["item_id"]).field("counts").to_numpy())
    requests = pa.concat_tables([part.requests for part in parts])
    return Simulated(
        folder=folder,
        first_day=first,
        days=len(parts),
        impressions=sum(part.impressions.num_rows for part in parts),
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
