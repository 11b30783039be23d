"""Statistics of a dataset as JSON, and its report page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.data.arrow_types import is_text
from widedeep.data.counting import ValueCounter
from widedeep.join.config import SPLITS
from widedeep.join.times import moment_text
from widedeep.page import column_chart, document, note, section, table

TOP = 5
_COUNTER_BYTES = 24 << 20
_TEXT_CHARACTERS = 4_096
"""Characters by which longer texts are distinguished."""
_MAGNITUDE = np.int64(2**63 - 1)


def column_statistics(
    batches: Iterable[pa.Array], *, spill_dir: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Return how many values are missing and different, the most frequent ones, and the range."""
    summary: dict[str, Any] = {"rows": 0, "missing": 0, "different": 0, "top": []}
    counter: ValueCounter | None = None
    bounds: list[Any] = []
    as_text: Callable[[Any], str] = str
    try:
        for batch in batches:
            summary["rows"] += len(batch)
            summary["missing"] += batch.null_count
            values = _flat(batch).drop_null()
            if not len(values):
                continue
            if counter is None:
                counter = ValueCounter(
                    "bytes" if is_text(values.type) else "int64",
                    memory_limit_bytes=_COUNTER_BYTES,
                    spill_dir=spill_dir,
                )
                as_text = _shown(values.type)
            bounds = _wider(bounds, values)
            counts = pc.value_counts(_countable(values))
            counter.add(counts.field("values"), counts.field("counts").to_numpy())
        if counter is not None:
            keys, count_V = counter.result(max_size=TOP)
            listed = keys.to_pylist() if isinstance(keys, pa.Array) else keys.tolist()
            pairs = zip(map(as_text, listed), count_V.tolist(), strict=True)
            summary["top"] = [list(pair) for pair in pairs]
            summary["different"] = counter.distinct
    finally:
        if counter is not None:
            counter.close()
    return {**summary, "range": bounds} if bounds else summary


def _flat(values: pa.Array) -> pa.Array:
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    return values.flatten() if nested else values


def _wider(bounds: list[Any], values: pa.Array) -> list[Any]:
    """Return the least and the greatest number so far; of text and booleans there are none."""
    if pa.types.is_floating(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)))
    elif not pa.types.is_integer(values.type):
        return bounds
    if not len(values):
        return bounds
    ends = pc.min_max(values).as_py()
    both = [*bounds, ends["min"], ends["max"]]
    return [min(both), max(both)]


def _countable(values: pa.Array) -> pa.Array:
    """Return text as it is, and all else as integers in the order of the values."""
    if is_text(values.type):
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
    if is_text(kind):
        return bytes.decode
    if pa.types.is_boolean(kind):
        return lambda key: str(bool(key))
    if pa.types.is_floating(kind):
        return lambda key: str(_number(key))
    return str


def _number(ordered: int) -> float:
    bits = np.int64(ordered)
    return float((bits ^ _MAGNITUDE if bits < 0 else bits).view(np.float64))


def drift(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the distance of two splits' shares of their most frequent values, 0 to 1."""
    if not one["rows"] or not other["rows"]:
        return 0.0
    shares = [
        {name: count / split["rows"] for name, count in split["top"]} for split in (one, other)
    ]
    # In order: a sum of floats is not the same in every order.
    both = sorted(set(shares[0]) & set(shares[1]))
    gap = sum(abs(shares[0][name] - shares[1][name]) for name in both)
    remainder = abs(sum(shares[0][n] for n in both) - sum(shares[1][n] for n in both))
    missing = abs(one["missing"] / one["rows"] - other["missing"] / other["rows"])
    return min(1.0, float(max((gap + remainder) / 2, missing)))


MOST_GROUPS = 200


class RateSums:
    """The weighted mean of each label in each group of rows; the first 200 groups are kept."""

    def __init__(self, low: int = 0, span: int = 1) -> None:
        self._low, self._span = low, span
        self._rows: dict[int, int] = {}
        self._weights: dict[int, float] = {}
        self._labels: dict[str, dict[int, float]] = {}

    def add(
        self,
        keys: pa.Array,
        weight_B: NDArray[np.float64],
        labels: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Add rows."""
        present_B = np.asarray(keys.is_valid())
        key_B = keys.drop_null().to_numpy().astype(np.int64)
        weight_B = weight_B[present_B]
        # (G,) groups of these rows, ascending; (B,) which of them each row belongs to
        groups_G, group_B = np.unique((key_B - self._low) // self._span, return_inverse=True)
        groups = groups_G.tolist()
        _add(self._rows, groups, np.bincount(group_B).tolist())
        _add(self._weights, groups, np.bincount(group_B, weight_B).tolist())
        for name, label_B in labels.items():
            sums = self._labels.setdefault(name, {})
            _add(sums, groups, np.bincount(group_B, weight_B * label_B[present_B]).tolist())
        for group in sorted(self._rows)[MOST_GROUPS:]:
            del self._rows[group], self._weights[group]
            for sums in self._labels.values():
                del sums[group]

    def rates(self, label: str) -> list[dict[str, Any]]:
        """Return of each group where it begins, its rows, and the weighted mean of a label."""
        return [
            {
                "from": self._low + group * self._span,
                "rows": self._rows[group],
                "rate": self._labels[label][group] / self._weights[group],
            }
            for group in sorted(self._rows)
        ]


def _add(totals: dict[int, Any], groups: Sequence[int], values: Sequence[float]) -> None:
    for group, value in zip(groups, values, strict=True):
        totals[group] = totals.get(group, 0) + value


_BUCKETS = 24


def time_bucket(first_us: int, last_us: int) -> int:
    """Return the microseconds of each group of a rate over time."""
    return max(1, math.ceil((last_us - first_us + 1) / _BUCKETS))


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


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the rows of a dataset show."""

    # Of each column the values of each split that has rows, as column_statistics returns them
    columns: Mapping[str, Mapping[str, Mapping[str, Any]]]
    rates: Mapping[str, Any]  # The mean of each label by time and by position


def measure(
    folder: Path, manifest: Mapping[str, Any], *, spill_dir: Path | None = None
) -> Measures:
    """Read all rows of a dataset."""
    columns = [(column["name"], column["role"]) for column in manifest["columns"]]
    filled = [split for split in SPLITS if manifest["splits"][split]["rows"]]

    def of_column(column: tuple[str, str]) -> dict[str, Any]:
        by_split = {}
        for split in filled:
            values = (batch.column(0) for batch in _batches(folder, manifest, split, column[:1]))
            by_split[split] = column_statistics(values, spill_dir=spill_dir)
        return by_split

    # Reading and counting run outside Python's lock; two columns at a time bound the memory.
    with ThreadPoolExecutor(_COLUMNS_AT_ONCE) as pool:
        rates = pool.submit(_rates, folder, manifest, columns, filled)
        entries = pool.map(of_column, columns)
        by_column = {name: entry for (name, _), entry in zip(columns, entries, strict=True)}
    return Measures(columns=by_column, rates=rates.result())


def statistics(manifest: Mapping[str, Any], measures: Measures) -> dict[str, Any]:
    """Return the statistics of a dataset."""
    by_column = {}
    for column in manifest["columns"]:
        name, role = column["name"], column["role"]
        by_split = measures.columns[name]
        entry: dict[str, Any] = {"role": role, "splits": by_split}
        if role not in ("request", "event time", "weight") and len(by_split) > 1:
            first, *others = by_split
            entry["drift"] = {split: drift(by_split[first], by_split[split]) for split in others}
        by_column[name] = entry
    return {
        "counts": manifest["counts"],
        "notes": manifest.get("notes", []),
        "splits": {
            name: {key: split[key] for key in ("rows", "labels", "first_us", "last_us")}
            for name, split in manifest["splits"].items()
        },
        "rates": measures.rates,
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
    sums = {"by_time": RateSums(first, time_bucket(first, last))}
    keys = {"by_time": next(name for name, role in columns if role == "event time")}
    for name, role in columns:
        if role == "position":
            sums["by_position"], keys["by_position"] = RateSums(), name
    read_columns = [*dict.fromkeys([*keys.values(), "weight", *labels])]
    for split in filled:
        for batch in _batches(folder, manifest, split, read_columns):
            weight_B = batch.column("weight").to_numpy()
            label_columns = {
                name: batch.column(name).to_numpy().astype("float64") for name in labels
            }
            for key, name in keys.items():
                sums[key].add(batch.column(name), weight_B, label_columns)
    return {label: {key: groups.rates(label) for key, groups in sums.items()} for label in labels}


_HIGH_DRIFT = 0.1


def write_report(folder: Path, manifest: Mapping[str, Any], measures: Measures) -> None:
    """Write ``report.json`` and ``report.html`` beside the shards."""
    summary = statistics(manifest, measures)
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(summary), encoding="utf-8")


def page(summary: Mapping[str, Any]) -> str:
    """Return the figures as an HTML page without scripts or links."""
    parts = [
        section("What became of the log", _counts(summary["counts"])),
        *(note(text) for text in summary.get("notes", ())),
        section("Splits", _splits(summary["splits"])),
    ]
    for label, rates in summary["rates"].items():
        for key, title in (("by_time", "over time"), ("by_position", "by position")):
            if rates.get(key):
                parts.append(section(f"{label} {title}", _bars(rates[key], key)))
    parts.append(section("Columns", _columns(summary["columns"])))
    return document("Training examples", parts)


def _counts(counts: Mapping[str, Any]) -> str:
    names = (
        ("impressions", "Impressions"),
        ("duplicates_dropped", "Duplicates left out"),
        ("open_windows", "Window still open when the log ended"),
        ("sampled_or_split_out", "Left out by sampling, or in no split"),
        ("examples", "Examples written"),
        ("actions", "Actions"),
    )
    rows = [[title, f"{counts[name]:,}"] for name, title in names]
    for label, entry in counts["labels"].items():
        total = max(1, entry["actions"])
        rows.append([f"Actions of label {label}", f"{entry['actions']:,}"])
        for kind, title in (
            ("orphaned", "no impression before them"),
            ("late", "after the window"),
        ):
            fraction = f"{entry[kind]:,} ({entry[kind] / total:.1%})"
            rows.append([f"\N{EM SPACE}of these {title}", fraction])
    for of, entry in counts["attributes"].items():
        fraction = f"{entry['found']:,} ({entry['found'] / max(1, entry['impressions']):.1%})"
        rows.append([f"Impressions whose {of} had attributes by then", fraction])
    return table(["what", "rows"], rows, numbers=["rows"])


def _splits(splits: Mapping[str, Any]) -> str:
    labels = list(next(iter(splits.values()))["labels"])
    rows = []
    for name, split in splits.items():
        span = [
            moment_text(split[key])[:19].replace("T", " ") if split[key] is not None else ""
            for key in ("first_us", "last_us")
        ]
        means = [f"{split['labels'].get(label, 0) / max(1, split['rows']):.4f}" for label in labels]
        rows.append([name, f"{split['rows']:,}", *span, *means])
    means = [f"mean of {label}" for label in labels]
    return table(["split", "rows", "first", "last", *means], rows, numbers=["rows", *means])


def _bars(rates: Sequence[Mapping[str, float]], key: str) -> str:
    """Return a bar chart with a tooltip for each bar."""
    by_time = key == "by_time"
    starts = [int(row["from"]) for row in rates]
    names = [moment_text(start)[:16] if by_time else str(start) for start in starts]
    bars = [
        (name, row["rate"], f"{name}: {row['rate']:.4f} of {row['rows']:,} rows")
        for name, row in zip(names, rates, strict=True)
    ]
    return column_chart(bars, ends=(names[0][:10], names[-1][:10]))


def _columns(columns: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    bad: list[int] = []
    for name, column in columns.items():
        for split, summary in column["splits"].items():
            top = ", ".join(f"{value[:30]} ({count:,})" for value, count in summary["top"])
            distance = column.get("drift", {}).get(split)
            if distance is not None and distance > _HIGH_DRIFT:
                bad.append(len(rows))
            missing = summary["missing"] / max(1, summary["rows"])
            first = split == next(iter(column["splits"]))
            rows.append(
                [
                    *([name, column["role"]] if first else ["", ""]),
                    split,
                    f"{missing:.1%}",
                    f"{summary['different']:,}",
                    "" if distance is None else f"{distance:.3f}",
                    top,
                ]
            )
    heads = ["column", "role", "split", "missing", "different", "drift", "most frequent"]
    legend = note(
        "Drift: total variation distance from the first split over the most frequent values and "
        f"the rest; 0 is none, 1 is all, more than {_HIGH_DRIFT} is red."
    )
    return table(heads, rows, numbers=heads[3:6], bad=bad) + legend
