"""Rows made up from a schema, on which exported models are compared with what they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from widedeep.data.transform import Transform
from widedeep.errors import WideDeepError
from widedeep.schema import Schema

_MADE_UP_ROWS = 32


def made_up_rows(transform: Transform) -> list[dict[str, Any]]:
    """Return rows of known, unseen and missing values, lists and the ends of numbers."""
    schema = transform.schema
    columns = transform.columns(targets=False)
    values = {name: list(_column_values(schema, name)) for name in columns}
    weighed: dict[str, str] = {}
    for feature in schema.spec.all_features:
        if feature.weight_column is not None:
            weighed[feature.weight_column] = feature.input_columns[0]
    parallel = _parallel_columns(schema)
    orders = {
        name: np.random.default_rng(seed).permutation(len(values[name]) + 1).tolist()
        for seed, name in enumerate(columns)
    }
    rows = []
    for number in range(_MADE_UP_ROWS):
        row = {
            name: _pick(schema, name, values[name], orders[name][number % len(orders[name])])
            for name in columns
            if name not in weighed
        }
        for name, source in parallel.items():
            choices, first = [*values[name], None], row[source]
            picks = range(number, number + len(first or ()))
            row[name] = first if first is None else [choices[i % len(choices)] for i in picks]
        for name, source in weighed.items():
            if name in columns and source in row:
                value, nested = row[source], schema.columns[name].nested
                weights = [1.0 + 0.5 * i for i in range(len(value))] if nested and value else value
                row[name] = weights if nested else None if value is None else 0.5
        with contextlib.suppress(WideDeepError):
            transform.rows([row])
            rows.append(row)
    return rows


def _parallel_columns(schema: Schema) -> dict[str, str]:
    """Return the list columns of parallel sequences, with the column whose lists they follow."""
    pairs: dict[str, str] = {}
    for feature in schema.spec.all_features:
        if feature.parallel_to is not None:
            (own, *_), (other, *_) = (
                schema.spec.by_name[name].input_columns
                for name in (feature.name, feature.parallel_to)
            )
            if own != other and schema.columns[own].nested and schema.columns[other].nested:
                pairs[own] = other
    return pairs


def _pick(schema: Schema, name: str, values: list[Any], index: int) -> Any:
    """Return one of a column's values, or a list of up to three, or the null that follows them."""
    if index == len(values):
        return None
    if schema.columns[name].nested and not isinstance(values[index], list):
        return [values[(index + i) % len(values)] for i in range(index % 4)]
    return values[index]


def _column_values(schema: Schema, name: str) -> Iterator[Any]:
    """Yield values of one column for each feature that reads it; at least one."""
    plain: dict[str, type] = {"string": str, "int": int, "float": float, "bool": bool}
    kind = plain[schema.columns[name].kind]
    for feature in schema.spec.all_features:
        if feature.main_column != name:
            continue
        for value in feature.example_values(schema):
            yield [kind(number) for number in value] if isinstance(value, list) else kind(value)
        if feature.number_input is not None and feature.number_input.size > 1:
            return
    if name not in schema.spec.by_name:  # a raw column that a cross may read
        vocabulary = schema.vocabularies.get(name)
        yield from map(kind, () if vocabulary is None else vocabulary.ends())
    yield "an unseen value" if kind is str else kind(1)
