"""What the examples look like: missing values, cardinalities, top values, label rates, drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep.data.join.config import SPLITS

__all__ = ["column_statistics", "drift", "label_rates"]

TOP = 5
_BUCKETS = 24
_COLUMNS_AT_ONCE = 2


def read_column(
    folder: Path, manifest: Mapping[str, Any], split: str, name: str
) -> pa.ChunkedArray:
    """Return one column of a split; no more than a column is held."""
    shards = manifest["splits"][split]["shards"]
    chunks: list[pa.Array] = []
    for shard in shards:
        chunks += pq.read_table(folder / shard["file"], columns=[name]).column(0).chunks
    return pa.chunked_array(chunks) if chunks else pa.chunked_array([pa.array([], pa.null())])


def column_statistics(values: pa.ChunkedArray) -> dict[str, Any]:
    """Return how many values are missing and different, the most frequent ones, and the range.

    Lists are counted value by value; an empty list is not missing.
    """
    total, missing = len(values), values.null_count
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = pa.chunked_array([pc.list_flatten(chunk) for chunk in values.chunks])
    counts = values.drop_null().value_counts()
    found: dict[str, Any] = {"rows": total, "missing": missing, "different": len(counts)}
    if not len(counts):
        return {**found, "top": []}
    found["top"] = _most_frequent(counts.field("values"), counts.field("counts").to_numpy())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        bounds = pc.min_max(values).as_py()
        found["range"] = [bounds["min"], bounds["max"]]
    return found


def _most_frequent(values: pa.Array, count_V: np.ndarray[Any, Any]) -> list[list[Any]]:
    """Return the most frequent values as text with their counts, those of one count in order.

    What comes first in the data has no say, so that the report is the same of any engine.
    """
    wanted = min(TOP, len(count_V))
    least = np.partition(count_V, -wanted)[-wanted]
    names = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
    above_A, tied_T = np.flatnonzero(count_V > least), np.flatnonzero(count_V == least)
    above_A = above_A[pc.sort_indices(names.take(pa.array(above_A))).to_numpy()]
    above_A = above_A[np.argsort(-count_V[above_A], kind="stable")]
    first = pc.bottom_k_unstable(names.take(pa.array(tied_T)), wanted - len(above_A)).to_numpy()
    chosen = [*above_A.tolist(), *tied_T[first].tolist()]
    return [[str(values[at].as_py()), int(count_V[at])] for at in chosen]


def label_rates(
    labels: pa.ChunkedArray, weights: pa.ChunkedArray, by: pa.ChunkedArray, buckets: int | None
) -> list[dict[str, float]]:
    """Return the weighted mean of a label by time (equal spans) or by each value of a column.

    Args:
        labels: The label column.
        weights: The weights.
        by: Times or positions, as integers; nulls are left out.
        buckets: Number of equal spans; None: each value by itself.
    """
    present = pc.is_valid(by).to_numpy()
    key_B = by.drop_null().to_numpy().astype(np.int64)
    label_B = labels.to_numpy().astype(np.float64)[present]
    weight_B = weights.to_numpy()[present]
    if not len(key_B):
        return []
    low = int(key_B.min())
    span = 1 if buckets is None else max(1, math.ceil((int(key_B.max()) - low + 1) / buckets))
    group_B = (key_B - low) // span
    if buckets is None:
        keys, group_B = np.unique(group_B, return_inverse=True)
    else:  # Equal spans are few: counting needs no sort.
        keys = np.arange(buckets)
    rows = np.bincount(group_B)
    weight = np.bincount(group_B, weight_B)
    positive = np.bincount(group_B, weight_B * label_B)
    return [
        {"from": low + int(key) * span, "rows": int(rows[at]), "rate": positive[at] / weight[at]}
        for at, key in ((at, keys[at]) for at in np.flatnonzero(rows)[:200])
    ]


def drift(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return how far apart the shares of the most frequent values of two splits are, from 0 to 1.

    Half the sum of the differences over the first's top values and the rest together (total
    variation distance of that coarse distribution).
    """
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


def statistics(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statistics of a dataset.

    Args:
        folder: Where the shards are.
        manifest: Which shards there are.
    """
    columns = [(column["name"], column["role"]) for column in manifest["columns"]]
    filled = [split for split in SPLITS if manifest["splits"][split]["rows"]]

    def of_column(column: tuple[str, str]) -> dict[str, Any]:
        name, role = column
        found = {
            split: column_statistics(read_column(folder, manifest, split, name)) for split in filled
        }
        entry: dict[str, Any] = {"role": role, "splits": found}
        if role not in ("request", "event time", "weight") and len(filled) > 1:
            entry["drift"] = {split: drift(found[filled[0]], found[split]) for split in filled[1:]}
        return entry

    # Reading and counting run outside Python's lock; two columns at a time bound the memory.
    with ThreadPoolExecutor(_COLUMNS_AT_ONCE) as pool:
        entries = pool.map(of_column, columns)
        by_column = {name: entry for (name, _), entry in zip(columns, entries, strict=True)}
    return {
        "counts": manifest["counts"],
        "splits": {
            name: {key: split[key] for key in ("rows", "labels", "first_us", "last_us")}
            for name, split in manifest["splits"].items()
        },
        "rates": _rates(folder, manifest, columns, filled),
        "columns": by_column,
    }


def _rates(
    folder: Path,
    manifest: Mapping[str, Any],
    columns: Sequence[tuple[str, str]],
    filled: Sequence[str],
) -> dict[str, Any]:
    """Return each label's rate over time and by position, over all splits."""

    def whole(name: str) -> pa.ChunkedArray:
        parts = [read_column(folder, manifest, split, name).chunks for split in filled]
        return pa.chunked_array([chunk for chunks in parts for chunk in chunks])

    weights = whole("weight")
    asked = [("event time", "by_time", _BUCKETS), ("position", "by_position", None)]
    found: dict[str, Any] = {}
    for label, role in columns:
        if role != "label":
            continue
        labels = whole(label)
        found[label] = {
            key: label_rates(labels, weights, whole(name), buckets)
            for wanted, key, buckets in asked
            for name, of in columns
            if of == wanted
        }
    return found
