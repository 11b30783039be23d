"""A sample of the rows and a profile of the columns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import is_list, plain_table
from widedeep.data.fragments import Source, row_without_text
from widedeep.data.sources import Data, open_source
from widedeep.data.spelling import Alike, looks_like, spelt_alike
from widedeep.errors import DataError
from widedeep.features.learned import ColumnKind

SAMPLE_ROWS = 50_000
_MOST_FRAGMENTS = 8
_RUNS = 16


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some rows of a table."""

    table: pa.Table  # The rows, in order; text is plain text, whatever its encoding was
    total: int  # Rows of the whole table

    @property
    def complete(self) -> bool:
        """True if the sample is the whole table."""
        return bool(self.total == self.table.num_rows)


def sample_rows(
    data: Data,
    *,
    rows: int = SAMPLE_ROWS,
    columns: Sequence[str] | None = None,
    column_types: Mapping[str, ColumnKind] | None = None,
) -> Sample:
    """Read some rows of a table: runs spread from its beginning to its end."""
    with open_source(data, columns=columns, column_types=column_types) as source:
        if not source.num_rows:
            raise DataError(f"{data}: got no rows; expected at least one example")
        return sample_source(source, rows=rows)


def sample_source(source: Source, *, rows: int = SAMPLE_ROWS) -> Sample:
    """Read some rows of an open source, as :func:`sample_rows` does."""
    names = source.arrow_schema.names
    pieces = [source.arrow_schema.empty_table()]
    pieces += _pieces(source, min(rows, source.num_rows), names)
    table = pa.concat_tables([plain_table(piece) for piece in pieces])
    return Sample(table=table, total=source.num_rows)


def _pieces(source: Source, rows: int, names: Sequence[str]) -> Iterator[pa.Table]:
    n_all = len(source.fragments)
    n_read = min(n_all, max(_MOST_FRAGMENTS, -(-rows * n_all // max(1, source.num_rows))))
    places = [number * (n_all - 1) // max(1, n_read - 1) for number in range(n_read)]
    fragments = [source.fragments[index] for index in places]
    quotas = _quotas([fragment.num_rows for fragment in fragments], rows)
    for fragment, quota in zip(fragments, quotas, strict=True):
        table = source.read(fragment, names)
        # Sorted rows are the rule: a fragment gives runs from its beginning to its end.
        n_runs = min(_RUNS, quota)
        sizes = [quota // n_runs + (run < quota % n_runs) for run in range(n_runs)]
        offset = 0
        for run, size in enumerate(sizes):
            gap = (fragment.num_rows - quota) * run // max(1, n_runs - 1)
            yield table.slice(offset + gap, size)
            offset += size


def _quotas(sizes: Sequence[int], rows: int) -> list[int]:
    """Share rows out evenly; what a short fragment cannot give, the longer ones do."""
    quotas = [0] * len(sizes)
    remaining = rows
    for number, index in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        quotas[index] = min(sizes[index], -(-remaining // (len(sizes) - number)))
        remaining -= quotas[index]
    return quotas


DataKind = Literal["int", "float", "text", "bool", "time", "other"]

_SHOWN_VALUES = 3
_KEPT_VALUES = 20
_SHOWN_LENGTH = 24
_ISO_TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d:?\d\d)?)?$"
# Numbers as people and spreadsheets write them; zeros in front are of codes.
_WRITTEN_NUMBER = (
    r"^[ \t]*(-?(0|[1-9][0-9]{0,14})|[+-]?(0|[1-9][0-9]{0,14})?\.[0-9]+([eE][+-]?[0-9]{1,3})?"
    r"|[+-]?(0|[1-9][0-9]{0,14})[eE][+-]?[0-9]{1,3})[ \t]*$"
)
_MOST_OTHERS = 5
_LOOKED_AT = 1_000
_COMPARED = 20_000  # Most frequent texts whose spelling is compared
_MOST_WHOLE_ROWS = 20_000_000
_EXPONENTIAL_KURTOSIS = 9.0
_TAIL_ROWS = 1_000  # Of fewer a tail is a few outliers
# Ids that name a row rather than describe it; a word of its own within the column's name.
_ID_NAME = re.compile(r"(^|[_\W])(id|ids|uid|uuid|guid|key|hash)($|[_\W])|[a-z]I[dD]s?$")


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """What a sample of a column holds."""

    name: str  # The column
    arrow_type: pa.DataType  # Its logical type
    kind: DataKind  # Kind of its values, or of its lists' values
    nested: bool  # True for lists
    list_size: int | None  # Length of its lists if all are of one length, else None
    rows: int  # Rows seen
    missing: float  # Share of nulls among them
    distinct: int  # Different values seen, nulls aside; 0 where they cannot be compared
    values: int  # How many values were seen: rows that are not null, or the entries of the lists
    minimum: float | None  # Smallest number seen; None for others
    maximum: float | None  # Largest number seen; None for others
    whole: bool  # True if every number seen is a whole one
    # True for numbers of a tail longer than an exponential distribution's, which logarithms shorten
    long_tailed: bool
    # The most frequent values as text, with how often each was seen
    top: tuple[tuple[str, int], ...]
    written_numbers: int = 0  # Texts among the values that are a number's
    # The others, the most frequent first, where these are a few words
    other_texts: tuple[str, ...] = ()
    alike: Alike | None = None  # Texts that differ in case, blanks or Unicode form alone
    looks: str = ""  # What its texts stand for to a person: "numbers" with marks, or "dates"
    # False if rows of the table were not seen: what is said of all rows is a guess
    complete: bool = True

    @property
    def constant(self) -> bool:
        """True if it carries no information: no value, or one value and no null."""
        alike = self.distinct == 1 and not self.missing and not self.nested
        return self.values == 0 or alike

    @property
    def named_like_id(self) -> bool:
        """True for a name such as ``user_id`` or ``itemId``."""
        return bool(_ID_NAME.search(self.name))

    @property
    def names_rows(self) -> bool:
        """True if (nearly) every row has a value of its own, as the key of a table has."""
        exact = self.kind in ("int", "text") and not self.nested
        return exact and self.values >= 20 and self.distinct >= 0.98 * self.values

    @property
    def is_written_number(self) -> bool:
        """True for text of which each value is a number."""
        return 0 < self.values == self.written_numbers

    @property
    def text_note(self) -> str:
        """What makes text of numbers, and what to do about it; "" for other columns."""
        if self.is_written_number:
            example = f"each value is a number, such as {self.top[0][0]!r}"
            return f"{self.name}: is text, but {example}; cast it if it is a number"
        if self.other_texts and 2 * self.written_numbers > self.values:
            words = json.dumps(self.other_texts, ensure_ascii=False)
            return (
                f"{self.name}: {self.written_numbers:,} of {self.values:,} values are numbers, but "
                f"{_text(self.other_texts[0])!r} makes all of them text; leave it empty (null) if "
                f"it says that a number is missing, or name it so for CSV: null_values = {words}"
            )
        return ""

    @property
    def spelling_note(self) -> str:
        """What a person would read otherwise than it is; "" where there is nothing."""
        example = self.top[0][0] if self.top else ""
        if self.looks == "numbers":
            return (
                f"{self.name}: is text that looks like numbers, such as {example!r}; write plain "
                "numbers (1234.5, without marks and units) to have them taken for such"
            )
        if self.looks == "dates":
            return (
                f"{self.name}: is text that looks like dates, such as {example!r}; write them as "
                "2024-12-31 to have them taken for times"
            )
        if self.alike is None:
            return ""
        values = "value differs" if self.alike.n_alike == 1 else "values differ"
        return (
            f"{self.name}: {self.alike.n_alike:,} {values} from another in case, blanks or Unicode "
            f"form alone, such as {self.alike.one} and {self.alike.other}: two categories; write "
            "them alike if they are one"
        )

    def describe(self, *, as_category: bool = False) -> str:
        """Return one line about the values."""
        parts = []
        ranged = not as_category
        if self.kind == "other" and self.values:  # which cannot be told apart
            parts.append(f"{self.values:,} of type {self.arrow_type}")
        elif ranged and self.minimum is not None and self.maximum is not None:
            parts.append(f"{_number(self.minimum)} to {_number(self.maximum)}")
        else:
            plural = "" if self.distinct == 1 else "s"
            parts.append(f"{self.distinct:,} value{plural}")
        if self.missing:
            parts.append(f"{_percent(self.missing)} missing")
        line = ", ".join(parts)
        if (as_category or self.minimum is None) and self.top:
            line += ": " + ", ".join(text for text, _ in self.top[:_SHOWN_VALUES])
        return line


def profile_columns(table: pa.Table) -> list[ColumnProfile]:
    """Describe every column of a table in memory."""
    return [_profile(field, table.column(field.name)) for field in table.schema]


def confirm_columns(
    columns: Sequence[ColumnProfile], source: Source, also: Collection[str] = ()
) -> list[ColumnProfile]:
    """Look at the whole of each column of which a sample says something of all rows."""
    confirmed = []
    for column in columns:
        fixed = pa.types.is_fixed_size_list(column.arrow_type)
        lists = column.kind == "float" and column.list_size is not None and not fixed
        telling = column.constant or column.names_rows or column.is_written_number or lists
        telling = telling or column.name in also
        if telling and source.num_rows <= _MOST_WHOLE_ROWS:
            pieces = [source.read(fragment, [column.name]) for fragment in source.fragments]
            confirmed += profile_columns(plain_table(pa.concat_tables(pieces)))
        else:
            confirmed.append(replace(column, complete=False))
    return confirmed


def _profile(field: pa.Field, column: pa.ChunkedArray) -> ColumnProfile:
    nested = is_list(field.type)
    flat = pc.list_flatten(column) if nested else column
    kind = _kind(flat.type)
    if pa.types.is_float16(flat.type):
        flat = flat.cast(pa.float32())  # Arrow compares no half floats
    seen = flat.drop_null()
    if seen.type == pa.binary() and row_without_text(seen) is not None:
        kind = "other"  # such as pictures
    if kind == "text" and _are_times(seen):
        kind = "time"
    numbers = kind in ("int", "float")
    low = high = None
    if numbers and len(seen):
        ends = pc.min_max(seen)
        low, high = float(ends["min"].as_py()), float(ends["max"].as_py())
    counts = _counts(pa.chunked_array([], pa.string()) if kind == "other" else seen)
    plain_text = flat.type == pa.string() and kind == "text" and not nested
    written, others = _written_numbers(counts) if plain_text else (0, ())
    is_text = flat.type == pa.string() and kind == "text"
    texts = counts["value"].slice(0, _COMPARED).to_pylist() if is_text else []
    return ColumnProfile(
        name=field.name,
        arrow_type=field.type,
        kind=kind,
        nested=nested,
        list_size=_list_size(field.type, column) if nested else None,
        rows=len(column),
        missing=column.null_count / len(column) if len(column) else 0.0,
        distinct=counts.num_rows,
        values=len(seen),
        minimum=low,
        maximum=high,
        whole=kind == "int" or (kind == "float" and _whole(seen)),
        long_tailed=numbers and not nested and _long_tailed(seen),
        top=_top(counts),
        written_numbers=written,
        alike=spelt_alike(texts),
        looks=looks_like(texts[:_LOOKED_AT]),
        other_texts=others,
    )


def _kind(arrow_type: pa.DataType) -> DataKind:
    if pa.types.is_integer(arrow_type):
        return "int"
    if pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type):
        return "float"
    if arrow_type in (pa.string(), pa.binary()):
        return "text"
    if pa.types.is_boolean(arrow_type):
        return "bool"
    is_time = pa.types.is_temporal(arrow_type) and not pa.types.is_interval(arrow_type)
    return "time" if is_time else "other"


def _are_times(seen: pa.ChunkedArray) -> bool:
    """Tell whether texts are dates or times as ISO 8601 writes them."""
    if not len(seen) or seen.type != pa.string():
        return False
    return bool(pc.all(pc.match_substring_regex(seen, _ISO_TIME)).as_py())


def _counts(seen: pa.ChunkedArray) -> pa.Table:
    """Return the values that differ and how often each was seen, the most frequent first."""
    counts = pc.value_counts(seen)
    table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
    return table.sort_by([("count", "descending"), ("value", "ascending")])


def _top(counts: pa.Table) -> tuple[tuple[str, int], ...]:
    frequent = counts.slice(0, _KEPT_VALUES)
    texts = [_text(value) for value in frequent["value"].to_pylist()]
    return tuple(zip(texts, frequent["count"].to_pylist(), strict=True))


def _written_numbers(counts: pa.Table) -> tuple[int, tuple[str, ...]]:
    """Return how many texts are numbers, and the others if these are a few words."""
    written = pc.match_substring_regex(counts["value"], _WRITTEN_NUMBER)
    others = counts.filter(pc.invert(written))
    words = others["value"].to_pylist() if others.num_rows <= _MOST_OTHERS else []
    number_counts = counts["count"].filter(written)
    are_words = not any(text.isdigit() for text in words)
    return int(pc.sum(number_counts, min_count=0).as_py()), tuple(words if are_words else ())


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text if text == " ".join(text.split()) and text else repr(text)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 3] + "..."


def _whole(seen: pa.ChunkedArray) -> bool:
    numbers = seen.cast(pa.float64())
    finite = numbers.filter(pc.is_finite(numbers))
    return bool(pc.all(pc.equal(finite, pc.round(finite)), min_count=0).as_py())


def _long_tailed(seen: pa.ChunkedArray) -> bool:
    """Compare tails by kurtosis, zeros aside, which a logarithm leaves where they are."""
    values_B = seen.cast(pa.float64(), safe=False).to_numpy()
    values_B = values_B[np.isfinite(values_B) & (values_B != 0)]
    if len(values_B) < _TAIL_ROWS:
        return False
    logs_B = np.sign(values_B) * np.log1p(np.abs(values_B))
    return _kurtosis(values_B) > max(_EXPONENTIAL_KURTOSIS, _kurtosis(logs_B))


def _kurtosis(values_B: NDArray[np.float64]) -> float:
    """Return the fourth moment by the square of the second; 0 of one value."""
    centred_B = values_B / np.abs(values_B).max()  # Powers of large numbers overflow
    centred_B -= centred_B.mean()
    variance = float((centred_B**2).mean())
    return float((centred_B**4).mean()) / variance**2 if variance**2 else 0.0


def _list_size(arrow_type: pa.DataType, column: pa.ChunkedArray) -> int | None:
    if pa.types.is_fixed_size_list(arrow_type):
        return int(arrow_type.list_size)
    sizes = pc.unique(pc.list_value_length(column.drop_null())).to_pylist()
    return int(sizes[0]) if len(sizes) == 1 else None


def _number(value: float) -> str:
    if math.isfinite(value) and value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    return f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"
