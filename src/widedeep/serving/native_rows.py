"""Impressions that the native server logs: their columns, and chunks of them as Parquet."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.features.spec import item_columns
from widedeep.kernels import ImpressionFile, LogShape
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.impression_rows import UserIds, typed_arrow
from widedeep.serving.ranker import Ranker

MAGIC = b"widedeep impressions 2\n"
"""Lead of a spool of chunks."""
_LENGTH, _FRAME = struct.Struct("<I"), struct.Struct("<II")
_KINDS = {
    pa.large_string(): "text",
    pa.string(): "text",
    pa.int64(): "integer",
    pa.timestamp("us", "UTC"): "integer",
    pa.float64(): "real",
    pa.float32(): "real32",
    pa.bool_(): "boolean",
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows as native threads queue them, and the header of their spool."""

    header: bytes
    data: bytes
    num_rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return len(self.data)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a spool of chunks says of its columns."""

    schema: pa.Schema
    # Each column's source, and bytes that stand in all rows
    sources: Sequence[tuple[str, bytes]]

    def to_bytes(self) -> bytes:
        """Return it as :meth:`from_bytes` reads it."""
        fields = {
            "schema": self.arrow_text,
            "sources": [[source, value.decode()] for source, value in self.sources],
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Read a header."""
        fields = json.loads(data)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(fields["schema"])))
        return cls(schema=schema, sources=[(s, value.encode()) for s, value in fields["sources"]])

    @cached_property
    def arrow_text(self) -> str:
        """The schema as Arrow's readers find it in a Parquet file."""
        return base64.b64encode(self.schema.serialize().to_pybytes()).decode()

    def columns(self) -> list[tuple[str, str, str, bool, bool, bytes]]:
        """Return the columns as :class:`ImpressionFile` takes them."""
        found = []
        for field, (source, value) in zip(self.schema, self.sources, strict=True):
            is_list = pa.types.is_list(field.type)
            plain = field.type.value_type if is_list else field.type
            constant = _LENGTH.pack(len(value)) + value if source == "constant" else b""
            is_time = pa.types.is_timestamp(plain)
            found.append((source, field.name, _KINDS[plain], is_time, is_list, constant))
        return found


# ---- a route's columns --------------------------------------------------------------------------


def log_shape(
    ranker: Ranker,
    catalogue: Catalogue,
    version: str,
    users: UserIds,
    allowed: frozenset[str] | None,
) -> LogShape | None:
    """Return what native threads log of a version's requests; None: Python must log them."""
    if ranker.options.exploration is not None or ranker.rank_by is not None:
        return None
    query: dict[str, pa.DataType] = {}
    items: dict[str, pa.Array] = {}
    sources: dict[str, pa.DataType] = {}
    declared, kinds = item_columns(ranker.bundle.schema.spec), ranker.bundle.schema.columns
    for name in ranker.bundle.encoder.columns(targets=False):
        if not users.may_write(name, allowed):
            continue
        sources[name] = kind = kinds[name].arrow(narrow=True)
        if _kind(kind) is None:
            return None
        is_item = not declared or name in declared
        if is_item and name in catalogue.table.column_names:
            try:
                items[name] = typed_arrow(catalogue.table[name], kinds[name])
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                return None
        elif name in ranker.scorer.query_columns:
            query[name] = kind
        else:
            return None
    ids = catalogue.id_values.combine_chunks()
    if isinstance(ids, pa.ChunkedArray):  # more bytes of text than one array can hold
        return None
    headers = [
        _header(catalogue, version, ids.type, user, sources, items)
        for user in (pa.int64(), pa.string())
    ]
    batch = pa.RecordBatch.from_arrays([ids, *items.values()], ["item_id", *items])
    return LogShape(
        users.column,
        [(name, *_column(kind)) for name, kind in query.items()],
        [(name, *_column(array.type)) for name, array in items.items()],
        batch.__arrow_c_array__(),
        *(header.to_bytes() for header in headers),
    )


def _header(
    catalogue: Catalogue,
    version: str,
    item_id: pa.DataType,
    user_id: pa.DataType,
    features: dict[str, pa.DataType],
    items: dict[str, Any],
) -> Header:
    own = [
        ("request_id", pa.string(), ("request_id", b"")),
        ("user_id", user_id, ("user_id", b"")),
        ("item_id", item_id, ("item_id", b"")),
        ("position", pa.int64(), ("position", b"")),
        ("event_time", pa.timestamp("us", "UTC"), ("time", b"")),
        ("model_version", pa.string(), ("constant", version.encode())),
        ("catalogue_version", pa.string(), ("constant", catalogue.version.encode())),
        ("score", pa.float64(), ("score", b"")),
    ]
    of_features = [
        (name, kind, ("item" if name in items else "query", b"")) for name, kind in features.items()
    ]
    columns = [*own, *of_features]
    return Header(
        schema=pa.schema([(name, kind) for name, kind, _ in columns]),
        sources=[source for _, _, source in columns],
    )


def _kind(kind: pa.DataType) -> str | None:
    """Return the native name of a column's type; None if there is none."""
    plain = kind.value_type if pa.types.is_list(kind) else kind
    return None if pa.types.is_timestamp(plain) else _KINDS.get(plain)


def _column(kind: pa.DataType) -> tuple[str | None, bool]:
    return _kind(kind), pa.types.is_list(kind)


# ---- spools -------------------------------------------------------------------------------------


def lead(header: bytes) -> bytes:
    """Return what a spool begins with."""
    return b"".join([MAGIC, *frame(header)])


def frame(data: bytes) -> list[bytes]:
    """Return bytes as they stand in a spool: their length and checksum before them."""
    return [_FRAME.pack(len(data), zlib.crc32(data)), data]


def write_parquet_of(spool: IO[bytes], target: IO[bytes], while_writing: Callable[[], None]) -> int:
    """Write the chunks of a spool as a Parquet file; return the number of rows, at most all.

    Args:
        spool: File at its end of :data:`MAGIC`.
        target: Empty file.
        while_writing: Called between the columns, whose native encoding holds no lock of Python.
    """
    chunks = frames(spool)
    lead_bytes = next(chunks, b"")
    if spool.tell() != len(MAGIC) + _FRAME.size + len(lead_bytes):  # it is damaged
        return 0
    header = Header.from_bytes(lead_bytes)
    columns = header.columns()
    file = ImpressionFile(columns, header.arrow_text)
    offset, rows = target.write(b"PAR1"), 0

    def end_group() -> None:
        nonlocal offset, rows
        for column in range(len(columns)):
            offset += target.write(file.column_chunk(column, offset))
            while_writing()
        rows += file.rows
        file.end_group()

    for chunk in chunks:
        if not file.add(chunk):
            break
        if file.is_full:
            end_group()
    if file.rows:
        end_group()
    target.write(file.footer())
    return rows


def chunk_table(chunk: Chunk) -> pa.Table:
    """Return the rows of a chunk."""
    spool = io.BytesIO(b"".join([lead(chunk.header), *frame(chunk.data)]))
    spool.seek(len(MAGIC))
    target = io.BytesIO()
    write_parquet_of(spool, target, lambda: None)
    return pq.read_table(pa.BufferReader(target.getvalue()))


def frames(spool: IO[bytes]) -> Iterator[bytes]:
    """Yield what was written with :func:`frame`, but for what is torn or damaged.

    A power cut may leave anything in a spool, and readers of Arrow's streams and of chunks end the
    process over bytes that were never written. A frame of no bytes is a place of zeros.
    """
    with contextlib.suppress(EOFError):
        while True:
            length, checksum = _FRAME.unpack(_read(spool, _FRAME.size))
            data = _read(spool, length)
            if length and zlib.crc32(data) == checksum:
                yield data


def unreadable_bytes(spool: IO[bytes]) -> int:
    """Return how many bytes of a spool :func:`frames` leaves out."""
    spool.seek(0)
    read = len(MAGIC) if spool.read(len(MAGIC)) == MAGIC else 0
    spool.seek(read)
    read += sum(_FRAME.size + len(data) for data in frames(spool))
    return spool.seek(0, os.SEEK_END) - read


def _read(file: IO[bytes], length: int) -> bytes:
    """Return the next bytes, or raise EOFError if the file ends before them."""
    parts = []
    while length:
        part = file.read(length)
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
