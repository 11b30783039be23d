"""A schema as a native plan: what the transform does to each column."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from widedeep.errors import FeatureError, SchemaError
from widedeep.features import Bucketized, Categorical, Crossed, Feature, Numeric
from widedeep.kernels.transform import TransformPlan
from widedeep.schema import Schema, Vocabulary, text_buffers

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_PLAIN = (bool, int, float, str, bytes, type(None))
UNITS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1, "day": 86_400 * 10**9}
"""Nanoseconds of a time's units."""


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
    places: dict[str, tuple[str, int]]
    unlearned: tuple[str, ...]  # Crosses whose combinations the schema does not hold yet


def compile_plan(schema: Schema) -> CompiledPlan:
    """Build the native plan of a schema."""
    return _Compiler(schema).compile()


class _Compiler:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.native = TransformPlan()
        self.places: dict[str, tuple[str, int]] = {}
        self.unlearned: list[str] = []
        self.vocabularies: dict[str, int] = {}
        self.hashed_parts = {
            part
            for feature in schema.spec.all_features
            if isinstance(feature, Crossed) and feature.hash_buckets
            for part in feature.parts
        }

    def compile(self) -> CompiledPlan:
        for feature in self.schema.spec.all_features:
            try:
                self.places.update(self.placed(feature))
            except ValueError as error:
                raise SchemaError(
                    f"feature {feature.name!r}: its statistics do not fit ({error}); "
                    "fit the schema again"
                ) from error
        for column, kind in self.schema.columns.items():
            if kind.storage is not None:
                self.native.set_storage(column, *_native_storage(kind.storage))
        self.add_targets()
        self.fix_training_only()
        return CompiledPlan(self.native, self.places, tuple(self.unlearned))

    def placed(self, feature: Feature) -> Iterator[tuple[str, tuple[str, int]]]:
        if isinstance(feature, Numeric):
            yield feature.name, ("number", self.add_number(feature))
        elif isinstance(feature, Bucketized):
            yield feature.name, ("part", self.add_bucketized(feature))
        elif isinstance(feature, Categorical):
            yield feature.name, ("part", self.add_categorical(feature))
        else:
            for part in feature.parts:
                if part not in self.places:
                    yield part, ("part", self.add_raw_column(part))
            index = self.add_cross(feature)
            if index is not None:
                yield feature.name, ("cross", index)

    def add_number(self, feature: Numeric) -> int:
        fit = self.schema.numerics.get(feature.name)
        if fit is None:
            raise self.lacks(feature.name, "statistics")
        return self.native.add_number(
            feature.name,
            feature.source,
            transform=feature.transform,
            indicator=feature.missing == "indicator",
            boundaries=[_contiguous(cuts, np.float64) for cuts in fit.boundaries],
            shift=_contiguous(fit.shift, np.float64),
            scale=_contiguous(fit.scale, np.float64),
            fill=_contiguous(fit.fill, np.float32),
        )

    def add_bucketized(self, feature: Bucketized) -> int:
        if feature.name not in self.schema.boundaries:
            raise self.lacks(feature.name, "boundaries")
        return self.native.add_bucketized(
            feature.name,
            feature.source,
            _contiguous(self.schema.boundaries[feature.name], np.float64),
            wants_keys=feature.name in self.hashed_parts,
        )

    def add_categorical(self, feature: Categorical) -> int:
        way, vocabulary = self.way(feature.name, feature.source, feature)
        return self.native.add_categorical(
            feature.name,
            feature.source,
            way=way,
            vocabulary=vocabulary,
            buckets=feature.hash_buckets or feature.num_buckets or 0,
            oov_buckets=feature.oov_buckets,
            drop_unseen=feature.oov == "drop",
            empty_as_null=feature.empty_as_null,
            # TensorFlow crosses vocabulary columns by their ids, string columns by their hash.
            key_is_place=feature.vocabulary is not None or feature.vocabulary_file is not None,
            weights=feature.weights,
            wants_keys=feature.name in self.hashed_parts,
        )

    def add_raw_column(self, column: str) -> int:
        way, vocabulary = self.way(column, column, None)
        return self.native.add_categorical(
            column,
            column,
            way=way,
            vocabulary=vocabulary,
            # A column that only hashed crosses read needs no ids of its own.
            buckets=1 if way.startswith("hash") else 0,
            oov_buckets=0,
            drop_unseen=False,
            empty_as_null=False,
            key_is_place=False,
            weights=None,
            wants_keys=column in self.hashed_parts,
        )

    def way(self, name: str, column: str, feature: Categorical | None) -> tuple[str, int]:
        """How values become ids, and the vocabulary's index (-1 for none)."""
        if feature is not None and feature.num_buckets:
            return "identity", -1
        key = self.schema.vocabulary_key(name)
        if feature is not None and feature.hash_buckets:
            return self.hash_way(name, column), -1
        if key not in self.schema.vocabularies:
            if feature is None and name in self.hashed_parts:
                return self.hash_way(name, column), -1
            raise self.lacks(name, "vocabulary")
        vocabulary = self.schema.vocabularies[key]
        if key not in self.vocabularies:
            self.vocabularies[key] = self.add_vocabulary(vocabulary)
        kind = "integer" if isinstance(vocabulary.values, np.ndarray) else "text"
        return f"{kind}_vocabulary", self.vocabularies[key]

    def hash_way(self, name: str, column: str) -> str:
        if column not in self.schema.columns:
            raise self.lacks(name, f"type of column {column!r}")
        return "hash_text" if self.schema.columns[column].kind == "string" else "hash_integer"

    def add_vocabulary(self, vocabulary: Vocabulary) -> int:
        if isinstance(vocabulary.values, np.ndarray):
            return self.native.add_integer_vocabulary(_contiguous(vocabulary.values, np.int64))
        return self.native.add_text_vocabulary(*text_buffers(vocabulary.values))

    def add_cross(self, feature: Crossed) -> int | None:
        parts = [self.part_index(part) for part in feature.parts]
        if feature.hash_buckets:
            return self.native.add_hashed_cross(
                feature.name, parts, feature.hash_buckets, feature.max_combinations
            )
        if feature.name not in self.schema.vocabularies:
            self.unlearned.append(feature.name)
            return None
        values = self.schema.vocabularies[feature.name].values
        if not isinstance(values, np.ndarray) or values.ndim != 2:
            raise self.lacks(feature.name, "combinations of part ids")
        return self.native.add_learned_cross(
            feature.name, parts, _contiguous(values, np.int64), feature.max_combinations
        )

    def part_index(self, name: str) -> int:
        return self.places[name][1]

    def add_targets(self) -> None:
        spec = self.schema.spec
        for head, column in spec.labels.items():
            classes = self.schema.classes.get(head)
            self.native.add_label(column, None if classes is None else list(classes))
        if spec.weight is not None:
            self.native.set_weight(spec.weight)
        if spec.group is not None:
            self.native.set_group(spec.group)

    def fix_training_only(self) -> None:
        for name, value in self.schema.spec.training_only.items():
            if name not in self.places or self.places[name][0] == "cross":
                raise FeatureError(
                    f"feature {name!r}: got a cross in training_only, expected a feature with a "
                    "column; name the cross's parts instead"
                )
            kind, index = self.places[name]
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
        return int(value) if value.is_finite() and value == int(value) else float(value)
    return NotImplemented
