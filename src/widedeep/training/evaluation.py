"""Metrics of a model over batches, head by head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.errors import DataError
from widedeep.heads import Head, Multiclass, Regression
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
    if isinstance(head, Multiclass):
        return MulticlassMetrics(head.classes)
    if isinstance(head, Regression):
        return RegressionMetrics()
    return BinaryMetrics(groups=groups)


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
            _update(collection, logits_BC[:, columns], batch, index)
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


def _update(
    collection: HeadMetrics, logits_BC: NDArray[np.float32], batch: Batch, index: int
) -> None:
    assert batch.labels_BL is not None
    labels_B = batch.labels_BL[:, index]
    if isinstance(collection, MulticlassMetrics):
        collection.update(logits_BC, labels_B.astype(np.int64), batch.weight_B)
    elif isinstance(collection, RegressionMetrics):
        collection.update(logits_BC[:, 0], labels_B, batch.weight_B)
    else:
        collection.update(logits_BC[:, 0], labels_B, batch.weight_B, batch.group_B)
