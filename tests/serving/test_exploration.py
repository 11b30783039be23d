"""Exploration: propensities against counted draws, the same draw for a request, log and errors."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import Run
from tests.serving.http.calls import running
from tests.serving.versions import ITEMS, USER, eventually, publish, whole_rows, write_items
from widedeep.bundle.posterior import uncertainty_bundles
from widedeep.errors import BundleError, ConfigError
from widedeep.serving import exploration
from widedeep.serving.exploration import Exploration, Uncertainty


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("explore")
    publish(place / "apps", "1", seed=1)
    write_items(place / "items.parquet")
    return place


def exploring(folder: Path, epsilon: float, seed: int) -> wd.Ranker:
    return wd.Ranker(
        folder / "apps" / "1",
        items=folder / "items.parquet",
        item_id="app",
        exploration=Exploration(epsilon=epsilon, seed=seed),
    )


def test_propensities_are_how_often_an_item_gets_its_position() -> None:
    exploration, n = Exploration(epsilon=0.3, seed=7), 6_000
    scores = np.array([0.2, 0.9, 0.9, np.nan, 0.1])
    counts: Counter[tuple[int, int]] = Counter()
    stated: dict[tuple[int, int], float] = {}
    for number in range(n):
        order, propensities = exploration.draw(scores, 3, f"request {number}")
        for position, (item, propensity) in enumerate(zip(order, propensities, strict=True)):
            counts[int(item), position] += 1
            assert stated.setdefault((int(item), position), propensity) == propensity
    assert len(stated) == 5 * 3, "every item is shown at every position"
    for position in range(3):
        assert sum(stated[item, position] for item in range(5)) == pytest.approx(1)
    for cell, propensity in stated.items():
        spread = 5 * np.sqrt(propensity * (1 - propensity) / n)
        assert counts[cell] / n == pytest.approx(propensity, abs=spread), cell
    # Best first, the earlier of equal ones; no value last.
    assert {cell for cell, p in stated.items() if p > 0.5} == {(1, 0), (2, 1), (0, 2)}


def test_an_item_that_comes_twice_is_as_likely_as_both(folder: Path) -> None:
    ranker, n = exploring(folder, 0.3, 0), 2_000
    counts: Counter[tuple[str, int]] = Counter()
    stated: dict[tuple[str, int], float] = {}
    for number in range(n):
        ranking = ranker.rank(USER, candidates=[*ITEMS[:2], ITEMS[0]], request_id=f"{number}")
        assert ranking.propensities is not None
        for position, item in enumerate(ranking.items):
            counts[item, position] += 1
            propensity = ranking.propensities[position]
            assert stated.setdefault((item, position), propensity) == propensity
    for cell, propensity in stated.items():
        spread = 5 * np.sqrt(propensity * (1 - propensity) / n)
        assert counts[cell] / n == pytest.approx(propensity, abs=spread), cell


def test_a_request_gets_the_same_draw_and_without_an_id_none(folder: Path) -> None:
    first, again, other = (exploring(folder, 0.5, seed) for seed in (0, 0, 1))
    ids = [f"request {number}" for number in range(40)]

    def orders(ranker: wd.Ranker) -> list[list[str]]:
        return [ranker.rank(USER, candidates=ITEMS, k=4, request_id=id_).items for id_ in ids]

    assert orders(first) == orders(again) != orders(other)
    plain = first.rank(USER, candidates=ITEMS)
    assert plain.propensities is None and plain.policy is None
    assert (np.diff(plain.scores) <= 0).all()
    scores = dict(zip(plain.items, plain.scores, strict=True))
    for id_ in ids:
        explored = first.rank(USER, candidates=ITEMS, request_id=id_)
        assert explored.scores.tolist() == [scores[item] for item in explored.items]
        assert explored.items == [ITEMS[position] for position in explored.positions]
    one = first.rank(USER, candidates=ITEMS[:1], request_id="one")
    assert one.propensities is not None and one.propensities.tolist() == [1.0]
    assert len(first.rank(USER, candidates=[], request_id="none").items) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> wd.Bundle:
    """A model of apps of which the last is shown hardly ever."""
    rng = np.random.default_rng(1)
    apps = rng.choice(APPS, 1500, p=[0.4, 0.3, 0.2, 0.09, 0.01])
    data = [
        {"user": f"u{rng.integers(4)}", "app": app, "y": int(rng.random() < 0.1)} for app in apps
    ]
    spec = wd.FeatureSpec(label="y", features=wd.categorical("user", "app"), item=["app"])
    model = wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[6], embedding_dim=4)
    trainer = wd.Trainer(model, wide=wd.FTRL(lr=0.3), progress=False)
    trainer.fit(data, epochs=2)
    return trainer.export(tmp_path_factory.mktemp("t") / "bundle", posterior=data)


APPS = ["a", "b", "c", "d", "rare"]


def test_thompson_sampling_states_how_often_an_item_gets_its_position(trained: wd.Bundle) -> None:
    ranker = wd.Ranker(
        trained,
        items={"app": APPS},
        item_id="app",
        exploration=Exploration(policy="thompson", epsilon=0.1),
    )
    n = 3000
    stated: Counter[tuple[str, int]] = Counter()
    counts: Counter[tuple[str, int]] = Counter()
    for number in range(n):
        ranking = ranker.rank({"user": "u1"}, candidates=APPS, k=2, request_id=f"{number}")
        assert ranking.policy == "thompson" and ranking.propensities is not None
        assert ((ranking.propensities > 0) & (ranking.propensities <= 1)).all()
        for position, item in enumerate(ranking.items):
            counts[item, position] += 1
            stated[item, position] += ranking.propensities[position]
    assert len(counts) == 10
    for cell, count in counts.items():
        # Its own draw counts among the 129: 1 / 129 too many at most.
        assert stated[cell] / count == pytest.approx(count / n, rel=0.15, abs=0.02), cell
    # Inverse propensities of what was shown add up to one for each item.
    plain = ranker.rank({"user": "u1"}, candidates=APPS)
    assert plain.propensities is None
    assert len({item for item, position in counts if position == 0}) == 5


def test_linucb_shows_what_is_uncertain(trained: wd.Bundle) -> None:
    wide, hidden = uncertainty_bundles(trained)
    assert wide is not None and hidden is not None
    batch = trained.encode([{"user": "u1", "app": app} for app in APPS])
    deviations = wide.deviations(wide.bundle.logits(batch))
    variance = deviations[:, 0] + (hidden.logits(batch) ** 2).sum(axis=1)
    most = [APPS[position] for position in np.argsort(-variance)]
    best = wd.Ranker(trained, item_id="app").rank({"user": "u1"}, candidates={"app": APPS}).items
    assert most != best
    known, unseen = {"app": APPS}, {"app": APPS[:4]}
    for scale, expected in ((1e-6, best), (1e6, most)):
        exploration = Exploration(policy="linucb", epsilon=0.01, scale=scale)
        inline, by_id, partly = (
            wd.Ranker(trained, item_id="app", items=items, exploration=exploration)
            for items in (None, known, unseen)
        )
        for number in range(10):
            rankings = [
                inline.rank({"user": "u1"}, candidates={"app": APPS}, request_id=f"{number}"),
                by_id.rank({"user": "u1"}, candidates=APPS, request_id=f"{number}"),
                partly.rank({"user": "u1"}, candidates=APPS, request_id=f"{number}"),
            ]
            for ranking in rankings:
                assert ranking.items == rankings[0].items
                assert ranking.propensities is not None
                if ranking.propensities[0] > 0.5:
                    assert ranking.items == expected
                    assert ranking.propensities[0] == pytest.approx(0.99 + 0.01 / 5)


def test_a_model_without_item_features_explores_row_by_row(trained: wd.Bundle) -> None:
    rows = [{"app": APPS[n % 5], "y": n % 7 == 0} for n in range(300)]
    spec = wd.FeatureSpec(label="y", features=wd.categorical("app"), item=["app"])
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[]), progress=False)
    trainer.fit(rows)
    bundle = trainer.export(trained.path.parent / "wide", posterior=rows)
    assert "hidden" not in bundle.posterior
    ranker = wd.Ranker(bundle, item_id="app", exploration=Exploration(policy="thompson"))
    orders = {
        tuple(ranker.rank({}, candidates={"app": APPS}, request_id=f"{n}").items) for n in range(30)
    }
    assert len(orders) > 1


def test_a_bundle_without_a_posterior_is_refused_before_serving(run: Run, folder: Path) -> None:
    with pytest.raises(BundleError, match="without the posterior of its last layer"):
        wd.Ranker(folder / "apps" / "1", exploration=Exploration(policy="linucb"))
    for models in (folder / "apps", folder / "apps" / "1"):
        ran = run("serve", models, "--http", ":0", "--exploration", "linucb")
        assert ran.code == 2 and "without the posterior of its last layer" in ran.err


def test_a_formula_has_no_uncertainty(trained: wd.Bundle) -> None:
    with pytest.raises(ConfigError, match="policy='thompson' with a formula"):
        wd.Ranker(
            trained, item_id="app", rank_by="y * 2", exploration=Exploration(policy="thompson")
        )


def test_a_server_explores_and_logs_propensities(folder: Path) -> None:
    words = ("--items", folder / "items.parquet", "--item-id", "app")
    explore = ("--exploration", "epsilon", "--epsilon", 0.4, "--exploration-seed", 3)
    log = ("--log", folder / "log", "--log-user", "user")
    ids = [f"request {number}" for number in range(30)]
    with running(folder / "apps", *words, *explore, *log) as server:
        server.wait_ready()
        asked = {"user": USER, "candidates": ITEMS, "k": 5}
        answers = [server.call("POST", "/v1/rank", asked | {"request_id": id_}) for id_ in ids]
        recommended = server.call("POST", "/v1/recommend", {"user": USER, "k": 2}).json
    ranker = exploring(folder, 0.4, 3)
    for id_, answer in zip(ids, answers, strict=True):
        expected = ranker.rank(USER, candidates=ITEMS, k=5, request_id=id_)
        assert expected.propensities is not None
        assert answer.json["items"] == expected.items
        assert answer.json["policy"] == "epsilon"
        assert answer.json["propensities"] == expected.propensities.tolist()
    assert len({tuple(answer.json["items"]) for answer in answers}) > 5
    assert len(recommended["propensities"]) == 2
    eventually(lambda: any((folder / "log").rglob("*.parquet")))
    files = list((folder / "log").rglob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 5 * len(ids) + 2
    logged = {(row["request_id"], row["item_id"]): row for row in rows}
    for id_, answer in zip(ids, answers, strict=True):
        pairs = zip(answer.json["items"], answer.json["propensities"], strict=True)
        for item, propensity in pairs:
            row = logged[id_, item]
            assert (row["policy"], row["propensity"]) == ("epsilon", propensity)
    scores = ranker.bundle.score(whole_rows([row["item_id"] for row in rows]))
    assert [row["score"] for row in rows] == scores.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_an_epsilon_that_is_no_fraction_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="exploration: got epsilon"):
        Exploration(epsilon=epsilon)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--exploration", "epsilon", "--epsilon", 1), "exploration: got epsilon=1"),
        (("--exploration", "greedy"), "got --exploration 'greedy'"),
        (("--epsilon", 0.1), "got --epsilon without --exploration"),
        (("--log-full", "wait"), "got --log-full without --log; add --log DIR"),
        (("--items", "no.parquet", "--item-id", "app"), "no.parquet: no such file; name the Parq"),
        (("--items", "items.parquet", "--item-id", "ap"), "got --item-id 'ap', no column; did you"),
        (
            ("--items", "items.parquet", "--item-id", "app", "--popularity", "stars"),
            "items.parquet: got --popularity 'stars', no column; known: ",
        ),
        (("--tls-certificate", "no.pem"), "no.pem: no such file; name the PEM file of"),
    ],
)
def test_a_server_with_a_wrong_option_does_not_start(
    run: Run,
    folder: Path,
    words: tuple[object, ...],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    ran = run("serve", folder / "apps", "--http", ":0", *words)
    assert ran.code == 2 and error in ran.err


def test_a_model_that_reads_a_column_of_the_log_is_refused(folder: Path) -> None:
    spec = wd.FeatureSpec(label="y", features=wd.categorical("policy", "app"), item=["app"])
    rows = [{"policy": "a", "app": "x", "y": n % 2} for n in range(20)]
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[2]), progress=False)
    bundle = trainer.export(folder / "policy")
    with pytest.raises(ConfigError, match="reads a column 'policy', which the log"):
        wd.Ranker(bundle, item_id="app", exploration=Exploration())


def test_train_and_export_keep_a_posterior_by_the_command_line(run: Run, tmp_path: Path) -> None:
    rows = [{"app": APPS[n % 5], "y": n % 7 // 6, "price": n / 9} for n in range(400)]
    data = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    text = f'[data]\ntrain = "{data}"\nlabel = "y"\n[features]\ncategorical = ["app"]\n'
    text += 'item = ["app"]\n[model]\nhidden_units = [4]\n[train]\nposterior = true\n'
    toml = tmp_path / "apps.toml"
    toml.write_text(text)
    assert run("train", toml, "--out", tmp_path / "run").code == 0
    trained = wd.Bundle.load(tmp_path / "run" / "bundle")
    words = ("export", tmp_path / "run", "-o", tmp_path / "other", "--posterior", data, "--json")
    ran = run(*words)
    assert ran.code == 0, ran.err
    other = wd.Bundle.load(tmp_path / "other")
    for name, values in trained.posterior.items():
        np.testing.assert_array_equal(values, other.posterior[name])
    explored = wd.Ranker(other, item_id="app", exploration=Exploration(policy="linucb"))
    ranking = explored.rank({}, candidates={"app": APPS}, request_id="one")
    assert ranking.policy == "linucb"
    (tmp_path / "new").mkdir()
    follow = ("--resume", "--follow", tmp_path / "new", "--idle", 0.1, "--poll", 0.05)
    ran = run("train", toml, "--out", tmp_path / "run", *follow)
    assert ran.code == 0 and "bundles that follow shards hold none" in ran.err
    # A head without a posterior is told of before training begins.
    other_label = ("--set", "data.label=price", "--set", "model.head=regression")
    ran = run("train", toml, *other_label, "--out", tmp_path / "price")
    assert ran.code == 2 and "as the head that is ranked by" in ran.err
    assert not (tmp_path / "price" / "checkpoints").exists()


@pytest.mark.parametrize("singly", [0, 8])
@pytest.mark.parametrize("k", [None, 0, 1, 3, 7, 8, 99])
def test_the_first_few_are_those_of_a_whole_sort(
    k: int | None, singly: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exploration, "_SORTED_WHOLE", 0)
    monkeypatch.setattr(exploration, "_PICKED_SINGLY", singly)
    rng = np.random.default_rng(0)
    for _ in range(200):
        keys_B = rng.integers(0, 4, 8).astype(float)
        keys_B[rng.random(8) < rng.choice([0.0, 0.3, 1.0])] = np.nan
        whole = np.argsort(-keys_B, kind="stable")[:k]
        assert exploration._first(keys_B[None], k).tolist() == [whole.tolist()]


def test_a_draw_over_many_candidates_takes_memory_for_one_set_of_draws() -> None:
    n, explore = 20_000, Exploration(policy="thompson")
    uncertainty = Uncertainty(variance_B=np.ones(n), hidden_BH=np.ones((n, 8)))
    tracemalloc.start()
    try:
        explore.draw(np.zeros(n), 10, "r", uncertainty)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * 129 * 8 * n
