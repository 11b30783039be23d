"""Metrics of a model over batches, head by head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.errors import DataError
from widedeep.heads import Head, Multiclass, Regression
from widedeep.metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics
from widedeep.model import WideDeep

__all__ = ["EVALUATION_ROWS", "evaluate_batches", "evaluating"]

EVALUATION_ROWS = 8192
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


def evaluate_batches(
    model: WideDeep, batches: Iterable[Batch], *, threads: int = 1
) -> dict[str, float]:
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
    found = [collection.compute() for collection in collections]
    if len(found) == 1:
        return found[0]
    return {
        f"{head.name}/{name}": value
        for head, metrics in zip(model.heads, found, strict=True)
        for name, value in metrics.items()
    }


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
