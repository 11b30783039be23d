"""Schemas made by hand, for tests of what uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

import widedeep as wd
from widedeep.features import Numeric
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary

__all__ = ["combinations", "make_schema", "numeric_fit", "vocabulary"]


def vocabulary(values: Sequence[str | bytes] | Sequence[int]) -> Vocabulary:
    """Known values, text or integers, in the order of their ids."""
    counts = np.zeros(len(values), np.int64)
    if values and isinstance(values[0], int):
        return Vocabulary(values=np.array(values, np.int64), counts=counts)
    texts = [value.encode() if isinstance(value, str) else value for value in values]
    return Vocabulary(values=pa.array(texts, pa.large_binary()), counts=counts)


def combinations(rows: Sequence[Sequence[int]], width: int) -> Vocabulary:
    """Learned combinations of part ids."""
    values = np.array(rows, np.int64).reshape(-1, width)
    return Vocabulary(values=values, counts=np.zeros(len(values), np.int64))


def numeric_fit(
    size: int = 1,
    *,
    boundaries: Sequence[Sequence[float]] = (),
    shift: float = 0.0,
    scale: float = 1.0,
    fill: float = 0.0,
) -> NumericFit:
    """What was learned for a number; the same for each component."""
    return NumericFit(
        boundaries=tuple(np.array(cuts, np.float64) for cuts in boundaries),
        shift=np.full(size, shift),
        scale=np.full(size, scale),
        fill=np.full(size, fill, np.float32),
        minimum=np.zeros(size),
        maximum=np.zeros(size),
        mean=np.zeros(size),
    )


def make_schema(
    features: Sequence[object],
    *,
    kinds: Mapping[str, str] | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    boundaries: Mapping[str, Sequence[float]] | None = None,
    numerics: Mapping[str, NumericFit] | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
    **spec_options: Any,
) -> Schema:
    """A schema of these features. Columns that ``kinds`` does not name hold text."""
    spec = wd.FeatureSpec(features=features, **spec_options)
    columns = {name: ColumnType(kind="string") for name in spec.columns()}
    columns |= {name: ColumnType(kind=kind) for name, kind in (kinds or {}).items()}  # type: ignore[arg-type]
    fits = {f.name: numeric_fit(f.size) for f in spec.all_features if isinstance(f, Numeric)}
    return Schema(
        spec=spec,
        columns=columns,
        vocabularies=dict(vocabularies or {}),
        boundaries={k: np.array(v, np.float64) for k, v in (boundaries or {}).items()},
        numerics=fits | dict(numerics or {}),
        classes=dict(classes or {}),
    )
