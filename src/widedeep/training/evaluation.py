"""Metrics of a model over batches, head by head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from widedeep.bundle.forward import TowerForward
from widedeep.data.batch import Batch
from widedeep.deep import MLP
from widedeep.errors import DataError
from widedeep.heads import Head
from widedeep.metrics import BinaryMetrics, MulticlassMetrics, RegressionMetrics
from widedeep.model import WideDeep
from widedeep.training.bundle_parts import bundle_model, mlp_weights, standard_tower

EVALUATION_ROWS = 8192


class Metrics(dict[str, float]):
    """Metrics by name."""

    reasons: dict[str, str]


HeadMetrics = BinaryMetrics | MulticlassMetrics | RegressionMetrics


Logits = Callable[[Batch], NDArray[np.float32]]


@contextlib.contextmanager
def evaluating(model: WideDeep, *, threads: int = 1, by_modules: bool = False) -> Iterator[Logits]:
    """Switch dropout off and batch norm to its running figures, and back."""
    was_training = model.training
    model.eval()
    try:
        tower = standard_tower(model) if not by_modules and model.device.type == "cpu" else None
        if tower is None:
            yield lambda batch: model(batch, threads=threads).cpu().numpy()
        else:
            yield _as_served(model, tower, threads)
    finally:
        model.train(was_training)


def _as_served(model: WideDeep, tower: MLP, threads: int) -> Logits:
    (output,) = model.outputs.values()
    assert isinstance(output, nn.Linear)
    bias_C = model.bias.detach().numpy()
    weights = {"bias": bias_C, **mlp_weights(tower, output, bias_C)}
    forward = TowerForward(model.schema, bundle_model(model), weights)

    def logits(batch: Batch) -> NDArray[np.float32]:
        model.check_batch(batch)
        logits_BC: NDArray[np.float32] = model.wide_logits(
            batch, threads=threads, bias=False
        ).numpy()
        concat_BX = model.gather(batch, threads=threads).concat_BX.numpy()
        logits_BC += forward.logits(concat_BX, threads=threads)
        logits_BC += weights["bias"]
        return logits_BC

    return logits


def make_metrics(head: Head, *, groups: bool) -> HeadMetrics:
    """Return the collection of metrics for a head."""
    score_kind: Literal["logit", "probability"] = "logit" if head.follows_link else "probability"
    if head.kind == "multiclass":
        return MulticlassMetrics(head.width, score_kind=score_kind)
    if head.kind == "regression":
        return RegressionMetrics()
    return BinaryMetrics(groups=groups, score_kind=score_kind)


def evaluate_batches(model: WideDeep, logits: Logits, batches: Iterable[Batch]) -> Metrics:
    """Return a model's metrics over labelled batches."""
    groups = model.schema.spec.group is not None
    collections = [make_metrics(head, groups=groups) for head in model.heads]
    weighed = False
    for batch in batches:
        weighed = weighed or batch.weight_B is None or bool(batch.weight_B.any())
        logits_BC = logits(batch)
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
    loss = 0.0
    for head, collection in zip(model.heads, collections, strict=True):
        prefix = f"{head.name}/" if len(collections) > 1 else ""
        metrics |= {f"{prefix}{name}": value for name, value in collection.compute().items()}
        metrics.reasons |= {f"{prefix}{name}": why for name, why in collection.reasons.items()}
        name = "mse" if head.kind == "regression" else "log_loss"
        loss += head.loss_weight * metrics[f"{prefix}{name}"]
    if len(collections) > 1:
        metrics["loss"] = loss
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
