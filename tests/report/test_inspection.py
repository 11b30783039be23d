"""What is shown of a model is what it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.errors import DataError
from widedeep.report.inspection import (
    explanation_table,
    layer_sizes,
    table_sizes,
    top_wide_weights,
    vocabulary_table,
)


@pytest.fixture
def bundle(ads_run: Path) -> wd.Bundle:
    return wd.Bundle.load(ads_run / "run" / "bundle")


def test_the_strongest_weights_of_all_tables(bundle: wd.Bundle) -> None:
    everything = np.concatenate(
        [np.array(bundle.weights[f"wide/{n}"])[:, 0] for n in bundle.model.wide]
    )
    positive, negative = top_wide_weights(bundle, top=5)
    # Equal weights may stand in any order: numbers are compared, and each name by its weight.
    assert [w.weight for w in positive] == sorted(everything[everything > 0], reverse=True)[:5]
    assert [w.weight for w in negative] == sorted(everything[everything < 0])[:5]
    for found in [*positive, *negative]:
        ids = range(bundle.schema.id_count(found.feature))
        id_ = next(i for i in ids if bundle.schema.describe_id(found.feature, i) == found.value)
        assert bundle.weights[f"wide/{found.feature}"][id_, 0] == found.weight


def test_counts_are_those_of_the_data(ads_run: Path, tmp_path: Path) -> None:
    rows = pq.read_table(ads_run / "train.parquet")
    spec = wd.FeatureSpec(
        label="click",
        features=[
            wd.categorical("job", oov_buckets=3),
            wd.categorical("ad", hash_buckets=8),
            wd.crossed("job", "ad"),
        ],
    )
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4]), progress=False)
    trainer.fit(rows, epochs=2)
    positive, negative = top_wide_weights(trainer.export(tmp_path / "b"), top=50)
    by_feature = {"job": {}, "ad": {}, "job_x_ad": {}}
    for found in [*positive, *negative]:
        by_feature[found.feature][found.value] = found.count
    jobs = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["job"]).to_pylist()}
    assert by_feature["job"] == jobs
    assert set(by_feature["ad"].values()) == {None}
    assert sum(by_feature["job_x_ad"].values()) == 600 - rows["ad"].null_count


def test_sizes_add_up_to_the_files(bundle: wd.Bundle) -> None:
    sizes, layers = table_sizes(bundle), layer_sizes(bundle)
    total = sum(size.numbers for size in sizes) + sum(count for _, _, count in layers)
    assert total == sum(array.size for array in bundle.weights.values())
    assert [name for name, _, _ in layers] == ["hidden 1", "hidden 2", "output", "bias"]
    assert layers[0][1] == (bundle.model.width, 8)
    job = next(size for size in sizes if (size.part, size.name) == ("deep", "job"))
    assert (job.rows, job.width, job.share) == (6, 4, 1.0)
    wide = np.array(bundle.weights["wide/job_x_ad"])
    cross = next(size for size in sizes if size.name == "job_x_ad")
    assert cross.nonzero == np.count_nonzero(wide) < cross.numbers


def test_an_explained_row_adds_up(bundle: wd.Bundle) -> None:
    row = {"age": 33, "price": None, "job": "nurse", "ad": "ad 3", "tags": ["t1", "t2"]}
    (found,) = explanation_table(bundle.explain(row))
    parts = found["wide_logit"] + found["deep_logit"] + found["bias"]
    assert parts == pytest.approx(found["logit"], abs=1e-6)
    assert 1 / (1 + np.exp(-found["logit"])) == pytest.approx(bundle.score([row])[0], abs=1e-6)
    terms = {(term["feature"], term["value"]) for term in found["wide"]}
    assert ("job_x_ad", "job=nurse & ad=ad 3") in terms
    assert ("age_bucket", "[25, 40)") in terms
    assert {("tags", "t1"), ("tags", "t2")} < terms
    sizes = [abs(term["weight"]) for term in found["wide"]]
    assert sizes == sorted(sizes, reverse=True)


def test_several_classes_are_explained_each(tmp_path: Path) -> None:
    rows = pa.table({"job": ["a", "b", "c"] * 30, "kind": ["x", "y", "z"] * 30})
    spec = wd.FeatureSpec(label="kind", features=wd.categorical("job"))
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4])
    trainer = wd.Trainer(model, batch_size=10, progress=False)
    trainer.fit(rows, epochs=4)
    bundle = trainer.export(tmp_path / "b")
    found = explanation_table(bundle.explain({"job": "b"}))
    assert [entry["class"] for entry in found] == ["x", "y", "z"]
    assert [entry["score"] for entry in found] == bundle.score([{"job": "b"}])[0].tolist()
    for column, (job, _) in enumerate(zip("abc", "xyz", strict=True)):
        assert top_wide_weights(bundle, top=1, column=column)[0][0].value == job
    with pytest.raises(DataError, match=r"got logit 3, expected 0 to 2"):
        top_wide_weights(bundle, column=3)


def test_the_most_frequent_values_of_a_schema(ads_run: Path) -> None:
    schema = wd.Schema.load(ads_run / "run" / "schema.safetensors")
    found = vocabulary_table(schema, top=3)
    assert found.keys() == {"job", "ad", "tags", "job_x_ad"}
    for values in found.values():
        counts = [count for _, count in values]
        assert len(counts) == 3
        assert counts == sorted(counts, reverse=True)
    assert {value for value, _ in found["job"]} < {"clerk", "cook", "nurse", "pilot"}
    assert " & " in found["job_x_ad"][0][0]
