"""POST /v1/recommend: what is retrieved is what is ranked, by the same scores as /v1/rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.serving.http.calls import Local
from tests.serving.versions import ITEMS, USER, publish, write_items
from tests.two_tower_shop import CATALOGUE, trained
from widedeep.bundle import Bundle
from widedeep.serving.http import Settings
from widedeep.serving.registry import Registry
from widedeep.serving.retrieval import Retriever


@pytest.fixture
def shop(registry: Registry) -> Local:
    settings = Settings(request_log="none", popularity="price", category="price")
    return Local({"apps": registry}, settings=settings)


def test_the_popular_are_ranked_as_rank_does(shop: Local) -> None:
    found = shop.post("/v1/recommend", {"user": USER, "n": 4, "k": 3, "request_id": "r"}).json
    dearest = ITEMS[::-1][:4]
    ranked = shop.post("/v1/rank", {"user": USER, "candidates": dearest, "k": 3}).json
    assert (found["items"], found["scores"]) == (ranked["items"], ranked["scores"])
    assert (found["model_version"], found["request_id"]) == ("1", "r")
    assert found["catalogue_version"] == ranked["catalogue_version"]


def test_rules_and_neighbours(shop: Local) -> None:
    body = {"user": USER, "n": 50, "k": 50, "where": {"price": {"min": 1, "max": 4}}}
    assert set(shop.post("/v1/recommend", body).json["items"]) == set(ITEMS[1:5])
    body["exclude"] = ITEMS[1:3]
    assert set(shop.post("/v1/recommend", body).json["items"]) == set(ITEMS[3:5])
    like = {"user": USER, "n": 4, "k": 4, "like": [ITEMS[-1]], "exclude": [ITEMS[-1]]}
    found = shop.post("/v1/recommend", like).json["items"]
    assert len(set(found)) == 4
    assert ITEMS[-1] not in found
    assert shop.post("/v1/recommend", {"n": 0}).json["items"] == []


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"where": {"prise": 1}}, 400, "/where/prise"),
        ({"where": {"price": "x"}}, 400, "/where/price"),
        ({"vector": [1.0]}, 400, "/vector"),
        ({"n": -1}, 400, "/n"),
        ({"n": 1 << 40}, 413, "/n"),
        ({"most_of_each": -1}, 400, "/most_of_each"),
        ({"like": [[1]]}, 400, "/like/0"),
        ({"user": {"age": "old"}}, 400, "/user/age"),
        ({"candidates": ["a"]}, 400, None),
    ],
)
def test_what_cannot_be_asked(
    shop: Local, body: dict[str, Any], status: int, pointer: str | None
) -> None:
    answer = shop.post("/v1/recommend", body)
    assert answer.status == status, answer.body
    assert pointer is None or answer.json["pointer"] == pointer


def test_without_a_catalogue(apps: Path) -> None:
    with Registry(apps) as registry:
        assert registry.wait_ready(60)
        answer = Local({"apps": registry}).post("/v1/recommend", {"user": USER})
    assert answer.status == 400
    assert "--items" in answer.json["error"]


def test_the_version_that_retrieved_ranks_whatever_is_served_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1", "2"):
        publish(tmp_path / "apps", version, seed=int(version))
    items = write_items(tmp_path / "items.parquet")
    with Registry(tmp_path / "apps", items=items, item_id="app", poll_s=0.05) as registry:
        assert registry.wait_ready(60)
        find = Retriever.find

        def find_slowly(*asked: Any, **options: Any) -> Any:
            assert registry.rollback(wait_s=60) == "1"
            return find(*asked, **options)

        monkeypatch.setattr(Retriever, "find", find_slowly)
        answer = Local({"apps": registry}).post("/v1/recommend", {"user": USER})
    assert (answer.status, answer.json["model_version"]) == (200, "2"), answer.body


def test_two_towers_propose_and_what_they_could_not_is_said(tmp_path: Path) -> None:
    trained(1500).export(tmp_path / "shop" / "1", items=CATALOGUE)
    pq.write_table(CATALOGUE, tmp_path / "items.parquet")
    items = tmp_path / "items.parquet"
    with Registry(tmp_path / "shop", items=items, item_id="item") as registry:
        assert registry.wait_ready(60)
        settings = Settings(request_log="none", popularity="stock")
        local = Local({"shop": registry}, settings=settings)
        answer = local.post("/v1/recommend", {"user": {"user": "u2"}, "n": 6, "k": 6}).json
        assert answer["retrieved"] == {"by": "two towers", "near": 6, "popular": 0}
        bundle = Bundle.load(tmp_path / "shop" / "1", verify=False)
        shop = Retriever(CATALOGUE, id_column="item", bundle=bundle)
        assert set(answer["items"]) == set(shop.retrieve(6, query={"user": "u2"}))
        popular = local.post("/v1/recommend", {"n": 3, "k": 3}).json
        assert popular["retrieved"] == {"by": "popularity", "near": 0, "popular": 3}
        assert set(popular["items"]) == {"i23", "i22", "i21"}
        away = local.post("/v1/recommend", {"like": ["gone", "i1"], "exclude": ["sold"]}).json
        assert away["retrieved"]["unknown"] == 2
        wrong = local.post("/v1/recommend", {"context": {"age": "x"}})
        assert (wrong.status, wrong.json["pointer"]) == (400, "/context/age")
