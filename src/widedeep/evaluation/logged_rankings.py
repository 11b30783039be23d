"""How the rows of a log were ranked: requests, places, propensities; and how a model ranks them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.formula import Formula
from widedeep.data.fragments import Source
from widedeep.data.sources import Data, RowShare, open_source
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.slices import encode_column

__all__ = ["LogColumns", "LoggedRankings"]

Floats = NDArray[np.float64]

_NO_PROPENSITY = (
    "got {:,} rows without a propensity; log how likely each item was to get its place (a server "
    "with exploration does), or leave the column out"
)
_ONE_CHOICE = (
    "every propensity is 1: the log's policy never showed anything but its own choice, so what "
    "another one would show cannot be judged; log with exploration"
)

_LAST_PLACE = 10_000  # beyond it, a column is no place in a list that someone saw
PROPENSITY = "propensity"
"""The column that is taken for propensities where none is named."""
REQUEST = "request_id"
"""The column that is taken for requests' ids where none is named: a server's log has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogColumns:
    """The columns of a log that say how it was ranked."""

    propensity: str
    position: str
    request: str
    required: bool = True  # False: a log without exploration is read as if it had no propensities
    lacks: str | None = None  # Why what is there cannot be read, where it was not asked for

    @classmethod
    def find(
        cls,
        data: Data,
        bundle: Bundle,
        *,
        propensity: str | None = None,
        position: str = "position",
        request: str | None = None,
    ) -> LogColumns | None:
        """Return the columns; None if none is named and the data has no such columns.

        Args:
            data: The log.
            bundle: The model.
            propensity: Column of propensities; None: ``"propensity"``, if the data has it.
            position: Column of places in the list.
            request: Column of requests' ids; None: ``"request_id"`` if the data has it, else the
                group of the bundle's schema.

        Raises:
            ConfigError: If propensities are named and no column of requests is known.
        """
        # What can be read only once is not read to see what it holds.
        many = isinstance(data, str | os.PathLike | Sequence | Mapping | RowShare)
        can_look = many or hasattr(data, "columns")
        if request is None:
            usual = can_look and _has_column(data, REQUEST)
            request = REQUEST if usual else bundle.schema.spec.group
        if propensity is not None:
            if request is None:
                raise ConfigError(
                    f"got propensities in column {propensity!r} and no column of requests; name it "
                    "(request), or declare it as group when training"
                )
            return cls(propensity=propensity, position=position, request=request)
        ranks = bundle.model.rank_by is not None or not all(h.by_class for h in bundle.model.heads)
        if not ranks or not can_look or not _has_column(data, PROPENSITY):
            return None
        lacks = None
        if request is None:
            lacks = "the column of requests' ids is not known; name it (request)"
        elif not _has_column(data, request):
            lacks = f"there is no column {request!r} of requests' ids; name it (request)"
        elif not _has_column(data, position):
            lacks = f"there is no column {position!r} of places in the list; name it (position)"
        return cls(
            propensity=PROPENSITY,
            position=position,
            request=request or REQUEST,
            required=False,
            lacks=lacks and f"column {PROPENSITY!r} was not read: {lacks}",
        )

    @property
    def names(self) -> tuple[str, str, str]:
        """The columns."""
        return self.propensity, self.position, self.request

    def check(self, source: Source) -> str | None:
        """Check a log before it is scored.

        Returns:
            Why it is judged as if it had no propensities; None: it has.

        Raises:
            DataError: If a propensity or position is out of its range, or nothing was explored
                in a log whose propensities were asked for.
        """
        tables = [source.read(fragment, list(self.names)) for fragment in source.fragments]
        table = pa.concat_tables(tables, promote_options="permissive")
        try:
            self.rankings({name: table[name] for name in self.names})
        except NotExplored as error:
            if self.required:
                raise
            return f"column {self.propensity!r}: {error}"
        return None

    def rankings(self, columns: Mapping[str, pa.ChunkedArray]) -> LoggedRankings:
        """Return how the rows were ranked."""
        return LoggedRankings.of_columns(
            columns[self.request], columns[self.position], columns[self.propensity]
        )


def _has_column(data: Data, name: str) -> bool:
    try:
        with open_source(data, columns=[name]):
            return True
    except DataError:
        return False


class NotExplored(DataError):
    """The log's policy drew nothing at random."""


def order_columns(bundle: Bundle) -> list[str]:
    """Return the columns of numbers that a bundle's formula ranks by, beside its heads."""
    if bundle.model.rank_by is None:
        return []
    return [name for name in Formula(bundle.model.rank_by).names if name not in _heads(bundle)]


def choose_order(bundle: Bundle, by_head: Mapping[str, Floats], rows: pa.Table) -> Floats:
    """Return the score that a ranker would rank each row by: its formula's, or its first head's.

    Raises:
        DataError: If no head gives one number per row.
    """
    if bundle.model.rank_by is None:
        for head in bundle.model.heads:
            if not head.by_class:
                return by_head[head.name]
        raise DataError(
            f"{bundle.path}: gives a probability a class, and no number to rank by; a log's "
            "propensities judge models that rank"
        )
    heads = _heads(bundle)

    def value_of(name: str, label: str | None) -> Floats:
        if name not in heads:
            return np.asarray(rows[name].cast(pa.float64(), safe=False).to_numpy(), np.float64)
        head = bundle.model.heads[heads.index(name)]
        scores = by_head[head.name]
        return scores if label is None else scores[:, list(head.classes).index(label)]

    return np.nan_to_num(Formula(bundle.model.rank_by).values(value_of), nan=-np.inf)


def _heads(bundle: Bundle) -> Sequence[str]:
    labels = bundle.schema.spec.labels
    return [head.name or labels.get("", "") for head in bundle.model.heads]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRankings:
    """Rankings of a log whose policy drew them at random, row by row; see :meth:`of_columns`."""

    request_B: NDArray[np.int64]  # Request of each row, from 0
    position_B: NDArray[np.int64]  # Place in the list, from 1; 0: a candidate that was not shown
    propensity_B: Floats  # Chance that this item got this place; NaN if it was not shown
    requests: int  # Number of requests, also of those that were not explored

    @classmethod
    def of_columns(
        cls, request: pa.ChunkedArray, position: pa.ChunkedArray, propensity: pa.ChunkedArray
    ) -> LoggedRankings:
        """Read a log's columns.

        Args:
            request: Id of each row's request.
            position: Its place in the list that was shown, from 1; null: it was a candidate and was
                not shown.
            propensity: Probability that the policy gave this place to this item, 0 < propensity <=
                1; null: it was not shown, or its request was not explored (all of its rows are
                null).

        Raises:
            DataError: If no propensity is given, one is out of range, a request has some of those
                of its places, or two items have one place.
        """
        propensity_B = read_propensities(propensity)
        if np.isnan(propensity_B).all():
            raise NotExplored(_NO_PROPENSITY.format(len(propensity_B)))
        if (propensity_B[~np.isnan(propensity_B)] == 1).all():
            raise NotExplored(_ONE_CHOICE)
        position_B = read_positions(position, shown_B=~np.isnan(propensity_B))
        request_B, ids = encode_column(request)
        explored_B = np.bincount(request_B, position_B > 0)[request_B] > 0
        bare_B = explored_B & (position_B == 0) & np.asarray(position.is_valid())
        if bare_B.any():
            row = int(bare_B.argmax())
            raise DataError(
                f"request {ids[int(request_B[row])].as_py()!r}, row {row}: got a position without "
                "a propensity, beside rows with both; expected both, or neither (not shown)"
            )
        row_N = np.flatnonzero(position_B)  # with a position
        order = row_N[np.lexsort((position_B[row_N], request_B[row_N]))]
        same = (np.diff(request_B[order]) == 0) & (np.diff(position_B[order]) == 0)
        if same.any():
            row = int(order[1:][same][0])
            raise DataError(
                f"request {ids[int(request_B[row])].as_py()!r}: got two items at "
                f"position {position_B[row]}, expected one; name the column of the requests' ids"
            )
        return cls(
            request_B=request_B,
            position_B=position_B,
            propensity_B=propensity_B,
            requests=len(ids),
        )

    def __len__(self) -> int:
        return len(self.request_B)

    def of_requests(self, keep_B: NDArray[np.bool_]) -> LoggedRankings:
        """Return the rows of requests of which every row is to be kept."""
        return replace(
            self,
            request_B=np.unique(self.request_B[keep_B], return_inverse=True)[1],
            position_B=self.position_B[keep_B],
            propensity_B=self.propensity_B[keep_B],
        )

    @property
    def explored_B(self) -> NDArray[np.bool_]:
        """Whether a row's request has propensities."""
        return np.bincount(self.request_B, self.position_B > 0)[self.request_B] > 0

    def order(self, scores_B: Floats) -> NDArray[np.int64]:
        """Return each row's place, from 1, if its request were ranked by the scores.

        Equal scores are drawn: the rows stand as the log's policy ranked them, which would agree.
        """
        drawn_B = np.random.default_rng(0).permutation(len(self))
        order = np.lexsort((drawn_B, -scores_B, self.request_B))
        request = self.request_B[order]
        first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
        lengths = np.diff(np.r_[first, len(order)])
        rank_B = np.empty(len(order), np.int64)
        rank_B[order] = np.arange(len(order)) - np.repeat(first, lengths) + 1
        return rank_B


def read_propensities(column: pa.ChunkedArray) -> Floats:
    """Return propensities, NaN for null; raise a :class:`DataError` for one out of its range."""
    values = read_numbers(column, "propensity")
    absent_B = np.asarray(pc.is_null(column))
    present_B = ~absent_B
    bad_B = present_B & ~((values > 0) & (values <= 1))
    if bad_B.any():
        row = int(bad_B.argmax())
        raise DataError(
            f"row {row}: got the propensity {values[row]:g}, expected 0 < propensity <= 1, or null "
            f"for what was not drawn ({int(bad_B.sum()):,} rows); what was shown had a chance"
        )
    return np.where(absent_B, np.nan, values)


def read_positions(column: pa.ChunkedArray, *, shown_B: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return places of the rows that were shown, 0 for the others; raise for one below 1."""
    values = read_numbers(column, "position")
    bad_B = shown_B & ~((values >= 1) & (values <= _LAST_PLACE) & (values == np.rint(values)))
    if bad_B.any():
        row = int(bad_B.argmax())
        raise DataError(
            f"row {row}: got the position {values[row]:g}, expected a whole number from 1 to "
            f"{_LAST_PLACE:,}: the place in a list"
        )
    return np.where(shown_B, values, 0).astype(np.int64)


def read_numbers(column: pa.ChunkedArray, what: str) -> Floats:
    """Return a column's numbers, NaN for null; raise a :class:`DataError` for other values."""
    try:
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{what}: got {column.type}, expected numbers ({error})") from error
    return np.asarray(numbers, np.float64)
