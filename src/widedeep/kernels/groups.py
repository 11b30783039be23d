"""The distinct rows of a batch, each with the places where it occurs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from widedeep.kernels.backend import backend
from widedeep.kernels.checks import (
    Passed,
    check_batch,
    check_slots,
    check_tables,
    check_vector,
    raise_fault,
)

__all__ = ["Groups", "group_ids"]

_SINGLE = -2  # what the kernel returns where every cell holds exactly one id


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The U distinct rows that a batch touches, and where each of them occurs.

    Rows are ordered by logical table, within a table by their first occurrence in the batch. Row
    ``u`` occurs at ``order[starts_U[u] : starts_U[u + 1]]``, ascending.

    Args:
        rows_U: int64 physical row.
        table_starts: int64 of length T + 1; table ``t`` owns rows_U[table_starts[t] :
            table_starts[t + 1]].
        starts_U: int32 of length U + 1, into ``order`` and ``cells``. The first is 0 unless this
            is a selection from other groups.
        order: int32 occurrence, an index into the batch's ids.
        cells: int32 cell ``b * F + f`` of each entry of ``order``.
        n_ids: Ids of the batch.
        n_cells: Cells of the batch, B * F.
        single: Whether every cell of the batch holds exactly one id.
    """

    rows_U: NDArray[np.int64]
    table_starts: NDArray[np.int64]
    starts_U: NDArray[np.int32]
    order: NDArray[np.int32]
    cells: NDArray[np.int32]
    n_ids: int
    n_cells: int
    single: bool

    def __len__(self) -> int:
        return len(self.rows_U)

    def select(self, tables: Sequence[int], shifts: NDArray[np.int64]) -> Groups:
        """Return the groups of some logical tables, their rows moved elsewhere.

        So ids are grouped once for two physical tables that share logical tables: the wide part's
        and the deep part's. Neighbours share their occurrences; others are copied together.

        Args:
            tables: Distinct logical tables, in the order they shall have.
            shifts: int64 for each of them: what to add to its rows.

        Example:
            >>> import numpy as np
            >>> one = np.zeros(1, np.int64)
            >>> groups = group_ids(np.array([5, 3]), np.array([0, 1, 2]), 1,
            ...                    one.astype(np.int32), one.astype(np.int32), one, one + 9)
            >>> groups.select([0], one + 100).rows_U
            array([105, 103])
        """
        chosen = np.asarray(tables, np.int64)
        begins, ends = self.table_starts[chosen], self.table_starts[chosen + 1]
        table_starts = np.concatenate([[0], np.cumsum(ends - begins)])
        runs = list(zip(begins.tolist(), ends.tolist(), strict=True))
        if runs and bool((begins[1:] == ends[:-1]).all()):
            runs = [(runs[0][0], runs[-1][1])]
        rows = _joined([self.rows_U[a:b] for a, b in runs], np.int64)
        places = [slice(int(self.starts_U[a]), int(self.starts_U[b])) for a, b in runs]
        if len(runs) == 1:
            starts, order, cells = (
                self.starts_U[runs[0][0] : runs[0][1] + 1],
                self.order,
                self.cells,
            )
        else:
            lengths = [np.diff(self.starts_U[a : b + 1]) for a, b in runs]
            starts = np.concatenate([[0], np.cumsum(_joined(lengths, np.int32))]).astype(np.int32)
            order = _joined([self.order[place] for place in places], np.int32)
            cells = _joined([self.cells[place] for place in places], np.int32)
        return Groups(
            rows_U=rows + np.repeat(shifts, ends - begins),
            table_starts=table_starts,
            starts_U=starts,
            order=order,
            cells=cells,
            n_ids=self.n_ids,
            n_cells=self.n_cells,
            single=self.single,
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def group_ids(
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    n_features: int,
    slots: NDArray[np.int32],
    tables: NDArray[np.int32],
    bases: NDArray[np.int64],
    sizes: NDArray[np.int64],
    threads: int = 1,
) -> Groups:
    """Find the distinct rows of a batch and the occurrences of each.

    Args:
        ids_N: int64 feature-local ids.
        offsets_BF: int64 of length B * F + 1.
        n_features: F, feature slots of the batch.
        slots: int32 ascending slots that take part.
        tables: int32 logical table of each of ``slots``; two may share one.
        bases: int64 first physical row of each logical table.
        sizes: int64 rows of each logical table.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape, or offsets are not ascending.
        IdOutOfRangeError: If an id lies outside its table.

    Example:
        >>> import numpy as np
        >>> zero = np.zeros(1, np.int32)
        >>> groups = group_ids(np.array([5, 3, 5]), np.array([0, 1, 3]), 1, zero, zero,
        ...                    np.array([100]), np.array([10]))
        >>> groups.rows_U, groups.starts_U, groups.order
        (array([105, 103]), array([0, 2, 3], dtype=int32), array([0, 2, 1], dtype=int32))
    """
    check_batch(ids_N, offsets_BF, None, n_features)
    check_slots(slots, n_features)
    check_tables(bases, sizes, len(bases), None)
    passed = Passed("groups", (tables,), len(slots), len(bases))
    if not passed.before():
        check_vector("tables", tables, np.int32, len(slots))
        if len(tables) and not 0 <= int(tables.min()) <= int(tables.max()) < len(bases):
            raise ValueError(
                f"tables: got {tables.tolist()}, expected numbers in [0, {len(bases)})"
            )
        passed.now()
    n = len(ids_N)
    rows = np.empty(n, np.int64)
    table_starts = np.empty(len(bases) + 1, np.int64)
    starts = np.empty(n + 1, np.int32)
    order = np.empty(n, np.int32)
    cells = np.empty(n, np.int32)
    fault = backend.group_ids(
        ids_N, offsets_BF, n_features, slots, tables, bases, sizes,
        rows, table_starts, starts, order, cells, threads,
    )  # fmt: skip
    if fault >= 0:
        raise_fault(ids_N, offsets_BF, n_features, slots, sizes[tables])
    n_rows = int(table_starts[-1])
    n_used = int(starts[n_rows])
    return Groups(
        rows_U=rows[:n_rows],
        table_starts=table_starts,
        starts_U=starts[: n_rows + 1],
        order=order[:n_used],
        cells=cells[:n_used],
        n_ids=n,
        n_cells=len(offsets_BF) - 1,
        single=fault == _SINGLE,
    )
