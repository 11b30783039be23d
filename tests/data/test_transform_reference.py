"""The native transform equals the plain one on random schemas and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.data.schemas import combinations, make_schema, numeric_fit, vocabulary
from tests.data.transform_reference import EncodedRow, encode_row
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.errors import WideDeepError
from widedeep.schema import Schema

WORDS = ["", "a", "bb", "ä", "seven77", "eight888", "nine_9999", "x" * 16, "y" * 17, "z" * 300]
NUMBERS = [0, 1, -1, 7, 2**24 + 1, 2**53 + 1, 2**62, -(2**63), 2**63 - 1]


def check_batch(batch: Batch, expected: Sequence[EncodedRow], schema: Schema) -> None:
    slots = len(schema.slots)
    assert len(batch) == len(expected)
    assert batch.offsets_BF.shape == (len(expected) * slots + 1,)
    assert batch.offsets_BF[0] == 0 and batch.offsets_BF[-1] == len(batch.ids_N)
    for b, row in enumerate(expected):
        for f in range(slots):
            begin, end = batch.offsets_BF[b * slots + f : b * slots + f + 2]
            assert batch.ids_N[begin:end].tolist() == [id_ for id_, _ in row.cells[f]]
            if batch.values_N is not None:
                values = [value for _, value in row.cells[f]]
                np.testing.assert_allclose(batch.values_N[begin:end], values, rtol=1e-6, atol=1e-7)
            else:
                assert all(value == 1 for _, value in row.cells[f])
        np.testing.assert_allclose(batch.dense_BK[b], row.dense, rtol=1e-6, atol=1e-7)


@st.composite
def categoricals(draw: st.DrawFn, name: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """A categorical feature and its vocabulary."""
    values: list[Any] = WORDS if kind == "string" else NUMBERS
    known = draw(st.lists(st.sampled_from(values), unique=True, min_size=1))
    options: dict[str, Any] = {"empty_as_null": draw(st.booleans())}
    way = draw(st.sampled_from(["learned", "given", "hash", "identity"]))
    if way == "hash":
        options["hash_buckets"] = draw(st.integers(1, 9))
    elif way == "identity" and kind == "int":
        options["num_buckets"] = draw(st.integers(1, 9))
    else:
        options["oov_buckets"] = draw(st.integers(0, 3))
        if way == "given":
            options["vocabulary"] = known
    has_default = draw(st.booleans()) and not (way == "hash" or options.get("oov_buckets"))
    if has_default:
        buckets = options.get("num_buckets")
        options["default_value"] = draw(st.sampled_from(range(buckets) if buckets else known))
    options["oov"] = "id" if has_default else draw(st.sampled_from(["id", "drop"]))
    feature = wd.categorical(name, **options)
    return feature, {name: vocabulary(known)}


@st.composite
def crosses(draw: st.DrawFn, schema_so_far: Schema, parts: list[str]) -> tuple[Any, dict[str, Any]]:
    chosen = draw(st.permutations(parts))[: draw(st.integers(2, 3))]
    if draw(st.booleans()):
        key = draw(st.none() | st.integers(-(2**63), 2**63 - 1))
        return wd.crossed(
            *chosen, name="h", hash_buckets=draw(st.integers(1, 1000)), hash_key=key
        ), {}
    limits = [schema_so_far.id_count(part) for part in chosen]
    entries = st.tuples(*(st.integers(0, limit - 1) for limit in limits))
    rows = draw(st.lists(entries, unique=True, max_size=8))
    return wd.crossed(*chosen, name="x"), {"x": combinations(rows, len(chosen))}


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    features: list[Any] = []
    vocabularies: dict[str, Any] = {}
    for name, kind in (("text", "string"), ("code", "int"), ("tags", "string")):
        feature, known = draw(categoricals(name, kind))
        features.append(feature)
        vocabularies |= known
    vocabularies["raw"] = vocabulary(
        draw(st.lists(st.sampled_from(WORDS), unique=True, min_size=1))
    )
    transform = draw(st.sampled_from(["quantile", "standard", "minmax", "log1p", "none"]))
    missing = draw(st.sampled_from(["mean", "indicator", 3.0]))
    features += [
        wd.numeric("n", transform=transform, missing=missing),
        wd.numeric("v", transform=transform, missing=missing, size=2),
        wd.numeric("bins", source="n", embedding="bins"),
        wd.numeric("line", source="n", embedding="piecewise"),
        wd.bucketized("cut", source="n", boundaries=[-1.0, 0.0, 2.5]),
        wd.bucketized("cuts", source="v", boundaries=[-1.0, 0.5], size=2),
    ]
    cuts = sorted(draw(st.sets(st.floats(-9, 9, width=32), min_size=1, max_size=6)))
    common: dict[str, Any] = {
        "kinds": {"text": "string", "code": "int", "tags": "string", "n": "float"},
        "vocabularies": vocabularies,
        "boundaries": {"cut": [-1.0, 0.0, 2.5], "cuts": [-1.0, 0.5], "bins": cuts, "line": cuts},
        "numerics": {
            "n": numeric_fit(boundaries=[cuts], shift=0.5, scale=2.0, fill=0.25),
            "v": numeric_fit(2, boundaries=[cuts, cuts], shift=-1.0, scale=0.5, fill=0.75),
        },
    }
    # A raw column needs a cross that reads it before the schema knows how many ids it has.
    so_far = make_schema(
        [*features, wd.crossed("raw", "cut", name="pre", hash_buckets=5)], **common
    )
    cross, known = draw(crosses(so_far, ["text", "code", "tags", "cut", "cuts", "raw"]))
    features += [cross, wd.crossed("raw", "cut", name="pre", hash_buckets=5)]
    vocabularies |= known
    counted = draw(
        st.lists(st.sampled_from(["text", "tags", "cut", "cuts", cross.name]), unique=True)
    )
    features += [wd.indicator(f"counts of {name}", source=name) for name in counted]
    wide = None if draw(st.booleans()) else ["n", "v", "text", "bins", "line", cross.name]
    return make_schema(features, wide=wide, **common)


def rows() -> st.SearchStrategy[list[dict[str, Any]]]:
    text = st.none() | st.sampled_from([*WORDS, "unseen"])
    integer = st.none() | st.sampled_from([*NUMBERS, 2, 3, 10**17])
    number = st.none() | st.floats(-10, 10) | st.just(float("nan"))
    row = st.fixed_dictionaries(
        {
            "text": text,
            "code": integer,
            "tags": st.none() | st.lists(text, max_size=4),
            "raw": text,
            "n": number,
            "v": st.none() | st.lists(number, min_size=2, max_size=2),
        }
    )
    return st.lists(row, max_size=6)


ARROW_SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "code": pa.int64(),
        "tags": pa.list_(pa.string()),
        "raw": pa.large_string(),
        "n": pa.float64(),
        "v": pa.list_(pa.float64()),
    }
)


@settings(max_examples=400)
@given(schemas(), rows())
def test_tables_and_dicts_equal_the_reference(schema: Schema, rows: list[dict[str, Any]]) -> None:
    expected = [encode_row(schema, row) for row in rows]
    transform = Transform(schema)
    table = pa.Table.from_pylist(rows, schema=ARROW_SCHEMA)
    check_batch(transform(table, targets=False), expected, schema)
    check_batch(transform.rows(rows), expected, schema)


@settings(max_examples=100)
@given(schemas(), rows(), st.integers(2, 4))
def test_threads_and_batches_change_nothing(
    schema: Schema, rows: list[dict[str, Any]], threads: int
) -> None:
    repeats = 2000 // max(1, len(rows))
    table = pa.Table.from_pylist(rows * repeats, schema=ARROW_SCHEMA)
    once = Transform(schema)(table, targets=False)
    cut = pa.Table.from_batches(table.to_batches(max_chunksize=700), table.schema)
    again = Transform(schema, threads=threads)(cut, targets=False)
    for name in ("ids_N", "offsets_BF", "dense_BK", "values_N"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name), err_msg=name)


@settings(max_examples=200)
@given(schemas(), rows(), st.data())
def test_part_ids_equal_the_reference(
    schema: Schema, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    table = pa.Table.from_pylist(rows, schema=ARROW_SCHEMA)
    names = ["text", "code", "tags", "cut"]
    found = Transform(schema).part_ids(table, names)
    slots = [slot.name for slot in schema.slots]
    for name, (ids, offsets) in zip(names, found, strict=True):
        if name not in slots:
            continue
        expected = [encode_row(schema, row).cells[slots.index(name)] for row in rows]
        assert np.diff(offsets).tolist() == [len(cell) for cell in expected]
        assert ids.tolist() == [id_ for cell in expected for id_, _ in cell]


def test_a_number_just_below_an_edge_stays_below_it() -> None:
    cut = wd.bucketized("cut", source="n", boundaries=[0.0])
    schema = make_schema([cut], kinds={"n": "float"}, boundaries={"cut": [0.0]}, wide=["cut"])
    numbers = [-1.0, -1e-310, -5e-324, -0.0, 5e-324]
    for threads in (1, 2):
        found = Transform(schema, threads=threads)(pa.table({"n": numbers}), targets=False)
        assert found.ids_N.tolist() == [2, 2, 2, 3, 3]


MIXED: list[Any] = [None, True, 7, -3, 2**63, 1.0, 1.5, float("inf"), "7", "-3", "n/a", "", b"7"]
MIXED += ["007", "-0", "0", "00", "+7", " 7", "7.0"]


@pytest.mark.parametrize("value", [*MIXED, [7, "7"], ["n/a"], [], [None]], ids=repr)
@pytest.mark.parametrize("kind", ["string", "int"])
@pytest.mark.parametrize("way", ["vocabulary", "hash_buckets"])
def test_values_of_any_type_are_read_by_the_schemas_type(value: Any, kind: str, way: str) -> None:
    known = {"string": ["7", "-3", ""], "int": [7, -3, 0]}[kind]
    options: dict[str, Any] = {"hash_buckets": 50} if way == "hash_buckets" else {}
    schema = make_schema(
        wd.categorical("x", **options), kinds={"x": kind}, vocabularies={"x": vocabulary(known)}
    )
    check_same_or_both_refuse(schema, {"x": value})


@pytest.mark.parametrize("value", [*MIXED, [7], [7, 8]], ids=repr)
def test_numbers_of_any_type(value: Any) -> None:
    check_same_or_both_refuse(make_schema(wd.numeric("x", transform="none")), {"x": value})


def check_same_or_both_refuse(schema: Schema, row: dict[str, Any]) -> None:
    from tests.data.transform_reference import ReferenceError

    try:
        expected = encode_row(schema, row)
    except ReferenceError:
        with pytest.raises(WideDeepError, match=r"feature 'x' \(row 0\): got .*, expected"):
            Transform(schema).rows([row])
    else:
        check_batch(Transform(schema).rows([row]), [expected], schema)
