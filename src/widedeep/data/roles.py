"""What a column may be, by its name, its type and what a sample of it holds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from widedeep.data.formats import format_of
from widedeep.data.paths import input_files, input_paths, join_manifest
from widedeep.data.profile import (
    ColumnProfile,
    Sample,
    confirm_columns,
    profile_columns,
    sample_source,
)
from widedeep.data.sources import Data, open_source
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.features.learned import ColumnKind
from widedeep.features.numbers import LARGEST_SCALED

Role = Literal["label", "weight", "group", "time", "numeric", "categorical", "left out"]

_LABEL_NAMES = (
    *("label", "target", "y", "click", "clicked", "is_click", "is_clicked", "conversion"),
    *("converted", "purchase", "purchased", "install", "installed", "outcome", "response"),
)
_WEIGHT_NAMES = ("weight", "weights")
_EXAMPLE_WEIGHT_NAMES = ("sample_weight", "example_weight", "sample_weights", "example_weights")
_REQUEST_NAMES = ("request_id", "query_id", "qid", "search_id", "impression_id", "session_id")
_POSITION_NAMES = ("position", "impression_position", "rank", "slot")
_POLICY_NAMES = ("policy", "logging_policy", "arm", "propensity")
# What a server logs of its own answer, beside what it was asked.
_ANSWER_NAMES = ("model_version", "catalogue_version", "score")
_TIME_NAMES = (
    *("event_time", "time", "timestamp", "ts", "datetime", "date", "day", "created_at"),
    *("request_time", "impression_time", "event_timestamp", "event_date"),
)
_TIME_NAME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime)($|_)|_at$", re.IGNORECASE)
# Whole columns of a pandas index.
_INDEX_NAME = re.compile(r"^__index_level_\d+__$|^Unnamed: 0$")
# Nouns of things that are counted up by their owner: an integer column so called holds keys.
_ENTITY_NAME = re.compile(
    r"(^|_)(user|item|product|article|customer|member|merchant|seller|vendor|store|shop|brand|"
    r"campaign|advertiser|publisher|creative|category|segment|zip|zipcode|postcode|sku|code|app)$",
    re.IGNORECASE,
)
_NULL_WORDS = ("?", "-", "--", "na", "n/a", "#n/a", "nan", "null", "none", "\\n")
_MANY_VALUES = 10_000
_SAMPLE_VALUES = 40_000_000
# Seconds since 1970 of the years 1990 and 2100.
_EPOCHS = (631_152_000, 4_102_444_800)

_MOST_EXACT = 2**53
MOST_BINS, _LEAST_BINS = 255, 16
"""Bins of a number where every value, or enough rows, fill one."""
# Rows that all bins of a table's numbers need on average, or the numbers alone say more: where a
# number has few values, and where its bins are ranges.
_VALUE_ROWS, _RANGE_ROWS = 2, 64
_NAMES_ROWS = "has a value of its own in nearly every row: it names rows"
_IS_TIME = "is a time; make columns of what matters in it: hour, weekday, age in days"


@dataclass(frozen=True, kw_only=True)
class InferredColumn:
    """What a column is taken for, and why."""

    profile: ColumnProfile  # What a sample of it holds
    role: Role  # Label, weight, group, time of the row, feature, or nothing
    options: Mapping[str, Any] = field(default_factory=dict)  # The feature's options
    bins: bool = False  # True for a number that is also cut into bins
    position: bool = False  # True for the place in a list, which is not known when the list is made
    # True for a key by which a join found what belongs to a user or an item
    joined_by: bool = False
    reason: str = ""  # Why, where it is not plain to see

    @property
    def name(self) -> str:
        """The column's name."""
        return self.profile.name

    @property
    def is_feature(self) -> bool:
        """True for a number or a category that a model reads."""
        return self.role in ("numeric", "categorical")

    @property
    def is_unread(self) -> bool:
        """True for times, and for values of a type that no feature reads."""
        return not self.is_feature and self.profile.kind in ("time", "other")

    @property
    def is_vector(self) -> bool:
        """True for lists of numbers that are one input."""
        return self.profile.nested and self.role == "numeric"

    @property
    def may_be_scaled(self) -> bool:
        """True if all values are of a size that ``transform="standard"`` takes."""
        ends = (self.profile.minimum, self.profile.maximum)
        return all(end is not None and abs(end) <= LARGEST_SCALED for end in ends)

    @property
    def is_number(self) -> bool:
        """True for a number of which a row has one."""
        return self.role == "numeric" and not self.profile.nested

    @property
    def has_few_values(self) -> bool:
        """True if each value can have a bin of its own."""
        return self.profile.distinct <= MOST_BINS

    @property
    def first_place(self) -> str | int | float:
        """The value of a position that is fixed when rows are scored."""
        profile = self.profile
        if profile.minimum is None:
            return profile.top[0][0]
        return int(profile.minimum) if profile.kind == "int" else profile.minimum

    def bin_count(self, rows: int) -> int:
        """Return how many bins a number has: one for each of few values, else what rows teach."""
        if self.has_few_values:
            return MOST_BINS
        return min(max(_LEAST_BINS, math.isqrt(rows) // 3), MOST_BINS)

    def describe(self) -> str:
        """Return what the column holds, and why it is taken for what it is."""
        values = self.profile.describe(as_category=self.role == "categorical")
        if self.role in ("left out", "time"):
            return self.reason
        return f"{values} ({self.reason})" if self.reason else values


def with_bins(
    columns: Sequence[InferredColumn], rows: int, bins: bool | None
) -> tuple[InferredColumn, ...]:
    """Return the columns with bins of all numbers, of none, or of those that rows can teach.

    Numbers of few values, whose bins are these values, are judged together, and so are the others,
    whose bins are ranges of a smooth scale: of few rows the number itself teaches more.
    """
    values = sum(c.profile.distinct for c in columns if c.bins and c.has_few_values)
    ranges = sum(c.bin_count(rows) for c in columns if c.bins and not c.has_few_values)
    enough = {True: rows >= _VALUE_ROWS * values, False: rows >= _RANGE_ROWS * ranges}
    return tuple(
        replace(c, bins=c.bins and (enough[c.has_few_values] if bins is None else bins))
        for c in columns
    )


def profiled(
    data: Data, rows: int, label: str | None, column_types: Mapping[str, ColumnKind] | None = None
) -> tuple[Sample, list[ColumnProfile]]:
    """Return a sample of at most ``rows`` rows, and what the columns hold.

    What a sample says of all rows is looked at in all of them.
    """
    with open_source(data, column_types=column_types) as source:
        if not source.num_rows:
            raise DataError(f"{data}: got no rows; expected at least one example")
        rows = max(1, min(rows, _SAMPLE_VALUES // max(1, len(source.arrow_schema.names))))
        sample = sample_source(source, rows=rows)
        profiles = profile_columns(sample.table)
        label = label_of(profiles, label)
        if not sample.complete:
            also = [] if label is None else [label]
            profiles = confirm_columns(profiles, source, also=also)
    return sample, profiles


def is_typed(data: Data) -> bool:
    """Tell whether data says itself what its columns are; CSV is read by what is declared."""
    return all(format_of(file.path).typed for file in input_files(data) or ())


def null_words(columns: Sequence[ColumnProfile]) -> tuple[str, ...]:
    """Return the words that alone make text of numbers in CSV, as programs write nulls."""
    words: dict[str, None] = {}
    for column in columns:
        if 2 * column.written_numbers > column.values and all(
            text.strip().lower() in _NULL_WORDS for text in column.other_texts
        ):
            words.update(dict.fromkeys(column.other_texts))
    return tuple(words)


def rows_without_words(
    before: Sequence[ColumnProfile], after: Sequence[ColumnProfile]
) -> Iterator[str]:
    """Yield what words for missing values take from columns, which could be read with them."""
    for was, column in zip(before, after, strict=True):
        rows = round((column.missing - was.missing) * column.rows)
        if rows:
            others = (
                "which would be text with them"
                if column.kind in ("int", "float")
                else "as in all columns; write the word otherwise there if it is a value"
            )
            yield (
                f"{column.name}: {rows:,} of {column.rows:,} rows hold a word of null_values and "
                f"are missing, {others}"
            )


def _header_note(names: Sequence[str]) -> str:
    """Tell that names of columns look like values of a first row; "" where they do not."""
    numbers = [name for name in names if re.fullmatch(r"-?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", name)]
    counts = [list(range(first, first + len(numbers))) for first in (0, 1)]
    if not numbers or sorted(map(float, numbers)) in counts:  # 0, 1, 2, ... or 1, 2, 3, ...
        return ""
    return (
        f"columns are named {', '.join(map(repr, names[:4]))}{', ...' if names[4:] else ''}: if "
        "these are values, the file has no line of names; write one in front"
    )


def value_warnings(profiles: Sequence[ColumnProfile], label: str | None, head: str) -> list[str]:
    """Return what a person should look at in the columns, for a head of some kind."""
    warnings = [
        f"{p.name}: holds infinity, which no feature reads; write null or clip it"
        for p in profiles
        if p.minimum == -math.inf or p.maximum == math.inf
    ]
    notes = (_header_note([p.name for p in profiles]), *(p.text_note for p in profiles))
    notes += tuple(p.spelling_note for p in profiles)
    warnings += filter(None, notes)
    column = next((p for p in profiles if p.name == label), None)
    if column is None:
        return [*warnings, "no column looks like the label: nothing was measured; give label=NAME"]
    if column.constant:
        return [*warnings, f"{label}: is the same in every row, so there is nothing to tell apart"]
    if column.missing:
        warnings.append(f"{label}: {column.missing:.2%} of its rows have no label; drop them")
    if column.whole and head == "regression" and column.distinct <= 10:
        advice = "write them as 0 and 1, or as text" if column.distinct == 2 else "make it text"
        classes = ", ".join(f'"{text}"' for text in sorted(text for text, _ in column.top[:2]))
        warnings.append(
            f"{label}: {column.distinct} whole numbers, taken for a number; if they are classes, "
            f"{advice} (of a CSV file, list them under [data]: label_vocabulary = [{classes}"
            f"{', ...' if column.distinct > 2 else ''}], and leave head out)"
        )
    return warnings


def label_of(columns: Sequence[ColumnProfile], label: str | None) -> str | None:
    """Return the label's column, guessed from names if it is not given; None if none looks so."""
    names = [column.name for column in columns]
    if label is not None and label not in names:
        note = _header_note(names)
        raise DataError(
            f"got label {label!r}, which is no column; {nearest(label, names)}"
            + (f"; {note}" if note else "")
        )
    if label is not None:
        return label
    lower = {column.name.lower(): column.name for column in columns}
    for name in _LABEL_NAMES:
        if name in lower:
            return lower[name]
    last = columns[-1].name if columns else None
    return last if last in two_valued(columns) else None


def two_valued(columns: Sequence[ColumnProfile]) -> list[str]:
    """Return the columns that could be a binary label."""
    return [c.name for c in columns if c.distinct == 2 and not c.nested and not c.missing]


def no_label(columns: Sequence[ColumnProfile]) -> ConfigError:
    """Return the error about a table of which no column looks like the label."""
    names = two_valued(columns)
    hint = f"columns with two values: {', '.join(names)}" if names else "none has two values"
    return ConfigError(f"cannot tell which column is the label ({hint}); give --label NAME")


def joined_roles(data: Any) -> dict[str, str]:
    """Return what each column is to the join that wrote the data; empty for other data."""
    files = input_paths(data)
    if not files:
        return {}
    first = files[0].absolute() if isinstance(files[0], Path) else files[0]
    for folder in (first.parent, first.parent.parent):
        manifest = join_manifest(folder)
        if manifest is not None:
            return {column["name"]: column["role"] for column in manifest["columns"]}
    return {}


def assign_roles(
    columns: Sequence[ColumnProfile], label: str | None, joined: Mapping[str, str]
) -> list[InferredColumn]:
    """Return what each column is taken for."""
    group = _group_of(columns, label, joined)
    time = _time_of(columns, label, joined)
    roles = []
    for column in columns:
        if column.name == label:
            role = InferredColumn(profile=column, role="label")
        elif column.name == group:
            reason = "names the requests: metrics are also taken within each"
            role = InferredColumn(profile=column, role="group", reason=reason)
        elif column.name == time:
            role = InferredColumn(profile=column, role="time", reason=_IS_TIME)
        else:
            role = _by_name(column, joined, has_group=group is not None) or _by_values(column)
        if role.is_feature and _is_position(column, joined, group is not None):
            role = _position(role)
        if joined.get(column.name) in ("user", "item"):
            role = replace(role, joined_by=True)
        roles.append(role)
    return roles


def _left_out(column: ColumnProfile, reason: str) -> InferredColumn:
    return InferredColumn(profile=column, role="left out", reason=reason)


def _group_of(
    columns: Sequence[ColumnProfile], label: str | None, joined: Mapping[str, str]
) -> str | None:
    """Return the column that names requests of more than one row each."""
    names = {c.name.lower(): c for c in columns if c.name != label and not c.names_rows}
    candidates = [c.name.lower() for c in columns if joined.get(c.name) == "request"]
    for name in (*candidates, *_REQUEST_NAMES):
        column = names.get(name)
        if column is not None and column.kind in ("int", "text") and column.distinct > 1:
            return column.name
    return None


def _time_of(
    columns: Sequence[ColumnProfile], label: str | None, joined: Mapping[str, str]
) -> str | None:
    """Return the column of the time at which each row happened."""
    times = [c for c in columns if c.name != label and _is_time(c, joined) and not c.nested]
    for column in times:
        if joined.get(column.name) == "event time":
            return column.name
    lower = {column.name.lower(): column.name for column in times if not column.missing}
    return next((lower[name] for name in _TIME_NAMES if name in lower), None)


def _is_time(column: ColumnProfile, joined: Mapping[str, str]) -> bool:
    if column.kind == "time" or joined.get(column.name) == "event time":
        return True
    low, high = column.minimum, column.maximum
    if column.kind != "int" or low is None or high is None or not _TIME_NAME.search(column.name):
        return False
    units = (1, 1_000, 1_000_000, 1_000_000_000)
    return any(low >= _EPOCHS[0] * unit and high <= _EPOCHS[1] * unit for unit in units)


def _is_position(column: ColumnProfile, joined: Mapping[str, str], has_group: bool) -> bool:
    if column.nested:
        return False
    if joined.get(column.name) == "position":
        return True
    return column.name.lower() in (_POSITION_NAMES if has_group else _POSITION_NAMES[:2])


def _position(column: InferredColumn) -> InferredColumn:
    """Return the role of the place in a list: a category, fixed where rows are scored."""
    reason = "not known before the list is made: fixed to the first place when rows are scored"
    if column.profile.kind == "int":
        return InferredColumn(
            profile=column.profile, role="categorical", position=True, reason=reason
        )
    return replace(column, position=True, reason=reason)


def _by_name(
    column: ColumnProfile, joined: Mapping[str, str], *, has_group: bool
) -> InferredColumn | None:
    """Return the role that a name, or the join that wrote the column, settles."""
    name, role = column.name.lower(), joined.get(column.name)
    if not name:
        return _left_out(column, "has no name; give it one in the file, or leave it out")
    if _INDEX_NAME.search(column.name):
        return _left_out(column, "is the index of a pandas frame, which names rows")
    if role == "label":
        return _left_out(column, "is another label of the join: what comes after the row")
    if name in _EXAMPLE_WEIGHT_NAMES or role == "weight":
        return _weight(column)
    if role == "request" or (has_group and name in _REQUEST_NAMES):
        return _left_out(column, "names requests, and those to come have other names")
    if (has_group and name in _POLICY_NAMES) or (joined and name in _ANSWER_NAMES):
        return _left_out(column, "says who ranked the list, which does not describe the row")
    return _left_out(column, _IS_TIME) if _is_time(column, joined) else None


def _weight(column: ColumnProfile) -> InferredColumn | None:
    number = column.kind in ("int", "float") and not column.nested and not column.missing
    if not number or (column.minimum or 0) < 0 or column.constant:
        return None
    return InferredColumn(profile=column, role="weight", reason="the weight of each example")


def _by_values(column: ColumnProfile) -> InferredColumn:
    if column.constant and column.complete:
        return _left_out(
            column, "has no value" if not column.values else f"is always {column.top[0][0]}"
        )
    if column.kind == "other":
        return _left_out(column, f"is of type {column.arrow_type}, which no feature reads")
    if _is_beyond_int64(column):
        return _left_out(
            column,
            "holds integers of 2**63 and more, which no feature reads; cast "
            "it to text where it is made, to use it as a category",
        )
    if column.nested:
        return _list_role(column)
    return _number_role(column) if column.kind in ("int", "float") else _value_role(column)


def _is_beyond_int64(column: ColumnProfile) -> bool:
    kind = column.arrow_type.value_type if column.nested else column.arrow_type
    return bool(pa.types.is_uint64(kind)) and (column.maximum or 0) >= 2**63


def _list_role(column: ColumnProfile) -> InferredColumn:
    if column.kind != "float":
        reason = "lists: a multi-valued feature"
        return InferredColumn(profile=column, role="categorical", reason=reason)
    if column.list_size is None:
        return _left_out(column, "is lists of numbers of different lengths")
    options = {"size": column.list_size}
    return InferredColumn(profile=column, role="numeric", options=options, reason="a vector")


def _number_role(column: ColumnProfile) -> InferredColumn:
    names_rows = column.names_rows and column.complete
    if column.kind == "int" and names_rows and (column.named_like_id or _counts_up(column)):
        return _left_out(column, _NAMES_ROWS)
    if column.kind == "int" and column.named_like_id:
        return id_like(column)
    if column.kind == "int" and max(-(column.minimum or 0), column.maximum or 0) > _MOST_EXACT:
        if names_rows:
            return _left_out(column, _NAMES_ROWS)
        return id_like(column, "beyond the integers that a float holds, as hashes are")
    if column.kind == "int" and _ENTITY_NAME.search(column.name):
        return id_like(column, "named like a key; if it is a count, move it to numeric")
    if column.named_like_id and column.whole:
        reason = "is an id by its name but a float; write it as integers to use it as a category"
        return _left_out(column, reason)
    options = {"transform": "log1p"} if column.long_tailed else {}
    reason = "a long tail, read by its logarithm" if column.long_tailed else ""
    if column.name.lower() in _WEIGHT_NAMES:
        reason = "if it is the weight of an example: weight = ... under [data] instead"
    return InferredColumn(profile=column, role="numeric", options=options, bins=True, reason=reason)


def _value_role(column: ColumnProfile) -> InferredColumn:
    if column.names_rows and column.complete:
        looks = column.spelling_note.partition(": ")[2] if column.looks else ""
        return _left_out(column, looks or _NAMES_ROWS)
    if column.named_like_id or column.distinct > min(_MANY_VALUES, 0.3 * column.values):
        return id_like(column)
    words = [text for text, _ in column.top if text.lower() in _NULL_WORDS or text == "''"]
    reason = f"{words[0]!r} is a value, not null" if words else ""
    return InferredColumn(profile=column, role="categorical", reason=reason)


def _counts_up(column: ColumnProfile) -> bool:
    assert column.minimum is not None
    assert column.maximum is not None
    return column.maximum - column.minimum < 1.1 * column.values


def id_like(column: ColumnProfile, reason: str = "id-like") -> InferredColumn:
    """Return the role of a column of keys."""
    return InferredColumn(
        profile=column,
        role="categorical",
        options={"min_count": 2},
        reason=f"{reason}; values seen once share one id",
    )
