"""How far the requests that are served have moved from the training data, feature by feature."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from widedeep.bundle.bundle import Bundle
from widedeep.data.drift import DriftCounts
from widedeep.features.spec import item_columns
from widedeep.schema import Schema
from widedeep.serving.background import BackgroundThread, ThreadMonitor
from widedeep.serving.impression_rows import UNFIT, typed_array

WINDOW_ROWS = 2048
"""Sampled requests a measurement; the index of equal distributions is then about 0.01."""
_LEAST_ROWS, _LONGEST_S = 512, 3600.0  # A window that fills slowly ends after an hour
_CHUNK_ROWS = 128
_WAITING_ROWS = 1024
_TURN_S = 0.5

Report = Callable[[str, str, float | None, float], None]
"""Called with model, feature, the index of its values, and that of null and not null."""


@dataclass(slots=True)
class _Window:
    """The rows since the last measurement of one model."""

    bundle: Bundle
    counts: DriftCounts
    measured: frozenset[str]  # Features that user and context determine
    began: float
    rows: int = 0


class LiveDrift:
    """Compares windows of sampled requests with the counts of values that training has left.

    What belongs to items is left out: how often a request names an item says little of the item's
    place in the training data. Offering never blocks; a thread counts, and rows that find its queue
    full are left out.

    Args:
        report: Called with each window's figures.
        monitor: Monitor of the thread, which starts with the first row.
        window_rows: Rows a window, at least 512.
    """

    def __init__(
        self, report: Report, monitor: ThreadMonitor, *, window_rows: int = WINDOW_ROWS
    ) -> None:
        self._report, self._monitor = report, monitor
        self._window_rows = max(window_rows, _LEAST_ROWS)
        self._queue: queue.Queue[tuple[str, Bundle, Mapping[str, Any]]] = queue.Queue(_WAITING_ROWS)
        self._windows: dict[str, _Window] = {}
        self._thread: BackgroundThread | None = None

    def offer(self, model: str, bundle: Bundle, row: Mapping[str, Any]) -> None:
        """Take one request's user and context; a model's new version begins a new window."""
        if self._thread is None:
            self._thread = self._monitor.start("drift", self._turn)
        try:
            self._queue.put_nowait((model, bundle, row))
        except queue.Full:
            return

    def _turn(self) -> bool:
        """Count the rows that wait, or wait half a second for the first."""
        try:
            offered = [self._queue.get(timeout=_TURN_S)]
        except queue.Empty:
            return True
        while len(offered) < _CHUNK_ROWS and not self._queue.empty():
            offered.append(self._queue.get_nowait())
        by_version: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        bundles = {id(bundle): bundle for _, bundle, _ in offered}
        for model, bundle, row in offered:
            by_version.setdefault((model, id(bundle)), []).append(row)
        for (model, key), rows in by_version.items():
            self._count(model, bundles[key], rows)
        if len(offered) < _CHUNK_ROWS:  # counting costs the vocabularies' size: let rows gather
            time.sleep(_TURN_S)
        return True

    def _count(self, model: str, bundle: Bundle, rows: list[Mapping[str, Any]]) -> None:
        window = self._windows.get(model)
        if window is None or window.bundle is not bundle:
            window = _new_window(bundle)
            self._windows[model] = window
        try:
            table = _columns(bundle.schema, rows)
        except UNFIT:  # one row has a value that no column holds, as the log has it: without it
            rows = [row for row in rows if _fits(bundle.schema, row)]
            table = _columns(bundle.schema, rows)
        if rows:
            window.counts.add(table, bundle.encode(rows))
        window.rows += len(rows)
        waited = time.monotonic() - window.began
        if window.rows >= self._window_rows or (
            window.rows >= _LEAST_ROWS and waited >= _LONGEST_S
        ):
            for drift in window.counts.features():
                if drift.feature in window.measured:
                    self._report(model, drift.feature, drift.psi, drift.missing_psi)
            self._windows[model] = _new_window(bundle)


def _columns(schema: Schema, rows: list[Mapping[str, Any]]) -> pa.Table:
    return pa.table(
        {
            name: typed_array([row.get(name) for row in rows], kind)
            for name, kind in schema.columns.items()
        }
    )


def _fits(schema: Schema, row: Mapping[str, Any]) -> bool:
    try:
        _columns(schema, [row])
    except UNFIT:
        return False
    return True


def _new_window(bundle: Bundle) -> _Window:
    schema = bundle.schema
    return _Window(bundle, DriftCounts(schema), _of_requests(schema), time.monotonic())


def _of_requests(schema: Schema) -> frozenset[str]:
    """Return the features that neither the item nor a fixed value takes part in."""
    spec = schema.spec
    fixed = {column for name in spec.training_only for column in spec.by_name[name].input_columns}
    other = item_columns(spec) | fixed
    return frozenset(
        feature.name for feature in spec.all_features if not other & {*feature.input_columns}
    )
