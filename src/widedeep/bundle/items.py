"""Vectors of items, kept in a bundle beside the model that made them, mapped as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import logical_type
from widedeep.errors import BundleError, DataError
from widedeep.features.learned import text_buffers
from widedeep.files import map_tensors, write_tensors

__all__ = ["ItemVectors"]

ITEMS = "items.safetensors"
_VECTORS, _IDS, _OFFSETS, _TEXT = "vectors", "ids/", "/offsets", "/text"


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """The items of a bundle with two towers, as they were when it was exported.

    Args:
        column: Column of the items' ids.
        ids: Their ids: text (large_binary) or int64.
        vectors_ND: One row per item, of length 1.
    """

    column: str
    ids: pa.Array
    vectors_ND: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.vectors_ND)

    @cached_property
    def rows(self) -> Mapping[int | str, int]:
        """Row of each id."""
        values = self.ids.to_pylist()
        decoded = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
        return dict(zip(decoded, range(len(decoded)), strict=True))

    def rows_of(self, ids: Sequence[Any], column: str) -> NDArray[np.int64]:
        """Return the row of each of a catalogue's ids, -1 for an item that is new.

        Raises:
            DataError: If all are new: the catalogue is another's.
        """
        rows = self.rows if self.column == column else {}
        row_N = np.array([rows.get(id_, -1) for id_ in ids], np.int64)
        if len(ids) and not (row_N >= 0).any():
            raise DataError(
                f"the items: got {len(ids)} ids in {column!r}, none of which is among the "
                f"{len(self)} of {self.column!r} that the bundle was exported with: they are "
                "another catalogue's; serve the bundle's own items, or export it again with these"
            )
        return row_N

    def write(self, path: Path) -> None:
        """Write them into a bundle's directory."""
        tensors: dict[str, NDArray[Any]] = {_VECTORS: self.vectors_ND}
        if pa.types.is_integer(self.ids.type):
            tensors[_IDS + self.column] = self.ids.to_numpy()
        else:
            offsets, text = text_buffers(self.ids)
            tensors[_IDS + self.column + _OFFSETS] = np.ascontiguousarray(offsets)
            tensors[_IDS + self.column + _TEXT] = np.ascontiguousarray(text)
        write_tensors(path / ITEMS, tensors)

    @classmethod
    def read(cls, path: Path) -> ItemVectors | None:
        """Map those of a bundle's directory, None where it has none.

        Raises:
            BundleError: If the file does not hold an id and a vector of finite numbers per item.
        """
        file = path / ITEMS
        if not file.exists():
            return None
        tensors = map_tensors(file)
        vectors_ND = tensors.pop(_VECTORS, None)
        names = [name.removeprefix(_IDS) for name in tensors if name.startswith(_IDS)]
        if vectors_ND is None or vectors_ND.ndim != 2 or not names:
            raise BundleError(
                f"{file}: got {list(tensors)}, expected ids and vectors; export again"
            )
        column = names[0].removesuffix(_OFFSETS)
        ids: pa.Array
        if _IDS + column + _OFFSETS in tensors:
            offsets, text = tensors[_IDS + column + _OFFSETS], tensors[_IDS + column + _TEXT]
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
            ids = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
        else:
            ids = pa.array(tensors[_IDS + column])
        if len(ids) != len(vectors_ND):
            raise BundleError(
                f"{file}: got {len(ids)} ids and {len(vectors_ND)} vectors; export again"
            )
        return cls(column, ids, vectors_ND)


def item_ids(items: pa.Table, column: str) -> pa.Array:
    """Return the ids of a table of items as :class:`ItemVectors` keeps them.

    Raises:
        BundleError: If they are neither text nor integers, or one is null or there twice.
    """
    ids = items.column(column).combine_chunks()
    kind = logical_type(ids.type)
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind)):
        raise BundleError(
            f"the items' column {column!r} is {ids.type}; expected ids of text or integers"
        )
    if ids.null_count:
        row = ids.to_pylist().index(None)
        raise BundleError(f"the items' column {column!r} (row {row}): got null, expected an id")
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        first = twice[0].as_py()["values"]
        raise BundleError(
            f"the items' column {column!r}: got {first!r} more than once; keep one row an item"
        )
    if pa.types.is_integer(kind):
        return pc.cast(ids, pa.int64())
    return pc.cast(pc.cast(ids, kind), pa.large_string()).view(pa.large_binary())
