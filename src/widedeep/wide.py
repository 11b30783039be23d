"""The wide part: one weight for every id and logit, started at 0."""

from __future__ import annotations

import torch

from widedeep.schema import Schema
from widedeep.tables import EmbeddingTable
from widedeep.tables_device import DeviceBatches


def make_wide_table(
    schema: Schema, n_logits: int, device: torch.device, batches: DeviceBatches | None = None
) -> EmbeddingTable | None:
    """Return the wide part's weights, or None if no feature is in it."""
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
