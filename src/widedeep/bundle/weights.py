"""The files of a bundle's weights: one or several parts, written by one process or by all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import BundleError
from widedeep.files import TensorFiles, fsync_path, is_part_of
from widedeep.kernels import packed_row_bytes
from widedeep.kernels.packed_rows import PackedKind, PackedTable, TooLarge, packed_table, row_blocks
from widedeep.ranks.layout import Layout
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.rows import collect_rows
from widedeep.ranks.shared import shared_failures

WEIGHTS = "weights.safetensors"


def weight_files(path: Path) -> list[Path]:
    """Return the files of a bundle's weights, in order."""
    return sorted(f for f in path.iterdir() if f.name == WEIGHTS or is_part_of(f, WEIGHTS))


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedWeights:
    """Weights that several ranks have: some hold the rows of a table that are their own."""

    weights: Mapping[str, NDArray[np.float32]]
    ranks: Ranks = field(default_factory=Ranks)
    layouts: Mapping[str, Layout] = field(default_factory=dict)  # How tables' rows are divided
    tables: PackedKind | None = None  # Numbers to round tables of embeddings to

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole."""
        shape = self.weights[name].shape
        return (self.layouts[name].size, *shape[1:]) if name in self.layouts else shape

    def whole(self) -> dict[str, NDArray[np.float32]]:
        """Return arrays of the types and shapes of the whole; divided ones hold no numbers."""
        nothing = np.zeros((), np.float32)
        return {
            name: np.broadcast_to(nothing, self.shape(name)) if name in self.layouts else array
            for name, array in self.weights.items()
        }

    def row_of(self, name: str, row: int) -> int:
        """Return the row of the whole that a row of this rank is."""
        if name not in self.layouts:
            return row
        return int(self.layouts[name].ids_of(self.ranks.rank, row, row + 1)[0])

    def write(self, path: Path, part_bytes: int | None = None) -> None:
        """Write them into a directory: in one file, or in parts of ``part_bytes`` at most.

        Collective: tables are brought into the order of ids on the way, a window at a time.
        """
        shapes = {name: self._file_shape(name) for name in self.weights}
        files = TensorFiles(path / WEIGHTS, shapes, part_bytes=part_bytes)
        with shared_failures(self.ranks):
            if self.ranks.is_first:
                files.create()
        failure = self._write_rows(files)
        with shared_failures(self.ranks):
            if failure is not None:
                raise failure
            for file in files.paths if self.ranks.size > 1 else ():
                fsync_path(file)

    def _file_shape(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        table, shape = packed_table(self.weights[name]), self.shape(name)
        kind = self._rounded_to(name) if table is None else table.kind
        if kind is None:
            return self.weights[name].dtype, shape
        return np.dtype(np.uint8), (shape[0], packed_row_bytes(kind, shape[1]))

    def _rounded_to(self, name: str) -> PackedKind | None:
        return self.tables if name.startswith("table/") else None

    def _write_rows(self, files: TensorFiles) -> Exception | None:
        """Write what falls to this rank; return its first failure, for the exchange must go on."""
        failure: Exception | None = None

        def put(name: str, first: int, rows: NDArray[Any]) -> None:
            nonlocal failure
            try:
                if failure is None:
                    for block in self._file_rows(name, rows):
                        files.write(name, block, first)
                        first += len(block)
            except TooLarge as error:
                failure = BundleError(
                    f"tensor {name!r} (row {first + error.row}): {error}; keep the tables in bf16, "
                    "or train with less of a learning rate"
                )
            except OSError as error:
                failure = error

        for name, array in self.weights.items():
            if (layout := self.layouts.get(name)) is not None:
                collect_rows(self.ranks, layout, array, partial(put, name))
            elif self.ranks.is_first:
                put(name, 0, array)
        return failure

    def _file_rows(self, name: str, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield rows as a file holds them."""
        table, kind = packed_table(rows), self._rounded_to(name)
        if table is not None:
            yield table.bytes_RB
        elif kind is None:  # of bfloat16 the rows that are read become float32
            yield from row_blocks(rows) if rows.ndim == 2 else (rows,)
        else:
            yield from (PackedTable.pack(block, kind).bytes_RB for block in row_blocks(rows))
