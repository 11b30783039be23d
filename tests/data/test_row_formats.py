"""JSON lines, ORC, Avro, TFRecord, lazy frames and generators of dicts."""

from __future__ import annotations

import datetime
import gzip
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import orc

from tests.data.test_remote import rows_of
from widedeep.data import json_input
from widedeep.data.sources import open_source
from widedeep.data.tfrecord_input import masked_checksum
from widedeep.errors import DataError

TIME = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)
ROWS: list[dict[str, Any]] = [
    {"job": "clerk", "age": 31, "price": 1.5, "tags": ["a", "b"], "click": True},
    {"job": None, "age": 44, "price": None, "tags": [], "click": False},
    {"job": "cook", "age": 2**53 + 1, "price": 2.25, "tags": ["c"], "click": True},
]


def write_json(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_orc(path: Path) -> Path:
    orc.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def write_avro(path: Path, codec: str = "deflate") -> Path:
    fields = [
        {"name": "job", "type": ["null", "string"]},
        {"name": "age", "type": "long"},
        {"name": "price", "type": ["null", "double"]},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "click", "type": "boolean"},
    ]
    schema = {"type": "record", "name": "row", "fields": fields}
    with open(path, "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), ROWS, codec=codec)
    return path


WRITERS = {
    "rows.jsonl": write_json,
    "rows.ndjson.gz": write_json,
    "rows.orc": write_orc,
    "rows.avro": write_avro,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_and_columns(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name)
    assert rows_of(path) == ROWS
    columns = ["price", "job"]
    assert rows_of(path, columns) == [{key: row[key] for key in columns} for row in ROWS]
    with pytest.raises(DataError, match=r"no column 'pric'.*price"):
        open_source(path, columns=["pric"])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=rf"{name}.*write it again|{name}.*one JSON object a line"):
        open_source(path)


def test_json_fields_that_come_late_and_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_input, "_CHUNK_BYTES", 40)
    rows = [{"a": 1}] * 9 + [{"a": 2.5, "at": "2026-11-29 12:00:00"}] * 9 + [{"at": "soon"}] * 5
    expected = [{"a": row.get("a"), "at": row.get("at")} for row in rows]
    assert rows_of(write_json(tmp_path / "a.jsonl", rows)) == expected
    write_json(tmp_path / "t.jsonl", [{"at": "2026-11-29 12:00:00"}])
    assert rows_of(tmp_path / "t.jsonl") == [{"at": "2026-11-29 12:00:00"}]
    times = rows_of(tmp_path / "t.jsonl", column_types={"at": pa.timestamp("us")})
    assert times == [{"at": TIME.replace(tzinfo=None)}]
    write_json(tmp_path / "ids.jsonl", [{"user": 2**64 - 1, "n": 2**64 - 1}])
    with pytest.raises(
        DataError, match=r"'user' holds a number beyond 64 bits.* write ids as text"
    ):
        open_source(tmp_path / "ids.jsonl", column_types={"user": "category"})
    write_json(tmp_path / "near.jsonl", [{"user": 0.5}, {"user": 2**53 + 1}])
    with pytest.raises(DataError, match=r"beyond 2\^53 beside fractions, which loses digits"):
        open_source(tmp_path / "near.jsonl", column_types={"user": "category"})
    write_json(tmp_path / "b.jsonl", [{"a": 1}] * 10 + [{"a": [1]}])
    with pytest.raises(DataError, match=r"the field 'a' is .* in different rows"):
        open_source(tmp_path / "b.jsonl")


def test_types_of_avro(tmp_path: Path) -> None:
    kinds = {
        "at": ({"type": "long", "logicalType": "timestamp-micros"}, TIME),
        "day": ({"type": "int", "logicalType": "date"}, TIME.date()),
        "kind": ({"type": "enum", "name": "k", "symbols": ["x", "y"]}, "y"),
        "rate": ("float", 0.5),
    }
    fields = [{"name": name, "type": kind} for name, (kind, _) in kinds.items()]
    schema = {"type": "record", "name": "row", "fields": fields}
    row = {name: value for name, (_, value) in kinds.items()}
    with open(tmp_path / "a.avro", "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), [row])
    assert rows_of(tmp_path / "a.avro") == [row]
    schema["fields"] = [{"name": "a", "type": ["int", "string"]}]
    with open(tmp_path / "b.avro", "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), [{"a": 1}])
    with pytest.raises(DataError, match=r"the field 'a' is of the Avro type \['int', 'string'\]"):
        open_source(tmp_path / "b.avro")
    schema["fields"].append({"name": "b", "type": "long"})
    with open(tmp_path / "c.avro", "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), [{"a": 1, "b": 2}])
    assert rows_of(tmp_path / "c.avro", ["b"]) == [{"b": 2}]


def example(features: Mapping[str, Sequence[Any]]) -> bytes:
    """Return a serialized ``tf.train.Example``, written by hand."""

    def field(number: int, data: bytes) -> bytes:
        size, head = len(data), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + data

    def varint(number: int) -> bytes:
        number, out = number % 2**64, b""
        while number > 127:
            out, number = out + bytes([number & 127 | 128]), number >> 7
        return out + bytes([number])

    def feature(values: Sequence[Any]) -> bytes:
        if isinstance(values[0], str):
            return field(1, b"".join(field(1, value.encode()) for value in values))
        if isinstance(values[0], float):
            return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        return field(3, field(1, b"".join(map(varint, values))))

    entries = (field(1, k.encode()) + field(2, feature(v)) for k, v in features.items() if v)
    return field(1, b"".join(field(1, entry) for entry in entries))


def record(data: bytes) -> bytes:
    def checksum(part: bytes) -> bytes:
        return struct.pack("<I", masked_checksum(np.frombuffer(part, np.uint8)))

    head = struct.pack("<Q", len(data))
    return head + checksum(head) + data + checksum(data)


def test_tfrecord(tmp_path: Path) -> None:
    rows = [{"job": ["clerk"], "age": [-3], "price": [1.5], "tags": ["a", "b"]}, {"age": [7]}]
    path = tmp_path / "rows.tfrecord-00000-of-00001"
    whole = b"".join(record(example(row)) for row in rows)
    path.write_bytes(whole)
    expected = [
        {"job": "clerk", "age": -3, "price": 1.5, "tags": ["a", "b"]},
        {"job": None, "age": 7, "price": None, "tags": None},
    ]
    assert rows_of(path) == expected
    (tmp_path / "rows.tfrecord.gz").write_bytes(gzip.compress(whole))
    assert rows_of(tmp_path / "*.tfrecord*", ["age"]) == [{"age": -3}, {"age": 7}] * 2
    for damage, message in [
        (whole[:-1], "ends within a record"),
        (whole[:30] + bytes([whole[30] ^ 1]) + whole[31:], "wrong checksum"),
        (bytes([whole[0] ^ 1]) + whole[1:], "wrong checksum of its length"),
        (record(example({"age": [1]})) + record(example({"age": ["x"]})), "holds bytes, but int"),
        (record(b"\xff\xff"), "no tf.train.Example"),
    ]:
        path.write_bytes(damage)
        with pytest.raises(DataError, match=message):
            open_source(path)


def test_a_lazy_frame_is_run_for_the_columns_that_are_needed(tmp_path: Path) -> None:
    pl.DataFrame({"a": range(1000), "b": ["x"] * 1000}).write_parquet(tmp_path / "a.parquet")
    plan = pl.scan_parquet(tmp_path / "a.parquet").with_columns(c=pl.col("a") * 2)
    assert rows_of(plan, ["c"]) == [{"c": 2 * n} for n in range(1000)]
    assert rows_of(plan) == plan.collect().to_dicts()
    with pytest.raises(DataError, match="no column 'd'"):
        open_source(plan, columns=["d"])


def test_a_generator_of_dicts_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from widedeep.data import sources

    monkeypatch.setattr(sources, "_DICTS", 10)

    def rows(late: Mapping[str, Any] | None = None) -> Iterator[Any]:
        for n in range(35):
            yield {"a": n, "b": None if n % 7 else str(n)}
        if late is not None:
            yield late

    assert rows_of(rows()) == list(rows())
    assert rows_of(rows(), ["b"]) == [{"b": row["b"]} for row in rows()]
    with pytest.raises(DataError, match="batch 3: column 'a' is double, but int64 in batch 0"):
        open_source(rows({"a": 0.5, "b": "x"}))
    with pytest.raises(DataError, match="'c'"):
        open_source(rows({"a": 1, "b": "x", "c": 5}))
