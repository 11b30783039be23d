"""Tables of embeddings in fewer bytes: bfloat16, or 8 or 4 bits a number and a step per row."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from widedeep import _native

PackedKind = Literal["bf16", "int8", "int4"]
TableKind = Literal["fp32", "bf16", "int8", "int4"]
"""Numbers in which a bundle keeps its tables of embeddings."""

_BLOCK_BYTES = 1 << 24
_LARGEST = {"int8": 15_240.0, "int4": 900.0}


class TooLarge(ValueError):
    """A number that a kind of table cannot hold."""

    def __init__(self, row: int, number: float, kind: PackedKind) -> None:
        super().__init__(f"got {number:g}, {kind} holds numbers up to {_LARGEST[kind]:,g}")
        self.row = row


class PackedTable(_native.PackedRows):
    """A table in packed rows, which reads like a float32 matrix of shape (R, D).

    Scorers take it as it is and unpack the rows that they read; everything else indexes it by row,
    or makes an array of it. All get the same numbers.

    Args:
        bytes_RB: uint8, a row of bytes per row; native/packed_rows.hpp says what they hold.
        kind: ``"bf16"``, ``"int8"`` or ``"int4"``.
        width: D, numbers per row.

    Raises:
        ValueError: If rows of such a width take another number of bytes.

    Example:
        >>> import numpy as np
        >>> table = PackedTable.pack(np.array([[1.0, -0.5], [0.0, 0.0]], np.float32), "int8")
        >>> table.shape, table.bytes_RB.shape
        ((2, 2), (2, 3))
        >>> table[[0]].round(2).tolist()
        [[1.0, -0.5]]
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, bytes_RB: NDArray[np.uint8], kind: PackedKind, width: int) -> None:
        super().__init__(bytes_RB, kind, width)
        self.bytes_RB = bytes_RB
        self.kind = kind
        self.shape = (len(bytes_RB), width)

    @classmethod
    def pack(cls, matrix_RD: NDArray[np.float32], kind: PackedKind) -> PackedTable:
        """Round a matrix of finite numbers.

        Raises:
            ValueError: If a number is too large: int8 holds up to 15,240, int4 up to 900.
        """
        bytes_RB = np.empty(
            (len(matrix_RD), _native.packed_row_bytes(kind, matrix_RD.shape[1])), np.uint8
        )
        row = _native.pack_table(matrix_RD, kind, bytes_RB.reshape(-1))
        if row >= 0:
            raise TooLarge(row, float(np.abs(matrix_RD[row]).max()), kind)
        return cls(bytes_RB, kind, matrix_RD.shape[1])

    def as_array(self) -> NDArray[np.float32]:
        """Return itself, typed as the array that it reads like."""
        return cast("NDArray[np.float32]", self)

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.bytes_RB.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Return rows, by a number, a slice, a mask, or numbers."""
        if isinstance(rows, tuple):
            first, *others = rows
            columns: NDArray[np.float32] = self[first][(..., *others)]
            return columns
        if isinstance(rows, slice):
            ids_N = np.arange(*rows.indices(len(self)))
        elif np.ndim(rows) == 0:
            row: NDArray[np.float32] = self[[operator.index(rows)]][0]
            return row
        else:
            ids_N = np.asarray(rows)
            if ids_N.dtype == np.bool_:
                ids_N = np.flatnonzero(ids_N)
        flat_N = np.where(ids_N < 0, ids_N + len(self), ids_N).astype(np.int64).reshape(-1)
        out_ND = np.empty((len(flat_N), self.shape[1]), np.float32)
        self.unpack(flat_N, out_ND)
        return out_ND.reshape(*ids_N.shape, self.shape[1])

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self), _block_rows(self.shape[1])):
            yield from self[start : start + _block_rows(self.shape[1])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all rows, as ``np.asarray`` asks for them."""
        if copy is False:
            raise ValueError("got copy=False for a packed table, which has no array of its own")
        array: NDArray[Any] = self[:].astype(self.dtype if dtype is None else dtype, copy=False)
        return array


def packed_table(table: object) -> PackedTable | None:
    """Return the packed table that a bundle's weight is, or None for an array."""
    return table if isinstance(table, PackedTable) else None


def _block_rows(width: int) -> int:
    return max(1, _BLOCK_BYTES // max(1, 4 * width))


def row_blocks(table: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield a table's rows, packed or not, some MB at a time."""
    rows = _block_rows(table.shape[1])
    for start in range(0, len(table), rows):
        yield table[start : start + rows]
