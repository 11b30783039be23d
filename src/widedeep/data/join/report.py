"""The report on a dataset: figures as JSON, and one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from widedeep.data.join.statistics import statistics
from widedeep.data.join.times import moment_text

__all__ = ["write_report"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1d2733; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde3ea;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .wide td:last-child { min-width: 9rem; }
.columns td:last-child { min-width: 24rem; }
.ends { display: flex; justify-content: space-between; color: #4a5868; font-size: .8rem; }
svg { display: block; height: 8rem; background: #f6f8fa; border-radius: 6px; }
.high { color: #b3261e; font-weight: 600; }
p { color: #4a5868; }
"""


def write_report(
    folder: Path, manifest: Mapping[str, Any], *, spill_dir: Path | None = None
) -> None:
    """Write ``report.json`` and ``report.html`` beside the shards.

    Args:
        folder: Where the shards are.
        manifest: Which shards there are, and what became of the rows.
        spill_dir: Where values go that are too many to be counted in memory.
    """
    figures = statistics(folder, manifest, spill_dir=spill_dir)
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(figures), encoding="utf-8")


def page(figures: Mapping[str, Any]) -> str:
    """Return the figures as an HTML page without scripts or links."""
    parts = [
        "<h1>Training examples</h1>",
        "<h2>What became of the log</h2>",
        _counts(figures["counts"]),
        "<h2>Splits</h2>",
        _splits(figures["splits"]),
    ]
    for label, rates in figures["rates"].items():
        for key, told in (("by_time", "over time"), ("by_position", "by position")):
            if rates.get(key):
                parts.append(f"<h2>{escape(label)} {told}</h2>{_bars(rates[key], key)}")
    parts += ["<h2>Columns</h2>", _columns(figures["columns"])]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Training examples</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        classes = [' class="n"' if at in numbers else "" for at in range(len(row))]
        return "".join(
            f"<{tag}{kind}>{value}</{tag}>" for kind, value in zip(classes, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", head)}</tr>{body}</table></div>'


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
        rows.append([f"Actions of label {escape(label)}", f"{found['actions']:,}"])
        for kind, told in (
            ("orphaned", "no impression before them"),
            ("late", "after the window"),
        ):
            share = f"{found[kind]:,} ({found[kind] / total:.1%})"
            rows.append([f"&nbsp;&nbsp;of these {told}", share])
    for of, found in counts["attributes"].items():
        share = f"{found['found']:,} ({found['found'] / max(1, found['impressions']):.1%})"
        rows.append([f"Impressions whose {of} had attributes by then", share])
    return _table(["", ""], rows, [1])


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
    head = ["split", "rows", "first", "last", *(f"mean of {escape(label)}" for label in labels)]
    return _table(head, rows, [1, *range(4, len(head))])


def _bars(rates: Sequence[Mapping[str, float]], key: str) -> str:
    """Return a bar chart as SVG; each bar tells its figures when pointed at."""
    width, height = 900, 150
    highest = max(row["rate"] for row in rates) or 1.0
    step = width / len(rates)
    bars = []
    for at, row in enumerate(rates):
        tall = max(0.0, row["rate"] / highest) * (height - 12)
        start = int(row["from"])
        where = moment_text(start)[:16] if key == "by_time" else str(start)
        told = f"{where}: {row['rate']:.4f} of {row['rows']:,} rows"
        bars.append(
            f'<rect x="{at * step + 1:.1f}" y="{height - tall:.1f}" '
            f'width="{max(1.0, step - 2):.1f}" height="{tall:.1f}" fill="#3b6ea8">'
            f"<title>{escape(told)}</title></rect>"
        )
    first, last = (int(rates[at]["from"]) for at in (0, -1))
    ends = [moment_text(t)[:10] if key == "by_time" else str(t) for t in (first, last)]
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" preserveAspectRatio="none" role="img" '
        f'aria-label="from 0 to {highest:.4f}">{"".join(bars)}</svg>'
        f'<div class="ends"><span>{ends[0]}</span><span>highest: {highest:.4f}</span>'
        f"<span>{ends[1]}</span></div>"
    )


def _columns(columns: Mapping[str, Any]) -> str:
    rows = []
    for name, column in columns.items():
        for split, found in column["splits"].items():
            top = ", ".join(f"{escape(value[:30])} ({count:,})" for value, count in found["top"])
            share = column.get("drift", {}).get(split)
            moved = "" if share is None else f"{share:.3f}"
            if share is not None and share > 0.1:
                moved = f'<span class="high">{moved}</span>'
            missing = found["missing"] / max(1, found["rows"])
            first = split == next(iter(column["splits"]))
            told = [escape(name), column["role"]] if first else ["", ""]
            rows.append([*told, split, f"{missing:.1%}", f"{found['different']:,}", moved, top])
    head = ["column", "role", "split", "missing", "different", "drift", "most frequent"]
    return f'<div class="columns">{_table(head, rows, [3, 4, 5])}</div>' + (
        "<p>Drift: total variation distance from the first split over the most frequent values "
        "and the rest; 0 is none, 1 is all.</p>"
    )
