"""Quality of a model on labelled rows, beside another one: metrics, calibration, slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.drift import DriftCounts
from widedeep.data.sources import Data
from widedeep.evaluation.bundle_metrics import BundleMetrics
from widedeep.evaluation.compare import ComparedRows, HeadScores
from widedeep.evaluation.off_policy import policy_values
from widedeep.evaluation.statistics import calibration_curve, gain_curve, is_defined
from widedeep.gate.config import GateConfig
from widedeep.gate.quality import judge_quality
from widedeep.gate.validation import score_rows_to_judge
from widedeep.report.hash_bucket_values import HashBucketValues

Floats = NDArray[np.float64]
_REPORT_NAMES = {"candidate": "model", "serving": "against"}
"""Names of the two models in the gate and in a report."""

_SLICE_METRICS = {
    "binary": "auc",
    "multiclass": "log_loss",
    "multilabel": "log_loss",
    "regression": "rmse",
    "ranking": "log_loss",
}


@dataclass(frozen=True, kw_only=True)
class MeasuredQuality:
    """Quality on labelled rows."""

    # By head: ``kind``, ``metrics``, ``curve`` and ``gain`` of each model, ``changes`` with 95 %
    # intervals, and ``classes`` of a class head
    heads: Mapping[str, Mapping[str, Any]]
    slices: list[dict[str, Any]]  # One entry per slice and head
    data: Mapping[str, Any]  # ``rows``, ``unit`` of the resamples, ``inputs``
    drift: DriftCounts  # Counts of the values, beside those of training
    # What the models' rankings would earn, by head, where the data has propensities
    policy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # Rows left out because of their labels


def measure_quality(
    bundle: Bundle,
    against: Bundle | None,
    data: Data,
    config: GateConfig,
    *,
    threads: int = 1,
    bucket_values: HashBucketValues | None = None,
) -> MeasuredQuality:
    """Score labelled rows with one model or two, in one pass."""
    models = [_ModelQuality(each) for each in (bundle, against) if each is not None]

    def on_chunk(
        chunk: pa.Table,
        batch: Batch,
        scores: Mapping[str, Floats],
        other_batch: Batch | None,
        other_scores: Mapping[str, Floats] | None,
    ) -> None:
        if bucket_values is not None:
            bucket_values.add(chunk, batch)
        models[0].update(scores, batch)
        if other_batch is not None and other_scores is not None:
            models[1].update(other_scores, other_batch)

    rows = score_rows_to_judge(bundle, against, data, config, threads, on_chunk)
    with np.errstate(divide="ignore", invalid="ignore"):
        judged = judge_quality(rows, config)
    kinds = {head.name: head.kind for head in bundle.model.heads}
    metrics = [model.metrics.by_head() for model in models]
    return MeasuredQuality(
        heads={
            head.head.name: {
                "kind": head.head.kind,
                "label_kind": head.head.label_kind,
                "metrics": _by_model([by_head[head.head.name] for by_head in metrics]),
                "changes": {
                    measure: change
                    for measure, change in judged.heads[head.head.name]["changes"].items()
                    if is_defined(change)
                },
                "gain": _gains(rows, head),
                "curve": _curves(rows, head, [m.classes[head.head.name] for m in models]),
                "classes": models[0].class_table(head.head),
            }
            for head in rows.heads
        },
        slices=[_slice(entry, kinds[entry["head"]]) for entry in judged.slices if entry["rows"]],
        data={"rows": len(rows), "unit": rows.unit, "inputs": rows.inputs},
        drift=rows.drift,
        policy=policy_values(rows, resamples=config.bootstrap, seed=config.seed),
        notes=(*rows.reasons, *rows.notes),
    )


def _by_model(values: Sequence[Any]) -> dict[str, Any]:
    """Return the values of the model, and of the other one if there is one, by their names."""
    return dict(zip(_REPORT_NAMES.values(), values, strict=False))


@dataclass(slots=True)
class _ClassSums:
    """Highest probability of each row of a class head, whether it was right, sums by class."""

    highest: list[Floats] = field(default_factory=list)
    correct: list[Floats] = field(default_factory=list)
    sums: dict[str, Floats] = field(default_factory=dict)


class _ModelQuality:
    """Metrics of one model, and sums by class of its class heads."""

    def __init__(self, bundle: Bundle) -> None:
        self.metrics = BundleMetrics(bundle)
        self._heads, self._schema = bundle.model.heads, bundle.schema
        self.classes = {head.name: _ClassSums() for head in self._heads}

    def update(self, by_head: Mapping[str, Floats], batch: Batch) -> None:
        self.metrics.update(by_head, batch)
        for head in self._heads:
            if head.kind == "multiclass":
                labels_B, weights_B = head.targets(self._schema, batch)
                weight_B = np.ones(len(batch)) if weights_B is None else weights_B
                weight_B = np.where(np.isnan(labels_B), 0.0, weight_B)
                classes_B = np.nan_to_num(labels_B).astype(np.int64)
                _add_classes(self.classes[head.name], by_head[head.name], classes_B, weight_B)

    def class_table(self, head: BundleHead) -> list[dict[str, Any]]:
        """Return the fraction of rows, mean probability, precision and recall of each class."""
        sums = self.classes[head.name].sums
        if not sums:
            return []
        total = max(float(sums["observed"].sum()), 1e-300)
        names = head.classes or [str(class_) for class_ in range(head.stop - head.start)]
        return [
            {
                "name": str(name),
                "observed": sums["observed"][index] / total,
                "predicted": sums["predicted"][index] / total,
                "precision": _fraction(sums["correct"][index], sums["called"][index]),
                "recall": _fraction(sums["correct"][index], sums["observed"][index]),
            }
            for index, name in enumerate(names)
        ]


def _fraction(count: float, total: float) -> float | None:
    return float(count / total) if total else None


def _add_classes(
    classes: _ClassSums, scores_BC: Floats, labels_B: NDArray[np.int64], weight_B: NDArray[Any]
) -> None:
    called_B, count = scores_BC.argmax(axis=1), scores_BC.shape[1]
    correct_B = called_B == labels_B
    classes.highest.append(scores_BC.max(axis=1))
    classes.correct.append(correct_B.astype(np.float64))
    sums: dict[str, NDArray[Any]] = {
        "observed": np.bincount(labels_B, weight_B, count),
        "called": np.bincount(called_B, weight_B, count),
        "correct": np.bincount(labels_B, weight_B * correct_B, count),
        "predicted": weight_B @ scores_BC,
    }
    for name, values_C in sums.items():
        classes.sums[name] = classes.sums.get(name, np.zeros(count)) + values_C


def _curves(
    rows: ComparedRows, head: HeadScores, classes: list[_ClassSums]
) -> dict[str, list[list[float]]]:
    """Return mean score and label of each tenth; of a class head, of its first choice."""
    if head.head.kind == "multiclass":
        pairs = [(np.concatenate(one.correct), np.concatenate(one.highest)) for one in classes]
    elif head.head.kind == "ranking":
        return {}
    else:
        pairs = [(head.labels_B, s) for s in (head.candidate_B, head.serving_B) if s is not None]
    return _by_model(
        [calibration_curve(labels_B, scores_B, head.weight_B) for labels_B, scores_B in pairs]
    )


def _gains(rows: ComparedRows, head: HeadScores) -> dict[str, list[list[float]]]:
    """Return the gain curve of each model of a binary head."""
    if head.head.kind != "binary":
        return {}
    scores = [s for s in (head.candidate_B, head.serving_B) if s is not None]
    curves = [gain_curve(head.labels_B, scores_B, head.weight_B) for scores_B in scores]
    return {model: curve for model, curve in _by_model(curves).items() if curve}


def _slice(entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
    slice_ = {
        key: entry[key] for key in ("head", "column", "value", "rows", "positives", "too_little")
    }
    slice_["metric"] = _SLICE_METRICS[kind]
    for name, model in _REPORT_NAMES.items():
        if name not in entry:
            continue
        metrics = dict(entry[name])
        if "poisson_deviance" in metrics:
            slice_["metric"] = "poisson_deviance"
        elif kind == "regression":  # the gate's loss is the squared error
            metrics["rmse"] = math.sqrt(metrics.pop("squared_error"))
        slice_[model] = {
            key: metrics[key]
            for key in ("auc", "log_loss", "rmse", "poisson_deviance", "calibration")
            if key in metrics
        }
    return slice_


def exported_metrics(bundle: Bundle) -> dict[str, dict[str, float]]:
    """Return the metrics that a bundle was exported with, by head."""
    names = [head.name for head in bundle.model.heads]
    by_head: dict[str, dict[str, float]] = {name: {} for name in names}
    for key, value in bundle.metrics.items():
        head, _, metric = key.rpartition("/")
        if isinstance(value, (int, float)) and head in by_head:
            by_head[head][metric] = float(value)
    return by_head
