"""Weighted means of labels by time or by position, added up without rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.exact_sum import ExactSums

_MOST_GROUPS = 200


class RateSums:
    """The weighted mean of each label in each group of rows; the first 200 groups are kept."""

    def __init__(self, low: int = 0, span: int = 1) -> None:
        self._low, self._span = low, span
        self._rows: dict[int, int] = {}
        self._weights = ExactSums()
        self._labels: dict[str, ExactSums] = {}

    def add(
        self,
        keys: pa.Array,
        weight_B: NDArray[np.float64],
        labels: Mapping[str, NDArray[np.float64]],
    ) -> None:
        """Add rows."""
        present_B = np.asarray(keys.is_valid())
        key_B = keys.drop_null().to_numpy().astype(np.int64)
        weight_B = weight_B[present_B]
        found, group_B = np.unique((key_B - self._low) // self._span, return_inverse=True)
        groups = found.tolist()
        for group, rows in zip(groups, np.bincount(group_B).tolist(), strict=True):
            self._rows[group] = self._rows.get(group, 0) + rows
        self._weights.add(groups, group_B, weight_B)
        for name, label_B in labels.items():
            sums = self._labels.setdefault(name, ExactSums())
            sums.add(groups, group_B, weight_B * label_B[present_B])
        for group in sorted(self._rows)[_MOST_GROUPS:]:
            self._forget(group)

    def _forget(self, group: int) -> None:
        """Drop a group: 200 lie before it, so it will not be told."""
        del self._rows[group]
        for sums in (self._weights, *self._labels.values()):
            sums.drop(group)

    def rates(self, label: str) -> list[dict[str, Any]]:
        """Return of each group where it begins, its rows, and the weighted mean of a label."""
        sums = self._labels.get(label, ExactSums())
        return [
            {
                "from": self._low + group * self._span,
                "rows": self._rows[group],
                "rate": float(sums.value(group) / self._weights.value(group)),
            }
            for group in sorted(self._rows)
        ]
