"""What the examples look like: missing values, cardinalities, top values, label rates, drift.

A column is read batch by batch and counted in bounded memory, so that a report on many examples
needs no more than one on few. Sums are exact and ties are in order: engines that write the same
rows into other shards get the same figures to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.join.column_counts import column_statistics, drift
from widedeep.data.join.config import SPLITS
from widedeep.data.join.rates import RateSums

_BUCKETS = 24
_COLUMNS_AT_ONCE = 2
_BATCH_ROWS = 65_536


def _batches(
    folder: Path, manifest: Mapping[str, Any], split: str, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a split in small batches."""
    for shard in manifest["splits"][split]["shards"]:
        with pq.ParquetFile(folder / shard["file"]) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(names)):
                yield batch.select(names)


def statistics(
    folder: Path, manifest: Mapping[str, Any], *, spill_dir: Path | None = None
) -> dict[str, Any]:
    """Return the statistics of a dataset."""
    columns = [(column["name"], column["role"]) for column in manifest["columns"]]
    filled = [split for split in SPLITS if manifest["splits"][split]["rows"]]

    def of_column(column: tuple[str, str]) -> dict[str, Any]:
        name, role = column
        found = {}
        for split in filled:
            values = (batch.column(0) for batch in _batches(folder, manifest, split, [name]))
            found[split] = column_statistics(values, spill_dir=spill_dir)
        entry: dict[str, Any] = {"role": role, "splits": found}
        if role not in ("request", "event time", "weight") and len(filled) > 1:
            entry["drift"] = {split: drift(found[filled[0]], found[split]) for split in filled[1:]}
        return entry

    # Reading and counting run outside Python's lock; two columns at a time bound the memory.
    with ThreadPoolExecutor(_COLUMNS_AT_ONCE) as pool:
        rates = pool.submit(_rates, folder, manifest, columns, filled)
        entries = pool.map(of_column, columns)
        by_column = {name: entry for (name, _), entry in zip(columns, entries, strict=True)}
    return {
        "counts": manifest["counts"],
        "notes": manifest.get("notes", []),
        "splits": {
            name: {key: split[key] for key in ("rows", "labels", "first_us", "last_us")}
            for name, split in manifest["splits"].items()
        },
        "rates": rates.result(),
        "columns": by_column,
    }


def _rates(
    folder: Path,
    manifest: Mapping[str, Any],
    columns: Sequence[tuple[str, str]],
    filled: Sequence[str],
) -> dict[str, Any]:
    """Return each label's rate over time and by position, over all splits."""
    splits = [manifest["splits"][split] for split in filled]
    first = min(split["first_us"] for split in splits)
    last = max(split["last_us"] for split in splits)
    labels = [name for name, role in columns if role == "label"]
    sums = {"by_time": RateSums(first, max(1, math.ceil((last - first + 1) / _BUCKETS)))}
    keys = {"by_time": next(name for name, role in columns if role == "event time")}
    for name, role in columns:
        if role == "position":
            sums["by_position"], keys["by_position"] = RateSums(), name
    wanted = [*dict.fromkeys([*keys.values(), "weight", *labels])]
    for split in filled:
        for batch in _batches(folder, manifest, split, wanted):
            weight_B = batch.column("weight").to_numpy()
            label_columns = {
                name: batch.column(name).to_numpy().astype("float64") for name in labels
            }
            for key, name in keys.items():
                sums[key].add(batch.column(name), weight_B, label_columns)
    return {label: {key: groups.rates(label) for key, groups in sums.items()} for label in labels}
