"""What a spec wants to learn from which column: the plan that ``fit_schema`` carries out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from widedeep.data.column_values import logical_kind, storage_of
from widedeep.errors import FeatureError
from widedeep.features import Feature, FeatureSpec, NumberInput
from widedeep.features.learned import ColumnType, LogicalKind, Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueColumn:
    """A column whose values are categories."""

    column: str  # Its name
    reader: str  # What reads it, for messages: ``"feature 'job'"``
    type: ColumnType  # Its logical type
    empty_as_null: bool = False  # The feature's option
    num_buckets: int | None = None  # The feature's option


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberColumn:
    """A column of numbers and the features that read it."""

    column: str  # Its name
    reader: str  # What reads it, for messages: ``"feature 'age'"``
    features: tuple[Feature, ...]  # Features that are fitted to its numbers
    inputs: tuple[NumberInput, ...]  # What each of them needs
    size: int  # Length of its vectors, 1 for plain numbers
    type: ColumnType  # Its logical type


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyPlan:
    """A vocabulary to be learned from one or more columns."""

    key: str  # Its key in the schema
    columns: tuple[ValueColumn, ...]  # Where its values are; they are counted together
    is_text: bool  # True for text, False for integers
    min_count: int = 1  # Least number of times a value was seen
    max_size: int | None = None  # Most values


@dataclass(frozen=True, kw_only=True, slots=True)
class FitPlan:
    """What to learn."""

    types: dict[str, ColumnType]  # Logical type of every column read
    numbers: tuple[NumberColumn, ...]  # Columns of numbers
    learned: tuple[VocabularyPlan, ...]  # Vocabularies to learn
    given: dict[str, Vocabulary]  # Vocabularies that the spec gives, by key
    checked: tuple[ValueColumn, ...]  # Columns of values that need no counting
    crosses: tuple[Feature, ...]  # Crosses whose combinations are counted


def plan_fit(spec: FeatureSpec, schema: pa.Schema) -> FitPlan:
    """Decide what each column is read as."""
    types = {
        column: _column_type(spec, column, schema.field(column).type) for column in schema.names
    }
    _check_label_vocabulary(spec, types)
    values = list(_value_columns(spec, types))
    learned, given, checked = [], {}, []
    by_key: dict[str, list[tuple[Feature | None, ValueColumn]]] = {}
    for key, feature, column in values:
        if key is None:
            checked.append(column)
        else:
            by_key.setdefault(key, []).append((feature, column))
    if spec.group is not None:
        checked.append(_group_column(spec.group, types[spec.group]))
    for key, uses in by_key.items():
        # Features that read one column into one table count its values once.
        feature, columns = uses[0][0], tuple({use.column: use for _, use in uses}.values())
        vocabulary = None if feature is None else given_vocabulary(feature, columns[0].type)
        if vocabulary is not None:
            given[key] = vocabulary
            checked.extend(columns)
        else:
            learned.append(_vocabulary_plan(key, feature, columns))
    return FitPlan(
        types=types,
        numbers=tuple(_number_columns(spec, types, schema)),
        learned=tuple(learned),
        given=given,
        checked=tuple(checked),
        crosses=tuple(f for f in spec.all_features if f.part_names and not f.is_hashed),
    )


def _column_type(spec: FeatureSpec, column: str, arrow_type: pa.DataType) -> ColumnType:
    reader, wants = _reader_of(spec, column)
    nested = _is_list(arrow_type)
    item = arrow_type.value_type if nested else arrow_type
    kind = wants if pa.types.is_null(item) else logical_kind(item)
    if kind is None:
        raise FeatureError(
            f"{reader}: column {column!r} is {arrow_type}, expected text, numbers, booleans, "
            "dates, timestamps or lists of them; cast it to one of these"
        )
    # Text as a number is refused when it is read, unless it is null throughout.
    if kind == "string" and wants == "float" and reader.startswith("feature"):
        kind = "float"
    # Whole numbers come as floats where there are nulls (pandas); as categories they are integers.
    if kind == "float" and wants == "string":
        kind = "int"
    # Where a column is null throughout, or is text that is refused later, nothing is known of it.
    storage = storage_of(item) if kind != "string" else None
    return ColumnType(kind=kind, nested=nested, storage=storage)


def _check_label_vocabulary(spec: FeatureSpec, types: dict[str, ColumnType]) -> None:
    labels = list(spec.labels.values())
    if spec.label_vocabulary is None or not labels:
        return
    if all(types[column].kind != "string" for column in labels):
        raise FeatureError(
            f"label {labels[0]!r}: got a column of {types[labels[0]].kind}, expected text for "
            "label_vocabulary; cast the column to text, or drop label_vocabulary"
        )


def _is_list(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type))


def _reader_of(spec: FeatureSpec, column: str) -> tuple[str, LogicalKind]:
    """What reads a column, and what it holds if it is all null; values come before numbers."""
    numbers: tuple[str, LogicalKind] | None = None
    for feature in spec.all_features:
        reader = f"feature {feature.name!r}"
        values = feature.value_input
        if column in feature.part_names and column not in spec.by_name:
            return reader, "string"
        if values is not None and values.column == column:
            return reader, "int" if values.num_buckets else "string"
        if column in feature.input_columns:
            numbers = (reader, "float")
    if numbers is not None:
        return numbers
    if column == spec.group:
        return f"group {column!r}", "string"
    role = "weight" if column == spec.weight else "label"
    return f"{role} {column!r}", "float"


def _value_columns(
    spec: FeatureSpec, types: dict[str, ColumnType]
) -> Iterator[tuple[str | None, Feature | None, ValueColumn]]:
    """Yield the key of the vocabulary (None for none), the feature (None for a raw column)."""
    for feature in spec.all_features:
        values = feature.value_input
        if values is not None:
            column = ValueColumn(
                column=values.column,
                reader=f"feature {feature.name!r}",
                type=types[values.column],
                empty_as_null=values.empty_as_null,
                num_buckets=values.num_buckets,
            )
            yield values.vocabulary, feature, column
    readers: dict[str, str] = {}  # by raw column, the first cross that reads it
    learned: set[str] = set()  # raw columns that a cross reads by the ids of their values
    for feature in spec.all_features:
        for part in feature.part_names:
            if part not in spec.by_name:
                readers.setdefault(part, f"feature {feature.name!r}")
                if not feature.is_hashed:
                    learned.add(part)
    for part, reader in readers.items():
        column = ValueColumn(column=part, reader=reader, type=types[part])
        yield part if part in learned else None, None, column


def _group_column(column: str, kind: ColumnType) -> ValueColumn:
    reader = f"group {column!r}"
    if kind.nested:
        raise FeatureError(f"{reader}: got a column of lists, expected one value a row")
    return ValueColumn(column=column, reader=reader, type=kind)


def _vocabulary_plan(
    key: str, feature: Feature | None, columns: tuple[ValueColumn, ...]
) -> VocabularyPlan:
    kinds = {column.type.kind == "string" for column in columns}
    if len(kinds) > 1:
        one = next(column for column in columns if column.type.kind == "string")
        other = next(column for column in columns if column.type.kind != "string")
        raise FeatureError(
            f"{other.reader}: column {other.column!r} is {other.type.kind}, but {one.column!r}, "
            f"which shares table {key!r}, is text; cast one of them"
        )
    values = None if feature is None else feature.value_input
    return VocabularyPlan(
        key=key,
        columns=columns,
        is_text=kinds.pop(),
        min_count=1 if values is None else values.min_count,
        max_size=None if values is None else values.max_size,
    )


def _number_columns(
    spec: FeatureSpec, types: dict[str, ColumnType], schema: pa.Schema
) -> Iterator[NumberColumn]:
    by_column: dict[str, list[tuple[Feature, NumberInput]]] = {}
    for feature in spec.all_features:
        if feature.number_input is not None:
            uses = by_column.setdefault(feature.number_input.column, [])
            uses.append((feature, feature.number_input))
    for column, uses in by_column.items():
        features, inputs = zip(*uses, strict=True)
        sizes = {numbers.size for numbers in inputs}
        size, reader = sizes.pop(), f"feature {features[0].name!r}"
        if sizes:
            raise FeatureError(
                f"{reader}: column {column!r} is read as vectors of {size} and of {sizes.pop()} "
                "numbers; give its features one size"
            )
        if types[column].nested != (size > 1):
            got = "lists" if types[column].nested else "plain values"
            raise FeatureError(
                f"{reader}: column {column!r} holds {got}, expected "
                f"{'lists' if size > 1 else 'plain values'} for size={size}; "
                "set size= to the length of its lists"
            )
        if types[column].is_time:
            raise FeatureError(
                f"{reader}: column {column!r} is {schema.field(column).type}, expected numbers: a "
                "model is served later than all times that it learned from; make columns of it "
                "(hour, weekday, days since an event), or cast it to an integer if you mean the "
                "time since 1970"
            )
        yield NumberColumn(
            column=column,
            reader=reader,
            features=features,
            inputs=inputs,
            size=size,
            type=types[column],
        )


def given_vocabulary(feature: Feature, column: ColumnType) -> Vocabulary | None:
    """Return the vocabulary that a feature's declaration gives, None if it gives none."""
    values = feature.given_values(column)
    if values is None:
        return None
    counts = np.zeros(len(values), np.int64)
    if isinstance(values[0], int):
        return Vocabulary(values=np.array(values, np.int64), counts=counts)
    texts = [str(value).encode() for value in values]
    return Vocabulary(values=pa.array(texts, pa.large_binary()), counts=counts)
