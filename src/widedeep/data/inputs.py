"""The name, size and content of every input, so that a changed one is noticed on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import logical_type
from widedeep.errors import DataError

SAMPLED_ROWS = 4096
"""Rows of each fragment that enter a checksum: all, or an even sample."""


class InputRecord(TypedDict):
    """One input as a checkpoint remembers it; plain values that JSON holds."""

    name: str
    path: str
    rows: int
    bytes: int
    checksum: str


def check_same_inputs(recorded: Sequence[InputRecord], current: Sequence[InputRecord]) -> None:
    """Raise unless the inputs are those that were recorded."""
    if len(recorded) != len(current):
        raise DataError(
            f"the data has {len(current)} inputs, but the interrupted run read {len(recorded)}; "
            "resume with the same inputs, or start a new run"
        )
    for number, (old, new) in enumerate(zip(recorded, current, strict=True)):
        for key in ("name", "rows", "bytes", "checksum"):
            if old[key] != new[key]:
                raise DataError(
                    f"input {number} ({new['path']}): {key} is {new[key]!r}, but was {old[key]!r} "
                    "in the interrupted run; resume with the same inputs, or start a new run"
                )


class ContentChecksum:
    """A checksum of rows that depends on their values, not on how Arrow lays them out."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, table: pa.Table) -> None:
        """Add the next rows."""
        n_sampled = min(table.num_rows, SAMPLED_ROWS)
        rows = np.linspace(0, table.num_rows - 1, n_sampled).astype(np.int64)
        self._hash.update(f"{table.num_rows},{n_sampled};".encode())
        for name, column in zip(table.column_names, table.columns, strict=True):
            self._hash.update(f"{name}:{logical_type(column.type)};".encode())
            try:
                self._hash.update(_plain_bytes(column, rows))
            except pa.ArrowNotImplementedError as error:
                raise DataError(
                    f"column {name!r} is {column.type}; expected numbers, booleans, text, times, "
                    "or lists of them: convert it, or name only the columns that are needed"
                ) from error

    def hexdigest(self) -> str:
        """Return the checksum of all rows so far."""
        return self._hash.hexdigest()


def _plain_bytes(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Buffer:
    plain = logical_type(column.type)
    if column.type != plain:
        column = pc.cast(column, plain)
    # Rows that were taken lie without an offset, and with zeros under their nulls.
    array = column.combine_chunks().take(pa.array(rows))
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([array], names=["values"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()
