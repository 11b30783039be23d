"""How many of a batch's values were not in training."""

from __future__ import annotations

import numpy as np

from widedeep.data.batch import Batch
from widedeep.schema import Schema

__all__ = ["count_values"]


def count_values(schema: Schema, batch: Batch) -> dict[str, tuple[int, int]]:
    """Return how many values each categorical feature has in a batch: the unseen ones, and all.

    Args:
        schema: The schema the batch was made with.
        batch: B examples.

    Example:
        >>> import widedeep as wd
        >>> from widedeep.data.transform import Transform
        >>> schema = wd.fit_schema(wd.FeatureSpec(features=wd.categorical("job")), [{"job": "a"}])
        >>> count_values(schema, Transform(schema).rows([{"job": "a"}, {"job": "b"}]))
        {'job': (1, 2)}
    """
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
