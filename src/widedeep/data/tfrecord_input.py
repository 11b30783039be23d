"""TFRecord files of ``tf.train.Example`` as inputs."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.fragments import Input, InputFormat, Spool, selected_columns
from widedeep.data.parquet_input import spooled_input
from widedeep.data.protobuf import WireError, read_example
from widedeep.errors import DataError
from widedeep.features.learned import ColumnKind
from widedeep.kernels import crc32c
from widedeep.remote import InputPath, open_bytes

_MASK = 0xA282EAD8
_CHUNK = 1 << 26  # bytes that are compared with a checksum at a time
_ROWS = 8192
_KINDS = {bytes: pa.string(), float: pa.float32(), int: pa.int64()}


def masked_checksum(data: NDArray[np.uint8]) -> int:
    """Return the checksum as TensorFlow stores it: rotated, and moved by a constant."""
    crc = 0
    for begin in range(0, len(data), _CHUNK):
        crc = crc32c(data[begin : begin + _CHUNK], crc)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def read_records(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the records of a TFRecord file, whose checksums are compared.

    Raises:
        WireError: If the file is damaged.
    """
    at = 0
    while head := file.read(12):
        (size, checksum) = struct.unpack("<QI", head) if len(head) == 12 else (0, None)
        if checksum is None:
            raise WireError(f"ends within a record (byte {at:,})")
        if masked_checksum(np.frombuffer(head[:8], np.uint8)) != checksum:
            raise WireError(f"has a record with a wrong checksum of its length (byte {at:,})")
        record, tail = file.read(size), file.read(4)
        if len(record) != size or len(tail) != 4:
            raise WireError(f"ends within a record (byte {at:,})")
        if masked_checksum(np.frombuffer(record, np.uint8)) != int.from_bytes(tail, "little"):
            raise WireError(f"has a record with a wrong checksum (byte {at:,})")
        yield record
        at += 16 + size


def _open(
    paths: Sequence[InputPath],
    columns: Sequence[str] | None,
    spool: Spool,
    declared: Mapping[str, ColumnKind],
) -> list[Input]:
    """Open files whose features are lists where one example of any of them has several values."""
    kinds: dict[str, type] = {}
    lists: set[str] = set()
    for path in paths:
        for row, example in enumerate(_examples(path)):
            for name, values in example.items():
                kind = type(values[0]) if values else kinds.get(name, bytes)
                if values and kinds.setdefault(name, kind) is not kind:
                    raise DataError(
                        f"{path}, example {row}: the feature {name!r} holds {kind.__name__}, but "
                        f"{kinds[name].__name__} before; write one type"
                    )
                if len(values) > 1:
                    lists.add(name)
    types = {
        name: pa.list_(_KINDS[kind])
        if name in lists or _is_list(declared.get(name))
        else _KINDS[kind]
        for name, kind in kinds.items()
    }
    return [_tfrecord_input(path, columns, spool, pa.schema(list(types.items()))) for path in paths]


def _is_list(kind: ColumnKind | None) -> bool:
    return isinstance(kind, pa.DataType) and pa.types.is_list(kind)


def _tfrecord_input(
    path: InputPath, columns: Sequence[str] | None, spool: Spool, schema: pa.Schema
) -> Input:
    origin, examples = str(path), _examples(path)

    def batches() -> Iterator[pa.RecordBatch]:
        while rows := list(itertools.islice(examples, _ROWS)):
            arrays = [_column(rows, field, origin) for field in schema]
            yield pa.record_batch(arrays, schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    return spooled_input(selected_columns(reader, columns, origin), origin, spool, path=path)


def _examples(path: InputPath) -> Iterator[dict[str, list[Any]]]:
    try:
        with open_bytes(path) as file:
            for record in read_records(file):
                yield read_example(record)
    except (OSError, EOFError, WireError) as error:
        raise DataError(
            f"{path}: {error}; it is damaged, or no TFRecord file of tf.train.Example: write it "
            "again, or name the right file"
        ) from error


def _column(rows: list[dict[str, list[Any]]], field: pa.Field, origin: str) -> pa.Array:
    """Return a feature's values: null where it is absent, and where one number is expected."""
    is_list = pa.types.is_list(field.type)
    kind = field.type.value_type if is_list else field.type
    values: list[Any] = [row.get(field.name) for row in rows]
    if not is_list:
        values = [value[0] if value else None for value in values]
    if kind != pa.string():
        return pa.array(values, field.type)
    try:
        return pa.array(values, pa.list_(pa.binary()) if is_list else pa.binary()).cast(field.type)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{origin}: the feature {field.name!r} holds bytes that are not UTF-8 text ({error}); "
            "leave it out of the examples"
        ) from error


TFRECORD = InputFormat(
    suffixes=(".tfrecord", ".tfrecords", ".tfrecord.gz", ".tfrecords.gz"), open=_open
)
