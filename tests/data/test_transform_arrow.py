"""Every Arrow type, sliced and chunked in every way, gives what the plain values give."""

from __future__ import annotations

import datetime
import decimal
import gc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from tests.data.schemas import make_schema, vocabulary
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError
from widedeep.schema import Schema

TEXT_TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
]
INTEGER_TYPES = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal32(5, 1), pa.decimal64(9, 2), pa.decimal128(20, 3), pa.decimal256(50, 4)),
    *(pa.string(), pa.large_string(), pa.string_view()),
]
NUMBER_TYPES = INTEGER_TYPES[:15]
INDEX_TYPES = INTEGER_TYPES[:8]
LIST_TYPES: list[Callable[[pa.DataType], pa.DataType]] = [
    *(pa.list_, pa.large_list, pa.list_view, pa.large_list_view),
]
WORDS = ["a", "", "bb", "unseen", "a rather long word", "ä" * 20]
KNOWN = ["a", "bb", "a rather long word", "ä" * 20]


def typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Python values as an array of a type; integers as what they are there."""
    if pa.types.is_decimal(kind):
        values = [None if v is None else decimal.Decimal(v) for v in values]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        values = [v if v is None or isinstance(v, str) else str(v) for v in values]
    elif pa.types.is_float16(kind):
        values = [None if v is None else np.float16(v) for v in values]
    elif pa.types.is_large_binary(kind) or pa.types.is_binary(kind) or kind == pa.binary_view():
        values = [None if v is None else v.encode() for v in values]
    return pa.array(values, kind)


@st.composite
def encoded(draw: st.DrawFn, values: list[Any], kinds: list[pa.DataType]) -> pa.Array:
    """The values in some type, plain or as an odd dictionary, cut from a larger array."""
    kind = draw(st.sampled_from(kinds))
    before = draw(st.integers(0, 9))
    after = draw(st.integers(0, 3))
    filler = next((v for v in values if v is not None), None)
    padded = [filler] * before + values + [None] * after
    array = typed(padded, kind) if draw(st.booleans()) else dictionary(draw, padded, kind)
    return array.slice(before, len(values))


def dictionary(draw: st.DrawFn, values: list[Any], kind: pa.DataType) -> pa.DictionaryArray:
    """Nulls in the index and in the dictionary, entries twice and entries that no row uses."""
    entries = draw(st.permutations([*dict.fromkeys(values), *values[:2], None]))
    places: dict[Any, list[int]] = {}
    for i, entry in enumerate(entries):
        places.setdefault(entry, []).append(i)
    codes = [
        None if v is None and draw(st.booleans()) else draw(st.sampled_from(places[v]))
        for v in values
    ]
    indices = pa.array(codes, draw(st.sampled_from(INDEX_TYPES)))
    return pa.DictionaryArray.from_arrays(indices, typed(entries, kind))


@st.composite
def chunked(draw: st.DrawFn, values: list[Any], kinds: list[pa.DataType]) -> list[pa.Array]:
    """The values in chunks, all of one type but each cut from an array of its own."""
    kind = [draw(st.sampled_from(kinds))]
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=2)))
    bounds = [0, *cuts, len(values)]
    return [draw(encoded(values[a:b], kind)) for a, b in pairwise(bounds) if b > a]


def assert_same(one: Batch, other: Batch) -> None:
    for name in ("ids_N", "offsets_BF", "dense_BK", "values_N", "group_B"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def encode(schema: Schema, chunks: list[pa.Array]) -> Batch:
    """Chunks may be encoded differently, as files of a data set are."""
    transform = Transform(schema, threads=2)
    if len({chunk.type for chunk in chunks}) == 1:
        return transform(pa.table({"x": pa.chunked_array(chunks)}), targets=False)
    return Batch.concat([transform(pa.table({"x": c}), targets=False) for c in chunks])


TEXT = make_schema(
    [
        wd.categorical("x", oov_buckets=3),
        wd.categorical("x2", source="x", hash_buckets=5),
        wd.crossed("x", "x2", hash_buckets=99),
    ],
    vocabularies={"x": vocabulary(KNOWN)},
)
INTEGERS = make_schema(
    [
        wd.categorical("x"),
        wd.categorical("h", source="x", hash_buckets=7),
        wd.crossed("x", "h", hash_buckets=99),
    ],
    kinds={"x": "int"},
    vocabularies={"x": vocabulary([1, 5, 100])},
)
NUMBERS = make_schema(
    [
        wd.numeric("x", transform="none", missing="indicator"),
        wd.bucketized("cut", source="x", boundaries=[2, 5]),
    ],
    boundaries={"cut": [2, 5]},
)

texts = st.lists(st.none() | st.sampled_from(WORDS), min_size=1, max_size=12)
integers = st.lists(st.none() | st.sampled_from([0, 1, 5, 7, 100]), min_size=1, max_size=12)


@settings(max_examples=300)
@given(st.data(), texts)
def test_text(data: st.DataObject, values: list[Any]) -> None:
    expected = Transform(TEXT).rows([{"x": v} for v in values])
    assert_same(expected, encode(TEXT, data.draw(chunked(values, TEXT_TYPES))))


@settings(max_examples=300)
@given(st.data(), integers)
def test_integers(data: st.DataObject, values: list[Any]) -> None:
    expected = Transform(INTEGERS).rows([{"x": v} for v in values])
    assert_same(expected, encode(INTEGERS, data.draw(chunked(values, INTEGER_TYPES))))


@settings(max_examples=300)
@given(st.data(), integers)
def test_numbers(data: st.DataObject, values: list[Any]) -> None:
    expected = Transform(NUMBERS).rows([{"x": v} for v in values])
    assert_same(expected, encode(NUMBERS, data.draw(chunked(values, NUMBER_TYPES))))


@settings(max_examples=300)
@given(st.data(), st.lists(st.none() | texts, min_size=1, max_size=6))
def test_lists(data: st.DataObject, lists: list[Any]) -> None:
    array = data.draw(list_array(lists, TEXT_TYPES))
    expected = Transform(TEXT).rows([{"x": v} for v in lists])
    assert_same(expected, encode(TEXT, [array]))


@st.composite
def list_array(draw: st.DrawFn, lists: list[Any], kinds: list[pa.DataType]) -> pa.Array:
    """Lists over an encoded child; null lists hide values that must not be seen."""
    padded = [["hidden"], *lists, []]
    flat: list[Any] = []
    offsets, sizes = [], []
    for items in padded:
        offsets.append(len(flat))
        flat += ["under a null"] if items is None else items
        sizes.append(len(flat) - offsets[-1])
    child = draw(encoded(flat, kinds)) if flat else pa.array([], pa.string())
    mask = pa.array([items is None for items in padded])
    ends = [*offsets, len(flat)]
    kind = draw(st.sampled_from(["list", "large_list", "list_view", "large_list_view"]))
    if kind == "list":
        array = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), child, mask=mask)
    elif kind == "large_list":
        array = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), child, mask=mask)
    elif kind == "list_view":
        array = pa.ListViewArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(sizes, pa.int32()), child, mask=mask
        )
    else:
        array = pa.LargeListViewArray.from_arrays(
            pa.array(offsets, pa.int64()), pa.array(sizes, pa.int64()), child, mask=mask
        )
    return array.slice(1, len(lists))


@settings(max_examples=100)
@given(
    st.data(),
    st.lists(st.none() | st.tuples(*[st.none() | st.sampled_from(WORDS)] * 2), min_size=1),
)
def test_fixed_size_lists(data: st.DataObject, pairs: list[Any]) -> None:
    flat = [item for pair in pairs for item in (pair or ("under a null", None))]
    child = data.draw(encoded(["hidden", "hidden", *flat], TEXT_TYPES))
    mask = pa.array([False, *(pair is None for pair in pairs)])
    array = pa.FixedSizeListArray.from_arrays(child, 2, mask=mask).slice(1)
    expected = Transform(TEXT).rows([{"x": pair} for pair in pairs])
    assert_same(expected, encode(TEXT, [array]))


VECTORS = make_schema(wd.numeric("x", transform="none", missing="indicator", size=2))


@pytest.mark.parametrize("make", [*LIST_TYPES, lambda kind: pa.list_(kind, 2)])
@pytest.mark.parametrize("item", [pa.float32(), pa.float64(), pa.int16()])
def test_vectors(make: Callable[[pa.DataType], pa.DataType], item: pa.DataType) -> None:
    rows = [[9, 9], [1, 2], None, [None, 4], [5, None]]
    array = pa.array(rows, make(item)).slice(1)
    dense = Transform(VECTORS)(pa.table({"x": array}), targets=False).dense_BK
    assert dense.tolist() == [[1, 2, 0, 0], [0, 0, 1, 1], [0, 4, 1, 0], [5, 0, 0, 1]]


MOMENT = datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, datetime.UTC)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.timestamp("s"), 3, 3_000_000),
        (pa.timestamp("ms", "UTC"), 3, 3_000),
        (pa.timestamp("us"), 3, 3),
        (pa.timestamp("ns"), 3_999, 3),
        (pa.timestamp("ns"), -1, -1),
        (pa.date32(), 2, 172_800_000_000),
        (pa.date64(), 172_800_000, 172_800_000_000),
    ],
    ids=str,
)
def test_points_in_time_are_microseconds(kind: pa.DataType, value: int, expected: int) -> None:
    schema = make_schema(
        wd.categorical("x"), kinds={"x": "int"}, vocabularies={"x": vocabulary([expected])}
    )
    column = pa.array([value, None], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    batch = Transform(schema)(pa.table({"x": column}), targets=False)
    assert batch.ids_N.tolist() == [2, 1]


def test_times_of_requests_are_read_to_the_microsecond() -> None:
    schema = make_schema(
        wd.categorical("x"), kinds={"x": "int"}, vocabularies={"x": vocabulary([-1])}
    )
    moments = [MOMENT, MOMENT.replace(tzinfo=None), np.datetime64(-1, "us"), pd.Timestamp(MOMENT)]
    batch = Transform(schema).rows([{"x": m} for m in [*moments, pd.NaT, np.datetime64("NaT")]])
    assert batch.ids_N.tolist() == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.uint8(), pa.float32()], ids=str)
def test_booleans_are_zero_and_one(kind: pa.DataType) -> None:
    column = pa.array([None, True, False, None, True]).cast(kind).slice(1)
    schema = make_schema(
        [wd.categorical("x", num_buckets=2), wd.numeric("n", source="x", transform="none")],
        kinds={"x": "bool"},
    )
    batch = Transform(schema)(pa.table({"x": column}), targets=False)
    assert batch.ids_N.tolist() == [3, 2, 1, 3]
    assert batch.dense_BK[:, 0].tolist() == [1, 0, 0, 1]


def test_a_column_of_nulls_alone_is_missing() -> None:
    for schema in (TEXT, INTEGERS, NUMBERS):
        batch = Transform(schema)(pa.table({"x": pa.nulls(2)}), targets=False)
        assert_same(batch, Transform(schema).rows([{"x": None}, {"x": None}]))


def test_nulls_without_a_bitmap_and_bitmaps_that_nobody_counted() -> None:
    """What other producers than Arrow's own libraries hand over."""
    offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
    data = pa.py_buffer(b"abb")
    absent = pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
    counted = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), offsets, data], -1)
    assert encode(TEXT, [absent]).ids_N[0] == encode(TEXT, [pa.array(["a"])]).ids_N[0]
    assert (
        encode(TEXT, [counted]).ids_N.tolist()
        == encode(TEXT, [pa.array([None, "bb"])]).ids_N.tolist()
    )


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (pa.nulls(1, pa.struct({"a": pa.int64()})), "struct"),
        (pa.nulls(1, pa.map_(pa.string(), pa.int64())), "map"),
        (pa.nulls(1, pa.time64("us")), "time"),
        (pa.nulls(1, pa.duration("s")), "duration"),
        (pa.nulls(1, pa.binary(4)), "fixed-size binary"),
        (pa.nulls(1, pa.list_(pa.list_(pa.string()))), "list of lists or structs"),
        (pc.run_end_encode(pa.array(["a"])), "run-end encoded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_types_are_refused_by_name(column: pa.Array, shown: str) -> None:
    with pytest.raises(FeatureError) as error:
        Transform(TEXT)(pa.table({"x": column}), targets=False, origin="train.parquet")
    assert str(error.value).startswith(
        f"feature 'x' (column 'x' of train.parquet): got the Arrow type {shown}, expected text"
    )


def test_frames_of_polars_and_pandas() -> None:
    words = ["a", None, "bb", "unseen"]
    frames = [
        pl.DataFrame({"x": words}).to_arrow(),
        pl.DataFrame({"x": words}, schema={"x": pl.Categorical}).to_arrow(),
        pa.table(pl.DataFrame({"x": words})),
        pa.Table.from_pandas(pd.DataFrame({"x": pd.Series(words, dtype="category")})),
        pa.Table.from_pandas(pd.DataFrame({"x": pd.Series(words, dtype="string")})),
    ]
    expected = Transform(TEXT).rows([{"x": word} for word in words])
    for table in frames:
        assert_same(expected, Transform(TEXT)(table, targets=False))


def test_batches_are_released_once_read() -> None:
    gc.collect()
    before = pa.total_allocated_bytes()
    schema = make_schema(wd.categorical("x", hash_buckets=9))
    batch = pa.record_batch({"x": [f"{i} is longer than eight bytes" for i in range(50_000)]})
    assert pa.total_allocated_bytes() > before
    encoded = Transform(schema)(batch, targets=False)
    del batch
    gc.collect()
    assert pa.total_allocated_bytes() <= before
    assert len(encoded) == 50_000
