"""Explanations add up, and name things as a person does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from tests.bundle import models
from widedeep.bundle import Bundle, BundleHead, write_bundle

ROW = {"age": 30.0, "user": "Ἀριάδνη", "app": "maps", "tags": ["x", "unknown"], "seen": []}
SCHEMA = models.schema()


def bundle_of(path: Path, heads: tuple[BundleHead, ...], **changes: Any) -> Bundle:
    model = models.model(SCHEMA, heads=heads)
    return write_bundle(
        path / "b",
        schema=SCHEMA,
        weights=models.random_weights(SCHEMA, model) | changes,
        model=model,
        metrics={},
        warmup_rows=[],
        config={},
    )


@pytest.mark.parametrize("heads", [models.BINARY, models.MULTICLASS, models.THREE_HEADS])
def test_terms_add_up_to_the_logits(tmp_path: Path, heads: tuple[BundleHead, ...]) -> None:
    bundle = bundle_of(tmp_path, heads)
    found = bundle.explain(ROW)
    wide = np.sum([term.weights for term in found.wide], axis=0)
    np.testing.assert_allclose(wide + found.deep + found.bias, found.logits, atol=1e-5)
    batch = bundle._encode_rows([ROW])
    assert found.logits == tuple(bundle.logits(batch)[0].tolist())


def test_terms_have_names(tmp_path: Path) -> None:
    found = bundle_of(tmp_path, models.BINARY).explain(ROW)
    assert [(term.feature, term.value) for term in found.wide] == [
        ("age_bucket", "[20, 40)"),
        ("użytkownik 👤", "Ἀριάδνη"),
        ("tags", "x"),
        ("tags", "<unseen>"),
        ("app", "maps"),
        ("user/app", "<unseen>"),
    ]


def test_text_lists_the_heaviest_terms_first(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.BINARY)
    text = str(bundle.explain(ROW))
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    names = [name for name, _ in lines]
    assert names[-4:] == ["deep part", "bias", "logit", "probability"]
    weights = [abs(float(weight)) for _, weight in lines[:-4]]
    assert len(weights) == 6 and weights == sorted(weights, reverse=True)
    assert float(lines[-1][1]) == pytest.approx(float(bundle.score(ROW)[0]), abs=1e-4)


def test_text_has_a_block_for_each_head_and_class(tmp_path: Path) -> None:
    text = str(bundle_of(tmp_path, models.THREE_HEADS).explain(ROW))
    titles = [block.splitlines()[0] for block in text.split("\n\n")]
    classes = [f"head kind, class {number}" for number in range(3)]
    assert titles == ["head click", *classes, "head price"]
    assert text.splitlines()[-1].startswith("value ")


def fitted_bundle(tmp_path: Path, features: list[Any], rows: list[dict[str, Any]]) -> Bundle:
    """A wide model of the features, each weight of which is 1."""
    names = [feature.name for feature in features]
    spec = wd.FeatureSpec(label="y", features=features, wide=names, deep=[])
    model = wd.WideDeep(wd.fit_schema(spec, rows))
    assert model.wide_table is not None
    model.wide_table.weight.fill_(1.0)
    return wd.Trainer(model, progress=False).export(tmp_path / "b", overwrite=True)


BUCKETS = wd.bucketized("b", source="x", boundaries=[10])
EXPLAINED: list[tuple[list[Any], Any, list[str]]] = [
    (wd.numeric("x", transform="none"), {"x": 17.0}, ["x = 17"]),
    (wd.numeric("x", transform="quantile"), {"x": 17.25}, ["x = 17.25"]),
    (wd.numeric("x"), {"x": None}, ["x = <missing>"]),
    (wd.numeric("x"), {}, ["x = <missing>"]),
    (wd.numeric("hour", source="x", transform="log1p"), {"x": 1234567.0}, ["hour = 1234567"]),
    (
        wd.numeric("v", size=3, transform="none"),
        {"v": [1.0, 2.5, -3.0]},
        ["v = component 0: 1", "v = component 1: 2.5", "v = component 2: -3"],
    ),
    ([wd.bucketized("b", source="x", boundaries=[10, 20])], {"x": 17.0}, ["b = [10, 20) (17)"]),
    ([wd.bucketized("b", source="x", boundaries=[10, 20])], {"x": None}, ["b = <missing>"]),
    (wd.categorical("c"), {"c": "new"}, ["c = <unseen> (new)"]),
    (wd.categorical("c"), {"c": "p"}, ["c = p"]),
    (wd.categorical("c"), {"c": None}, ["c = <missing>"]),
    (wd.categorical("c", hash_buckets=4), {"c": "p"}, ["c = <hash bucket 1> (p)"]),
    (wd.categorical("l"), {"l": ["p", "?", "q", "!"]},
     ["l = p", "l = <unseen> (?)", "l = q", "l = <unseen> (!)"]),
    (wd.categorical("l", oov="drop"), {"l": ["?", "q"]}, ["l = q"]),
    (wd.categorical("l"), {"l": []}, []),
    (
        [*wd.categorical("c"), BUCKETS, wd.crossed("c", "b")],
        {"c": "new", "x": 3.0},
        ["b = < 10 (3)", "c = <unseen> (new)", "c_x_b = <unseen> (c=new & b=3)"],
    ),
    (
        [wd.crossed("c", "l", name="k", hash_buckets=1)],
        {"c": "p", "l": ["p", "q"]},
        ["k = <hash bucket 0> (c=p & l=p)", "k = <hash bucket 0> (c=p & l=q)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("features", "row", "lines"), EXPLAINED)
def test_each_line_names_the_value_it_explains(
    features: list[Any], row: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    rows = [
        {"x": float(i), "v": [float(i), 0.0, 1.0], "c": "pq"[i % 2], "l": ["p", "q"], "y": i % 2}
        for i in range(30)
    ]
    explanation = fitted_bundle(tmp_path, features, rows).explain(row)
    assert [str(term) for term in explanation.wide] == lines
    assert all(line in str(explanation) for line in lines if "= 0" not in line)
