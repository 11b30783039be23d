"""The store: its shapes, its randomness, and logs that are what the truth says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from widedeep.errors import ConfigError, DataError
from widedeep.join import load_join_config, run_join
from widedeep.metrics import calibration
from widedeep.simulate import AppStore, Explore, Oracle, Popularity, Random, Split, StoreConfig
from widedeep.simulate.click_model import attention
from widedeep.simulate.config import MOST_INSTALLED
from widedeep.simulate.declaration import JOIN_TOML
from widedeep.simulate.store import load_store, save_store
from widedeep.simulate.traffic import Traffic

SMALL = StoreConfig(users=3000, apps=200, requests_per_day=1500, new_users_per_day=40)


@pytest.fixture(scope="module")
def week() -> Traffic:
    return AppStore(StoreConfig(requests_per_day=6000)).run(Popularity(), days=3)


def test_ten_apps_hold_about_a_third_and_few_impressions_are_installed(week: Traffic) -> None:
    def top_share(table: pa.Table) -> float:
        counts = np.sort(pc.value_counts(table["item_id"]).field("counts").to_numpy())
        return float(counts[-10:].sum() / counts.sum())

    assert 0.2 < top_share(week.impressions) < 0.4
    assert 0.25 < top_share(week.actions) < 0.45
    assert 0.005 < week.actions.num_rows / week.impressions.num_rows < 0.05
    assert week.impressions.num_rows == 3 * 6000 * 10


def test_installs_are_as_many_as_the_true_probabilities_say(week: Traffic) -> None:
    keys = ["request_id", "item_id"]
    installed = week.actions.num_rows
    expected = pc.sum(week.truth["probability"]).as_py()
    assert abs(installed - expected) < 4 * np.sqrt(expected)
    # In each fifth of the probabilities apart, and place by place.
    joined = pa.concat_tables([week.truth.append_column("position", week.impressions["position"])])
    assert joined.select(keys).equals(week.impressions.select(keys))
    taken = set(
        zip(*(week.actions[name].to_pylist() for name in ("user_id", "item_id")), strict=True)
    )
    shown = zip(*(week.impressions[n].to_pylist() for n in ("user_id", "item_id")), strict=True)
    # A user has an app once, so that the last impression of the pair is the one installed.
    label = np.array([pair in taken for pair in shown])
    probability = joined["probability"].to_numpy()
    seen = attention(10)
    assert np.allclose(
        probability, joined["if_seen"].to_numpy() * seen[joined["position"].to_numpy() - 1]
    )
    high = probability > np.quantile(probability, 0.9)
    assert label[high].mean() > 4 * label[~high].mean()


def test_the_same_seed_gives_the_same_logs_and_another_does_not() -> None:
    first, second = (AppStore(SMALL).run(Popularity(), 2) for _ in range(2))
    other = AppStore(replace(SMALL, seed=1)).run(Popularity(), 2)
    assert first.impressions.equals(second.impressions)
    assert first.actions.equals(second.actions)
    assert not first.impressions.equals(other.impressions)


def test_a_stretch_in_two_parts_is_the_stretch_and_so_is_one_saved_between(tmp_path: Path) -> None:
    whole = AppStore(SMALL).run(Popularity(), 3)
    store = AppStore(SMALL)
    before = store.run(Popularity(), 1)
    save_store(store, tmp_path / "store.npz")
    after = load_store(tmp_path / "store.npz").run(Popularity(), 2)
    for name in ("impressions", "actions", "truth", "requests"):
        parts = pa.concat_tables([getattr(before, name), getattr(after, name)])
        assert parts.equals(getattr(whole, name)), name


def test_a_state_that_is_cut_short_or_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    save_store(AppStore(SMALL), tmp_path / "store.npz")
    whole = (tmp_path / "store.npz").read_bytes()
    (tmp_path / "store.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"store\.npz: is no whole state"):
        load_store(tmp_path / "store.npz")
    with pytest.raises(DataError, match="no such file; 'widedeep simulate' writes it"):
        load_store(tmp_path / "nowhere.npz")


def test_the_join_takes_the_logs_and_every_install_finds_its_impression(tmp_path: Path) -> None:
    traffic = AppStore(SMALL).run(Explore(Popularity(), 0.2), 4)
    traffic.write(tmp_path)
    (tmp_path / "join.toml").write_text(JOIN_TOML)
    result = run_join(load_join_config(tmp_path / "join.toml", ["split.by=none"]))
    found = result.manifest["counts"]["labels"]["label"]
    assert found == {"actions": traffic.actions.num_rows, "orphaned": 0, "late": 0}
    examples = pa.concat_tables([pq.read_table(path) for path in result.paths("train")])
    left = result.manifest["counts"]["open_windows_left_out"]
    assert examples.num_rows == traffic.impressions.num_rows - left
    # Examples are calibrated to the truth: it is what they were drawn from.
    truth = {
        (request, item): probability
        for request, item, probability in zip(
            *(traffic.truth[name].to_pylist() for name in ("request_id", "item_id", "probability")),
            strict=True,
        )
    }
    keys = zip(*(examples[name].to_pylist() for name in ("request_id", "item_id")), strict=True)
    score = np.array([truth[key] for key in keys])
    label = examples["label"].to_numpy()
    assert abs(label.sum() - score.sum()) < 4 * np.sqrt(score.sum())
    assert calibration(label, score) == pytest.approx(1, abs=0.25)
    for fifth in np.array_split(np.argsort(score), 5):
        expected = score[fifth].sum()
        assert abs(label[fifth].sum() - expected) < 4 * np.sqrt(expected) + 1
    position = examples["position"].to_numpy()
    for at in range(1, 11):
        expected = score[position == at].sum()
        assert abs(label[position == at].sum() - expected) < 4 * np.sqrt(expected) + 1


def test_nobody_is_shown_what_he_has_and_what_is_installed_is_served_next_time() -> None:
    traffic = AppStore(SMALL).run(Random(), 2)
    rows = traffic.impressions.select(["user_installed", "item_id"]).to_pylist()
    assert all(row["item_id"] not in row["user_installed"] for row in rows)
    assert max(len(row["user_installed"]) for row in rows) <= MOST_INSTALLED
    first = {}
    shown = traffic.impressions.select(["user_id", "event_time", "user_installed"]).to_pylist()
    for row in shown:
        first.setdefault(row["user_id"], []).append(row)
    checked = 0
    for action in traffic.actions.to_pylist():
        for row in first[action["user_id"]]:
            if row["event_time"] > action["event_time"]:
                assert action["item_id"] in row["user_installed"]
                checked += 1
    assert checked > 20


def test_users_and_apps_arrive_and_tastes_drift() -> None:
    store = AppStore(replace(SMALL, new_apps_per_day=2, drift=0.3))
    before = store.world.tastes(store.world.users)
    pairs = store.world.pairs_AA.copy()
    store.run(Popularity(), 5)
    world = store.world
    assert len(world.users) == 3000 + 5 * 40
    assert len(world.apps) == 210
    correlation = np.corrcoef(before.ravel(), world.tastes(world.users)[:3000].ravel())[0, 1]
    assert 0.6 < correlation < 0.95
    # Pairs of old apps stay; new apps have pairs of their own.
    assert (world.pairs_AA[:200, :200] == pairs[:200]).all()
    assert np.count_nonzero(world.pairs_AA[:, 200:])
    assert not world.pairs_AA[-1].any()


def test_the_strengths_switch_the_regularities_off() -> None:
    def spread(**strengths: float) -> float:
        store = AppStore(replace(SMALL, **strengths))
        truth = store.run(Random(), 1).truth["if_seen"].to_numpy()
        return float(np.std(np.log(truth / (1 - truth))))

    neither = spread(memorisation=0, generalisation=0)
    assert spread(memorisation=0) > neither + 0.2
    assert spread(generalisation=0) > neither + 0.1
    assert spread() > spread(memorisation=0) + 0.05


def test_the_oracle_gets_the_best_and_a_split_keeps_its_users_apart() -> None:
    policy = Split({"a": Popularity(), "b": Oracle()}, [1, 2])
    requests = AppStore(SMALL).run(policy, 2).requests
    arms = requests.group_by("user_id").aggregate([("arm", "count_distinct")])
    assert set(arms["arm_count_distinct"].to_pylist()) == {1}
    found = {
        row["arm"]: row
        for row in requests.group_by("arm")
        .aggregate([("expected", "sum"), ("best", "sum"), ("expected", "count")])
        .to_pylist()
    }
    assert found["b"]["expected_sum"] == pytest.approx(found["b"]["best_sum"])
    assert found["a"]["expected_sum"] < 0.6 * found["a"]["best_sum"]
    assert found["b"]["expected_count"] == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 3}, "users = 3, expected at least 10"),
        ({"candidates": 5}, "candidates = 5, expected at least 10"),
        ({"apps": 60}, "got apps = 60, expected at least 80"),
        ({"apps": 9000}, "apps = 9000, expected at most 5000"),
        ({"drift": 1.5}, "expected 0 <= drift <= 1"),
        ({"memorisation": -1.0}, "memorisation"),
        ({"start": "yesterday"}, "yesterday"),
    ],
)
def test_a_store_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)
