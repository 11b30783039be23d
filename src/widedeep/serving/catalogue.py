"""Catalogue: the items that can be ranked, with their features, and the rows built from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.arrow_types import logical_type, readable_table
from widedeep.data.fragments import column_stream
from widedeep.data.sources import Data, open_source
from widedeep.errors import DataError, nearest
from widedeep.features.learned import ColumnTypes
from widedeep.files import locked, map_tensors, write_tensors
from widedeep.kernels import ItemIds

# Decimal form of an integer of 64 bits: "07" is not the integer 7.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


class Catalogue:
    """An immutable table of items: a column of ids, and the columns of the items' features.

    Args:
        table: One row per item. It may have columns that no model reads.
        id_column: The column of ids: text or integers, each once, no nulls.
        version: A name for this state of the items; default: a checksum of the content.

    Attributes:
        table: The rows, in the given order.
        id_column: The column of ids.
        id_values: The ids as text or integers of 64 bits.
        index: Row of each id.
        version: Version name in rankings, replies and logs.

    Raises:
        DataError: If the id column is missing, not of text or integers, or holds a null or an id
            twice.

    Example:
        >>> import pyarrow as pa
        >>> items = Catalogue(pa.table({"app": ["maps", "mail"], "price": [0.0, 2.0]}),
        ...                   id_column="app", version="monday")
        >>> len(items), items.ids, items.version
        (2, ['maps', 'mail'], 'monday')
    """

    def __init__(self, table: pa.Table, *, id_column: str, version: str | None = None) -> None:
        self.id_column = id_column
        self.table = table = readable_table(table, takes=True)
        self.id_values = _id_values(table, id_column)
        self.index = _index(self.id_values, id_column)
        self.version = _checksum(table, id_column) if version is None else version

    @classmethod
    def read(
        cls,
        path: Data,
        *,
        id_column: str,
        version: str | None = None,
        null_values: Sequence[str] = (),
    ) -> Catalogue:
        """Read a catalogue.

        Args:
            path: A Parquet file, or whatever else :func:`widedeep.data.sources.open_source` takes:
                a glob, an Arrow table, a data frame, a dict of columns.
            id_column: As for the class.
            version: As for the class.
            null_values: Words that stand for a missing value in CSV, as for
                :class:`~widedeep.FeatureSpec`; a ranker reads with those of its model.

        Raises:
            DataError: If there is no such file, or it is no catalogue.

        Example:
            >>> Catalogue.read({"app": [7, 9]}, id_column="app").ids
            [7, 9]
        """
        if isinstance(path, pa.Table):
            return cls(path, id_column=id_column, version=version)
        types = ColumnTypes({id_column: "category"}, null_values)
        with open_source(path, column_types=types) as source:
            chunks = [pa.Table.from_batches(chunk.to_batches()) for chunk in column_stream(source)]
            if not chunks:
                raise DataError(f"the catalogue {path!r}: got no rows, expected one an item")
            return cls(pa.concat_tables(chunks), id_column=id_column, version=version)

    @cached_property
    def ids(self) -> list[Any]:
        """The ids, in the order of the rows: text or integers."""
        return list(self.id_values.to_pylist())

    def positions(self, ids: Sequence[object]) -> NDArray[np.int64]:
        """Return the row of each id, and -1 for an id that is not in the catalogue.

        An integer given as text finds an integer's row, and the other way round.

        Args:
            ids: Any values; repeats are allowed.

        Example:
            >>> Catalogue.read({"app": [7, 9]}, id_column="app").positions([9, "7", "?"]).tolist()
            [1, 0, -1]
        """
        return self.find(ids)[0]

    def find(self, ids: Sequence[object]) -> tuple[NDArray[np.int64], bool]:
        """Return :meth:`positions`, and whether all ids are in the catalogue.

        Args:
            ids: Any values; repeats are allowed.

        Example:
            >>> rows, all_found = Catalogue.read({"app": [7, 9]}, id_column="app").find([9, "7"])
            >>> rows.tolist(), all_found
            ([1, 0], True)
        """
        ids = ids if isinstance(ids, list) else list(ids)
        rows, all_found = self.index.find(ids)  # (B,), -1 where the id is not found
        if not all_found:
            missing = np.flatnonzero(rows < 0)
            converted: list[object] = [_converted(ids[position]) for position in missing]
            rows[missing], all_found = self.index.find(converted)
        return rows, all_found

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return (
            f"Catalogue of {len(self)} items by {self.id_column!r}, version {self.version!r}, "
            f"columns {self.table.column_names}"
        )


def _id_values(table: pa.Table, id_column: str) -> pa.ChunkedArray:
    count = table.column_names.count(id_column)
    if count != 1:
        hint = nearest(id_column, table.column_names) if not count else "rename the others"
        raise DataError(
            f"the catalogue: got {count} columns named {id_column!r}, expected one of ids; {hint}"
        )
    column = table.column(id_column)
    kind = logical_type(column.type)
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind)):
        raise DataError(
            f"the catalogue's column {id_column!r} is {column.type}; expected ids of text or "
            "integers: convert it"
        )
    try:
        return column.cast(pa.int64() if pa.types.is_integer(kind) else kind)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"the catalogue's column {id_column!r}: {error}; give ids beyond 64 bits as text"
        ) from error


def _converted(id_: object) -> str | int | None:
    """Return a text of an integer as the integer, an integer as text, anything else as None."""
    if isinstance(id_, str) and _INTEGER.fullmatch(id_):
        return int(id_)
    return str(id_) if isinstance(id_, int) and not isinstance(id_, bool) else None


def _index(ids: pa.ChunkedArray, id_column: str) -> ItemIds:
    values = ids.to_pylist()
    if ids.null_count:
        raise DataError(
            f"the catalogue's column {id_column!r} holds {ids.null_count} nulls, the first in row "
            f"{values.index(None)}; give every item an id"
        )
    last_row = dict(zip(values, range(len(values)), strict=True))
    if len(last_row) < len(values):
        row, id_ = next((i, id_) for i, id_ in enumerate(values) if last_row[id_] != i)
        raise DataError(
            f"the catalogue's column {id_column!r} holds {id_!r} more than once (rows {row} and "
            f"{last_row[id_]}); keep one row an item"
        )
    return ItemIds(values)


def _checksum(table: pa.Table, id_column: str) -> str:
    """Return a checksum of every value: a changed price in one row makes another version."""
    digest = hashlib.blake2b(id_column.encode(), digest_size=16)
    rows = pa.array(np.arange(table.num_rows))
    for name, column in zip(table.column_names, table.columns, strict=True):
        # The copy that `take` makes has no offset, and zeros under its nulls.
        array = column.combine_chunks().take(rows)
        sink = pa.BufferOutputStream()
        batch = pa.record_batch([array], names=[name])
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        digest.update(sink.getvalue())
    return digest.hexdigest()


ROWS_DIRECTORY = "WIDEDEEP_ROWS_DIRECTORY"
"""Environment variable in which a supervisor names the directory to its workers."""

_MAX_AGE_S = 600.0

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class SharedRows:
    """Arrays computed by one process of a machine, which others map from the same file."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)

    def arrays(self, key: Sequence[str], compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a key, mapped from their file."""
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]
        file = self._directory / f"{name}.safetensors"
        self._directory.mkdir(parents=True, exist_ok=True)  # cleaners of temporary files take it
        with locked(self._directory / f"{name}.lock"):
            if not file.exists():
                self._delete_old()
                arrays = compute()
                try:
                    write_tensors(file, arrays)
                except OSError:  # no room: better a copy of its own than none
                    return arrays
            return map_tensors(file)

    def _delete_old(self) -> None:
        """Delete files of earlier versions; processes that have them mapped keep them."""
        oldest = time.time() - _MAX_AGE_S
        for file in self._directory.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest:
                    file.unlink()
