"""WarmupRows: a few raw training rows, which a bundle stores with their scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from widedeep.bundle.plain_json import plain
from widedeep.data.fragments import Source, origin_of
from widedeep.data.reader import EpochPlan
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, WideDeepError
from widedeep.features import Bucketized, Categorical, Numeric
from widedeep.schema import ColumnType, Schema

WARMUP_ROWS = 8
_SAMPLE_ROWS = 256  # on which an export compares the bundle with the trainer
_MADE_UP_ROWS = 32


class WarmupRows:
    """Rows kept from a fragment that training reads anyway: keeping them costs no reading."""

    def __init__(self, columns: Mapping[str, ColumnType], seed: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sample: pa.Table | None = None
        """More of them, as they were read; never written anywhere."""
        self._types = columns
        self._columns = list(columns)
        self._seed = seed
        self._wanted: tuple[str, int] | None = None

    def choose(self, plan: EpochPlan) -> None:
        """Wait for the first fragment of an epoch, unless rows are kept already."""
        if not self.rows:
            fragment = plan.pools[0].shares[0].fragment
            self._wanted = (fragment.origin, fragment.first_row)

    def read(self, source: Source) -> None:
        """Read the fragment waited for, which nobody else will."""
        if self._wanted is None:
            return
        for fragment in source.fragments:
            if (fragment.origin, fragment.first_row) == self._wanted:
                self.see(source.read(fragment, self._columns))

    def see(self, table: pa.Table) -> None:
        """Keep rows of a table if it is the fragment waited for."""
        if self._wanted is None or origin_of(table) != self._wanted:
            return
        self._wanted = None
        picked = np.random.default_rng(self._seed).permutation(table.num_rows)[:_SAMPLE_ROWS]
        # Slices, for Arrow cannot take rows of every type (of string views, for one).
        columns = table.select(self._columns)
        self.sample = pa.concat_tables([columns.slice(row, 1) for row in picked.tolist()])
        columns = pa.table({name: self._column(table, name) for name in self._columns})
        first = np.sort(picked[:WARMUP_ROWS]).tolist()
        rows = [columns.slice(row, 1).to_pylist()[0] for row in first]
        self.rows = [kept for kept in map(_storable, rows) if kept is not None]

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        """Where the schema knows no unit of its times, they are microseconds and no text."""
        column = table.column(name)
        is_time = pa.types.is_temporal(column.type)
        if is_time and self._types[name].storage is None:
            return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return column


def _storable(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row as JSON holds it, or None where it cannot."""
    try:
        kept: dict[str, Any] = plain(row, "row")
    except BundleError:
        return None
    return kept


def made_up_rows(transform: Transform) -> list[dict[str, Any]]:
    """Return rows of known, unseen and missing values, lists and the ends of numbers."""
    schema = transform.schema
    columns = transform.columns(targets=False)
    values = {name: list(_column_values(schema, name)) for name in columns}
    weighed: dict[str, str] = {}
    for feature in schema.spec.all_features:
        if isinstance(feature, Categorical) and feature.weights is not None:
            weighed[feature.weights] = feature.source
    orders = {
        name: np.random.default_rng(at).permutation(len(values[name]) + 1).tolist()
        for at, name in enumerate(columns)
    }
    rows = []
    for number in range(_MADE_UP_ROWS):
        row = {
            name: _pick(schema, name, values[name], orders[name][number % len(orders[name])])
            for name in columns
            if name not in weighed
        }
        for name, source in weighed.items():
            if name in columns and source in row:
                held, nested = row[source], schema.columns[name].nested
                weights = [1.0 + 0.5 * i for i in range(len(held))] if nested and held else held
                row[name] = weights if nested else None if held is None else 0.5
        with contextlib.suppress(WideDeepError):
            transform.rows([row])
            rows.append(row)
    return rows


def _pick(schema: Schema, name: str, values: list[Any], at: int) -> Any:
    """Return one of a column's values, or a list of up to three, or the null that follows them."""
    if at == len(values):
        return None
    if schema.columns[name].nested and not isinstance(values[at], list):
        return [values[(at + i) % len(values)] for i in range(at % 4)]
    return values[at]


def _ends(schema: Schema, name: str) -> list[Any]:
    """Return the first and the last value of a vocabulary, if there is one."""
    vocabulary = schema.vocabularies.get(schema.vocabulary_key(name))
    count = 0 if vocabulary is None else len(vocabulary)
    return [vocabulary.value(i) for i in sorted({0, count - 1})] if vocabulary and count else []


def _column_values(schema: Schema, name: str) -> Iterator[Any]:
    """Yield values of one column for each feature that reads it; at least one."""
    plain: dict[str, type] = {"string": str, "int": int, "float": float, "bool": bool}
    kind = plain[schema.columns[name].kind]
    for feature in schema.spec.all_features:
        if getattr(feature, "source", None) != name:
            continue
        if isinstance(feature, Numeric):
            fit = schema.numerics[feature.name]
            for ends in (fit.minimum, fit.mean, fit.maximum):
                numbers = [kind(value) if np.isfinite(value) else kind(0) for value in ends]
                yield numbers if feature.size > 1 else numbers[0]
            if feature.size > 1:
                return
        elif isinstance(feature, Bucketized):
            cuts = schema.boundaries[feature.name]
            yield from (kind(cut) for cut in (*cuts[:1], *(cuts[-1:] + 1)))
        elif isinstance(feature, Categorical) and feature.num_buckets:
            yield from (kind(0), kind(feature.num_buckets - 1))
        elif isinstance(feature, Categorical):
            yield from map(kind, _ends(schema, feature.name))
    if name not in schema.spec.by_name:  # a raw column that a cross may read
        yield from map(kind, _ends(schema, name))
    yield "an unseen value" if kind is str else kind(1)
