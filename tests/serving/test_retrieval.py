"""Candidates: popular ones, near ones, and the rules that hold for both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.bundle import models
from widedeep.bundle import Bundle
from widedeep.errors import DataError, RequestError
from widedeep.serving import retrieval
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
    limited = apps.retrieve(8, most_of_each=2)
    kinds = [int(name.split()[1]) % 4 for name in limited]
    assert sorted(kinds) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert limited == [row["app"] for row in rows if row["app"] in set(limited)]
    assert apps.retrieve(0) == []


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
