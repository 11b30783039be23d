"""How many of a batch's values were not in training."""

from __future__ import annotations

import numpy as np

from widedeep.data.batch import Batch
from widedeep.schema import Schema


def count_values(schema: Schema, batch: Batch) -> dict[str, tuple[int, int]]:
    """Return how many values each categorical feature has in a batch: the unseen ones, and all."""
    slots = schema.slots
    if not len(batch):
        return {}
    totals_F = np.diff(batch.offsets_BF).reshape(len(batch), len(slots)).sum(axis=0)
    places = np.flatnonzero(batch.ids_N == 0)
    cells = np.searchsorted(batch.offsets_BF, places, side="right") - 1
    unseen_F = np.bincount(cells % len(slots), minlength=len(slots))
    return {
        slot.name: (int(unseen), int(total))
        for slot, unseen, total in zip(slots, unseen_F, totals_F, strict=True)
        if slot.kind == "categorical"
    }
