"""Candidates: what a request asks to have ranked, checked and made plain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.errors import RequestError, nearest

Candidates: TypeAlias = Sequence[Any] | Mapping[str, Sequence[Any]] | NDArray[Any] | pa.Table
"""Ids, or the items themselves as columns."""

MAX_VALUES = 4_000_000
"""Ids and numbers that one request may come to, over all its rows or candidates."""

_ALLOWED = "expected a list of ids, or the items as columns: a dict of lists or an Arrow table"


@dataclass(frozen=True, slots=True)
class InlineItems:
    """Items that a request brings itself."""

    ids: list[Any]  # Of the id column if it is there, else positions
    columns: dict[str, list[Any]]  # Values by column, all of one length

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the items as dicts."""
        if not names:
            return [{} for _ in self.ids]
        values = zip(*(self.columns[name] for name in names), strict=True)
        return [dict(zip(names, row, strict=True)) for row in values]


def inline_items(candidates: Mapping[str, Any] | pa.Table, id_column: str | None) -> InlineItems:
    """Return columns of items as plain lists."""
    if isinstance(candidates, pa.Table):
        columns = {name: candidates[name].to_pylist() for name in candidates.column_names}
    else:
        columns = {name: _values(name, column) for name, column in candidates.items()}
    length = len(next(iter(columns.values()))) if columns else 0
    for name, values in columns.items():
        if len(values) != length:
            raise RequestError(
                f"candidates.{name}",
                f"got {len(values)} values, but {length} in {next(iter(columns))!r}; "
                "give one value an item in every column",
            )
    ids = columns.get(id_column) if id_column is not None else None
    return InlineItems(ids=list(range(length)) if ids is None else ids, columns=columns)


def _values(name: object, column: object) -> list[Any]:
    if not isinstance(name, str):
        raise RequestError("candidates", f"got the column name {name!r}; expected text")
    if isinstance(column, list):
        return column
    if isinstance(column, np.ndarray) and column.ndim:
        return list(column.tolist())
    if isinstance(column, Sequence) and not isinstance(column, str | bytes):
        return list(column)
    raise RequestError(
        f"candidates.{name}",
        f"got {column!r} ({type(column).__name__}), expected a list with one value an item",
    )


def check_names(
    where: str, given: Mapping[str, Any], taken: Set[str], side: str, home: str
) -> None:
    """Raise if a column is given on the wrong side of a request."""
    for name in given.keys() & taken:
        raise RequestError(
            f"{where}.{name}", f"got a value, but this column is {side}; give it in {home}"
        )


def candidate_ids(candidates: object) -> list[Any]:
    """Return a request's ids as a list."""
    if isinstance(candidates, np.ndarray) and candidates.ndim == 1:
        return list(candidates.tolist())
    if not isinstance(candidates, Sequence) or isinstance(candidates, str | bytes):
        raise RequestError(
            "candidates", f"got {candidates!r} ({type(candidates).__name__}); {_ALLOWED}"
        )
    return list(candidates)


def check_id(at: int, id_: object) -> None:
    """Raise if a value can be no id."""
    if not isinstance(id_, str | int) or isinstance(id_, bool):
        raise RequestError(
            f"candidates[{at}]",
            f"got {id_!r} ({type(id_).__name__}), expected an id: text or an integer",
        )


def chosen_head(heads: Mapping[str, str], head: str | None) -> str:
    """Return the head to rank by."""
    single = [name for name, kind in heads.items() if kind != "multiclass"]
    if head is None and single:
        return single[0]
    if head is not None and head not in heads:
        raise RequestError("head", f"got {head!r}, which is no head; {nearest(head, heads)}")
    if head is None or head not in single:
        raise RequestError(
            "head",
            f"got {head!r}, which gives a probability a class; expected one that gives a number an "
            f"item to rank by: {single}",
        )
    return head


def plain_message(error: Exception) -> str:
    """Return an encoder's message without its row: a request's field is told already."""
    return re.sub(r" \(row \d+\)", "", str(error))
