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

__all__ = [
    "MAX_VALUES",
    "Candidates",
    "InlineItems",
    "candidate_ids",
    "check_id",
    "check_names",
    "chosen_head",
    "inline_items",
    "plain_message",
]

Candidates: TypeAlias = Sequence[Any] | Mapping[str, Sequence[Any]] | NDArray[Any] | pa.Table
"""Ids, or the items themselves as columns."""

MAX_VALUES = 4_000_000
"""Ids and numbers that one request may come to, over all its rows or candidates."""

_ALLOWED = "expected a list of ids, or the items as columns: a dict of lists or an Arrow table"


@dataclass(frozen=True, slots=True)
class InlineItems:
    """Items that a request brings itself.

    Args:
        ids: Of the id column if it is there, else positions.
        columns: Values by column, all of one length.
    """

    ids: list[Any]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the items as dicts.

        Args:
            names: The columns wanted.
        """
        if not names:
            return [{} for _ in self.ids]
        values = zip(*(self.columns[name] for name in names), strict=True)
        return [dict(zip(names, row, strict=True)) for row in values]


def inline_items(candidates: Mapping[str, Any] | pa.Table, id_column: str | None) -> InlineItems:
    """Return columns of items as plain lists.

    Args:
        candidates: A column of values each, all of one length.
        id_column: The column of ids, which may be absent.

    Raises:
        RequestError: If a column is no list, or they differ in length.

    Example:
        >>> inline_items({"app": ["maps", "mail"], "price": [0, 2]}, "app").ids
        ['maps', 'mail']
    """
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
    """Raise if a column is given on the wrong side of a request.

    Args:
        where: The field that ``given`` stands in.
        given: Values by column.
        taken: Columns that must not be here.
        side: Whose columns those are.
        home: Where they belong.

    Raises:
        RequestError: Naming the first such column.
    """
    for name in given.keys() & taken:
        raise RequestError(
            f"{where}.{name}", f"got a value, but this column is {side}; give it in {home}"
        )


def candidate_ids(candidates: object) -> list[Any]:
    """Return a request's ids as a list.

    Args:
        candidates: A sequence or array of ids.

    Raises:
        RequestError: If it is neither, or an id is neither text nor an integer.
    """
    if isinstance(candidates, np.ndarray) and candidates.ndim == 1:
        return list(candidates.tolist())
    if not isinstance(candidates, Sequence) or isinstance(candidates, str | bytes):
        raise RequestError(
            "candidates", f"got {candidates!r} ({type(candidates).__name__}); {_ALLOWED}"
        )
    return list(candidates)


def check_id(at: int, id_: object) -> None:
    """Raise if a value can be no id.

    Args:
        at: Its place among the candidates.
        id_: The value.

    Raises:
        RequestError: If it is neither text nor an integer.
    """
    if not isinstance(id_, str | int) or isinstance(id_, bool):
        raise RequestError(
            f"candidates[{at}]",
            f"got {id_!r} ({type(id_).__name__}), expected an id: text or an integer",
        )


def chosen_head(heads: Mapping[str, str], head: str | None) -> str:
    """Return the head to rank by.

    Args:
        heads: Kinds of the model's heads by name, in order.
        head: Its name; None for the first that gives one number an item.

    Raises:
        RequestError: If there is none, or it gives more than one number an item.
    """
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
    """Return an encoder's message without its row: a request's field is told already.

    Args:
        error: What the encoder raised.

    Example:
        >>> plain_message(ValueError("feature 'age' (row 0): got 'x' (str)"))
        "feature 'age': got 'x' (str)"
    """
    return re.sub(r" \(row \d+\)", "", str(error))
