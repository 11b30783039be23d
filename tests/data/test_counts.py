"""A schema that is learned from counts of values is the one that the rows teach, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.data.counts import SAMPLE_ROWS
from widedeep.data.row_sample import sampled_rows
from widedeep.errors import ConfigError, DataError, WideDeepError

ROWS = 300_000  # Quantiles are read at a sample of these, and those of labels at another.
KINDS = {"text": pa.string(), "integer": pa.int64(), "real": pa.float64()}


PLACES = np.tile([-0.0, 0.0, np.nan, 1e30], ROWS // 4)  # Zeros of both signs, and NaN


def table() -> pa.Table:
    draw = np.random.default_rng(0)
    words = pa.array([f"w{n}" for n in range(400)]).take(draw.zipf(1.3, ROWS) % 400)
    lists = pa.ListArray.from_arrays(
        np.arange(0, 2 * ROWS + 1, 2, dtype=np.int32), draw.integers(0, 50, 2 * ROWS)
    )
    missing = draw.random(ROWS) < 0.1
    return pa.table(
        {
            "word": pa.array(np.asarray(words), pa.string(), mask=missing[::-1]),
            "items": pc.if_else(pa.array(draw.random(ROWS) < 0.05), None, lists),
            "age": pa.array(draw.integers(0, 90, ROWS), pa.int32(), mask=missing),
            "price": pa.array(np.where(missing, PLACES, draw.lognormal(0, 2, ROWS)), pa.float32()),
            "is_new": pa.array(draw.random(ROWS) < 0.3),
            "request": pa.array(np.arange(ROWS)),
            "spend": draw.gamma(0.5, 20, ROWS),
            "weight": np.where(missing, 1.0, 4.0),
        }
    )


def counted(values: pa.Array, own: str) -> pa.Table:
    """Count as SQL's ``GROUP BY`` does: -0.0 and 0.0 are one, and nulls are a group."""
    plain = values.cast(KINDS[own])
    if own == "real":
        plain = pc.add(plain, 0.0)
    groups = pa.table({"v": plain}).group_by("v").aggregate([([], "count_all")])
    columns = {
        kind: groups["v"] if kind == own else pa.nulls(len(groups), kind_type)
        for kind, kind_type in KINDS.items()
    }
    return pa.table({**columns, "wd_count": groups["count_all"]})


def write_counts(rows: pa.Table, folder: Path, uncounted: tuple[str, ...] = ("request",)) -> Path:
    """Write counts in the documented form, as an engine would."""

    def write(number: int, counts: pa.Table) -> None:
        place = folder / "values" / f"wd_column={number}"
        place.mkdir(parents=True)
        half = len(counts) // 2
        pq.write_table(counts.slice(half), place / "part-0.parquet")
        pq.write_table(counts.slice(0, half), place / "part-1.parquet")

    numbers = {}
    for number, field in enumerate(rows.schema):
        values, nested = rows[field.name].combine_chunks(), pa.types.is_list(field.type)
        kind = field.type.value_type if nested else field.type
        own = "text" if kind == pa.string() else "real" if pa.types.is_floating(kind) else "integer"
        if field.name not in uncounted:
            write(number, counted(values.flatten() if nested else values, own))
        if nested:
            lengths = pc.list_value_length(values)
            write(number + rows.num_columns, counted(lengths, "integer"))
        elif own != "text" and field.name not in uncounted:
            numbers[field.name] = rows[field.name]
    row_S = sampled_rows(rows.num_rows, SAMPLE_ROWS, seed=0)
    (folder / "sample").mkdir()
    sample = pa.table(numbers).take(pa.array(row_S)).add_column(0, "wd_row", pa.array(row_S))
    pq.write_table(sample, folder / "sample" / "part-0.parquet")
    pq.write_metadata(rows.schema, folder / "schema.parquet")
    content = {
        "kind": "widedeep counts",
        "format": 1,
        "rows": rows.num_rows,
        "columns": rows.column_names,
        "uncounted": list(uncounted),
        "sample_rows": SAMPLE_ROWS,
    }
    (folder / "counts.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return table()


@pytest.fixture(scope="module")
def counts(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counts(rows, tmp_path_factory.mktemp("counts"))


SPEC = wd.FeatureSpec(
    label="spend",
    weight="weight",
    group="request",
    features=[
        *wd.categorical("word", min_count=20),
        *wd.categorical("items", max_size=30, maxlen=1),
        *wd.categorical("is_new"),
        *wd.numeric("age"),
        *wd.numeric("price", transform="log1p"),
        wd.bucketized("price_bucket", source="price", quantiles=8),
        wd.crossed("word", "is_new", hash_buckets=1_000),
    ],
)


def test_the_schema_is_that_of_the_rows(rows: pa.Table, counts: Path, tmp_path: Path) -> None:
    for name, given in {"rows": {"data": rows}, "counts": {"counts": counts}}.items():
        wd.fit_schema(SPEC, **given).save(tmp_path / name)  # type: ignore[arg-type]
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "counts").read_bytes()
    schema = wd.Schema.load(tmp_path / "counts")
    assert schema.rows == ROWS
    assert any("300,000" not in note and "lists are longer" in note for note in schema.notes)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (wd.categorical("request"), {}, "'request' is not among the counts"),
        (wd.numeric("request"), {}, "'request' is not among the counts"),
        (
            [*wd.categorical("word"), wd.crossed("word", "is_new")],
            {},
            "which values occur together",
        ),
        (wd.numeric("items", size=2), {}, "lists of numbers, whose order"),
        (wd.numeric("age"), {"seed": 1}, "sampled by seed 0"),
        (wd.numeric("age"), {"sample_rows": 270_000}, "262,144 of 300,000 rows"),
        (wd.numeric("age"), {"data": [{"age": 1}]}, "got both data and counts"),
    ],
)
def test_what_counts_do_not_hold(
    counts: Path, features: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(WideDeepError, match=message):
        wd.fit_schema(wd.FeatureSpec(features=list(features)), counts=counts, **options)


def test_no_counts(tmp_path: Path, counts: Path) -> None:
    spec = wd.FeatureSpec(features=list(wd.numeric("age")))
    with pytest.raises(DataError, match=r"no counts\.json; expected the folder counts/"):
        wd.fit_schema(spec, counts=tmp_path)
    with pytest.raises(ConfigError, match="got neither data nor counts"):
        wd.fit_schema(spec)
    with pytest.raises(DataError, match="no column 'agee'"):
        wd.fit_schema(wd.FeatureSpec(features=list(wd.numeric("agee"))), counts=counts)
    (tmp_path / "counts.json").write_text('{"kind": "widedeep counts", "format": 1}')
    with pytest.raises(DataError, match="damaged counts"):
        wd.fit_schema(spec, counts=tmp_path)
