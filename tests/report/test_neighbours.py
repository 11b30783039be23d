"""Neighbours are those of a search through the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import widedeep as wd
from tests.report.models import rows_of, train
from widedeep.bundle import BundleHead, BundleModel, DeepColumn, write_bundle
from widedeep.report import neighbours
from widedeep.report.neighbours import embedded_features, nearest_values


def table_bundle(folder: Path, table: np.ndarray, counts: list[int] | None) -> wd.Bundle:
    """A bundle of one embedding, whose values are v0, v1, ... and were seen so often."""
    names = [f"v{at}" for at in range(len(table) - 2)]
    if counts is None:
        feature = wd.categorical("item", vocabulary=names)
        rows = [{"item": names[0]}]
    else:
        feature = wd.categorical("item")
        rows = [{"item": v} for v, n in zip(names, counts, strict=True) for _ in range(n)]
    schema = wd.fit_schema(wd.FeatureSpec(features=feature, deep=["item"], wide=[]), rows)
    known = [schema.describe_id("item", at) for at in range(2, len(table))]
    order = [names.index(value) + 2 for value in known]
    width = table.shape[1]
    column = DeepColumn(name="item", source="table", start=0, stop=width, combiner="sum")
    return write_bundle(
        folder / "b",
        schema=schema,
        weights={
            "bias": np.zeros(1, np.float32),
            "table/item": np.concatenate([table[:2], table[order]]).astype(np.float32),
            "head/weight": np.ones((1, width), np.float32),
        },
        model=BundleModel(
            heads=(BundleHead(name="", kind="binary", start=0, stop=1),), deep=(column,)
        ),
        metrics={},
        warmup_rows=[],
        config={},
    )


@pytest.mark.parametrize("at_once", [7, 1 << 16])
def test_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(42, 5)).astype(np.float32)
    counts = [int(n) for n in rng.permutation(np.arange(1, 41))]
    bundle = table_bundle(tmp_path, table, counts)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", at_once)
    found = nearest_values(bundle, "item", values=6, nearest=4)
    vectors = {f"v{at}": table[at + 2].astype(float) for at in range(40)}
    often = {f"v{at}": count for at, count in enumerate(counts) if count >= 5}
    assert [one.value for one in found] == sorted(often, key=lambda v: -often[v])[:6]

    def cosine(a: str, b: str) -> float:
        x, y = vectors[a], vectors[b]
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    for one in found:
        assert one.count == often[one.value]
        others = sorted(set(often) - {one.value}, key=lambda v: -cosine(one.value, v))[:4]
        assert [value for value, _ in one.nearest] == others
        for value, near in one.nearest:
            assert near == pytest.approx(cosine(one.value, value))


def test_a_given_vocabulary_has_no_counts(tmp_path: Path) -> None:
    table = np.array([[0, 0], [0, 0], [1, 0], [1, 0.1], [0, 1], [0, 0]], np.float32)
    bundle = table_bundle(tmp_path, table, None)
    found = nearest_values(bundle, "item", values=1, nearest=5)
    assert [value for value, _ in found[0].nearest] == ["v1", "v2"]  # v3 points nowhere


def test_which_features(tmp_path: Path) -> None:
    data = rows_of(500)
    spec = wd.FeatureSpec(
        label="click",
        features=[
            wd.categorical("city", table="places"),
            wd.categorical("town", source="city", table="places"),
            wd.categorical("shop"),
            wd.categorical("hashed", source="shop", hash_buckets=50),
            wd.categorical("kind"),
        ],
        item=["city", "town"],
    )
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[4]), progress=False)
    trainer.fit(data)
    # The item's first, one of those that share a table; three kinds are too few to be near.
    assert embedded_features(trainer.export(tmp_path / "b")) == ["city", "shop"]
    assert embedded_features(train(tmp_path / "wide", hidden=[])[1]) == []
