"""The report on a dataset: figures as JSON, and one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from widedeep.data.join.statistics import statistics
from widedeep.data.join.times import moment_text
from widedeep.page import column_chart, document, note, section, table

_HIGH_DRIFT = 0.1


def write_report(
    folder: Path, manifest: Mapping[str, Any], *, spill_dir: Path | None = None
) -> None:
    """Write ``report.json`` and ``report.html`` beside the shards."""
    figures = statistics(folder, manifest, spill_dir=spill_dir)
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(figures), encoding="utf-8")


def page(figures: Mapping[str, Any]) -> str:
    """Return the figures as an HTML page without scripts or links."""
    parts = [
        section("What became of the log", _counts(figures["counts"])),
        *(note(text) for text in figures.get("notes", ())),
        section("Splits", _splits(figures["splits"])),
    ]
    for label, rates in figures["rates"].items():
        for key, told in (("by_time", "over time"), ("by_position", "by position")):
            if rates.get(key):
                parts.append(section(f"{label} {told}", _bars(rates[key], key)))
    parts.append(section("Columns", _columns(figures["columns"])))
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
    rows = [[told, f"{counts[name]:,}"] for name, told in names]
    for label, found in counts["labels"].items():
        total = max(1, found["actions"])
        rows.append([f"Actions of label {label}", f"{found['actions']:,}"])
        for kind, told in (
            ("orphaned", "no impression before them"),
            ("late", "after the window"),
        ):
            share = f"{found[kind]:,} ({found[kind] / total:.1%})"
            rows.append([f"\N{EM SPACE}of these {told}", share])
    for of, found in counts["attributes"].items():
        share = f"{found['found']:,} ({found['found'] / max(1, found['impressions']):.1%})"
        rows.append([f"Impressions whose {of} had attributes by then", share])
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
    """Return a bar chart; each bar tells its figures when pointed at."""
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
        for split, found in column["splits"].items():
            top = ", ".join(f"{value[:30]} ({count:,})" for value, count in found["top"])
            share = column.get("drift", {}).get(split)
            if share is not None and share > _HIGH_DRIFT:
                bad.append(len(rows))
            missing = found["missing"] / max(1, found["rows"])
            first = split == next(iter(column["splits"]))
            rows.append(
                [
                    *([name, column["role"]] if first else ["", ""]),
                    split,
                    f"{missing:.1%}",
                    f"{found['different']:,}",
                    "" if share is None else f"{share:.3f}",
                    top,
                ]
            )
    heads = ["column", "role", "split", "missing", "different", "drift", "most frequent"]
    told = note(
        "Drift: total variation distance from the first split over the most frequent values and "
        f"the rest; 0 is none, 1 is all, more than {_HIGH_DRIFT} is red."
    )
    return table(heads, rows, numbers=heads[3:6], bad=bad) + told
