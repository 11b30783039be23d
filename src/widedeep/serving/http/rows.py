"""Rows of any protocol to scores: checked, scored by the bundle, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.errors import WideDeepError, nearest
from widedeep.serving.http.errors import HttpError, misfit
from widedeep.serving.http.service import Service

Row = dict[str, Any]
Place = Callable[[str, int], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scores of a request's rows."""

    version: str  # That gave them
    bundle: Bundle  # Its model
    scores: dict[str, NDArray[np.float64]]  # By head, (B,) or (B, C)


def output_name(head: str) -> str:
    """Return what protocols call a head's scores: ``"score"`` where there is one head."""
    return head or "score"


def check_columns(bundle: Bundle, names: Sequence[str], pointer: Callable[[str], str]) -> None:
    """Refuse columns that the model does not have: a misspelt one would be null without a word."""
    known = bundle.schema.columns
    for name in names:
        if name not in known:
            hint = nearest(name, bundle.input_columns)
            raise HttpError(400, f"got the column {name!r}; {hint}", pointer=pointer(name))


def score_rows(
    service: Service,
    *,
    model: str,
    request_id: str,
    rows: Callable[[Bundle], list[Row]],
    place: Place,
    version: str | None = None,
    label: str | None = None,
) -> Scored:
    """Score rows with the version that is to answer."""
    start = time.perf_counter()
    with service.models.lease(model, request_id, version, label) as served:
        bundle = served.ranker.bundle
        found: list[Row] = []
        try:
            found = rows(bundle)
            scores = _scores(bundle, found, service.threads)
        except (HttpError, WideDeepError, UnicodeError) as error:
            service.statistics.failed(model, served.version, time.perf_counter() - start)
            if isinstance(error, WideDeepError):
                raise misfit(error, bundle.schema, place) from error
            if isinstance(error, UnicodeError):
                raise HttpError(400, f"got text that is no Unicode: {error}") from error
            raise
        first = next(iter(scores.values()))
        service.metrics.scored(model, served.version, first)
        if found:
            service.look_up_some(model, served.ranker, found[0])
        took = time.perf_counter() - start
        service.statistics.answered(model, served.version, len(found), took)
        return Scored(version=served.version, bundle=bundle, scores=scores)


def _scores(bundle: Bundle, rows: list[Row], threads: int) -> dict[str, NDArray[np.float64]]:
    heads = bundle.model.heads
    if not rows:
        return {head.name: np.zeros(_shape(head.kind, head.stop - head.start)) for head in heads}
    scores = bundle.score(rows, threads=threads)
    return scores if isinstance(scores, dict) else {heads[0].name: scores}


def _shape(kind: str, width: int) -> tuple[int, ...]:
    return (0, width) if kind == "multiclass" else (0,)


def rows_of_columns(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Return columns of one length as rows."""
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
