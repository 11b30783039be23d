"""Probability calibration (Platt, isotonic, prior correction), fitted on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widedeep.errors import BundleError, DataError
from widedeep.kernels.score import sigmoid
from widedeep.options import check_value

__all__ = [
    "Calibration",
    "Isotonic",
    "Platt",
    "PriorCorrection",
    "calibration_from_json",
    "calibration_to_json",
    "fit_isotonic",
    "fit_platt",
]

_MAX_STEPS = 100
_SMALLEST_STEP = 1e-10
_LEAST_SLOPE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorCorrection:
    """Corrects probabilities for training on a sample of the negative examples.

    With negatives kept at rate w, p becomes p / (p + (1 - p) / w): log(w) is added to the logit
    (He et al. 2014, *Practical Lessons from Predicting Clicks on Ads at Facebook*, section 6.3).

    Args:
        rate: Fraction of the negatives that training saw, 0 < rate <= 1.

    Raises:
        BundleError: If the rate is outside its range.

    Example:
        >>> import numpy as np
        >>> PriorCorrection(rate=0.1).probabilities(np.zeros(1)).round(4).tolist()
        [0.0909]
    """

    kind: ClassVar[str] = "prior"
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise BundleError(f"got rate={self.rate!r} of kept negatives, expected 0 < rate <= 1")

    def probabilities(self, logits_B: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return calibrated probabilities of logits."""
        return sigmoid(logits_B.astype(np.float64) + math.log(self.rate))


@dataclass(frozen=True, kw_only=True, slots=True)
class Platt:
    """A straight line through the logits: sigmoid(slope x logit + intercept) (Platt 1999).

    Args:
        slope: Above 0 for a model that ranks better than chance.
        intercept: Calibrated log odds at logit 0.
    """

    kind: ClassVar[str] = "platt"
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise BundleError(
                f"got slope={self.slope!r} and intercept={self.intercept!r}, expected numbers"
            )

    def probabilities(self, logits_B: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return calibrated probabilities of logits."""
        return sigmoid(logits_B.astype(np.float64) * self.slope + self.intercept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Isotonic:
    """A rising curve through points: log odds over logits, straight between the points.

    Args:
        logits: Strictly increasing.
        values: The probability at each of them, strictly increasing, within (0, 1).
        slope: Slope of the log odds before the first point and after the last, > 0. Bundles of
            older versions have none: their curve is straight between probabilities, flat before
            the first point and after the last, and may reach 0 and 1.
    """

    kind: ClassVar[str] = "isotonic"
    logits: tuple[float, ...]
    values: tuple[float, ...]
    slope: float | None = None

    def __post_init__(self) -> None:
        x, y = np.array(self.logits), np.array(self.values)
        rising = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        if not rising or not 0 <= y[0] <= y[-1] <= 1:
            raise BundleError(
                f"got a curve of {len(x)} logits and {len(y)} probabilities, expected as many, "
                "one or more, rising, and within [0, 1]"
            )
        if self.slope is None:
            return
        if not (0 < self.slope < math.inf and y[0] > 0 and y[-1] < 1 and (np.diff(y) > 0).all()):
            raise BundleError(
                f"got slope={self.slope!r} and probabilities from {y[0]!r} to {y[-1]!r}, expected "
                "a slope above 0 and probabilities that strictly increase within (0, 1)"
            )

    def probabilities(self, logits_B: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return calibrated probabilities of logits."""
        x, y = np.array(self.logits), np.array(self.values)
        logits = logits_B.astype(np.float64)
        if self.slope is None:
            return np.asarray(np.interp(logits, x, y))
        beyond = np.minimum(logits - x[0], 0.0) + np.maximum(logits - x[-1], 0.0)
        return sigmoid(np.interp(logits, x, np.log(y / (1.0 - y))) + self.slope * beyond)


Calibration = PriorCorrection | Platt | Isotonic
_KINDS: dict[str, type[Calibration]] = {
    kind.kind: kind for kind in (PriorCorrection, Platt, Isotonic)
}


def calibration_to_json(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as plain lists and dicts."""
    fields = {name: value for name, value in asdict(calibration).items() if value is not None}
    return {"kind": calibration.kind, **fields}


def calibration_from_json(value: Mapping[str, Any]) -> Calibration:
    """Read what :func:`calibration_to_json` gave.

    Raises:
        BundleError: If it is of an unknown kind or has a value outside its range.
    """
    check_value(value, Mapping[str, Any], "calibration")
    fields = dict(value)
    kind = _KINDS.get(str(fields.pop("kind", "")))
    if kind is None:
        raise BundleError(
            f"got a calibration of kind {value.get('kind')!r}, expected one of {sorted(_KINDS)}"
        )
    for name, number in fields.items():
        curve: Any = list[float] if name in ("logits", "values") else float
        check_value(number, curve, f"{kind.kind}.{name}")
        fields[name] = tuple(number) if isinstance(number, list) else number
    return kind(**fields)


def _labelled(
    logits_B: ArrayLike, labels_B: ArrayLike, weight_B: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    logits = np.asarray(logits_B, np.float64).reshape(-1)
    labels = np.asarray(labels_B, np.float64).reshape(-1)
    weights = (
        np.ones(len(logits)) if weight_B is None else np.asarray(weight_B, np.float64).reshape(-1)
    )
    if not len(logits) == len(labels) == len(weights) > 0:
        raise DataError(
            f"got {len(logits)} logits, {len(labels)} labels and {len(weights)} weights, "
            "expected as many of each, and at least one"
        )
    if not (np.isfinite(logits).all() and (labels >= 0).all() and (labels <= 1).all()):
        raise DataError("got logits or labels that are no finite numbers, or labels beyond [0, 1]")
    if not ((weights >= 0).all() and 0 < weights.sum() < math.inf):
        raise DataError("got weights that are negative, or no row of weight above 0")
    return logits, labels, weights


def fit_platt(logits_B: ArrayLike, labels_B: ArrayLike, weight_B: ArrayLike | None = None) -> Platt:
    """Fit a :class:`Platt` calibration by maximum likelihood.

    Labels are drawn in by Platt's rule, to (n+ + 1) / (n+ + 2) and 1 / (n- + 2), with n+ and n- the
    weights of the positives and negatives: the line stays finite where the classes part cleanly.
    Newton's method with halved steps (Lin, Lin and Weng 2007).

    Args:
        logits_B: Logits of labelled rows that training has not seen.
        labels_B: Their labels, 0 or 1, or fractions between.
        weight_B: Their weights; 1 each if not given.

    Raises:
        DataError: If there is no row, a number is not finite, or a label or weight out of range.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> logits = rng.normal(size=20_000)
        >>> labels = rng.random(20_000) < sigmoid(2 * logits - 1)
        >>> fitted = fit_platt(logits, labels)
        >>> round(fitted.slope, 1), round(fitted.intercept, 1)
        (2.0, -1.0)
    """
    logits, labels, weights = _labelled(logits_B, labels_B, weight_B)
    positive = float(weights @ labels)
    negative = float(weights.sum()) - positive
    low, high = 1 / (negative + 2), (positive + 1) / (positive + 2)
    targets = low + labels * (high - low)
    prior = math.log((positive + 1) / (negative + 1))
    line = np.array([0.0, prior])
    loss = _log_loss(line, logits, targets, weights)
    for _ in range(_MAX_STEPS):
        step = _newton_step(line, logits, targets, weights)
        scale = 1.0
        while scale >= _SMALLEST_STEP:
            candidate = line - scale * step
            new_loss = _log_loss(candidate, logits, targets, weights)
            if new_loss <= loss:
                break
            scale /= 2
        else:
            break
        moved = float(np.abs(candidate - line).max())
        line, loss = candidate, new_loss
        if moved < _SMALLEST_STEP:
            break
    return Platt(slope=float(line[0]), intercept=float(line[1]))


def _log_loss(
    line: NDArray[np.float64],
    logits: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> float:
    z = logits * line[0] + line[1]
    return float(weights @ (np.logaddexp(0.0, z) - targets * z))


def _newton_step(
    line: NDArray[np.float64],
    logits: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    p = sigmoid(logits * line[0] + line[1])
    error = weights * (p - targets)
    curvature = weights * p * (1 - p)
    gradient = np.array([error @ logits, error.sum()])
    cross = curvature @ logits
    hessian = np.array([[curvature @ logits**2, cross], [cross, curvature.sum()]])
    # Keeps the step finite where all logits are equal or all curvature is gone.
    hessian += 1e-12 * max(1.0, float(np.abs(hessian).max())) * np.eye(2)
    return np.linalg.solve(hessian, gradient)


class _Level(NamedTuple):
    """Neighbouring rows that get one probability: sums over them, weighted."""

    logits: float
    positive: float
    mass: float

    def merge(self, other: _Level) -> _Level:
        """Return one level of the rows of both."""
        return _Level(
            self.logits + other.logits, self.positive + other.positive, self.mass + other.mass
        )

    @property
    def centre(self) -> float:
        """Mean logit."""
        return self.logits / self.mass

    @property
    def probability(self) -> float:
        """Mean label, away from 0 and 1 by half a row."""
        margin = min(0.5, self.mass / 2)
        return min(max(self.positive, margin), self.mass - margin) / self.mass

    @property
    def log_odds(self) -> float:
        """Log odds of the probability."""
        return math.log(self.probability / (1 - self.probability))


def fit_isotonic(
    logits_B: ArrayLike, labels_B: ArrayLike, weight_B: ArrayLike | None = None
) -> Isotonic:
    """Fit an :class:`Isotonic` calibration: a strictly rising curve, which keeps every ranking.

    Pool adjacent violators (Ayer et al. 1955): neighbours that fall are merged into their mean
    until none does. The curve runs through the centre of each level (Oron and Flournoy 2017), so
    no two logits get one score. Half a row of the rarer label keeps the ends from 0 and 1. Beyond
    the outer centres the curve goes on with the slope of a :class:`Platt` fit, at most 1.

    Args:
        logits_B: Logits of labelled rows that training has not seen; a thousand positives or more
            make a curve that holds on other data.
        labels_B: Their labels, in [0, 1].
        weight_B: Their weights; 1 each if not given.

    Raises:
        DataError: If there is no row, a number is not finite, or a label or weight out of range.

    Example:
        >>> logits = [-2.0] * 9 + [0.0, 1.0] + [2.0] * 9
        >>> curve = fit_isotonic(logits, [0] * 9 + [1, 0] + [1] * 9)
        >>> curve.logits, [round(value, 3) for value in curve.values]
        ((-2.0, 0.5, 2.0), [0.056, 0.5, 0.944])
    """
    logits, labels, weights = _labelled(logits_B, labels_B, weight_B)
    logits, labels, weights = (values[weights > 0] for values in (logits, labels, weights))
    weights = weights / weights.mean()
    points, point_index = np.unique(logits, return_inverse=True)
    mass = np.bincount(point_index, weights)
    sums = [points * mass, np.bincount(point_index, weights * labels), mass]
    levels = [_Level(*row) for row in np.stack(sums, axis=1).tolist()]
    levels = _pool(levels, lambda a, b: a.positive * b.mass >= b.positive * a.mass)
    levels = _pool(levels, _is_flat)
    slope = fit_platt(logits, labels, weights).slope
    return Isotonic(
        logits=tuple(level.centre for level in levels),
        values=tuple(level.probability for level in levels),
        slope=min(max(slope, _LEAST_SLOPE), 1.0),
    )


def _pool(levels: Iterable[_Level], merges: Callable[[_Level, _Level], bool]) -> list[_Level]:
    """Merge neighbours until none is to be merged with the next."""
    pooled: list[_Level] = []
    for level in levels:
        while pooled and merges(pooled[-1], level):
            level = pooled.pop().merge(level)
        pooled.append(level)
    return pooled


def _is_flat(low: _Level, high: _Level) -> bool:
    """Whether the curve would rise too little from one level to the next to tell logits apart."""
    distance = high.centre - low.centre
    if distance <= 0 or high.probability <= low.probability:
        return True
    return high.log_odds - low.log_odds < _LEAST_SLOPE * distance
