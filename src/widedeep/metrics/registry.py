"""The registry of metrics: what each is called, which values are better, how it is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from numpy.typing import ArrayLike

from widedeep.errors import ConfigError, nearest, show_value

Direction = Literal["higher", "lower", "nearest_1", "nearest_0"]
LabelKind = Literal["binary", "multiclass", "multilabel", "regression", "amount", "ranking"]
Input = Literal["rows", "sums", "curve", "ranking", "classes", "count"]


class ReasonedValue(float):
    """A number with a remark: why it is NaN, or what it leaves out."""

    reason: str

    def __new__(cls, value: float, reason: str) -> ReasonedValue:
        """Return the number with its remark."""
        number = super().__new__(cls, value)
        number.reason = reason
        return number


class Undefined(ReasonedValue):
    """NaN with the reason why a metric has no value.

    Args:
        reason: Why, such as ``"only one class"``; shown beside the metric.

    Example:
        >>> Undefined("there are no positives").reason
        'there are no positives'
    """

    def __new__(cls, reason: str) -> Undefined:
        """Return a NaN with its reason."""
        number = float.__new__(cls, math.nan)
        number.reason = reason
        return number


def ratio(numerator: float, denominator: float, reason: str) -> float:
    """Return a ratio, or an undefined number with the reason where the denominator is zero."""
    return numerator / denominator if denominator != 0 else Undefined(reason)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that says how good scores are: its name, its direction and how it is computed.

    A metric of your own is a function of labels, predictions and weights. It then holds the
    predictions of all rows in memory (24 bytes a row); a metric whose ``sums`` can be added up
    holds only these, and is merged over shards exactly as over batches.

    Args:
        name: Key in the results. A cut-off stands as ``{k}``, as in ``"ndcg@{k}"``.
        title: Name in reports; None: the name in words.
        short: Name in narrow tables; None: the title.
        direction: Better values: ``"higher"``, ``"lower"``, ``"nearest_1"``,
            ``"nearest_0"``; None: it is no measure of quality, and nothing stops on it.
        kinds: Kinds of labels that it is for: ``"binary"``, ``"multiclass"``, ``"multilabel"``,
            ``"regression"``, ``"amount"`` (numbers of at least 0: counts, prices), ``"ranking"``.
            What is for a regression is for amounts too.
        groups: Whether it needs group ids. They are then ``value``'s fourth argument (or
            ``sums``'s).
        sums: Function of labels, predictions and weights to an array of sums, which are added
            over blocks of rows.
        value: Function of labels (B,), predictions (B,) or for several classes (B, C), and
            weights (B,) to the number; with ``sums``, function of the added sums. May return
            :class:`Undefined`.
        table_order: Place in printed tables and reports, lowest first; None: listed under
            ``--json`` alone.
        detail: Whether it is left out of printed tables and stands in reports alone.
        headline: Place among the large numbers of a report, lowest first; None: not among them.
        input: What ``value`` reads; metrics of your own: ``"rows"``.

    Example:
        >>> import numpy as np
        >>> from widedeep import metrics
        >>> def brier(labels, predictions, weights):
        ...     return np.average((predictions - labels) ** 2, weights=weights)
        >>> metrics.register(metrics.Metric(name="brier", title="Brier score", value=brier))
        >>> measured = metrics.BinaryMetrics(names=["brier"], score_kind="probability")
        >>> measured.update([0.5, 1.0], [1, 1])
        >>> measured.compute()
        {'brier': 0.125}
        >>> metrics.unregister("brier")
    """

    name: str
    title: str | None = None
    short: str | None = None
    direction: Direction | None = "lower"
    kinds: Sequence[LabelKind] = ("binary",)
    groups: bool = False
    sums: Callable[..., Any] | None = None
    value: Callable[..., float]
    table_order: int | None = 50
    detail: bool = False
    headline: int | None = None
    input: Input = "rows"

    def __post_init__(self) -> None:
        where = f"metric {self.name!r}"
        if not re.fullmatch(r"[A-Za-z_][\w@]*(\{k\}\w*)?", self.name):
            raise ConfigError(
                f"{where}: expected a name of letters, digits and '_', such as 'brier'"
            )
        if self.direction is not None and self.direction not in get_args(Direction):
            hint = nearest(str(self.direction), get_args(Direction))
            raise ConfigError(f"{where}: got direction={self.direction!r}; {hint}")
        for kind in self.kinds:
            if kind not in get_args(LabelKind):
                raise ConfigError(
                    f"{where}: got kind {kind!r}; {nearest(kind, get_args(LabelKind))}"
                )
        if not callable(self.value):
            raise ConfigError(
                f"{where}: got value={show_value(self.value)}, expected a function of labels, "
                "predictions and weights"
            )

    def measures(self, kind: LabelKind) -> bool:
        """Whether it is for a kind of labels."""
        return kind in self.kinds or (kind == "amount" and "regression" in self.kinds)

    def match(self, name: str) -> int | None:
        """Return the cut-off in a metric's name (0 for a metric without), None if it is another."""
        if "{k}" not in self.name:
            return 0 if name == self.name else None
        before, _, after = self.name.partition("{k}")
        number = re.fullmatch(f"{re.escape(before)}([0-9]+){re.escape(after)}", name)
        return None if number is None else int(number[1])

    def names(self, cuts: Sequence[int]) -> list[str]:
        """Return the name of the metric at each cut-off, or its only name."""
        return (
            [self.name.replace("{k}", str(k)) for k in cuts] if "{k}" in self.name else [self.name]
        )

    def label(self, name: str, *, short: bool = False) -> str:
        """Return the title of the metric under one of its names: ``"NDCG at 5"``."""
        title = self.title or self.name.replace("_", " ")
        k = self.match(name)
        return ((short and self.short) or title) + (f" at {k}" if k else "")

    def better(self, value: float, best: float, margin: float = 0.0) -> bool:
        """Whether a value is better than another by more than a margin."""
        if self.direction == "higher":
            return value > best + margin
        goal = {"nearest_1": 1.0, "nearest_0": 0.0}.get(self.direction or "")
        if goal is None:
            return value < best - margin
        return abs(value - goal) < abs(best - goal) - margin


@runtime_checkable
class StreamingMetric(Protocol):
    """One number over a stream of scored rows."""

    name: str

    def update(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Add scored rows; a metric that needs no groups ignores them."""

    def compute(self) -> float:
        """Return the number over all rows so far, NaN where it is undefined."""


_REGISTRY: list[Metric] = []


def register(metric: Metric) -> None:
    """Add a metric: evaluation, early stopping, printed tables and reports then know it.

    Args:
        metric: Its name must be new among the metrics of its kinds of labels.

    Raises:
        ConfigError: If the name is taken.

    Example:
        >>> from widedeep import metrics
        >>> metrics.register(metrics.Metric(name="highest", value=lambda y, p, w: float(p.max())))
        >>> metrics.find_metric("highest").direction
        'lower'
        >>> metrics.unregister("highest")
    """
    for other in _REGISTRY:
        if other.name == metric.name and set(other.kinds) & set(metric.kinds):
            if other == metric:
                return
            raise ConfigError(
                f"metric {metric.name!r} is already registered for {', '.join(other.kinds)} "
                "labels; choose another name"
            )
    _REGISTRY.append(metric)


def add_metric(
    name: str,
    value: Callable[..., float],
    table_order: int | None,
    direction: Direction | None = "lower",
    title: str | None = None,
    **options: Any,
) -> None:
    """Register one of ours in a line; ``options`` are the other fields of :class:`Metric`."""
    order: dict[str, Any] = {"direction": direction, "table_order": table_order}
    register(Metric(name=name, title=title, value=value, **order, **options))


def unregister(name: str) -> None:
    """Remove a metric of your own.

    Args:
        name: Its name; built-in metrics stay.
    """
    _REGISTRY[:] = [one for one in _REGISTRY if one.name != name or one.input != "rows"]


def registered(kind: LabelKind | None = None) -> Iterator[Metric]:
    """Yield the metrics for a kind of labels, or all of them, in the order of registration.

    Args:
        kind: One of :attr:`Metric.kinds`; None for all.
    """
    return (one for one in list(_REGISTRY) if kind is None or one.measures(kind))


def find_metric(name: str, kind: LabelKind | None = None) -> Metric | None:
    """Return the metric of a name in results, None for an unknown one.

    Args:
        name: Such as ``"auc"``, ``"ndcg@5"`` or, of one of several heads, ``"click/auc"``.
        kind: Kind of the labels, where metrics of two kinds share a name.

    Example:
        >>> from widedeep import metrics
        >>> metrics.find_metric("click/auc").direction
        'higher'
    """
    name = name.rpartition("/")[2]
    return next((one for one in registered(kind) if one.match(name) is not None), None)


def is_better(name: str, value: float, best: float, margin: float = 0.0) -> bool:
    """Whether a value of a metric is better than another; of an unknown one, a loss, if lower."""
    metric = find_metric(name)
    return value < best - margin if metric is None else metric.better(value, best, margin)


def loss_metric(names: Collection[str]) -> str:
    """Return which of a model's metrics is its loss: of all heads, if there are several."""
    return next(name for name in ("loss", "log_loss", "rmse") if name in names)


def check_quality_metric(name: str, names: Collection[str], option: str) -> None:
    """Refuse a metric that will not be evaluated, or that says nothing about quality."""

    def is_quality(name: str) -> bool:
        metric = find_metric(name)
        return metric is None or metric.direction is not None

    useful = [name for name in names if is_quality(name)]
    if name not in useful:
        why = "is no measure of quality" if name in names else "was not evaluated"
        raise ConfigError(f"got {option}{name!r}, which {why}; {nearest(name, useful)}")
