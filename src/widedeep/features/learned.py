"""What is learned from data of columns and features: types, vocabularies, number transforms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.errors import SchemaError
from widedeep.options import check_types

FIRST_KNOWN_ID = 2
LogicalKind = Literal["string", "int", "float", "bool"]
_TIMES: dict[str, pa.DataType] = {
    **{unit: pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")},
    "day": pa.date32(),
}
_FLOATS = {"float16": pa.float16(), "float32": pa.float32()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnType:
    """The logical type of an input column; requests are converted by it, never by inference.

    Args:
        kind: ``"string"`` (text or bytes), ``"int"``, ``"float"`` or ``"bool"``.
        nested: True for a column of lists.
        storage: How the column was stored where the schema was fitted, as far as it decides what a
            value means: ``"float16"``, ``"float32"``, ``"float64"``, ``"decimal:2"`` (digits behind
            the point), or the unit of a time: ``"s"``, ``"ms"``, ``"us"``, ``"ns"``, ``"day"``.
            A value that comes in another form is rounded to it, and a number for a time counts its
            units since 1970. None for text, whole numbers and booleans, and in schemas that older
            versions wrote: values are taken as they come.
    """

    kind: LogicalKind
    nested: bool = False
    storage: str | None = None

    def __post_init__(self) -> None:
        check_types(self, "column type")
        storage = self.storage or "float64"
        if not (storage in {"float64", *_FLOATS, *_TIMES} or re.fullmatch(r"decimal:\d+", storage)):
            raise SchemaError(
                f"column type: got storage={storage!r}, which this version cannot read"
            )

    @property
    def is_time(self) -> bool:
        """Whether the column holds points in time."""
        return self.storage in _TIMES

    def arrow(self, *, narrow: bool = False) -> pa.DataType:
        """Return the Arrow type that holds such a column.

        Args:
            narrow: Return the column's own width; otherwise numbers have 64 bits.
        """
        plain = {
            "string": pa.large_string(),
            "int": pa.int64(),
            "float": pa.float64(),
            "bool": pa.bool_(),
        }
        item = _TIMES.get(self.storage or "", plain[self.kind])
        if narrow and self.storage in _FLOATS:
            item = _FLOATS[self.storage]
        return pa.list_(item) if self.nested else item

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; a storage that is unknown is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def round(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers rounded to the column's storage.

        Args:
            values: Any numbers; NaN stays.

        Example:
            >>> ColumnType(kind="float", storage="float32").round(np.array([0.1])).tolist()
            [0.10000000149011612]
        """
        if self.storage in _FLOATS:
            with np.errstate(over="ignore"):
                return values.astype(self.storage).astype(np.float64)
        return values


ColumnKind: TypeAlias = pa.DataType | Literal["category"]
"""A column's declared type; ``"category"`` is text, unless each value is a canonical integer."""


class ColumnTypes(dict[str, ColumnKind]):
    """What files that do not say it themselves (CSV) hold: column types, and words for no value."""

    def __init__(
        self, types: Mapping[str, ColumnKind] | None = None, null_values: Sequence[str] = ()
    ) -> None:
        super().__init__(types or {})
        self.null_values = tuple(null_values)

    @classmethod
    def of(cls, types: Mapping[str, ColumnKind] | None) -> ColumnTypes:
        """Return a copy of types by column."""
        return cls(types, types.null_values if isinstance(types, ColumnTypes) else ())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vocabulary:
    """Known values in order of their ids, with how often each was seen.

    Args:
        values: An Arrow large_binary array (text), an int64 array (integers), or an int64 array of
            shape (n, parts) with the part ids of each learned cross.
        counts: int64, occurrences in the data the schema was fitted on; zeros for a given
            vocabulary.
        dropped: Distinct values left out by ``min_count`` and ``max_size``.
        tail: The most frequent of those with their counts, which ``grow=`` adds to; None where they
            were not kept. No part of what turns rows into ids.
        index: The hash table of the values, mapped from the schema's file, so that all processes of
            a machine share it; None: whoever looks values up builds one of its own.
    """

    values: pa.LargeBinaryArray | NDArray[np.int64]
    counts: NDArray[np.int64]
    dropped: int = 0
    tail: Vocabulary | None = None
    index: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def value(self, position: int) -> str | int | tuple[int, ...]:
        """Return the value at a position (its id less the first known id), as Python sees it."""
        if isinstance(self.values, np.ndarray):
            entry = self.values[position]
            return tuple(int(part_id) for part_id in entry) if entry.ndim else int(entry)
        raw: bytes = self.values[position].as_py()
        return raw.decode("utf-8", "replace")

    def ends(self) -> list[Any]:
        """Return the first and the last value, as far as there are any."""
        return [self.value(i) for i in sorted({0, len(self) - 1}) if i >= 0 and len(self)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NumericFit:
    """What was learned for a numeric feature; arrays have one entry a component.

    A raw value x becomes, in float64 and then rounded to float32:

    - ``"quantile"``: the share of the training values at or below x, linear between the m
      boundaries, which are quantiles at equal distances with equal ones merged:
      (k + (x - b[k]) / (b[k + 1] - b[k])) / (m - 1) where b[k] <= x < b[k + 1]; 0 up to the
      smallest, 1 from the largest on, and 0 always if there are fewer than two.
    - ``"log1p"``: (sign(x) log(1 + abs(x)) - shift) * scale.
    - else: (x - shift) * scale.

    NaN counts as a null and becomes ``fill``.

    Args:
        boundaries: One strictly increasing float64 array a component, perhaps of no entry
            (``"quantile"`` only, else an empty tuple).
        shift: Subtracted before scaling.
        scale: Multiplied after shifting.
        fill: float32 dense value of a null.
        minimum: Smallest value seen.
        maximum: Largest value seen.
        mean: Mean of the values seen.
        profile: How the values seen were spread: cut points, and how many lay below the first,
            between each two, and from the last on; one pair a component, or none.
    """

    boundaries: tuple[NDArray[np.float64], ...]
    shift: NDArray[np.float64]
    scale: NDArray[np.float64]
    fill: NDArray[np.float32]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    profile: tuple[tuple[NDArray[np.float64], NDArray[np.int64]], ...] = ()

    def maps_as(self, other: NumericFit) -> bool:
        """Whether both turn numbers into the same dense values."""
        pairs = [
            (self.shift, other.shift),
            (self.scale, other.scale),
            *itertools.zip_longest(self.boundaries, other.boundaries),
        ]
        return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)

    def profile_of(
        self, component: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64] | NDArray[np.float64]]:
        """Return cut points and the counts, or shares, of training data between them.

        Without a profile, that nothing lay outside the smallest and largest value is all that is
        known.

        Args:
            component: Index of the component, from 0.
        """
        if self.profile:
            return self.profile[component]
        low, high = float(self.minimum[component]), float(self.maximum[component])
        if not low <= high:  # no value was seen
            return np.empty(0), np.zeros(1)
        return np.array([low, np.nextafter(high, np.inf)]), np.array([0.0, 1.0, 0.0])


def text_buffers(values: pa.LargeBinaryArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the offsets (from 0, one more than there are values) and the bytes of a vocabulary."""
    _, offsets, data = values.buffers()
    window = np.frombuffer(offsets, np.int64, len(values) + 1, values.offset * 8)
    from_zero = window - window[0] if window[0] else window  # no copy of what a file maps
    if data is None:
        return from_zero, np.empty(0, np.uint8)
    return from_zero, np.frombuffer(data, np.uint8)[window[0] : window[-1]]
