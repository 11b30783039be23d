"""Counts of a feature's values: as TensorFlow's column, through training, serving and growth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.data.drift import DriftCounts
from widedeep.data.extend_schema import map_ids
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError
from widedeep.features.spec import feature_side
from widedeep.schema import Schema
from widedeep.training.grow import grow

COLUMNS = json.loads(
    (Path(__file__).parents[1] / "oracles" / "tensorflow_columns.json").read_text()
)
KINDS = ("indicator", "bucketized")
CASES = [case for case in COLUMNS["dense"] if case["column"]["kind"] in KINDS]

SPEC = """[data]
label = "clicked"

[features]
categorical = ["color", "tags", "app"]
crossed = [["size_bucket", "color"]]
wide = ["app", "size_bucket_x_color"]
deep = ["color_counts", "tag_counts", "size_counts", "pair_counts", "app"]
item = ["app"]
options.app = { embedding_dim = 2 }
options.tags = { weights = "tag_weights" }
bucketized.size_bucket = { source = "size", boundaries = [1.0, 2.0] }
indicator.color_counts = { source = "color" }
indicator.pair_counts = { source = "size_bucket_x_color" }
indicator.size_counts = { source = "size_bucket" }
indicator.tag_counts = { source = "tags" }
"""


def rows_of(n: int, colors: str = "rgb", seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose label follows the color and how heavy the tag x is."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        color = str(rng.choice(list(colors)))
        tags = [str(tag) for tag in rng.choice(["x", "y"], rng.integers(4))]
        weights = [float(weight) for weight in rng.integers(1, 4, len(tags))]
        heavy = sum(w for tag, w in zip(tags, weights, strict=True) if tag == "x")
        score = (2.0 if color == "r" else -1.0) + 0.7 * heavy - 0.8
        rows.append(
            {
                "color": color,
                "tags": tags,
                "tag_weights": weights,
                "size": float(rng.uniform(0, 3)),
                "app": f"app{rng.integers(5)}",
                "clicked": int(rng.random() < 1 / (1 + np.exp(-score))),
            }
        )
    return rows


@pytest.fixture(scope="module")
def schema() -> Schema:
    return wd.fit_schema(wd.FeatureSpec.from_toml(SPEC), rows_of(1500))


def counted(column: dict[str, Any], name: str = "source", **options: Any) -> list[Any]:
    """A TensorFlow column, declared our way."""
    kind = column["kind"]
    if kind == "weighted":
        return counted(column["source"], name, weights=column["weight_key"])
    if kind == "identity":
        return wd.categorical(name, source=column["key"], num_buckets=column["buckets"], **options)
    if kind == "bucketized":
        source = column["source"]
        options = {"boundaries": column["boundaries"], "size": source["shape"]}
        return [wd.bucketized(name, source=source["key"], **options)]
    if kind == "crossed":
        return [wd.crossed(*column["parts"], name=name, hash_buckets=column["buckets"])]
    values, buckets = column["vocabulary"], column.get("oov_buckets", 0)
    options = {"vocabulary": values, "oov_buckets": buckets}
    if "default" in column:
        options["default_value"] = values[column["default"]]
    return wd.categorical(name, source=column["key"], **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_counts_are_tensorflows(case: dict[str, Any]) -> None:
    column = case["column"]
    # Its bucketized column is an indicator by itself.
    source = column if column["kind"] == "bucketized" else column["source"]
    declared = counted(source)
    features = case["features"]
    is_plain = {name: max(map(len, feature["rows"])) == 1 for name, feature in features.items()}
    table = pa.table(
        {
            name: [row[0] if is_plain[name] else row for row in feature["rows"]]
            for name, feature in features.items()
        }
    )
    outputs = np.array(case["outputs"])
    if declared[0].weight_column is not None:  # negative ones are refused here
        rows = [min(row, default=0) >= 0 for row in table["weights"].to_pylist()]
        table, outputs = table.filter(pa.array(rows)), outputs[rows]
    spec = wd.FeatureSpec(features=[*declared, wd.indicator("i", source="source")])
    batch = Transform(wd.fit_schema(spec, table))(table, targets=False)
    assert len(batch) >= 6
    buckets = source.get("oov_buckets", 0)  # ours stand before the known values
    np.testing.assert_allclose(batch.dense_BK, np.roll(outputs, buckets, axis=1), rtol=1e-6)


def test_python_and_toml_declare_the_same(schema: Schema) -> None:
    spec = wd.FeatureSpec(
        label="clicked",
        features=[
            wd.indicator("color_counts", source="color"),
            wd.indicator("pair_counts", source="size_bucket_x_color"),
            wd.indicator("size_counts", source="size_bucket"),
            wd.indicator("tag_counts", source="tags"),
            wd.categorical("color"),
            wd.categorical("tags", weights="tag_weights"),
            wd.categorical("app", embedding_dim=2),
            wd.crossed("size_bucket", "color"),
            wd.bucketized("size_bucket", source="size", boundaries=[1.0, 2.0]),
        ],
        wide=["app", "size_bucket_x_color"],
        deep=["color_counts", "tag_counts", "size_counts", "pair_counts", "app"],
        item=["app"],
    )
    assert spec == schema.spec
    assert wd.FeatureSpec.from_toml(spec.to_toml()) == spec
    assert feature_side(spec.replace(item=["color_counts"]), "color_counts") == "item"
    assert feature_side(spec.replace(item=["color"]), "pair_counts") == "both"
    assert schema.n_dense == 3 + 9 + 3 + 2
    assert [slot.name for slot in schema.slots] == ["app", "size_bucket_x_color"]
    assert schema.describe_id("pair_counts", 2).startswith("size_bucket=")
    assert "counted by an indicator" in repr(schema)


def test_it_takes_the_place_of_its_source_by_default() -> None:
    features = [*wd.categorical("a", "b"), wd.indicator("counts", source="a")]
    spec = wd.FeatureSpec(features=features)
    assert (spec.wide_names, spec.deep_names) == (("a", "b"), ("b", "counts"))
    assert spec.replace(deep=["a", "counts"]).deep_names == ("a", "counts")


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, "got 'a' in source of feature 'i', which is no feature's name"),
        (wd.numeric("a"), {}, "its source 'a' is numeric, quantile, whose ids are no values"),
        (
            wd.categorical("a", hash_buckets=9, compose="quotient_remainder"),
            {},
            "is categorical, quotient-remainder, whose ids are no values to count",
        ),
        (wd.categorical("a"), {"wide": ["i"]}, "is in wide; name its source 'a' there"),
        (
            [*wd.categorical("a"), wd.crossed("i", "b")],
            {},
            "its part 'i' counts values; cross its source 'a' instead",
        ),
    ],
)
def test_a_wrong_declaration_is_refused(
    features: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeatureError) as caught:
        wd.FeatureSpec(features=[*features, wd.indicator("i", source="a")], **options)
    assert message in str(caught.value)


def test_too_many_values_and_a_fixed_one_are_refused() -> None:
    def schema(**options: Any) -> Schema:
        spec = wd.FeatureSpec(
            features=[wd.categorical("a", hash_buckets=5000), wd.indicator("i", source="a")],
            **options,
        )
        return wd.fit_schema(spec, [{"a": "x"}])

    with pytest.raises(FeatureError, match="its source 'a' has 5,000 values, expected at most 4,0"):
        schema()
    with pytest.raises(FeatureError, match="got its own name as source"):
        wd.indicator("i", source="i")
    small = wd.FeatureSpec(
        features=[*wd.categorical("a", "b"), wd.indicator("i", source="a")],
        training_only={"i": 1},
    )
    with pytest.raises(FeatureError, match=r"an indicator in training_only.* its source 'a' inst"):
        Transform(wd.fit_schema(small, [{"a": "x", "b": "z"}]))
    fixed = small.replace(training_only={"a": "x"})
    rows = [{"a": "x", "b": "z"}, {"a": "y"}, {"a": "y"}]
    transform = Transform(wd.fit_schema(fixed, rows))
    assert transform.rows([{"a": "y"}, {}]).dense_BK.tolist() == [[0.0, 1.0]] * 2


def test_it_is_trained_resumed_exported_ranked_and_reported(schema: Schema, tmp_path: Path) -> None:
    def trainer(folder: str) -> wd.Trainer:
        model = wd.WideDeep(schema, hidden_units=[8])
        return wd.Trainer(
            model,
            batch_size=64,
            schedule="constant",
            checkpoints=tmp_path / folder,
            progress=False,
            threads=1,
        )

    data, test = rows_of(1500), rows_of(400, seed=1)
    whole, halves = trainer("whole"), trainer("halves")
    whole.fit(data, epochs=4)
    halves.fit(data, epochs=2)
    halves.fit(data, epochs=4, resume=True)
    np.testing.assert_array_equal(whole.predict(test), halves.predict(test))
    bundle = whole.export(tmp_path / "bundle")
    assert whole.evaluate(test)["auc"] > 0.78
    scores = bundle.score(test)
    np.testing.assert_allclose(scores, whole.predict(test), atol=1e-6)

    apps = {"app": [f"app{i}" for i in range(5)]}
    ranker = wd.Ranker(bundle, items=apps, item_id="app")
    assert ranker.engine == "factored"
    query = {name: value for name, value in test[0].items() if name != "app"}
    ranking = ranker.rank(query, candidates=apps["app"])
    rows = [{**query, "app": app} for app in ranking.items]
    assert np.array_equal(ranking.scores, bundle.score(rows))

    report = wd.make_report(bundle, test)
    inputs = {entry["feature"]: entry for entry in report.inputs}
    assert inputs["color_counts"]["kind"] == "indicator of color"
    assert (inputs["color_counts"]["values"], inputs["pair_counts"]["values"]) == (3, 9)
    assert inputs["color_counts"]["psi"] is not None
    explanation = bundle.explain(test[0])
    assert {term.feature for term in explanation.wide} == {"app", "size_bucket_x_color"}


def test_an_indicator_of_both_sides_is_ranked_row_by_row(tmp_path: Path) -> None:
    spec = wd.FeatureSpec.from_toml(SPEC.replace('item = ["app"]', 'item = ["color"]'))
    model = wd.WideDeep(wd.fit_schema(spec, rows_of(300)), hidden_units=[4])
    trainer = wd.Trainer(model, progress=False)
    trainer.fit(rows_of(300))
    bundle = trainer.export(tmp_path / "bundle")
    ranker = wd.Ranker(bundle, items={"color": ["r", "g"]}, item_id="color")
    assert ranker.engine == "row by row"
    (query,) = rows_of(1, seed=2)
    del query["color"]
    ranking = ranker.rank(query, candidates=["r", "g"])
    expected = bundle.score([{**query, "color": color} for color in ranking.items])
    assert np.array_equal(ranking.scores, expected)


def test_a_warm_start_carries_the_columns_of_known_values(tmp_path: Path) -> None:
    spec = wd.FeatureSpec.from_toml(SPEC)
    old = wd.fit_schema(spec, rows_of(500, "rg"))
    new = wd.fit_schema(spec, rows_of(500, "bgggrr", seed=3))
    old_of_N = map_ids(new, old, "color_counts").old_of_N
    assert sorted(old_of_N.tolist()) == [-1, 0, 1, 2, 3]
    trainer = wd.Trainer(wd.WideDeep(old, hidden_units=[8]), progress=False)
    trainer.fit(rows_of(500, "rg"), epochs=2)
    trainer.export(tmp_path / "bundle")
    warm = wd.Trainer(wd.WideDeep(new, hidden_units=[8]), progress=False)
    start = warm.warm_start(tmp_path / "bundle")
    layer = next(tensor for tensor in start.tensors if tensor.name == "mlp/0/weight")
    assert layer.state == "remapped"
    assert "color_counts (1 values that the old model had not)" in layer.reason
    shared = rows_of(100, "rg", seed=4)
    np.testing.assert_allclose(warm.predict(shared), trainer.predict(shared), atol=1e-5)


def test_a_stream_that_would_widen_the_layer_is_refused(schema: Schema) -> None:
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[4]), progress=False)
    with pytest.raises(
        FeatureError, match=r"'color_counts': the values of its source .* are learned"
    ):
        grow(trainer.state, trainer.evaluator, rows_of(50), None)


def test_drift_counts_values_that_are_in_no_part() -> None:
    spec = wd.FeatureSpec.from_toml(SPEC)
    schema = wd.fit_schema(spec, rows_of(1500))
    drift = DriftCounts(schema)
    shifted = pa.Table.from_pylist([*rows_of(900, "gb", seed=5), *rows_of(100, "q", seed=6)])
    drift.add(shifted, Transform(schema)(shifted))
    by_name = {one.feature: one for one in drift.features()}
    color = by_name["color"]
    assert color.psi is not None and color.psi > 0.25
    assert color.new_values == pytest.approx(0.1)
    assert by_name["tags"].psi is not None and by_name["tags"].psi < 0.01


def test_buckets_of_a_vector_are_trained_exported_and_explained(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"corner": [float(x), float(y)], "color": str(color), "y": int(x > 0.5 > y)}
        for x, y, color in zip(
            rng.random(800), rng.random(800), rng.choice(["r", "g"], 800), strict=True
        )
    ]
    corner = wd.bucketized("corner", source="corner", boundaries=[0.25, 0.5, 0.75], size=2)
    spec = wd.FeatureSpec(
        label="y",
        features=[
            corner,
            *wd.categorical("color"),
            wd.crossed("corner", "color"),
            wd.indicator("corner_counts", source="corner"),
        ],
        wide=["corner", "corner_x_color"],
        deep=["corner", "corner_counts"],
    )
    assert wd.FeatureSpec.from_toml(spec.to_toml()) == spec
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[8]), progress=False)
    trainer.fit(rows, epochs=5)
    bundle = trainer.export(tmp_path / "bundle")
    assert trainer.evaluate(rows)["auc"] > 0.9
    np.testing.assert_allclose(bundle.score(rows), trainer.predict(rows), atol=1e-6)
    row = {"corner": [0.8, 0.1], "color": "r"}
    explained = [(term.feature, term.value, term.row_value) for term in bundle.explain(row).wide]
    assert explained[:2] == [
        ("corner", "component 0: >= 0.75", "0.8"),
        ("corner", "component 1: < 0.25", "0.1"),
    ]
    assert explained[2][1:] == ("corner=component 0: >= 0.75 & color=r", "corner=0.8 & color=r")
