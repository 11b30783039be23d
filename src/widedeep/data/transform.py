"""From columns to ids and numbers: the native transform and its plan."""

from __future__ import annotations

import datetime
import decimal
import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.data.column_values import UNITS
from widedeep.data.fragments import origin_of
from widedeep.data.packed import PackedExamples, id_widths
from widedeep.errors import DataError, FeatureError, SchemaError, nearest
from widedeep.features import (
    BucketEncoding,
    CountEncoding,
    CrossEncoding,
    Encoding,
    Feature,
    NumberEncoding,
    PiecewiseEncoding,
    ValueEncoding,
)
from widedeep.features.learned import FIRST_KNOWN_ID, Vocabulary, text_buffers
from widedeep.kernels import TransformPlan, TransformProgram, make_program
from widedeep.kernels.transform import fingerprint64, is_misspelt
from widedeep.schema import Schema

if TYPE_CHECKING:
    from widedeep.kernels import Encoded


# Keys and columns that are compared, so that the time does not depend on the size of a request. The
# native server (native/rank_request.cpp) leaves to Python each request with a misspelt key; its
# limits are these.
MOST_KEYS = 8
MOST_COLUMNS = 64


def misspelt_keys(
    keys: Iterable[str], absent: Iterable[str], column_names: Container[str]
) -> dict[str, str]:
    """Return the keys that look like an absent column, with that column."""
    columns = list(itertools.islice(absent, MOST_COLUMNS))
    if not columns:
        return {}
    unknown = itertools.islice((key for key in keys if key not in column_names), MOST_KEYS)
    pairs = ((key, next((c for c in columns if is_misspelt(key, c)), None)) for key in unknown)
    return {key: column for key, column in pairs if column is not None}


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_PLAIN = (bool, int, float, str, bytes, type(None))


class Moment(int):
    """A point in time in microseconds since 1970, which native code tells from a plain number."""

    def text(self) -> str:
        """Return it as ISO 8601 writes it, in UTC."""
        return str(np.datetime64(int(self), "us")) + "Z"


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """A native plan, and where each feature lies in it."""

    native: TransformPlan  # The plan
    # ``("part" | "cross" | "number", index)`` by name of a feature or raw column
    operations: dict[str, tuple[str, int]]
    unlearned: tuple[str, ...]  # Crosses without combinations in the schema


class _Compiler:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.native = TransformPlan()
        self.operations: dict[str, tuple[str, int]] = {}
        self.unlearned: list[str] = []
        self.vocabularies: dict[str, int] = {}
        self.hashed_parts = {
            part_name for f in schema.spec.all_features if f.is_hashed for part_name in f.part_names
        }

    def compile(self) -> CompiledPlan:
        for feature in self.schema.spec.all_features:
            for part_name in feature.part_names:
                if part_name not in self.operations:
                    self.add(part_name, self.raw_encoding(part_name))
            try:
                encoding = feature.encoding(self.schema)
            except KeyError:
                raise self.lacks(feature.name, "statistics") from None
            if feature.name in self.schema.spec.parallel_names:
                encoding = self.in_parallel(feature, encoding)
            self.add(feature.name, encoding)
        for column, kind in self.schema.columns.items():
            if kind.storage is not None:
                self.native.set_storage(column, *_native_storage(kind.storage))
        self.add_targets()
        self.fix_training_only()
        return CompiledPlan(self.native, self.operations, tuple(self.unlearned))

    def in_parallel(self, feature: Feature, encoding: Encoding) -> Encoding:
        """Keep a place for each event of parallel sequences."""
        first = feature.parallel_to
        column = None if first is None else self.schema.spec.by_name[first].main_column
        if isinstance(encoding, NumberEncoding):
            return replace(encoding, parallel=column)
        assert isinstance(encoding, ValueEncoding)
        return replace(encoding, parallel=column, keeps_nulls=True)

    def raw_encoding(self, column: str) -> Encoding:
        """A column that only hashed crosses read needs no ids of its own."""
        if column not in self.schema.vocabularies and column in self.hashed_parts:
            return ValueEncoding(column=column, hash_buckets=1)
        return ValueEncoding(column=column, vocabulary=column)

    def add(self, name: str, encoding: Encoding) -> None:
        try:
            if isinstance(encoding, NumberEncoding) and encoding.events:
                self.operations[name] = ("part", self.add_number_sequence(name, encoding))
            elif isinstance(encoding, NumberEncoding):
                self.operations[name] = ("number", self.add_number(name, encoding))
            elif isinstance(encoding, BucketEncoding):
                self.operations[name] = ("part", self.add_buckets(name, encoding))
            elif isinstance(encoding, PiecewiseEncoding):
                cuts = _contiguous(encoding.cuts, np.float64)
                index = self.native.add_piecewise(name, encoding.column, cuts)
                self.operations[name] = ("part", index)
            elif isinstance(encoding, ValueEncoding):
                self.operations[name] = ("part", self.add_values(name, encoding))
            elif isinstance(encoding, CountEncoding):
                kind, index = self.operations[encoding.source]
                counts = self.native.add_counts(name, kind, index, encoding.width)
                self.operations[name] = ("number", counts)
            elif (cross := self.add_cross(name, encoding)) is not None:
                self.operations[name] = ("cross", cross)
        except ValueError as error:
            raise SchemaError(
                f"feature {name!r}: its statistics do not fit ({error}); fit the schema again"
            ) from error

    def add_number(self, name: str, encoding: NumberEncoding) -> int:
        fit = encoding.fit
        return self.native.add_number(
            name,
            encoding.column,
            transform=encoding.transform,
            indicator=encoding.indicator,
            boundaries=[_contiguous(cuts, np.float64) for cuts in fit.boundaries],
            shift=_contiguous(fit.shift, np.float64),
            scale=_contiguous(fit.scale, np.float64),
            fill=_contiguous(fit.fill, np.float32),
        )

    def add_number_sequence(self, name: str, encoding: NumberEncoding) -> int:
        fit = encoding.fit
        return self.native.add_number_sequence(
            name,
            encoding.column,
            transform=encoding.transform,
            boundaries=[_contiguous(cuts, np.float64) for cuts in fit.boundaries],
            shift=float(fit.shift[0]),
            scale=float(fit.scale[0]),
            parallel=encoding.parallel,
            maxlen=encoding.maxlen,
            keep_first=encoding.keep == "first",
        )

    def add_buckets(self, name: str, encoding: BucketEncoding) -> int:
        return self.native.add_bucketized(
            name,
            encoding.column,
            _contiguous(encoding.boundaries, np.float64),
            wants_keys=name in self.hashed_parts,
            size=encoding.size,
        )

    def add_values(self, name: str, encoding: ValueEncoding) -> int:
        way, vocabulary = self.way(name, encoding)
        default = encoding.default
        return self.native.add_categorical(
            name,
            encoding.column,
            way=way,
            vocabulary=vocabulary,
            buckets=encoding.hash_buckets or encoding.num_buckets or 0,
            remainders=encoding.remainders or 0,
            oov_buckets=encoding.oov_buckets,
            drop_unseen=encoding.drop_unseen,
            empty_as_null=encoding.empty_as_null,
            # TensorFlow crosses vocabulary columns by their ids, string columns by their hash.
            key_is_place=encoding.crossed_by_position,
            weights=encoding.weights,
            parallel=encoding.parallel,
            maxlen=encoding.maxlen,
            keep_first=encoding.keep == "first",
            keeps_nulls=encoding.keeps_nulls,
            wants_keys=name in self.hashed_parts,
            default_id=None if default is None else FIRST_KNOWN_ID + default,
            default_key=0 if default is None else self.key_of_place(encoding, default),
        )

    def key_of_place(self, encoding: ValueEncoding, place: int) -> int:
        """The integer by which a known value enters hashed crosses."""
        if encoding.vocabulary is None or encoding.crossed_by_position:
            return place
        value = self.schema.vocabularies[encoding.vocabulary].value(place)
        if isinstance(value, int):
            return value
        return int(np.uint64(fingerprint64(str(value))).view(np.int64))

    def way(self, name: str, encoding: ValueEncoding) -> tuple[str, int]:
        """How values become ids, and the vocabulary's index (-1 for none)."""
        if encoding.num_buckets:
            return "identity", -1
        if encoding.hash_buckets:
            if encoding.column not in self.schema.columns:
                raise self.lacks(name, f"type of column {encoding.column!r}")
            is_text = self.schema.columns[encoding.column].kind == "string"
            return "hash_text" if is_text else "hash_integer", -1
        key = encoding.vocabulary
        if key is None or key not in self.schema.vocabularies:
            raise self.lacks(name, "vocabulary")
        vocabulary = self.schema.vocabularies[key]
        if key not in self.vocabularies:
            self.vocabularies[key] = self.add_vocabulary(vocabulary)
        kind = "integer" if isinstance(vocabulary.values, np.ndarray) else "text"
        return f"{kind}_vocabulary", self.vocabularies[key]

    def add_vocabulary(self, vocabulary: Vocabulary) -> int:
        index = vocabulary.index
        if not isinstance(vocabulary.values, np.ndarray):
            return self.native.add_text_vocabulary(*text_buffers(vocabulary.values), index)
        table = {} if index is None else {"direct" if index.ndim == 1 else "index": index}
        return self.native.add_integer_vocabulary(_contiguous(vocabulary.values, np.int64), **table)

    def add_cross(self, name: str, encoding: CrossEncoding) -> int | None:
        parts = [self.operations[part_name][1] for part_name in encoding.parts]
        most = encoding.max_combinations
        if encoding.hash_buckets:
            return self.native.add_hashed_cross(
                name, parts, encoding.hash_buckets, most, encoding.hash_key
            )
        if name not in self.schema.vocabularies:
            self.unlearned.append(name)
            return None
        values = self.schema.vocabularies[name].values
        if not isinstance(values, np.ndarray) or values.ndim != 2:
            raise self.lacks(name, "combinations of part ids")
        return self.native.add_learned_cross(name, parts, _contiguous(values, np.int64), most)

    def add_targets(self) -> None:
        spec = self.schema.spec
        nullable = len(spec.labels) > 1  # a null of one head does not keep a row from the others
        for head, column in spec.labels.items():
            classes = self.schema.classes.get(head)
            self.native.add_label(
                column,
                None if classes is None else list(classes),
                nullable=nullable,
                several=self.schema.is_multilabel(head),
            )
        for column in spec.head_weights.values():
            self.native.add_label(column, None, nullable=True, is_weight=True)
        if spec.weight is not None:
            self.native.set_weight(spec.weight)
        if spec.group is not None:
            self.native.set_group(spec.group)

    def fix_training_only(self) -> None:
        for name, value in self.schema.spec.training_only.items():
            source = self.schema.spec.by_name[name].source_feature
            if source is not None or self.operations.get(name, ("cross",))[0] == "cross":
                parts = "the cross's parts" if source is None else f"its source {source!r}"
                raise FeatureError(
                    f"feature {name!r}: got {'a cross' if source is None else 'an indicator'} in "
                    f"training_only, expected a feature with a column; name {parts} instead"
                )
            kind, index = self.operations[name]
            fix = self.native.fix_number if kind == "number" else self.native.fix_part
            fix(index, value, plain_value)

    def lacks(self, name: str, what: str) -> SchemaError:
        return SchemaError(
            f"feature {name!r}: the schema holds no {what} for it; fit the schema again"
        )


def _native_storage(storage: str) -> tuple[str, int, int]:
    """Return a storage's kind, digits and unit in nanoseconds."""
    if storage in UNITS:
        return "time", 0, UNITS[storage]
    kind, _, digits = storage.partition(":")
    return kind, int(digits or 0), 1


def _contiguous(array: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(array, dtype)


def plain_value(value: object) -> object:
    """Return a request's value as None, bool, int, float or str; NotImplemented if it is none."""
    if isinstance(value, pa.Scalar):
        inner = value.as_py()
        return inner if isinstance(inner, _PLAIN) else plain_value(inner)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else Moment(value.astype("datetime64[us]").astype(np.int64))
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.size == 1 else NotImplemented
    if type(value).__name__ == "NAType" or value != value:
        return None  # pandas.NaT and pandas.NA
    if isinstance(value, datetime.datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return Moment((moment - _EPOCH) // _MICROSECOND)
    if isinstance(value, datetime.date):
        return Moment((value - _EPOCH.date()) // _MICROSECOND)
    if isinstance(value, decimal.Decimal):
        whole = int(value) if value.is_finite() else None
        is_whole = whole is not None and whole == value and -(2**63) <= whole < 2**64
        return whole if is_whole else float(value)
    return NotImplemented


PartIds: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]

_ROWS_WITH_KEYS = 8
"""Rows of a request whose keys are compared with absent columns."""


class Transform:
    """Turns rows into a :class:`~widedeep.data.batch.Batch` by a schema."""

    def __init__(self, schema: Schema, *, threads: int = 1) -> None:
        self.schema = schema
        self.threads = threads
        self.absent: dict[str, int] = {}
        self.plan: CompiledPlan = _Compiler(schema).compile()
        self._part_programs: dict[str, TransformProgram] = {}
        if not self.plan.unlearned:
            slots = [self.plan.operations[slot.name] for slot in schema.slots]
            self._training = make_program(
                self.plan.native, slots, dense=True, targets=True, fixed=False
            )
            self._scoring = make_program(
                self.plan.native, slots, dense=True, targets=False, fixed=True
            )

    def __reduce__(self) -> tuple[type[Transform], tuple[Schema], dict[str, Any]]:
        """Pickle the schema alone: the look-up tables are made of it again."""
        return Transform, (self.schema,), {"threads": self.threads, "absent": self.absent}

    def __copy__(self) -> Transform:
        """Share the look-up tables, which nobody changes: making them again takes milliseconds."""
        copy = object.__new__(Transform)
        copy.__dict__.update(self.__dict__)
        return copy

    @property
    def truncated(self) -> dict[str, int]:
        """How many lists of each feature were longer than its ``maxlen`` so far, and were cut."""
        counts = {
            name: self.plan.native.truncated(index)
            for name, (kind, index) in self.plan.operations.items()
            if kind == "part"
        }
        return {name: count for name, count in counts.items() if count}

    def check_values(self, total: int) -> None:
        """Raise if a request that is encoded in pieces comes to more values than it may."""
        self.plan.native.check_values(total)

    def columns(self, targets: bool = True) -> list[str]:
        """Return the input columns that are read."""
        return self._program(targets).columns

    def __call__(
        self,
        table: pa.Table | pa.RecordBatch,
        *,
        targets: bool = True,
        origin: str = "",
        first_row: int = 0,
    ) -> Batch:
        """Encode a table; its columns may come in any order, and others are ignored."""
        program = self._program(targets)
        return self._batch(self._encode(program, table, origin, first_row), targets)

    def pack(self, table: pa.Table, sizes: Sequence[int]) -> PackedExamples:
        """Encode a table with its targets as packed examples, whose ids of a slot are below a size.

        Raises:
            RowError: For an id that is not.
        """
        program = self._program(True)
        rows = _arrow_rows(program, table, "", 0)
        packed = program.encode_packed(rows.capsules, id_widths(sizes), *rows[1:], self.threads)
        if packed is None:
            return PackedExamples.pack(self(table), sizes)  # says which
        return PackedExamples.within(*packed)

    def rows(
        self,
        rows: Sequence[Mapping[str, object]],
        *,
        strict: bool = False,
        origin: str = "",
        first_row: int = 0,
    ) -> Batch:
        """Encode rows given as dicts, to be scored."""
        program = self._program(False)
        dicts = [row if type(row) is dict else _as_dict(row, i) for i, row in enumerate(rows)]
        encoded, absent = program.encode_rows(dicts, plain_value, origin, first_row, self.threads)
        for column, count in zip(program.columns, absent, strict=True):
            if not count:
                continue
            if strict:
                raise _absent_key(dicts, column, origin, first_row)
            self.absent[column] = self.absent.get(column, 0) + count
        return self._batch(encoded, False)

    def misspelt(self, rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
        """Return keys of rows that look like a column that their row lacks, with it."""
        columns = self._program(False).columns
        column_set, result = frozenset(columns), {}
        for row in rows[:_ROWS_WITH_KEYS]:
            absent = (column for column in columns if column not in row)
            result.update(misspelt_keys(map(str, row), absent, column_set))
        return result

    def part_ids(
        self,
        table: pa.Table | pa.RecordBatch,
        names: Sequence[str],
        *,
        origin: str = "",
        first_row: int = 0,
    ) -> list[PartIds]:
        """Encode parts of crosses on their own, whether or not they are placed in the model."""
        return [
            self._encode(self._part_program(name), table, origin, first_row)[:2] for name in names
        ]

    @property
    def scoring_program(self) -> TransformProgram:
        """What encodes rows to be scored, for the native server."""
        return self._program(False)

    def _program(self, targets: bool) -> TransformProgram:
        if self.plan.unlearned:
            raise SchemaError(
                f"cross {self.plan.unlearned[0]!r}: the schema holds no combinations for it; "
                "fit the schema again"
            )
        return self._training if targets else self._scoring

    def _part_program(self, name: str) -> TransformProgram:
        if name not in self._part_programs:
            slot = self.plan.operations.get(name)
            if slot is None or slot[0] != "part":
                names = [
                    part_name
                    for part_name, (kind, _) in self.plan.operations.items()
                    if kind == "part"
                ]
                raise SchemaError(
                    f"got {name!r}, which is no part of a cross; {nearest(name, names)}"
                )
            self._part_programs[name] = make_program(
                self.plan.native, [slot], dense=False, targets=False, fixed=False
            )
        return self._part_programs[name]

    def _encode(
        self,
        program: TransformProgram,
        table: pa.Table | pa.RecordBatch,
        origin: str,
        first_row: int,
    ) -> Encoded:
        rows = _arrow_rows(program, table, origin, first_row)
        return program.encode(*rows, self.threads)

    def _batch(self, encoded: Encoded, targets: bool) -> Batch:
        ids, offsets, dense, values, labels, weight, group = encoded
        return Batch(
            ids_N=ids,
            offsets_BF=offsets,
            dense_BK=dense,
            values_N=values,
            labels_BL=labels if targets and self.schema.spec.labels else None,
            weight_B=weight,
            group_B=group,
        )


class _ArrowRows(NamedTuple):
    """What a program encodes: batches of its columns, and where their rows come from."""

    capsules: list[tuple[object, object]]
    origin: str
    first_row: int


def _arrow_rows(
    program: TransformProgram, table: pa.Table | pa.RecordBatch, origin: str, first_row: int
) -> _ArrowRows:
    columns = program.columns
    if not origin:
        origin, first_row = origin_of(table) or ("", first_row)
    _check_columns(table.schema.names, columns, origin)
    selection = table.select(columns)
    batches = [selection] if isinstance(selection, pa.RecordBatch) else selection.to_batches()
    return _ArrowRows([batch.__arrow_c_array__() for batch in batches], origin, first_row)


def _check_columns(names: list[str], columns: list[str], origin: str) -> None:
    location = origin or "the table"
    present = set(names)
    for column in columns:
        if column not in present:
            raise DataError(f"{location}: got no column {column!r}; {nearest(column, names)}")
    if len(present) == len(names):
        return
    for column in columns:
        count = names.count(column)
        if count > 1:
            raise DataError(
                f"{location}: got {count} columns named {column!r}, expected one; rename the others"
            )


def _as_dict(row: object, position: int) -> dict[str, object]:
    if isinstance(row, Mapping):
        return dict(row)
    raise DataError(
        f"row {position}: got {row!r} ({type(row).__name__}), expected a dict from column to value"
    )


def _absent_key(
    rows: list[dict[str, object]], column: str, origin: str, first_row: int
) -> DataError:
    position, row = next((i, row) for i, row in enumerate(rows) if column not in row)
    where = f"row {first_row + position}" + (f" of {origin}" if origin else "")
    return DataError(
        f"{where}: got no key {column!r}, expected it since strict=True (give None for a missing "
        f"value); {nearest(column, map(str, row))}"
    )
