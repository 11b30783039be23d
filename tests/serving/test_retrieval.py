"""Candidates: popular ones, near ones, and the rules that hold for both."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.bundle import models
from tests.two_tower_shop import CATALOGUE, ITEMS, trained
from widedeep.bundle import Bundle
from widedeep.errors import DataError, FeatureError, RequestError
from widedeep.serving import retrieval
from widedeep.serving.ranker import Ranker
from widedeep.serving.retrieval import EmbeddingIndex, Retriever, item_vectors

RNG = np.random.default_rng(0)


def unit(*shape: int) -> Any:
    drawn = RNG.normal(size=shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def exact(vectors_ND: Any, query_D: Any, k: int, allowed_N: Any = None) -> list[int]:
    products = vectors_ND @ query_D
    if allowed_N is not None:
        products = np.where(allowed_N, products, -np.inf)
    order = np.argsort(-products, kind="stable")[:k]
    return [int(at) for at in order if products[at] > -np.inf]


def engines() -> list[Any]:
    faiss = pytest.param("faiss", id="faiss")
    return [faiss, "numpy"]


@pytest.mark.parametrize("engine", engines())
def test_the_nearest_are_found_with_and_without_a_filter(engine: Any) -> None:
    if engine == "faiss":
        pytest.importorskip("faiss")
    vectors_ND = unit(2000, 16)
    index = EmbeddingIndex(vectors_ND, engine=engine)
    for _ in range(20):
        query_D, allowed_N = unit(16), RNG.random(2000) < 0.1
        for mask in (None, allowed_N):
            found = index.search(query_D, 50, mask).tolist()
            wanted = exact(vectors_ND, query_D, 50, mask)
            assert len(set(found) & set(wanted)) >= (50 if engine == "numpy" else 48)
            assert mask is None or mask[found].all()
    few = np.zeros(2000, bool)
    few[[3, 7]] = True
    assert sorted(index.search(unit(16), 50, few).tolist()) == [3, 7]
    assert index.search(unit(16), 50, np.zeros(2000, bool)).tolist() == []


def test_many_items_are_searched_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval, "EXHAUSTIVE_ITEMS", 5000)
    centres = unit(100, 16)
    vectors_ND = centres[RNG.integers(0, 100, 12_000)] + 0.1 * unit(12_000, 16)
    index = EmbeddingIndex(vectors_ND)
    assert index.engine == "faiss IVF,SQ8"
    recalls = []
    for _ in range(20):
        query_D = vectors_ND[RNG.integers(12_000)]
        mask = RNG.random(12_000) < 0.5
        found = index.search(query_D, 50, mask)
        assert mask[found].all()
        recalls.append(len(set(found.tolist()) & set(exact(vectors_ND, query_D, 50, mask))) / 50)
    assert np.mean(recalls) > 0.9


def items(n: int = 60) -> pa.Table:
    return pa.table(
        {
            "app": [f"app {at}" for at in range(n)],
            "installs": [(at * 37) % n for at in range(n)],
            "kind": [f"kind {at % 4}" for at in range(n)],
            "price": [None if at == 5 else float(at % 10) for at in range(n)],
        }
    )


def test_popular_first_within_the_rules() -> None:
    table = items()
    apps = Retriever(table, id_column="app", popularity="installs", category="kind")
    rows = sorted(table.to_pylist(), key=lambda row: -row["installs"])
    assert apps.retrieve(10) == [row["app"] for row in rows[:10]]
    gone = [row["app"] for row in rows[:3]] + ["no such app"]
    assert apps.retrieve(4, exclude=gone) == [row["app"] for row in rows[3:7]]
    where = {"kind": ["kind 1", "kind 2"], "price": {"min": 2, "max": 6.5}}
    fitting = [
        row["app"]
        for row in rows
        if row["kind"] in where["kind"] and row["price"] is not None and 2 <= row["price"] <= 6.5
    ]
    assert apps.retrieve(100, where=where) == fitting
    assert 0 < len(fitting) < 30
    kinds = table["kind"].cast(pa.string()).dictionary_encode()  # as a file's text is read
    encoded = table.set_column(table.column_names.index("kind"), "kind", kinds)
    read = Retriever(encoded, id_column="app", popularity="installs")
    assert read.retrieve(100, where=where) == fitting
    assert read.retrieve(100, where={"kind": "no such kind"}) == []
    with pytest.raises(RequestError, match=r"where\.kind"):
        read.retrieve(1, where={"kind": 7})
    limited = apps.retrieve(8, most_of_each=2)
    kinds = [int(name.split()[1]) % 4 for name in limited]
    assert sorted(kinds) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert limited == [row["app"] for row in rows if row["app"] in set(limited)]
    assert apps.retrieve(0) == []


WHEN = datetime(2023, 11, 14, 22, 13, 20)


@pytest.mark.parametrize("width", [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(5, 2)])
def test_a_bound_is_the_number_that_the_column_stores(width: pa.DataType) -> None:
    tenths = [Decimal(n) / 10 for n in range(1, 10)]
    prices = pa.array(map(float, tenths)).cast(width) if width != pa.decimal128(5, 2) else tenths
    shop = Retriever(pa.table({"id": range(9), "price": prices}), id_column="id")
    for n in range(9):
        price = (n + 1) / 10
        assert shop.retrieve(9, where={"price": {"min": price}}) == list(range(n, 9))
        assert shop.retrieve(9, where={"price": {"max": price}}) == list(range(n + 1))
        assert shop.retrieve(9, where={"price": price}) == [n]
        assert shop.retrieve(9, where={"price": [price, None, 0.95]}) == [n]
    assert len(shop.retrieve(9, where={"price": {"min": -1e300, "max": 1e300}})) == 9


@pytest.mark.parametrize(
    ("unit", "zone"),
    [("s", None), ("ms", "UTC"), ("us", None), ("ns", "Asia/Tokyo"), ("day", None)],
)
def test_times_are_asked_for_as_models_read_them(unit: str, zone: str | None) -> None:
    kind = pa.date32() if unit == "day" else pa.timestamp(unit, zone)
    days = [WHEN + timedelta(days=n) for n in range(4)]
    values = pa.array(days, pa.timestamp("us")).cast(pa.timestamp("s")).cast(kind)
    shop = Retriever(pa.table({"id": range(4), "out": values}), id_column="id")
    number = values.cast(pa.int32() if unit == "day" else pa.int64())[1].as_py()
    for asked in (number, "2023-11-15T22:13:20Z", "2023-11-16T07:13:20+09:00"):
        assert shop.retrieve(4, where={"out": asked}) == [1]
        assert shop.retrieve(4, where={"out": {"min": asked}}) == [1, 2, 3]
        assert shop.retrieve(4, where={"out": {"max": asked, "min": "2023-11-14"}}) == [0, 1]


def test_whole_numbers_have_whole_bounds_and_ids_two_forms() -> None:
    table = {"id": [2**53 + n for n in range(4)], "n": pa.array(range(4), pa.uint8())}
    shop = Retriever(pa.table(table), id_column="id")
    ids = table["id"]
    assert shop.retrieve(4, where={"n": {"min": 0.5, "max": 2.5}}) == ids[1:3]
    assert shop.retrieve(4, where={"n": {"min": -300, "max": 300}}) == ids
    assert shop.retrieve(4, where={"n": [1.0, 3]}) == [ids[1], ids[3]]
    with pytest.raises(RequestError, match="whole numbers"):
        shop.retrieve(4, where={"n": 1.5})
    assert shop.retrieve(4, exclude=[ids[0], str(ids[1]), "none", 2**70]) == ids[2:]
    texts = Retriever(pa.table({"id": ["7", "8"], "tags": [["a"], []]}), id_column="id")
    assert texts.retrieve(2, exclude=[7]) == ["8"]
    with pytest.raises(RequestError, match="rules are for text"):
        texts.retrieve(2, where={"tags": "a"})


def test_half_comes_from_the_embeddings_and_none_twice() -> None:
    vectors_ND = unit(60, 8)
    apps = Retriever(
        items(), id_column="app", popularity="installs", vectors_ND=vectors_ND, engine="numpy"
    )
    liked = ["app 3", "app 9", "unknown"]
    query_D = vectors_ND[[3, 9]].mean(axis=0)
    allowed_N = np.ones(60, bool)
    allowed_N[[3, 9]] = False
    found = apps.retrieve(20, like=liked, exclude=liked)
    assert found[:10] == [f"app {at}" for at in exact(vectors_ND, query_D, 10, allowed_N)]
    assert len(set(found)) == 20
    assert not set(found) & set(liked)
    assert apps.retrieve(20, vector=query_D.tolist(), exclude=liked) == found
    assert len(set(apps.retrieve(60, like=liked))) == 60


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"where": {"knd": "x"}}, "where.knd: got no such column; did you mean 'kind'"),
        ({"where": {"price": "dear"}}, "where.price: got 'dear' for a column of double"),
        ({"where": {"price": {"most": 3}}}, "expected min, max or both"),
        ({"where": {"kind": {"min": 3}}}, "where.kind"),
        ({"vector": [1.0, 2.0]}, "vector: got shape"),
        ({"vector": ["a"] * 8}, "vector: got"),
        ({"vector": [float("nan")] * 8}, "finite"),
        ({"vector": [1e300] * 8}, "finite"),
        ({"most_of_each": 2}, "most_of_each: got a limit"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, Any], said: str) -> None:
    apps = Retriever(items(), id_column="app", vectors_ND=unit(60, 8), engine="numpy")
    with pytest.raises(RequestError, match=said):
        apps.retrieve(5, **asked)


def test_what_no_retriever_is_made_of() -> None:
    with pytest.raises(DataError, match="got no column 'installed'"):
        Retriever(items(), id_column="app", popularity="installed")
    with pytest.raises(DataError, match="expected numbers"):
        Retriever(items(), id_column="app", popularity="kind")
    with pytest.raises(DataError, match="3 vectors of 60 items"):
        Retriever(items(), id_column="app", vectors_ND=unit(3, 8))
    with pytest.raises(DataError, match="finite numbers"):
        EmbeddingIndex(np.full((3, 2), np.nan))


def test_vectors_are_the_deep_part_s_own(tmp_path: Any) -> None:
    from tests.serving.versions import publish

    bundle: Bundle = publish(tmp_path, "1", seed=1)
    names = [*models.APPS[:2], "never seen"]
    found = item_vectors(bundle, "app", names)
    assert found is not None
    table = np.asarray(bundle.weights["table/apps"])
    kept = [value.decode() for value in bundle.schema.vocabularies["apps"].values.to_pylist()]
    rows = [table[2 + kept.index(name)] if name in kept else table[0] for name in names]
    expected = np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert item_vectors(bundle, "age", names) is None


@pytest.fixture(scope="module")
def shop_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("shop")
    return trained(3000).export(folder / "bundle", items=CATALOGUE.slice(0, ITEMS - 4))


def test_a_query_finds_items_by_two_towers_and_popular_ones_fill_up(shop_bundle: Bundle) -> None:
    shop = Retriever(CATALOGUE, id_column="item", popularity="stock", bundle=shop_bundle)
    vectors_ND = shop_bundle.item_vectors(CATALOGUE)  # those of items that it keeps are the same
    query = {"user": "u2"}
    order = np.argsort(-(vectors_ND @ shop_bundle.query_vector(query)), kind="stable")
    expected = [f"i{row}" for row in order]
    found = shop.find(6, query=query)
    assert (found.ids, found.near, found.by) == (expected[:6], 6, "two towers")
    assert shop.retrieve(6, query=query) == expected[:6]
    left = shop.find(6, query=query, exclude=expected[:3], where={"stock": {"min": 1}})
    assert set(left.ids) <= set(expected[3:]) - {"i0"}
    # No query, or one that says nothing: the popular ones, and it says so.
    for nothing in (None, {}, {"user": None}):
        popular = shop.find(3, query=nothing)
        assert (popular.ids, popular.near, popular.by) == (["i23", "i22", "i21"], 0, "popularity")
    unseen = shop.find(3, query={"user": "a new one"})
    assert (len(unseen.ids), unseen.by) == (3, "two towers")
    like = shop.find(4, query=query, like=["i3"])
    assert (like.near, like.by, like.ids[0]) == (2, "like", "i3")


def test_faiss_finds_by_two_towers_what_numpy_does(shop_bundle: Bundle) -> None:
    pytest.importorskip("faiss")
    found = [
        Retriever(CATALOGUE, id_column="item", bundle=shop_bundle, engine=engine).retrieve(
            8, query={"user": "u1"}
        )
        for engine in ("faiss", "numpy")
    ]
    assert len(set(found[0]) & set(found[1])) >= 7


def test_a_limit_of_a_category_leaves_near_items_of_others(shop_bundle: Bundle) -> None:
    shop = Retriever(CATALOGUE, id_column="item", category="price", bundle=shop_bundle)
    found = shop.find(10, query={"user": "u2"}, most_of_each=2)
    assert (len(found.ids), found.near) == (10, 10)


def test_another_store_s_catalogue_is_refused(shop_bundle: Bundle) -> None:
    other = CATALOGUE.set_column(0, "item", pa.array([f"x{n}" for n in range(ITEMS)]))
    with pytest.raises(DataError, match="none of which is among the 20 of 'item'"):
        Retriever(other, id_column="item", bundle=shop_bundle)
    with pytest.raises(DataError, match="another catalogue's"):  # a server refuses it as it starts
        Ranker(shop_bundle, items=other, item_id="item")
    with pytest.raises(DataError, match="no column 'price'"):
        Retriever(CATALOGUE.drop(["price"]), id_column="item", bundle=shop_bundle)
    with pytest.raises(FeatureError, match="age"):
        Retriever(CATALOGUE, id_column="item", bundle=shop_bundle).find(3, query={"age": "x"})
