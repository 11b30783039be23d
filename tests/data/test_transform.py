"""Columns in, a Batch out: targets, fixed features, shared vocabularies, weights, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.data.schemas import combinations, make_schema, numeric_fit, vocabulary
from widedeep.data.transform import Transform
from widedeep.errors import DataError, FeatureError, SchemaError
from widedeep.kernels.transform import fingerprint64
from widedeep.schema import Schema

JOBS = {"job": vocabulary(["clerk", "sales"])}


def cells(schema: Schema, **columns: Any) -> list[list[int]]:
    """The ids of each cell, row by row."""
    batch = Transform(schema)(pa.table(columns), targets=False)
    bounds = zip(batch.offsets_BF[:-1], batch.offsets_BF[1:], strict=True)
    return [batch.ids_N[a:b].tolist() for a, b in bounds]


# ---- what a value becomes ------------------------------------------------------------------------


def test_the_table_of_the_contract() -> None:
    schema = make_schema(wd.categorical("job"), vocabularies=JOBS)
    column = pa.array([["sales"], None, [], [None, "clerk"], [""], ["unseen"]])
    assert cells(schema, job=column) == [[3], [1], [], [2], [0], [0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"oov": "drop"}, [[3], [], []]),
        ({"empty_as_null": True}, [[3], [1], [0]]),
        ({"empty_as_null": True, "oov": "drop"}, [[3], [1], []]),
        ({"oov_buckets": 3}, [[6], *([[2 + fingerprint64(v) % 3]] for v in ("", "unseen"))]),
        ({"hash_buckets": 50}, [[2 + fingerprint64(v) % 50] for v in ("sales", "", "unseen")]),
    ],
    ids=str,
)
def test_options_of_categoricals(options: dict[str, Any], expected: list[list[int]]) -> None:
    schema = make_schema(wd.categorical("job", **options), vocabularies=JOBS)
    flat = [
        entry[0] if len(entry) == 1 and isinstance(entry[0], list) else entry for entry in expected
    ]
    assert cells(schema, job=["sales", "", "unseen"]) == flat


def test_large_integers_stay_apart() -> None:
    values = [2**24, 2**24 + 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1]
    schema = make_schema(
        wd.categorical("x"), kinds={"x": "int"}, vocabularies={"x": vocabulary(values)}
    )
    assert cells(schema, x=pa.array(values)) == [[2 + i] for i in range(6)]
    assert cells(schema, x=[str(v) for v in values]) == [[2 + i] for i in range(6)]


def test_identity_integers() -> None:
    schema = make_schema(wd.categorical("x", num_buckets=3), kinds={"x": "int"})
    assert cells(schema, x=[0, 2, 3, -1, None]) == [[2], [4], [0], [0], [1]]


def test_values_that_hash_alike_do_not_meet() -> None:
    """Many short and long texts, each found at its own place."""
    words = [f"{'prefix ' * (i % 4)}{i}" for i in range(20_000)]
    schema = make_schema(wd.categorical("x"), vocabularies={"x": vocabulary(words[::2])})
    found = Transform(schema)(pa.table({"x": words}), targets=False).ids_N
    assert found[::2].tolist() == list(range(2, 10_002))
    assert not found[1::2].any()


def test_features_of_one_table_share_a_vocabulary() -> None:
    features = [*wd.categorical("seen", table="item"), *wd.categorical("item_id", table="item")]
    schema = make_schema(features, vocabularies={"item": vocabulary(["a", "b"])})
    assert cells(schema, seen=[["b", "a"]], item_id=["b"]) == [[3, 2], [3]]


def test_learned_crosses_of_parts_too_large_to_pack() -> None:
    """Five parts of 2^14 ids each need 70 bits: combinations are compared id by id."""
    names = ["a", "b", "c", "d", "e"]
    words = [str(i) for i in range(2**14)]
    known = {name: vocabulary(words) for name in names}
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(2, 2**14, (500, 5)), axis=0)
    schema = make_schema(
        [wd.crossed(*names, name="x")],
        vocabularies={**known, "x": combinations(rows.tolist(), 5)},
    )
    columns = {name: [words[i - 2] for i in rows[:, k]] for k, name in enumerate(names)}
    assert cells(schema, **columns) == [[2 + i] for i in range(len(rows))]
    columns["e"] = [str(2**15)] * len(rows)
    assert cells(schema, **columns) == [[0]] * len(rows)


def test_numbers_in_the_wide_part_carry_their_value() -> None:
    schema = make_schema(
        [wd.numeric("n", transform="none", missing="indicator"), wd.categorical("job")],
        vocabularies=JOBS,
        wide=["n", "job"],
    )
    batch = Transform(schema)(pa.table({"n": [2.5, None], "job": ["clerk", None]}), targets=False)
    assert batch.ids_N.tolist() == [2, 3, 2, 2, 3, 1]
    assert batch.values_N is not None and batch.values_N.tolist() == [2.5, 0, 1, 0, 1, 1]


def test_weights_of_values() -> None:
    schema = make_schema(wd.categorical("job", weights="w"), vocabularies=JOBS)
    jobs = pa.array([["clerk", None, "sales"], None, [], ["clerk"]])
    weights = pa.array([[0.5, 9.0, 2.0], None, [], [0.0]])
    batch = Transform(schema)(pa.table({"job": jobs, "w": weights}), targets=False)
    assert batch.ids_N.tolist() == [2, 3, 1, 2]
    assert batch.values_N is not None and batch.values_N.tolist() == [0.5, 2, 1, 0]


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("quantile", [0, 0, 0.25, 0.5, 0.75, 1, 1]),
        ("standard", [-4, -2, -1, 0, 4, 8, 18]),
        ("none", [-1, 0, 0.5, 1, 3, 5, 10]),
    ],
)
def test_numeric_transforms(transform: Any, expected: list[float]) -> None:
    fit = numeric_fit(boundaries=[[0, 1, 5]], shift=1, scale=2)
    schema = make_schema(wd.numeric("n", transform=transform), numerics={"n": fit})
    batch = Transform(schema)(pa.table({"n": [-1, 0, 0.5, 1, 3, 5, 10]}), targets=False)
    assert batch.dense_BK[:, 0].tolist() == expected


def test_a_quantile_curve_of_one_boundary_or_huge_ones() -> None:
    for cuts, expected in (([3.0], [0, 0, 0]), ([-1.5e308, 1.5e308], [0, 0.5, 1])):
        schema = make_schema(wd.numeric("n"), numerics={"n": numeric_fit(boundaries=[cuts])})
        batch = Transform(schema)(pa.table({"n": [-1.7e308, 0, 1.7e308]}), targets=False)
        assert batch.dense_BK[:, 0].tolist() == expected


# ---- targets -------------------------------------------------------------------------------------

TARGETS = make_schema(
    wd.categorical("job"),
    vocabularies=JOBS,
    label={"buy": "bought", "kind": "kind"},
    weight="w",
    group="user",
    classes={"kind": ("no", "yes", "maybe")},
)
GOOD: dict[str, Any] = {
    "bought": [True, False],
    "w": [1, 0],
    "user": ["ann", "bob"],
    "kind": ["maybe", "no"],
    "job": ["clerk", None],
}


def test_labels_weights_and_groups() -> None:
    transform = Transform(TARGETS)
    assert transform.columns() == ["job", "bought", "kind", "w", "user"]
    assert transform.columns(targets=False) == ["job"]
    batch = transform(pa.table(GOOD))
    assert batch.labels_BL is not None and batch.labels_BL.tolist() == [[1, 2], [0, 0]]
    assert batch.weight_B is not None and batch.weight_B.tolist() == [1, 0]
    assert batch.group_B is not None
    assert batch.group_B.view(np.uint64).tolist() == [fingerprint64("ann"), fingerprint64("bob")]
    scored = transform(pa.table({"job": ["clerk"]}), targets=False)
    assert scored.labels_BL is None and scored.weight_B is None and scored.group_B is None


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["a", "b"], ("a", "b")),
        ([3, 10], ("3", "10")),
        ([False, True], ("false", "true")),
        ([1.0, 2.5], ("1", "2.5")),
    ],
    ids=str,
)
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_classes_of_any_type(
    values: list[Any], classes: tuple[str, ...], as_dictionary: bool
) -> None:
    schema = make_schema(wd.categorical("job"), vocabularies=JOBS, label="y", classes={"": classes})
    column = pa.array(values * 300)
    column = column.dictionary_encode() if as_dictionary else column
    table = pa.table({"y": column, "job": ["clerk"] * 600})
    labels = Transform(schema)(table).labels_BL
    assert labels is not None and labels[:, 0].tolist() == [0, 1] * 300


def test_groups_of_integers_are_kept_as_they_are() -> None:
    users = [2**53 + 1, -7]
    batch = Transform(TARGETS)(pa.table({**GOOD, "user": users}))
    assert batch.group_B is not None and batch.group_B.tolist() == users


# ---- features with a fixed value at serving ------------------------------------------------------


def test_training_only_features_take_their_fixed_value_when_scoring() -> None:
    schema = make_schema(
        [
            wd.categorical("position", vocabulary=[1, 2, 3]),
            wd.bucketized("cut", source="position", boundaries=[2]),
            wd.numeric("rank", source="position", transform="none"),
            wd.categorical("job"),
            wd.crossed("position", "job", hash_buckets=100),
        ],
        kinds={"position": "int"},
        vocabularies={**JOBS, "position": vocabulary([1, 2, 3])},
        boundaries={"cut": [2]},
        training_only={"position": 1, "cut": 9, "rank": 0.5},
        label="y",
    )
    transform = Transform(schema)
    assert transform.columns(targets=False) == ["job"]
    table = pa.table({"position": [1, 3], "job": ["clerk", None], "y": [0, 1]})
    trained = transform(table)
    assert trained.ids_N.tolist()[:3] == [2, 2, 2] and trained.dense_BK.tolist() == [[1], [3]]
    scored = transform(table.select(["job"]), targets=False)
    first = trained.ids_N[trained.offsets_BF[3] : trained.offsets_BF[4]].tolist()
    assert scored.ids_N.tolist() == [3, 2, 2, *first, 3, 2, 1]
    assert scored.dense_BK.tolist() == [[0.5], [0.5]]
    again = transform.rows([{"job": "clerk", "position": 3}, {"job": None}])
    assert again.ids_N.tolist() == scored.ids_N.tolist()


def test_a_fixed_value_must_fit_its_feature() -> None:
    schema = make_schema(
        wd.numeric("rank", "age", transform="none"), training_only={"rank": "first"}
    )
    with pytest.raises(FeatureError, match=r"feature 'rank' .*got 'first' .*expected a number"):
        Transform(schema)
    features = [wd.crossed("a", "b", hash_buckets=5), wd.numeric("age", transform="none")]
    crossed = make_schema(features, training_only={"a_x_b": 1})
    with pytest.raises(FeatureError, match=r"a_x_b.*name the cross's parts"):
        Transform(crossed)


# ---- tables --------------------------------------------------------------------------------------

TWO = make_schema([wd.numeric("age", transform="none"), wd.categorical("job")], vocabularies=JOBS)


def test_further_and_reordered_columns_do_not_matter() -> None:
    one = Transform(TWO)(pa.table({"age": [1, 2], "job": ["clerk", None]}), targets=False)
    other = Transform(TWO)(
        pa.table({"job": ["clerk", None], "x": [{"a": 1}, None], "age": [1, 2]}), targets=False
    )
    assert one.ids_N.tolist() == other.ids_N.tolist()
    assert one.dense_BK.tolist() == other.dense_BK.tolist()


def test_a_table_of_no_rows() -> None:
    for table in (
        pa.table({"age": pa.array([], pa.int64()), "job": pa.array([], pa.string())}),
        pa.record_batch({"age": pa.array([], pa.int64()), "job": pa.array([], pa.string())}),
        pa.schema({"age": pa.int64(), "job": pa.string()}).empty_table(),
    ):
        batch = Transform(TWO)(table, targets=False)
        assert len(batch) == 0 and batch.offsets_BF.tolist() == [0]
        assert batch.dense_BK.shape == (0, 1)


def test_columns_chunked_at_different_rows() -> None:
    ages = pa.chunked_array([[1, 2, 3], [4], [], [5, 6]])
    jobs = pa.chunked_array(
        [
            pa.array(["clerk"]).dictionary_encode(),
            pa.array(["x", "sales"] * 2 + [None]).dictionary_encode(),
        ]
    )
    batch = Transform(TWO, threads=2)(pa.table({"age": ages, "job": jobs}), targets=False)
    assert batch.ids_N.tolist() == [2, 0, 3, 0, 3, 1]
    assert batch.dense_BK[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_doubled_column_is_refused_if_it_is_read() -> None:
    table = pa.table([[1], [2], ["x"]], names=["age", "age", "job"])
    with pytest.raises(DataError, match=r"the table: got 2 columns named 'age', expected one"):
        Transform(TWO)(table, targets=False)
    unused = pa.table([[1], [2], [2], ["x"]], names=["age", "x", "x", "job"])
    assert len(Transform(TWO)(unused, targets=False)) == 1


# ---- schemas -------------------------------------------------------------------------------------


def test_a_schema_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"feature 'job': the schema holds no vocabulary"):
        Transform(make_schema(wd.categorical("job")))


def test_quantiles_without_boundaries_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"feature 'n': its statistics do not fit"):
        Transform(make_schema(wd.numeric("n")))


def test_a_vocabulary_with_a_value_twice_is_refused() -> None:
    schema = make_schema(wd.categorical("job"), vocabularies={"job": vocabulary(["a", "b", "a"])})
    with pytest.raises(SchemaError, match=r"feature 'job': .*one value at positions 0 and 2"):
        Transform(schema)


def test_combinations_of_ids_that_do_not_exist_are_refused() -> None:
    schema = make_schema(
        [
            wd.crossed("job", "age_cut", name="x"),
            wd.bucketized("age_cut", source="age", boundaries=[3]),
        ],
        vocabularies={**JOBS, "x": combinations([[2, 4]], 2)},
        boundaries={"age_cut": [3]},
    )
    with pytest.raises(
        SchemaError, match=r"feature 'x': .*part id 4 in a cross, expected 0 <= id < 4"
    ):
        Transform(schema)


def test_parts_are_encoded_before_their_cross_is_learned() -> None:
    schema = make_schema(
        [wd.categorical("job"), wd.crossed("job", "city")],
        vocabularies={**JOBS, "city": vocabulary(["rome"])},
    )
    transform = Transform(schema)
    table = pa.table({"job": [["sales", "clerk"], None], "city": ["rome", "oslo"]})
    (jobs, job_offsets), (cities, city_offsets) = transform.part_ids(table, ["job", "city"])
    assert jobs.tolist() == [3, 2, 1] and job_offsets.tolist() == [0, 2, 3]
    assert cities.tolist() == [2, 0] and city_offsets.tolist() == [0, 1, 2]
    with pytest.raises(SchemaError, match=r"cross 'job_x_city': the schema holds no combinations"):
        transform(table, targets=False)
    with pytest.raises(
        SchemaError, match=r"got 'cityy', which is no part of a cross; did you mean 'city'\?"
    ):
        transform.part_ids(table, ["cityy"])
