"""Calibration by slice: a line through the logits, and a shrunk shift per value of a feature."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.bundle.calibration import Platt, fit_platt
from widedeep.bundle.posterior import ranked_head
from widedeep.bundle.write import rewrite_bundle
from widedeep.data.batch import Batch
from widedeep.data.sources import Data
from widedeep.errors import BundleError, DataError, nearest
from widedeep.evaluation.bundle_metrics import labelled_batches
from widedeep.evaluation.compare import log_losses
from widedeep.kernels.score import sigmoid

__all__ = ["SliceCalibration", "calibrate_slices", "fit_slices"]

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_MAX_STEPS = 200
_TOLERANCE = 1e-4
_FIRST_VARIANCE, _LEAST_VARIANCE = 0.05, 1e-8
_LARGEST_STEP = 1.0
_LEAST_SLOPE = 0.01
_MOST_SHOWN = 20
_SURE = 1.645  # standard errors: one-sided, 95 %


@dataclass(frozen=True, kw_only=True)
class SliceCalibration:
    """What a calibration by slice changed. Made by :func:`calibrate_slices`.

    Args:
        head: The calibrated head.
        slope: Slope of the line through the logits.
        intercept: Its intercept.
        spread: By feature, the standard deviation of its values' shifts, in log odds.
        log_loss: On held-out halves of the data: ``now``, with ``one line`` for all rows, and
            ``by slice``.
        error: Likewise, the sum over slices of |predicted - observed| positives, by all positives.
        slices: Per feature and value, those with the most rows: ``feature``, ``value``, ``rows``,
            ``shift`` (log odds), and predicted / observed ``now`` and ``by slice`` (held out).
        gain: By how much the log loss by slice is below that of now.
        gain_error: Standard error of the gain; the rows of a group are taken as one.
    """

    head: str
    slope: float
    intercept: float
    spread: Mapping[str, float]
    log_loss: Mapping[str, float]
    error: Mapping[str, float]
    slices: Sequence[Mapping[str, Any]]
    gain: float
    gain_error: float

    @property
    def better(self) -> bool:
        """Whether log loss of held-out halves falls, to 95 % of certainty."""
        return self.gain > _SURE * self.gain_error


def fit_slices(
    logits_B: Floats,
    labels_B: Floats,
    weight_B: Floats,
    ids_of: Mapping[str, tuple[Ids, int]],
) -> tuple[Platt, dict[str, Floats], dict[str, float]]:
    """Fit log odds = slope x logit + intercept + a shift per value of each feature.

    Shifts are normal about 0 with a variance per feature, which the data says (empirical Bayes by
    expectation maximisation; Efron and Morris 1975, Gelman and Hill 2007, chapter 12): a value
    with few rows stays near the line of all rows, and a feature whose values need none gets none.

    Args:
        logits_B: Logits of labelled rows that training has not seen.
        labels_B: Their labels, 0 to 1.
        weight_B: Their weights.
        ids_of: By feature, the id of each row (-1: none) and the number of ids.

    Returns:
        The line, the shifts by feature (ids,), and the variance of each feature's shifts.

    Raises:
        DataError: If a number is out of its range, or the logits do not rank the labels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> ids = rng.integers(0, 2, 20_000)
        >>> logits = rng.normal(-1, 1, 20_000)
        >>> labels = rng.random(20_000) < sigmoid(logits + np.array([0.5, -0.5])[ids])
        >>> _, shifts, _ = fit_slices(logits, labels * 1.0, np.ones(20_000), {"f": (ids, 2)})
        >>> (shifts["f"][0] - shifts["f"][1]).round(1)
        np.float64(1.0)
    """
    start = fit_platt(logits_B, labels_B, weight_B)
    line = np.array([start.slope, start.intercept])
    shifts = {name: np.zeros(count) for name, (_, count) in ids_of.items()}
    variance = dict.fromkeys(ids_of, _FIRST_VARIANCE)
    x_B2 = np.stack([logits_B, np.ones(len(logits_B))], axis=1)
    for _ in range(_MAX_STEPS):
        before = np.concatenate([line, *shifts.values()])
        for name in ids_of:
            _step_of_shifts(name, line, x_B2, labels_B, weight_B, ids_of, shifts, variance)
        p_B = sigmoid(x_B2 @ line + _total(shifts, ids_of))
        gradient = x_B2.T @ (weight_B * (labels_B - p_B))
        hessian = (x_B2 * (weight_B * p_B * (1 - p_B))[:, None]).T @ x_B2
        hessian += 1e-9 * max(1.0, float(hessian.max())) * np.eye(2)
        line = line + np.clip(np.linalg.solve(hessian, gradient), -_LARGEST_STEP, _LARGEST_STEP)
        if np.abs(np.concatenate([line, *shifts.values()]) - before).max() < _TOLERANCE:
            break
    if not line[0] > _LEAST_SLOPE:
        raise DataError(
            f"the log odds rise by {line[0]:.3g} per logit: the model does not rank these labels, "
            "and no calibration can make up for it"
        )
    return Platt(slope=float(line[0]), intercept=float(line[1])), shifts, variance


def _total(shifts: Mapping[str, Floats], ids_of: Mapping[str, tuple[Ids, int]]) -> Floats:
    """Return the sum of each row's shifts."""
    parts = [np.append(shifts[name], 0.0)[ids_B] for name, (ids_B, _) in ids_of.items()]
    return np.asarray(np.sum(parts, axis=0))


def _step_of_shifts(
    name: str,
    line: Floats,
    x_B2: Floats,
    labels_B: Floats,
    weight_B: Floats,
    ids_of: Mapping[str, tuple[Ids, int]],
    shifts: dict[str, Floats],
    variance: dict[str, float],
) -> None:
    """Move one feature's shifts by a step of Newton's method, then its variance by one of EM."""
    ids_B, count = ids_of[name]
    has_B = ids_B >= 0
    p_B = sigmoid(x_B2 @ line + _total(shifts, ids_of))

    def by_id(values_B: Floats) -> Floats:
        sums: Floats = np.bincount(ids_B[has_B], values_B[has_B], count).astype(np.float64)
        return sums

    precision = 1.0 / variance[name]
    information = by_id(weight_B * p_B * (1 - p_B)) + precision
    step = (by_id(weight_B * (labels_B - p_B)) - precision * shifts[name]) / information
    shifts[name] = shifts[name] + np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    present = by_id(weight_B) > 0
    second = shifts[name][present] ** 2 + 1.0 / information[present]
    variance[name] = max(float(second.mean()), _LEAST_VARIANCE)


@dataclass(slots=True)
class _Rows:
    logits_B: Floats
    labels_B: Floats
    weight_B: Floats
    now_B: Floats  # Probabilities as the bundle gives them
    ids_of: dict[str, tuple[Ids, int]]
    group_B: Ids  # Group of each row from 0: rows that are not independent of each other
    fold_B: Ids  # Half of the data: 0 or 1; the rows of a group are in one

    def part(self, mask_B: NDArray[np.bool_]) -> tuple[Any, ...]:
        ids_of = {name: (ids_B[mask_B], n) for name, (ids_B, n) in self.ids_of.items()}
        return self.logits_B[mask_B], self.labels_B[mask_B], self.weight_B[mask_B], ids_of


def calibrate_slices(
    bundle: Bundle,
    data: Data,
    by: Sequence[str],
    path: str | os.PathLike[str],
    *,
    head: str | None = None,
    overwrite: bool = False,
    only_if_better: bool = True,
    posterior: object | None = None,
    threads: int = 1,
) -> SliceCalibration:
    """Write a bundle again, calibrated in each value of some features.

    The line through the logits becomes the bundle's calibration (:class:`Platt`), and each value's
    shift is added to its weight in the wide part: it is served as the model is, to the bit, and
    explained as what the value adds.

    Args:
        bundle: The model.
        data: Labelled rows that it was not trained on.
        by: Features of the wide part with one value per row.
        path: The new bundle's directory.
        head: The binary head; None: the first.
        overwrite: Replace a bundle that is already there.
        only_if_better: Write nothing if the log loss of held-out halves does not fall for sure.
        posterior: Labelled rows, as for :meth:`widedeep.Trainer.export`. Without them the
            new bundle has no posterior of its last layer, for that of the older weights is none.
        threads: Threads to score with.

    Raises:
        BundleError: If a feature is not in the wide part, there is no binary head, or the bundle
            cannot be written.
        DataError: If the data has no rows, one class only, or several values in a row.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(label="income", features=wd.categorical("education", "gender"))
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, "train.parquet")))
        >>> _ = trainer.fit("train.parquet")
        >>> bundle = trainer.export("uneven")
        >>> result = calibrate_slices(
        ...     bundle, "valid.parquet", ["gender"], "even", only_if_better=False
        ... )
        >>> sorted(result.log_loss)
        ['by slice', 'now', 'one line']
        >>> wd.Bundle.load("even").calibration[""].kind
        'platt'
    """
    chosen = _head(bundle, head)
    if posterior is not None:
        ranked_head(bundle.model)  # a model without one is told of at once
    for name in by:
        if name not in bundle.model.wide:
            raise BundleError(
                f"got the feature {name!r}, which is not in the wide part, where the correction of "
                f"each value is kept; {nearest(name, bundle.model.wide)}, or train with it there"
            )
    rows = _read(bundle, chosen, data, list(dict.fromkeys(by)), threads)
    held_out = _held_out(rows)
    line, shifts, variance = fit_slices(*rows.part(np.ones(len(rows.labels_B), bool)))
    losses = {name: log_losses(rows.labels_B, p_B) for name, p_B in held_out.items()}
    gain, gain_error = _mean_and_error(rows, losses["now"] - losses["by slice"])
    result = SliceCalibration(
        head=chosen.name,
        slope=line.slope,
        intercept=line.intercept,
        spread={name: float(np.sqrt(value)) for name, value in variance.items()},
        log_loss={name: _mean_and_error(rows, values_B)[0] for name, values_B in losses.items()},
        error={name: _error(rows, p_B) for name, p_B in held_out.items()},
        slices=_slices(bundle, rows, shifts, held_out),
        gain=gain,
        gain_error=gain_error,
    )
    if only_if_better and not result.better:
        return result
    weights = dict(bundle.weights)
    for name, values in shifts.items():
        moved = np.array(weights[f"wide/{name}"])
        moved[:, chosen.start] += (values / line.slope).astype(np.float32)
        weights[f"wide/{name}"] = moved
    calibration = {**bundle.calibration, chosen.name: line}
    rewrite_bundle(
        bundle,
        path,
        weights=weights,
        calibration=calibration,
        posterior_rows=posterior,
        overwrite=overwrite,
    )
    return result


def _head(bundle: Bundle, name: str | None) -> BundleHead:
    heads = [h for h in bundle.model.heads if h.kind == "binary" and h.through is None]
    if not heads:
        raise BundleError(f"{bundle.path}: has no binary head; probabilities alone are calibrated")
    if name is None:
        return heads[0]
    for head in heads:
        if head.name == name:
            return head
    raise BundleError(f"got head {name!r}; {nearest(name, [head.name for head in heads])}")


def _read(bundle: Bundle, head: BundleHead, data: Data, by: Sequence[str], threads: int) -> _Rows:
    names = [slot.name for slot in bundle.schema.slots]
    places = {name: names.index(name) for name in by}
    parts: list[tuple[Any, ...]] = []
    row = 0
    ids: dict[str, list[Ids]] = {name: [] for name in by}
    for batch in labelled_batches(bundle, data, threads):
        labels_B, weights_B = head.targets(bundle.schema, batch)
        weight_B = np.ones(len(batch)) if weights_B is None else weights_B.astype(np.float64)
        known_B = ~np.isnan(labels_B)
        logits_BC = bundle.logits(batch, threads=threads)
        now_B = bundle.scores_by_head(logits_BC)[head.name]
        group_B = row + np.arange(len(batch)) if batch.group_B is None else batch.group_B
        row += len(batch)
        columns = (logits_BC[:, head.start], labels_B, weight_B, now_B, group_B)
        parts.append(tuple(values[known_B] for values in columns))
        for name, place in places.items():
            ids[name].append(_ids(batch, place, len(names), name)[known_B])
    logits, labels, weight, now, group = (np.concatenate(v) for v in zip(*parts, strict=True))
    if not 0 < (weight @ labels) < weight.sum():
        raise DataError("every label of the data is the same; give data with both classes")
    sizes = {slot.name: slot.size for slot in bundle.schema.slots}
    codes, group_B = np.unique(group, return_inverse=True)
    folds = np.random.default_rng(0).permutation(len(codes)) % 2
    return _Rows(
        logits_B=logits.astype(np.float64),
        labels_B=labels.astype(np.float64),
        weight_B=weight,
        now_B=now,
        ids_of={name: (np.concatenate(ids[name]), sizes[name]) for name in by},
        group_B=group_B,
        fold_B=folds[group_B],
    )


def _ids(batch: Batch, place: int, features: int, name: str) -> Ids:
    """Return a feature's id in each row, -1 where it has none."""
    starts = batch.offsets_BF[place::features][: len(batch)]
    counts = batch.offsets_BF[place + 1 :: features][: len(batch)] - starts
    if counts.max(initial=0) > 1:
        raise DataError(
            f"feature {name!r}: got {counts.max()} values in a row; expected one: a row is in one "
            "slice of a feature"
        )
    ids_B = np.full(len(batch), -1, np.int64)
    ids_B[counts > 0] = batch.ids_N[starts[counts > 0]]
    return ids_B


def _held_out(rows: _Rows) -> dict[str, Floats]:
    """Return each row's probability as it is now, and by fits on the other half of the data."""
    line_B, slice_B = np.empty(len(rows.labels_B)), np.empty(len(rows.labels_B))
    for fold in (0, 1):
        own_B = rows.fold_B == fold
        logits, labels, weights, ids_of = rows.part(~own_B)
        if not 0 < weights @ labels < weights.sum():
            raise DataError("too few rows of one class to fit on one half and test on the other")
        line_B[own_B] = fit_platt(logits, labels, weights).probabilities(rows.logits_B[own_B])
        line, shifts, _ = fit_slices(logits, labels, weights, ids_of)
        shift_B = _total(shifts, rows.part(own_B)[3])
        slice_B[own_B] = line.probabilities(rows.logits_B[own_B] + shift_B / line.slope)
    return {"now": rows.now_B, "one line": line_B, "by slice": slice_B}


def _mean_and_error(rows: _Rows, values_B: Floats) -> tuple[float, float]:
    """Return the weighted mean of rows, and its standard error: groups are independent."""
    total = rows.weight_B.sum()
    mean = rows.weight_B @ values_B / total
    excess = np.bincount(rows.group_B, rows.weight_B * (values_B - mean))
    return float(mean), float(np.sqrt((excess**2).sum()) / total)


def _error(rows: _Rows, p_B: Floats) -> float:
    total = 0.0
    for ids_B, count in rows.ids_of.values():
        excess = np.bincount(ids_B + 1, rows.weight_B * (p_B - rows.labels_B), count + 1)
        total += float(np.abs(excess).sum())
    return total / len(rows.ids_of) / float(rows.weight_B @ rows.labels_B)


def _slices(
    bundle: Bundle, rows: _Rows, shifts: Mapping[str, Floats], held_out: Mapping[str, Floats]
) -> list[dict[str, Any]]:
    slices = []
    for name, (ids_B, count) in rows.ids_of.items():

        def by_id(values_B: Floats, ids_B: Ids = ids_B, count: int = count) -> Floats:
            return np.bincount(ids_B + 1, values_B, count + 1)[1:].astype(np.float64)

        n, positive = by_id(np.ones(len(ids_B))), by_id(rows.weight_B * rows.labels_B)
        sums = {key: by_id(rows.weight_B * p_B) for key, p_B in held_out.items()}
        for id_ in np.argsort(-n, kind="stable")[:_MOST_SHOWN].tolist():
            if n[id_]:
                ratios = {
                    key: float(sums[key][id_] / positive[id_]) if positive[id_] else float("nan")
                    for key in ("now", "by slice")
                }
                value = bundle.schema.describe_id(name, id_)
                entry = {"feature": name, "value": value, "rows": int(n[id_])}
                slices.append({**entry, "shift": float(shifts[name][id_]), **ratios})
    return slices
