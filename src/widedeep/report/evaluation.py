"""Metrics of a bundle on labelled data, without torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.fragments import column_stream, origin_of
from widedeep.data.sources import Data, open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics

__all__ = ["evaluate_bundle"]

_CHUNK_ROWS = 16_384
HeadMetrics = BinaryMetrics | MulticlassMetrics | RegressionMetrics


def evaluate_bundle(bundle: Bundle, data: Data, *, threads: int = 1) -> dict[str, float]:
    """Return the metrics of a bundle's scores, calibrated as they are served.

    Args:
        bundle: A trained model.
        data: Labelled rows: a path, a glob, a table.
        threads: Threads to use; the result does not depend on it.

    Returns:
        Metrics by name, prefixed ``head/`` if the model has several heads.

    Raises:
        DataError: If the data has no rows, lacks a column, or holds a label out of range.
    """
    grouped = bundle.schema.spec.group is not None
    heads = [
        (index, head, _head_metrics(head, grouped=grouped))
        for index, head in enumerate(bundle.model.heads)
    ]
    for batch in _labelled_batches(bundle, data, threads):
        scores = bundle.scores_of(bundle.logits(batch, threads=threads))
        by_head = scores if isinstance(scores, dict) else {heads[0][1].name: scores}
        for index, head, metrics in heads:
            _update(metrics, by_head[head.name], batch, index)
    found = {head.name: metrics.compute() for _, head, metrics in heads}
    if len(found) == 1:
        return next(iter(found.values()))
    return {f"{head}/{name}": v for head, metrics in found.items() for name, v in metrics.items()}


def _head_metrics(head: BundleHead, *, grouped: bool) -> HeadMetrics:
    if head.kind == "regression":
        return RegressionMetrics()
    if head.kind == "multiclass":
        return MulticlassMetrics(head.stop - head.start, score_kind="probability")
    return BinaryMetrics(score_kind="probability", groups=grouped)


def _labelled_batches(bundle: Bundle, data: Data, threads: int) -> Iterator[Batch]:
    if not bundle.schema.spec.labels:
        raise DataError(f"{bundle.path}: its schema has no label; it cannot be evaluated")
    transform = Transform(bundle.schema, threads=threads)
    types = {name: kind.arrow() for name, kind in bundle.schema.columns.items()}
    with open_source(data, columns=transform.columns(targets=True), column_types=types) as source:
        if not source.num_rows:
            raise DataError(f"{data}: got no rows to evaluate; give at least one example")
        for table in column_stream(source):
            origin, first_row = origin_of(table) or ("", 0)
            for start in range(0, table.num_rows, _CHUNK_ROWS):
                chunk = table.slice(start, _CHUNK_ROWS)
                yield transform(chunk, targets=True, origin=origin, first_row=first_row + start)


def _update(metrics: HeadMetrics, scores: NDArray[np.float64], batch: Batch, index: int) -> None:
    assert batch.labels_BL is not None
    labels_B = batch.labels_BL[:, index]
    if isinstance(metrics, MulticlassMetrics):
        metrics.update(scores, labels_B.astype(np.int64), batch.weight_B)
    elif isinstance(metrics, RegressionMetrics):
        metrics.update(scores, labels_B, batch.weight_B)
    else:
        metrics.update(scores, labels_B, batch.weight_B, batch.group_B)
