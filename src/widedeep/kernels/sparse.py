"""The distinct rows of a batch, each with the places where it occurs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from widedeep import _native
from widedeep.kernels.checks import (
    Passed,
    check_batch,
    check_matrix,
    check_slots,
    check_tables,
    check_vector,
    raise_fault,
)

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
    fault = _native.group_ids(
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


COMBINERS: Final = {"sum": 0, "mean": 1, "sqrtn": 2}
"""The code of each way to combine the rows of a bag."""


def gather_pool(
    weights_RD: NDArray[np.float32],
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    slots: NDArray[np.int32],
    bases: NDArray[np.int64],
    sizes: NDArray[np.int64],
    combiners: NDArray[np.int8],
    out_BX: NDArray[np.float32],
    columns: NDArray[np.int64],
    threads: int = 1,
) -> None:
    """Write the pooled embedding of every slot into its columns of ``out_BX``.

    A bag is summed in the order of its ids, each row times its value, then multiplied by the
    combiner's factor: 1 for sum, 1 / sum of values for mean, 1 / root of the sum of their squares
    for sqrtn. An empty bag (or one whose divisor is 0) gives zeros. Other columns stay.

    Args:
        weights_RD: float32 rows of the physical table; they may lie further apart than D.
        ids_N: int64 feature-local ids.
        offsets_BF: int64 of length B * F + 1.
        values_N: float32 weight of each id, or None where all are 1.
        n_features: F, feature slots of the batch.
        slots: int32 ascending slots that take part.
        bases: int64 first physical row of each slot's table.
        sizes: int64 rows of each slot's table.
        combiners: int8 code of each slot, from ``COMBINERS``.
        out_BX: float32 buffer, changed in place.
        columns: int64 first column of each slot in ``out_BX``.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape, or offsets are not ascending.
        IdOutOfRangeError: If an id lies outside its table; ``out_BX`` is then partly written.

    Example:
        >>> import numpy as np
        >>> weights = np.arange(8, dtype=np.float32).reshape(4, 2)
        >>> zero, out = np.zeros(1, np.int64), np.zeros((2, 2), np.float32)
        >>> gather_pool(weights, np.array([1, 3, 2]), np.array([0, 2, 3]), None, 1,
        ...             zero.astype(np.int32), zero, zero + 4, np.array([1], np.int8), out, zero)
        >>> out
        array([[4., 5.],
               [4., 5.]], dtype=float32)
    """
    n_examples = _check_pooling(
        weights_RD, ids_N, offsets_BF, values_N, n_features, slots, bases, sizes, combiners
    )
    check_matrix("out_BX", out_BX, rows=n_examples)
    _check_columns(columns, len(slots), weights_RD.shape[1], out_BX)
    fault = _native.gather_pool(
        weights_RD, ids_N, offsets_BF, values_N, n_features, slots, bases, sizes, combiners,
        out_BX, columns, threads,
    )  # fmt: skip
    if fault >= 0:
        raise_fault(ids_N, offsets_BF, n_features, slots, sizes)


def wide_forward(
    weights_RC: NDArray[np.float32],
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    slots: NDArray[np.int32],
    bases: NDArray[np.int64],
    sizes: NDArray[np.int64],
    combiners: NDArray[np.int8],
    logits_BC: NDArray[np.float32],
    threads: int = 1,
) -> None:
    """Add every slot's combined weights to the logits, one slot after the other.

    Args:
        weights_RC: float32 rows of the physical table, one weight a logit.
        ids_N: int64 feature-local ids.
        offsets_BF: int64 of length B * F + 1.
        values_N: float32 weight of each id, or None where all are 1.
        n_features: F, feature slots of the batch.
        slots: int32 ascending slots that take part.
        bases: int64 first physical row of each slot's table.
        sizes: int64 rows of each slot's table.
        combiners: int8 code of each slot, from ``COMBINERS``.
        logits_BC: float32, changed in place.
        threads: Threads to use; the result does not depend on it.

    Raises:
        ValueError: If an array has another type or shape, or offsets are not ascending.
        IdOutOfRangeError: If an id lies outside its table; ``logits_BC`` is then partly changed.

    Example:
        >>> import numpy as np
        >>> weights = np.array([[0.0], [0.5], [2.0]], np.float32)
        >>> zero, logits = np.zeros(1, np.int64), np.ones((1, 1), np.float32)
        >>> wide_forward(weights, np.array([1, 2]), np.array([0, 2]), None, 1,
        ...              zero.astype(np.int32), zero, zero + 3, np.zeros(1, np.int8), logits)
        >>> logits
        array([[3.5]], dtype=float32)
    """
    n_examples = _check_pooling(
        weights_RC, ids_N, offsets_BF, values_N, n_features, slots, bases, sizes, combiners
    )
    check_matrix("logits_BC", logits_BC, rows=n_examples, width=weights_RC.shape[1])
    fault = _native.wide_forward(
        weights_RC, ids_N, offsets_BF, values_N, n_features, slots, bases, sizes, combiners,
        logits_BC, threads,
    )  # fmt: skip
    if fault >= 0:
        raise_fault(ids_N, offsets_BF, n_features, slots, sizes)


def segment_sum_deep(
    grad_BX: NDArray[np.float32],
    groups: Groups,
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    slots: NDArray[np.int32],
    columns: NDArray[np.int64],
    combiners: NDArray[np.int8],
    dim: int,
    threads: int = 1,
    *,
    sequence_grads_MD: NDArray[np.float32] | None = None,
    sequence_place_N: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Sum the gradient of every touched row over its occurrences: the transpose of `gather_pool`.

    An occurrence in slot ``s`` of example ``b`` adds (combiner's factor * value) *
    ``grad_BX[b, columns[s] : columns[s] + dim]``. Sums are float32 in ascending order of
    occurrence, so threads and instruction sets give the same bits.

    Args:
        grad_BX: float32 gradient of the buffer that `gather_pool` wrote.
        groups: `group_ids` of the same batch and slots.
        ids_N: int64 feature-local ids of the batch.
        offsets_BF: int64 of length B * F + 1.
        values_N: float32 weight of each id, or None where all are 1.
        n_features: F, feature slots of the batch.
        slots: int32 ascending slots that take part.
        columns: int64 first column of each slot in ``grad_BX``.
        combiners: int8 code of each slot, from ``COMBINERS``.
        dim: D, width of a row.
        threads: Threads to use; the result does not depend on it.
        sequence_grads_MD: float32 gradient of rows that were taken unpooled, in slots that
            ``slots`` does not list; added as they are.
        sequence_place_N: int64 row of ``sequence_grads_MD`` of each occurrence, -1 where it was
            pooled. Given together with it.

    Returns:
        float32 of shape (U, D).

    Raises:
        ValueError: If an array has another type or shape, or offsets are not ascending.

    Example:
        >>> import numpy as np
        >>> from widedeep.kernels import group_ids
        >>> ids, offsets, zero = np.array([2, 2]), np.array([0, 1, 2]), np.zeros(1, np.int64)
        >>> slots = zero.astype(np.int32)
        >>> groups = group_ids(ids, offsets, 1, slots, slots, zero, zero + 3)
        >>> grad = np.array([[1, 2], [10, 20]], np.float32)
        >>> segment_sum_deep(grad, groups, ids, offsets, None, 1, slots, zero,
        ...                  np.zeros(1, np.int8), 2)
        array([[11., 22.]], dtype=float32)
    """
    n_examples = check_batch(ids_N, offsets_BF, values_N, n_features)
    check_slots(slots, n_features)
    check_matrix("grad_BX", grad_BX, rows=n_examples)
    _check_columns(columns, len(slots), dim, grad_BX)
    column_of_feature = np.zeros(n_features, np.int64)
    column_of_feature[slots] = columns
    if sequence_grads_MD is None or sequence_place_N is None:
        sequence_grads_MD, sequence_place_N = np.empty((0, dim), np.float32), None
    else:
        check_matrix("sequence_grads_MD", sequence_grads_MD, width=dim)
        check_vector("sequence_place_N", sequence_place_N, np.int64, len(ids_N))
        last = int(sequence_place_N.max(initial=-1))
        if last >= len(sequence_grads_MD):
            raise ValueError(
                f"sequence_place_N: got row {last}, but sequence_grads_MD has "
                f"{len(sequence_grads_MD)}"
            )
    return _segment_sum(
        grad_BX, groups, ids_N, offsets_BF, values_N, n_features, slots, column_of_feature,
        combiners, dim, threads, sequence_grads_MD, sequence_place_N,
    )  # fmt: skip


def segment_sum_wide(
    grad_BC: NDArray[np.float32],
    groups: Groups,
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    slots: NDArray[np.int32],
    combiners: NDArray[np.int8],
    threads: int = 1,
) -> NDArray[np.float32]:
    """Sum the gradient of every touched wide row: the transpose of `wide_forward`.

    Args:
        grad_BC: float32 gradient of the logits.
        groups: `group_ids` of the same batch and slots.
        ids_N: int64 feature-local ids of the batch.
        offsets_BF: int64 of length B * F + 1.
        values_N: float32 weight of each id, or None where all are 1.
        n_features: F, feature slots of the batch.
        slots: int32 ascending slots that take part.
        combiners: int8 code of each slot, from ``COMBINERS``.
        threads: Threads to use; the result does not depend on it.

    Returns:
        float32 of shape (U, C).

    Raises:
        ValueError: If an array has another type or shape, or offsets are not ascending.
    """
    n_examples = check_batch(ids_N, offsets_BF, values_N, n_features)
    check_slots(slots, n_features)
    check_matrix("grad_BC", grad_BC, rows=n_examples)
    return _segment_sum(
        grad_BC, groups, ids_N, offsets_BF, values_N, n_features, slots,
        np.zeros(n_features, np.int64), combiners, grad_BC.shape[1], threads,
        np.empty((0, grad_BC.shape[1]), np.float32), None,
    )  # fmt: skip


def _segment_sum(
    grad: NDArray[np.float32],
    groups: Groups,
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    slots: NDArray[np.int32],
    column_of_feature: NDArray[np.int64],
    combiners: NDArray[np.int8],
    width: int,
    threads: int,
    sequence_grads: NDArray[np.float32],
    sequence_place: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    check_vector("combiners", combiners, np.int8, len(slots))
    if groups.n_ids != len(ids_N) or groups.n_cells != len(offsets_BF) - 1:
        raise ValueError(
            f"groups: made from {groups.n_ids} ids in {groups.n_cells} cells, but the batch has "
            f"{len(ids_N)} in {len(offsets_BF) - 1}; pass the groups of this very batch"
        )
    scale: NDArray[np.float32] | None = None
    if combiners.any() and not (groups.single and values_N is None):
        scale = np.ones(len(offsets_BF) - 1, np.float32)
        fault = _native.cell_scales(
            ids_N, offsets_BF, values_N, n_features, slots, combiners, scale, threads
        )
        if fault >= 0:
            raise_fault(ids_N, offsets_BF, n_features, slots, np.full(len(slots), 2**62))
    out = np.empty((len(groups), width), np.float32)
    _native.segment_sum(
        grad, groups.starts_U, groups.order, groups.cells, n_features, column_of_feature,
        scale, values_N, sequence_place, sequence_grads, out, threads,
    )  # fmt: skip
    return out


def _check_pooling(
    weights: NDArray[np.float32],
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
    slots: NDArray[np.int32],
    bases: NDArray[np.int64],
    sizes: NDArray[np.int64],
    combiners: NDArray[np.int8],
) -> int:
    n_examples = check_batch(ids_N, offsets_BF, values_N, n_features)
    check_matrix("weights", weights)
    check_slots(slots, n_features)
    check_tables(bases, sizes, len(slots), len(weights))
    check_vector("combiners", combiners, np.int8, len(slots))
    return n_examples


def _check_columns(
    columns: NDArray[np.int64], n_slots: int, width: int, buffer: NDArray[np.float32]
) -> None:
    passed = Passed("columns", (columns,), n_slots, width, buffer.shape[1])
    if passed.before():
        return
    check_vector("columns", columns, np.int64, n_slots)
    if n_slots and not 0 <= int(columns.min()) <= int(columns.max()) <= buffer.shape[1] - width:
        raise ValueError(
            f"columns: got {columns.tolist()} for embeddings of {width} in {buffer.shape[1]} "
            "columns; every embedding must fit"
        )
    passed.now()
