"""Input validation and row layout of the metrics."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import ConfigError, DataError, nearest

Rows: TypeAlias = NDArray[np.void]
ScoreKind = Literal["logit", "probability"]

# The key is the negated score: rows in ascending order of it stand from the best to the worst.
BINARY_ROW = np.dtype([("key", np.float64), ("label", np.float64), ("weight", np.float64)])
GROUPED_ROW = np.dtype(
    [("group", np.int64), *((n, np.float64) for n in ("key", "label", "weight"))]
)


def checked_score_kind(kind: str) -> ScoreKind:
    """Return ``kind`` if it is ``"logit"`` or ``"probability"``, else raise ConfigError."""
    if kind == "logit":
        return "logit"
    if kind == "probability":
        return "probability"
    raise ConfigError(f"score_kind: got {kind!r}; {nearest(kind, ['logit', 'probability'])}")


def refuse(
    name: str, wrong: NDArray[np.bool_], values: NDArray[Any], start: int, rule: str
) -> None:
    """Raise a DataError for the first row where ``wrong`` is true; do nothing where none is."""
    if wrong.any():
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        where = f"row {start + index[0]}" + "".join(f", column {axis}" for axis in index[1:])
        raise DataError(
            f"{name} ({where} of the evaluated rows, counted from 0): got {values[index]}, "
            f"expected {rule}"
        )


def _numbers(values: ArrayLike, name: str, start: int) -> NDArray[np.float64]:
    """Return ``values`` as float64, or raise a DataError that names the first that is no number."""
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64, copy=False)
    if array.dtype.kind == "O" and array.ndim == 1:
        allowed = (int, float, np.number, np.bool_)
        wrong = np.array([not isinstance(value, allowed) for value in array], dtype=np.bool_)
        refuse(name, wrong, array, start, "a number; fill or drop such rows")
        return array.astype(np.float64)
    raise DataError(f"{name}: got an array of {array.dtype}, expected numbers; convert it first")


def finite_column(
    values: ArrayLike, name: str, start: int, rows: int | None = None
) -> NDArray[np.float64]:
    """Return one float64 number per row, of shape (B,); a (B, 1) column is flattened."""
    column = _numbers(values, name, start)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1:
        raise DataError(f"{name}: got shape {column.shape}, expected one value per row, shape (B,)")
    if rows is not None and len(column) != rows:
        raise DataError(f"{name}: got {len(column)} rows, expected {rows}, one for each score")
    refuse(name, ~np.isfinite(column), column, start, "a finite number; drop or repair such rows")
    return column


def finite_matrix(values: ArrayLike, name: str, start: int, columns: int) -> NDArray[np.float64]:
    """Return finite float64 numbers of shape (B, ``columns``)."""
    matrix = _numbers(values, name, start)
    if matrix.ndim != 2 or matrix.shape[1] != columns:
        raise DataError(
            f"{name}: got shape {matrix.shape}, expected (B, {columns}), a column for each class"
        )
    refuse(name, ~np.isfinite(matrix), matrix, start, "a finite number; drop or repair such rows")
    return matrix


def unit_interval(values: NDArray[np.float64], name: str, start: int, advice: str) -> None:
    """Raise a DataError for the first value outside [0, 1]."""
    refuse(name, (values < 0) | (values > 1), values, start, f"a number in [0, 1]; {advice}")


def weight_column(weights: ArrayLike | None, start: int, rows: int) -> NDArray[np.float64]:
    """Return the sample weights, ones where there are none; a negative weight is a DataError."""
    if weights is None:
        return np.ones(rows)
    column = finite_column(weights, "weights", start, rows)
    refuse("weights", column < 0, column, start, "a number of 0 or more; drop or repair such rows")
    return column


class GroupKeys:
    """Turn group ids (a user, a query) into int64 keys, one kind of id for the whole stream."""

    def __init__(self) -> None:
        self._kind: str | None = None

    def keys(self, groups: ArrayLike | None, start: int, rows: int) -> NDArray[np.int64]:
        """Return one int64 key per row."""
        if groups is None:
            raise DataError(
                "groups: got None, expected one group id per row for the grouped metrics"
            )
        ids = np.asarray(groups)
        if ids.ndim == 2 and ids.shape[1] == 1:
            ids = ids[:, 0]
        if ids.shape != (rows,):
            raise DataError(f"groups: got shape {ids.shape}, expected ({rows},), one id per score")
        if not rows:
            return np.empty(0, dtype=np.int64)
        if ids.dtype.kind == "O":
            ids = _one_kind(ids, start)
        if ids.dtype.kind not in "biuSU":
            raise DataError(
                f"groups: got an array of {ids.dtype}, expected integers or strings; convert them"
            )
        self._agree("integers" if ids.dtype.kind in "biu" else "strings", start)
        return _digests(ids) if ids.dtype.kind in "SU" else ids.astype(np.int64)

    def _agree(self, kind: str, start: int) -> None:
        if self._kind not in (None, kind):
            raise DataError(
                f"groups (row {start} of the evaluated rows): got {kind}, expected {self._kind} "
                "as in earlier updates; an id must have one type"
            )
        self._kind = kind


def _one_kind(ids: NDArray[Any], start: int) -> NDArray[Any]:
    """Return an array of objects as one of integers, text or bytes."""
    for kinds, dtype in (((int, np.integer), np.dtype(np.int64)), ((str,), None), ((bytes,), None)):
        wrong = np.array([not isinstance(value, kinds) for value in ids], dtype=np.bool_)
        if not wrong.any():
            return ids.astype(dtype) if dtype else np.array(ids.tolist())
        if not wrong[0]:
            break
    rule = "integers alone or strings alone; drop rows without a group, and give ids one type"
    refuse("groups", wrong, ids, start, rule)
    return ids


def _digests(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Hash text ids: (B,) to (U,) distinct ones, hashed once each, and back to (B,)."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    raw = (
        value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        for value in distinct.tolist()
    )
    digests = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in raw)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)[inverse]


def binary_rows(
    scores: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    *,
    start: int,
    kind: ScoreKind,
    groups: ArrayLike | None = None,
    group_keys: GroupKeys | None = None,
) -> Rows:
    """Check one update of a binary metric and return it as rows of (group,) key, label, weight."""
    score_B = finite_column(scores, "scores", start)
    if kind == "probability":
        unit_interval(score_B, "scores", start, "pass score_kind='logit' if they are logits")
    label_B = finite_column(labels, "labels", start, len(score_B))
    unit_interval(label_B, "labels", start, "map the labels to 0 and 1 first")
    weight_B = weight_column(weights, start, len(score_B))
    rows = np.empty(len(score_B), dtype=BINARY_ROW if group_keys is None else GROUPED_ROW)
    if group_keys is not None:
        rows["group"] = group_keys.keys(groups, start, len(score_B))
    rows["key"] = -score_B
    rows["label"] = label_B
    rows["weight"] = weight_B
    return rows
