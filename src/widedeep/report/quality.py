"""How good a model is on labelled rows, beside another one: metrics, calibration, slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.sources import Data
from widedeep.gate.config import GateConfig
from widedeep.gate.drift import DriftCounts
from widedeep.gate.quality import calibration_curve, is_defined, judge_quality
from widedeep.gate.scored import HeadScores, Scored, score_both
from widedeep.report.evaluation import BundleMetrics
from widedeep.report.hash_bucket_values import HashNames

Floats = NDArray[np.float64]
WHO = {"candidate": "model", "serving": "against"}
"""What the gate calls the two models, and what a report does."""

_GAIN_POINTS = 20
_SLICE_METRICS = {"binary": "auc", "multiclass": "log_loss", "regression": "rmse"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What labelled rows say."""

    # By head: ``kind``, ``metrics``, ``curve`` and ``gain`` of each model, ``changes`` with 95 %
    # intervals, and ``classes`` of a class head
    heads: Mapping[str, Mapping[str, Any]]
    slices: list[dict[str, Any]]  # One entry a slice and head
    data: Mapping[str, Any]  # What was read: ``rows``, ``unit`` of the resamples, ``inputs``
    drift: DriftCounts  # Today's values beside those of training
    notes: tuple[str, ...] = ()  # Which rows were left out, as their labels are not known


def measure_quality(
    bundle: Bundle,
    against: Bundle | None,
    data: Data,
    config: GateConfig,
    *,
    threads: int = 1,
    names: HashNames | None = None,
) -> Measured:
    """Score labelled rows with one model or two, in one pass."""
    watched = [_Watched(each) for each in (bundle, against) if each is not None]

    def watch(
        chunk: pa.Table,
        batch: Batch,
        mine: Mapping[str, Floats],
        other: Batch | None,
        theirs: Mapping[str, Floats] | None,
    ) -> None:
        if names is not None:
            names.add(chunk, batch)
        watched[0].update(mine, batch)
        if other is not None and theirs is not None:
            watched[1].update(theirs, other)

    scored = score_both(bundle, against, data, config, threads=threads, watch=watch)
    with np.errstate(divide="ignore", invalid="ignore"):
        judged = judge_quality(scored, config)
    kinds = {head.name: head.kind for head in bundle.model.heads}
    metrics = [model.metrics.by_head() for model in watched]
    return Measured(
        heads={
            head.head.name: {
                "kind": head.head.kind,
                "metrics": dict(
                    zip(WHO.values(), (found[head.head.name] for found in metrics), strict=False)
                ),
                "changes": {
                    measure: change
                    for measure, change in judged.heads[head.head.name]["changes"].items()
                    if is_defined(change)
                },
                "gain": _gains(scored, head),
                "curve": _curves(scored, head, [m.tops[head.head.name] for m in watched]),
                "classes": watched[0].classes(head.head),
            }
            for head in scored.heads
        },
        slices=[_slice(entry, kinds[entry["head"]]) for entry in judged.slices if entry["rows"]],
        data={"rows": len(scored), "unit": scored.unit, "inputs": scored.inputs},
        drift=scored.drift,
        notes=(*scored.reasons, *scored.notes),
    )


@dataclass(slots=True)
class _Tops:
    """Of a class head's rows: the highest probability, whether it was right, sums by class."""

    highest: list[Floats] = field(default_factory=list)
    right: list[Floats] = field(default_factory=list)
    sums: dict[str, Floats] = field(default_factory=dict)


class _Watched:
    """One model's metrics, and of its class heads what the kept scores do not tell."""

    def __init__(self, bundle: Bundle) -> None:
        self.metrics = BundleMetrics(bundle)
        self._heads = bundle.model.heads
        self.tops = {head.name: _Tops() for head in self._heads}

    def update(self, by_head: Mapping[str, Floats], batch: Batch) -> None:
        self.metrics.update(by_head, batch)
        assert batch.labels_BL is not None
        weight_B = np.ones(len(batch)) if batch.weight_B is None else batch.weight_B
        for index, head in enumerate(self._heads):
            if head.kind == "multiclass":
                labels_B = batch.labels_BL[:, index].astype(np.int64)
                _add_classes(self.tops[head.name], by_head[head.name], labels_B, weight_B)

    def classes(self, head: BundleHead) -> list[dict[str, Any]]:
        """Return each class's share of the rows, mean probability, precision and recall."""
        sums = self.tops[head.name].sums
        if not sums:
            return []
        total = max(float(sums["observed"].sum()), 1e-300)
        names = head.classes or [str(at) for at in range(head.stop - head.start)]
        return [
            {
                "name": str(name),
                "observed": sums["observed"][at] / total,
                "predicted": sums["predicted"][at] / total,
                "precision": _share(sums["right"][at], sums["called"][at]),
                "recall": _share(sums["right"][at], sums["observed"][at]),
            }
            for at, name in enumerate(names)
        ]


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _add_classes(
    tops: _Tops, scores_BC: Floats, labels_B: NDArray[np.int64], weight_B: NDArray[Any]
) -> None:
    called_B, count = scores_BC.argmax(axis=1), scores_BC.shape[1]
    right_B = called_B == labels_B
    tops.highest.append(scores_BC.max(axis=1))
    tops.right.append(right_B.astype(np.float64))
    found: dict[str, NDArray[Any]] = {
        "observed": np.bincount(labels_B, weight_B, count),
        "called": np.bincount(called_B, weight_B, count),
        "right": np.bincount(labels_B, weight_B * right_B, count),
        "predicted": weight_B @ scores_BC,
    }
    for name, values_C in found.items():
        tops.sums[name] = tops.sums.get(name, np.zeros(count)) + values_C


def _curves(scored: Scored, head: HeadScores, tops: list[_Tops]) -> dict[str, list[list[float]]]:
    """Mean score and label of each tenth; of a class head, of its first choice."""
    if head.head.kind == "multiclass":
        both = [(np.concatenate(top.right), np.concatenate(top.highest)) for top in tops]
    else:
        both = [(head.labels_B, s) for s in (head.candidate_B, head.serving_B) if s is not None]
    return {
        who: calibration_curve(labels_B, scores_B, scored.weight_B)
        for who, (labels_B, scores_B) in zip(WHO.values(), both, strict=False)
    }


def _gains(scored: Scored, head: HeadScores) -> dict[str, list[list[float]]]:
    """Of a binary head: shares of the rows from the top, and of the positives among them."""
    if head.head.kind != "binary":
        return {}
    both = [s for s in (head.candidate_B, head.serving_B) if s is not None]
    return {
        who: found
        for who, scores_B in zip(WHO.values(), both, strict=False)
        if (found := gain_curve(head.labels_B, scores_B, scored.weight_B))
    }


def gain_curve(labels_B: Floats, scores_B: Floats, weight_B: Floats) -> list[list[float]]:
    """Return which share of the positives is among each share of the rows, the highest first."""
    _, place_B = np.unique(-scores_B, return_inverse=True)
    rows = np.cumsum(np.bincount(place_B, weight_B))
    positives = np.cumsum(np.bincount(place_B, weight_B * labels_B))
    if not positives[-1] > 0:
        return []
    shares = np.arange(_GAIN_POINTS + 1) / _GAIN_POINTS
    across, up = (np.concatenate([[0.0], sums / sums[-1]]) for sums in (rows, positives))
    return [
        [x, y] for x, y in zip(shares.tolist(), np.interp(shares, across, up).tolist(), strict=True)
    ]


def _slice(entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = {
        key: entry[key] for key in ("head", "column", "value", "rows", "positives", "too_little")
    }
    found["metric"] = _SLICE_METRICS[kind]
    for name, who in WHO.items():
        if name not in entry:
            continue
        metrics = dict(entry[name])
        if kind == "regression":  # the gate's loss is the squared error
            metrics["rmse"] = math.sqrt(metrics.pop("squared_error"))
        found[who] = {
            key: metrics[key]
            for key in ("auc", "log_loss", "rmse", "calibration")
            if key in metrics
        }
    return found


def kept_metrics(bundle: Bundle) -> dict[str, dict[str, float]]:
    """Return the metrics that a bundle was exported with, by head."""
    names = [head.name for head in bundle.model.heads]
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for key, value in bundle.metrics.items():
        head, _, metric = key.rpartition("/")
        if isinstance(value, (int, float)) and head in found:
            found[head][metric] = float(value)
    return found
