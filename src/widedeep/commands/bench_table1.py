"""The paper's table 1 on the simulated app store, as text."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from widedeep.simulate.table1 import (
    ARMS,
    Arm,
    Lift,
    Table1,
    Table1Config,
    interval,
    run_table1,
)

_PAPER = {"wide": (0.726, 0.0), "deep": (0.722, 0.029), "wide & deep": (0.728, 0.039)}
_FIRST = next(iter(ARMS))


def table1_in(
    folder: Path | None, config: Table1Config, *, on_progress: Callable[[str], None]
) -> Table1:
    """Do the experiment in a folder, or in one that is gone afterwards."""
    if folder is not None:
        return run_table1(folder, config, on_progress=on_progress)
    with tempfile.TemporaryDirectory(prefix="widedeep-table1-") as place:
        return run_table1(Path(place), config, on_progress=on_progress)


def table1_text(found: Table1) -> str:
    """Return the outcome as a Markdown table and the sentences that read it."""
    head = [
        "| model | offline AUC | live installs, counted | live installs, true | of the best | "
        "paper: AUC, live |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(
        [*head, *(_row(found, name) for name in found.config.arms), "", *_sentences(found)]
    )


def _row(found: Table1, name: str) -> str:
    arms = found.arms(name)
    auc = [arm.auc for arm in arms]
    counted = true = "0 %"
    if name != _FIRST:
        lift = found.lift(name, _FIRST)
        counted, true = _percent(lift.counted, lift.counted_95), _percent(lift.true, lift.true_95)
    paper = "{:.3f}, {:+.1%}".format(*_PAPER[name]) if name in _PAPER else ""
    best = fmean(arm.of_the_best for arm in arms)
    return (
        f"| {name} | {fmean(auc):.4f} ± {interval(auc):.4f} | {counted} | {true} | {best:.1%} | "
        f"{paper} |"
    )


def _percent(value: float, half: float) -> str:
    return f"{100 * value:+.1f} ± {100 * half:.1f} %"


def _sentences(found: Table1) -> list[str]:
    both = list(ARMS)[-1]
    lines = []
    for other in (name for name in found.config.arms if name != both):
        lift = found.lift(both, other)
        verdict = "significant" if lift.significant else "not significant"
        lines.append(
            f"{both} over {other}: {_percent(lift.counted, lift.counted_95)} installs counted, "
            f"{_percent(lift.true, lift.true_95)} by the true probabilities ({verdict})."
        )
    first, plain = found.arms(both), found.arms("popularity")
    requests = sum(arm.requests for arm in first)
    installs = sum(arm.installs for arm in first)
    lines.append(
        f"{len(first)} stores; {requests:,} live requests and {installs:,} installs in the arm of "
        f"{both}. Ranking by popularity gets {fmean(arm.of_the_best for arm in plain):.1%} of the "
        "best policy's installs."
    )
    return lines


def table1_document(found: Table1) -> dict[str, Any]:
    """Return the outcome as plain values."""
    names = [*found.config.arms, "popularity"]
    pairs = [("wide & deep", name) for name in found.config.arms if name != "wide & deep"]
    return {
        "config": dataclasses.asdict(found.config),
        "arms": {name: _arm_document(found.arms(name)) for name in names},
        "lifts": {
            f"{name} over {other}": _lift_document(found.lift(name, other))
            for name, other in (("deep", "wide"), *pairs)
        },
    }


def _arm_document(arms: Sequence[Arm]) -> list[Mapping[str, Any]]:
    return [{**dataclasses.asdict(arm), "of_the_best": arm.of_the_best} for arm in arms]


def _lift_document(lift: Lift) -> dict[str, Any]:
    return {**dataclasses.asdict(lift), "significant": lift.significant}


def table1_config(
    *,
    seeds: int | None = None,
    days: int | None = None,
    requests: int | None = None,
    live_requests: int | None = None,
    threads: int | None = None,
    memorisation: float | None = None,
    generalisation: float | None = None,
    without_cross: bool = False,
) -> Table1Config:
    """Return the experiment with some settings changed; None leaves the default."""
    store = {
        "requests_per_day": requests,
        "memorisation": memorisation,
        "generalisation": generalisation,
    }
    settings = {"seeds": seeds, "days": days, "live_requests": live_requests, "threads": threads}
    config = Table1Config()
    return dataclasses.replace(
        config,
        store=dataclasses.replace(config.store, **_given(store)),
        without_cross=without_cross,
        **_given(settings),
    )


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
