"""Integrated gradients: what each feature adds to a model's logits, over a sample of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.data.batch import Batch
from widedeep.models.tower import DeepInput
from widedeep.models.wide_deep import WideDeep

Floats = NDArray[np.float64]


def integrated_gradients(
    model: WideDeep, batch: Batch, *, steps: int = 16, threads: int = 1
) -> dict[str, dict[str, Floats]]:
    """Return what each feature adds to each row's logit, by head and feature, (B,) each.

    Sundararajan et al. 2017, equation 1: the gradient's mean on the straight way from a baseline to
    the row, times the difference of both. The baseline is the mean of the rows' inputs of towers
    (embeddings and numbers) and of their wide weights, so that an attribution is the difference
    that a feature makes from what is usual; together they are the row's logit less that of the
    baseline, but for the error of ``steps`` midpoints. A head of classes is explained for the
    class that the model gives the highest logit.
    """
    was_training = model.training
    model.eval()
    try:
        targets_BH = _targets(model, batch, threads)
        attributions = [_wide(model, batch, columns_B) for columns_B in targets_BH.T]
        if model.towers:
            for head, columns_B in enumerate(targets_BH.T):
                deep = _deep(model, batch, torch.from_numpy(columns_B), steps, threads)
                for feature, values_B in deep.items():
                    total_B = attributions[head].get(feature, 0.0) + values_B
                    attributions[head][feature] = total_B
    finally:
        model.train(was_training)
    names = [head.name for head in model.heads]
    return dict(zip(names, attributions, strict=True))


def mean_attributions(
    model: WideDeep, batch: Batch, *, steps: int = 16, threads: int = 1
) -> dict[str, dict[str, float]]:
    """Return mean absolute attributions by head and feature, the largest first."""
    by_head = integrated_gradients(model, batch, steps=steps, threads=threads)
    means = {
        head: {feature: float(np.abs(values_B).mean()) for feature, values_B in parts.items()}
        for head, parts in by_head.items()
    }
    return {
        head: dict(sorted(parts.items(), key=lambda one: -one[1])) for head, parts in means.items()
    }


def _targets(model: WideDeep, batch: Batch, threads: int) -> NDArray[np.int64]:
    """Return the logit column that is explained, by row and head, (B, heads)."""
    logits_BC = model(batch, threads=threads).cpu().numpy()
    columns = [span.start + logits_BC[:, span].argmax(axis=1) for span in model.head_slices]
    return np.stack(columns, axis=1).astype(np.int64)


def _wide(model: WideDeep, batch: Batch, columns_B: NDArray[np.int64]) -> dict[str, Floats]:
    """Return what each wide feature adds to the rows' logits, less its mean."""
    parts: dict[str, Floats] = {}
    table = model.wide_table
    for index, slot in enumerate(model.schema.slots):
        if table is None or not slot.wide:
            continue
        cells = batch.cells(index)
        rows_N = np.repeat(np.arange(len(batch)), np.diff(cells.offsets))
        value_N = np.ones(len(rows_N)) if cells.values_N is None else cells.values_N
        rows_NC, _ = table.rows_of_slot(batch, model.schema.slots, index)
        weights_NC = rows_NC.detach().cpu().numpy()
        added_N = weights_NC[np.arange(len(rows_N)), columns_B[rows_N]] * value_N
        sums_B = np.bincount(rows_N, added_N, len(batch))
        combiner = slot.wide_combiner(model.config.wide_combiner)
        if combiner != "sum":
            squared = combiner == "sqrtn"
            norm_B = np.bincount(rows_N, value_N**2 if squared else value_N, len(batch))
            norm_B = np.sqrt(norm_B) if squared else norm_B
            sums_B = np.divide(sums_B, norm_B, out=np.zeros(len(batch)), where=norm_B > 0)
        parts[slot.name] = sums_B - sums_B.mean()
    return parts


def _deep(
    model: WideDeep, batch: Batch, columns_B: Tensor, steps: int, threads: int
) -> dict[str, Floats]:
    """Return what each deep feature adds to the rows' logits by way of the towers."""
    inputs = model.gather(batch, threads=threads)
    columns_B = columns_B.to(inputs.concat_BX.device)
    ends = {"": inputs.concat_BX.clone()}
    ends |= {f"sequence {name}": s.values_ND for name, s in inputs.sequences.items()}
    ends |= {f"extra {name}": tensor for name, tensor in inputs.extra.items()}
    starts = {name: end.mean(dim=0, keepdim=True).expand_as(end) for name, end in ends.items()}
    sums = {name: torch.zeros_like(end) for name, end in ends.items()}
    for step in range(steps):
        way = (step + 0.5) / steps
        points = {
            name: torch.lerp(starts[name], end, way).detach().requires_grad_()
            for name, end in ends.items()
        }
        with torch.enable_grad():
            logits_BC = model.deep_logits(_at(points, inputs, model))
            assert logits_BC is not None
            total = logits_BC.gather(1, columns_B[:, None]).sum()
            gradients = torch.autograd.grad(total, list(points.values()), allow_unused=True)
        for name, gradient in zip(points, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient
    parts = {
        name: ((ends[name] - starts[name]) * sums[name] / steps).double().cpu().numpy()
        for name in ends
    }
    by_feature = {
        name: parts[""][:, span].sum(axis=1) for name, span in model.gathered.columns.items()
    }
    for name, sequence in inputs.sequences.items():
        rows_N = np.repeat(np.arange(len(batch)), np.diff(sequence.offsets.cpu().numpy()))
        values_N = parts[f"sequence {name}"].sum(axis=1)
        by_feature[name] = np.bincount(rows_N, values_N, len(batch))
    by_feature |= {name: parts[f"extra {name}"].sum(axis=1) for name in inputs.extra}
    return by_feature


def _at(points: Mapping[str, Tensor], inputs: DeepInput, model: WideDeep) -> DeepInput:
    """Return the deep input at a point of the way."""
    return DeepInput(
        concat_BX=points[""],
        layout=inputs.layout,
        dense_BK=points[""][:, model.gathered.dense],
        sequences={
            name: dataclasses.replace(sequence, values_ND=points[f"sequence {name}"])
            for name, sequence in inputs.sequences.items()
        },
        extra={name: points[f"extra {name}"] for name in inputs.extra},
    )
