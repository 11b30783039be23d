"""The report as a page: its frame, and the sections on training, versions and configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from widedeep.gate.verdict_page import policy_tables, verdict_text
from widedeep.metrics import registered
from widedeep.page import (
    charts,
    is_number,
    note,
    pair,
    render,
    subsection,
    table,
    training_charts,
)
from widedeep.report.format import bytes_text, figure, moment, rows_text
from widedeep.report.page_model import (
    importance_section,
    inputs_section,
    neighbours_section,
    size_section,
    wide_section,
)
from widedeep.report.page_quality import headline, quality_sections

_MOST_VERSIONS = 40


def report_page(report: Mapping[str, Any]) -> str:
    """Return a report as a page that needs nothing else."""
    sections = {
        "Gate": _gate(report["verdict"]),
        **quality_sections(report),
        "Rankings not shown": policy_tables(
            report["policy"], ["this model", report["against"]["name"] if report["against"] else ""]
        ),
        "Importance": importance_section(report),
        "Training": _training(report["run"]),
        "Wide part": wide_section(report),
        "Embeddings": neighbours_section(report),
        "Inputs": inputs_section(report),
        "Size": size_section(report),
        "Versions": _versions(report["lineage"]),
        "Configuration": _configuration(report),
    }
    return render(
        "report/report.html",
        title=report["name"],
        subtitle=_subtitle(report),
        headline=headline(report),
        notes=report["notes"],
        sections={heading: body for heading, body in sections.items() if body},
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    parts = [f"Predicts {', '.join(report['bundle']['labels'].values()) or 'no label'}"]
    if report["bundle"]["rows"]:
        parts.append(f"fitted on {rows_text(report['bundle']['rows'])}")
    if report["data"]:
        names = _names(report["data"]["inputs"])
        parts.append(f"judged on {rows_text(report['data']['rows'])} of {names}")
    if report["against"]:
        parts.append(f"beside {report['against']['name']}")
    return f"{', '.join(parts)}. Written {moment(report['created'])} UTC."


def _names(inputs: Sequence[Mapping[str, Any]]) -> str:
    names = ["/".join(Path(entry["path"] or entry["name"]).parts[-2:]) for entry in inputs]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _gate(verdict: Mapping[str, Any] | None) -> str:
    return "" if verdict is None else verdict_text(verdict)


# ---- training -----------------------------------------------------------------------------------


def _training(run: Mapping[str, Any]) -> str:
    history: Sequence[Mapping[str, Any]] = run["history"]
    intro = _warm(run["warm_start"])
    if not history:
        return intro
    speeds = [row["rows_per_s"] for row in history if row.get("rows_per_s")]
    if speeds:
        last = history[-1]
        steps = f"{last['step']:,} steps, " if last.get("step") else ""
        intro += note(
            f"{steps}{last.get('rows', 0):,} rows learned; "
            f"{sorted(speeds)[len(speeds) // 2]:,.0f} rows a second."
        )
    if len(history) < 2:
        row = history[0]
        cells = [[name, figure(value)] for name, value in row.items() if is_number(value)]
        return intro + table(["the one evaluation", "figure"], cells, numbers=["figure"])
    return intro + charts(*training_charts(history, run["kept_step"]))


def _warm(warm: Mapping[str, Any] | None) -> str:
    if warm is None:
        return ""
    states = [moved["state"] for moved in warm["moved"]]
    counts = {state: states.count(state) for state in ("carried", "remapped", "fresh")}
    summary = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return note(f"Started warm from {warm['path']}: of its tensors {summary}.")


# ---- versions -----------------------------------------------------------------------------------


def _versions(lineage: Sequence[Mapping[str, Any]]) -> str:
    if not lineage:
        return ""
    newest = list(reversed(lineage))[:_MOST_VERSIONS]
    names = ["auc", "log_loss", "rmse"]
    names = [n for n in names if any(n in one.get("metrics", {}) for one in newest)]
    rows = [
        [
            one["version"],
            one.get("parent") or "",
            moment(one.get("published")),
            *(figure(one.get("metrics", {}).get(name)) for name in names),
            bytes_text(one.get("bytes")),
            _gate_word(one),
            _state_word(one),
        ]
        for one in newest
    ]
    titles = {metric.name: metric.label(metric.name, short=True) for metric in registered()}
    numbers = [titles[name] for name in names]
    heads = ["version", "after", "published", *numbers, "size", "gate", "state"]
    strong = [index for index, one in enumerate(newest) if one["this"]]
    older = len(lineage) - len(newest)
    return table(heads, rows, numbers=[*numbers, "size"], strong=strong) + (
        note(f"{older:,} older versions are not shown.") if older else ""
    )


def _gate_word(one: Mapping[str, Any]) -> str:
    if "published" not in one:
        return "no record"
    return f"forced: {one['forced']}" if one["forced"] is not None else "passed"


def _state_word(one: Mapping[str, Any]) -> str:
    words = {
        "this model": one["this"],
        "serves": one["serves"],
        "withdrawn": one["withdrawn"],
        "deleted": not one["there"],
    }
    return ", ".join([word for word, true in words.items() if true] + one["labels"])


# ---- configuration ------------------------------------------------------------------------------


def _configuration(report: Mapping[str, Any]) -> str:
    config = report["config"]
    bundle = report["bundle"]
    origin = {
        "bundle": bundle["path"],
        "identity": bundle["sha256"][:16],
        "schema": bundle["schema"][:16],
        "written by": f"widedeep {bundle['created_by']}",
    }
    if report["against"]:
        origin["compared with"] = report["against"]["path"]
    for entry in (report["data"] or {"inputs": []})["inputs"][:5]:
        origin.setdefault("judged on", entry["path"] or entry["name"])
    model, train = (
        subsection(title, _settings(config[key])) if isinstance(config.get(key), Mapping) else ""
        for title, key in (("Model", "model"), ("Training", "train"))
    )
    return pair(subsection("This model", _settings(origin)) + model, train)


def _settings(values: Mapping[str, Any]) -> str:
    rows = [[key, _setting(value)] for key, value in values.items() if value is not None]
    return table((), rows)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_setting(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
