"""fit_schema against a plain reading of the same rows, and against its own transform."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError
from widedeep.schema import ColumnType, Schema

ADULT = Path(__file__).parents[2] / "src" / "widedeep" / "census"
Row = dict[str, Any]

TEXTS = st.none() | st.sampled_from(["a", "b", "c", "", "né", "a\0", "zz", "B"])
SCHEMA = pa.schema(
    [
        ("job", pa.string()),
        ("size", pa.int64()),
        ("tags", pa.list_(pa.string())),
        ("raw", pa.string()),
        ("age", pa.float64()),
        ("y", pa.int64()),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "job": TEXTS,
            "size": st.none() | st.integers(-3, 3) | st.sampled_from([2**53 + 1, -(2**63)]),
            "tags": st.none() | st.lists(TEXTS, max_size=3),
            "raw": TEXTS,
            "age": st.none() | st.sampled_from([0.0, -0.0, 1.5, 7.0, -2.0, float("nan")]),
            "y": st.integers(0, 1),
        }
    ),
    min_size=1,
    max_size=30,
)


def table(rows: Sequence[Row], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def values_of(rows: Iterable[Row], column: str) -> list[Any]:
    """The values of all rows, lists flattened, without nulls."""
    flat: list[Any] = []
    for row in rows:
        flat.extend(row[column] if isinstance(row[column], list) else [row[column]])
    return [value for value in flat if value is not None]


def ordered(counts: Counter[Any], min_count: int = 1, max_size: int | None = None) -> list[Any]:
    """Values by count descending, then by value (text by its bytes)."""

    def key(item: tuple[Any, int]) -> Any:
        value = item[0].encode() if isinstance(item[0], str) else item[0]
        return -item[1], value

    kept = [item for item in sorted(counts.items(), key=key) if item[1] >= min_count]
    return kept[:max_size]


def learned(schema: Schema, key: str) -> list[tuple[Any, int]]:
    vocabulary = schema.vocabularies[key]
    return [(vocabulary.value(i), int(count)) for i, count in enumerate(vocabulary.counts)]


@given(ROWS, st.integers(1, 3), st.none() | st.integers(1, 4))
def test_vocabularies_equal_a_plain_count(
    rows: list[Row], min_count: int, max_size: int | None
) -> None:
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("job", "tags", table="words", min_count=min_count, max_size=max_size),
            wd.categorical("size", min_count=min_count, max_size=max_size),
        ],
    )
    schema = wd.fit_schema(spec, table(rows))
    words = Counter(values_of(rows, "job") + values_of(rows, "tags"))
    assert learned(schema, "words") == ordered(words, min_count, max_size)
    assert schema.vocabularies["words"].dropped == len(words) - len(learned(schema, "words"))
    sizes = Counter(values_of(rows, "size"))
    assert learned(schema, "size") == ordered(sizes, min_count, max_size)
    for column in ("job", "size", "tags"):
        assert schema.missing[column] == sum(row[column] is None for row in rows) / len(rows)


def part_ids(rows: Sequence[Row], schema: Schema, part: str) -> list[list[int]]:
    """Ids of each row by plain look-up; [] for a null."""
    column = {"age_bucket": "age"}.get(part, part)
    found = []
    for row in rows:
        value = row[column]
        if value is None or value != value:
            found.append([])
        elif part == "age_bucket":
            found.append([2 + bisect.bisect_right(schema.boundaries[part], value)])
        else:
            known = {value: i + 2 for i, (value, _) in enumerate(learned(schema, part))}
            values = value if isinstance(value, list) else [value]
            found.append([known.get(item, 0) for item in values if item is not None])
    return found


@given(ROWS, st.integers(1, 2), st.none() | st.integers(1, 5))
def test_crosses_equal_a_plain_count(rows: list[Row], min_count: int, max_size: int | None) -> None:
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("job", min_count=2),
            wd.categorical("tags"),
            wd.bucketized("age_bucket", source="age", boundaries=[0, 7]),
            wd.crossed("job", "tags", "raw", min_count=min_count, max_size=max_size),
            wd.crossed("age_bucket", "job", min_count=min_count, max_size=max_size),
        ],
    )
    schema = wd.fit_schema(spec, table(rows))
    for cross in (("job", "tags", "raw"), ("age_bucket", "job")):
        ids = [part_ids(rows, schema, part) for part in cross]
        counts = Counter(
            combination
            for parts in zip(*ids, strict=True)
            for combination in itertools.product(*parts)
        )
        name = "_x_".join(cross)
        assert learned(schema, name) == ordered(counts, min_count, max_size)
        assert schema.vocabularies[name].values.shape == (len(learned(schema, name)), len(cross))
        assert schema.vocabularies[name].dropped == len(counts) - len(learned(schema, name))


SPEC = wd.FeatureSpec(
    label="y",
    features=[
        wd.numeric("age", quantiles=3),
        wd.numeric("age_standard", source="age", transform="standard", missing="indicator"),
        wd.numeric("age_log", source="age", transform="log1p", missing=2.0),
        wd.bucketized("age_bucket", source="age", quantiles=3),
        wd.bucketized("age_bin", source="age", bins=4),
        wd.categorical("job", min_count=2),
        wd.categorical("size", "tags"),
        wd.crossed("job", "tags"),
        wd.crossed("raw", "age_bucket"),
    ],
)


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 40))
@settings(max_examples=50)
def test_neither_order_nor_pieces_change_the_schema(
    rows: list[Row], random: Any, piece: int
) -> None:
    shuffled = random.sample(rows, len(rows))
    pieces = [table(shuffled[i : i + piece]) for i in range(0, len(rows), piece)]
    one = wd.fit_schema(SPEC, table(rows), threads=1)
    other = wd.fit_schema(SPEC, pa.concat_tables(pieces), threads=3)
    assert one.fingerprint == other.fingerprint
    assert (one.missing, one.notes) == (other.missing, other.notes)


@given(ROWS)
@settings(max_examples=50)
def test_its_transform_gives_the_mean_for_a_null(rows: list[Row]) -> None:
    for name in ("age", "age_standard"):
        spec = SPEC.replace(features=[SPEC.by_name[name]], deep=[name])
        schema = wd.fit_schema(spec, table(rows))
        dense = Transform(schema)(table(rows)).dense_BK[:, 0]
        known = np.array([row["age"] is not None and row["age"] == row["age"] for row in rows])
        fill = schema.numerics[name].fill[0]
        assert (dense[~known] == fill).all()
        if known.any():
            assert fill == pytest.approx(dense[known].mean(dtype=np.float64), abs=1e-6)


@given(ROWS)
@settings(max_examples=30)
def test_every_training_value_has_an_id_of_its_own(rows: list[Row]) -> None:
    spec = SPEC.replace(
        features=[wd.categorical("job", "size", "raw"), wd.crossed("job", "raw")], deep=[]
    )
    schema = wd.fit_schema(spec, table(rows))
    assert 0 not in Transform(schema)(table(rows)).ids_N


def test_ties_are_broken_by_value_before_the_size_is_cut() -> None:
    rows = {"job": ["z", "b", "a", "c", "c", "é"], "size": [5, -1, 3, 2, 2, 9]}
    spec = wd.FeatureSpec(features=wd.categorical("job", "size", max_size=3))
    schema = wd.fit_schema(spec, rows)
    assert learned(schema, "job") == [("c", 2), ("a", 1), ("b", 1)]
    assert learned(schema, "size") == [(2, 2), (-1, 1), (3, 1)]


def test_null_like_text_counts_as_null_where_it_is_asked_for() -> None:
    rows = {"job": ["", "a", ""], "tags": pa.array(["", "b", ""]).dictionary_encode()}
    spec = wd.FeatureSpec(features=wd.categorical("job", "tags", empty_as_null=True))
    schema = wd.fit_schema(spec, rows)
    assert learned(schema, "job") == [("a", 1)]
    assert learned(schema, "tags") == [("b", 1)]


def test_features_of_one_column_and_table_count_it_once() -> None:
    spec = wd.FeatureSpec(
        features=[
            wd.categorical("job", table="jobs"),
            wd.categorical("job_sequence", source="job", table="jobs", combiner=None),
        ]
    )
    assert learned(wd.fit_schema(spec, {"job": ["a", "a", "b"]}), "jobs") == [("a", 2), ("b", 1)]


def test_given_vocabularies_are_kept_in_order(tmp_path: Path) -> None:
    (tmp_path / "towns.txt").write_bytes("\ufeffTrier\r\nKöln\n".encode())
    (tmp_path / "sizes.txt").write_text("7\n-1\n")
    spec = wd.FeatureSpec(
        features=[
            wd.categorical("job", vocabulary=["z", "a"]),
            wd.categorical("town", vocabulary_file=str(tmp_path / "towns.txt")),
            wd.categorical("size", vocabulary_file=str(tmp_path / "sizes.txt")),
        ]
    )
    schema = wd.fit_schema(spec, {"job": ["a", "b"], "town": ["Trier", None], "size": [7, 8]})
    assert learned(schema, "job") == [("z", 0), ("a", 0)]
    assert learned(schema, "town") == [("Trier", 0), ("Köln", 0)]
    assert learned(schema, "size") == [(7, 0), (-1, 0)]
    assert schema.missing["town"] == 0.5


def test_hashed_features_and_crosses_need_no_vocabulary() -> None:
    spec = wd.FeatureSpec(
        features=[
            wd.categorical("job", hash_buckets=10),
            wd.categorical("size", num_buckets=4),
            wd.crossed("job", "raw", hash_buckets=50),
        ]
    )
    schema = wd.fit_schema(spec, {"job": ["a", None], "size": [3, 4], "raw": ["x", "y"]})
    assert schema.vocabularies == {}
    assert schema.missing == {"job": 0.5, "size": 0.0, "raw": 0.0}
    assert schema.notes == (
        "feature 'size': 1 values outside 0 <= v < num_buckets = 4 count as unseen",
    )
    assert Transform(schema)(pa.table({"job": ["a"], "size": [1], "raw": ["x"]})).ids_N[1] == 3


@pytest.mark.parametrize(
    "values, kind",
    [
        (pa.array(["a"]), "string"),
        (pa.array([b"a"]), "string"),
        (pa.array(["a"], pa.large_string()), "string"),
        (pa.array(["a"], pa.string_view()), "string"),
        (pa.array(["a", None]).dictionary_encode(), "string"),
        (pa.array([1], pa.int8()), "int"),
        (pa.array([2**63 - 1], pa.uint64()), "int"),
        (pa.array([1.0, None, float("nan")]), "int"),
        (pa.array([1], pa.decimal128(9, 0)), "int"),
        (pa.array([1], pa.decimal128(9, 2)), "int"),
        (pa.array([1], pa.timestamp("s")), "int"),
        (pa.array([1], pa.date32()), "int"),
        (pa.array([True]), "bool"),
        (pa.array([None]), "string"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_types_of_categories(values: pa.Array, kind: Any, nested: bool) -> None:
    is_null = pa.types.is_null(values.type)
    if nested:
        values = pa.ListArray.from_arrays([0, len(values)], values)
    schema = wd.fit_schema(wd.FeatureSpec(features=wd.categorical("x")), pa.table({"x": values}))
    column = schema.columns["x"]
    assert (column.kind, column.nested) == (kind, nested)
    ids = Transform(schema)(pa.table({"x": values})).ids_N
    # A null is the missing id, and nothing inside a list.
    assert ids.tolist()[:1] == ([2] if not is_null else [] if nested else [1])


@pytest.mark.parametrize(
    "values, kind, mean",
    [
        (pa.array([1, 2], pa.int16()), "int", 1.5),
        (pa.array([1.5, None], pa.float32()), "float", 1.5),
        (pa.array([0.5, 1.5], pa.float16()), "float", 1.0),
        (pa.array([1, 4], pa.decimal128(9, 2)), "float", 2.5),
        (pa.array([1, 4], pa.decimal256(9, 0)), "int", 2.5),
        (pa.array([True, False]), "bool", 0.5),
        (pa.array([1.0, 2.0]).dictionary_encode(), "float", 1.5),
        (pa.array([None, None]), "float", float("nan")),
        (pa.array([None, None], pa.string()), "float", float("nan")),
    ],
)
def test_types_of_numbers(values: pa.Array, kind: Any, mean: float) -> None:
    spec = wd.FeatureSpec(features=wd.numeric("x", transform="none"))
    schema = wd.fit_schema(spec, pa.table({"x": values}))
    assert (schema.columns["x"].kind, schema.columns["x"].nested) == (kind, False)
    np.testing.assert_equal(schema.numerics["x"].mean[0], mean)
    if mean == mean:
        dense = Transform(schema)(pa.table({"x": values})).dense_BK
        assert dense.mean() == pytest.approx(mean)


def test_vectors_are_fitted_component_by_component() -> None:
    lists = [[1.0, 10.0], None, [3.0, None], [5.0, 30.0]]
    for arrow_type in (pa.list_(pa.float64()), pa.list_(pa.float64(), 2)):
        rows = pa.table({"v": pa.array(lists, arrow_type)})
        spec = wd.FeatureSpec(features=wd.numeric("v", size=2, quantiles=2))
        schema = wd.fit_schema(spec, rows)
        fit = schema.numerics["v"]
        assert [cuts.tolist() for cuts in fit.boundaries] == [[1.0, 5.0], [10.0, 30.0]]
        assert fit.mean.tolist() == [3.0, 20.0]
        assert fit.fill.tolist() == [0.5, 0.5]
        assert schema.columns["v"] == ColumnType(kind="float", nested=True, storage="float64")
        assert schema.missing["v"] == 0.25
        dense = Transform(schema)(rows).dense_BK.tolist()
        assert dense == [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5], [1.0, 1.0]]


def test_quantiles_are_exact_on_a_seeded_sample_of_many_rows() -> None:
    values = np.random.default_rng(0).permutation(10_000).astype(np.float64)
    spec = wd.FeatureSpec(features=wd.numeric("x", quantiles=5))
    whole = wd.fit_schema(spec, {"x": values}, sample_rows=10_000)
    assert whole.quantile_rows == whole.rows == 10_000
    assert whole.numerics["x"].boundaries[0].tolist() == [0, 2499, 4999, 7499, 9999]
    sampled = wd.fit_schema(spec, {"x": values}, sample_rows=1000)
    assert sampled.quantile_rows == 1000
    assert "(quantiles exact on a sample of 1,000 rows)" in repr(sampled)
    cuts = sampled.numerics["x"].boundaries[0]
    assert set(cuts) <= set(values)
    assert np.abs(cuts[1:4] - [2500, 5000, 7500]).max() < 600
    assert sampled.numerics["x"].maximum[0] == 9999
    assert wd.fit_schema(spec, {"x": values}, sample_rows=1000) == sampled
    assert wd.fit_schema(spec, {"x": values}, sample_rows=1000, seed=1) != sampled


def test_every_kind_of_input_gives_the_same_schema(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"job": "a", "size": 1, "age": 1.5, "y": 1},
        {"job": None, "size": 2, "age": None, "y": 0},
        {"job": "b", "size": 1, "age": -2.0, "y": 0},
        {"job": "b", "size": 3, "age": 7.0, "y": 1},
    ]
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.numeric("age", transform="standard"),
            wd.categorical("job", "size"),
            wd.crossed("job", "size"),
        ],
    )
    plain = pa.Table.from_pylist(rows)
    pq.write_table(plain, tmp_path / "rows.parquet", row_group_size=3)
    pq.write_table(plain.slice(0, 2), tmp_path / "part-0.parquet")
    pq.write_table(plain.slice(2), tmp_path / "part-1.parquet")
    plain.to_pandas().to_csv(tmp_path / "rows.csv", index=False)
    inputs = [
        tmp_path / "rows.parquet",
        str(tmp_path / "part-*.parquet"),
        [tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"],
        tmp_path / "rows.csv",
        plain,
        plain.to_reader(max_chunksize=1),
        plain.to_pandas(),
        pl.from_arrow(plain),
        pd.DataFrame(rows).astype({"job": "category"}),
        (batch for batch in plain.to_batches(max_chunksize=2)),
    ]
    schema = wd.fit_schema(spec, rows)
    assert learned(schema, "job_x_size") == [((2, 2), 1), ((2, 4), 1), ((3, 2), 1)]
    for data in inputs:
        assert wd.fit_schema(spec, data) == schema


def test_labels_by_kind() -> None:
    spec = wd.FeatureSpec(
        label={"click": "c", "grade": "g", "stay": "s", "bought": "b"},
        weight="w",
        group="user",
        features=wd.categorical("job"),
    )
    rows = {
        "c": [0.0, 0.25, 1.0],
        "g": pa.array(["mid", "high", "mid"]).dictionary_encode(),
        "s": [10, 20, 30],
        "b": [True, False, False],
        "w": [0, 1, 2],
        "user": ["u", "u", None],
        "job": ["a", "b", "c"],
    }
    schema = wd.fit_schema(spec, rows)
    assert schema.classes == {"grade": ("high", "mid")}
    assert schema.label_means == {"click": 1.25 / 3, "stay": 20.0, "bought": 1 / 3}
    assert schema.missing["user"] == 1 / 3
    assert schema.columns["b"] == ColumnType(kind="bool")
    label = repr(schema).splitlines()[-1]
    assert label == "label: c (mean 0.4167), g (2 classes), s (mean 20), b (mean 0.3333)"


def test_a_label_vocabulary_fixes_the_order_of_classes() -> None:
    spec = wd.FeatureSpec(
        label="y", label_vocabulary=["yes", "no", "maybe"], features=wd.categorical("x")
    )
    schema = wd.fit_schema(spec, {"y": ["no", "yes"], "x": ["a", "b"]})
    assert schema.classes == {"": ("yes", "no", "maybe")}
    assert schema.notes == ("label 'y': no row has 'maybe'",)


def test_a_spec_without_a_label_needs_none() -> None:
    schema = wd.fit_schema(wd.FeatureSpec(features=wd.categorical("x")), {"x": ["a"], "y": [1]})
    assert list(schema.columns) == ["x"]
    assert repr(schema).splitlines()[-1] == "label: none"


def test_notes_say_what_a_person_should_know() -> None:
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.numeric("constant", "empty", "holes"),
            wd.categorical("nothing", "key"),
            wd.categorical("rare", min_count=1001),
            wd.crossed("rare", "key", min_count=2),
        ],
    )
    n = 1000
    rows = pa.table(
        {
            "constant": pa.array([2.5] * n),
            "empty": pa.nulls(n, pa.float64()),
            "holes": pa.array([float("nan"), 1.0] * (n // 2)),
            "nothing": pa.nulls(n, pa.string()),
            "key": [f"k{i}" for i in range(n)],
            "rare": ["r"] * n,
            "y": [1] * n,
        }
    )
    schema = wd.fit_schema(spec, rows)
    assert schema.notes == (
        "label 'y': 1 in every row, so there is nothing to tell apart",
        "column 'constant': 2.5 in every row, so nothing is learned from it",
        "column 'empty': null in every row, so nothing is learned from it",
        "column 'holes': 500 NaN counted as missing",
        "column 'holes': 1 in every row, so nothing is learned from it",
        "column 'nothing': no value in any row, so nothing is learned from it",
        "vocabulary 'key': all 1,000 values differ, as those of a key do; "
        "nothing general is learned from them",
        "vocabulary 'rare': no value was seen 1,001 times, so all count as unseen",
        "cross 'rare_x_key': no combination was seen 2 times",
    )
    assert schema.missing["holes"] == 0.5
    assert f"note: {schema.notes[0]}" in repr(schema)
    assert len(Transform(schema)(rows)) == n


def test_adult_is_fitted_and_printed(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label="income",
        features=[
            *wd.numeric("age", "education_num", "capital_gain", "capital_loss", "hours_per_week"),
            *wd.categorical("workclass", "education", "marital_status", "occupation"),
            wd.bucketized("age_bucket", source="age", boundaries=[18, 25, 30, 35, 40, 45, 50]),
            wd.bucketized("gain_bin", source="capital_gain", bins=255),
            wd.crossed("education", "occupation"),
            wd.crossed("age_bucket", "education", "occupation", min_count=10),
        ],
    )
    schema = wd.fit_schema(spec, ADULT / "train.parquet")
    lines = repr(schema).splitlines()
    assert lines[0].startswith("Schema of 13 features, fitted on 32,561 rows (quantiles exact), ")
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "feature kind size missing placement",
        "age numeric, quantile 1 0.0% deep",
        "education_num numeric, quantile 1 0.0% deep",
        "capital_gain numeric, quantile 1 0.0% deep",
        "capital_loss numeric, quantile 1 0.0% deep",
        "hours_per_week numeric, quantile 1 0.0% deep",
        "age_bucket bucketized 10 0.0% wide",
        "gain_bin bucketized, bins 103 0.0% wide",
        "workclass categorical 11 0.0% wide + deep",
        "education categorical 18 0.0% wide + deep",
        "marital_status categorical 9 0.0% wide + deep",
        "occupation categorical 17 0.0% wide + deep",
        "education_x_occupation crossed 219 wide",
        "age_bucket_x_education_x_occupation crossed 528 wide",
        "label: income (mean 0.2408)",
    ]
    gains = schema.numerics["capital_gain"].boundaries[0]
    assert gains[0] == 0 and gains[-1] == 99_999 and 15 < len(gains) < 25
    schema.save(tmp_path / "schema.safetensors")
    assert Schema.load(tmp_path / "schema.safetensors") == schema


def test_text_that_the_spec_declares_is_not_read_as_numbers_from_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("zip,y\n01,1\n10,0\n01,1\n")
    spec = wd.FeatureSpec(
        label="y",
        label_vocabulary=["0", "1"],
        features=wd.categorical("zip", vocabulary=["01", "10"]),
    )
    schema = wd.fit_schema(spec, tmp_path / "rows.csv")
    assert schema.columns["zip"] == schema.columns["y"] == ColumnType(kind="string")
    assert schema.classes == {"": ("0", "1")}


def test_points_in_time_are_values() -> None:
    spec = wd.FeatureSpec(features=wd.categorical("x"))
    for arrow_type, values in (
        (pa.timestamp("ns"), [-1500, -2999, 1999, -1]),
        (pa.timestamp("s"), [-1, 5, 7, 7]),
        (pa.date64(), [-86_400_000, 0, 86_400_000, 0]),
    ):
        rows = pa.table({"x": pa.array(values, arrow_type)})
        assert 0 not in Transform(wd.fit_schema(spec, rows))(rows).ids_N


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.date32(), pa.date64()]
)
@pytest.mark.parametrize("feature", [*wd.numeric("x"), wd.bucketized("x", source="x", bins=9)])
def test_a_point_in_time_is_no_number(kind: pa.DataType, feature: Any) -> None:
    days = 1 if pa.types.is_date32(kind) else 86_400_000
    rows = pa.table({"x": pa.array([days, 0], kind)})
    with pytest.raises(
        FeatureError, match=rf"feature 'x': column 'x' is {re.escape(str(kind))}, .*\(hour, weekday"
    ):
        wd.fit_schema(wd.FeatureSpec(features=[feature]), rows)


@pytest.mark.parametrize("order", [1, -1])
def test_csv_is_read_as_the_spec_declares(tmp_path: Path, order: int) -> None:
    whole = "zip,price,y,w\n" + "02134,10,1,1\n2134,20,0,2\n" * 20
    (tmp_path / "1.csv").write_text(whole)
    (tmp_path / "2.csv").write_text("zip,price,y,w\n,,0,0.5\n,1.5,1,1\n")
    (tmp_path / "3.csv").write_text("w,y,price,zip\n")
    files = [str(tmp_path / f"{n}.csv") for n in (1, 2, 3)][::order]
    spec = wd.FeatureSpec(
        label="y", weight="w", features=[*wd.categorical("zip"), *wd.numeric("price")]
    )
    schema = wd.fit_schema(spec, files)
    table = pa.table(
        {
            "zip": ["02134", "2134"] * 20 + [None, None],
            "price": [10.0, 20.0] * 20 + [None, 1.5],
            "y": [1, 0] * 20 + [0, 1],
            "w": [1.0, 2.0] * 20 + [0.5, 1.0],
        }
    )
    same = wd.fit_schema(spec, table)
    assert schema.fingerprint == same.fingerprint
    assert len(schema.vocabularies["zip"]) == 2


def test_numbers_of_parquet_may_be_fractions_in_csv(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(
        label="y",
        features=[
            *wd.numeric("n"),
            wd.bucketized("b", source="k", boundaries=[2]),
            *wd.categorical("c"),
        ],
    )
    table = pa.table({"n": [1, 2, 3], "k": [1, 2, 3], "c": [1, 2, 3], "y": [0, 1, 1]})
    types = wd.fit_schema(spec, table).input_types()
    assert {name: str(types[name]) for name in "nkcy"} == {
        "n": "double",
        "k": "double",
        "c": "int64",
        "y": "int64",
    }


def test_what_is_learned_does_not_change_with_the_version() -> None:
    features = [
        *wd.numeric("age", "capital_gain"),
        *wd.categorical("occupation", "native_country"),
        wd.bucketized("hours", source="hours_per_week", quantiles=9),
        wd.crossed("occupation", "education"),
    ]
    spec = wd.FeatureSpec(label="income", features=features)
    schema = wd.fit_schema(spec, ADULT / "train.parquet", sample_rows=1_000, seed=3)
    digest = hashlib.sha256()
    for name, vocabulary in sorted(schema.vocabularies.items()):
        values = np.asarray(vocabulary.values).tolist()
        digest.update(repr((name, values, np.asarray(vocabulary.counts).tolist())).encode())
    digest.update(repr(schema.boundaries["hours"].tolist()).encode())
    for name in ("age", "capital_gain"):
        fit = schema.numerics[name]
        digest.update(repr([cuts.tolist() for cuts in fit.boundaries]).encode())
        digest.update(repr((fit.fill.tolist(), fit.mean.tolist())).encode())
    assert digest.hexdigest()[:16] == "b2b0c3462219c38e"
