"""What one column holds, counted exactly in bounded memory from one batch after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.counting import ValueCounter

TOP = 5
_COUNTER_BYTES = 24 << 20
_TEXT_CHARACTERS = 4_096
"""Longer text is told apart by its beginning."""
_MAGNITUDE = np.int64(2**63 - 1)


def column_statistics(
    batches: Iterable[pa.Array], *, spill_dir: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Return how many values are missing and different, the most frequent ones, and the range."""
    found: dict[str, Any] = {"rows": 0, "missing": 0, "different": 0, "top": []}
    counter: ValueCounter | None = None
    bounds: list[Any] = []
    shown: Callable[[Any], str] = str
    try:
        for batch in batches:
            found["rows"] += len(batch)
            found["missing"] += batch.null_count
            values = _flat(batch).drop_null()
            if not len(values):
                continue
            if counter is None:
                counter = ValueCounter(
                    "bytes" if _is_text(values.type) else "int64",
                    memory_limit_bytes=_COUNTER_BYTES,
                    spill_dir=spill_dir,
                )
                shown = _shown(values.type)
            bounds = _wider(bounds, values)
            counts = pc.value_counts(_countable(values))
            counter.add(counts.field("values"), counts.field("counts").to_numpy())
        if counter is not None:
            keys, count_V = counter.result(max_size=TOP)
            listed = keys.to_pylist() if isinstance(keys, pa.Array) else keys.tolist()
            told = zip(map(shown, listed), count_V.tolist(), strict=True)
            found["top"] = [list(pair) for pair in told]
            found["different"] = counter.distinct
    finally:
        if counter is not None:
            counter.close()
    return {**found, "range": bounds} if bounds else found


def _flat(values: pa.Array) -> pa.Array:
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    return values.flatten() if nested else values


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _wider(bounds: list[Any], values: pa.Array) -> list[Any]:
    """Return the least and the greatest number so far; of text and booleans there are none."""
    if pa.types.is_floating(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)))
    elif not pa.types.is_integer(values.type):
        return bounds
    if not len(values):
        return bounds
    found = pc.min_max(values).as_py()
    both = [*bounds, found["min"], found["max"]]
    return [min(both), max(both)]


def _countable(values: pa.Array) -> pa.Array:
    """Return text as it is, and all else as integers in the order of the values."""
    if _is_text(values.type):
        longest = pc.max(pc.binary_length(values)).as_py()
        return pc.utf8_slice_codeunits(values, 0, _TEXT_CHARACTERS) if longest > 65_536 else values
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int8()).cast(pa.int64())
    if pa.types.is_floating(values.type):
        return pa.array(_ordered_bits(values.cast(pa.float64()).to_numpy()))
    return values.cast(pa.int64())


def _ordered_bits(values_B: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return integers that sort as the numbers do; both zeros are one, and so is every NaN."""
    bits_B = np.where(np.isnan(values_B), np.nan, values_B + 0.0).view(np.int64)
    return np.where(bits_B < 0, bits_B ^ _MAGNITUDE, bits_B)


def _shown(kind: pa.DataType) -> Callable[[Any], str]:
    """Return what makes text of what was counted of a type."""
    if _is_text(kind):
        return bytes.decode
    if pa.types.is_boolean(kind):
        return lambda key: str(bool(key))
    if pa.types.is_floating(kind):
        return lambda key: str(_number(key))
    return str


def _number(ordered: int) -> float:
    bits = np.int64(ordered)
    return float((bits ^ _MAGNITUDE if bits < 0 else bits).view(np.float64))


def drift(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the distance of two splits' shares of their most frequent values, 0 to 1."""
    if not one["rows"] or not other["rows"]:
        return 0.0
    shares = [
        {name: count / split["rows"] for name, count in split["top"]} for split in (one, other)
    ]
    # In order: a sum of floats is not the same in every order.
    both = sorted(set(shares[0]) & set(shares[1]))
    gap = sum(abs(shares[0][name] - shares[1][name]) for name in both)
    rest = abs(sum(shares[0][n] for n in both) - sum(shares[1][n] for n in both))
    missing = abs(one["missing"] / one["rows"] - other["missing"] / other["rows"])
    return min(1.0, float(max((gap + rest) / 2, missing)))
