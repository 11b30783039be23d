"""The transform in plain Python, one row at a time: what the native code must equal."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from widedeep.features import Bucketized, Categorical, Crossed, Indicator, Numeric
from widedeep.kernels.transform import fingerprint64
from widedeep.schema import Schema

__all__ = ["EncodedRow", "ReferenceError", "encode_row", "fingerprint_cat64", "scale"]

MASK = 2**64 - 1
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
Row = Mapping[str, object]


class ReferenceError(Exception):
    """A value that the transform must refuse."""


@dataclass
class EncodedRow:
    """One example: a list of (id, weight) for each slot, and its dense numbers."""

    cells: list[list[tuple[int, float]]] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)


def fingerprint_cat64(first: int, second: int) -> int:
    factor = 0xC6A4A7935BD1E995
    shifted = (second * factor) & MASK
    result = first ^ factor ^ (((shifted ^ shifted >> 47) * factor) & MASK)
    result = (result * factor) & MASK
    result = ((result ^ result >> 47) * factor) & MASK
    return result ^ result >> 47


def is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).encode()
    raise ReferenceError(value)


def as_integer(value: object) -> int:
    number: int | float | decimal.Decimal
    if isinstance(value, datetime.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        number = (aware - EPOCH) // datetime.timedelta(microseconds=1)
    elif isinstance(value, datetime.date):
        number = (value - EPOCH.date()) // datetime.timedelta(microseconds=1)
    elif isinstance(value, str | bytes):
        text = value.decode() if isinstance(value, bytes) else value
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit():
            raise ReferenceError(value)
        number = int(text)
        if str(number) != text:
            raise ReferenceError(value)
    elif isinstance(value, int | float | decimal.Decimal):
        number = value
    else:
        raise ReferenceError(value)
    if not math.isfinite(number) or number != int(number):
        raise ReferenceError(value)
    limit = 2**64 if isinstance(value, int | str | bytes) else 2**63
    if not -(2**63) <= number < limit or (isinstance(value, float) and abs(value) >= 2**53):
        raise ReferenceError(value)
    return int(number)


def as_number(value: object) -> float:
    if isinstance(value, str | bytes):
        raise ReferenceError(value)
    if isinstance(value, datetime.date):
        return float(as_integer(value))
    if not isinstance(value, int | float | decimal.Decimal):
        raise ReferenceError(value)
    if math.isinf(value):
        raise ReferenceError(value)
    return float(value)


def scale(transform: str, x: float, cuts: np.ndarray, shift: float, factor: float) -> float:
    if transform == "quantile":
        return float(np.interp(x, cuts, np.linspace(0, 1, len(cuts)))) if len(cuts) > 1 else 0.0
    if transform == "none":
        return x
    if transform == "log1p":
        x = math.copysign(math.log1p(abs(x)), x)
    return (x - shift) * factor


def _cell_of_cut_points(schema: Schema, feature: Numeric, row: Row) -> list[tuple[int, float]]:
    """The ids of a number with cut points: its bucket, or the two cut points around it."""
    value, cuts = row.get(feature.source), schema.boundaries[feature.name]
    if is_null(value):
        return [(1, 1.0)]
    number = as_number(value)
    if feature.embedding == "bins":
        return [(2 + sum(1 for cut in cuts if cut <= number), 1.0)]
    # A hat function of height 1 over each cut point, 0 at its neighbours.
    hats = [float(np.interp(number, cuts, unit)) for unit in np.eye(len(cuts))]
    # A number at a cut point has its id alone; one that float32 does not tell from it does, too.
    ends = [*(np.float32(weight) == 1 for weight in hats[1:]), False]
    return [
        (2 + k, weight)
        for k, (weight, end) in enumerate(zip(hats, ends, strict=True))
        if np.float32(weight) > 0 and not end
    ]


class _Part:
    """A categorical feature, a bucketized one, or a raw column that a cross reads."""

    def __init__(self, schema: Schema, name: str) -> None:
        self.schema = schema
        self.name = name
        self.feature = schema.spec.by_name.get(name)
        self.column = getattr(self.feature, "source", name)

    def values(self, row: Row) -> list[object] | None:
        """The row's values without nulls; None for a null."""
        value = row.get(self.column)
        if isinstance(value, list | tuple):
            return [item for item in value if not self.is_missing(item)]
        return None if self.is_missing(value) else [value]

    def is_missing(self, value: object) -> bool:
        empty = isinstance(self.feature, Categorical) and self.feature.empty_as_null
        return is_null(value) or (empty and value in ("", b""))

    @property
    def is_vector(self) -> bool:
        return isinstance(self.feature, Bucketized) and self.feature.size > 1

    def vector_places(self, row: Row) -> list[int]:
        """The place of each component that is not null: its buckets follow the ones before."""
        value = row.get(self.column)
        items = value if isinstance(value, list | tuple) else []
        buckets = len(self.schema.boundaries[self.name]) + 1
        pairs = [(i, item) for i, item in enumerate(items) if not is_null(item)]
        return [i * buckets + self.bucket(item) for i, item in pairs]

    def ids(self, row: Row) -> list[tuple[int, float]]:
        if self.is_vector:
            return [(2 + place, 1.0) for place in self.vector_places(row)] or [(1, 1.0)]
        values = self.values(row)
        if values is None:
            return [(1, 1.0)]
        weights = self.weights(row, len(values))
        ids = [(self.id(value), weight) for value, weight in zip(values, weights, strict=True)]
        return [(id_, weight) for id_, weight in ids if id_ is not None]

    def weights(self, row: Row, count: int) -> list[float]:
        name = self.feature.weights if isinstance(self.feature, Categorical) else None
        if name is None:
            return [1.0] * count
        value, weights = row.get(self.column), row.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        listed = weights if isinstance(weights, list | tuple) else [weights]
        if len(listed) != len(values) or any(
            is_null(w) or not 0 <= w < math.inf  # type: ignore[operator]
            for w in listed
        ):
            raise ReferenceError(weights)
        pairs = zip(values, listed, strict=True)
        return [float(np.float32(w)) for v, w in pairs if not self.is_missing(v)]  # type: ignore[arg-type]

    @property
    def known(self) -> list[object] | None:
        key = self.schema.vocabulary_key(self.name)
        if key not in self.schema.vocabularies or self.hashed:
            return None
        values = self.schema.vocabularies[key].values
        return list(values.tolist() if isinstance(values, np.ndarray) else values.to_pylist())

    @property
    def hashed(self) -> bool:
        feature = self.feature
        return isinstance(feature, Categorical) and bool(
            feature.hash_buckets or feature.num_buckets
        )

    @property
    def reads_text(self) -> bool:
        if self.known:
            return isinstance(self.known[0], bytes)
        return self.schema.columns[self.column].kind == "string"

    def plain(self, value: object) -> bytes | int:
        return as_text(value) if self.reads_text else as_integer(value)

    def id(self, value: object) -> int | None:
        feature = self.feature
        if isinstance(feature, Bucketized):
            return 2 + self.bucket(value)
        plain = self.plain(value) if not self.is_identity else as_integer(value)
        if self.is_identity:
            assert isinstance(feature, Categorical) and isinstance(plain, int)
            inside = 0 <= plain < (feature.num_buckets or 0)
            if not inside and feature.default_value is not None:
                return 2 + int(feature.default_value)
            return 2 + plain if inside else (None if feature.oov == "drop" else 0)
        if isinstance(feature, Categorical) and feature.hash_buckets:
            return 2 + self.hash(plain) % feature.hash_buckets
        oov = feature.oov_buckets if isinstance(feature, Categorical) else 0
        if self.known is not None and plain in self.known:
            return 2 + oov + self.known.index(plain)
        if self.default is not None:
            return self.id(self.default)
        if isinstance(feature, Categorical) and feature.oov == "drop":
            return None
        return 2 + self.hash(plain) % oov if oov else 0

    @property
    def default(self) -> object:
        return self.feature.default_value if isinstance(self.feature, Categorical) else None

    @property
    def is_identity(self) -> bool:
        return isinstance(self.feature, Categorical) and bool(self.feature.num_buckets)

    @staticmethod
    def hash(plain: bytes | int) -> int:
        return fingerprint64(plain if isinstance(plain, bytes) else str(plain))

    def bucket(self, value: object) -> int:
        cuts = self.schema.boundaries[self.name]
        return sum(1 for cut in cuts if cut <= as_number(value))

    def keys(self, row: Row) -> list[int]:
        """The integers by which the values enter a hashed cross."""
        if self.is_vector:
            return self.vector_places(row)
        return [self.key(value) & MASK for value in self.values(row) or []]

    def key(self, value: object) -> int:
        feature = self.feature
        if isinstance(feature, Bucketized):
            return self.bucket(value)
        plain = as_integer(value) if self.is_identity else self.plain(value)
        if self.default is not None and isinstance(feature, Categorical):
            buckets = feature.num_buckets
            known = range(buckets) if buckets else self.known or []
            if plain not in known:
                plain = self.plain(self.default)
        if isinstance(feature, Categorical) and feature.vocabulary is not None:
            assert self.known is not None
            if plain in self.known:
                return self.known.index(plain)
            oov = feature.oov_buckets
            return len(self.known) + self.hash(plain) % oov if oov else -1
        return self.hash(plain) if isinstance(plain, bytes) else plain


def _cross_ids(schema: Schema, cross: Crossed, row: Row) -> list[tuple[int, float]]:
    parts = [_Part(schema, name) for name in cross.parts]
    if cross.hash_buckets:
        ids = []
        for keys in product(*(part.keys(row) for part in parts)):
            hashed = (0xDECAFCAFFE if cross.hash_key is None else cross.hash_key) & MASK
            for key in keys:
                hashed = fingerprint_cat64(hashed, key)
            ids.append(2 + hashed % cross.hash_buckets)
        return [(id_, 1.0) for id_ in ids]
    local = [[id_ for id_, _ in part.ids(row) if id_ != 1] for part in parts]
    known = [tuple(entry) for entry in schema.vocabularies[cross.name].values.tolist()]
    return [(2 + known.index(ids) if ids in known else 0, 1.0) for ids in product(*local)]


def _dense(schema: Schema, feature: Numeric, row: Row) -> list[float]:
    value = row.get(feature.source)
    if is_null(value):
        items: list[object] = [None] * feature.size
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    if len(items) != feature.size:
        raise ReferenceError(value)
    fit = schema.numerics[feature.name]
    values = []
    for i, item in enumerate(items):
        if is_null(item):
            values.append(float(fit.fill[i]))
            continue
        cuts = fit.boundaries[i] if feature.transform == "quantile" else np.empty(0)
        scaled = scale(feature.transform, as_number(item), cuts, fit.shift[i], fit.scale[i])
        with np.errstate(over="ignore"):
            values.append(float(np.float32(scaled)))
        if not math.isfinite(values[-1]):
            raise ReferenceError(item)
    flags = [float(is_null(item)) for item in items]
    return values + (flags if feature.missing == "indicator" else [])


def _counts(schema: Schema, feature: Indicator, row: Row) -> list[float]:
    """The sum of the weights of each known id of the source."""
    source = schema.spec.by_name[feature.source]
    is_cross = isinstance(source, Crossed)
    ids = _cross_ids(schema, source, row) if is_cross else _Part(schema, source.name).ids(row)
    counts = [0.0] * (schema.id_count(source.name) - 2)
    for id_, weight in ids:
        if id_ >= 2:
            counts[id_ - 2] += weight
    return counts


def encode_row(schema: Schema, row: Row) -> EncodedRow:
    """One example, as training sees it."""
    encoded = EncodedRow()
    dense = {
        feature.name: _dense(schema, feature, row)
        for feature in schema.spec.all_features
        if isinstance(feature, Numeric) and feature.dense_width
    }
    encoded.dense = [value for values in dense.values() for value in values]
    for feature in schema.spec.all_features:
        if isinstance(feature, Indicator):
            encoded.dense += _counts(schema, feature, row)
    for slot in schema.slots:
        feature = schema.spec.by_name[slot.name]
        if isinstance(feature, Numeric) and feature.has_cut_points:
            encoded.cells.append(_cell_of_cut_points(schema, feature, row))
        elif isinstance(feature, Numeric):
            encoded.cells.append([(2 + i, value) for i, value in enumerate(dense[slot.name])])
        elif isinstance(feature, Crossed):
            encoded.cells.append(_cross_ids(schema, feature, row))
        else:
            encoded.cells.append(_Part(schema, slot.name).ids(row))
    return encoded
