"""A Wide & Deep model by plain autograd over whole tables: what every fast step must equal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from widedeep.data.batch import Batch
from widedeep.models.tower import DeepInput, SequenceInput
from widedeep.models.wide_deep import WideDeep


class DenseReference:
    """Leaves of autograd for every table of a model, and its logits from them.

    Args:
        model: Its towers are used as they are; its tables are copied.
    """

    def __init__(self, model: WideDeep) -> None:
        self.model = model
        self.wide = {}
        if model.wide_table is not None:
            self.wide = {
                name: leaf(weight) for name, weight in model.wide_table.named_weights().items()
            }
        self.tables = {
            name: leaf(weight)
            for table in model.deep_tables.values()
            for name, weight in table.named_weights().items()
        }

    def logits(self, batch: Batch) -> Tensor:
        """Return (B, C), with a graph to every table and parameter."""
        model, rows = self.model, []
        for b in range(len(batch)):
            total = model.bias
            for index, slot in enumerate(model.schema.slots):
                if slot.wide:
                    total = total + bag(
                        batch, b, index, self.wide[slot.name],
                        "sum" if slot.kind == "numeric" else model.config.wide_combiner,
                    )  # fmt: skip
            rows.append(total)
        logits_BC = torch.stack(rows)
        deep = model.deep_logits(self.inputs(batch)) if model.towers else None
        return logits_BC if deep is None else logits_BC + deep

    def inputs(self, batch: Batch) -> DeepInput:
        """Return the deep input, with a graph to the embeddings."""
        model = self.model
        concat, sequences = [], {}
        for b in range(len(batch)):
            parts = [
                bag(batch, b, index, self.tables[slot.table], slot.combiner)
                for index, slot in enumerate(model.schema.slots)
                if slot.deep and slot.combiner is not None
            ]
            parts.append(torch.from_numpy(batch.dense_BK[b, list(model.layout.dense_columns)]))
            concat.append(torch.cat(parts))
        for index, slot in enumerate(model.schema.slots):
            if slot.deep and slot.combiner is None:
                cells = [cell(batch, b, index)[0] for b in range(len(batch))]
                offsets = torch.from_numpy(np.cumsum([0, *map(len, cells)]))
                sequences[slot.name] = SequenceInput(
                    self.tables[slot.table][np.concatenate(cells)], offsets
                )
        concat_BX = torch.stack(concat)
        extra = {
            name: torch.from_numpy(batch.dense_BK[:, s].copy())
            for name, s in model.layout.extra.items()
        }
        return DeepInput(
            concat_BX=concat_BX,
            layout=model.layout.columns,
            dense_BK=concat_BX[:, model.layout.dense],
            sequences=sequences,
            extra=extra,
        )

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the examples' losses over all heads."""
        logits_BC = self.logits(batch)
        assert batch.labels_BL is not None
        total = torch.zeros(())
        weight = (
            torch.ones(len(batch)) if batch.weight_B is None else torch.from_numpy(batch.weight_B)
        )
        for i, (head, columns) in enumerate(
            zip(self.model.heads, self.model.head_slices, strict=True)
        ):
            labels = torch.from_numpy(batch.labels_BL[:, i])
            total = (
                total
                + (weight * head.loss_weight * head.losses(logits_BC[:, columns], labels)).sum()
            )
        return total


def leaf(weight: Tensor) -> Tensor:
    """Return a copy that autograd differentiates by."""
    return weight.detach().clone().requires_grad_()


def cell(batch: Batch, example: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of one cell and their values."""
    at = example * batch.n_slots + slot
    start, stop = batch.offsets_BF[at], batch.offsets_BF[at + 1]
    ids = batch.ids_N[start:stop]
    values = np.ones(len(ids), np.float32) if batch.values_N is None else batch.values_N[start:stop]
    return ids, values


def bag(batch: Batch, example: int, slot: int, table: Tensor, combiner: str | None) -> Tensor:
    """Return the pooled rows of one cell."""
    ids, values = cell(batch, example, slot)
    if len(ids) == 0:
        return torch.zeros(table.shape[1])
    weights = torch.from_numpy(values)
    if combiner == "max":
        return table[ids].max(0).values
    summed = (table[ids] * weights[:, None]).sum(0)
    if combiner == "mean":
        return summed / weights.sum()
    return summed / weights.square().sum().sqrt() if combiner == "sqrtn" else summed
