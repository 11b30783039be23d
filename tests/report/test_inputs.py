"""Statistics of the inputs are what a count by hand gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import widedeep as wd
from tests.report.models import rows_of
from widedeep.data.drift import DriftCounts
from widedeep.data.transform import Transform
from widedeep.report.inputs import input_statistics
from widedeep.schema import Schema

TRAIN, TODAY = rows_of(2000, 1), rows_of(1000, 2)
SPEC = wd.FeatureSpec(
    label="click",
    features=[
        wd.numeric("x"),
        wd.categorical("city"),
        wd.categorical("shop", max_size=9),
        wd.categorical("user", hash_buckets=16),
        wd.bucketized("x_bucket", source="x", boundaries=[-1.0, 0.0, 1.0]),
        wd.crossed("city", "shop", min_count=40),
    ],
)


@pytest.fixture(scope="module")
def schema() -> Schema:
    return wd.fit_schema(SPEC, TRAIN)


def counted(schema: Schema, rows: pa.Table) -> DriftCounts:
    drift = DriftCounts(schema)
    drift.add(rows, Transform(schema)(rows, targets=True))
    return drift


def test_what_training_saw(schema: Schema) -> None:
    found = {one["feature"]: one for one in input_statistics(schema)}
    assert list(found) == [feature.name for feature in SPEC.all_features]
    x = pc.min_max(TRAIN["x"])
    assert found["x"]["range"] == pytest.approx(
        {
            "minimum": x["min"].as_py(),
            "mean": pc.mean(TRAIN["x"]).as_py(),
            "maximum": x["max"].as_py(),
        }
    )
    assert found["x"]["missing"] == TRAIN["x"].null_count / 2000
    assert found["city"]["missing"] == TRAIN["city"].null_count / 2000
    assert (found["city"]["values"], found["city"]["left_out"]) == (4, 0)
    assert (found["shop"]["values"], found["shop"]["left_out"]) == (9, 3)
    assert (found["user"]["values"], found["x_bucket"]["values"]) == (16, 4)
    counts = {e["values"]: e["counts"] for e in pc.value_counts(TRAIN["city"]).to_pylist()}
    counts.pop(None)
    (value, share), *_ = found["city"]["top"]
    assert counts[value] == max(counts.values())
    assert share == pytest.approx(counts[value] / sum(counts.values()))
    assert all(one["missing_now"] is one["unseen"] is one["psi"] is None for one in found.values())


def test_what_today_holds(schema: Schema) -> None:
    names = np.where(np.arange(1000) % 4 == 0, "a new shop", TODAY["shop"].to_pylist())
    rows = TODAY.set_column(2, "shop", pa.array(names.tolist()))
    rows = rows.set_column(0, "x", pa.array([None if at < 300 else 0.5 for at in range(1000)]))
    found = {one["feature"]: one for one in input_statistics(schema, counted(schema, rows))}
    known = {schema.describe_id("shop", at) for at in range(2, schema.id_count("shop"))}
    unseen = [value not in known for value in names.tolist()]
    assert found["shop"]["unseen"] == sum(unseen) / 1000
    assert found["x"]["missing_now"] == found["x_bucket"]["missing_now"] == 0.3
    assert found["city"]["missing_now"] == rows["city"].null_count / 1000
    assert found["x"]["psi"] > 1  # one value only
    assert found["city"]["psi"] < 0.05
    assert found["user"]["unseen"] is None  # a hash knows every value
    cross = schema.spec.by_name["city_x_shop"]
    pairs = {schema.describe_id(cross.name, at) for at in range(2, schema.id_count("city_x_shop"))}
    # Shops beyond max_size were one value, <unseen>, in training too.
    today = [
        f"city={city} & shop={shop if shop in known else '<unseen>'}"
        for city, shop in zip(rows["city"].to_pylist(), names.tolist(), strict=True)
        if city is not None
    ]
    expected = sum(pair not in pairs for pair in today) / len(today)
    assert 0.1 < expected < 0.9
    assert found["city_x_shop"]["unseen"] == pytest.approx(expected)


def test_a_schema_without_rows() -> None:
    spec = wd.FeatureSpec(features=[wd.categorical("job", vocabulary=["cook"]), wd.numeric("age")])
    schema = wd.fit_schema(spec, [{"job": "cook", "age": None}])
    job, age = (input_statistics(schema)[at] for at in (0, 1))
    assert job["top"] == []
    assert age["range"] is None
