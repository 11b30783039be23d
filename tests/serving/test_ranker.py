"""Ranked lists from a bundle: the very scores of the bundle, in order."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.bundle import models, test_graph
from widedeep.bundle import Bundle, write_bundle
from widedeep.errors import BundleError, ConfigError, DataError, RequestError

SCHEMA = models.schema(item=("app", "price"))
ITEMS = {"app": [*models.APPS, "new"], "price": [0.0, 1.0, None, 3.0, 4.0]}
USER = {"user": "anna", "tags": ["x", "z"], "seen": ["maps"]}
CONTEXT = {"age": 33.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = models.model(SCHEMA)
    return write_bundle(
        tmp_path_factory.mktemp("ranker") / "b",
        schema=SCHEMA,
        weights=models.random_weights(SCHEMA, model),
        model=model,
        metrics={},
        warmup_rows=[],
        config={},
    )


def rows_of(ids: list[str]) -> list[dict[str, Any]]:
    prices = dict(zip(ITEMS["app"], ITEMS["price"], strict=True))
    return [{**USER, **CONTEXT, "app": id_, "price": prices.get(id_)} for id_ in ids]


def test_ids_rank_as_the_bundle_scores(bundle: Bundle) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    ids = ["mail", "nowhere", "new", "maps", "mail", "日本"]
    scores = np.asarray(bundle.score(rows_of(ids)))
    order = sorted(range(len(ids)), key=lambda at: (-scores[at], at))
    ranking = ranker.rank(USER, CONTEXT, ids)
    assert ranking.positions.tolist() == order
    assert ranking.items == [ids[at] for at in order]
    assert np.array_equal(ranking.scores, scores[order])
    assert ranking.unknown.tolist() == [ids[at] == "nowhere" for at in order]
    assert ranker.rank(USER, CONTEXT, ids, k=2).items == ranking.items[:2]


def test_inline_items_rank_as_catalogued_ones(bundle: Bundle) -> None:
    by_id = wd.Ranker(bundle, items=ITEMS, item_id="app").rank(USER, CONTEXT, ITEMS["app"])
    inline = wd.Ranker(bundle, item_id="app").rank(USER, CONTEXT, ITEMS)
    assert inline.items == by_id.items
    assert np.array_equal(inline.scores, by_id.scores)
    assert inline.catalogue_version is None and by_id.catalogue_version


def test_no_candidates_give_an_empty_ranking(bundle: Bundle) -> None:
    for candidates in ([], {}, {"app": []}):
        ranking = wd.Ranker(bundle).rank(USER, CONTEXT, candidates)
        assert ranking.items == [] and len(ranking.scores) == 0


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("k", {"k": -1}),
        ("head", {"head": "clicks"}),
        ("candidates[1]", {"candidates": ["maps", None]}),
        ("candidates", {"candidates": "maps"}),
        ("candidates.age", {"candidates": {"app": ["maps"], "age": [3]}}),
        ("candidates.price", {"candidates": {"app": ["maps"], "price": [3, 4]}}),
        ("user.price", {"user": {"price": 3}}),
        ("context.user", {"context": {"user": "bo"}}),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    bundle: Bundle, field: str, request_: dict[str, Any]
) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    with pytest.raises(RequestError) as error:
        ranker.rank(**{"user": USER, "context": CONTEXT, "candidates": ["maps"]} | request_)
    assert error.value.where == field


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("context.age", {"context": {"age": "old"}}),
        ("user.tags", {"user": {"user": "bo", "tags": [{}]}}),
        ("candidates.price[1]", {"candidates": {"app": ["maps", "mail"], "price": [1, "x"]}}),
        ("candidates[0]", {"candidates": [["maps"]]}),
        ("candidates[2]", {"candidates": ["maps", "mail", 2.5]}),
    ],
)
def test_a_value_that_does_not_fit_its_feature_is_named(
    bundle: Bundle, field: str, request_: dict[str, Any]
) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    with pytest.raises(RequestError) as error:
        ranker.rank(**{"user": USER, "context": {}, "candidates": ["maps"]} | request_)
    assert error.value.where == field and str(error.value).startswith(f"{field}: ")


def test_lists_that_are_not_parallel_are_told_as_they_came(tmp_path: Path) -> None:
    features = [
        *wd.categorical("app", table="app"),
        *wd.categorical("seen", table="app", combiner=None, maxlen=3),
        *wd.numeric("seconds", parallel="seen", maxlen=3),
    ]
    spec = wd.FeatureSpec(label="y", features=features, item=["app"], wide=["app"])
    rows = [{"app": "ab"[n % 2], "seen": ["a"], "seconds": [1.0], "y": n % 2} for n in range(40)]
    model = wd.WideDeep(wd.fit_schema(spec, rows), deep="din", embedding_dim=2)
    ranker = wd.Ranker(wd.Trainer(model, progress=False).export(tmp_path / "bundle"))
    request = {"seen": ["a", "b"], "seconds": [1.0]}
    with pytest.raises(RequestError, match=r"^user: .* got a list of 1 in column 'seconds' and"):
        ranker.rank(request, candidates={"app": ["a"]})


def test_unknown_ids_are_refused_on_demand(bundle: Bundle) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app", unknown_items="refuse")
    with pytest.raises(RequestError, match="'nowhere'") as error:
        ranker.rank(USER, CONTEXT, ["maps", "nowhere"])
    assert error.value.where == "candidates[1]"
    with pytest.raises(ConfigError, match="did you mean 'refuse'"):
        wd.Ranker(bundle, unknown_items="refused")  # type: ignore[arg-type]


def test_what_is_absent_is_told(bundle: Bundle) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    assert ranker.rank(USER, CONTEXT, ["maps"]).absent == {}
    assert ranker.rank({"user": "bo", "tags": []}, None, ["maps"]).absent == {"age": 1, "seen": 1}
    inline = ranker.rank(USER, CONTEXT, {"app": ["maps", "mail"]})
    assert inline.absent == {"price": 2}


def test_explanations_are_those_of_the_bundle(bundle: Bundle) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    ids = ["mail", "nowhere", "new"]
    ranking = ranker.rank(USER, CONTEXT, ids, explain=True, k=2)
    expected = [bundle.explain(rows_of(ids)[at]) for at in ranking.positions]
    assert ranking.explanations == tuple(expected)
    assert [e.score[""] for e in expected] == ranking.scores.tolist()


def test_another_catalogue_takes_over_at_once(bundle: Bundle) -> None:
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    tables = [
        wd.Catalogue.read(ITEMS | {"price": [price] * 5}, id_column="app", version=str(price))
        for price in (0.0, 50.0)
    ]
    expected = {
        c.version: wd.Ranker(bundle, items=c).rank(USER, CONTEXT, ITEMS["app"]).scores.tolist()
        for c in tables
    }
    assert expected["0.0"] != expected["50.0"]
    ranker.replace_catalogue(tables[0])
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for catalogue in reversed(tables):
                ranker.replace_catalogue(catalogue)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen: set[str | None] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:
            ranking = ranker.rank(USER, CONTEXT, ITEMS["app"])
            assert ranking.scores.tolist() == expected[str(ranking.catalogue_version)]
            seen.add(ranking.catalogue_version)
    finally:
        stop.set()
        thread.join()
    assert seen == {"0.0", "50.0"}
    with pytest.raises(DataError, match="no column 'price'"):
        ranker.replace_catalogue({"app": ["maps"]})
    assert ranker.catalogue in tables


def test_a_catalogue_in_bfloat16_is_near(bundle: Bundle) -> None:
    exact = wd.Ranker(bundle, items=ITEMS, item_id="app")
    half = wd.Ranker(bundle, items=ITEMS, item_id="app", precision="bfloat16")
    one, other = (r.rank(USER, CONTEXT, ITEMS["app"]) for r in (exact, half))
    scores = dict(zip(other.items, other.scores, strict=True))
    differences = [abs(scores[i] - s) for i, s in zip(one.items, one.scores, strict=True)]
    assert 0 < max(differences) < 5e-3


def test_an_exported_graph_is_served_row_by_row(tmp_path: Path) -> None:
    bundle = test_graph.write(tmp_path)
    ranker = wd.Ranker(bundle, items=ITEMS, item_id="app")
    assert ranker.engine == "row by row"
    ids = ["mail", "nowhere", "new", "mail"]
    scores = np.asarray(bundle.score(rows_of(ids)))
    ranking = ranker.rank(USER, CONTEXT, ids)
    order = np.argsort(-scores, kind="stable")
    assert np.array_equal(ranking.positions, order)
    np.testing.assert_allclose(ranking.scores, scores[order], rtol=1e-6)
    with pytest.raises(BundleError, match="precision"):
        wd.Ranker(bundle, precision="bfloat16")


def test_without_features_of_the_item_what_comes_with_it_is_its(tmp_path: Path) -> None:
    schema = models.schema(item=())
    model = models.model(schema)
    bundle = write_bundle(
        tmp_path / "b",
        schema=schema,
        weights=models.random_weights(schema, model),
        model=model,
        metrics={},
        warmup_rows=[],
        config={},
    )
    rows = models.rows(20)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "age"}
    scores = np.asarray(bundle.score([row | {"age": 33.5} for row in rows]))
    ranking = wd.Ranker(bundle).rank({}, {"age": 33.5}, columns)
    assert np.array_equal(ranking.scores, np.sort(scores)[::-1])
    assert ranking.absent == {}
    with pytest.raises(RequestError, match="given with the items"):
        wd.Ranker(bundle).rank({"user": "bo"}, None, columns)
