"""Requests as the unit of reading: the rows of one stay together, in every order and batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.data.fragments import FIRST_ROW_KEY, ORIGIN_KEY, Fragment, Source, column_stream
from widedeep.errors import DataError, show_value


@dataclass(slots=True)
class _Piece:
    """A fragment's own requests: where they lie, and what follows of the last one."""

    fragment: Fragment  # A fragment of the source
    first: int  # Row of it in which its first own request begins
    tail: list[pa.Table]  # Rows of the last request in later fragments


class RequestSource:
    """A source whose fragments count requests instead of rows.

    A request is a run of rows with one value in the group's column. One that ends in a later
    fragment is read with the one in which it begins: what later fragments hold of it is read once,
    and stays in memory.

    Raises:
        DataError: If a row has no request, or the rows of a request lie apart in a fragment.
    """

    def __init__(self, source: Source, group: str) -> None:
        self._source, self._group = source, group
        self.n_rows = source.num_rows
        self._pieces: list[_Piece] = []
        fragments: list[Fragment] = []
        last: object = None
        for fragment, table in zip(source.fragments, column_stream(source, [group]), strict=True):
            starts, last = self._starts(fragment, table[group], last)
            first = int(starts[0]) if len(starts) else fragment.num_rows
            if first:
                head = source.read(fragment).slice(0, first)
                self._pieces[-1].tail.append(_copied(head))
            if len(starts):
                first_row = fragment.first_row + first
                self._pieces.append(_Piece(fragment, first, []))
                fragments.append(
                    replace(
                        fragment,
                        index=len(fragments),
                        num_rows=len(starts),
                        first_row=first_row,
                    )
                )
        self.fragments = tuple(fragments)
        self.num_rows = sum(fragment.num_rows for fragment in fragments)

    def _starts(
        self, fragment: Fragment, column: pa.ChunkedArray, last: object
    ) -> tuple[NDArray[np.int64], object]:
        """Return the rows in which requests begin, and the request of the last row."""
        if column.null_count:
            row = fragment.first_row + int(np.asarray(pc.index(column.is_null(), True)))
            raise DataError(
                f"group {self._group!r} (row {row} of {fragment.origin}): got null, expected the "
                "request of every row; correct it or drop the row"
            )
        codes = column.combine_chunks().dictionary_encode()
        if isinstance(codes, pa.ChunkedArray):
            codes = codes.chunk(0)
        codes_B = np.asarray(codes.indices)
        starts = np.flatnonzero(np.diff(codes_B, prepend=-1))
        if len(starts) > len(codes.dictionary):
            _, first = np.unique(codes_B[starts], return_index=True)
            again = np.setdiff1d(np.arange(len(starts)), first)[0]
            row = int(starts[again])
            got = show_value(column[row].as_py())
            raise DataError(
                f"group {self._group!r} (row {fragment.first_row + row} of {fragment.origin}): got "
                f"{got} again after rows of other requests, expected the rows of a request one "
                f"after the other; sort the data by {self._group!r}"
            )
        begins = codes.dictionary[int(codes_B[0])].as_py()
        if self._pieces and begins == last:
            starts = starts[1:]
        return starts, codes.dictionary[int(codes_B[-1])].as_py()

    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows of a fragment's requests."""
        piece = self._pieces[fragment.index]
        table = self._source.read(piece.fragment, columns).slice(piece.first)
        tails = [tail if columns is None else tail.select(list(columns)) for tail in piece.tail]
        if tails:
            table = pa.concat_tables([table, *(t.cast(table.schema) for t in tails)])
        metadata = {ORIGIN_KEY: fragment.origin.encode(), FIRST_ROW_KEY: str(fragment.first_row)}
        return table.replace_schema_metadata(metadata)

    def requests_of(self, rows: int) -> int:
        """Return how many requests hold about so many rows, at least one."""
        return max(1, round(rows * self.num_rows / max(1, self.n_rows)))


def _copied(table: pa.Table) -> pa.Table:
    """Copy a slice, so that the rest of its table can be freed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@dataclass(slots=True)
class RequestBatch:
    """Encoded rows, request after request; positions and lengths count requests."""

    rows: Batch
    offsets_R: NDArray[np.int64]  # (R + 1,) first row of each request, and the number of rows

    def __len__(self) -> int:
        return len(self.offsets_R) - 1

    def slice(self, start: int, stop: int) -> RequestBatch:
        """Return requests ``start`` to ``stop``."""
        offsets_R = self.offsets_R[start : min(stop, len(self)) + 1]
        rows = self.rows.slice(int(offsets_R[0]), int(offsets_R[-1]))
        return RequestBatch(rows, offsets_R - offsets_R[0])

    def take(self, requests_R: NDArray[np.int64], *, threads: int = 1) -> RequestBatch:
        """Return the requests at the given positions, in that order."""
        starts, sizes = self.offsets_R[requests_R], np.diff(self.offsets_R)[requests_R]
        offsets_R = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.repeat(starts - offsets_R[:-1], sizes) + np.arange(offsets_R[-1])
        return RequestBatch(self.rows.take(rows, threads=threads), offsets_R)

    @staticmethod
    def concat(batches: Sequence[RequestBatch]) -> RequestBatch:
        """Return the requests of several batches, one after the other."""
        if len(batches) == 1:
            return batches[0]
        shifts = np.cumsum([0, *(len(batch.rows) for batch in batches)])
        offsets = [batch.offsets_R[1:] + n for batch, n in zip(batches, shifts[:-1], strict=True)]
        rows = Batch.concat([batch.rows for batch in batches])
        return RequestBatch(rows, np.concatenate([np.zeros(1, np.int64), *offsets]))


def request_encoder(encode: Callable[[pa.Table], Batch]) -> Callable[[pa.Table], RequestBatch]:
    """Return the function that encodes a table of whole requests."""

    def encode_requests(table: pa.Table) -> RequestBatch:
        rows = encode(table)
        assert rows.group_B is not None
        starts = np.flatnonzero(np.diff(rows.group_B, prepend=rows.group_B[0] - 1))
        return RequestBatch(rows, np.append(starts, len(rows)))

    return encode_requests
