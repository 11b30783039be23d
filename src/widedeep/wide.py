"""The wide part: one weight for every id and logit, started at 0."""

from __future__ import annotations

import torch

from widedeep.schema import Schema
from widedeep.tables import EmbeddingTable
from widedeep.tables_device import DeviceBatches

__all__ = ["make_wide_table"]


def make_wide_table(
    schema: Schema, n_logits: int, device: torch.device, batches: DeviceBatches | None = None
) -> EmbeddingTable | None:
    """Return the wide part's weights, or None if no feature is in it.

    Features that share an embedding table have wide weights of their own.

    Args:
        schema: Gives the features of the wide part.
        n_logits: C, weights an id.
        device: Where the weights live.
        batches: Brings batches there.
    """
    slots = [slot for slot in schema.slots if slot.wide]
    if not slots:
        return None
    return EmbeddingTable(
        {slot.name: slot.size for slot in slots},
        {slot.name: slot.name for slot in slots},
        dim=n_logits,
        seed=0,
        std=0.0,
        device=device,
        batches=batches,
    )
