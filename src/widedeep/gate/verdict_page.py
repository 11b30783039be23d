"""The verdict as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from widedeep.page import document, line_chart, note, section, table, tiles

if TYPE_CHECKING:
    from widedeep.gate.verdict import Verdict

_NAMES = {
    "log_loss": "log loss",
    "squared_error": "squared error",
    "normalized_loss": "loss / that of a constant",
    "calibration": "calibration (predicted / observed)",
    "auc": "AUC",
    "gauc": "AUC within groups",
}
_SLICE_NAMES = {
    "auc": "AUC",
    "log_loss": "log loss",
    "squared_error": "squared error",
    "calibration": "calibration",
}


def verdict_page(verdict: Verdict) -> str:
    """Return a verdict as a page that needs nothing else."""
    parts = [verdict_text(verdict.to_json())]
    for head, entry in verdict.quality.items():
        title = "Quality" if head == "score" else f"Quality of {head}"
        chart = curve_chart(entry.get("curve", {}))
        parts.append(
            section(title, f'<div class="pair"><div>{metrics_table(entry)}</div>{chart}</div>')
        )
    parts.append(section("Slices", slices_table(verdict.slices)))
    parts.append(section("Drift", drift_table(verdict.drift)))
    parts.append(section("Dry run", _dry_run(verdict.dry_run)))
    data = verdict.data
    told = f"{data['rows']:,} rows" if data else "no rows"
    return document(
        "The gate: passed" if verdict.passed else "The gate: stopped",
        parts,
        subtitle=f"{verdict.candidate['path']}, judged on {told}, {verdict.created}",
    )


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """Return the decision and its reasons as a block."""
    kind = "good" if verdict["passed"] else "bad"
    told = "It may serve." if verdict["passed"] else "It may not serve."
    items = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    listed = f"<ul>{items}</ul>" if items else ""
    serving = verdict["serving"]
    against = (
        f"against {serving['path']}" if serving else "on its own: there is no model in service"
    )
    notes = "".join(note(f"Note: {text}") for text in verdict["notes"])
    return f'<div class="verdict {kind}"><b>{told}</b>{note(against)}{listed}</div>{notes}'


def metrics_table(entry: Mapping[str, Any]) -> str:
    """Return both models' metrics side by side."""
    mine, theirs, changes = entry["candidate"], entry.get("serving"), entry["changes"]
    rows: list[list[str]] = []
    bad: list[int] = []
    for name, told in _NAMES.items():
        if name not in mine:
            continue
        row = [told, _number(mine[name])]
        if theirs is not None:
            change = changes.get(name)
            worse = "" if change is None else _change(name, change)
            row += [_number(theirs[name]), worse]
            if change and change.get("p") is not None and change["worse"] > change["limit"]:
                bad.append(len(rows))
        rows.append(row)
    heads = ["", "candidate"] + ([] if theirs is None else ["in service", "worse by (95 %)"])
    return table(heads, rows, numbers=heads[1:], bad=bad)


def _change(name: str, change: Mapping[str, float]) -> str:
    percent = name in ("log_loss", "squared_error", "calibration")
    values = [change[key] for key in ("worse", "low", "high")]
    if any(value is None or not math.isfinite(value) for value in values):
        return "not defined"
    worse, low, high = (f"{value:+.2%}" if percent else f"{value:+.4f}" for value in values)
    return f"{worse} ({low} to {high})"


def curve_chart(curve: Mapping[str, Any]) -> str:
    """Return the calibration plot: the mean label of each tenth of the rows by score."""
    names = {"candidate": "candidate", "serving": "in service"}
    lines = {names[who]: [(x, y) for x, y, _ in points] for who, points in curve.items()}
    drawn = line_chart(lines, x_label="mean score of a tenth; up: mean label", diagonal=True)
    return f"<div>{drawn}</div>" if drawn else ""


def slices_table(slices: Any) -> str:
    """Return one row a slice; those that failed first."""
    if not slices:
        return ""
    measures = [
        name for name in _SLICE_NAMES if any(name in entry["candidate"] for entry in slices)
    ]
    ordered = sorted(slices, key=lambda entry: (not entry["failed"], entry["column"]))
    rows: list[list[str]] = []
    bad: list[int] = []
    for entry in ordered:
        if entry["failed"]:
            bad.append(len(rows))
        told = "too little data: " + entry["too_little"] if entry["too_little"] else ""
        told = "worse than allowed" if entry["failed"] else told
        head = f"{entry['head']}: " if entry["head"] else ""
        rows.append(
            [
                f"{head}{entry['column']} = {entry['value']}",
                f"{entry['rows']:,}",
                *(figure for name in measures for figure in _both(entry, name)),
                told,
            ]
        )
    names = [
        heading
        for at, measure in enumerate(measures)
        for heading in (_SLICE_NAMES[measure], "before" + " " * at)
    ]
    return table(["slice", "rows", *names, ""], rows, numbers=["rows", *names], bad=bad)


def _both(entry: Mapping[str, Any], metric: str) -> list[str]:
    return [_number(entry.get(who, {}).get(metric)) for who in ("candidate", "serving")]


def drift_table(drift: Mapping[str, Any]) -> str:
    """Return one row a feature, and how the scores have moved."""
    if not drift:
        return ""
    rows = [
        [
            one["feature"],
            _number(one["psi"]),
            f"{one['missing_training']:.1%}",
            f"{one['missing_now']:.1%}",
            "" if one["new_values"] is None else f"{one['new_values']:.1%}",
            one["moved_most"] or "",
        ]
        for one in drift["features"]
    ]
    heads = ["feature", "stability index", "missing then", "missing now", "new values"]
    told = "".join(
        note(f"Scores against the model in service: stability index {value:.4f} ({head}).")
        for head, value in drift["scores"].items()
    )
    return told + table([*heads, "moved most"], rows, numbers=heads[1:])


def _dry_run(found: Mapping[str, Any]) -> str:
    if found.get("error") is not None or "load_s" not in found:
        return note(str(found.get("error", "")))
    figures = [
        ("to load", f"{found['load_s']:.2f} s"),
        ("resident memory", f"{found['memory_mb']:,.0f} MB"),
        ("rows replayed", f"{found['rows']}"),
    ]
    if found["rows"]:
        figures += [
            ("100 rows, median", f"{found['latency_ms']:.2f} ms"),
            ("100 rows, 99th percentile", f"{found['latency_p99_ms']:.2f} ms"),
            (
                "largest difference from export",
                "NaN" if found["worst"] is None else f"{found['worst']:.2g}",
            ),
        ]
    return tiles(figures)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"
