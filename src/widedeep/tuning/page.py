"""A study as a page: what was best, all trials, and charts of what mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from widedeep.page import (
    DotRow,
    charts,
    document,
    dot_list,
    line_chart,
    note,
    section,
    subsection,
    table,
    tiles,
)

_MOST_SETTINGS = 12


def study_page(study: Mapping[str, Any]) -> str:
    """Return a study (:meth:`Study.to_json`) as a self-contained page."""
    trials: Sequence[Mapping[str, Any]] = study["trials"]
    monitor, given = study["monitor"], trials[0]
    best = next(trial for trial in trials if trial["number"] == study["best"])
    counted = [trial for trial in trials if _counts(trial)]
    states = [trial["state"] for trial in trials]
    spent = ", ".join(
        f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state != "finished"
    )
    parts = [
        tiles(
            [
                (f"best {monitor}", _figure(best["value"]), f"trial {best['number']}"),
                ("as given", _figure(given["value"]), "trial 0"),
                ("trials", str(len(trials)), spent or "all finished"),
                ("minutes", f"{study['minutes']:.1f}"),
            ]
        ),
        section("Best settings", _settings(best, given)),
        section("Search", charts(_progress(trials, best), _curves(monitor, best, given))),
        section("Settings", charts(*_by_setting(monitor, counted))),
        section("Trials", _table(monitor, trials, best)),
    ]
    subtitle = (
        f"Judged by {monitor} on the validation data, of which the best of {len(counted)} models "
        "looks a little better than it is; the test data were not read."
    )
    return document("Search for settings", parts, subtitle=subtitle)


def params_text(params: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return what differs from the given configuration: ``dcn_v2, deep.lr 0.13``."""
    changed = {key: _param(v) for key, v in params.items() if v != given.get(key)}
    lead = " ".join(changed.pop(key) for key in ("model", "hidden_units") if key in changed)
    others = [f"{key.replace('embedding_dim', 'dim')} {value}" for key, value in changed.items()]
    return ", ".join([lead, *others] if lead else others) or "as given"


def _settings(best: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if best["number"] == 0:
        return note("The configuration as it is: no other trial was better.")
    names = dict.fromkeys([*given["params"], *best["params"]])
    rows = [
        [name, *(_param(trial["params"].get(name)) for trial in (given, best))] for name in names
    ]
    changed = [index for index, row in enumerate(rows) if row[1] != row[2]]
    headings = ["setting", "as given", "best"]
    return table(headings, rows, numbers=headings[1:], strong=changed)


def _progress(trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """Each model's value, and the best so far: as good as the best trial's, seen from it."""
    points = [(float(t["number"]), t["value"]) for t in trials if _counts(t)]
    falls = best["value"] <= points[0][1]
    so_far: list[tuple[float, float]] = []
    for number, value in points:
        before = so_far[-1][1] if so_far else value
        so_far.append((number, min(before, value) if falls else max(before, value)))
    lines = {"best so far": so_far}
    return subsection("Best so far, by trial", line_chart(lines, x_label="trial"))


def _curves(monitor: str, best: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    lines = {
        name: [(float(step), float(value)) for step, value in trial["curve"]]
        for name, trial in {"best": best, "as given": given}.items()
        if trial is given or trial["number"] != given["number"]
    }
    return subsection(f"Validation {monitor} in training", line_chart(lines, x_label="step"))


def _by_setting(monitor: str, trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart for each setting that was searched: a dot a trial, or the best of each word."""
    names = dict.fromkeys(name for trial in trials for name in trial["params"])
    blocks = []
    for name in names:
        tried = [
            (trial["params"][name], trial["value"], str(trial["params"].get("model", "wide")))
            for trial in trials
            if name in trial["params"]
        ]
        if len({value for value, *_ in tried}) < 2:
            continue
        chart = _words_chart if any(isinstance(value, str) for value, *_ in tried) else _dots_chart
        blocks.append(subsection(f"{monitor} by {name}", chart(name, tried)))
    return blocks[:_MOST_SETTINGS]


_Tried = list[tuple[Any, float, str]]  # a setting's value, the metric, the model


def _dots_chart(name: str, tried: _Tried) -> str:
    """Numbers across; those of optimizers by their logarithm."""
    logarithmic = "." in name
    dots: dict[str, list[tuple[float, float]]] = {}
    for value, metric, model in tried:
        dots.setdefault(model, []).append((math.log10(value) if logarithmic else value, metric))
    return line_chart(dots, x_label=f"log10 of {name}" if logarithmic else name, joined=False)


def _words_chart(name: str, tried: _Tried) -> str:
    """All values of the metric by word, as dots on one scale."""
    metrics: dict[str, list[float]] = {}
    for word, metric, _ in tried:
        metrics.setdefault(str(word), []).append(metric)
    rows = [
        DotRow(word, (min(values), max(values)), f"{len(values)}")
        for word, values in metrics.items()
    ]
    return dot_list(rows, series=("least", "most"), headings=(name, "trials"))


def _table(monitor: str, trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    others = [name for name in ("log_loss", "auc", "rmse", "calibration") if name != monitor]
    others = [name for name in others if any(name in trial["metrics"] for trial in trials)]
    headings = ["trial", monitor, *others, "seconds", "state", "settings"]
    rows = [
        [
            str(trial["number"]),
            _figure(trial["value"]),
            *(_figure(trial["metrics"].get(name)) for name in others),
            f"{trial['seconds']:.0f}",
            trial["state"] + (f": {trial['reason']}" if trial["state"] == "failed" else ""),
            params_text(trial["params"], trials[0]["params"]),
        ]
        for trial in trials
    ]
    strong = [index for index, trial in enumerate(trials) if trial is best]
    return table(headings, rows, numbers=headings[: 3 + len(others)], strong=strong)


def _counts(trial: Mapping[str, Any]) -> bool:
    return trial["value"] is not None and trial["state"] in ("finished", "cut")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _param(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
