"""Metrics of a bundle on labelled data, without torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.fragments import row_chunks
from widedeep.data.sources import Data, open_on_ranks
from widedeep.data.transform import Transform
from widedeep.errors import DataError, data_errors_of
from widedeep.metrics import MetricCollection, metrics_of
from widedeep.ranks.ranks import Ranks
from widedeep.ranks.shared import on_first, shared_failures

_CHUNK_ROWS = 16_384


def evaluate_bundle(
    bundle: Bundle, data: Data, *, threads: int = 1, ranks: Ranks | None = None
) -> dict[str, float]:
    """Return the metrics of a bundle's scores, calibrated as they are served.

    Several ranks score a part of the rows each; all return the metrics of one process.
    """
    ranks = ranks or Ranks()
    metrics = BundleMetrics(bundle)
    batches = labelled_batches(bundle, data, threads, ranks)
    scored: tuple[dict[str, NDArray[np.float64]], Batch] | None = None
    while True:
        with shared_failures(ranks):
            if scored is not None:
                metrics.update(*scored)
            batch = next(batches, None)
            logits_BC = None if batch is None else bundle.logits(batch, threads=threads)
            by_head = {} if logits_BC is None else bundle.scores_by_head(logits_BC)
        if not ranks.any(batch is not None):
            return dict(on_first(ranks, metrics.compute, "metrics"))
        # The first rank has a batch if any has.
        scored = None if batch is None else (by_head, batch)
        if ranks.size > 1:
            scored = _gathered(ranks, by_head, batch)


def _gathered(
    ranks: Ranks, by_head: Mapping[str, NDArray[np.float64]], batch: Batch | None
) -> tuple[dict[str, NDArray[np.float64]], Batch] | None:
    """Return on rank 0 the scores and targets of all ranks' batches, in their order."""
    scores = [values.reshape(len(values), -1) for values in by_head.values()]
    columns = ranks.columns_to_first([] if batch is None else [*scores, *batch.target_columns()])
    if columns is None or batch is None:
        return None
    heads = zip(by_head.items(), columns, strict=False)
    together = {name: c.reshape(-1, *values.shape[1:]) for (name, values), c in heads}
    return together, batch.of_targets(columns[len(scores) :])


class BundleMetrics:
    """Collects the metrics of a bundle's heads."""

    def __init__(self, bundle: Bundle) -> None:
        self._schema = bundle.schema
        grouped = bundle.schema.spec.group is not None
        self._heads = [(head, _head_metrics(head, grouped=grouped)) for head in bundle.model.heads]

    def update(self, by_head: Mapping[str, NDArray[np.float64]], batch: Batch) -> None:
        """Add rows."""
        for head, metrics in self._heads:
            labels, weight_B = head.targets(self._schema, batch)
            observed_B = ~np.isnan(labels.reshape(len(labels), -1)[:, 0])
            arrays = (by_head[head.name], labels, weight_B, batch.group_B)
            if not observed_B.all():
                arrays = tuple(None if a is None else a[observed_B] for a in arrays)  # type: ignore[assignment]
            with data_errors_of(f"label {self._schema.spec.labels[head.name]!r}"):
                metrics.update(*arrays)

    def by_head(self) -> dict[str, dict[str, float]]:
        """Return each head's metrics."""
        return {head.name: metrics.compute() for head, metrics in self._heads}

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, prefixed ``head/`` if there are several heads."""
        by_head = self.by_head()
        if len(by_head) == 1:
            return next(iter(by_head.values()))
        return {
            f"{head}/{name}": v for head, metrics in by_head.items() for name, v in metrics.items()
        }


def _head_metrics(head: BundleHead, *, grouped: bool) -> MetricCollection:
    classes = head.stop - head.start
    return metrics_of(head.label_kind, classes=classes, score_kind="probability", groups=grouped)


def labelled_batches(
    bundle: Bundle, data: Data, threads: int, ranks: Ranks | None = None
) -> Iterator[Batch]:
    """Yield labelled rows as a bundle encodes them; of several ranks each yields its share."""
    ranks = ranks or Ranks()
    if not bundle.schema.spec.labels:
        raise DataError(f"{bundle.path}: its schema has no label; it cannot be evaluated")
    transform = Transform(bundle.schema, threads=threads)
    types = bundle.schema.input_types()
    with open_on_ranks(
        data,
        ranks,
        "data to evaluate",
        columns=transform.columns(targets=True),
        column_types=types,
        empty=f"{data}: got no rows to evaluate; give at least one example",
    ) as source:
        own = itertools.islice(row_chunks(source, _CHUNK_ROWS), ranks.rank, None, ranks.size)
        for chunk, origin, first_row in own:
            yield transform(chunk, targets=True, origin=origin, first_row=first_row)
