"""A number means the same in whatever form it comes: as its column stored it in training."""

from __future__ import annotations

import datetime
import decimal
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data.fragments import column_stream
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError, FeatureError
from widedeep.files import map_tensors, read_metadata
from widedeep.schema import ColumnType, Schema

TENTHS = [round(0.1 * n, 1) for n in range(1, 10)]
FLOATS = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
UNITS = ("s", "ms", "us", "ns")


def features(**options: Any) -> list[Any]:
    return [
        *wd.numeric("x", **options),
        wd.bucketized("given", source="x", boundaries=TENTHS),
        wd.bucketized("learned", source="x", quantiles=9),
        wd.bucketized("bins", source="x", bins=9),
        wd.crossed("given", "learned"),
        wd.crossed("given", "learned", hash_buckets=1000, name="hashed"),
    ]


def column(values: list[Any], kind: pa.DataType) -> pa.Table:
    if pa.types.is_float16(kind):
        return pa.table({"x": pa.array(np.array(values, np.float16))})
    return pa.table({"x": pa.array(values, kind)})


def encoded(batch: Any) -> tuple[list[int], list[float]]:
    return batch.ids_N.tolist(), batch.dense_BK.ravel().tolist()


def read_back(path: Path, transform: Transform) -> Any:
    types = {name: kind.arrow() for name, kind in transform.schema.columns.items()}
    columns = transform.columns(targets=False)
    with open_source(str(path), columns=columns, column_types=types) as source:
        return transform(pa.concat_tables(column_stream(source)), targets=False)


@pytest.mark.parametrize("storage", FLOATS)
@pytest.mark.parametrize("transform", ["quantile", "standard", "minmax", "log1p", "none"])
def test_each_way_in_gives_what_the_column_gives(
    storage: str, transform: str, tmp_path: Path
) -> None:
    rows = column(TENTHS, FLOATS[storage])
    schema = wd.fit_schema(wd.FeatureSpec(features=features(transform=transform)), rows)
    assert schema.columns["x"] == ColumnType(kind="float", storage=storage)
    encode = Transform(schema)
    expected = encoded(encode(rows, targets=False))
    wide = column(TENTHS, pa.float64())
    pq.write_table(wide, tmp_path / "wide.parquet")
    pa.feather.write_feather(wide, str(tmp_path / "wide.feather"))
    (tmp_path / "wide.csv").write_text("x\n" + "\n".join(map(str, TENTHS)) + "\n")
    found = {
        "dicts": encode.rows([{"x": value} for value in TENTHS]),
        "numpy": encode.rows([{"x": np.float64(value)} for value in TENTHS]),
        "decimals": encode.rows([{"x": decimal.Decimal(str(value))} for value in TENTHS]),
        "table": encode(wide, targets=False),
        "dictionary": encode(pa.table({"x": wide["x"].dictionary_encode()}), targets=False),
        "pandas": encode(pa.Table.from_pandas(pd.DataFrame({"x": TENTHS})), targets=False),
        "polars": encode(pl.DataFrame({"x": TENTHS}).to_arrow(), targets=False),
        "decimal column": encode(
            pa.table({"x": pa.array([decimal.Decimal(str(v)) for v in TENTHS])}), targets=False
        ),
        **{name: read_back(tmp_path / f"wide.{name}", encode) for name in ("parquet", "csv")},
    }
    for way, batch in found.items():
        assert encoded(batch) == expected, way


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-65_000, 65_000), min_size=1, max_size=40), st.sampled_from(list(FLOATS)))
def test_any_number_is_rounded_as_numpy_rounds_it(values: list[float], storage: str) -> None:
    cuts = sorted({*values, 0.0, 1.0})
    spec = wd.FeatureSpec(
        features=[
            *wd.numeric("x", transform="none"),
            wd.bucketized("b", source="x", boundaries=cuts),
        ]
    )
    schema = wd.fit_schema(spec, column([1.0, 2.0], FLOATS[storage]))
    encode = Transform(schema)
    held = np.array(values).astype(storage)
    expected = encode(column(held.tolist(), FLOATS[storage]), targets=False)
    batch = encode.rows([{"x": value} for value in values])
    assert encoded(batch) == encoded(expected)
    assert batch.dense_BK[:, 0].tolist() == held.astype(np.float32).tolist()
    buckets = np.searchsorted(np.array(cuts).astype(storage), held, side="right")
    assert (batch.ids_N.reshape(len(values), -1)[:, -1] - 2).tolist() == buckets.tolist()


def test_a_boundary_lies_at_the_start_of_its_bucket() -> None:
    spec = wd.FeatureSpec(features=[wd.bucketized("b", source="x", boundaries=TENTHS)])
    schema = wd.fit_schema(spec, column(TENTHS, pa.float32()))
    ids = Transform(schema).rows([{"x": value} for value in TENTHS]).ids_N
    assert ids.tolist() == list(range(3, 12))


@pytest.mark.parametrize("narrow", ["float32", "float16"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_narrower_numbers_lie_in_the_buckets_of_wider_ones(narrow: str, dictionary: bool) -> None:
    spec = wd.FeatureSpec(
        features=[
            wd.bucketized("b", source="x", boundaries=TENTHS),
            wd.bucketized("q", source="x", quantiles=9),
            wd.bucketized("bins", source="x", bins=9),
        ]
    )
    wide = column(3 * TENTHS, pa.float64())
    schema = wd.fit_schema(spec, wide)
    assert len(schema.boundaries["bins"]) == 8
    encode = Transform(schema)
    rows = column(3 * TENTHS, FLOATS[narrow])
    if dictionary and narrow == "float32":
        rows = pa.table({"x": rows["x"].dictionary_encode()})
    assert encoded(encode(rows, targets=False)) == encoded(encode(wide, targets=False))


def test_vectors_and_values_for_nulls_are_rounded_too() -> None:
    kind = pa.list_(pa.float32(), 2)
    rows = pa.table({"v": pa.array([[0.1, 0.2], [0.3, 0.7], None], kind)})
    spec = wd.FeatureSpec(features=wd.numeric("v", size=2, missing=0.7))
    schema = wd.fit_schema(spec, rows)
    encode = Transform(schema)
    expected = encode(rows, targets=False).dense_BK.tolist()
    assert encode.rows([{"v": [0.1, 0.2]}, {"v": [0.3, 0.7]}, {}]).dense_BK.tolist() == expected
    assert encode.rows([{"v": [0.1, 0.7]}]).dense_BK[0, 1] == expected[2][1]


def test_a_fixed_value_is_rounded_too() -> None:
    spec = wd.FeatureSpec(
        features=[wd.bucketized("b", source="x", boundaries=TENTHS), *wd.numeric("x")],
        training_only={"b": 0.7},
    )
    schema = wd.fit_schema(spec, column(TENTHS, pa.float32()))
    assert Transform(schema).rows([{}]).ids_N.tolist() == [9]


@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("value", [1e39, -1e39])
def test_a_number_beyond_the_column_is_refused(storage: str, value: float) -> None:
    schema = wd.fit_schema(
        wd.FeatureSpec(features=wd.numeric("x")), column([1, 2], FLOATS[storage])
    )
    with pytest.raises(FeatureError, match=rf"'x' \(row 1\).*1e\+39.*within {storage}"):
        Transform(schema).rows([{"x": 1.0}, {"x": value}])


@pytest.mark.parametrize("storage", FLOATS)
def test_null_nan_and_absent_are_one_and_so_are_zeros(storage: str) -> None:
    schema = wd.fit_schema(wd.FeatureSpec(features=features()), column(TENTHS, FLOATS[storage]))
    encode = Transform(schema)
    rows = encode.rows([{}, {"x": None}, {"x": float("nan")}, {"x": np.float32("nan")}])
    assert len(set(map(tuple, rows.dense_BK.tolist()))) == 1
    typed = encode(column([float("nan")], FLOATS[storage]), targets=False)
    assert rows.ids_N.tolist() == typed.ids_N.tolist() * 4
    zeros = encode.rows([{"x": 0}, {"x": 0.0}, {"x": -0.0}, {"x": 5e-324}, {"x": False}])
    ids = zeros.ids_N.reshape(5, -1).tolist()
    assert ids.count(ids[0]) == 5


@pytest.mark.parametrize("storage", FLOATS)
def test_categories_of_a_float_column_are_what_it_could_hold(storage: str) -> None:
    values = [1, 2**11 + 1, 2**24 + 1]
    if storage == "float16":
        values = values[:2]
    rows = column([float(np.array(v, storage)) for v in values], FLOATS[storage])
    schema = wd.fit_schema(wd.FeatureSpec(features=wd.categorical("x")), rows)
    encode = Transform(schema)
    expected = encode(rows, targets=False).ids_N.tolist()
    assert 0 not in expected
    assert encode.rows([{"x": v} for v in values]).ids_N.tolist() == expected
    assert encode.rows([{"x": str(v)} for v in values]).ids_N.tolist() == expected


def test_whole_numbers_beyond_53_bits_read_alike() -> None:
    big = [2**53 + 1, 2**63 - 1, -(2**63), 2**53]
    schema = wd.fit_schema(
        wd.FeatureSpec(features=[wd.bucketized("b", source="x", boundaries=[2.0**53 + 2, 9e18])]),
        column(big, pa.int64()),
    )
    assert schema.columns["x"].storage is None
    expected = Transform(schema)(column(big, pa.int64()), targets=False)
    assert encoded(Transform(schema).rows([{"x": v} for v in big])) == encoded(expected)
    assert encoded(Transform(schema).rows([{"x": float(v)} for v in big])) == encoded(expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.decimals(-(10**14), 10**14, places=4, allow_nan=False), min_size=1, max_size=20))
def test_a_decimal_is_the_number_that_its_text_is(values: list[decimal.Decimal]) -> None:
    rows = pa.table({"x": pa.array(values, pa.decimal128(38, 4))})
    cuts = sorted({float(v) for v in values})
    spec = wd.FeatureSpec(features=[wd.bucketized("b", source="x", boundaries=cuts)])
    schema = wd.fit_schema(spec, rows)
    assert schema.columns["x"].storage == "decimal:4"
    expected = np.searchsorted(cuts, [float(v) for v in values], side="right") + 2
    encode = Transform(schema)
    assert encode(rows, targets=False).ids_N.tolist() == expected.tolist()
    for way in (float, lambda v: v, lambda v: decimal.Decimal(v)):
        assert encode.rows([{"x": way(v)} for v in values]).ids_N.tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [0, 3, 30, 76])
def test_long_decimals_are_read_to_the_nearest_double(scale: int) -> None:
    digits = ["1" + "0" * 40 + "7", "9" * 70, "-" + "123456789" * 8, "-" + "9" * 76]
    values = [decimal.Decimal(d).scaleb(-scale, decimal.Context(prec=100)) for d in digits]
    rows = pa.table({"x": pa.array(values, pa.decimal256(76, scale))})
    schema = Schema(
        spec=wd.FeatureSpec(features=[wd.bucketized("b", source="x", boundaries=[1.0])]),
        columns={"x": ColumnType(kind="float")},
        vocabularies={},
        boundaries={"b": np.array(sorted(float(v) for v in values))},
        numerics={},
    )
    places = np.searchsorted(schema.boundaries["b"], [float(v) for v in values], side="right")
    assert Transform(schema)(rows, targets=False).ids_N.tolist() == (places + 2).tolist()


def test_a_number_for_a_decimal_column_is_rounded_to_its_digits() -> None:
    rows = pa.table({"x": pa.array([decimal.Decimal("0.07"), decimal.Decimal("1.10")])})
    spec = wd.FeatureSpec(features=[wd.bucketized("b", source="x", boundaries=[0.07, 1.1])])
    encode = Transform(wd.fit_schema(spec, rows))
    asked = [0.07, 1.1, 0.0699, 0.0651, 0.0649, 1.0999]
    assert encode.rows([{"x": v} for v in asked]).ids_N.tolist() == [3, 4, 3, 3, 2, 4]


@pytest.mark.parametrize("narrow", ["float32", "float16"])
def test_narrow_floats_lie_in_the_buckets_of_decimals(narrow: str) -> None:
    rows = pa.table({"x": pa.array([decimal.Decimal(str(v)) for v in TENTHS])})
    schema = wd.fit_schema(wd.FeatureSpec(features=features()), rows)
    assert schema.columns["x"].storage == "decimal:1"
    encode = Transform(schema)
    found = encode(column(TENTHS, FLOATS[narrow]), targets=False)
    assert encoded(found) == encoded(encode(rows, targets=False))


MOMENT = datetime.datetime(2024, 2, 29, 13, 5, 59, tzinfo=datetime.UTC)
EPOCH_S = int(MOMENT.timestamp())
TEXTS = [
    "2024-02-29T13:05:59Z",
    "2024-02-29 13:05:59",
    "2024-02-29T14:05:59+01:00",
    "2024-02-29T05:35:59.000-0730",
    "2024-02-29T13:05:59.000000000+00",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["number", "bucket", "category", "hashed"])
def test_one_moment_is_one_value(unit: str, kind: str) -> None:
    declared = {
        "number": wd.numeric("t", transform="minmax"),
        "bucket": [wd.bucketized("t_b", source="t", boundaries=[EPOCH_S * 1e6])],
        "category": wd.categorical("t"),
        "hashed": wd.categorical("t", hash_buckets=10**6),
    }[kind]
    steps = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    counts = [EPOCH_S * steps, 0, -steps]
    rows = pa.table({"t": pa.array(counts, pa.timestamp(unit, "UTC"))})
    spec, of_time = wd.FeatureSpec(features=declared), ColumnType(kind="int", storage=unit)
    if kind in ("number", "bucket"):  # as older versions fitted them
        microseconds = pa.table({"t": [EPOCH_S * 10**6, 0, -(10**6)]})
        schema = replace(wd.fit_schema(spec, microseconds), columns={"t": of_time})
    else:
        schema = wd.fit_schema(spec, rows)
    assert schema.columns["t"] == of_time
    encode = Transform(schema)
    expected = encoded(encode(rows.slice(0, 1), targets=False))
    ways: list[Any] = [
        *TEXTS,
        MOMENT,
        MOMENT.replace(tzinfo=None),
        np.datetime64(EPOCH_S, "s"),
        pd.Timestamp(MOMENT),
        counts[0],
        float(counts[0]),
        str(counts[0]),
    ]
    for value in ways:
        assert encoded(encode.rows([{"t": value}])) == expected, value
    for other in UNITS:
        same = pa.table({"t": pa.array([MOMENT], pa.timestamp(other))})
        assert encoded(encode(same, targets=False)) == expected, other
    numbers = pa.table({"t": pa.array(counts[:1], pa.int64())})
    assert encoded(encode(numbers, targets=False)) == expected
    texts = pa.table({"t": TEXTS[:1]})
    assert encoded(encode(texts, targets=False)) == expected


def test_a_finer_moment_is_rounded_down_to_the_columns_unit() -> None:
    rows = pa.table({"t": pa.array([-1, 0, EPOCH_S], pa.timestamp("s"))})
    encode = Transform(wd.fit_schema(wd.FeatureSpec(features=wd.categorical("t")), rows))
    expected = encode(rows, targets=False).ids_N.tolist()
    fine = ["1969-12-31T23:59:59.25", "1970-01-01T00:00:00.999999", "2024-02-29T13:05:59.5Z"]
    assert encode.rows([{"t": text} for text in fine]).ids_N.tolist() == expected
    asked = [{"t": -0.5}, {"t": 0.5}, {"t": EPOCH_S + 0.25}]
    assert encode.rows(asked).ids_N.tolist() == expected


def test_days_read_dates_and_times() -> None:
    day = datetime.date(2024, 2, 29)
    rows = pa.table({"d": pa.array([day, datetime.date(1969, 12, 31)])})
    encode = Transform(wd.fit_schema(wd.FeatureSpec(features=wd.categorical("d")), rows))
    first = encode(rows, targets=False).ids_N.tolist()[0]
    days = (day - datetime.date(1970, 1, 1)).days
    ways: list[Any] = ["2024-02-29", *TEXTS, day, MOMENT, days, str(days)]
    assert encode.rows([{"d": value} for value in ways]).ids_N.tolist() == [first] * len(ways)


@pytest.mark.parametrize(
    "value",
    ["2024-02-30", "2023-02-29T00:00", "29.02.2024", "yesterday", "2024-02-29T25:00", "2024-2-9",
     "2024-02-29T12:30+25:00", "2024-02-29T12", " 2024-02-29", "2024-02-29Z", "", "1.5", True,
     2**63, float("inf"), 1e300, "2024-02-29T12:30:00 UTC", "2024-02-29T12:30:", "-024-02-29"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(value: Any) -> None:
    rows = pa.table({"t": pa.array([0, 1], pa.timestamp("s"))})
    encode = Transform(wd.fit_schema(wd.FeatureSpec(features=wd.categorical("t")), rows))
    with pytest.raises(FeatureError, match=r"'t' \(row 0\): got .*expected a time as ISO 8601"):
        encode.rows([{"t": value}])


def test_decimals_beyond_64_bits_are_the_nearest_number(tmp_path: Path) -> None:
    numbers = [decimal.Decimal(10) ** 25 + step for step in range(40)]
    rows = pa.table({"x": pa.array(numbers, pa.decimal128(30, 0)), "y": [0, 1] * 20})
    spec = wd.FeatureSpec(label="y", features=wd.numeric("x"))
    trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False)
    trainer.fit(rows)
    bundle = trainer.export(tmp_path / "bundle")
    assert bundle.score(rows).tolist() == bundle.score(rows.to_pylist()).tolist()


_MOMENTS = [
    *("2024-05-01", "2024-05-01 12:30", "2024-05-01T12:30:00Z", "2024-05-01T14:30:00+02:00"),
    *("2024-05-01T12:30:00+0000", "2024-05-01T12:30:00.25z", "2024-05-01 12:30:00.123456789"),
    *("1969-12-31T23:59:59.9999999Z", "1714521600", "2024-05-01T12:30:00-00"),
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "kind",
    [
        *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.timestamp("us", "UTC"), pa.date32(), pa.date64()),
    ],
    ids=str,
)
def test_text_of_a_file_is_the_moment_that_it_is_in_a_row(
    kind: pa.DataType, suffix: str, tmp_path: Path
) -> None:
    fitted = wd.fit_schema(
        wd.FeatureSpec(features=wd.categorical("x", hash_buckets=1 << 30)),
        pa.table({"x": pa.array([datetime.datetime(2024, 5, 1)], pa.timestamp("ms")).cast(kind)}),
    )
    transform = Transform(fitted)
    for text in _MOMENTS:
        if text.isdigit() and "date" in str(kind):
            continue
        path = tmp_path / f"x.{suffix}"
        line = json.dumps({"x": text, "z": 1}) if suffix == "jsonl" else f"x,z\n{text},1"
        path.write_text(f"{line}\n")
        with open_source(path, columns=["x"], column_types=fitted.input_types()) as source:
            (read,) = column_stream(source)
        assert transform(read).ids_N.tolist() == transform.rows([{"x": text}]).ids_N.tolist(), text
    path.write_text('{"x": "soon"}\n' if suffix == "jsonl" else "x\nsoon\n")
    with pytest.raises(DataError, match=r"'soon', expected a value of type (timestamp|date)"):
        open_source(path, column_types=fitted.input_types())


def test_a_null_moment_is_a_null() -> None:
    rows = pa.table({"t": pa.array([0, None], pa.timestamp("s"))})
    encode = Transform(wd.fit_schema(wd.FeatureSpec(features=wd.categorical("t")), rows))
    asked = [{"t": None}, {}, {"t": float("nan")}, {"t": pd.NaT}, {"t": np.datetime64("NaT")}]
    assert encode.rows(asked).ids_N.tolist() == [1] * 5


def test_a_column_of_several_widths_takes_the_widest(tmp_path: Path) -> None:
    pq.write_table(column(TENTHS, pa.float32()), tmp_path / "a.parquet")
    pq.write_table(column(TENTHS, pa.float64()), tmp_path / "b.parquet")
    spec = wd.FeatureSpec(features=[wd.bucketized("b", source="x", boundaries=TENTHS)])
    for order in (("a", "b"), ("b", "a")):
        paths = [str(tmp_path / f"{name}.parquet") for name in order]
        schema = wd.fit_schema(spec, paths)
        assert schema.columns["x"].storage == "float64"
        assert schema.boundaries["b"].tolist() == TENTHS


def test_storage_is_part_of_the_fingerprint_and_of_the_file(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(features=wd.numeric("x"))
    narrow = wd.fit_schema(spec, column([0.5, 1.0], pa.float32()))
    wide = wd.fit_schema(spec, column([0.5, 1.0], pa.float64()))
    assert narrow != wide
    narrow.save(tmp_path / "schema")
    assert Schema.load(tmp_path / "schema") == narrow
    assert '"format": 2' in read_metadata(tmp_path / "schema")["schema"]


def test_a_schema_without_storage_reads_values_as_they_come(tmp_path: Path) -> None:
    fitted = wd.fit_schema(wd.FeatureSpec(features=features()), column(TENTHS, pa.float32()))
    old = Schema(
        spec=fitted.spec,
        columns={"x": ColumnType(kind="float")},
        vocabularies=fitted.vocabularies,
        boundaries={**fitted.boundaries, "given": np.array(TENTHS)},
        numerics=fitted.numerics,
    )
    old.save(tmp_path / "schema")
    metadata = read_metadata(tmp_path / "schema")
    assert '"format": 1' in metadata["schema"] and "storage" not in metadata["schema"]
    loaded = Schema.load(tmp_path / "schema")
    assert loaded.fingerprint == old.fingerprint
    assert map_tensors(tmp_path / "schema")
    slot = [slot.name for slot in loaded.slots].index("given")
    ids = Transform(loaded).rows([{"x": v} for v in TENTHS]).ids_N.reshape(9, -1)[:, slot]
    assert ids.tolist() == list(range(3, 12))


@pytest.mark.parametrize("before, after", [("float32", "float64"), ("float64", "float32")])
def test_growing_over_another_width_learns_numbers_anew(before: str, after: str) -> None:
    spec = wd.FeatureSpec(features=features())
    old = wd.fit_schema(spec, column(TENTHS, FLOATS[before]))
    rows = column([v + 1 for v in TENTHS], FLOATS[after])
    grown = wd.fit_schema(spec, rows, grow=old)
    fresh = wd.fit_schema(spec, rows)
    assert grown.boundaries["learned"].tolist() == fresh.boundaries["learned"].tolist()
    assert any(f"its column was {before} and is {after}" in note for note in grown.notes)
    kept = wd.fit_schema(spec, column([v + 1 for v in TENTHS], FLOATS[before]), grow=old)
    assert kept.boundaries["learned"].tolist() == old.boundaries["learned"].tolist()
