"""The verdict as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from widedeep.evaluation.off_policy import ESTIMATORS
from widedeep.evaluation.statistics import LOSSES
from widedeep.gate.measures import measure_title
from widedeep.page import line_chart, note, render, table, tiles

_TITLES = {"normalized_loss": "loss / that of a constant"}
_OVERALL = (*LOSSES, "normalized_loss", "calibration", "auc", "gauc")
_BY_SLICE = ("auc", *LOSSES, "calibration")


def verdict_page(verdict: Mapping[str, Any]) -> str:
    """Return a verdict (:meth:`Verdict.to_json`) as a self-contained page."""
    heads = [
        {
            "title": "Quality" if head == "score" else f"Quality of {head}",
            "metrics": metrics_table(entry),
            "chart": curve_chart(entry.get("curve", {})),
        }
        for head, entry in verdict["quality"].items()
    ]
    rows = f"{verdict['data']['rows']:,} rows" if verdict["data"] else "no rows"
    minute = verdict["created"][:16].replace("T", " ")
    return render(
        "gate/verdict.html",
        title="The gate: passed" if verdict["passed"] else "The gate: stopped",
        subtitle=f"{verdict['candidate']['path']}, judged on {rows}, {minute} UTC",
        verdict=verdict,
        heads=heads,
        slices=slices_table(verdict["slices"]),
        drift=drift_table(verdict["drift"]),
        policy=policy_tables(verdict.get("policy", {}), ["candidate", "in service"]),
        dry_run=_dry_run(verdict["dry_run"]),
    )


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """Return the decision and its reasons as a block."""
    return render("gate/decision.html", verdict=verdict)


def metrics_table(entry: Mapping[str, Any]) -> str:
    """Return both models' metrics side by side."""
    candidate, serving, changes = entry["candidate"], entry.get("serving"), entry["changes"]
    rows: list[list[str]] = []
    bad: list[int] = []
    for name in _OVERALL:
        if name not in candidate:
            continue
        title = _TITLES.get(name) or measure_title(name, short=False)
        row = [title, _number(candidate[name])]
        if serving is not None:
            change = changes.get(name)
            worse = "" if change is None else _change(name, change)
            row += [_number(serving[name]), worse]
            limit = None if change is None else change.get("limit")  # None: infinite
            if change and limit is not None and "p" in change and change["worse"] > limit:
                bad.append(len(rows))
        rows.append(row)
    heads = ["", "candidate"] + ([] if serving is None else ["in service", "worse by (95 %)"])
    return table(heads, rows, numbers=heads[1:], bad=bad)


def _change(name: str, change: Mapping[str, float]) -> str:
    percent = name in (*LOSSES, "calibration")
    values = [change[key] for key in ("worse", "low", "high")]
    if any(value is None or not math.isfinite(value) for value in values):
        return "not defined"
    worse, low, high = (f"{value:+.2%}" if percent else f"{value:+.4f}" for value in values)
    return f"{worse} ({low} to {high})"


def curve_chart(curve: Mapping[str, Any]) -> str:
    """Return the calibration plot: the mean label of each tenth of the rows by score."""
    names = {"candidate": "candidate", "serving": "in service"}
    lines = {names[model]: [(x, y) for x, y, _ in points] for model, points in curve.items()}
    chart = line_chart(lines, x_label="mean score of a tenth; up: mean label", diagonal=True)
    return chart


def slices_table(slices: Any) -> str:
    """Return one row per slice; those that failed first."""
    if not slices:
        return ""
    measures = [name for name in _BY_SLICE if any(name in entry["candidate"] for entry in slices)]
    ordered = sorted(slices, key=lambda entry: (not entry["failed"], entry["column"]))
    models = ["candidate", *(["serving"] if any(entry.get("serving") for entry in slices) else [])]
    rows: list[list[str]] = []
    bad: list[int] = []
    for entry in ordered:
        if entry["failed"]:
            bad.append(len(rows))
        remark = "too little data: " + entry["too_little"] if entry["too_little"] else ""
        remark = "worse than allowed" if entry["failed"] else remark
        head = f"{entry['head']}: " if entry["head"] else ""
        rows.append(
            [
                f"{head}{entry['column']} = {entry['value']}",
                f"{entry['rows']:,}",
                *(_number(entry.get(m, {}).get(name)) for name in measures for m in models),
                remark,
            ]
        )
    names = [
        heading
        for index, measure in enumerate(measures)
        for heading in (measure_title(measure), "before" + " " * index)[: len(models)]
    ]
    return table(["slice", "rows", *names, ""], rows, numbers=["rows", *names], bad=bad)


def policy_rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per estimator: its title, and each model's estimate with its interval."""
    models = list(values["models"].values())
    rows = [["the log's own policy", _estimate(values["logged"]), *([""] * (len(models) - 1))]]
    rows += [
        [title, *(_estimate(one[name]) for one in models)] for name, title in ESTIMATORS.items()
    ]
    rows.append(["effective rows", *(f"{one['ess']:,.0f}" for one in models)])
    rows.append(["same item at the place", *(f"{one['agreement']:.1%}" for one in models)])
    return rows


def policy_tables(policy: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what the models' rankings would earn, a table per head; empty without propensities."""
    html = ""
    for head, values in policy.items():
        heads = [f"reward per request{'' if head in ('', 'score') else f' ({head})'}"]
        heads += names[: len(values["models"])]
        html += table(heads, policy_rows(values), numbers=heads[1:], strong=[1])
        html += note(policy_text(values))
        for name, model in zip(names, values["models"].values(), strict=False):
            html += note(f"{name}: {model['problem']}.") if model["problem"] else ""
    return html


def policy_text(values: Mapping[str, Any]) -> str:
    """Return from how many requests a policy's value was estimated, and how it compares."""
    text = (
        f"Estimated from {values['explored']:,} requests with propensities, of "
        f"{values['requests']:,}; 95 % intervals."
    )
    change = values.get("change")
    if change is None or change["worse"] is None or not math.isfinite(change["worse"]):
        return text
    more, low, high = (f"{-100 * change[key]:+.1f} %" for key in ("worse", "high", "low"))
    return f"{text} The first earns {more} ({low} to {high}) against the second, doubly robust."


def _estimate(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or value != value:
        return "not defined"
    if low is None or high is None or low != low:
        return f"{value:.4g}"
    return f"{value:.4g} ({low:.4g} to {high:.4g})"


def drift_table(drift: Mapping[str, Any]) -> str:
    """Return one row per feature, and the drift of the scores."""
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
    notes = "".join(
        note(f"Scores against the model in service: stability index {value:.4f} ({head}).")
        for head, value in drift.get("scores", {}).items()
    )
    return notes + table([*heads, "moved most"], rows, numbers=heads[1:])


def _dry_run(run: Mapping[str, Any]) -> str:
    if run.get("error") is not None or "load_s" not in run:
        return note(str(run.get("error", "")))
    entries = [
        ("to load", f"{run['load_s']:.2f} s"),
        ("resident memory", f"{run['memory_mb']:,.0f} MB"),
        ("rows replayed", f"{run['rows']}"),
    ]
    if run["rows"]:
        entries += [
            ("100 rows, median", f"{run['latency_ms']:.2f} ms"),
            ("100 rows, 99th percentile", f"{run['latency_p99_ms']:.2f} ms"),
            (
                "largest difference from export",
                "NaN" if run["worst"] is None else f"{run['worst']:.2g}",
            ),
        ]
    return tiles(entries)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"
