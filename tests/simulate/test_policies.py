"""Policies that ask models: in this process, over HTTP, and in an A/B test."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.cli.simulate import simulate_store
from widedeep.errors import ConfigError, RequestError
from widedeep.join import (
    ActionLog,
    ImpressionLog,
    join_actions,
    load_join_config,
    run_join,
)
from widedeep.serving.exploration import Exploration
from widedeep.simulate import (
    AppStore,
    Explore,
    Model,
    Popularity,
    Random,
    Ranked,
    Requests,
    Server,
    Split,
)
from widedeep.simulate.config import StoreConfig
from widedeep.simulate.declaration import app_store_spec
from widedeep.simulate.traffic import Traffic

CONFIG = StoreConfig(users=1000, apps=120, requests_per_day=250, candidates=20, shown=5)
TRAINING_DAYS = 12


def labelled(traffic: Traffic) -> pa.Table:
    """Label impressions in memory: what a user installed stood in his last impression of it."""
    taken = set(
        zip(*(traffic.actions[name].to_pylist() for name in ("user_id", "item_id")), strict=True)
    )
    shown = zip(
        *(traffic.impressions[name].to_pylist() for name in ("user_id", "item_id")), strict=True
    )
    label = pa.array([int(pair in taken) for pair in shown])
    return traffic.impressions.append_column("label", label)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model") / "bundle"
    examples = labelled(AppStore(CONFIG).run(Random(), TRAINING_DAYS))
    spec = app_store_spec().replace(group=None)
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, examples), hidden_units=[8], embedding_dim=4),
        progress=False,
    )
    trainer.fit(examples, epochs=2)
    trainer.export(place)
    return place


@contextlib.contextmanager
def serving(bundle: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the bundle with the store's catalogue; its log is in `folder / "log"`."""
    pq.write_table(AppStore(CONFIG).catalogue(), folder / "items.parquet")
    words = ["serve", f"store={bundle}", "--http", ":0", "--json", "--log", str(folder / "log")]
    words += ["--items", str(folder / "items.parquet"), "--item-id", "app"]
    command = [sys.executable, "-m", "widedeep", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            yield json.loads(said)["http"], process
        finally:
            process.terminate()


def test_a_model_does_better_than_chance_and_shows_what_it_ranks_first(bundle: Path) -> None:
    policy = Split({"model": Model(bundle), "random": Random()})
    traffic = AppStore(CONFIG).run(policy, 2)
    sums = traffic.requests.group_by("arm").aggregate([("expected", "sum"), ("best", "sum")])
    share = {row["arm"]: row["expected_sum"] / row["best_sum"] for row in sums.to_pylist()}
    assert share["model"] > 1.15 * share["random"]
    # What was logged is what was scored: best first, by the features of the log.
    shown = traffic.impressions
    shown = shown.filter(pc.equal(shown["arm"], "model"))
    score = wd.Bundle.load(bundle).score(shown).reshape(-1, 5)
    assert (np.diff(score, axis=1) <= 0).all()


def test_a_server_shows_what_the_model_shows_and_its_own_log_joins_the_installs(
    bundle: Path, tmp_path: Path
) -> None:
    with serving(bundle, tmp_path) as (url, process):
        here = AppStore(CONFIG).run(Model(bundle, name="one"), 1)
        there = AppStore(CONFIG).run(Server(url, name="one", wall_clock=False), 1)
        assert here.impressions.equals(there.impressions)
        assert here.actions.equals(there.actions)

        catalogue = tmp_path / "items.parquet"
        begun = time.time()
        traffic = AppStore(CONFIG).run(Server(url, catalogue=catalogue, connections=1), 2)
        process.terminate()
        process.wait(60)
    logged = [pq.read_table(path) for path in (tmp_path / "log").glob("*/*.parquet")]
    shown = pa.concat_tables(logged)
    after = pa.scalar(int(begun * 1e6), pa.int64()).cast(pa.timestamp("us", "UTC"))
    shown = shown.filter(pc.greater_equal(shown["event_time"], after))
    assert shown.num_rows == traffic.impressions.num_rows
    result = join_actions(
        ImpressionLog(path=shown, position="position"),
        ActionLog(path=traffic.actions, kind="kind"),
        output=tmp_path / "examples",
        window="1h",
        open_windows="keep",
    )
    found = result.manifest["counts"]["labels"]["label"]
    assert found["actions"] == traffic.actions.num_rows > 0
    assert (found["orphaned"], found["late"]) == (0, 0)


class ByTheClock(Random):
    """A policy that says when it answered."""

    def rank(self, requests: Requests) -> Ranked:
        ranked = super().rank(requests)
        return replace(ranked, time_R=np.full(len(requests), int(time.time() * 1e6)))


def test_one_arm_by_the_clock_sets_the_clock_of_the_log() -> None:
    before = time.time()
    shown = AppStore(CONFIG).run(Split({"a": ByTheClock(), "b": Popularity()}), 1).impressions
    times = shown["event_time"].cast(pa.int64()).to_numpy() / 1e6
    assert set(shown["arm"].to_pylist()) == {"a", "b"}
    assert before <= times.min() <= times.max() <= time.time()


def test_logs_by_the_clock_are_joined_though_no_window_has_closed(tmp_path: Path) -> None:
    found = simulate_store(tmp_path / "clock", ByTheClock(), config=CONFIG, days=2)
    result = run_join(load_join_config(tmp_path / "clock" / "join.toml"))
    assert sum(result.rows.values()) == found.impressions
    simulate_store(tmp_path / "own", Random(), config=CONFIG, days=1)
    assert load_join_config(tmp_path / "own" / "join.toml").open_windows == "drop"


def test_a_model_that_explores_logs_propensities(bundle: Path) -> None:
    policy = Model(bundle, exploration=Exploration(epsilon=0.4))
    traffic = AppStore(CONFIG).run(policy, 1)
    plain = AppStore(CONFIG).run(Model(bundle), 1)
    propensity = traffic.impressions["propensity"].to_numpy()
    best = 0.4 / CONFIG.candidates + 0.6
    assert set(propensity.round(12)) == {0.4 / CONFIG.candidates, round(best, 12)}
    # Where a list is the model's own, so are its propensities; first day, same requests.
    same = np.array(traffic.impressions["item_id"]) == np.array(plain.impressions["item_id"])
    np.testing.assert_array_equal(propensity > 0.5, same)
    assert 0.5 < same.mean() < 0.7
    assert plain.impressions["propensity"].null_count == plain.impressions.num_rows
    drawn = AppStore(CONFIG).run(Random(), 1).impressions["propensity"].to_numpy()
    assert set(drawn) == {1 / CONFIG.candidates}


def test_exploration_draws_a_share_of_the_requests_and_says_so() -> None:
    shown = AppStore(CONFIG).run(Explore(Popularity(noise=0), 0.3), 4).impressions
    names = np.array(shown["policy"].to_pylist())
    assert set(names) == {"popularity", "random"}
    assert 0.25 < (names == "random").mean() < 0.35
    assert set(shown["arm"].to_pylist()) == {"popularity"}


def test_a_server_that_is_not_there_is_an_error_and_so_is_no_url() -> None:
    with pytest.raises(RequestError, match="got no answer"):
        AppStore(CONFIG).run(Server("http://127.0.0.1:9"), 1)
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        Server("127.0.0.1:80")
    with pytest.raises(ConfigError, match="at least one arm"):
        Split({})
    with pytest.raises(ConfigError, match="0 <= rate <= 1"):
        Explore(Random(), 2)
