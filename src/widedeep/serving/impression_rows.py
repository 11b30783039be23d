"""Rows of the impression log: Arrow tables and JSON lines of ranked requests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from widedeep.data.column_values import UNITS, without_decimals
from widedeep.data.transform import Moment, plain_value
from widedeep.features.spec import item_columns
from widedeep.schema import ColumnType
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.ranker import Ranker, Ranking, inline_items

OWN_COLUMNS = (
    *("request_id", "user_id", "item_id", "position", "event_time"),
    *("model_version", "catalogue_version", "score"),
)
"""The columns of every log, before those of the features."""
TERM = "rank_by/"
"""Lead of the columns with the values of a formula's names, where one was ranked by."""


class RankedRequest(Protocol):
    """A ranked request, as the server's `Ranked` and other callers' records hold it."""

    @property
    def request_id(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def user(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def context(self) -> Mapping[str, Any] | None: ...  # noqa: D102
    @property
    def candidates(self) -> Any: ...  # noqa: D102
    @property
    def ranking(self) -> Ranking: ...  # noqa: D102
    @property
    def ranker(self) -> Ranker: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A request that waits to be logged."""

    request: RankedRequest
    user_id: str | int
    time_us: int  # Answer time, microseconds since 1970
    catalogue: Catalogue | None  # The catalogue of its items


@dataclass(frozen=True, kw_only=True, slots=True)
class UserIds:
    """The column of users' ids, and the key of their hash."""

    column: str  # The user's column that holds the id
    key: bytes | None = None  # Key of the hash; None: ids are not hashed

    def of(self, request: RankedRequest) -> str | int | None:
        """Return the id as it is written; None if the request has none."""
        user_id = request.user.get(self.column)
        if user_id is None or isinstance(user_id, bool) or not isinstance(user_id, str | int):
            return None
        if self.key is None:
            return user_id
        text = user_id if isinstance(user_id, str) else _digits(user_id)
        return hashlib.blake2b(
            text.encode("utf-8", "surrogatepass"), key=self.key, digest_size=16
        ).hexdigest()

    def may_write(self, column: str, allowed: frozenset[str] | None) -> bool:
        """Return whether a feature's column may be logged."""
        if column in OWN_COLUMNS:
            return False
        # A hashed id beside the id itself would hide nothing.
        hidden = self.key is not None and column == self.column
        return not hidden if allowed is None else column in allowed


def impression_groups(answered: Sequence[Answered]) -> list[list[Answered]]:
    """Group requests that have the same columns: by schema, catalogue and type of the user's id."""
    groups: dict[tuple[Any, ...], list[Answered]] = {}
    for each in answered:
        inline = isinstance(each.request.candidates, Mapping | pa.Table)
        schema = id(each.request.ranker.bundle.schema)
        columns = (*each.request.ranking.terms, explores(each.request))
        key = (schema, id(each.catalogue), inline, isinstance(each.user_id, str), columns)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def explores(request: RankedRequest) -> bool:
    """Return whether the rows have the columns of exploration."""
    return request.ranker.options.exploration is not None


def impression_table(
    answered: Sequence[Answered], users: UserIds, allowed: frozenset[str] | None
) -> pa.Table:
    """Return the rows of requests of one group, one per ranked item."""
    return _Rows(answered, users, allowed).table()


def as_text(
    answered: Answered, users: UserIds, allowed: frozenset[str] | None, error: Exception
) -> str:
    """Return a request as a line of JSON, for values that fit no column."""
    request = answered.request
    inline = request.candidates if isinstance(request.candidates, Mapping) else {}
    columns = [
        name
        for name in request.ranker.bundle.encoder.columns(targets=False)
        if users.may_write(name, allowed)
    ]
    line = {
        "error": f"{type(error).__name__}: {error}"[:500],
        "request_id": request.request_id,
        "user_id": answered.user_id,
        "event_time_us": answered.time_us,
        "model_version": request.version,
        "catalogue_version": request.ranking.catalogue_version,
        "items": list(request.ranking.items),
        "scores": request.ranking.scores.tolist(),
        "policy": request.ranking.policy,
        "propensities": request.ranking.propensities,
        "user": {name: request.user[name] for name in columns if name in request.user},
        "context": {
            name: value for name, value in (request.context or {}).items() if name in columns
        },
        "candidates": {name: list(inline[name]) for name in columns if name in inline},
    }
    return json.dumps(_json_value(line))


def _json_value(value: Any) -> Any:
    """Return a value as strict JSON; values that JSON lacks become text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if _is_int64(value) else _digits(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {_text(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, np.ndarray):
        return _json_value(value.tolist())
    plain = plain_value(value)
    return _text(value) if plain is NotImplemented else _json_value(plain)


def _is_int64(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _digits(value: int) -> str:
    # Python refuses thousands of decimal digits, but not hexadecimal ones.
    return str(value) if value.bit_length() < 4096 else hex(value)


class _Rows:
    """Builds the table of requests with one schema and one catalogue."""

    def __init__(
        self, answered: Sequence[Answered], users: UserIds, allowed: frozenset[str] | None
    ) -> None:
        self.answered, self.requests = answered, [each.request for each in answered]
        self.users, self.allowed = users, allowed
        self.ranker, self.catalogue = self.requests[0].ranker, answered[0].catalogue
        self.lengths = [len(request.ranking) for request in self.requests]
        # (rows,) index of the request of each row
        self.of_request = pa.array(np.repeat(np.arange(len(answered)), self.lengths))
        self.items = [item for request in self.requests for item in request.ranking.items]
        self.by_id = not isinstance(self.requests[0].candidates, Mapping | pa.Table)

    def table(self) -> pa.Table:
        columns = {**self._own_columns(), **self._exploration(), **self._terms()}
        return pa.table({**columns, **self._features()})

    def _own_columns(self) -> dict[str, pa.Array]:
        answered, requests = self.answered, self.requests
        positions = [np.arange(1, length + 1) for length in self.lengths]
        scores = [request.ranking.scores for request in requests]
        return {
            "request_id": self._spread([r.request_id for r in requests], pa.string()),
            "user_id": self._spread([each.user_id for each in answered], None),
            "item_id": _ids(self.items),
            "position": pa.array(np.concatenate(positions).astype(np.int64)),
            "event_time": self._spread([a.time_us for a in answered], pa.timestamp("us", "UTC")),
            "model_version": self._spread([r.version for r in requests], pa.string()),
            "catalogue_version": self._spread(
                [r.ranking.catalogue_version for r in requests], pa.string()
            ),
            "score": pa.array(np.concatenate(scores).astype(np.float64)),
        }

    def _exploration(self) -> dict[str, pa.Array]:
        if not explores(self.requests[0]):
            return {}
        rankings = [request.ranking for request in self.requests]
        propensities = [
            np.full(len(ranking), np.nan) if ranking.propensities is None else ranking.propensities
            for ranking in rankings
        ]
        return {
            "policy": self._spread([ranking.policy for ranking in rankings], pa.string()),
            "propensity": pa.array(np.concatenate(propensities), from_pandas=True),  # NaN: null
        }

    def _terms(self) -> dict[str, pa.Array]:
        """Return the formula that was ranked by, and the values of its names."""
        rankings = [request.ranking for request in self.requests]
        if rankings[0].rank_by is None:
            return {}
        formulas = self._spread([ranking.rank_by for ranking in rankings], pa.string())
        values = {
            f"{TERM}{name}": pa.array(np.concatenate([ranking.terms[name] for ranking in rankings]))
            for name in rankings[0].terms
        }
        return {"rank_by": formulas, **values}

    def _spread(self, values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
        """Repeat each request's value for its rows."""
        return self._repeat(pa.array(values, kind) if kind is not None else pa.array(values))

    def _repeat(self, array: pa.Array) -> pa.Array:
        is_plain = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
        if array.null_count or not is_plain:
            return array.take(self.of_request)
        # np.repeat of plain numbers is several times faster than Arrow's take.
        return pa.array(np.repeat(array.to_numpy(), self.lengths), array.type)

    def _features(self) -> dict[str, pa.Array]:
        bundle = self.ranker.bundle
        declared = item_columns(bundle.schema.spec)
        arrays: dict[str, pa.Array] = {}
        for name in bundle.encoder.columns(targets=False):
            if not self.users.may_write(name, self.allowed):
                continue
            kind = bundle.schema.columns[name]
            array = None if declared and name not in declared else self._of_items(name, kind)
            arrays[name] = self._of_query(name, kind) if array is None else array
        return arrays

    def _of_query(self, name: str, kind: ColumnType) -> pa.Array:
        values = [
            request.user.get(name, (request.context or {}).get(name)) for request in self.requests
        ]
        return self._repeat(typed_array(values, kind))

    def _of_items(self, name: str, kind: ColumnType) -> pa.Array | None:
        """Return the items' values, or None if items have no such column."""
        if not self.by_id:
            return self._of_inline_items(name, kind)
        id_column = self.ranker.item_id if self.catalogue is None else self.catalogue.id_column
        if name == id_column:
            return typed_array(self.items, kind)
        if self.catalogue is None or name not in self.catalogue.table.column_names:
            return None
        return typed_arrow(self.catalogue.table[name].take(self._catalogue_rows), kind)

    @cached_property
    def _catalogue_rows(self) -> pa.Array:
        """The row of each item in the catalogue; null for one that it does not hold."""
        assert self.catalogue is not None
        rows = self.catalogue.positions(self.items)
        return pa.array(rows, mask=rows < 0)

    def _of_inline_items(self, name: str, kind: ColumnType) -> pa.Array | None:
        values: list[Any] = []
        is_present = False
        for request in self.requests:
            _, columns = inline_items(request.candidates, None)
            is_present = is_present or name in columns
            column = columns.get(name)
            places = request.ranking.positions.tolist()
            values += (
                [None] * len(places)
                if column is None
                else [column[position] for position in places]
            )
        return typed_array(values, kind) if is_present else None


def _ids(items: Sequence[Any]) -> pa.Array:
    """Return ids as int64 if all are such integers, else as text."""
    if all(type(item) is int and _is_int64(item) for item in items):
        return pa.array(items, pa.int64())
    return pa.array([_digits(i) if type(i) is int else str(i) for i in items], pa.string())


UNFIT = (pa.ArrowException, ArithmeticError, TypeError, ValueError)
"""Errors of :func:`typed_array` for a value that a model reads and the column cannot hold."""


def typed_arrow(values: pa.ChunkedArray, kind: ColumnType) -> pa.Array:
    """Return a column in a column's type."""
    try:
        values = without_decimals(values) if kind.kind == "float" else values
        return pa.concat_arrays(values.cast(kind.arrow(narrow=True)).chunks)
    except pa.ArrowException:
        return typed_array(values.to_pylist(), kind)


def typed_array(values: Sequence[Any], kind: ColumnType) -> pa.Array:
    """Return values in a column's type, converted as the transform converts a request's."""
    # Arrow silently truncates 1.5 to 1, and takes a text for the list of its characters.
    is_count = kind.kind == "int" and kind.storage not in UNITS
    exact = not is_count or all(isinstance(value, int | None) for value in values)
    exact = exact and not (kind.nested and any(isinstance(v, str | bytes) for v in values))
    array = None
    with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        if exact:
            array = pa.array(values, kind.arrow(), from_pandas=False)
    if array is None:
        array = _converted(values, kind)
    return array.cast(kind.arrow(narrow=True), safe=False)


def _converted(values: Sequence[Any], kind: ColumnType) -> pa.Array:
    if kind.storage in UNITS:
        # Microseconds, as the transform reads them; then the column's own unit.
        times = [_plain(value, kind, partial(_time, kind.storage)) for value in values]
        wide = pa.array(times, ColumnType(kind="int", nested=kind.nested, storage="us").arrow())
        return wide.cast(kind.arrow(), safe=False)
    convert = _CONVERT[kind.kind]
    return pa.array([_plain(value, kind, convert) for value in values], kind.arrow())


def _plain(value: Any, kind: ColumnType, convert: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    if kind.nested:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        parts = value if isinstance(value, list | tuple) else [value]
        return [_plain(item, ColumnType(kind=kind.kind), convert) for item in parts]
    plain = plain_value(value)
    return convert(value if plain is NotImplemented else plain)


def _time(unit: str, value: Any) -> int:
    """Return microseconds of ISO 8601 text, a moment, or a number of the column's units."""
    if isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode()
        is_count = text.lstrip("-").isdigit()
        value = int(text) if is_count else plain_value(datetime.fromisoformat(text))
    if not isinstance(value, Moment):
        return int(math.floor(value) * UNITS[unit] // 1000)
    return int(value) - int(value) % max(UNITS[unit] // 1000, 1)


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _truth(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "1", "1.0", "false", "0", "0.0"):
        raise ValueError(f"got {value!r} in a column of truth values")
    return text.startswith(("t", "1"))


def _whole(value: Any) -> int:
    whole = int(value)
    if isinstance(value, float) and whole != value:
        raise ValueError(f"got {value!r} in a column of integers")
    return whole


_CONVERT: dict[str, Any] = {"string": _text, "int": _whole, "float": float, "bool": _truth}
