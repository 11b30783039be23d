"""The report's sections on quality: metrics beside another model's, calibration, slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from widedeep.metrics import find_metric, registered
from widedeep.page import (
    DotRow,
    dot_list,
    legend,
    line_chart,
    note,
    outer_ticks,
    pair,
    subsection,
    table,
)
from widedeep.report.format import bytes_text, count_text, figure, percent

_SLICES_OF_A_COLUMN = 12


def headline(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the figures that stand on top of the page."""
    tiles: list[tuple[str, ...]] = []
    for name, head in report["heads"].items():
        metrics, other_metrics = head["metrics"]["model"], head["metrics"].get("against", {})
        headlines = [
            metric
            for metric in registered(head.get("label_kind", head["kind"]))
            if metric.headline is not None
        ]
        headlines.sort(key=lambda metric: metric.headline or 0)
        for metric in [one.name for one in headlines[: None if len(report["heads"]) == 1 else 2]]:
            if metrics.get(metric) is None:
                continue
            title = _metric_name(metric).partition(" (")[0]
            what = f"{title} of {name}" if name else title
            more = (
                []
                if other_metrics.get(metric) is None
                else [f"{figure(other_metrics[metric])} before"]
            )
            tiles.append((what, figure(metrics[metric]), *more))
    tables, layers = report["tables"], report["layers"]
    parameters = sum(t["rows"] * t["width"] for t in tables) + sum(x["numbers"] for x in layers)
    tiles.append(("parameters", count_text(parameters), bytes_text(report["bundle"]["bytes"])))
    weights = sum(size for _, _, size in report["zeros"])
    if weights:
        zero = sum(zero for _, zero, _ in report["zeros"]) / weights
        tiles.append(("wide weights at zero", percent(zero), f"of {count_text(weights)}"))
    return tiles


def quality_sections(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections by heading; empty ones say nothing."""
    other = report["against"]["name"] if report["against"] else ""
    several = len(report["heads"]) > 1
    quality = slices = ""
    for name, head in report["heads"].items():
        metrics = _metrics_table(head, other)
        blocks = [
            subsection(f"Metrics of {name}" if several else "Metrics", metrics) if metrics else "",
            _calibration(head, other) + _gain(head["gain"], other) + _classes(head["classes"]),
        ]
        quality += pair(*blocks)
        slices += _slices([one for one in report["slices"] if one["head"] == name], name, other)
    return {"Quality": quality, "Slices": slices}


# ---- metrics ------------------------------------------------------------------------------------


def _metrics_table(head: Mapping[str, Any], other: str) -> str:
    metrics, other_metrics = head["metrics"]["model"], head["metrics"].get("against")
    rows: list[list[str]] = []
    marks: dict[str, list[int]] = {"good": [], "bad": []}
    ordered = [(_table_order(metric), metric) for metric in metrics]
    for _, metric in sorted((order, metric) for order, metric in ordered if order is not None):
        text = "undefined" if metrics[metric] is None else figure(metrics[metric])
        row = [_metric_name(metric), text]
        if other_metrics is not None:
            change = head["changes"].get(metric)
            row += [
                figure(other_metrics.get(metric)),
                _change(metric, metrics, other_metrics, change),
            ]
            if change and (change["low"] > 0 or change["high"] < 0):
                marks["bad" if change["low"] > 0 else "good"].append(len(rows))
        rows.append(row)
    if not rows:
        return ""
    heads = ["metric", "this model"] + ([] if other_metrics is None else [other, "change"])
    explanation = note(
        "± is half a 95 % interval of the change, from resamples of the rows or of their units. "
        "Green is better and red is worse beyond it."
    )
    footnote = explanation if head["changes"] else ""
    return table(heads, rows, numbers=heads[1:], good=marks["good"], bad=marks["bad"]) + footnote


def _table_order(name: str) -> int | None:
    metric = find_metric(name)
    return None if metric is None else metric.table_order


def _metric_name(metric: str) -> str:
    described = find_metric(metric)
    return metric if described is None else described.label(metric)


def _change(
    metric: str,
    metrics: Mapping[str, Any],
    other_metrics: Mapping[str, Any],
    change: Mapping[str, float] | None,
) -> str:
    if metrics.get(metric) is None or other_metrics.get(metric) is None:
        return ""
    if change is None or metric not in ("auc", "gauc", "log_loss", "calibration"):
        moved = metrics[metric] - other_metrics[metric]
        return "" if metric in ("rows", "groups") and not moved else f"{moved:+.4f}"
    half = (change["high"] - change["low"]) / 2
    if metric == "log_loss":
        return f"{100 * change['worse']:+.2f} % ± {100 * half:.2f}"
    if metric == "calibration":
        word = "further off" if change["worse"] > 0 else "nearer"
        return f"{100 * abs(change['worse']):.1f} % {word} ± {100 * half:.1f}"
    return f"{-change['worse']:+.4f} ± {half:.4f}"


# ---- calibration --------------------------------------------------------------------------------


def _calibration(head: Mapping[str, Any], other: str) -> str:
    curve = head["curve"]
    if not curve:
        return ""
    labels = {
        "binary": ("mean score of a tenth of the rows", "upwards: the share of positives"),
        "multiclass": ("mean probability of the first choice", "upwards: how often it was right"),
        "multilabel": ("mean score of a tenth of the rows", "upwards: the fraction of classes"),
        "regression": ("mean prediction of a tenth of the rows", "upwards: the mean label"),
    }
    across, up = labels[head["kind"]]
    lines = {_who(model, other): [(x, y) for x, y, _ in points] for model, points in curve.items()}
    errors = {}
    if head["kind"] in ("binary", "multiclass"):
        errors["this model"] = [
            1.96 * math.sqrt(min(max(y * (1 - y), 0.0), 0.25) / max(rows, 1.0))
            for _, y, rows in curve["model"]
        ]
    chart = line_chart(lines, x_label=across, diagonal=True, errors=errors)
    explanation = f"Tenths of the rows by score; {up}; on the dashed line they agree."
    whiskers = " Whiskers are 95 % intervals." if errors else ""
    return subsection("Calibration", chart, note(explanation + whiskers))


def _who(model: str, other: str) -> str:
    return "this model" if model == "model" else other


def _gain(curves: Mapping[str, Sequence[Sequence[float]]], other: str) -> str:
    lines = {_who(model, other): [(x, y) for x, y in points] for model, points in curves.items()}
    chart = line_chart(
        lines, x_label="share of the rows, the highest scores first", diagonal=True, dots=False
    )
    explanation = (
        "Upwards: the share of all positives among them; a random order is on the dashed line."
    )
    return subsection("Gain", chart, note(explanation)) if chart else ""


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    if not classes:
        return ""
    heads = ["class", "share of the rows", "mean probability", "precision", "recall"]
    rows = [
        [
            one["name"],
            *(figure(one[key]) for key in ("observed", "predicted", "precision", "recall")),
        ]
        for one in classes
    ]
    return subsection("Classes", table(heads, rows, numbers=heads[1:]))


# ---- slices -------------------------------------------------------------------------------------


def _slices(slices: Sequence[Mapping[str, Any]], head: str, other: str) -> str:
    columns: dict[str, list[Mapping[str, Any]]] = {}
    for one in slices:
        columns.setdefault(one["column"], []).append(one)
    if not columns:
        return ""
    metric = slices[0]["metric"]
    described = find_metric(metric)
    title = metric if described is None else described.label(metric, short=True)
    lower = described is not None and described.direction == "lower"
    better = "less is better" if lower else "more is better"
    of = f" of {head}" if head else ""
    intro = note(
        f"{title}{of} within each value of a column; {better}. Grey: too little data to tell."
    )
    models = [key for key in ("model", "against") if key in slices[0]]
    series = ["this model", other][: len(models)] if len(models) > 1 else [title]
    scale = _scale(slices, models, metric)
    blocks = []
    for name, entries in columns.items():
        rows = [
            DotRow(
                one["value"],
                tuple(one[key].get(metric) for key in models),
                f"{one['rows']:,}",
                one["too_little"] is not None,
            )
            for one in entries[:_SLICES_OF_A_COLUMN]
        ]
        omitted = len(entries) - len(rows)
        chart = dot_list(rows, series=series, headings=("value", "rows"), scale=scale)
        more = note(f"{omitted:,} rarer values are not shown.") if omitted else ""
        blocks.append(subsection(name, chart, more))
    return intro + legend(series) + pair(*blocks)


def _scale(slices: Sequence[Mapping[str, Any]], models: Sequence[str], metric: str) -> list[float]:
    """One scale for all columns, of the slices that have data enough if there are any."""
    sure = [one for one in slices if one["too_little"] is None] or slices
    values = [one[key].get(metric) for one in sure for key in models]
    return outer_ticks([value for value in values if value is not None] or [0.0, 1.0])
