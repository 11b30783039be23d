"""Ranked lists from a bundle: the very scores of the bundle, in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.bundle import models
from widedeep.bundle import Bundle, write_bundle
from widedeep.errors import RequestError

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
