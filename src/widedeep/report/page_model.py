"""The report's sections on the model itself: wide weights, embeddings, inputs, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from widedeep.metrics import find_metric
from widedeep.page import bar_list, chips, note, pair, subsection, table
from widedeep.report.format import bytes_text, count_text, figure, percent

_MOST_COLUMNS = 20
_MOVED = 0.25
"""From this population stability index on, a distribution is taken to be another."""


def wide_section(report: Mapping[str, Any]) -> str:
    """Return the strongest wide weights by name, those of crosses first."""
    blocks = ""
    for entry in report["wide"]:
        of = f", {entry['logit']}" if entry["logit"] else ""
        for kind, title in (("crosses", "Crosses"), ("others", "Single features")):
            blocks += pair(
                _weights(f"{title} that raise the score{of}", entry[kind]["positive"]),
                _weights(f"{title} that lower it{of}", entry[kind]["negative"]),
            )
    if not blocks:
        return ""
    classes = max(
        (head["kind"] in ("multiclass", "multilabel") for head in report["heads"].values()),
        default=0,
    )
    more = " The first classes are shown." if classes else ""
    return note(f"What each value adds to the logit, and how often training saw it.{more}") + blocks


def _weights(heading: str, weights: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            _weight_name(one),
            float(one["weight"]),
            f"{one['weight']:+.3f}",
            "" if one["count"] is None else f"{one['count']:,}",
        )
        for one in weights
    ]
    chart = bar_list(rows, signed=True, headings=("value", "weight", "seen"))
    return subsection(heading, chart) if chart else ""


def _weight_name(one: Mapping[str, Any]) -> str:
    """A cross names its own parts; another value needs its feature."""
    value = str(one["value"])
    return value if " & " in value and "=" in value else f"{one['feature']} = {value}"


def importance_section(report: Mapping[str, Any]) -> str:
    """Return what each column is worth to the model, and how much each feature moves it."""
    several = len(report["heads"]) > 1
    blocks = ""
    for head in report["heads"]:
        of = f" of {head}" if several else ""
        importance = report["importances"].get(head)
        attributions = report["run"].get("attributions", {}).get(head)
        sides = [
            _importance(importance, of) if importance else "",
            _attributions(attributions, of) if attributions else "",
        ]
        blocks += pair(*sides) if all(sides) else "".join(sides)
    return blocks


def _importance(importance: Mapping[str, Any], of: str) -> str:
    described = find_metric(importance["metric"])
    title = importance["metric"] if described is None else described.label(importance["metric"])
    rows = [
        (
            " + ".join(one["columns"]),
            float(one["worse"]),
            f"{one['worse']:+.4f}",
            f"± {(one['high'] - one['low']) / 2:.4f}",
        )
        for one in importance["columns"][:_MOST_COLUMNS]
    ]
    omitted = len(importance["columns"]) - len(rows)
    intro = (
        f"How much worse {title} ({figure(importance['value'])}) is when a column is shuffled "
        f"among {importance['rows']:,} rows, for all features that read it; the mean of "
        f"{importance['repeats']}. ± is half a 95 % interval. Columns that say the same stand in "
        "for each other, and each looks less important than both are."
    )
    more = note(f"{omitted:,} columns of less importance are not shown.") if omitted else ""
    chart = bar_list(rows, signed=True, headings=("column", "worse by", "interval"))
    return subsection(f"Permutation importance{of}", note(intro), chart) + more


def _attributions(values: Mapping[str, float], of: str) -> str:
    ordered = sorted(values.items(), key=lambda one: -one[1])
    rows = [(name, value, f"{value:.4f}") for name, value in ordered[:_MOST_COLUMNS]]
    omitted = len(ordered) - len(rows)
    intro = (
        "How far a feature moves the logit from that of the mean row: integrated gradients of "
        "the training run's model, absolute values, averaged over held-out rows. What a feature "
        "moves need not help."
    )
    more = note(f"{omitted:,} features that move less are not shown.") if omitted else ""
    chart = bar_list(rows, headings=("feature", "attribution"))
    return subsection(f"Attributions{of}", note(intro), chart) + more


def neighbours_section(report: Mapping[str, Any]) -> str:
    """Return frequent values with those whose embeddings are nearest."""
    blocks = []
    for feature, rows in report["neighbours"].items():
        chip_rows = [
            (
                f"{one['value']}" + (f" ({one['count']:,})" if one["count"] else ""),
                [(value, f"{cosine:.2f}") for value, cosine in one["nearest"]],
            )
            for one in rows
        ]
        if chip_rows:
            blocks.append(subsection(feature, chips(chip_rows, ("value", "nearest"))))
    if not blocks:
        return ""
    intro = "The most frequent values, how often training saw them, and those whose embeddings "
    return note(intro + "point most nearly the same way, with the cosine.") + pair(*blocks)


def inputs_section(report: Mapping[str, Any]) -> str:
    """Return what went into training, and how the rows of today differ."""
    inputs = report["inputs"]
    if not inputs:
        return ""
    now = any(one["missing_now"] is not None for one in inputs)
    heads = ["feature", "kind", "values", "missing"]
    heads += ["now", "unseen", "moved"] if now else []
    rows: list[list[str]] = []
    bad: list[int] = []
    for one in inputs:
        kind = f"{one['kind']}; {one['place']}"
        row = [one["feature"], kind, _values(one), percent(one["missing"])]
        if now:
            row += [percent(one["missing_now"]), percent(one["unseen"]), _index(one["psi"])]
            if (one["psi"] or 0) >= _MOVED:
                bad.append(len(rows))
        rows.append([*row, _typical(one)])
    numbers = [heading for heading in heads if heading not in ("feature", "kind", "values")]
    intro = "As training saw them."
    if now:
        intro = (
            "As training saw them; and of the rows that the model was judged on: now, the share "
            "of nulls; unseen, that of values which the model does not know; moved, the "
            f"population stability index of the known values, from {_MOVED} on in red."
        )
    body = table([*heads, "typical"], rows, numbers=numbers, bad=bad)
    notes = "".join(note(f"{text[:1].upper()}{text[1:]}.") for text in report["fit_notes"])
    return note(intro) + body + _moved_most(inputs) + notes


def _index(psi: float | None) -> str:
    return "" if psi is None else f"{psi:.3f}"


def _values(one: Mapping[str, Any]) -> str:
    if one["range"]:
        return " to ".join(f"{one['range'][key]:,.4g}" for key in ("minimum", "maximum"))
    if one["values"] is None:
        return ""
    rarer = f" + {one['left_out']:,} rarer" if one["left_out"] else ""
    return f"{one['values']:,}{rarer}"


def _typical(one: Mapping[str, Any]) -> str:
    if one["range"]:
        return f"mean {one['range']['mean']:,.4g}"
    frequent = one["top"] if one["kind"] != "crossed" else one["top"][:1]
    return ", ".join(f"{value} {percent(fraction, 0)}" for value, fraction in frequent)


def _moved_most(inputs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [one["feature"], one["moved_most"]]
        for one in inputs
        if one["moved_most"] and (one["psi"] or 0) >= _MOVED
    ]
    if not rows:
        return ""
    return subsection("What moved most", table(["feature", "value and its share"], rows))


def size_section(report: Mapping[str, Any]) -> str:
    """Return parameters by part, bytes by file, and how many wide weights are zero."""
    tables, layers, files = report["tables"], report["layers"], report["files"]
    parts = {
        "wide weights": sum(_numbers(one) for one in tables if one["part"] == "wide"),
        "embeddings": sum(_numbers(one) for one in tables if one["part"] == "deep"),
        **{
            f"{one['name']} ({' x '.join(map(str, one['shape']))})".removesuffix(" ()"): one[
                "numbers"
            ]
            for one in layers
        },
    }
    embeddings = [
        [one["name"], f"{one['rows']:,}", str(one["width"]), count_text(_numbers(one))]
        for one in tables
        if one["part"] == "deep"
    ]
    heads = ["embedding", "ids", "width", "parameters"]
    ordered = sorted(files.items(), key=lambda entry: -entry[1])
    return pair(
        subsection(
            "Parameters",
            bar_list(
                [(name, float(size), count_text(size)) for name, size in parts.items() if size],
                headings=("part", "parameters"),
            ),
        )
        + subsection(
            "Files of the bundle",
            bar_list(
                [(name, float(size), bytes_text(size)) for name, size in ordered],
                headings=("file", "size"),
            ),
        )
        + (
            subsection("Embeddings", table(heads, embeddings, numbers=heads[1:]))
            if embeddings
            else ""
        ),
        _sparsity(report["zeros"]),
    )


def _numbers(one: Mapping[str, Any]) -> int:
    return int(one["rows"] * one["width"])


def _sparsity(zeros: Sequence[Sequence[Any]]) -> str:
    rows = [
        (name, zero / size, percent(zero / size), f"{zero:,} of {size:,}")
        for name, zero, size in zeros
        if size
    ]
    if not rows:
        return ""
    chart = bar_list(rows, longest=1.0, headings=("feature", "zero", "weights"))
    intro = (
        "Of the values that a feature knows: weights that L1 holds at exactly 0, or that no "
        "example touched. Such a value tells nothing beyond the rest of the model."
    )
    return subsection("Wide weights that are zero", note(intro), chart)
