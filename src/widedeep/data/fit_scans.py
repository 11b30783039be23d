"""The scans of ``fit_schema``: each reads one column, or the parts of one cross, and no more."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import is_list
from widedeep.data.column_values import (
    Chunk,
    column_chunks,
    logical_kind,
    nan_count,
    null_count,
    read_elements,
    read_integers,
    read_numbers,
    read_text,
    read_vectors,
    row_of,
    storage_of,
)
from widedeep.data.counting import CounterKind, ValueCounter
from widedeep.data.extend_schema import counted_vocabulary, earlier_cross, earlier_vocabulary
from widedeep.data.fragments import Fragment, Source, column_stream, origin_of
from widedeep.data.row_sample import RowSample, sampled_rows
from widedeep.data.transform import PartIds, Transform
from widedeep.data.turns import Turns, TurnsStopped
from widedeep.errors import DataError, FeatureError, LimitError
from widedeep.features import CrossEncoding, Feature, FeatureSpec, NumberInput, ValueInput
from widedeep.features.learned import ColumnType, LogicalKind, NumericFit, Vocabulary
from widedeep.features.numbers import NumberSummary
from widedeep.ranks.ranks import Ranks
from widedeep.schema import Schema


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """A column whose values are categories."""

    values: ValueInput  # What a feature needs of it
    reader: str  # What reads it, for messages: ``"feature 'job'"``
    type: ColumnType  # Its logical type
    most_values: int | None = None  # Most values of a list that are read
    end_read: str = "last"  # End of a longer list that is read

    @property
    def name(self) -> str:
        """The column's name."""
        return self.values.column

    @property
    def is_text(self) -> bool:
        """Whether values are text; else integers."""
        return self.type.kind == "string"


@dataclass(frozen=True, kw_only=True, slots=True)
class FitPlan:
    """What to learn."""

    types: dict[str, ColumnType]  # Logical type of every column read
    numbers: list[list[Feature]]  # Features of numbers, those of one column together
    learned: list[list[ValueColumn]]  # Columns whose values are counted into one vocabulary
    vocabularies: dict[str, Vocabulary]  # Those that the spec gives, by key
    checked: list[ValueColumn]  # Columns of values that need no counting


def plan_fit(spec: FeatureSpec, schema: pa.Schema) -> FitPlan:
    """Decide what each column is read as."""
    readers = _readers(spec)
    types = {
        column: _column_type(spec, readers, column, schema.field(column).type)
        for column in schema.names
    }
    _check_label_vocabulary(spec, types)
    plan = FitPlan(types=types, numbers=[], learned=[], vocabularies={}, checked=[])
    by_key: dict[str, list[tuple[Feature | None, ValueColumn]]] = {}
    for feature, column in _value_columns(spec, types):
        if column.values.vocabulary is None:
            plan.checked.append(column)
        else:
            by_key.setdefault(column.values.vocabulary, []).append((feature, column))
    for key, uses in by_key.items():
        # Features that read one column into one table count its values once.
        feature, columns = uses[0][0], list({use.name: use for _, use in uses}.values())
        vocabulary = None if feature is None else given_vocabulary(feature, columns[0].type)
        if vocabulary is not None:
            plan.vocabularies[key] = vocabulary
            plan.checked.extend(columns)
        else:
            _check_one_kind(key, columns)
            plan.learned.append(columns)
    plan.numbers.extend(_number_columns(spec, types, schema))
    return plan


def _column_type(
    spec: FeatureSpec, readers: _Readers, column: str, arrow_type: pa.DataType
) -> ColumnType:
    reader, wants = readers.get(column) or _other_reader(spec, column)
    nested = is_list(arrow_type)
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


_Readers: TypeAlias = dict[str, tuple[str, LogicalKind]]


def _readers(spec: FeatureSpec) -> _Readers:
    """By column, the feature that reads it and what it holds if it is all null.

    Values come before numbers; of several features of values the first counts, of numbers the last.
    """
    values: _Readers = {}
    numbers: _Readers = {}
    for feature in spec.all_features:
        reader = f"feature {feature.name!r}"
        for column in feature.part_names:
            if column not in spec.by_name:
                values.setdefault(column, (reader, "string"))
        if (value := feature.value_input) is not None:
            values.setdefault(value.column, (reader, "int" if value.num_buckets else "string"))
        for column in feature.input_columns:
            numbers[column] = (reader, "float")
    return numbers | values


def _other_reader(spec: FeatureSpec, column: str) -> tuple[str, LogicalKind]:
    """What reads a column that no feature does."""
    if column == spec.group:
        return f"group {column!r}", "string"
    role = "weight" if column in spec.weights else "label"
    return f"{role} {column!r}", "float"


def _value_columns(
    spec: FeatureSpec, types: dict[str, ColumnType]
) -> Iterator[tuple[Feature | None, ValueColumn]]:
    """Yield columns of categories with their feature; None for raw columns and the group."""
    for feature in spec.all_features:
        if (values := feature.value_input) is not None:
            reader = f"feature {feature.name!r}"
            yield (
                feature,
                ValueColumn(
                    values,
                    reader,
                    types[values.column],
                    most_values=feature.most_values,
                    end_read=feature.end_read,
                ),
            )
    readers: dict[str, str] = {}  # by raw column, the first cross that reads it
    learned: set[str] = set()  # raw columns that a cross reads by the ids of their values
    for feature in spec.all_features:
        for name in feature.part_names:
            if name not in spec.by_name:
                readers.setdefault(name, f"feature {feature.name!r}")
                if not feature.is_hashed:
                    learned.add(name)
    for name, reader in readers.items():
        values = ValueInput(column=name, vocabulary=name if name in learned else None)
        yield None, ValueColumn(values, reader, types[name])
    if spec.group is not None:
        reader = f"group {spec.group!r}"
        if types[spec.group].nested:
            raise FeatureError(f"{reader}: got a column of lists, expected one value a row")
        yield None, ValueColumn(ValueInput(column=spec.group), reader, types[spec.group])


def _check_one_kind(key: str, columns: Sequence[ValueColumn]) -> None:
    """Refuse a vocabulary of text and numbers."""
    texts = [column for column in columns if column.is_text]
    others = [column for column in columns if not column.is_text]
    if texts and others:
        raise FeatureError(
            f"{others[0].reader}: column {others[0].name!r} is {others[0].type.kind}, but "
            f"{texts[0].name!r}, which shares table {key!r}, is text; cast one of them"
        )


def _number_columns(
    spec: FeatureSpec, types: dict[str, ColumnType], schema: pa.Schema
) -> Iterator[list[Feature]]:
    """Yield the features of numbers by column."""
    by_column: dict[str, list[Feature]] = {}
    for feature in spec.all_features:
        if feature.number_input is not None:
            by_column.setdefault(feature.number_input.column, []).append(feature)
    for column, features in by_column.items():
        sizes = {numbers.size for numbers in _number_inputs(features)}
        size, reader = sizes.pop(), f"feature {features[0].name!r}"
        if sizes:
            raise FeatureError(
                f"{reader}: column {column!r} is read as vectors of {size} and of {sizes.pop()} "
                "numbers; give its features one size"
            )
        of_events = {numbers.events for numbers in _number_inputs(features)}
        if len(of_events) > 1:
            raise FeatureError(
                f"{reader}: column {column!r} is read as plain numbers and as numbers of events; "
                "give all its features a parallel sequence, or none"
            )
        if of_events.pop():
            if not types[column].nested:
                raise FeatureError(
                    f"{reader}: column {column!r} holds plain values, expected lists with one "
                    "number per event of the parallel sequence; drop parallel= or make lists"
                )
        elif types[column].nested != (size > 1):
            got = "lists" if types[column].nested else "plain values"
            raise FeatureError(
                f"{reader}: column {column!r} holds {got}, expected "
                f"{'lists' if size > 1 else 'plain values'} for size={size}; "
                "set size= to the length of its lists, or parallel= to the sequence whose events "
                "they describe"
            )
        if types[column].is_time:
            raise FeatureError(
                f"{reader}: column {column!r} is {schema.field(column).type}, expected numbers: a "
                "model is served later than all times that it learned from; make columns of it "
                "(hour, weekday, days since an event), or cast it to an integer if you mean the "
                "time since 1970"
            )
        yield features


def _number_inputs(features: Sequence[Feature]) -> list[NumberInput]:
    return [f.number_input for f in features if f.number_input is not None]


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


_MISSING_ID = 1
# Largest weight of a row or list value: sums of weights and their squares stay within float32.
LARGEST_WEIGHT = 1e15
# Combinations that multi-valued parts make are counted so many at a time.
_TUPLES_AT_ONCE = 1 << 17
# A column of so many values that are all different looks like a key.
_KEY_VALUES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanContext:
    """What every scan needs."""

    source: Source  # The rows
    fragments: Sequence[Fragment]  # Those that this rank reads
    first_row: int  # Number of their first row
    counter_bytes: int  # Memory of one scan's table of counts
    sample_rows: int  # Rows that quantiles are learned from
    seed: int  # Seed of the sample
    on_rows: Callable[[int], None]  # Called with a number of rows after they were read
    stop: threading.Event  # Set when another scan failed
    turns: Turns  # Order in which scans speak to the other ranks
    number: int = 0  # This scan's turn

    def chunks(self, column: str) -> Iterator[Chunk]:
        """Yield this rank's rows of a column in order."""
        return column_chunks(self.source, column, self.advance, self.fragments)

    def ranks(self) -> Ranks:
        """Wait until every rank has read its rows, and return the ranks: then all must merge."""
        self.turns.agree(self.number)
        return self.turns.ranks

    def sample(self, size: int) -> RowSample:
        """Return an empty sample of the rows."""
        return RowSample(self.seed, size, self.first_row)

    def sample_of_all(self) -> RowSample:
        """Return an empty sample for a column of which every row takes part."""
        rows = sampled_rows(self.source.num_rows, self.sample_rows, self.seed)
        return RowSample(self.seed, self.sample_rows, self.first_row, rows)

    def advance(self, rows: int) -> None:
        """Report rows that were read."""
        if self.stop.is_set():
            raise TurnsStopped
        self.on_rows(rows)


@dataclass(kw_only=True, slots=True)
class FitResult:
    """What scans learned, by the fields of a schema."""

    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    boundaries: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    numerics: dict[str, NumericFit] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label_means: dict[str, float] = field(default_factory=dict)
    label_quantiles: dict[str, list[float]] = field(default_factory=dict)
    class_rates: dict[str, list[float]] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)
    cut_lists: dict[str, int] = field(default_factory=dict)  # By what reads them
    notes: list[str] = field(default_factory=list)

    def include(self, other: FitResult) -> None:
        """Add the result of another scan."""
        for entry in fields(self):
            if entry.name != "notes":
                getattr(self, entry.name).update(getattr(other, entry.name))
        self.notes.extend(note for note in other.notes if note not in self.notes)

    def exchange_counts(self, ranks: Ranks) -> None:
        """Add up nulls and cut lists over all ranks."""
        for counts in (self.nulls, self.cut_lists):
            totals = Counter[str]()
            for others in ranks.gather_json(counts):
                totals.update(others)
            counts.update(totals)


def scan_numbers(scan: ScanContext, features: Sequence[Feature], type: ColumnType) -> FitResult:
    """Learn what features of numbers need from their column."""
    inputs, reader = _number_inputs(features), f"feature {features[0].name!r}"
    column, size = inputs[0].column, inputs[0].size
    moments = [scale for numbers in inputs for scale in numbers.moments]
    summaries = [NumberSummary(moments) for _ in range(size)]
    samples = _samples_for(scan, inputs, size)
    nulls = nans = 0
    for chunk in scan.chunks(column):
        components = _components(chunk, reader, inputs[0], type)
        for summary, values in zip(summaries, components, strict=True):
            n_missing = len(values) - summary.add(values)
        for sample, values in zip(samples, components, strict=False):
            sample.add(values)
        nulls += null_count(chunk) if type.nested else n_missing
        if type.nested or n_missing != chunk.array.null_count:
            nans += nan_count(chunk, type.nested)
    ranks = scan.ranks()
    merge_summaries(ranks, summaries)
    nulls, nans = ranks.sums(nulls, nans)
    for summary, sample in zip(summaries, samples, strict=False):
        sample.exchange(ranks)
        summary.keep_sample(sample.values())
    fit = FitResult(nulls={column: nulls}, notes=_number_notes(column, summaries, nans))
    for feature in features:
        if feature.learns_numbers:
            fit.numerics[feature.name] = feature.fit_numbers(summaries, type)
        if feature.is_bucketed:
            fit.boundaries[feature.name] = feature.fit_boundaries(summaries[0], type)
    return fit


def _samples_for(scan: ScanContext, inputs: Sequence[NumberInput], size: int) -> list[RowSample]:
    """Return a sample for each component, none where nothing is learned from one."""
    if not any(numbers.sample for numbers in inputs):
        return []
    # Of lists of events every element takes part, and nobody knows how many there are.
    if inputs[0].events:
        return [scan.sample(scan.sample_rows)]
    return [scan.sample_of_all() for _ in range(size)]


def merge_summaries(ranks: Ranks, summaries: Sequence[NumberSummary]) -> None:
    """Add the rows of all other ranks to the summaries of a column."""
    every = ranks.gather_json([summary.to_json() for summary in summaries])
    for others in (one for rank, one in enumerate(every) if rank != ranks.rank):
        for summary, other in zip(summaries, others, strict=True):
            summary.include(other)


def _components(
    chunk: Chunk, reader: str, numbers: NumberInput, type: ColumnType
) -> list[NDArray[np.float64]]:
    """Return the numbers of a chunk by component; those of all events one after the other."""
    if numbers.events:
        return [read_elements(chunk, reader, type, finite=True)]
    if numbers.size == 1:
        return [read_numbers(chunk, reader)]
    return list(read_vectors(chunk, reader, numbers.size).T)


def _number_notes(column: str, summaries: Sequence[NumberSummary], nans: int) -> list[str]:
    notes = [f"column {column!r}: {nans:,} NaN counted as missing"] if nans else []
    for component, summary in enumerate(summaries):
        name = f"column {column!r}"
        if len(summaries) > 1:
            name += f", component {component}"
        if not summary.count:
            notes.append(f"{name}: null in every row, so nothing is learned from it")
        elif summary.minimum == summary.maximum:
            notes.append(f"{name}: {summary.minimum:g} in every row, so nothing is learned from it")
    return notes


def scan_vocabulary(
    scan: ScanContext, columns: Sequence[ValueColumn], previous: Schema | None = None
) -> FitResult:
    """Count the values of one or more columns and keep those that are frequent enough."""
    fit = FitResult()
    limits, is_text = columns[0].values, columns[0].is_text
    assert limits.vocabulary is not None
    key, earlier = limits.vocabulary, None
    if previous is not None:
        earlier = earlier_vocabulary(previous, key, is_text=is_text, notes=fit.notes)
    kind: CounterKind = "bytes" if is_text else "int64"
    with ValueCounter(kind, memory_limit_bytes=scan.counter_bytes) as counter:
        totals = [0]
        for column in columns:
            for chunk in scan.chunks(column.name):
                _count(counter, _values(chunk, column), column)
                _count_lists(fit, chunk, column)
            totals.append(counter.total)
        ranks = scan.ranks()
        fit.exchange_counts(ranks)
        for column, n_values in zip(columns, np.diff(ranks.sums(*totals)), strict=True):
            fit.notes += _cut_notes(fit, column)
            if not n_values:
                fit.notes.append(
                    f"column {column.name!r}: no value in any row, so nothing is learned from it"
                )
        if earlier is not None and ranks.rank == 0:
            earlier.count_into(counter)
        counter.exchange(ranks)
        vocabulary = counted_vocabulary(counter, limits.min_count, limits.max_size, earlier)
        distinct, total = counter.distinct, counter.total
    fit.vocabularies[key] = vocabulary
    fit.notes += _vocabulary_notes(limits, distinct, total, len(vocabulary))
    fit.notes += _tail_notes(f"vocabulary {key!r}", vocabulary)
    return fit


def _tail_notes(name: str, vocabulary: Vocabulary) -> list[str]:
    if vocabulary.tail is None or not vocabulary.tail.dropped:
        return []
    return [
        f"{name}: of the {vocabulary.dropped:,} values that its limits leave out, the counts of "
        f"{vocabulary.tail.dropped:,} are not kept; grow= counts those from 0"
    ]


def _count(counter: ValueCounter, values: pa.Array, column: ValueColumn) -> None:
    try:
        counter.add(values)
    except DataError as error:
        raise DataError(f"{column.reader}, column {column.name!r}: {error}") from error


def _values(chunk: Chunk, column: ValueColumn) -> pa.Array:
    if not column.is_text:
        return read_integers(chunk, column.reader, column.type)
    texts = read_text(chunk, column.type)
    if column.values.empty_as_null:
        texts = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
        texts = texts.filter(pc.greater(pc.binary_length(texts), 0))
    # A column that is null throughout may have no type of its own.
    return texts.cast(pa.string()) if pa.types.is_null(texts.type) else texts


def _count_lists(fit: FitResult, chunk: Chunk, column: ValueColumn) -> None:
    """Count the rows that are null, and the lists of which one end is read."""
    fit.nulls[column.name] = fit.nulls.get(column.name, 0) + null_count(chunk)
    if column.most_values is not None and column.type.nested:
        is_longer = pc.greater(pc.list_value_length(chunk.array), column.most_values)
        cut = fit.cut_lists.get(column.reader, 0) + int(pc.sum(is_longer).as_py() or 0)
        fit.cut_lists[column.reader] = cut


def _cut_notes(fit: FitResult, column: ValueColumn) -> list[str]:
    cut = fit.cut_lists.get(column.reader, 0)
    most, end = column.most_values, column.end_read
    text = f"{column.reader}: {cut:,} lists are longer than maxlen = {most}; their {end} {most} "
    return [f"{text}values are read"] if cut else []


def _vocabulary_notes(limits: ValueInput, distinct: int, total: int, n_values: int) -> list[str]:
    if not distinct:
        return []
    if not n_values:
        return [
            f"vocabulary {limits.vocabulary!r}: no value was seen {limits.min_count:,} times, "
            "so all count as unseen"
        ]
    if distinct == total >= _KEY_VALUES:
        return [
            f"vocabulary {limits.vocabulary!r}: all {total:,} values differ, as those of a key do; "
            "nothing general is learned from them"
        ]
    return []


def scan_values(scan: ScanContext, column: ValueColumn) -> FitResult:
    """Check a column whose values need no counting."""
    fit = FitResult(nulls={column.name: 0})
    outside = 0
    for chunk in scan.chunks(column.name):
        _count_lists(fit, chunk, column)
        if column.is_text:
            continue
        values = np.asarray(read_integers(chunk, column.reader, column.type))
        if column.values.num_buckets is not None:
            outside += int(np.count_nonzero((values < 0) | (values >= column.values.num_buckets)))
    ranks = scan.ranks()
    fit.exchange_counts(ranks)
    (outside,) = ranks.sums(outside)
    fit.notes += _cut_notes(fit, column)
    if outside:
        fit.notes.append(
            f"{column.reader}: {outside:,} values outside 0 <= v < num_buckets = "
            f"{column.values.num_buckets:,} count as unseen"
        )
    return fit


def scan_plain(scan: ScanContext, column: str) -> FitResult:
    """Count the nulls of a column."""
    nulls = sum(null_count(chunk) for chunk in scan.chunks(column))
    return FitResult(nulls={column: scan.ranks().sums(nulls)[0]})


def scan_weight(
    scan: ScanContext, column: str, kind: ColumnType, *, nullable: bool = False
) -> FitResult:
    """Check the example weights; those of one head may be null, as its labels may be."""
    name = f"weight {column!r}"
    if kind.nested or kind.kind == "string":
        got = "lists" if kind.nested else "text"
        raise DataError(f"{name}: got a column of {got}, expected one number a row")
    total = 0.0
    for chunk in scan.chunks(column):
        weights = read_numbers(chunk, name, finite=False)
        wrong = ~((weights >= 0) & (weights <= LARGEST_WEIGHT))
        if nullable:
            wrong &= ~np.isnan(weights)
            weights = np.nan_to_num(weights, nan=0.0)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{name} {chunk.at(row)}: got {chunk.array[row]}, expected a number from 0 to "
                "1e15; correct it or drop the row"
            )
        total += float(weights.astype(np.float32).sum(dtype=np.float64))
    (has_weight,) = scan.ranks().sums(int(total > 0))
    notes = [] if has_weight else [f"{name}: 0 in every row, so nothing is learned"]
    return FitResult(nulls={column: 0}, notes=notes)


def scan_value_weights(scan: ScanContext, column: str, kind: ColumnType, feature: str) -> FitResult:
    """Check the weights of a feature's values; how many there are is checked with the values."""
    fit = FitResult(nulls={column: 0})
    for chunk in scan.chunks(column):
        fit.nulls[column] += null_count(chunk)
        weights = read_elements(chunk, f"feature {feature!r}", kind)
        wrong = ~(np.isnan(weights) | ((weights >= 0) & (weights <= LARGEST_WEIGHT)))
        if wrong.any():
            element = int(wrong.argmax())
            raise chunk.refuse(
                f"feature {feature!r}",
                row_of(chunk.array, kind, element),
                f"got {weights[element]:g} (float) as a weight in column {column!r}, expected a "
                "number from 0 to 1e15; correct it or drop the row",
            )
    fit.exchange_counts(scan.ranks())
    return fit


def scan_cross(
    scan: ScanContext, cross: Feature, parts: Schema, previous: Schema | None = None
) -> FitResult:
    """Count the combinations of part ids, all of a row's where parts are multi-valued."""
    notes: list[str] = []
    limits = cross.combinations()
    assert limits is not None
    earlier = None if previous is None else earlier_cross(previous, cross, parts, notes)
    transform = Transform(parts)
    columns = transform.schema.spec.columns()
    with ValueCounter("tuple", memory_limit_bytes=scan.counter_bytes) as counter:
        for table in column_stream(scan.source, columns, scan.fragments):
            origin, first_row = origin_of(table) or ("", 0)
            encoded = transform.part_ids(table, limits.parts, origin=origin, first_row=first_row)
            _check_combinations(encoded, cross.name, limits, origin, first_row)
            for tuples in _combinations(encoded):
                counter.add(tuples)
            scan.advance(table.num_rows)
        ranks = scan.ranks()
        if earlier is not None and ranks.rank == 0:
            earlier.count_into(counter)
        counter.exchange(ranks)
        counter.tuples_of(len(limits.parts))
        vocabulary = counted_vocabulary(counter, limits.min_count, limits.max_size, earlier)
    notes += _tail_notes(f"cross {cross.name!r}", vocabulary)
    if not len(vocabulary):
        notes.append(f"cross {cross.name!r}: no combination was seen {limits.min_count:,} times")
    return FitResult(vocabularies={cross.name: vocabulary}, notes=notes)


def _lengths(encoded: Sequence[PartIds]) -> list[NDArray[np.int64]]:
    """Return how many ids of each part an example crosses, (B,) per part: none if missing."""
    lengths = []
    for ids, offsets in encoded:
        n_ids = np.diff(offsets)  # (B,)
        # A missing part stands alone in its row, and yields no cross.
        first = np.minimum(offsets[:-1], max(len(ids) - 1, 0))
        if len(ids):
            n_ids = np.where((n_ids == 1) & (ids[first] == _MISSING_ID), 0, n_ids)
        lengths.append(n_ids)
    return lengths


def _check_combinations(
    encoded: Sequence[PartIds], name: str, limits: CrossEncoding, origin: str, first_row: int
) -> None:
    """Refuse a row that makes too many combinations, as the transform does."""
    lengths = _lengths(encoded)
    n_combinations = np.prod(lengths, axis=0, dtype=np.float64)
    if not (n_combinations > limits.max_combinations).any():
        return
    row = int((n_combinations > limits.max_combinations).argmax())
    location = f"row {first_row + row}" + (f" of {origin}" if origin else "")
    raise LimitError(
        f"feature {name!r} ({location}): got {' x '.join(str(n[row]) for n in lengths)} values "
        f"of its parts, which make {n_combinations[row]:,.0f} combinations, expected at most "
        f"max_combinations={limits.max_combinations:,} in a row; shorten the lists, or declare the "
        "cross with a larger max_combinations"
    )


def _combinations(encoded: Sequence[PartIds]) -> Iterator[NDArray[np.int64]]:
    """Yield part ids (n, parts): the Cartesian product of each example's ids, rows in order."""
    starts, lengths = [offsets[:-1] for _, offsets in encoded], _lengths(encoded)
    n_combinations = np.prod(lengths, axis=0)  # (B,)
    ends = np.cumsum(n_combinations)  # (B,) combinations up to and with each row
    row = 0
    while row < len(n_combinations):
        done = int(ends[row - 1]) if row else 0
        stop = max(row + 1, int(np.searchsorted(ends, done + _TUPLES_AT_ONCE, "right")))
        # (n,) the row of each combination, and its index within the row. The index counts in a
        # mixed base whose digits are the positions of the parts' ids, the last part's first.
        rows = np.repeat(np.arange(row, stop), n_combinations[row:stop])
        index = np.arange(len(rows)) - np.repeat(
            ends[row:stop] - n_combinations[row:stop] - done, n_combinations[row:stop]
        )
        tuples = np.empty((len(rows), len(encoded)), np.int64)
        for column in reversed(range(len(encoded))):
            n_ids = lengths[column][rows]
            tuples[:, column] = encoded[column][0][starts[column][rows] + index % n_ids]
            index //= n_ids
        if len(tuples):
            yield tuples
        row = stop
