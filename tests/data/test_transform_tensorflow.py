"""Ids agree with TensorFlow's feature columns (2.15), up to the two ids that are reserved here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import widedeep as wd
from tests.data.schemas import make_schema, vocabulary
from widedeep.data.batch import Batch
from widedeep.data.transform import Transform
from widedeep.schema import Schema, Vocabulary

ORACLES = Path(__file__).parents[1] / "oracles"
HASHING = json.loads((ORACLES / "tensorflow_hashing.json").read_text())
COLUMNS = json.loads((ORACLES / "tensorflow_columns.json").read_text())

# TensorFlow's rules that have no counterpart here: -1 and "" as missing in dense tensors, dense
# parts folded after sparse ones, a cross within a cross.
NOT_OURS = (
    "-1 in a dense column",
    "folded after the sparse ones",
    "within a cross",
    "empty text in a dense column",
    "dense bag of raw text",
)


def ids_of(batch: Batch) -> list[list[int]]:
    bounds = zip(batch.offsets_BF[:-1], batch.offsets_BF[1:], strict=True)
    return [[int(i) for i in batch.ids_N[a:b]] for a, b in bounds]


def known_ids(rows: list[list[int]]) -> list[list[int]]:
    """TensorFlow's ids as ours: a missing value has the id 1, known ones follow it."""
    return [[2 + i for i in row] if row else [1] for row in rows]


def arrow_column(feature: dict[str, Any]) -> pa.Array:
    """Rows as lists; TensorFlow's empty row is a null here, for an empty list has no id at all."""
    types = {"string": pa.string(), "int64": pa.int64(), "float32": pa.float32()}
    if feature.get("dense") and len(feature["rows"][0]) == 1:
        return pa.array([row[0] for row in feature["rows"]], types[feature["dtype"]])
    return pa.array([row or None for row in feature["rows"]], pa.list_(types[feature["dtype"]]))


class Declared:
    """A TensorFlow column, declared our way."""

    def __init__(self, column: dict[str, Any], features: dict[str, Any]) -> None:
        self.kinds = {
            name: {"string": "string", "int64": "int", "float32": "float"}[feature["dtype"]]
            for name, feature in features.items()
        }
        parts = [part for part in column.get("parts", []) if not isinstance(part, str)]
        self.keys = {part.get("key") for part in parts}
        self.vocabularies: dict[str, Vocabulary] = {}
        self.boundaries: dict[str, list[float]] = {}
        self.features: list[object] = []
        self.name = self.declare(column)

    def declare(self, column: dict[str, Any] | str) -> str:
        if isinstance(column, str):
            return column if column not in self.keys else self.declare_raw(column)
        name = str(column.get("key") or f"column {len(self.features)}")
        declared: Any
        if column["kind"] == "bucketized":
            declared = wd.bucketized(
                name,
                source=column["source"]["key"],
                boundaries=column["boundaries"],
                size=column["source"].get("shape", 1),
            )
            self.boundaries[name] = column["boundaries"]
        elif column["kind"] == "vocabulary":
            oov, default = column.get("oov_buckets", 0), column.get("default")
            declared = wd.categorical(
                name,
                vocabulary=column["vocabulary"],
                oov_buckets=oov,
                oov="id" if oov or default is not None else "drop",
                default_value=None if default is None else column["vocabulary"][default],
            )
            self.vocabularies[name] = vocabulary(column["vocabulary"])
        elif column["kind"] == "hash_bucket":
            declared = wd.categorical(name, hash_buckets=column["buckets"])
        elif column["kind"] == "identity":
            declared = wd.categorical(
                name, num_buckets=column["buckets"], default_value=column["default"]
            )
        else:
            parts = [self.declare(part) for part in column["parts"]]
            declared = wd.crossed(
                *parts,
                name="cross",
                hash_buckets=column["buckets"],
                hash_key=column.get("hash_key"),
            )
            name = "cross"
        self.features.append(declared)
        return name

    def declare_raw(self, column: str) -> str:
        """A raw column whose name a feature has: a second feature over it, hashed as it is."""
        name = f"{column}, raw"
        self.features.append(wd.categorical(name, source=column, hash_buckets=1))
        return name

    def schema(self) -> Schema:
        return make_schema(
            self.features,
            kinds=self.kinds,
            vocabularies=self.vocabularies,
            boundaries=self.boundaries,
            wide=[self.name],
            deep=[],
        )


CASES = [case for case in COLUMNS["ids"] if not any(words in case["name"] for words in NOT_OURS)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_ids_of_columns(case: dict[str, Any]) -> None:
    declared = Declared(case["column"], case["features"])
    table = pa.table({name: arrow_column(f) for name, f in case["features"].items()})
    found = ids_of(Transform(declared.schema())(table, targets=False))
    if case["column"]["kind"] == "crossed":
        expected = [[2 + i for i in row] for row in case["ids"]]
    elif case["column"].get("oov_buckets"):
        # Here the buckets of unseen values lie before the vocabulary, there behind it.
        known, buckets = len(case["column"]["vocabulary"]), case["column"]["oov_buckets"]
        shifted = [[i + buckets if i < known else i - known for i in row] for row in case["ids"]]
        expected = known_ids(shifted)
    else:
        expected = [[2 + i for i in row if i >= 0] if row else [1] for row in case["ids"]]
    assert found == expected


def test_the_cases_cover_every_kind_of_column() -> None:
    kinds = {case["column"]["kind"] for case in CASES}
    assert kinds == {"bucketized", "vocabulary", "hash_bucket", "identity", "crossed"}
    assert len(CASES) >= 19


@pytest.mark.parametrize(
    "entry", HASHING["hash_bucket"], ids=lambda e: f"{e['dtype']}-{e['buckets']}"
)
def test_hash_buckets(entry: dict[str, Any]) -> None:
    kind = {"string": "string", "int64": "int"}[entry["dtype"]]
    schema = make_schema(wd.categorical("x", hash_buckets=entry["buckets"]), kinds={"x": kind})
    values = pa.array(entry["values"], pa.string() if kind == "string" else pa.int64())
    batch = Transform(schema)(pa.table({"x": values}), targets=False)
    assert batch.ids_N.tolist() == [2 + i for i in entry["ids"]]


@pytest.mark.parametrize(
    "entry",
    [
        e
        for e in HASHING["fingerprint_cat64"]
        if e["hash_key"] == 0xDECAFCAFFE and len(e["parts"]) > 1
    ],
    ids=lambda e: e["name"],
)
@pytest.mark.parametrize("buckets", [1000, 2**31])
def test_hashed_crosses(entry: dict[str, Any], buckets: int) -> None:
    names = [f"part {i}" for i in range(len(entry["parts"]))]
    kinds = {
        name: {"string": "string", "int64": "int"}[dtype]
        for name, dtype in zip(names, entry["part_types"], strict=True)
    }
    types = {"string": pa.string(), "int64": pa.int64()}
    columns = {
        name: pa.array(part, pa.list_(types[dtype]))
        for name, part, dtype in zip(names, entry["parts"], entry["part_types"], strict=True)
    }
    schema = make_schema([wd.crossed(*names, hash_buckets=buckets)], kinds=kinds)
    found = ids_of(Transform(schema)(pa.table(columns), targets=False))
    assert found == [[2 + i for i in row] for row in entry["bucket_ids"][str(buckets)]]
