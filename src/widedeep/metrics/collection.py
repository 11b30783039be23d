"""What the collections of metrics share: names, updates of registered functions, results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import ConfigError, nearest
from widedeep.metrics.accumulate import BlockedStream, CompensatedSum
from widedeep.metrics.registry import Input, LabelKind, Metric, Undefined, registered
from widedeep.metrics.rows import GroupKeys, Rows

LARGEST_K = 1_000_000


class MetricCollection(ABC):
    """Metrics of one kind of label, computed together in one pass over scored rows."""

    kind: ClassVar[LabelKind]

    def __init__(
        self,
        *,
        names: Sequence[str] | None,
        cuts: Sequence[int],
        groups: bool,
        prediction_shape: tuple[int, ...] = (),
    ) -> None:
        self._metrics = select_metrics(self.kind, names, cuts, groups=groups)
        # A metric that is named implies its groups.
        needs_groups = any(metric.groups for metric in self._metrics.values())
        self._group_keys = GroupKeys() if groups or needs_groups else None
        dtype = np.dtype(
            [
                ("label", np.float64),
                ("prediction", np.float64, prediction_shape),
                ("weight", np.float64),
                ("group", np.int64),
            ]
        )
        self._functions = {
            name: BlockedStream(_FunctionTotals(metric), dtype)
            for name, metric in self._metrics.items()
            if metric.input == "rows"
        }
        self._function_dtype = dtype
        self._rows = 0
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """Why a number of the last ``compute`` is NaN or leaves something out, by name."""
        return dict(self._reasons)

    @property
    def grouped(self) -> bool:
        """Whether updates must bring group ids."""
        return self._group_keys is not None

    def needs(self, *inputs: Input) -> bool:
        """Whether one of the metrics reads one of these."""
        return any(metric.input in inputs for metric in self._metrics.values())

    def compute(self) -> dict[str, float]:
        """Return the metrics of all rows so far; more updates may follow."""
        inputs = {"count": self._rows, **self._inputs()}
        self._reasons = {}
        values = {}
        for name, metric in self._metrics.items():
            if name in self._functions:
                value = self._functions[name].totals().value()
            elif metric.input == "sums" and not inputs["sums"].weight:
                value = Undefined("there are no rows of positive weight")
            elif k := metric.match(name):
                value = metric.value(inputs[metric.input], k)
            else:
                value = metric.value(inputs[metric.input])
            values[name] = float(value)
            if reason := getattr(value, "reason", None):
                self._reasons[name] = reason
        return values

    def merge(self, other: Self) -> None:
        """Add the rows of another collection of the same metrics: of another shard or process.

        Args:
            other: A collection made with the same arguments.

        Raises:
            ConfigError: If it measures something else.
        """
        if type(self) is not type(other) or list(self._metrics) != list(other._metrics):
            raise ConfigError(
                f"got metrics {', '.join(other._metrics)} to merge into "
                f"{', '.join(self._metrics)}; make both collections with the same arguments"
            )
        self._rows += other._rows
        for name, stream in self._functions.items():
            stream.merge(other._functions[name])
        self._merge(other)

    @abstractmethod
    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        /,
    ) -> None:
        """Add scored rows."""

    @abstractmethod
    def _inputs(self) -> Mapping[str, Any]:
        """Return what the metrics' ``value`` reads, by :attr:`Metric.input`."""

    @abstractmethod
    def _merge(self, other: Self) -> None:
        """Add the sums and rows of another collection."""

    def _keys_of_groups(
        self, groups: ArrayLike | None, rows: int
    ) -> NDArray[np.int64] | Literal[0]:
        if self._group_keys is None:
            return 0
        return self._group_keys.keys(groups, self._rows, rows)

    def _append_to_functions(
        self,
        labels_B: NDArray[np.float64],
        predictions: NDArray[np.float64],
        weights_B: NDArray[np.float64],
        groups: NDArray[np.int64] | Literal[0],
    ) -> None:
        rows: Rows = np.empty(len(labels_B), dtype=self._function_dtype)
        columns = (labels_B, predictions, weights_B, groups)
        for name, column in zip(self._function_dtype.names or (), columns, strict=True):
            rows[name] = column
        for stream in self._functions.values():
            stream.append(rows)


class SingleMetric:
    """One number of a collection, holding no more than that number needs."""

    def __init__(self, name: str, metrics: MetricCollection) -> None:
        self.name = name
        self.reason: str | None = None
        self._metrics = metrics

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Add scored rows, as the collection's ``update`` does; unneeded groups are ignored."""
        self._metrics.update(scores, labels, weights, groups if self._metrics.grouped else None)

    def compute(self) -> float:
        """Return the number; where it is NaN or leaves something out, ``reason`` says why."""
        value = self._metrics.compute()[self.name]
        self.reason = self._metrics.reasons.get(self.name)
        return value


class _FunctionTotals:
    """The sums of a metric that is a function, or all its rows where it has no sums."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._sums: CompensatedSum | None = None
        self._blocks: list[Rows] = []

    def __deepcopy__(self, memo: object) -> _FunctionTotals:
        copied = _FunctionTotals(self._metric)
        copied.merge(self)
        return copied

    def add(self, block: Rows) -> None:
        if self._metric.sums is None:
            self._blocks.append(block.copy())
            return
        sums = np.asarray(self._call(self._metric.sums, block), dtype=np.float64).ravel()
        self._sums = self._sums or CompensatedSum(len(sums))
        self._sums.add(sums)

    def merge(self, other: _FunctionTotals) -> None:
        self._blocks += other._blocks
        if other._sums is not None:
            self._sums = self._sums or CompensatedSum(len(other._sums.values()))
            self._sums.merge(other._sums)

    def value(self) -> float:
        if self._sums is None and not self._blocks:
            return float("nan")
        if self._sums is not None:
            return self._checked(self._metric.value(self._sums.values()))
        return self._checked(self._call(self._metric.value, np.concatenate(self._blocks)))

    def _call(self, function: Any, rows: Rows) -> Any:
        names = ("label", "prediction", "weight", "group")[: 4 if self._metric.groups else 3]
        try:
            return function(*(rows[name].copy() for name in names))
        except Exception as error:
            raise ConfigError(
                f"metric {self._metric.name!r} failed on {len(rows)} rows "
                f"({type(error).__name__}: {error}); it gets arrays of {', '.join(names)}s"
            ) from error

    def _checked(self, value: Any) -> float:
        if not isinstance(value, (int, float, np.number)):
            raise ConfigError(
                f"metric {self._metric.name!r} returned {type(value).__name__}, expected a number"
            )
        return value if isinstance(value, float) else float(value)


def select_metrics(
    kind: LabelKind, names: Sequence[str] | None, cuts: Sequence[int], *, groups: bool
) -> dict[str, Metric]:
    """Return the metrics of these names, or all that the data allow, by name."""
    metrics = list(registered(kind))
    if names is None:
        allowed = [metric for metric in metrics if groups or not metric.groups]
        allowed.sort(key=lambda metric: metric.groups)  # the metrics of whole datasets first
        own = [m for m in allowed if m.input == "rows"]
        plain = [m for m in allowed if m.input != "rows" and not (m.groups and "{k}" in m.name)]
        per_cut = [m for m in allowed if m.groups and "{k}" in m.name]
        selected = {name: metric for metric in plain for name in metric.names(cuts)}
        selected |= {name: m for k in cuts for m in per_cut for name in m.names([k])}
        return selected | {metric.name: metric for metric in own}
    selected = {}
    for name in names:
        match = next((metric for metric in metrics if _matches(metric, name, cuts)), None)
        if match is None:
            choices = [one for metric in metrics for one in metric.names(cuts or [10])]
            raise ConfigError(f"names: got {name!r}, not a metric; {nearest(name, choices)}")
        selected[name] = match
    return selected


def _matches(metric: Metric, name: str, cuts: Sequence[int]) -> bool:
    k = metric.match(name)
    return k is not None and (k == 0 or k in cuts)


def checked_cuts(cuts: Sequence[int]) -> tuple[int, ...]:
    """Return the cut-offs in ascending order, or raise ConfigError for one out of range."""
    for k in cuts:
        if not 1 <= k <= LARGEST_K:
            raise ConfigError(f"k: got {k}, expected 1 to {LARGEST_K}")
    return tuple(sorted(set(cuts)))
