"""Metrics of a model over batches, head by head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.errors import DataError
from widedeep.heads import Head
from widedeep.metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics
from widedeep.model import WideDeep

__all__ = ["EVALUATION_ROWS", "Metrics", "evaluate_batches", "evaluating", "metric_names"]

EVALUATION_ROWS = 8192


class Metrics(dict[str, float]):
    """Metrics by name.

    Attributes:
        reasons: Why a metric is NaN, by its name.
    """

    reasons: dict[str, str]


HeadMetrics = BinaryMetrics | MulticlassMetrics | RegressionMetrics


@contextlib.contextmanager
def evaluating(model: WideDeep) -> Iterator[None]:
    """Switch dropout off and batch norm to its running figures, and back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def make_metrics(head: Head, *, groups: bool) -> HeadMetrics:
    """Return the collection of metrics for a head."""
    score_kind: Literal["logit", "probability"] = "logit" if head.follows_link else "probability"
    if head.kind == "multiclass":
        return MulticlassMetrics(head.width, score_kind=score_kind)
    if head.kind == "regression":
        return RegressionMetrics()
    return BinaryMetrics(groups=groups, score_kind=score_kind)


def evaluate_batches(model: WideDeep, batches: Iterable[Batch], *, threads: int = 1) -> Metrics:
    """Return a model's metrics over labelled batches.

    Args:
        model: In evaluation mode (see :func:`evaluating`).
        batches: With labels.
        threads: Threads of the kernels.

    Returns:
        Metrics by name, prefixed ``head/`` if the model has several heads.

    Raises:
        DataError: If every row has weight 0.
    """
    groups = model.schema.spec.group is not None
    collections = [make_metrics(head, groups=groups) for head in model.heads]
    weighed = False
    for batch in batches:
        weighed = weighed or batch.weight_B is None or bool(batch.weight_B.any())
        logits_BC = model(batch, threads=threads).cpu().numpy()
        for index, (collection, columns) in enumerate(
            zip(collections, model.head_slices, strict=True)
        ):
            scores_BC = _scores(model.heads[index], logits_BC[:, columns])
            _update(collection, scores_BC, batch, index)
    if not weighed:
        raise DataError(
            f"weight {model.schema.spec.weight!r}: got 0 in every row of the data to evaluate, so "
            "no metric is defined; give some rows a weight above 0"
        )
    return _named(model, collections)


def _named(model: WideDeep, collections: Sequence[HeadMetrics]) -> Metrics:
    """The metrics of all heads, prefixed where there are several."""
    metrics = Metrics()
    metrics.reasons = {}
    for head, collection in zip(model.heads, collections, strict=True):
        prefix = f"{head.name}/" if len(collections) > 1 else ""
        metrics |= {f"{prefix}{name}": value for name, value in collection.compute().items()}
        metrics.reasons |= {f"{prefix}{name}": why for name, why in collection.reasons.items()}
    return metrics


def metric_names(model: WideDeep) -> list[str]:
    """Return the names of the metrics that :func:`evaluate_batches` gives for a model."""
    groups = model.schema.spec.group is not None
    return [*_named(model, [make_metrics(head, groups=groups) for head in model.heads])]


def _scores(head: Head, logits_BC: NDArray[np.float32]) -> NDArray[Any]:
    """Return what the head's metrics read: logits, values, or predictions of its own making."""
    if head.follows_link and (head.kind != "regression" or head.link_in_use == "identity"):
        return logits_BC
    found = head.predictions(torch.from_numpy(logits_BC).double()).numpy()
    return found if found.ndim == 2 else found[:, None]


def _update(collection: HeadMetrics, scores_BC: NDArray[Any], batch: Batch, index: int) -> None:
    assert batch.labels_BL is not None
    labels_B = batch.labels_BL[:, index]
    if isinstance(collection, MulticlassMetrics):
        collection.update(scores_BC, labels_B.astype(np.int64), batch.weight_B)
    elif isinstance(collection, RegressionMetrics):
        collection.update(scores_BC[:, 0], labels_B, batch.weight_B)
    else:
        collection.update(scores_BC[:, 0], labels_B, batch.weight_B, batch.group_B)
